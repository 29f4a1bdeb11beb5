"""Points and comments that a person gives: a CSV of their own, which the grader reads and never writes.

Grading writes ``manual-template.csv``; saved as ``manual.csv`` beside it and filled in, it is merged into every
report from then on, however often the submissions are graded again. Read ``merge`` first.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from pangu_lab.errors import PanguLabError
from pangu_lab.grading.batch import Batch
from pangu_lab.grading.collect import normal
from pangu_lab.grading.judge import Marked
from pangu_lab.grading.results import Result
from pangu_lab.grading.sheets import bare, number, read_rows, table

NAME, TEMPLATE = "manual.csv", "manual-template.csv"
WHOLE = "(submission)"
COLUMNS = ["student_id", "assignment", "exercise", "status", "points", "max_points", "manual_points", "comment"]


@dataclass(frozen=True)
class Entry:
    """What a person has said of one exercise, or with ``WHOLE`` of a submission: points to add, or words."""

    points: float | None
    comment: str
    line: int


Entries = dict[tuple[str, str, str], Entry]


def read_manual(path: Path, batch: Batch) -> Entries:
    """The rows of a manual CSV that say something.

    Raises
    ------
    PanguLabError
        A row names no lab or exercise of the release, gives points that are none or too many, or is there twice.
    """
    entries: Entries = {}
    rows = read_rows(path, "the manual marks")
    needed = {"student_id", "assignment", "exercise", "manual_points", "comment"}
    missing = sorted(needed - set(rows[0][1])) if rows else []
    if missing:
        raise PanguLabError(f"{path}: has no column {missing[0]}; start from {TEMPLATE}")
    for line, row in rows:
        said, comment = row.get("manual_points", "").strip(), bare(row.get("comment", "").strip())
        if not said and not comment:
            continue
        student, lab = normal(bare(row["student_id"].strip())), row["assignment"].strip()
        exercise = row["exercise"].strip() or WHOLE
        where = f"{path}, line {line}"
        release = batch.releases.get(lab)
        if release is None:
            raise PanguLabError(f"{where}: {lab or 'an empty cell'} is no lab of this release")
        if exercise != WHOLE and exercise not in release.exercises:
            raise PanguLabError(f"{where}: {exercise} is no exercise of {lab}; for the whole lab write {WHOLE}")
        points = number(said) if said else None
        if said and points is None:
            raise PanguLabError(f"{where}: manual_points is {said!r}; it must be a number or empty")
        most = release.exercises.get(exercise)
        if points is not None and most is not None and not 0 <= points <= most:
            raise PanguLabError(f"{where}: {points:g} points for {exercise}, which has 0 to {most:g}; use {WHOLE}")
        if (student, lab, exercise) in entries:
            raise PanguLabError(f"{where}: {student}, {lab}, {exercise} is there twice, first in line "
                                f"{entries[student, lab, exercise].line}")  # fmt: skip
        entries[student, lab, exercise] = Entry(points, comment, line)
    return entries


def merge(batch: Batch, entries: Entries) -> tuple[Batch, list[str]]:
    """The batch with what a person has said, and a remark for each row about somebody who is not in it."""
    left = dict(entries)
    merged = []
    for result in batch.results:
        exercises = batch.releases[result.assignment].exercises if result.assignment in batch.releases else {}
        said = {name: left.pop((result.student, result.assignment, name), None) for name in [*exercises, WHOLE]}
        merged.append(_merged(result, exercises, {name: entry for name, entry in said.items() if entry}))
    remarks = [f"line {entry.line}: {student} has no result for {lab}" for (student, lab, _), entry in left.items()]
    return replace(batch, results=tuple(merged)), remarks


def _merged(result: Result, exercises: dict[str, float], said: dict[str, Entry]) -> Result:
    whole = said.pop(WHOLE, None)
    if said:
        marks = {mark.exercise: mark for mark in result.marks}
        given = {name for name, entry in said.items() if entry.points is not None}
        # Where the grader could judge nothing, a person may: an exercise that nobody has looked at stays open.
        blank = "INFRA" if result.status == "INFRA" else "NOT_ATTEMPTED"
        every = (marks.get(name) or Marked(name, blank, 0, most) for name, most in exercises.items())
        all_marks = tuple(_marked(mark, said.get(mark.exercise)) for mark in every)
        judged = bool(given) and not any(mark.status == "INFRA" for mark in all_marks)
        status = "GRADED" if judged else result.status
        reason = "" if judged and result.status != "GRADED" else result.reason
        result = replace(result, marks=all_marks, status=status, reason=reason)
    if whole:
        result = replace(result, adjustment=whole.points or 0.0, comment=whole.comment, looked_at=True)
    return result


def _marked(mark: Marked, entry: Entry | None) -> Marked:
    if entry is None:
        return mark
    if entry.points is None:
        return replace(mark, comment=entry.comment)
    status = "MANUAL" if mark.status in ("INFRA", "NOT_ATTEMPTED") else mark.status
    return replace(mark, points=entry.points, comment=entry.comment, status=status, flags=(*mark.flags, "MANUAL"))


def template(batch: Batch, entries: Entries) -> str:
    """A CSV with a row for every submission and exercise of it, and what has been entered so far."""
    rows: list[list[object]] = [list(COLUMNS)]
    for result in batch.results:
        if not result.assignment:
            continue
        marks = {mark.exercise: mark for mark in result.marks}
        scores: dict[str, tuple[str, float, float]] = {WHOLE: (result.status, result.score, result.max_score)}
        for name, most in batch.releases[result.assignment].exercises.items():
            mark = marks.get(name)
            scores[name] = (mark.status, mark.points, most) if mark else ("", 0.0, most)
        for name, (status, points, most) in scores.items():
            entry = entries.get((result.student, result.assignment, name))
            manual = "" if entry is None or entry.points is None else float(f"{entry.points:g}")
            comment = entry.comment if entry else ""
            rows.append([result.student, result.assignment, name, status, f"{points:g}", f"{most:g}", manual, comment])
    return table(rows)
