"""The notebooks: solutions run offline in smoke mode (nbval does that), students' copies run untouched, sizes hold."""

import base64
import os
import re
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from pangu_lab.exercises import LABS, lab_exercises
from pangu_lab.grading.notebook_format import MACHINE_FOLDERS

SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))
LABS_COPIES = sorted((ROOT / "labs").glob("*.ipynb"))

# Every connection but to this machine itself is refused, as on a laptop in a train.
NO_NETWORK = """
import socket as _socket
_connect = _socket.socket.connect
def _refuse(self, address):
    if self.family != _socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError("no network in this test")
    return _connect(self, address)
_socket.socket.connect = _refuse
"""


def read(path):
    return nbformat.read(path, as_version=4)


def execute(path, tmp_path):
    """Run a notebook in smoke mode, in a folder of its own, without a network."""
    from nbclient import NotebookClient

    notebook = read(path)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(NO_NETWORK))
    environment = os.environ | {"PANGU_LAB_MODE": "smoke", "PANGU_LAB_NO_PROGRESS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "PANGU_LAB_CONFIG": str(tmp_path / "config.yaml")}
    (tmp_path / "config.yaml").write_text("")
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=environment)
    return notebook


def printed(notebook):
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
    return "\n".join("".join(text) for text in texts)


def test_every_lab_has_a_solution_and_a_students_copy():
    assert [path.name for path in SOLUTIONS] == [path.name for path in LABS_COPIES] and SOLUTIONS


@pytest.mark.slow
@pytest.mark.parametrize("path", LABS_COPIES, ids=lambda path: path.stem)
def test_an_untouched_students_notebook_runs_to_its_end(path, tmp_path):
    """No traceback, and each exercise is reported as not attempted."""
    text = printed(execute(path, tmp_path))
    lab = next(key for key, notebook in LABS.items() if notebook == path.stem)
    for exercise in lab_exercises(lab):
        assert re.search(rf"{re.escape(exercise.id)}: not attempted", text), exercise.id


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_pictures_are_small_and_nothing_failed(path):
    for cell in read(path).cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", cell.id
            image = output.get("data", {}).get("image/png")
            if image:
                assert len(base64.b64decode(image)) < 60_000, cell.id


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_lab_has_four_to_eight_exercises_and_its_opening_cells(path):
    notebook = read(path)
    lab = next(key for key, name in LABS.items() if name == path.stem)
    checks = [cell for cell in notebook.cells if cell.cell_type == "code" and re.search(r"= check\(", cell.source)]
    assert 4 <= len(lab_exercises(lab)) <= 9
    ids = [re.search(r'check\("([^"]+)"', cell.source).group(1) for cell in checks]
    assert ids == [exercise.id for exercise in lab_exercises(lab)]
    assert notebook.cells[0].cell_type == "markdown"
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assert 'MODE = "lesson"' in parameters.source and "SEED = 0" in parameters.source
    starts = [cell for cell in notebook.cells if f'lab.start("{path.stem}"' in cell.source]
    assert len(starts) == 1


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_lab_has_a_widget_and_a_static_figure(path):
    source = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    assert re.search(r"widget|explore|slider", source), "no widget"
    assert any("image/png" in output.get("data", {}) for cell in read(path).cells for output in cell.get("outputs", []))


def test_no_machine_path_is_saved_in_a_notebook():
    for path in [*SOLUTIONS, *LABS_COPIES]:
        text = Path(path).read_text(encoding="utf-8")
        assert not [name for name in MACHINE_FOLDERS if f"/{name}/" in text] and "site-packages" not in text, path
