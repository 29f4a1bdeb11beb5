"""Marks into the CSV that Canvas or Moodle exported: one column filled, every other byte as it was.

The file is not parsed and written anew, because quoting, line ends, byte order mark and odd rows would change;
the places of its cells are found, and the bytes between them stay. Read ``fill`` first.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from pangu_lab.errors import PanguLabError
from pangu_lab.grading.sheets import decoded, delimiter, number

# Columns that tell who a row is, in Canvas' and Moodle's exports, the surest first.
KEYS = (
    "sis user id",
    "sis login id",
    "id number",
    "username",
    "student id",
    "student_id",
    "email address",
    "email",
    "identifier",
    "id",
    "student",
    "full name",
)
MOST_POSSIBLE = ("maximum grade",)


@dataclass(frozen=True)
class Scored:
    """A student's score for the column, and what else the system may know the student by."""

    student: str
    score: float
    most: float
    email: str = ""
    name: str = ""


@dataclass(frozen=True)
class Filled:
    """The new bytes, which column told the students apart, who was filled in, and what a person should know."""

    data: bytes
    key: str
    students: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Cell:
    start: int
    stop: int
    value: str
    quoted: bool


def fill(data: bytes, column: str, scores: list[Scored], key: str = "", out_of: float | None = None) -> Filled:
    """Fill one column of an exported CSV.

    Parameters
    ----------
    column
        The column's name, or the only one whose name contains this.
    key
        The column that holds the students' ids; by default the one in which most students are found.
    out_of
        Convert the points to a mark out of this many.

    Raises
    ------
    PanguLabError
        No such column, or nobody in the file is one of the students.
    """
    text, encoding = decoded(data)
    sign = delimiter(text)
    rows = _cells(text, sign)
    head = [cell.value.strip() for cell in rows[0]] if rows else []
    target = _column(head, column)
    where = _key_column(rows, head, scores, key)
    owners, doubled = _owners(rows, where, scores)
    comma = sign == ";" and any(re.fullmatch(r"\d+,\d+", c.value.strip()) for row in rows[1:] for c in row)
    pieces, last = [], 0
    for row, scored in sorted(owners.items()):
        if target >= len(rows[row]):
            doubled.append(f"row {row + 1} ({scored.student}) has no cell in {head[target]}")
            continue
        cell = rows[row][target]
        value = scored.score * (out_of / scored.most if out_of is not None and scored.most else 1.0)
        written = f"{round(value, 4):.10g}"
        written = written.replace(".", ",") if comma else written
        quoted = cell.quoted or (sign == "," and comma)
        pieces += [text[last : cell.start], f'"{written}"' if quoted else written]
        last = cell.stop
    pieces.append(text[last:])
    there = {scored.student for scored in owners.values()}
    remarks = [*doubled, *(f"{s.student} is not in the file" for s in scores if s.student not in there)]
    remarks += _possible(rows, head, target, scores, out_of)
    return Filled("".join(pieces).encode(encoding), head[where], tuple(sorted(there)), tuple(remarks))


def _cells(text: str, sign: str) -> list[list[_Cell]]:
    """The cells of each row and where they stand; quotes, doubled quotes and line ends as RFC 4180 has them."""
    rows: list[list[_Cell]] = []
    row: list[_Cell] = []
    place = 1 if text[:1] == "\ufeff" else 0
    pattern = re.compile(rf'"((?:[^"]|"")*)"(?=[{sign}\r\n]|\Z)|([^{sign}\r\n]*)')
    while place < len(text):
        match = pattern.match(text, place)
        assert match is not None  # the second half matches nothing, too
        quoted = match[1] is not None
        row.append(_Cell(place, match.end(), match[1].replace('""', '"') if quoted else match[2], quoted))
        place = match.end()
        if text[place : place + 1] == sign:
            place += 1
            if place < len(text):
                continue
            row.append(_Cell(place, place, "", False))
        place += 2 if text[place : place + 2] == "\r\n" else 1
        rows.append(row)
        row = []
    return rows


def _column(head: list[str], wanted: str) -> int:
    exact = [i for i, name in enumerate(head) if name == wanted]
    near = exact or [i for i, name in enumerate(head) if wanted.lower() in name.lower()]
    if len(near) != 1:
        which = "no column" if not near else f"{len(near)} columns"
        raise PanguLabError(f"the file has {which} named {wanted!r}; it has: {', '.join(filter(None, head))[:600]}")
    return near[0]


