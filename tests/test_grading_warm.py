"""Kernels that are forked from a parent, papermill's engine, and the judge's own memory."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib

import grading_files as files
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from papermill.engines import Engine  # first: where pangu_lab is installed, papermill loads our engine itself

from pangu_lab.grading import box as boxes
from pangu_lab.grading.box import PACKAGE, Box
from pangu_lab.grading.engine import BoxedEngine, Outputs
from pangu_lab.grading.kernel import Kernel
from pangu_lab.grading.rebuild import load_release
from pangu_lab.grading.warm import BASE, modules_of

needs_box = pytest.mark.skipif(bool(boxes.why_no_box()), reason=f"no box here: {boxes.why_no_box()}")
needs_forks = pytest.mark.skipif(not files.CAN_FORK, reason="Python stands where kernels get an empty folder")
LIGHT = ("ipykernel.ipkernel", "ipykernel.kernelapp", "numpy")


def told(box, code):
    kernel = Kernel(box)
    try:
        reply = kernel.execute(code, 20)
        assert not reply.error, reply
        return reply.printed
    finally:
        kernel.close()


@needs_box
@needs_forks
def test_forks_start_from_nothing_that_another_knows():
    code = """import json, os, random, sys, numpy
own = json.load(open("/run/pangu/connection.json"))["key"]
print(json.dumps([random.random(), numpy.random.rand(), own, os.urandom(4).hex()]))
assert os.getcwd() == "/home/student" == os.environ["HOME"] and os.getuid() == 1000
open("/tmp/left", "w")"""
    with Box(modules=LIGHT) as box:
        one, other = (json.loads(told(box, code)) for _ in range(2))
        assert box.parent is not None and not box.cold_because
    assert all(a != b for a, b in zip(one, other, strict=True))


@needs_box
@needs_forks
def test_the_imports_are_there_before_the_kernel_is():
    with Box(modules=("wave",)) as box:
        assert told(box, "import sys; print('wave' in sys.modules)") == "True\n"


@needs_box
@needs_forks
@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()", "1 threads"),
        ("import mmap\nshared = mmap.mmap(-1, 4096)", "shared memory"),
        ("file = open('/etc/passwd')", "keeps a file open"),
        ("import zmq\nzmq.Context.instance()", "threads|keeps a file open"),
    ],
)
def test_an_import_that_makes_forking_unsafe_is_refused(source, why):
    with Box(modules=("unsafe",)) as box:
        (box.code / "unsafe.py").write_text(source)
        assert told(box, "print(1)") == "1\n"  # cold, then
        assert box.parent is None
        assert re.search(why, box.cold_because)


@needs_box
@needs_forks
def test_where_forking_is_not_allowed_kernels_start_by_themselves(monkeypatch):
    allowed = Box.parent_command
    monkeypatch.setattr(
        Box, "parent_command", lambda box: [x.replace("CAP_SYS_ADMIN", "CAP_KILL") for x in allowed(box)]
    )
    with Box(modules=LIGHT) as box:
        assert told(box, "print(1)") == "1\n"
        assert box.parent is None and box.cold_because


def test_what_a_lab_imports_is_imported_ahead(tmp_path):
    path = tmp_path / f"{files.LAB}.ipynb"
    path.write_text(files.release_text().replace('SEED = 0"', 'SEED = 0\\nfrom json import tool\\nimport wave"'))
    assert {"json:tool", "wave", *BASE} == set(modules_of([load_release(path)]))


# --- papermill --------------------------------------------------------------------------------------


def test_papermill_finds_the_engine_by_its_entry_point():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    written = project["project"]["entry-points"]["papermill.engine"]["pangu-lab"]
    entry = importlib.metadata.EntryPoint("pangu-lab", written, "papermill.engine")
    assert entry.load() is BoxedEngine and issubclass(BoxedEngine, Engine)


def as_installed(folder):
    """An environment in which the entry point is found as that of an installed package would be."""
    site = folder / "site" / "pangu_lab-0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: pangu-lab\nVersion: 0\n")
    (site / "entry_points.txt").write_text("[papermill.engine]\npangu-lab = pangu_lab.grading.engine:BoxedEngine\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(site.parent), str(PACKAGE.parent)])}


ENGINE_FIRST = """
from pangu_lab.grading.engine import BoxedEngine
from papermill.engines import papermill_engines
assert papermill_engines.get_engine("pangu-lab") is BoxedEngine
"""


def test_the_engine_may_be_imported_before_papermill_which_imports_it(tmp_path):
    command = [sys.executable, "-c", ENGINE_FIRST]
    done = subprocess.run(command, env=as_installed(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def papermill(tmp_path, cells, *options, **environment):
    """Papermill's own command line, with the entry point as an installed package would have it."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "in.ipynb")
    command = [sys.executable, "-m", "papermill", "--engine", "pangu-lab", "--no-progress-bar", "in.ipynb", "out.ipynb"]
    done = subprocess.run(
        [*command, *options],
        cwd=tmp_path,
        env=as_installed(tmp_path) | environment,
        capture_output=True,
        text=True,
    )
    return done, nbformat.read(tmp_path / "out.ipynb", as_version=4) if (tmp_path / "out.ipynb").exists() else None


