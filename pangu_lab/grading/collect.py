"""Finding submissions: nbgrader's folders, flat files, and the zips that Canvas and Moodle make.

Nothing is unpacked to disk or kept; a zip's members are read one by one when needed, within limits. Read ``collect`` first.
"""

import csv
import io
import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pangu_lab.errors import PanguLabError
from pangu_lab.grading.rebuild import LARGEST, InvalidFile, read_bytes

LARGEST_ZIP, LARGEST_CONTENT, MOST_MEMBERS, HIGHEST_RATIO = 2_000_000_000, 4_000_000_000, 50_000, 200
_CANVAS = re.compile(r"(?P<who>[^_]+?)(_LATE)?_\d+_\d+_(?P<file>.+)", re.IGNORECASE)
_COPY = re.compile(r"[ _-]*\((\d+)\)$|-(\d+)$|[ _-]+copy(\d*)$", re.IGNORECASE)


@dataclass(frozen=True)
class Student:
    """A line of the roster."""

    id: str
    last_name: str = ""
    first_name: str = ""
    email: str = ""


@dataclass(frozen=True)
class Found:
    """One submitted file: whose it is by its place or name, where its bytes are or why they were refused."""

    student: str
    assignment: str
    place: str
    path: Path | None = None
    member: str = ""
    problem: str = ""

    def read(self) -> bytes:
        """The bytes of the file.

        Raises
        ------
        InvalidFile
            It was refused, or cannot be read.
        """
        if self.problem:
            raise InvalidFile(self.problem)
        return _unpacked(self.path, self.member) if self.path and self.member else read_bytes(self.path or "")


