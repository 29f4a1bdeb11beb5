"""A submission is read as data from a stranger, and the notebook to grade is rebuilt from the release.

Only the sources of the answer cells are taken from a submission; everything else is the instructor's copy.
Read ``read_submission``, then ``rebuild``.
"""

import ast
import hashlib
import io
import json
import os
import re
import stat
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

from pangu_lab.errors import PanguLabError
from pangu_lab.grading.notebook_format import check_call, read_notebook, without_magics

LARGEST = 20_000_000  # bytes of one notebook
MOST_CELLS, DEEPEST, LONGEST_SOURCE = 5_000, 100, 500_000
_DIGITS = 400


class InvalidFile(PanguLabError):
    """A submitted file is not a notebook that can be graded; the message says why in plain words."""


@dataclass(frozen=True)
class SubmittedCell:
    """What a submitted cell says of itself; nothing of it is trusted."""

    kind: str
    source: str
    id: str = ""
    grade_id: str = ""
    nbgrader: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Submission:
    """The cells of one submitted notebook, and the hash of its bytes."""

    digest: str
    cells: tuple[SubmittedCell, ...]


@dataclass(frozen=True)
class Step:
    """One code cell of the notebook to grade: "given", "answer" or "check".

    An answer carries the release's own source as ``stub``; a check its exercise, the expression it checks,
    and its source with the call replaced by the name ``KEPT``.
    """

    kind: str
    cell: str
    source: str
    stub: str = ""
    exercise: str = ""
    expression: str = ""
    points: float = 0
    answer: str = ""


KEPT = "_kept_by_the_grader"


@dataclass(frozen=True)
class Release:
    """An instructor's notebook as steps, with the hash of its bytes."""

    name: str
    digest: str
    steps: tuple[Step, ...]
    cells: tuple[SubmittedCell, ...]

    @property
    def exercises(self) -> dict[str, float]:
        """The points of each exercise, in the order of the notebook."""
        return {step.exercise: step.points for step in self.steps if step.kind == "check"}


@dataclass(frozen=True)
class Rebuilt:
    """The steps to run, what was changed where nothing may be changed, and remarks for the student."""

    steps: tuple[Step, ...]
    tampered: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    matched: int = 0


# --- reading ----------------------------------------------------------------------------------------


