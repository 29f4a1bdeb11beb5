"""Running the course headless: every notebook through papermill, and one HTML page with all of it.

The page needs nothing but itself: pictures are inside, formulas are MathML. ``run_demo`` also measures
each notebook's seconds and peak memory, which is where the minutes in the README come from.
"""

import json
import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import latex2mathml.converter
import nbconvert
import nbformat
import papermill
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from papermill.exceptions import PapermillExecutionError
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from traitlets.config import Config as ExporterConfig

from pangu_lab.config import Config
from pangu_lab.errors import PanguLabError
from pangu_lab.exercises import LABS, lab_exercises
from pangu_lab.files import atomic_write
from pangu_lab.machine import hardware


class DemoError(PanguLabError):
    """There is nothing to run."""


@dataclass(frozen=True)
class Executed:
    """One notebook's run: its cells with outputs, what it took, and the error that stopped it, if one did."""

    name: str
    title: str
    notebook: Any
    seconds: float
    peak_bytes: int
    error: str = ""


def run_demo(
    folder: Path, output: Path, config: Config, only: Sequence[str] = (), record: Path | None = None
) -> list[Executed]:
    """Execute the notebooks of ``folder`` and write the report.

    Raises
    ------
    DemoError
        No notebook matches ``only``, or the folder has none.
    """
    notebooks = [path for path in sorted(folder.glob("*.ipynb")) if not only or any(part in path.stem for part in only)]
    if not notebooks:
        raise DemoError(f"{folder.name}/: has no notebook that matches {', '.join(only) or '*.ipynb'}; see its names")
    executed = []
    cells = {path: len(nbformat.read(path, as_version=4).cells) for path in notebooks}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} cells"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("", total=sum(cells.values()))
        done = 0
        for path in notebooks:
            bar.update(task, description=path.stem)
            executed.append(execute(path, config, lambda cell, base=done: bar.update(task, completed=base + cell)))
            done += cells[path]
            bar.update(task, completed=done)
            atomic_write(output, report_page(executed, config))
    if record:
        _write_record(record, executed, config)
    return executed


def execute(path: Path, config: Config, tick: Any = lambda cell: None) -> Executed:
    """Run one notebook in its own kernel with the mode as its papermill parameter."""
    peak = _PeakMemory()
    error = ""
    with TemporaryDirectory() as scratch:
        target = Path(scratch) / path.name
        began = time.perf_counter()
        with peak:
            ticking = _Ticks(target, tick)
            with ticking:
                try:
                    papermill.execute_notebook(
                        path,
                        target,
                        parameters={"MODE": config.mode},
                        cwd=path.parent,
                        kernel_name="python3",
                        language="python",
                        progress_bar=False,
                    )
                except PapermillExecutionError as failure:
                    error = f"{failure.ename}: {failure.evalue}".splitlines()[0]
                except Exception as failure:  # a dead kernel, no kernel: the other notebooks still run
                    error = f"{type(failure).__name__}: {failure}".splitlines()[0]
        seconds = time.perf_counter() - began
        source = target if target.is_file() else path
        notebook = nbformat.read(source, as_version=4)
    return Executed(path.stem, _title(notebook), notebook, seconds, peak.bytes, error)


