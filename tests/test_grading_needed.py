"""The lab's own cells that no answer needs are left out, and no verdict depends on it."""

import dataclasses
from pathlib import Path

import grading_files as files
import nbformat
import pytest
from nbformat.v4 import new_code_cell

from pangu_lab.grading.box import Box, Limits, why_no_box
from pangu_lab.grading.judge import missed
from pangu_lab.grading.needed import reduced, why_everything
from pangu_lab.grading.rebuild import Step, load_release, parse_submission, rebuild
from pangu_lab.grading.workers import grade_bytes

LABS = sorted((Path(__file__).parent.parent / "labs").glob("*.ipynb"))
LIGHT = ("ipykernel.ipkernel", "ipykernel.kernelapp", "numpy", "pangu_lab.grading.inside")


def steps(given, answer, stub="def f(): ..."):
    return (
        Step("given", "one", given),
        Step("answer", "two", answer, stub=stub),
        Step("check", "three", "f = _kept_by_the_grader", "", "x.f", "f", 1, "two"),
    )


def kept(given, answer):
    found = reduced(steps(given, answer))
    return None if found is None else "\n".join(step.source for step in found.steps if step.kind == "given")


@pytest.mark.parametrize(
    ("given", "answer", "expected"),
    [
        ("model = load()\nprint(f(model))", "def f(x): return x", ""),
        ("import math\nx = math.sqrt(2)", "def f(x): return math.pi * x", "import math"),
        ("WIDTH = 4\nNAME = 'n'", "def f(x): return WIDTH", "WIDTH = 4"),
        ("A = 2\nB = A\nx = g()", "def f(): return B", "A = 2\nB = A"),
        ("A = 2\ndef g(): return A\ndef h(): return 1", "def f(): return g()", "A = 2\n\ndef g():\n    return A"),
        ("import torch\ntorch.set_grad_enabled(False)\ny = torch.ones(3)", "def f(): return 1", "torch"),
        ("import os\nos.environ['A'] = '1'\nx = 1 + g()", "def f(): return 1", "os.environ['A'] = '1'"),
        ("import torch\ntorch.backends.x = 1\nx = g()", "def f(): return 1", "torch.backends.x = 1"),
        ("x = g()", "def f(x): return [x for x in range(3)]", ""),
        ("x = g()", "KNOWN = {'a': 1}\ndef f(k): return KNOWN[k]", ""),
    ],
)
def test_what_answers_name_is_kept(given, answer, expected):
    source = kept(given, answer)
    assert source is not None and "g()\n" not in source + "\n" and "load()" not in source
    assert expected in source if expected else not source


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("x = g()", "def f(): return x"),
        ("x = g()", "x = 1\ndef f(): return x"),
        ("for id in g(): pass", "def f(y): return id(y)"),
        ("import math\nmath = g()", "def f(): return math.pi"),
        ("x = g()\ndef h(): return x", "def f(): return h()"),
        ("from numpy import *", "def f(): return 1"),
        ("def h(): ...\nh.x = 1", "def f(): return h.x"),
        ("import torch\ndef h(): torch.set_grad_enabled(False)\nh()", "def f(): return 1"),
        ("x = 1", "def f(): return eval('x')"),
        ("x = 1", "def f(): return globals()['x']"),
        ("x = 1", "%timeit 1\ndef f(): return 1"),
        ("x = 1", "def f(): return _"),
        ("x = 1", "def f(): return In"),
        ("x = 1", "def f(): return f.__globals__['x']"),
        ("x = 1", "def f(): return open('x').read()"),
        ("f()", "n = 0\ndef f():\n    global n\n    n += 1\n    return n"),
        ("f()", "seen = []\ndef f(x):\n    seen.append(x)\n    return seen"),
        ("f()", "seen = {}\ndef f(x):\n    s = seen\n    s[x] = 1\n    return s"),
        ("f()", "def f(x, seen=[]):\n    seen.append(x)\n    return seen"),
        ("f()", "from functools import cache\n@cache\ndef f(x): return x"),
        ("f()", "def f(x):\n    f.calls = 1\n    return x"),
        ("f()", "class f:\n    seen = []"),
        ("f()", "import torch\ndef f(x):\n    torch.set_grad_enabled(False)\n    return x"),
        ("x = 1", "def f(:"),
    ],
)
def test_whatever_an_answer_might_notice_runs_everything(given, answer):
    assert kept(given, answer) is None and why_everything(steps(given, answer))


