"""Grading throughput: `pangu-lab grade` beside a plain papermill loop over the same files, in alternating blocks.

The submissions are made here, so their true marks are known: all answers right, every second one wrong, all wrong,
and the notebook as it was handed out, in turn. A wrong answer is the right one with `return None` behind it.
Papermill runs in one process that has imported everything, one notebook after the other, and only executes:
it judges nothing, protects from nothing, and stops a notebook at its first error, which makes it faster.

    python benchmarks/grading.py compare --lab 06_classification --submissions 40 --block 0 --blocks 4
    python benchmarks/grading.py linear --lab 06_classification --sizes 40 160

Each call adds to the record; the blocks of a comparison are separate calls, so that a machine can be had in pieces.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import psutil

from pangu_lab.files import atomic_write
from pangu_lab.grading.batch import grade
from pangu_lab.grading.rebuild import load_release

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("right", "partly right", "wrong", "unattempted")


def make(lab, number):
    """One submission and its true mark."""
    kind = KINDS[number % 4]
    release = load_release(ROOT / "labs" / f"{lab}.ipynb")
    notebook = nbformat.read(ROOT / "labs" / f"{lab}.ipynb", as_version=4)
    solved = {cell.id: cell.source for cell in nbformat.read(ROOT / "solutions" / f"{lab}.ipynb", 4).cells}
    cells = {cell.id: cell for cell in notebook.cells}
    checks = [step for step in release.steps if step.kind == "check"]
    score = 0.0
    for place, check in enumerate(checks):
        if kind == "unattempted":
            continue
        lines = solved[check.answer].splitlines()
        source = "\n".join(line for line in lines if line.strip() not in ("### BEGIN SOLUTION", "### END SOLUTION"))
        wrong = kind == "wrong" or (kind == "partly right" and place % 2 == 1)
        if wrong:
            source += f"\n\n\ndef {check.expression}(*args, **kwargs):\n    return None"
        score += 0.0 if wrong else check.points
        cells[check.answer].source = f"# student {number}\n{source}"
    notebook.metadata["number"] = number
    return nbformat.writes(notebook), score


def written(folder, lab, numbers):
    """The submissions as files, and the true mark of each by its student's name."""
    folder.mkdir()
    marks = {}
    for number in numbers:
        text, marks[f"student{number:03d}"] = make(lab, number)
        (folder / f"student{number:03d}.ipynb").write_text(text, encoding="utf-8")
    return marks


def peak_memory(process):
    """The most bytes that a process has had in memory."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return 0


def ours(folder, lab, marks, jobs, warm):
    """Seconds for a folder, the marks that are not the true ones, and the largest memory of grader and judges."""
    memory = {"grader": 0, "judge": 0, "judge, private, after a submission": 0}
    remarks = []

    def told(line):
        remarks.append(line)
        memory["grader"] = max(memory["grader"], peak_memory(psutil.Process()))
        judges = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
        memory["judge"] = max([memory["judge"], *map(peak_memory, judges)])
        private = "judge, private, after a submission"
        memory[private] = max([memory[private], *(judge.memory_full_info().uss for judge in judges)])

    with tempfile.TemporaryDirectory() as place:
        labs = Path(place) / "labs"
        labs.mkdir()
        (labs / f"{lab}.ipynb").write_bytes((ROOT / "labs" / f"{lab}.ipynb").read_bytes())
        started = time.perf_counter()
        batch = grade(folder, labs, Path(place) / "out", jobs=jobs, warm=warm, seed="benchmark", told=told)
        seconds = time.perf_counter() - started
    found = {result.student: result.score for result in batch.results}
    wrong = sorted(name for name, score in marks.items() if found.get(name) != score)
    spent = {
        kind: round(sum(r.seconds for r in batch.results if KINDS[int(r.student[-3:]) % 4] == kind), 2)
        for kind in KINDS
    }
    cold = [line for line in remarks if "starts by itself" in line]
    return {
        "seconds": round(seconds, 2),
        "submissions": len(marks),
        "wrong_marks": wrong,
        "seconds_by_kind": spent,
        "peak_bytes": memory,
        "warm": warm and not cold,
    }


def papermill_loop(folder):
    """Seconds that papermill needs for a folder, and how many notebooks it could run to their end."""
    import papermill

    completed = 0
    started = time.perf_counter()
    for path in sorted(folder.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as place:
            try:
                papermill.execute_notebook(
                    path, Path(place) / "out.ipynb", {"MODE": "smoke"}, progress_bar=False, kernel_name="python3"
                )
                completed += 1
            except papermill.PapermillExecutionError:
                pass
    return {"seconds": round(time.perf_counter() - started, 2), "completed": completed}


def main():
    """Measure, and add to the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("compare", "linear"))
    parser.add_argument("--lab", default="06_classification")
    parser.add_argument("--submissions", type=int, default=40)
    parser.add_argument("--block", type=int, default=0)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--sizes", type=int, nargs="+", default=[40, 160])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--note", default="", help="what else the machine did meanwhile")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "grading.json")
    asked = parser.parse_args()
    os.environ["PANGU_LAB_NO_PROGRESS"] = "1"
    record = json.loads(asked.out.read_text()) if asked.out.is_file() else {"compare": [], "linear": []}
    row = {
        "lab": asked.lab,
        "jobs": asked.jobs,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "note": asked.note,
    }
    with tempfile.TemporaryDirectory() as place:
        if asked.what == "compare":
            size = asked.submissions // asked.blocks
            numbers = range(asked.block * size, (asked.block + 1) * size)
            marks = written(Path(place) / "in", asked.lab, numbers)
            peers = ["ours", "papermill"] if asked.block % 2 == 0 else ["papermill", "ours"]
            row |= {"block": asked.block, "submissions": len(marks), "order": peers}
            for peer in peers:
                folder = Path(place) / "in"
                row[peer] = (
                    ours(folder, asked.lab, marks, asked.jobs, not asked.cold)
                    if peer == "ours"
                    else papermill_loop(folder)
                )
            row["times_as_fast"] = round(row["papermill"]["seconds"] / row["ours"]["seconds"], 2)
        else:
            for size in asked.sizes:
                marks = written(Path(place) / f"in{size}", asked.lab, range(size))
                row[str(size)] = ours(Path(place) / f"in{size}", asked.lab, marks, asked.jobs, not asked.cold)
    record[asked.what].append(row)
    atomic_write(asked.out, json.dumps(record, indent=1) + "\n")
    json.dump(row, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
