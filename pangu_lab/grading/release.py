"""``pangu-lab release``: the notebooks that students open, made from ``solutions/``, the same every time.

Read ``student_notebook`` first. Everything is made and passes the leak gate before anything is written.
"""

import ast
import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from pangu_lab.errors import PanguLabError
from pangu_lab.files import atomic_write
from pangu_lab.grading.leaks import find_leaks, solution_lines
from pangu_lab.grading.notebook_format import (
    BEGIN,
    END,
    exercise_points,
    format_notebook,
    has_solution,
    read_notebook,
    without_magics,
    write_text,
)

STUB = ("# YOUR CODE HERE", "raise NotImplementedError()")
EXPECTED_FIGURE, INSTRUCTOR_ONLY, LEAK_OK = "expected-figure", "instructor-only", "leak-ok"


class ReleaseError(PanguLabError):
    """A solution notebook cannot be released as it is."""


class LeakError(ReleaseError):
    """A line of a solution stands in what students would get."""


@dataclass(frozen=True)
class Released:
    """What became of one notebook: unchanged, written or stale; with ``check`` also missing or different."""

    path: Path
    status: str


def release(
    solutions_dir: Path | str,
    labs_dir: Path | str,
    check: bool = False,
    points: Callable[[str], float] = exercise_points,
) -> list[Released]:
    """Make ``labs_dir/NN_topic.ipynb`` from every ``solutions_dir/NN_topic.ipynb``.

    With ``check`` nothing is written; a status other than "unchanged" is a difference. "stale" is a lab
    without a solution: it is reported, never deleted.

    Raises
    ------
    NotebookError, ReleaseError, LeakError
        One sentence with notebook and cell; no file has been touched then.
    """
    solutions_dir, labs_dir = Path(solutions_dir), Path(labs_dir)
    sources = sorted(solutions_dir.glob("[0-9][0-9]_*.ipynb"))
    if not sources:
        raise ReleaseError(f"{solutions_dir}: has no notebook named NN_topic.ipynb")
    texts = {}
    for source in sources:
        texts[source.name] = write_text(student_notebook(read_notebook(source), source.name, points))

    results = []
    for name, text in texts.items():
        path = labs_dir / name
        old = path.read_bytes() if path.is_file() else None
        if old == text.encode():
            status = "unchanged"
        elif check:
            status = "missing" if old is None else "different"
        else:
            atomic_write(path, text)
            status = "written"
        results.append(Released(path, status))
    stale = [path for path in sorted(labs_dir.glob("[0-9][0-9]_*.ipynb")) if path.name not in texts]
    return results + [Released(path, "stale") for path in stale]


def student_notebook(
    solution: NotebookNode, name: str, points: Callable[[str], float] = exercise_points
) -> NotebookNode:
    """The students' copy of a solution notebook.

    Solutions become stubs, outputs go (but for the images of cells tagged ``expected-figure``), cells tagged
    ``instructor-only`` go, and nothing of a solution may be left anywhere.
    """
    formatted = format_notebook(solution, name, points)
    _check_answers(formatted, name)
    student = copy.deepcopy(formatted)
    student.cells = [_student_cell(cell, name) for cell in student.cells if INSTRUCTOR_ONLY not in _tags(cell)]

    allowed = [cell.id for cell in formatted.cells if LEAK_OK in _tags(cell)]
    leaks = list(find_leaks(student, solution_lines(formatted), allowed))
    if leaks:
        more = f" (and {len(leaks) - 1} more)" if len(leaks) > 1 else ""
        first = leaks[0]
        raise LeakError(
            f"{name}, cell {first.cell}: its {first.part} shows a line of a solution: {first.line}{more}; "
            f"remove it, or tag the cell {LEAK_OK} if given code must say the same"
        )
    nbformat.validate(student)
    return student


def cleared(source: str, name: str, cell_id: str) -> str:
    """Source with each solution region replaced by the stub at the indentation of its first delimiter."""
    lines: list[str] = []
    inside = False
    for number, line in enumerate(source.split("\n"), start=1):
        where = f"{name}, cell {cell_id}, line {number}"
        word = line.strip()
        if word not in (BEGIN, END) and re.search(r"(BEGIN|END) SOLUTION", line):
            raise ReleaseError(f"{where}: {word!r} is no delimiter; write {BEGIN} or {END} alone on a line")
        if word == BEGIN:
            if inside:
                raise ReleaseError(f"{where}: {BEGIN} inside a solution; close the first with {END}")
            indent = line[: len(line) - len(line.lstrip())]
            lines += [indent + stub for stub in STUB]
        elif word == END and not inside:
            raise ReleaseError(f"{where}: {END} without {BEGIN} before it")
        elif word != END and not inside:
            lines.append(line)
        inside = word == BEGIN or (inside and word != END)
    if inside:
        raise ReleaseError(f"{name}, cell {cell_id}: {BEGIN} is never closed; add {END}")
    return "\n".join(lines)


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _check_answers(notebook: NotebookNode, name: str) -> None:
    """Each check cell has an answer cell of its own before it, and each answer cell has delimiters."""
    answered = False
    for cell in notebook.cells:
        nbgrader = cell.metadata.get("nbgrader", {})
        if nbgrader.get("solution") and not has_solution(cell):
            raise ReleaseError(f"{name}, cell {cell.id}: is an answer cell without {BEGIN} and {END}")
        if nbgrader.get("solution"):
            answered = True
        elif nbgrader.get("grade"):
            if not answered:
                raise ReleaseError(
                    f"{name}, cell {cell.id}: this check has no answer cell of its own before it; "
                    f"write one with {BEGIN} and {END}"
                )
            answered = False


def _student_cell(cell: NotebookNode, name: str) -> NotebookNode:
    cell.source = cleared(cell.source, name, cell.id)
    if cell.cell_type == "code":
        keeps = EXPECTED_FIGURE in _tags(cell)
        cell.execution_count = None
        cell.outputs = [image for output in cell.outputs if keeps for image in _images(output)]
        _check_stub(cell, name)
    tags = [tag for tag in _tags(cell) if tag != LEAK_OK]
    if tags:
        cell.metadata["tags"] = tags
    else:
        cell.metadata.pop("tags", None)
    nbgrader = cell.metadata.get("nbgrader")
    if nbgrader:  # what JupyterLab goes by; nbgrader sets the same two
        cell.metadata["deletable"] = False
        if nbgrader["locked"]:
            cell.metadata["editable"] = False
    return cell


def _check_stub(cell: NotebookNode, name: str) -> None:
    if cell.metadata.get("nbgrader", {}).get("solution"):
        try:
            ast.parse(without_magics(cell.source))
        except SyntaxError as error:
            raise ReleaseError(
                f"{name}, cell {cell.id}: without its solution the cell is not valid Python "
                f"(line {error.lineno}: {error.msg})"
            ) from error


def _images(output: NotebookNode) -> list[NotebookNode]:
    bundle: dict[str, Any] = output.get("data", {})
    data = {mime: content for mime, content in bundle.items() if mime.startswith("image/")}
    return [nbformat.v4.new_output("display_data", data=data)] if data else []
