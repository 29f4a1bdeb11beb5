"""``pangu-lab format``: a notebook without what changes and means nothing, so that diffs show the work.

Read ``format_notebook`` first. It also writes the nbgrader metadata, which follows from the sources (who
has solution delimiters, who calls ``check``) and from the exercises (points), so that nobody types it.
"""

import ast
import base64
import copy
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from pangu_lab.errors import PanguLabError
from pangu_lab.exercises import UnknownExercise, get
from pangu_lab.files import atomic_write

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE_INFO = {"name": "python"}
IMAGE_LIMIT = 60_000  # bytes
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

_CELL_ID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_RANDOM_ID = re.compile(r"(?=.*\d)[0-9a-f]{8}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Folders of one machine: a path below them has no place in a notebook, a record or a document.
MACHINE_FOLDERS = ("home", "Users", "root", "tmp")
_MACHINE_PATH = re.compile(rf"(?<![\w:/.])(?:/(?:{'|'.join(MACHINE_FOLDERS)})/|[A-Za-z]:\\+Users\\+)[^\s\"'<>:,;)]*")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}")


class NotebookError(PanguLabError):
    """A notebook is not written as the course's notebooks are."""


@dataclass(frozen=True)
class FormatReport:
    """What formatting one file did, and what it found that a person must mend."""

    path: Path
    changed: bool
    findings: tuple[str, ...] = ()


def exercise_points(exercise_id: str) -> float:
    """The points of an exercise."""
    return get(exercise_id).points


def read_notebook(path: Path | str) -> NotebookNode:
    """Read a notebook of nbformat 4.5, the first that keeps cell ids.

    Raises
    ------
    NotebookError
        The file is missing, not a notebook, or of an older format.
    """
    path = Path(path)
    try:
        # nbformat.reads would silently invent missing cell ids and rename doubled ones.
        notebook = nbformat.v4.reads_json(path.read_text(encoding="utf-8"))
        kind = (notebook.get("nbformat"), notebook.get("nbformat_minor"))
        cells = [cell.cell_type for cell in notebook.cells]
    except OSError as error:
        raise NotebookError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # five unrelated types, on what is not a notebook
        raise NotebookError(f"{path}: is not a Jupyter notebook ({type(error).__name__})") from error
    if kind[0] != 4 or not isinstance(kind[1], int) or kind[1] < 5:
        version = f"{kind[0]}.{kind[1]}"
        raise NotebookError(f"{path}: is nbformat {version}; save it as 4.5 or newer, which keeps cell ids")
    if not cells:
        raise NotebookError(f"{path}: has no cells")
    return notebook


def write_text(notebook: NotebookNode) -> str:
    """The one text of a notebook: sorted keys, indent 1, a newline at the end."""
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"


def format_notebook(
    notebook: NotebookNode, name: str, points: Callable[[str], float] = exercise_points
) -> NotebookNode:
    """A formatted copy of ``notebook``; formatting it again changes nothing.

    Parameters
    ----------
    name
        What error messages call the notebook.
    points
        The points of an exercise by its id.

    Raises
    ------
    NotebookError
        A cell id is missing, doubled or not lower-case words with dashes; a check names no exercise.
    """
    formatted = copy.deepcopy(notebook)
    _validate_ids(formatted, name)
    _validate(formatted, name)
    formatted.nbformat, formatted.nbformat_minor = 4, 5
    formatted.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": LANGUAGE_INFO})
    for cell in formatted.cells:
        cell.metadata = nbformat.from_dict(_cell_metadata(cell, name, points))
        if not cell.get("attachments", True):
            del cell["attachments"]
    for number, cell in enumerate((cell for cell in formatted.cells if cell.cell_type == "code"), start=1):
        # Counted as a fresh run from top to bottom counts; nbval takes a cell without a count for one not run.
        cell.execution_count = number
        cell.outputs = _outputs(cell.outputs, number)
    _validate(formatted, name)
    return formatted


def format_file(path: Path | str, check: bool = False) -> FormatReport:
    """Format one notebook in place; with ``check`` only say whether it would change."""
    path = Path(path)
    before = read_notebook(path)
    after = format_notebook(before, path.name)
    text = write_text(after)
    changed = text.encode() != path.read_bytes()
    if changed and not check:
        atomic_write(path, text)
    return FormatReport(path, changed, tuple(f"{path.name}: {finding}" for finding in findings(after)))


def format_files(paths: Iterable[Path | str], check: bool = False) -> list[FormatReport]:
    """Format notebooks, and every notebook of folders, in the order of their names."""
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(path.glob("*.ipynb")) if path.is_dir() else [path]
    return [format_file(path, check) for path in files]


def check_call(source: str) -> list[str]:
    """The ids of the exercises that a code cell checks: those in ``check("<id>", …)``."""
    if "check" not in source:
        return []
    try:
        tree = ast.parse(without_magics(source))
    except (SyntaxError, ValueError):
        return []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) >= 2]
    return [
        node.args[0].value
        for node in calls
        if getattr(node.func, "id", getattr(node.func, "attr", "")) == "check"
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ]


def without_magics(source: str) -> str:
    """Source with IPython's own lines (``%magic``, ``!command``) emptied, so that Python can parse it."""
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.split("\n"))