def _key_column(rows: list[list[_Cell]], head: list[str], scores: list[Scored], wanted: str) -> int:
    if wanted:
        return _column(head, wanted)
    names = [name.lower() for name in head]
    candidates = [names.index(name) for name in KEYS if name in names]
    found = {column: len(_owners(rows, column, scores)[0]) for column in candidates}
    best = max(candidates, key=lambda column: (found[column], -candidates.index(column)), default=-1)
    if best < 0 or not found[best]:
        raise PanguLabError("no row of the file is one of the students; name the column of their ids with --key")
    return best


def _owners(rows: list[list[_Cell]], column: int, scores: list[Scored]) -> tuple[dict[int, Scored], list[str]]:
    """Whose each row is; a row that fits two students, or a student who fits two rows, is nobody's."""
    by_name: dict[str, list[Scored]] = {}
    for scored in scores:
        for name in _names(scored):
            by_name.setdefault(name, []).append(scored)
    fits: dict[str, list[int]] = {}
    remarks = []
    for number_, row in enumerate(rows[1:], start=1):
        value = row[column].value if column < len(row) else ""
        found = by_name.get(_plain(value)) or by_name.get(_letters(value)) or []
        if len(found) > 1:
            names = ", ".join(scored.student for scored in found)
            remarks.append(f"row {number_ + 1} ({value.strip()}) fits several students: {names}")
        elif found:
            fits.setdefault(found[0].student, []).append(number_)
    known = {scored.student: scored for scored in scores}
    remarks += [f"{student} fits {len(places)} rows" for student, places in fits.items() if len(places) > 1]
    return {places[0]: known[student] for student, places in fits.items() if len(places) == 1}, remarks


def _names(scored: Scored) -> set[str]:
    """What a row may call a student: id, e-mail, name, Canvas' name for files, Moodle's participant number."""
    bare = re.sub(r"_\d+$", "", scored.student)
    names = {_plain(name) for name in (scored.student, bare, scored.email, scored.name)}
    names |= {_letters(name) for name in (bare, scored.name)}
    moodle = re.search(r"_(\d+)$", scored.student)
    return names - {""} | ({f"participant {moodle[1]}"} if moodle else set())


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _letters(name: str) -> str:
    """Letters and digits only, as Canvas makes file names: "Lovelace, Ada" is lovelaceada."""
    return "".join(sign for sign in _plain(name) if sign.isalnum())


def _possible(
    rows: list[list[_Cell]], head: list[str], target: int, scores: list[Scored], out_of: float | None
) -> list[str]:
    """A remark where the system counts out of another maximum than the marks."""
    ours = out_of if out_of is not None else max((scored.most for scored in scores), default=0.0)
    theirs = None
    if len(rows) > 1:
        names = [name.lower() for name in head]
        own = next((names.index(name) for name in MOST_POSSIBLE if name in names), None)
        possible = next((row for row in rows[1:4] if row and "points possible" in row[0].value.lower()), None)
        row, column = (possible, target) if possible else (rows[1], own)
        if column is not None and column < len(row):
            theirs = number(row[column].value)
    if theirs is None or abs(theirs - ours) < 1e-9:
        return []
    return [f"the file counts out of {theirs:g}, the marks out of {ours:g}; --out-of {theirs:g} converts them"]


def scores_of(grades: dict, lab: str = "") -> tuple[list[Scored], list[str], str]:
    """The scores of one lab from grades.json, remarks on whom has none, and the lab.

    Raises
    ------
    PanguLabError
        There are several labs and none is named, or not this one.
    """
    labs = sorted({result["assignment"] for result in grades["results"] if result["assignment"]})
    chosen = [name for name in labs if lab in name] if lab else labs
    if lab in labs:
        chosen = [lab]
    if len(chosen) != 1:
        raise PanguLabError(f"which lab? There is {', '.join(labs) or 'none'}; name one with --lab")
    scores, remarks = [], []
    for result in grades["results"]:
        if result["assignment"] != chosen[0]:
            continue
        if result["open"]:
            remarks.append(f"{result['student']} has no score yet: {result['reason'] or 'an exercise is open'}")
            continue
        name = " ".join(part for part in (result.get("first_name"), result.get("last_name")) if part)
        scores.append(Scored(result["student"], result["score"], result["max_score"], result.get("email", ""), name))
    return scores, remarks, chosen[0]


def export(
    exported: Path, grades: str, column: str, lab: str = "", key: str = "", out_of: float | None = None
) -> Filled:
    """``fill`` with the file that a system exported and the text of grades.json."""
    try:
        data = exported.read_bytes()
    except OSError as error:
        raise PanguLabError(f"{exported}: cannot be read ({error.strerror})") from error
    scores, remarks, _ = scores_of(json.loads(grades), lab)
    filled = fill(data, column, scores, key, out_of)
    return Filled(filled.data, filled.key, filled.students, (*remarks, *filled.remarks))
