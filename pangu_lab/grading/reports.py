"""Reports of a batch: tables for the gradebook, JSON for programs, pages for students and the instructor.

Whatever came from a submission is text here, never markup or a formula. Read ``write_reports`` first.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pangu_lab.files import atomic_write
from pangu_lab.grading.batch import Batch
from pangu_lab.grading.judge import Marked
from pangu_lab.grading.manual import NAME, TEMPLATE, merge, read_manual, template
from pangu_lab.grading.overview import overview_page
from pangu_lab.grading.pages import NO_BOX, STATUS_WORDS, student_page
from pangu_lab.grading.results import Result, result_key, safe
from pangu_lab.grading.sheets import table

COLUMNS = [
    "assignment",
    "duedate",
    "timestamp",
    "student_id",
    "last_name",
    "first_name",
    "email",
    "raw_score",
    "late_submission_penalty",
    "score",
    "max_score",
]


def with_manual(batch: Batch, out: Path, manual: Path | None = None) -> tuple[Batch, list[str]]:
    """The batch with what a person has entered in ``manual`` or ``out``/manual.csv, and remarks on it.

    The template beside it is written anew, with what has been entered so far.

    Raises
    ------
    PanguLabError
        The file that was asked for is missing, or one of its rows makes no sense.
    """
    path = manual or out / NAME
    entries = read_manual(path, batch) if manual or path.is_file() else {}
    merged, remarks = merge(batch, entries)
    atomic_write(out / TEMPLATE, template(batch, entries))
    return merged, [f"{path}, {remark}" for remark in remarks]


def write_reports(batch: Batch, out: Path) -> list[Path]:
    """Write overview.html, grades.csv, grades.json, gradescope/ and feedback/ below ``out``; what was written."""
    written = [
        atomic_write(out / "grades.csv", grades_csv(batch)),
        atomic_write(out / "grades.json", grades_json(batch)),
    ]
    for result in batch.results:
        if result.status == "MISSING":
            continue
        place = page_path(result)
        page = student_page(result, batch.students.get(result.student))
        written.append(atomic_write(out / place, page))
        gradescope = json.dumps(gradescope_results(result), indent=1) + "\n"
        written.append(atomic_write(out / "gradescope" / place.parent.name / place.stem / "results.json", gradescope))
    return [*written, atomic_write(out / "overview.html", overview_page(batch, page_path))]


def page_path(result: Result) -> Path:
    """Where a student's page lies below the output folder; names that look alike in plain letters do not share one."""
    name = f"{safe(result.student)}-{result_key(result.student, result.place)[:6]}"
    return Path("feedback", safe(result.assignment or "unknown"), f"{name}.html")


def grades_csv(batch: Batch) -> str:
    """One row per student and lab: nbgrader's columns, then status, flags, and each exercise's points and status."""
    labs = sorted({result.assignment for result in batch.results if result.assignment})
    exercises = [exercise for lab in labs for exercise in batch.releases[lab].exercises]
    more = [name for exercise in exercises for name in (exercise, f"{exercise} status")]
    rows: list[list[Any]] = [[*COLUMNS, "status", "flags", "reason", "comment", *more]]
    for result in batch.results:
        student = batch.students.get(result.student)
        names = [student.last_name, student.first_name, student.email] if student else ["", "", ""]
        penalty = max(0.0, -result.adjustment)  # not -min(…): that may be -0, which the table guards as a formula
        scores = ["", f"{penalty:g}", ""]
        if not result.open:
            scores = [f"{result.score + penalty:g}", f"{penalty:g}", f"{result.score:g}"]
        row = [result.assignment, "", "", result.student, *names, *scores, f"{result.max_score:g}"]
        marks = {mark.exercise: mark for mark in result.marks}
        row += [result.status, " ".join(result.flags), result.reason, result.comment]
        for exercise in exercises:
            mark = marks.get(exercise)
            row += [f"{mark.points:g}", mark.status] if mark else ["", ""]
        rows.append(row)
    return table(rows)


def grades_json(batch: Batch) -> str:
    """Everything that is known, for programs and for the instructor."""
    content = {
        "boxed": batch.boxed,
        "warning": "" if batch.boxed else NO_BOX,
        "results": [_known(result, batch) for result in batch.results],
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _known(result: Result, batch: Batch) -> dict[str, Any]:
    student = batch.students.get(result.student)
    person = (
        {"last_name": student.last_name, "first_name": student.first_name, "email": student.email} if student else {}
    )
    computed = {"score": result.score, "needs_human": result.needs_human, "open": result.open}
    return asdict(result) | computed | person


def gradescope_results(result: Result) -> dict[str, Any]:
    """One result as Gradescope's autograder reads it."""
    tests = [
        {
            "name": mark.exercise,
            "number": str(number),
            "score": mark.points,
            "max_score": mark.max_points,
            "status": "passed" if mark.points >= mark.max_points else "failed",
            "output": "\n\n".join(part for part in (mark.comment, _sentence(mark), mark.visible) if part),
            "output_format": "text",
            "tags": [mark.status],
            "visibility": "visible",
        }
        for number, mark in enumerate(result.marks, start=1)
    ]
    return {
        "score": result.score,
        "execution_time": max(1, math.ceil(result.seconds)),
        "output": "\n".join(line for line in (result.comment, result.reason, *result.notes) if line),
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "extra_data": {"status": result.status, "flags": list(result.flags), "boxed": result.boxed},
        "tests": tests,
    }


def _sentence(mark: Marked) -> str:
    return f"{STATUS_WORDS.get(mark.status, ('', mark.status))[1]}. {mark.message}".strip()