def has_solution(cell: NotebookNode) -> bool:
    """Whether a cell carries a solution delimiter."""
    return any(line.strip() in (BEGIN, END) for line in cell.source.split("\n"))


def findings(notebook: NotebookNode) -> list[str]:
    """What formatting cannot mend: large images, machine paths, memory addresses, tracebacks."""
    found = []
    checkout = str(Path(__file__).resolve().parents[2])
    for cell in notebook.cells:
        where = f"cell {cell.id}"
        for mime, content in _mime_items(cell):
            if mime.startswith("image/"):
                size = _image_size(mime, content)
                if size > IMAGE_LIMIT:
                    limit = f"{IMAGE_LIMIT // 1000} kB is the limit"
                    found.append(f"{where}: an image has {size / 1000:.0f} kB; {limit}")
                continue
            path = _MACHINE_PATH.search(content)
            if path or checkout in content:
                named = path[0] if path else checkout
                found.append(f"{where}: the output names a path of this machine ({named})")
            if _ADDRESS.search(content):
                found.append(f"{where}: the output shows a memory address, which changes with every run")
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            found.append(f"{where}: the saved output is an error")
    return found


def _validate(notebook: NotebookNode, name: str) -> None:
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        what = error.message.splitlines()[0][:200]
        raise NotebookError(f"{name}: is not a valid notebook ({what})") from error


def _validate_ids(notebook: NotebookNode, name: str) -> None:
    seen: set[str] = set()
    for number, cell in enumerate(notebook.cells, start=1):
        identifier = cell.get("id")
        advice = "give it a lasting name in lower-case words with dashes, such as f1-check"
        if not isinstance(identifier, str) or not identifier:
            raise NotebookError(f"{name}: cell {number} has no id; {advice}")
        if len(identifier) > 64 or not _CELL_ID.fullmatch(identifier) or _RANDOM_ID.fullmatch(identifier):
            raise NotebookError(f"{name}: cell {number} has the id {identifier!r}; {advice}")
        if identifier in seen:
            raise NotebookError(f"{name}: two cells have the id {identifier!r}; rename cell {number}")
        seen.add(identifier)


def _cell_metadata(cell: NotebookNode, name: str, points: Callable[[str], float]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    tags = cell.metadata.get("tags")
    if tags:
        kept["tags"] = sorted(set(tags))
    if cell.metadata.get("jupyter", {}).get("source_hidden"):
        kept["jupyter"] = {"source_hidden": True}
    nbgrader = _nbgrader(cell, name, points)
    if nbgrader:
        kept["nbgrader"] = nbgrader
    return kept


def _nbgrader(cell: NotebookNode, name: str, points: Callable[[str], float]) -> dict[str, Any] | None:
    if cell.cell_type != "code":
        return None
    base = {"grade_id": re.sub(r"[^a-zA-Z0-9_\-]", "-", cell.id), "schema_version": 3, "task": False}
    where = f"{name}, cell {cell.id}"
    exercises = check_call(cell.source)
    # A student's copy has lost its delimiters, but is still the answer cell.
    was_answer = cell.metadata.get("nbgrader", {}).get("solution") is True and not exercises
    answer = has_solution(cell) or was_answer
    if answer and exercises:
        raise NotebookError(f"{where}: has a solution and calls check; put the check in its own cell")
    if answer:
        return {**base, "grade": False, "locked": False, "solution": True}
    if not exercises:
        return None
    if len(exercises) > 1:
        raise NotebookError(f"{where}: checks {len(exercises)} exercises; give each its own cell")
    try:
        worth = points(exercises[0])
    except UnknownExercise as error:
        raise NotebookError(f"{where}: {error}") from error
    return {**base, "grade": True, "locked": True, "points": worth, "solution": False}


def _outputs(outputs: list[NotebookNode], number: int) -> list[NotebookNode]:
    """Outputs without widgets and progress bars; streams in one piece, since their cuts follow the clock."""
    kept: list[NotebookNode] = []
    for output in copy.deepcopy(outputs):
        if WIDGET_VIEW in output.get("data", {}):
            continue  # its text is a repr of the widget; the static figure beside it is what the page shows
        if output.output_type == "stream" and output.name == "stderr" and "%|" in output.text:
            continue  # a progress bar, caught at whatever place it was
        output.pop("transient", None)
        if "metadata" in output:
            output.metadata = nbformat.from_dict({})
        if output.output_type == "execute_result":
            output.execution_count = number
        last = kept[-1] if kept else None
        if output.output_type == "stream" and last is not None and last.get("name") == output.name:
            last.text += output.text
        else:
            kept.append(output)
    return kept


def _mime_items(cell: NotebookNode) -> Iterator[tuple[str, str]]:
    bundles = [output.get("data", {}) for output in cell.get("outputs", [])]
    bundles += cell.get("attachments", {}).values()
    for bundle in bundles:
        for mime, content in bundle.items():
            yield mime, content if isinstance(content, str) else str(content)
    for output in cell.get("outputs", []):
        yield "text/plain", output.get("text", "") + "\n".join(output.get("traceback", []))


def _image_size(mime: str, content: str) -> int:
    if mime == "image/svg+xml":
        return len(content.encode())
    try:
        return len(base64.b64decode(content))
    except ValueError:
        return len(content)
