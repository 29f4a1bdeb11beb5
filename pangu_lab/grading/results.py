"""Results on disk: one JSON file per submission, written at once, under a name made of hashes.

The name tells whether a result still holds: another submission, release, grader, seed or limit has another name.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pangu_lab.files import atomic_write
from pangu_lab.grading.box import PACKAGE, Limits
from pangu_lab.grading.judge import Marked

FINISHED = ("GRADED", "INVALID_FILE")


@dataclass(frozen=True)
class Result:
    """What became of one submission: GRADED, INVALID_FILE, INFRA or MISSING, and the mark of each exercise.

    The last three fields come from a person (``manual``) and are never kept in a result file.
    """

    student: str
    assignment: str
    status: str
    place: str = ""
    digest: str = ""
    reason: str = ""
    marks: tuple[Marked, ...] = ()
    flags: tuple[str, ...] = ()
    tampered: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    boxed: bool = True
    seconds: float = 0
    max_score: float = 0
    others: tuple[str, ...] = field(default=())
    adjustment: float = 0
    comment: str = ""
    looked_at: bool = False

    @property
    def score(self) -> float:
        """The sum of the points and what a person has added or taken off; never below zero."""
        return round(max(0.0, sum(mark.points for mark in self.marks) + self.adjustment), 6)

    @property
    def open(self) -> bool:
        """Whether it has no score, because something failed on our side; a zero would be one."""
        return self.status == "INFRA" or any(mark.status == "INFRA" for mark in self.marks)

    @property
    def needs_human(self) -> bool:
        """Whether somebody should look at it."""
        return self.open or (not self.looked_at and (self.status == "INVALID_FILE" or bool(self.flags)))


def result_key(*parts: str) -> str:
    """The key of a result: a hash of all that it depends on."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:20]


def grader_hash(limits: Limits, boxed: bool) -> str:
    """A hash of the code that makes results, and of the limits it ran under."""
    numbers = {name: float(value) for name, value in asdict(limits).items()}  # 60 and 60.0 are the same limit
    digest = hashlib.sha256(repr((numbers, boxed)).encode())
    for folder in ("exercises", "grading"):
        for path in sorted((PACKAGE / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def result_path(folder: Path, student: str, assignment: str, key: str) -> Path:
    """Where a result lies; a student's name cannot lead anywhere else."""
    return folder / "results" / (assignment or "unknown") / f"{safe(student)}-{key}.json"


def safe(name: str) -> str:
    """A name as part of a file name, short and of plain letters."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name)[:60].strip("._") or "student"


def save(path: Path, result: Result) -> None:
    """Write a result at once."""
    atomic_write(path, json.dumps(asdict(result), indent=1, ensure_ascii=True, sort_keys=True) + "\n")


def load(path: Path) -> Result | None:
    """A result that holds, or None: not there, not readable, or made when the machine failed."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        marks = tuple(Marked(**{**mark, "flags": tuple(mark["flags"])}) for mark in content.pop("marks"))
        lists: dict[str, Any] = {name: tuple(content.pop(name)) for name in ("flags", "tampered", "notes", "others")}
        result = Result(**content, **lists, marks=marks)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    failed = any(mark.status == "INFRA" for mark in result.marks)
    return result if result.status in FINISHED and not failed else None