def read_bytes(path: Path | str, largest: int = LARGEST) -> bytes:
    """The bytes of a regular file that is no link and not too large.

    Raises
    ------
    InvalidFile
        It is a link, a folder or a device, cannot be read, is empty or larger than ``largest``.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
    except OSError as error:
        link = os.path.islink(path)
        raise InvalidFile("the file is a link, not a file" if link else f"cannot be read ({error.strerror})") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):  # before any Python file is made of it, which a folder does not allow
        os.close(descriptor)
        raise InvalidFile("is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > largest:
            raise InvalidFile(f"has {status.st_size / 1e6:.0f} MB; {largest / 1e6:.0f} MB is the limit (clear outputs)")
        data = file.read(largest + 1)
    if len(data) > largest:
        raise InvalidFile(f"has more than {largest / 1e6:.0f} MB")
    return data


def read_submission(path: Path | str) -> Submission:
    """Read a submitted notebook; whatever is wrong with it becomes an ``InvalidFile``."""
    return parse_submission(read_bytes(path))


def parse_submission(data: bytes) -> Submission:
    """The cells of a notebook's bytes.

    Raises
    ------
    InvalidFile
        Always this, whatever the bytes are.
    """
    digest = hashlib.sha256(data).hexdigest()
    try:
        return Submission(digest, tuple(_cells(_json(data))))
    except InvalidFile:
        raise
    except RecursionError as error:
        raise InvalidFile("is nested too deeply to be a notebook") from error
    except Exception as error:  # nbformat alone raises five unrelated types
        raise InvalidFile(f"is not a Jupyter notebook ({type(error).__name__})") from error


def _json(data: bytes) -> dict[str, Any]:
    if not data.strip():
        raise InvalidFile("the file is empty")
    try:
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidFile("is not text in UTF-8, so no notebook; was it renamed?") from error
    _check_depth(text)
    try:
        content = json.loads(text, object_pairs_hook=_unique, parse_int=_whole)
    except json.JSONDecodeError as error:
        cut = "; was the upload cut off?" if error.pos >= len(text.rstrip()) - 1 else ""
        raise InvalidFile(f"is not valid JSON (line {error.lineno}: {error.msg}){cut}") from error
    if not isinstance(content, dict):
        raise InvalidFile("is JSON, but not a notebook: there is no object at its top")
    return content


def _check_depth(text: str) -> None:
    depth = 0
    for sign in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text):
        first = sign[0][0]
        depth += (first in "[{") - (first in "]}")
        if depth > DEEPEST:
            raise InvalidFile("is nested too deeply to be a notebook")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [key for key, _ in pairs]
        doubled = next(key for key in names if names.count(key) > 1)
        raise InvalidFile(f"has the key {doubled[:40]!r} twice in one object, so it means two things")
    return content


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise InvalidFile(f"holds a number of {len(digits)} digits")
    return int(digits)


def _cells(content: dict[str, Any]) -> Iterable[SubmittedCell]:
    version = content.get("nbformat")
    if type(version) is not int or not 1 <= version <= 4:
        what = "no nbformat" if version is None else f"nbformat {str(version)[:20]}"
        raise InvalidFile(f"has {what}; save it as a notebook of nbformat 4")
    if version < 4:
        content = nbformat.convert(nbformat.from_dict(content), 4)
    cells = content.get("cells")
    if not isinstance(cells, list):
        raise InvalidFile("has no list of cells")
    if len(cells) > MOST_CELLS:
        raise InvalidFile(f"has {len(cells)} cells; {MOST_CELLS} is the limit")
    for number, cell in enumerate(cells, start=1):
        yield _cell(cell, number)


def _cell(cell: Any, number: int) -> SubmittedCell:
    if not isinstance(cell, dict):
        raise InvalidFile(f"cell {number} is not a cell")
    kind, source = cell.get("cell_type"), cell.get("source")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if kind not in ("code", "markdown", "raw"):
        raise InvalidFile(f"cell {number} is neither code nor text")
    if not isinstance(source, str):
        raise InvalidFile(f"the source of cell {number} is not text")
    if len(source) > LONGEST_SOURCE:
        raise InvalidFile(f"cell {number} has {len(source):,} characters; {LONGEST_SOURCE:,} is the limit")
    metadata = cell.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    nbgrader = metadata.get("nbgrader")
    nbgrader = nbgrader if isinstance(nbgrader, dict) else {}
    tags = metadata.get("tags")
    tags = tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ()
    # Lone surrogates are legal JSON, but nothing that we write could hold them.
    source = source.encode("utf-8", "replace").decode()
    return SubmittedCell(str(kind), source, _text(cell.get("id")), _text(nbgrader.get("grade_id")), nbgrader, tags)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


# --- the release ------------------------------------------------------------------------------------


def load_release(path: Path | str, mode: str = "smoke") -> Release:
    """An instructor's notebook as steps; its ``parameters`` cell gets ``mode``.

    Raises
    ------
    NotebookError
        It is not a notebook as ``pangu-lab release`` writes them.
    """
    path = Path(path)
    notebook = read_notebook(path)
    steps: list[Step] = []
    cells = tuple(_cell(cell, number) for number, cell in enumerate(notebook.cells, start=1))
    answer: Step | None = None
    for cell in cells:
        if cell.kind != "code":
            continue
        if cell.nbgrader.get("solution") is True:
            answer = Step("answer", cell.id, cell.source, stub=cell.source)
            steps.append(answer)
        elif cell.nbgrader.get("grade") is True and check_call(cell.source):
            exercise, expression, source = _check_parts(cell.source)
            points = float(cell.nbgrader.get("points", 0))
            steps.append(
                Step("check", cell.id, source, "", exercise, expression, points, answer.cell if answer else "")
            )
            answer = None
        else:
            source = cell.source + f'\nMODE = "{mode}"' if "parameters" in cell.tags else cell.source
            steps.append(Step("given", cell.id, source))
    return Release(path.stem, hashlib.sha256(path.read_bytes()).hexdigest(), tuple(steps), cells)


def _check_parts(source: str) -> tuple[str, str, str]:
    """The exercise of a check cell, the expression checked, and the source with the call replaced by ``KEPT``."""
    tree = ast.parse(without_magics(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "check":
            exercise, expression = ast.literal_eval(node.args[0]), ast.unparse(node.args[1])
            call = ast.get_source_segment(without_magics(source), node) or ""
            return str(exercise), expression, source.replace(call, KEPT, 1)
    raise AssertionError("check_call has found a call")


# --- rebuilding -------------------------------------------------------------------------------------


def rebuild(release: Release, submission: Submission) -> Rebuilt:
    """The steps of ``release`` with the answers of ``submission``.

    An answer cell is found by its grade_id, then by its cell id. Of several, those that still hold the stub
    are passed over and the last counts. Where none is left, the last cell that defines the same name counts.
    """
    tampered: list[str] = []
    notes: list[str] = []
    known = {cell.id for cell in release.cells} | {cell.grade_id for cell in release.cells if cell.grade_id}
    own = [cell for cell in submission.cells if not {cell.id, cell.grade_id} & known and cell.source.strip()]
    steps, places, matched = [], [], 0
    for step in release.steps:
        if step.kind != "answer":
            steps.append(step)
            continue
        found = _candidates(step, release, submission)
        matched += bool(found)
        chosen, remark = _chosen(step, found, own)
        notes += [remark] if remark else []
        if chosen is None:
            steps.append(step)
            continue
        places.append(submission.cells.index(chosen))
        steps.append(Step("answer", step.cell, chosen.source, stub=step.stub))
    if places != sorted(places):
        notes.append("the answer cells stand in another order than in the lab; they are run in the lab's order")
    if own:
        count = f"{len(own)} cells" if len(own) > 1 else "one cell"
        notes.append(f"{count} of your own are not run; only answer cells are graded")
    for cell in release.cells:
        if cell.nbgrader.get("grade") is True:
            tampered += _changes(cell, submission)
    return Rebuilt(tuple(steps), tuple(tampered), tuple(notes), matched)


def same_code(one: str, other: str) -> bool:
    """Whether two sources are the same but for spacing and comments."""
    return one == other or _code(one) == _code(other)


def _code(source: str) -> list[str]:
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError, ValueError):
        return source.split()
    return [" " if token.type == tokenize.INDENT else token.string for token in tokens if token.type not in skipped]


def _candidates(step: Step, release: Release, submission: Submission) -> list[SubmittedCell]:
    (ours,) = [cell for cell in release.cells if cell.id == step.cell]
    by_grade_id = [cell for cell in submission.cells if cell.grade_id and cell.grade_id == ours.grade_id]
    if by_grade_id:
        return by_grade_id
    taken = {cell.grade_id for cell in release.cells if cell.grade_id}
    return [cell for cell in submission.cells if cell.id == step.cell and cell.grade_id not in taken]


def _chosen(step: Step, found: list[SubmittedCell], own: list[SubmittedCell]) -> tuple[SubmittedCell | None, str]:
    where = f"answer cell {step.cell}"
    if len(found) > 1:
        worked = [cell for cell in found if not same_code(cell.source, step.stub)] or found
        return worked[-1], f"{where}: there are {len(found)} copies; the last one that is not the stub counts"
    if found and found[0].kind != "code":
        return found[0], f"{where}: was turned into {found[0].kind} text; it is run as code"
    names = _defined(step.stub)
    elsewhere = [cell for cell in own if cell.kind == "code" and names and names <= _defined(cell.source)]
    if found:
        if elsewhere and same_code(found[0].source, step.stub):
            name = ", ".join(sorted(names))
            return found[0], f"{where}: is untouched; {name} in a cell of your own is not graded, write it here"
        return found[0], ""
    if elsewhere:
        return elsewhere[-1], f"{where}: is missing; the last cell that defines the same name was taken"
    return None, f"{where}: is missing, so the exercise counts as not attempted"


def _defined(source: str) -> set[str]:
    """The functions and classes that a cell defines at its top level."""
    try:
        body = ast.parse(without_magics(source)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}


def _changes(ours: SubmittedCell, submission: Submission) -> list[str]:
    """What the submission did to one check cell; the grader uses the instructor's copy anyway."""
    where = f"check cell {ours.id}"
    found = [cell for cell in submission.cells if ours.grade_id == cell.grade_id or ours.id == cell.id]
    if not found:
        return [f"{where} is missing"]
    if len(found) > 1:
        return [f"{where} is there {len(found)} times"]
    (theirs,) = found
    changes = []
    if theirs.kind != ours.kind:
        changes.append(f"{where} was turned into {theirs.kind} text")
    elif not same_code(theirs.source, ours.source):
        changes.append(f"{where} was edited")
    if theirs.nbgrader:  # other programs drop the metadata of graders altogether, which proves nothing
        for key in ("grade", "solution", "locked", "points", "grade_id"):
            if theirs.nbgrader.get(key) != ours.nbgrader.get(key):
                value = str(theirs.nbgrader.get(key))[:40]
                changes.append(f"{where}: {key} was set to {value}")
    extra = sorted(set(theirs.tags) - set(ours.tags))
    return changes + [f"{where}: was given the tag {tag[:40]}" for tag in extra]
