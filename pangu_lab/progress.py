"""What a student has tried, reached and asked for: one small JSON file, and the table over it.

The record is a convenience. It must never stand in the way of a lab: a broken file is set aside, an
unwritable folder is reported once, and the course goes on from memory.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pangu_lab.errors import PanguLabError
from pangu_lab.exercises import LABS, lab_exercises
from pangu_lab.files import atomic_write


@dataclass(frozen=True)
class Entry:
    """One exercise: how often an answer was checked, how many hints are open, was it ever right."""

    tries: int = 0
    hints: int = 0
    right: bool = False


Record = Mapping[str, Entry]


class ProgressFile:
    """The record on disk; with ``path=None`` it lives in memory only."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._memory: dict[str, Entry] = {}

    def load(self) -> dict[str, Entry]:
        """The record as it stands; read anew each time, because other notebooks write to it too."""
        if self.path is None:
            return dict(self._memory)
        try:
            text = self.path.read_bytes().decode("utf-8")
            self._memory = _parse(text)
        except FileNotFoundError:
            self._memory = {}
        except OSError as error:
            self._give_up(f"{self.path}: cannot be read ({error.strerror})")
        except (ValueError, RecursionError):
            self._set_aside()
        return dict(self._memory)

    def add(self, exercise_id: str, tries: int = 0, hints: int = 0, right: bool = False) -> Entry:
        """Count a try or a hint; an exercise that was right once stays right."""
        record = self.load()
        old = record.get(exercise_id, Entry())
        entry = replace(old, tries=old.tries + tries, hints=old.hints + hints, right=old.right or right)
        record[exercise_id] = entry
        self._memory = record
        if self.path is not None:
            exercises = {key: asdict(value) for key, value in sorted(record.items())}
            try:
                atomic_write(self.path, json.dumps({"version": 1, "exercises": exercises}, indent=1) + "\n")
            except PanguLabError as error:
                self._give_up(str(error))
        return entry

    def _set_aside(self) -> None:
        assert self.path is not None
        broken = self.path.with_name(self.path.name + ".broken")
        self._memory = {}
        try:
            os.replace(self.path, broken)
        except OSError as error:
            self._give_up(f"{self.path}: is damaged and cannot be renamed ({error.strerror})")
            return
        _warn(f"{self.path}: was damaged; it is kept as {broken.name}, and a new record begins")

    def _give_up(self, why: str) -> None:
        _warn(f"{why}; progress is kept in this session only")
        self.path = None


def _warn(sentence: str) -> None:
    print(f"Progress: {sentence}.", file=sys.stderr)


def _parse(text: str) -> dict[str, Entry]:
    data = json.loads(text)
    if not isinstance(data, dict) or not isinstance(data.get("exercises"), dict):
        raise ValueError("not a progress record")
    return {key: _entry(value) for key, value in data["exercises"].items()}


def _entry(value: Any) -> Entry:
    if not isinstance(value, dict):
        raise ValueError("an entry is not an object")
    tries, hints, right = value.get("tries", 0), value.get("hints", 0), value.get("right", False)
    if type(tries) is not int or type(hints) is not int or type(right) is not bool or min(tries, hints) < 0:
        raise ValueError("an entry has wrong values")
    return Entry(tries, hints, right)


def progress_table(record: Record, lab: str | None = None) -> list[dict[str, Any]]:
    """One row a lab, or with ``lab`` one row for each exercise of that lab.

    Both kinds of row have ``right``, ``points`` (reached), ``available`` (points), ``tries`` and ``hints``;
    a lab's begins with ``lab`` (its notebook) and ``exercises``, an exercise's with ``exercise``, ``title``.
    """
    if lab is not None:
        key = next((key for key, notebook in LABS.items() if lab in (key, notebook)), None)
        if key is None:
            raise PanguLabError(f"there is no lab {lab!r}; the labs are {', '.join(LABS)}")
        rows = []
        for exercise in lab_exercises(key):
            head = {"exercise": exercise.id, "title": exercise.title}
            rows.append({**head, **_sums(record, [(exercise.id, exercise.points)])})
        return rows
    rows = []
    for key, notebook in LABS.items():
        exercises = [(exercise.id, exercise.points) for exercise in lab_exercises(key)]
        if exercises:
            rows.append({"lab": notebook, "exercises": len(exercises), **_sums(record, exercises)})
    return rows


def _sums(record: Record, exercises: list[tuple[str, float]]) -> dict[str, float]:
    entries = [(record.get(key, Entry()), points) for key, points in exercises]
    return {
        "right": sum(entry.right for entry, _ in entries),
        "points": sum(points for entry, points in entries if entry.right),
        "available": sum(points for _, points in entries),
        "tries": sum(entry.tries for entry, _ in entries),
        "hints": sum(entry.hints for entry, _ in entries),
    }