def execute_in_place(path: Path) -> float:
    """Run a notebook top to bottom in a fresh kernel and save it with its outputs; the seconds it took.

    Raises
    ------
    DemoError
        A cell failed; the file is then as it was before.
    """
    notebook = nbformat.read(path, as_version=4)
    environment = os.environ | {"PANGU_LAB_NO_PROGRESS": "1", "TOKENIZERS_PARALLELISM": "false"}
    client = NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    began = time.perf_counter()
    try:
        client.execute(env=environment)
    except (CellExecutionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise DemoError(f"{path.name}: a cell failed ({reason}); mend it, nothing was saved") from None
    seconds = time.perf_counter() - began
    atomic_write(path, nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n")
    return seconds


def _title(notebook: Any) -> str:
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    return first.splitlines()[0].lstrip("# ").strip() if first else ""


class _PeakMemory:
    """The largest memory that this process's children (the kernel and its own) took together, sampled."""

    def __enter__(self) -> "_PeakMemory":
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.2):
            total = 0
            for child in me.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.Error:
                    continue  # it has just ended
            self.bytes = max(self.bytes, total)


class _Ticks:
    """Tells how many cells are done, from the file that papermill writes after each."""

    def __init__(self, target: Path, tick: Any):
        self.target, self.tick, self._stop = target, tick, threading.Event()

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            try:
                cells = json.loads(self.target.read_text(encoding="utf-8"))["cells"]
            except (OSError, ValueError, KeyError):
                continue  # not there yet, or just being written
            states = [cell.get("metadata", {}).get("papermill", {}).get("status") for cell in cells]
            self.tick(max((i + 1 for i, state in enumerate(states) if state == "completed"), default=0))


def _write_record(file: Path, executed: Sequence[Executed], config: Config) -> None:
    """Add the measured seconds and bytes of the mode to the record, keeping what it says of other modes."""
    from pangu_lab.speed import matmul_speed  # torch, two seconds

    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {"labs": {}}
    keys = {notebook: lab for lab, notebook in LABS.items()}
    for result in executed:
        if result.error:
            continue
        entry = known["labs"].setdefault(result.name, {})
        entry["title"] = re.sub(r"^\d\d\W+", "", result.title)
        entry["exercises"] = len(lab_exercises(keys.get(result.name, "")))
        entry[config.mode] = {"seconds": round(result.seconds, 1), "peak_bytes": result.peak_bytes}
    known["gflops"] = round(matmul_speed(0.5) / 1e9, 1)
    known["hardware"] = hardware()
    known["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    atomic_write(file, json.dumps(known, indent=1, sort_keys=True) + "\n")


# --- the page ---------------------------------------------------------------------------------------


def report_page(executed: Sequence[Executed], config: Config) -> str:
    """One HTML page: a list of what ran, then every notebook, its code folded away."""
    where = hardware()
    rows = "".join(
        f'<tr><td><a href="#{result.name}">{escape(result.title or result.name)}</a></td>'
        f"<td>{result.seconds:.0f} s</td><td>{result.peak_bytes / 2**30:.1f} GiB</td>"
        f"<td>{escape(result.error) or 'ran to the end'}</td></tr>"
        for result in executed
    )
    bodies = "".join(f'<section id="{result.name}">{_body(result)}</section>' for result in executed)
    told = ", ".join(f"{key} {value}" for key, value in where.items())
    head = "<tr><th>lab</th><th>time</th><th>peak memory</th><th>outcome</th></tr>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>PanGu Lab</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main><h1>PanGu Lab</h1>"
        f"<p>Mode {config.mode}; {escape(told)}.</p><table>{head}{rows}</table>{bodies}</main></body></html>"
    )


def _body(result: Executed) -> str:
    notebook = nbformat.from_dict(result.notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source)
        elif cell.cell_type == "code":
            cell.outputs = [_without_widget(output) for output in cell.outputs if output.output_type != "error"]
    exporter = nbconvert.HTMLExporter(
        config=ExporterConfig({"HTMLExporter": {"template_name": "basic", "exclude_input_prompt": True}})
    )
    body: str = exporter.from_notebook_node(notebook)[0]
    return body


def _without_widget(output: Any) -> Any:
    """A widget is nothing without a kernel; the static figure beside it stays."""
    if "data" in output:
        output.data.pop("application/vnd.jupyter.widget-view+json", None)
    return output


def with_mathml(markdown: str) -> str:
    """The text with $…$ and $$…$$ outside code turned into MathML, which browsers draw by themselves."""
    parts = re.split(r"(```.*?```|`[^`\n]*`)", markdown, flags=re.DOTALL)

    def convert(found: re.Match[str]) -> str:
        display = "block" if found.group(1) is not None else "inline"
        try:
            return latex2mathml.converter.convert(found.group(1) or found.group(2), display=display)
        except Exception:  # the converter knows only part of LaTeX: the source is better than nothing
            return found.group(0)

    pattern = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])", re.DOTALL)
    return "".join(part if part.startswith("`") else pattern.sub(convert, part) for part in parts)


_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; margin: 0; color: #1b1b1b; background: #fff }
main { max-width: 54rem; margin: 0 auto; padding: 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
section { border-top: 3px solid #0072B2; margin-top: 3rem; padding-top: 1rem }
img, svg { max-width: 100%; height: auto }
pre { background: #f6f6f4; padding: .7rem; overflow-x: auto; font-size: .82rem; line-height: 1.4; margin: .4rem 0 }
.jp-OutputArea pre { background: none; border-left: 3px solid #ccc }
.highlight .k, .highlight .kn, .highlight .ow { color: #0059a0; font-weight: 600 }
.highlight .s1, .highlight .s2, .highlight .sd { color: #7a4b00 }
.highlight .c1 { color: #5b6b5b; font-style: italic }
.anchor-link, .jp-Prompt, .jp-InputPrompt, .jp-OutputPrompt { display: none }
"""
