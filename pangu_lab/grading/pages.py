"""The page that a student gets back: one HTML file, text only, for a phone, a screen or a printer.

Whatever came from a submission is text here, never markup. Read ``student_page`` first.
"""

import html

from pangu_lab.exercises import title_of
from pangu_lab.grading.collect import Student
from pangu_lab.grading.judge import Marked
from pangu_lab.grading.results import Result

NO_BOX = "Graded without a box: submissions could read this machine's files, solutions included, and use its network."
# A sign and words for each status: nobody should need to see colors.
STATUS_WORDS = {
    "OK": ("✓", "right"),
    "WRONG": ("✗", "not right yet"),
    "NOT_ATTEMPTED": ("○", "not attempted"),
    "ERROR": ("✗", "raised an error"),
    "TIMEOUT": ("✗", "took too long"),
    "MEMORY": ("✗", "used too much memory"),
    "KERNEL_DIED": ("✗", "ended the Python process"),
    "MANUAL": ("✎", "marked by hand"),
    "INFRA": ("…", "could not be graded; not your fault"),
}
FLAG_WORDS = {
    "TAMPERED": "cells that must not be changed were changed; the instructor's copies were used",
    "FORBIDDEN": "an answer uses what its exercise does not allow",
    "SEVERAL_FILES": "several files were handed in; the last copy counts",
    "SAME_FILE": "another student handed in the very same file",
    "OTHER_LAB": "the file's name says another lab than its content",
    "UNKNOWN_STUDENT": "the student is not on the roster",
}
# No script and no request. A student's page holds no picture either; the overview holds only its own.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """*{box-sizing:border-box}body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:0 auto;padding:1rem;
color:#1f2328;overflow-wrap:anywhere}h1{font-size:1.45rem;line-height:1.25;margin:.4rem 0}
h2{font-size:1.1rem;margin:1.5rem 0 .3rem}p{margin:.35rem 0}.quiet{color:#59636e}
.score{font-size:1.3rem}.warn{background:#fff8c5;border-left:4px solid #bf8700;padding:.5rem .7rem}
.comment{background:#eef5ff;border-left:4px solid #0969da;padding:.5rem .7rem;white-space:pre-wrap}
table{border-collapse:collapse;width:100%;margin:.6rem 0}th,td{text-align:left;padding:.3rem .5rem .3rem 0;
border-bottom:1px solid #d1d9e0;vertical-align:top}th{overflow-wrap:normal}.k,td.n{white-space:nowrap}.n{text-align:right}
.OK{color:#116329}.no{color:#a40e26}.other{color:#59636e}
pre{background:#f6f8fa;padding:.6rem;margin:.4rem 0;overflow-x:auto;font:.85rem/1.4 ui-monospace,monospace}
pre.own{white-space:pre-wrap}img{max-width:100%;height:auto;display:block;margin:.6rem 0}
@media(max-width:34rem){pre{font-size:.75rem}}
@media print{@page{margin:16mm}body{font-size:10.5pt;max-width:none;padding:0}pre{white-space:pre-wrap;font-size:8pt;
border:1px solid #d1d9e0}h2{break-after:avoid}section{break-inside:avoid-page}a{color:inherit;text-decoration:none}}"""


def text(value: object) -> str:
    """Text as HTML that shows just this text; signs that reorder or hide what follows are shown as what they are."""
    turned = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F}
    clean = "".join(f"\\u{ord(sign):04x}" if ord(sign) in turned else sign for sign in str(value))
    return html.escape(clean.encode("utf-8", "replace").decode())


def shell(title: str, body: str, policy: str = POLICY) -> str:
    """A whole page around ``body``."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def state(mark: Marked) -> str:
    """The sign and the words for what became of an exercise, as HTML."""
    sign, words = STATUS_WORDS.get(mark.status, ("", mark.status))
    kind = {"OK": "OK", "NOT_ATTEMPTED": "other", "INFRA": "other", "MANUAL": "other"}.get(mark.status, "no")
    return f'<span class="{kind}">{sign} {text(words)}</span>'


def student_page(result: Result, student: Student | None = None) -> str:
    """Each exercise with status, points, the mistake's sentence and a visible input that shows it."""
    name = f"{student.first_name} {student.last_name}".strip() if student else ""
    who = f"{name} ({result.student})" if name else result.student
    title = f"{result.assignment or 'Submission'}: {result.score:g} of {result.max_score:g} points"
    parts = [
        f"<h1>{text(result.assignment or 'Submission')}</h1>",
        f'<p class="score"><strong>{result.score:g} of {result.max_score:g} points</strong></p>',
        f'<p class="quiet">{text(who)} · {text(result.place)}</p>',
    ]
    if not result.boxed:
        parts.append(_warning(NO_BOX))
    if result.reason:
        invalid = result.status == "INVALID_FILE"
        lead = "This file could not be graded: " if invalid else "Not graded, and no fault of yours: "
        parts.append(_warning(lead + result.reason))
    shown = [flag for flag in result.flags if flag != "SAME_FILE"]  # between the instructor and the two
    parts += [_warning(FLAG_WORDS.get(flag, flag)) for flag in shown]
    if result.adjustment:
        parts.append(f"<p>Your instructor's adjustment: {result.adjustment:+g} points</p>")
    if result.comment:
        parts.append(f'<p class="comment">{text(result.comment)}</p>')
    parts += [_table(result)] if result.marks else []
    parts += [_section(number, mark) for number, mark in enumerate(result.marks, start=1)]
    notes = [*result.tampered, *result.notes]
    if notes:
        parts.append("<h2>Remarks</h2><ul>" + "".join(f"<li>{text(note)}</li>" for note in notes) + "</ul>")
    return shell(title, "\n".join(parts))


def _warning(words: str) -> str:
    return f'<p class="warn">{text(words[:1].upper() + words[1:])}</p>'


def _table(result: Result) -> str:
    rows = "".join(
        f"<tr><td>{number}. {text(title_of(mark.exercise))}</td><td>{state(mark)}</td>"
        f'<td class="n">{mark.points:g} of {mark.max_points:g}</td></tr>'
        for number, mark in enumerate(result.marks, start=1)
    )
    return f'<table><tr><th>exercise</th><th>result</th><th class="n">points</th></tr>{rows}</table>'


def _section(number: int, mark: Marked) -> str:
    parts = [
        f"<h2>{number}. {text(title_of(mark.exercise))}</h2>",
        f'<p>{state(mark)} · {mark.points:g} of {mark.max_points:g} · <span class="quiet">{text(mark.exercise)}</span></p>',
    ]
    parts += [f'<p class="comment">{text(mark.comment)}</p>'] if mark.comment else []
    parts += [f"<p>{text(mark.message)}</p>"] if mark.message else []
    parts += [f"<pre>{text(mark.visible)}</pre>"] if mark.visible else []
    if mark.printed:
        parts.append(f'<p>Your cell printed</p><pre class="own">{text(mark.printed)}</pre>')
    return f"<section>{''.join(parts)}</section>"
