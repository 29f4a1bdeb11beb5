"""Reports of a batch: tables for the gradebook, JSON for programs, and a page for each student.

Whatever came from a submission is text here, never markup or a formula. Read ``write_reports`` first.
"""

import csv
import html
import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pangu_lab.files import atomic_write
from pangu_lab.grading.batch import Batch
from pangu_lab.grading.judge import Marked
from pangu_lab.grading.results import Result, result_key, safe

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
NO_BOX = "Graded without a box: submissions could read this machine's files, solutions included, and use its network."
STATUS_WORDS = {
    "OK": "right",
    "WRONG": "not right yet",
    "NOT_ATTEMPTED": "not attempted",
    "ERROR": "raised an error",
    "TIMEOUT": "took too long",
    "MEMORY": "used too much memory",
    "KERNEL_DIED": "ended the Python process",
    "INFRA": "could not be graded; not your fault",
}
FLAG_WORDS = {
    "TAMPERED": "cells that must not be changed were changed; the instructor's copies were used",
    "FORBIDDEN": "an answer uses what its exercise does not allow",
    "SEVERAL_FILES": "several files were handed in; the last copy counts",
    "SAME_FILE": "another student handed in the very same file",
    "OTHER_LAB": "the file's name says another lab than its content",
    "UNKNOWN_STUDENT": "the student is not on the roster",
}
# No script, no picture, no request: the page is text.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1f2328}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin:1.6rem 0 .3rem}pre{background:#f6f8fa;padding:.7rem;overflow-x:auto;
font-size:.85rem;white-space:pre-wrap;overflow-wrap:anywhere}.OK{color:#1a7f37}.warn{background:#fff8c5;padding:.5rem .7rem}
@media print{pre{white-space:pre-wrap}h2{break-after:avoid}}"""


def write_reports(batch: Batch, out: Path) -> list[Path]:
    """Write grades.csv, grades.json, gradescope/ and feedback/ below ``out``; the paths of what was written."""
    written = [
        atomic_write(out / "grades.csv", grades_csv(batch)),
        atomic_write(out / "grades.json", grades_json(batch)),
    ]
    for result in batch.results:
        if result.status == "MISSING":
            continue
        # Two students whose names look alike in plain letters must not share a page.
        name = f"{safe(result.student)}-{result_key(result.student, result.place)[:6]}"
        lab = safe(result.assignment or "unknown")
        written.append(atomic_write(out / "feedback" / lab / f"{name}.html", page(result)))
        gradescope = json.dumps(gradescope_results(result), indent=1) + "\n"
        written.append(atomic_write(out / "gradescope" / lab / name / "results.json", gradescope))
    return written


def cell(value: Any) -> Any:
    """A value for a CSV: text that a spreadsheet would take for a formula gets an apostrophe in front."""
    if isinstance(value, str):
        value = "".join(" " if ord(sign) < 32 else sign for sign in value).encode("utf-8", "replace").decode()
        return f"'{value}" if value.lstrip()[:1] in tuple("=+-@＝＋－＠") and value.strip() else value
    return value


def grades_csv(batch: Batch) -> str:
    """One row per student and lab: nbgrader's columns, then status, flags, and each exercise's points and status."""
    labs = sorted({result.assignment for result in batch.results if result.assignment})
    exercises = [exercise for lab in labs for exercise in batch.releases[lab].exercises]
    more = [name for exercise in exercises for name in (exercise, f"{exercise} status")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "status", "flags", "reason", *more])
    for result in batch.results:
        student = batch.students.get(result.student)
        names = [student.last_name, student.first_name, student.email] if student else ["", "", ""]
        # What failed on our side has no score: a zero would be one.
        score = (
            "" if result.status == "INFRA" or any(m.status == "INFRA" for m in result.marks) else f"{result.score:g}"
        )
        row = [result.assignment, "", "", result.student, *names, score, "0", score, f"{result.max_score:g}"]
        marks = {mark.exercise: mark for mark in result.marks}
        row += [result.status, " ".join(result.flags), result.reason]
        for exercise in exercises:
            mark = marks.get(exercise)
            row += [f"{mark.points:g}", mark.status] if mark else ["", ""]
        writer.writerow([cell(value) for value in row])
    return text.getvalue()


def grades_json(batch: Batch) -> str:
    """Everything that is known, for programs and for the instructor."""
    content = {
        "boxed": batch.boxed,
        "warning": "" if batch.boxed else NO_BOX,
        "results": [
            {**asdict(result), "score": result.score, "needs_human": result.needs_human} for result in batch.results
        ],
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def gradescope_results(result: Result) -> dict[str, Any]:
    """One result as Gradescope's autograder reads it."""
    tests = [
        {
            "name": mark.exercise,
            "number": str(number),
            "score": mark.points,
            "max_score": mark.max_points,
            "status": "passed" if mark.status == "OK" else "failed",
            "output": "\n\n".join(part for part in (_sentence(mark), mark.visible) if part),
            "output_format": "text",
            "tags": [mark.status],
            "visibility": "visible",
        }
        for number, mark in enumerate(result.marks, start=1)
    ]
    return {
        "score": result.score,
        "execution_time": max(1, math.ceil(result.seconds)),
        "output": result.reason or "\n".join(result.notes),
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "extra_data": {"status": result.status, "flags": list(result.flags), "boxed": result.boxed},
        "tests": tests,
    }


def _sentence(mark: Marked) -> str:
    return f"{STATUS_WORDS.get(mark.status, mark.status)}. {mark.message}".strip()


def page(result: Result) -> str:
    """A student's page: each exercise with status, points, the mistake's sentence and a visible input that shows it."""
    title = f"{result.assignment or 'Submission'}: {result.score:g} of {result.max_score:g} points"
    parts = [f"<h1>{_text(title)}</h1>", f"<p>{_text(result.student)} · {_text(result.place)}</p>"]
    if not result.boxed:
        parts.append(f'<p class="warn">{_text(NO_BOX)}</p>')
    if result.reason:
        lead = (
            "This file could not be graded: "
            if result.status == "INVALID_FILE"
            else "Not graded, and no fault of yours: "
        )
        parts.append(f'<p class="warn">{_text(lead + result.reason)}</p>')
    shown = [flag for flag in result.flags if flag != "SAME_FILE"]  # between the instructor and the two
    parts += [f'<p class="warn">{_text(FLAG_WORDS.get(flag, flag))}</p>' for flag in shown]
    for mark in result.marks:
        points = f"{mark.points:g} of {mark.max_points:g}"
        words = STATUS_WORDS.get(mark.status, mark.status)
        kind = "OK" if mark.status == "OK" else "no"
        parts.append(f'<h2>{_text(mark.exercise)} · <span class="{kind}">{_text(words)}</span> · {points}</h2>')
        parts += [f"<p>{_text(mark.message)}</p>"] if mark.message else []
        parts += [f"<pre>{_text(mark.visible)}</pre>"] if mark.visible else []
        if mark.printed:
            parts.append(f"<p>Your cell printed</p><pre>{_text(mark.printed)}</pre>")
    notes = [*result.tampered, *result.notes]
    if notes:
        parts.append("<h2>Remarks</h2><ul>" + "".join(f"<li>{_text(note)}</li>" for note in notes) + "</ul>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _text(value: str) -> str:
    """Text as HTML that shows just this text; signs that reorder or hide what follows are shown as what they are."""
    turned = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F}
    clean = "".join(f"\\u{ord(sign):04x}" if ord(sign) in turned else sign for sign in value)
    return html.escape(clean.encode("utf-8", "replace").decode())