# Lab 01's own solution is given a variable of the lab, and so runs everything.
LEAVES_OUT = [path for path in LABS if path.stem != "01_text_and_data"]


@pytest.mark.parametrize("path", LEAVES_OUT, ids=lambda path: path.stem)
def test_every_lab_leaves_much_out_for_its_own_solution(path):
    release = load_release(path)
    solved = {c.id: c.source for c in nbformat.read(path.parent.parent / "solutions" / path.name, 4).cells}
    own = [dataclasses.replace(s, source=solved[s.cell]) if s.kind == "answer" else s for s in release.steps]
    found = reduced(own)
    assert found is not None, why_everything(own)
    given = [sum(len(s.source) for s in of if s.kind == "given") for of in (found.steps, own)]
    assert given[0] < 0.6 * given[1] and found.left_out


def test_errors_that_may_come_of_it():
    assert missed("NameError", "name 'model' is not defined", frozenset({"model"}))
    assert not missed("NameError", "name 'modle' is not defined", frozenset({"model"}))
    assert missed("AttributeError", "module 'torch' has no attribute 'x'", frozenset())
    assert not missed("AttributeError", "'NoneType' object has no attribute 'x'", frozenset())


# --- both ways --------------------------------------------------------------------------------------

GIVEN = """import math
FACTOR = 4
def half(x):
    return x / 2 * ONE
ONE = 1
numbers = [FACTOR]
numbers.append(2)
import time
time.sleep(0.1)
marker = object()"""
WITH = {
    "right": {},
    "wrong": {
        "roofline": "def roofline(*a):\n    return 1",
        "training_memory": "def training_memory(*a, **k):\n    0 / 0",
    },
    "kept": {"training_memory": files.MEMORY.replace("else 4", "else int(half(8)) + FACTOR - 4")},
    "variable": {"training_memory": files.MEMORY.replace("else 4", "else numbers[0]")},
    "helper": {
        "roofline": files.ROOF + "\ndef each(mixed):\n    return 2 if mixed else 4",
        "training_memory": files.MEMORY.replace("2 if mixed else 4", "each(mixed)"),
    },
    "evaluated": {"training_memory": files.MEMORY.replace("else 4", "else eval('numb' + 'ers')[0]")},
    "looked up": {
        "training_memory": files.MEMORY.replace(
            "else 4", "else getattr(training_memory, '__glo' + 'bals__')['numb' + 'ers'][0]"
        )
    },
    "typo": {"training_memory": files.MEMORY.replace("else 4", "else nubmers[0]")},
    "state": {"roofline": files.ROOF + "\nnumbers.append(1)"},
    "syntax": {"training_memory": "def training_memory(:"},
}
RIGHT = {"right", "kept", "variable", "helper", "evaluated", "looked up", "state"}


@pytest.mark.slow
@pytest.mark.skipif(bool(why_no_box()), reason=f"no box here: {why_no_box()}")
def test_no_verdict_depends_on_what_is_left_out(tmp_path):
    notebook = nbformat.reads(files.release_text(), as_version=4)
    notebook.cells.insert(2, new_code_cell(GIVEN, id="made"))
    path = tmp_path / f"{files.LAB}.ipynb"
    nbformat.write(notebook, path)
    release = load_release(path)
    found = {}
    for all_cells in (False, True):
        with Box(Limits(all_cells=all_cells), modules=LIGHT) as box:
            for name, answers in WITH.items():
                result = grade_bytes(files.text_of(files.submission(**answers)), release, box, "secret")
                marks = [dataclasses.replace(mark, seconds=0) for mark in result.marks]
                found.setdefault(name, []).append((result.status, marks))
    for name, (fewer, every) in found.items():
        assert fewer == every, name
    right = {name for name, (fewer, _) in found.items() if all(mark.status == "OK" for mark in fewer[1])}
    assert right == RIGHT


def test_an_answer_that_looks_names_up_needs_the_second_run(tmp_path):
    path = tmp_path / f"{files.LAB}.ipynb"
    notebook = nbformat.reads(files.release_text(), as_version=4)
    notebook.cells.insert(2, new_code_cell(GIVEN, id="made"))
    nbformat.write(notebook, path)
    looks_up = parse_submission(files.text_of(files.submission(**WITH["looked up"])))
    found = reduced(rebuild(load_release(path), looks_up).steps)
    assert found is not None and "numbers" in found.left_out  # so only the error shows it