def read_roster(path: Path) -> dict[str, Student]:
    """The students of a CSV with a column student_id (or id), and last_name, first_name, email where it has them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PanguLabError(f"{path}: the roster cannot be read ({error}); give a CSV in UTF-8") from error
    rows = csv.DictReader(io.StringIO(text))
    names = {name.strip().lower(): name for name in rows.fieldnames or []}
    key = names.get("student_id") or names.get("id")
    if key is None:
        raise PanguLabError(f"{path}: the roster has no column student_id")
    students = {}
    for row in rows:
        values = {name: (row.get(column) or "").strip() for name, column in names.items()}
        identifier = normal((row.get(key) or "").strip())
        if identifier:
            more = {name: values.get(name, "") for name in ("last_name", "first_name", "email")}
            students[identifier] = Student(identifier, **more)
    return students


def normal(name: str) -> str:
    """A name as one sequence of characters, whichever system wrote it."""
    return unicodedata.normalize("NFC", name)


def collect(place: Path, assignments: Iterable[str], roster: Iterable[str] = ()) -> list[Found]:
    """Every submitted notebook below ``place``, a folder or a zip, in the order of their names."""
    assignments, roster = list(assignments), list(roster)
    if place.is_file() and place.suffix.lower() == ".zip":
        return [_attributed(found, assignments, roster) for found in _in_zip(place, "")]
    if not place.is_dir():
        raise PanguLabError(f"{place}: there is no such folder or zip of submissions")
    files = []
    for path in sorted(place.rglob("*")):
        parts = path.relative_to(place).parts
        if any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        inner = "/".join(parts)
        if path.suffix.lower() == ".ipynb":
            files.append(Found("", "", inner, path=path))
        elif path.suffix.lower() == ".zip" and path.is_file() and not path.is_symlink():
            files += _in_zip(path, inner.removesuffix(path.suffix))
    return [_attributed(found, assignments, roster) for found in files]


def _in_zip(path: Path, prefix: str) -> Iterator[Found]:
    """The notebooks of a zip; what could harm is refused by name, unread."""
    try:
        if path.stat().st_size > LARGEST_ZIP:
            raise InvalidFile(f"the zip is larger than {LARGEST_ZIP / 1e9:g} GB")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MOST_MEMBERS or sum(m.file_size for m in members) > LARGEST_CONTENT:
                raise InvalidFile("the zip unpacks to more than can be meant")
            notebooks = [m for m in members if m.filename.lower().endswith(".ipynb") and not _hidden(m.filename)]
            if not notebooks:
                raise InvalidFile("the zip holds no notebook")
            # One notebook: a student's zip, whose name tells the student. Several: the zip of a whole class.
            for member in notebooks:
                yield _member(path, member, prefix if len(notebooks) == 1 else "")
    except InvalidFile as error:
        yield Found("", "", prefix or path.stem, problem=str(error))
    except Exception as error:  # zipfile raises many types on what is not quite a zip
        yield Found("", "", prefix or path.stem, problem=f"the zip cannot be read ({type(error).__name__})")


def _hidden(name: str) -> bool:
    return any(part.startswith(("._", "__MACOSX", ".ipynb_checkpoints")) for part in PurePosixPath(name).parts)


def _member(path: Path, member: zipfile.ZipInfo, prefix: str) -> Found:
    name = member.filename.replace("\\", "/")
    parts = PurePosixPath(name).parts
    inner = "/".join([*([prefix] if prefix else []), *(part for part in parts if part not in ("..", "/"))])
    problem = ""
    if ".." in parts or name.startswith("/") or re.match(r"[A-Za-z]:", name):
        problem = "its path in the zip leads out of the zip"
    elif stat.S_ISLNK(member.external_attr >> 16):
        problem = "is a link, not a file"
    elif member.flag_bits & 1:
        problem = "is encrypted"
    elif member.file_size > LARGEST:
        problem = f"unpacks to {member.file_size / 1e6:.0f} MB; {LARGEST / 1e6:.0f} MB is the limit"
    elif member.file_size > 100_000 and member.file_size > HIGHEST_RATIO * max(1, member.compress_size):
        problem = "is packed more tightly than a notebook can be (a zip bomb?)"
    if problem:
        return Found("", "", inner, problem=problem)
    return Found("", "", inner, path=path, member=member.filename)


def _unpacked(path: Path, member: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            data = file.read(LARGEST + 1)
    except Exception as error:  # zipfile raises many types on what is not quite a zip
        raise InvalidFile(f"cannot be unpacked ({type(error).__name__})") from error
    if len(data) > LARGEST:
        raise InvalidFile("is larger than the zip says")
    return data


def _attributed(found: Found, assignments: list[str], roster: list[str]) -> Found:
    """Who and what, from the place: ``<student>/<assignment>/x.ipynb``, ``<student>/x.ipynb`` or a flat file's name."""
    parts = [normal(part) for part in found.place.split("/")]
    stem = re.sub(r"\.ipynb$", "", parts[-1], flags=re.IGNORECASE)
    if len(parts) >= 3 and parts[-2] in assignments:
        student, assignment = parts[-3], parts[-2]
    elif len(parts) >= 2:
        student = re.sub(r"_assignsubmission_file_?$|_onlinetext_?$", "", parts[0])
        assignment = _named(stem, assignments)
    else:
        canvas = _CANVAS.fullmatch(stem)
        student = canvas["who"] if canvas else _without(stem, assignments)
        assignment = _named(canvas["file"] if canvas else stem, assignments)
    if student not in roster:
        near = [name for name in roster if name.lower() == student.lower()]
        near = near or [name for name in roster if re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", student)]
        student = near[0] if len(near) == 1 else student
    return Found(student, assignment, found.place, found.path, found.member, found.problem)


def _named(stem: str, assignments: list[str]) -> str:
    matching = [name for name in assignments if name.lower() in stem.lower()]
    return max(matching, key=len) if matching else ""


def _without(stem: str, assignments: list[str]) -> str:
    stem = _COPY.sub("", stem)
    name = _named(stem, assignments)
    bare = re.sub(re.escape(name), "", stem, flags=re.IGNORECASE).strip(" _-") if name else stem
    return bare or stem


def latest(files: list[Found], assignment: str) -> Found:
    """The file that counts of several: the one named as the lab, unless there are numbered copies; then the highest."""

    def rank(found: Found) -> tuple[int, int, str]:
        stem = re.sub(r"\.ipynb$", "", found.place.split("/")[-1], flags=re.IGNORECASE)
        copy = _COPY.search(stem)
        number = int(next((group for group in copy.groups() if group), "1")) if copy else 0
        return (number, stem == assignment, found.place)

    return max(files, key=rank)
