"""What a notebook talks to: ``start``, ``check``, ``hint``, ``progress``.

Nothing printed here depends on time, counts of tries or the machine, so that saved notebooks stay true;
only ``hint`` and ``progress`` show the student's own record.
"""

import functools
import html
import io
import os
import sys
from typing import Any

from pangu_lab.config import load_config
from pangu_lab.errors import PanguLabError
from pangu_lab.exercises import get
from pangu_lab.exercises.engine import Status, Verdict, run
from pangu_lab.exercises.show import points_text, report
from pangu_lab.progress import ProgressFile, progress_table
from pangu_lab.runtime import Lab, start

__all__ = ["CheckFailed", "Lab", "check", "hint", "progress", "progress_record", "start"]

GREEN, AMBER = "#1a7f37", "#9a6700"


class CheckFailed(AssertionError):
    """An answer is wrong; the message says on which input, and which known mistake it is."""

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict

    def _render_traceback_(self) -> list[str]:
        """IPython shows these lines in place of a traceback, which would only lead into our code."""
        return str(self).split("\n")


def check(exercise_id: str, fn: Any, seed: int = 0) -> Any:
    """Check an answer; hand back ``fn`` when it is right, the reference when it was not attempted.

    Parameters
    ----------
    exercise_id
        For example ``"classification.f1"``.
    fn
        The student's function or class itself, not the result of calling it.
    seed
        Draws the inputs; the same seed gives the same inputs.

    Raises
    ------
    CheckFailed
        The answer is wrong, or raised an error.
    UnknownExercise
        No exercise has this id.
    """
    exercise = get(exercise_id)
    verdict = run(exercise, fn, seed)
    if verdict.status is Status.NOT_ATTEMPTED:
        if os.environ.get("NBGRADER_EXECUTION") == "autograde":  # there, a cell that raises nothing gets its points
            raise CheckFailed(f"○ {exercise.id}: not attempted", verdict)
        _say(
            f"○ {exercise.id}: not attempted yet, {points_text(exercise.points)} to win; "
            f'hint("{exercise.id}") gives you a nudge.\n'
            "  Using the reference so that the rest of the notebook runs.",
            AMBER,
        )
        return exercise.reference
    right = verdict.status is Status.RIGHT
    _record_file().add(exercise.id, tries=1, right=right)
    if not right:
        raise CheckFailed(report(exercise, verdict), verdict)
    _say(f"✓ {exercise.id}: right, {points_text(exercise.points)}", GREEN)
    return fn


def hint(exercise_id: str) -> None:
    """Show the next hint of an exercise; after the last one, the last one again."""
    exercise = get(exercise_id)
    total = len(exercise.hints)
    opened = progress_record().get(exercise.id)
    number = opened.hints + 1 if opened else 1
    if number <= total:
        _record_file().add(exercise.id, hints=1)
        head = f"Hint {number} of {total} for {exercise.id}:"
    else:
        number = total
        head = f"There are no more hints for {exercise.id}; here is hint {total} again:"
    _say(f"{head}\n{exercise.hints[number - 1].strip()}", AMBER)


def progress(lab: str | None = None) -> None:
    """Show the labs with points, tries and hints, as a table and a picture; with ``lab``, its exercises."""
    # Rich and matplotlib are heavy, and a notebook that only checks answers needs neither.
    from rich.console import Console
    from rich.table import Table

    from pangu_lab.viz.progress import progress_figure

    record = progress_record()
    rows = progress_table(record, lab)
    table = Table(title="Your progress")
    for name in rows[0] if rows else ("lab",):
        table.add_column(name, justify="left" if name in ("lab", "exercise", "title") else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:g}" for value in row.values()))
    if _in_ipython():
        from IPython.display import Image, display

        display(table)
        if lab is None:
            # A bare Figure shows as a picture only once pyplot has set up the notebook; PNG always does.
            png = io.BytesIO()
            progress_figure(record).savefig(png, format="png")
            display(Image(png.getvalue()))
    else:
        Console().print(table)


def progress_record() -> dict[str, Any]:
    """The student's record: exercise id to tries, hints and whether it was right."""
    return _record_file().load()


@functools.cache
def _record_file() -> ProgressFile:
    """The one record of this session; in memory only where the environment or the configuration says so."""
    if os.environ.get("PANGU_LAB_NO_PROGRESS") == "1":
        return ProgressFile(None)
    try:
        return ProgressFile(load_config().paths.runs / "progress.json")
    except PanguLabError as error:
        print(f"Progress: {error}; progress is kept in this session only.", file=sys.stderr)
        return ProgressFile(None)


class _Message:
    """A few words that show as colored HTML in a notebook and as plain text elsewhere."""

    def __init__(self, text: str, color: str) -> None:
        self.text, self.color = text, color

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        style = f"white-space:pre-wrap;color:{self.color}"
        return f'<div style="{style}">{html.escape(self.text)}</div>'


def _in_ipython() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def _say(text: str, color: str) -> None:
    if _in_ipython():
        from IPython.display import display

        display(_Message(text, color))
    else:
        print(text)
