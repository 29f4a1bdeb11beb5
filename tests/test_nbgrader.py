"""An nbgrader course takes the notebooks as they are: it makes its assignments of solutions/ and grades our release.

Needs the extra ``nbgrader``; without it these tests are skipped.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import grading_files as files
import nbformat
import pytest
from conftest import ROOT
from nbformat.v4 import new_code_cell

from pangu_lab.grading.notebook_format import format_notebook, write_text
from pangu_lab.grading.release import student_notebook

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("nbgrader") is None, reason="nbgrader is not installed"),
    pytest.mark.slow,
]
SOLUTIONS = sorted((ROOT / "solutions").glob("[0-9][0-9]_*.ipynb"))
PROGRAM = """import json, sys
from nbgrader.apps import NbGraderAPI
from traitlets.config import Config
config = Config()
config.CourseDirectory.root = sys.argv[1]
config.ExecutePreprocessor.timeout = 120
api = NbGraderAPI(config=config)
said = {name: api.generate_assignment(name) for name in json.loads(sys.argv[2])}
said |= {f"{student}/{name}": api.autograde(name, student) for student, name in json.loads(sys.argv[3])}
bad = {name: result for name, result in said.items() if not result["success"]}
print(json.dumps({"bad": bad, "gradebook": {
    f"{s.student.id}/{s.assignment.name}": {g.name: g.score for n in s.notebooks for g in n.grades}
    for name in json.loads(sys.argv[2]) for s in api.gradebook.assignment_submissions(name)}}))
"""


def nbgrader(course, assignments, submitted=()):
    """Generate the assignments and autograde what was submitted; the gradebook."""
    programs = [str(Path(sys.executable).parent), os.environ["PATH"]]  # nbgrader calls alembic
    environment = os.environ | {
        "PATH": os.pathsep.join(programs),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    arguments = [str(course), json.dumps(assignments), json.dumps(list(submitted))]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=course, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert not found["bad"], str(found["bad"])[-3000:]
    return found["gradebook"]


def put(course, folder, name, text):
    place = course / folder / name
    place.mkdir(parents=True)
    (place / f"{name}.ipynb").write_text(text, encoding="utf-8")


def test_generate_assignment_accepts_every_solution(tmp_path):
    for path in SOLUTIONS:
        put(tmp_path, "source", path.stem, path.read_text(encoding="utf-8"))
    nbgrader(tmp_path, [path.stem for path in SOLUTIONS])
    for path in SOLUTIONS:
        ours = nbformat.read(ROOT / "labs" / path.name, as_version=4)
        theirs = nbformat.read(tmp_path / "release" / path.stem / path.name, as_version=4)
        source = {cell.id: cell.source for cell in ours.cells}
        answers = [cell for cell in theirs.cells if cell.metadata.get("nbgrader", {}).get("solution")]
        assert answers and all("BEGIN SOLUTION" not in cell.source for cell in theirs.cells)
        # Both clear a solution to the same stub, so a student may get either copy.
        assert all(cell.source.strip() == source[cell.id].strip() for cell in answers)


def course_of(answers):
    """A solution that nbgrader can run by itself, and our release of it with answers."""
    solution = files.solution()
    solution.cells.insert(1, new_code_cell("from pangu_lab.lab import check", id="imports"))
    released = student_notebook(solution, f"{files.LAB}.ipynb")
    for name, source in answers.items():
        files.cell_of(released, f"{name.split('_')[0]}-exercise")["source"] = source
    return write_text(format_notebook(solution, f"{files.LAB}.ipynb")), write_text(released)


def test_autograde_gives_our_release_the_right_marks(tmp_path):
    """Right, wrong and not attempted: nbgrader gives points to a cell that raises nothing, so all but right raises."""
    wrong = "def training_memory(*a, **k):\n    return {}"
    source, submitted = course_of({"roofline": files.ROOF, "training_memory": wrong})
    put(tmp_path, "source", files.LAB, source)
    put(tmp_path, "submitted/alice", files.LAB, submitted)
    grades = nbgrader(tmp_path, [files.LAB], [("alice", files.LAB)])[f"alice/{files.LAB}"]
    points = {cell.metadata.nbgrader.grade_id: cell.metadata.nbgrader.points for cell in nbformat.reads(
        submitted, as_version=4).cells if cell.metadata.get("nbgrader", {}).get("grade")}  # fmt: skip
    assert grades == {"roofline-check": points["roofline-check"], "training-check": 0, "count-check": 0}