@needs_box
@pytest.mark.slow
def test_papermill_runs_a_notebook_in_the_box(tmp_path):
    cells = [
        new_code_cell("N = 1", metadata={"tags": ["parameters"]}),
        new_code_cell("import sys\nprint(N)\nprint('two')\nprint('odd', file=sys.stderr)\nN + 1"),
        new_code_cell("import os\nassert not os.path.exists('in.ipynb')\n1 / 0"),
        new_code_cell("print('never')"),
    ]
    done, out = papermill(tmp_path, cells, "-p", "N", "7")
    nbformat.validate(out)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    ran = next(cell for cell in out.cells if "print(N)" in cell.source)
    kinds = {output.get("name", output.output_type): output for output in ran.outputs}
    assert kinds["stdout"].text == "7\ntwo\n" and kinds["stderr"].text == "odd\n"
    assert kinds["execute_result"].data["text/plain"] == "8"
    assert ran.metadata.papermill.status == "completed" and not out.cells[-1].outputs


def test_without_a_box_papermill_is_refused_unless_allowed(tmp_path):
    done, _ = papermill(tmp_path, [new_code_cell("1")], PATH="/nowhere")
    assert done.returncode != 0 and "PANGU_LAB_NO_BOX" in done.stderr.splitlines()[-1]


def test_outputs_are_joined_updated_and_cleared():
    outputs = Outputs(room=5)
    for text in ("gone", "ab", "cdefgh"):
        outputs.take("stream", {"name": "stdout", "text": text})
        if text == "gone":
            outputs.take("clear_output", {"wait": True})
            outputs.room = 5
    shown = {"data": {"text/plain": "1"}, "metadata": {}, "transient": {"display_id": "x"}}
    outputs.take("display_data", dict(shown))
    outputs.take("update_display_data", shown | {"data": {"text/plain": "2"}})
    stream, display = outputs.finished()
    assert stream.text == "abcde" and display.data["text/plain"] == "2" and "transient" not in display


# --- the judge's memory -----------------------------------------------------------------------------

JUDGE = """
import sys, threading, time
from pathlib import Path
import grading_files as files
import psutil
from pangu_lab.grading.workers import grade_bytes
from pangu_lab.grading.box import Box, Limits
from pangu_lab.grading.rebuild import load_release
loud = '''
from IPython.display import display
for _ in range(20):
    print("x" * 3_000_000, flush=True)
    display({"image/png": "A" * 3_000_000}, raw=True)
'''
most = 0
def watch():
    global most
    while True:
        most = max(most, psutil.Process().memory_full_info().uss)
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
path = Path(sys.argv[1])
path.write_text(files.release_text(), encoding="utf-8")
answers = {name: loud + source for name, source in files.RIGHT.items()}
answers["count_parameters"] = "while True: print('x' * 1000)"
with Box(Limits(cell_seconds=4)) as box:
    result = grade_bytes(files.text_of(files.submission(**answers)), load_release(path), box, "secret")
print(*[mark.status for mark in result.marks], most)
"""


@needs_box
@pytest.mark.slow
def test_the_judge_stays_small_in_private_memory_whatever_is_printed(tmp_path):
    """Below 300 MB of memory of its own (USS, sampled every 10 ms).

    Resident memory with the shared pages of libraries is larger: importing torch, which the references need, makes
    more than 200 MB of it by itself, and processes that have the same library loaded share those pages.
    """
    done = subprocess.run(
        [sys.executable, "-c", JUDGE, tmp_path / f"{files.LAB}.ipynb"],
        cwd=PACKAGE.parent / "tests",
        capture_output=True,
        text=True,
    )
    *statuses, private = done.stdout.split()
    assert statuses == ["OK", "OK", "TIMEOUT"], done
    assert 100e6 < int(private) < 300e6


ORPHAN = """
import os, time
from pangu_lab.grading.box import die_with

reading, writing = os.pipe()
grader = os.fork()
if grader == 0:
    me = os.getpid()
    if os.fork() == 0:
        time.sleep({before})  # the grader is gone before its child asks, or after
        die_with(me)
        time.sleep({after})
        os.write(writing, b"alive")
        os._exit(0)
    time.sleep({grader})
    os._exit(0)
os.close(writing)
print(os.read(reading, 10))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux kills the children, elsewhere nobody does")
@pytest.mark.parametrize(
    ("before", "after", "grader", "left"), [(0.5, 0, 0, b""), (0, 5, 0.5, b""), (0, 0, 2, b"alive")]
)
def test_a_box_dies_with_its_grader_whoever_is_first(before, after, grader, left):
    source = ORPHAN.format(before=before, after=after, grader=grader)
    done = subprocess.run([sys.executable, "-c", source], cwd=PACKAGE.parent, capture_output=True, timeout=60)
    assert done.stdout.decode().strip() == repr(left), done.stderr.decode()
