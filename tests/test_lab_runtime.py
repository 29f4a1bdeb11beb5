"""What a notebook talks to: check, hint, progress, and the record they keep."""

import json
import os
import stat
import textwrap
from types import SimpleNamespace

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import pangu_lab.exercises
import pangu_lab.lab as lab
import pangu_lab.progress
from pangu_lab.exercises import UnknownExercise
from pangu_lab.exercises.engine import Case, Exercise, Mistake
from pangu_lab.progress import Entry, ProgressFile, progress_table
from pangu_lab.viz.progress import progress_figure


def mean(values):
    return sum(values) / len(values)


MEAN = Exercise(
    "classification.mean",
    2,
    "The mean",
    lambda rng: [Case((list(rng.normal(size=3)),)), Case(([1.0, 2.0],))],
    mean,
    (Mistake("sum", "You forgot to divide by the count.", sum),),
    ("Think.", "Divide.", "def mean(values):\n    return …"),
)
MAX = Exercise("attention.max", 1, "The maximum", lambda rng: [Case(([2, 1],))], max, (), ("a", "b", "c"))


@pytest.fixture(autouse=True)
def course(monkeypatch, tmp_path):
    """Two labs with one exercise each, and a record in a folder of the test's own."""
    exercises = {"classification": (MEAN,), "attention": (MAX,)}
    for module in (pangu_lab.exercises, pangu_lab.progress):
        monkeypatch.setattr(module, "lab_exercises", lambda key: exercises.get(key, ()))
    runs = tmp_path / "runs"
    monkeypatch.setattr(lab, "load_config", lambda: SimpleNamespace(paths=SimpleNamespace(runs=runs)))
    monkeypatch.delenv("PANGU_LAB_NO_PROGRESS", raising=False)
    lab._record_file.cache_clear()
    yield runs / "progress.json"
    lab._record_file.cache_clear()


def stub(values):
    raise NotImplementedError()


def test_a_right_answer_is_praised_in_one_line_and_handed_back(capsys):
    def answer(values):
        return mean(values)

    assert lab.check("classification.mean", answer) is answer
    assert capsys.readouterr().out == "✓ classification.mean: right, 2 points\n"


def test_one_point_is_singular(capsys):
    lab.check("attention.max", max)
    assert capsys.readouterr().out == "✓ attention.max: right, 1 point\n"


def test_an_answer_not_attempted_is_replaced_by_the_reference_visibly(capsys, course):
    assert lab.check("classification.mean", stub) is mean
    said = capsys.readouterr().out
    assert "not attempted" in said and 'hint("classification.mean")' in said and "Using the reference" in said
    assert not course.exists(), "nothing was tried, so nothing is recorded"


def test_a_wrong_answer_raises_with_the_mistake_named_and_no_traceback():
    with pytest.raises(lab.CheckFailed, match="You forgot to divide by the count") as caught:
        lab.check("classification.mean", sum)
    assert isinstance(caught.value, AssertionError)
    assert caught.value.verdict.mistake == "sum"
    assert caught.value._render_traceback_() == str(caught.value).split("\n")


def test_an_error_in_the_answer_shows_type_message_and_line():
    def broken(values):
        return values[10]

    with pytest.raises(lab.CheckFailed) as caught:
        lab.check("classification.mean", broken)
    assert "IndexError: list index out of range" in str(caught.value)
    assert "in broken: return values[10]" in str(caught.value)


def test_hints_open_one_by_one_and_the_last_stays(capsys):
    said = []
    for _ in range(4):
        lab.hint("classification.mean")
        said.append(capsys.readouterr().out)
    assert said[0] == "Hint 1 of 3 for classification.mean:\nThink.\n"
    assert said[2].startswith("Hint 3 of 3")
    assert "no more hints" in said[3] and said[3].endswith("def mean(values):\n    return …\n")
    assert lab.progress_record()["classification.mean"].hints == 3


@pytest.mark.parametrize("ask", [lab.hint, lambda name: lab.check(name, max)])
def test_an_unknown_exercise_gets_the_nearest_ids(ask):
    with pytest.raises(UnknownExercise, match=r"did you mean classification\.mean"):
        ask("clasification.maen")


def test_tries_and_success_are_recorded_and_success_stays(course):
    with pytest.raises(lab.CheckFailed):
        lab.check("classification.mean", sum)
    lab.check("classification.mean", mean)
    with pytest.raises(lab.CheckFailed):
        lab.check("classification.mean", sum)
    assert lab.progress_record() == {"classification.mean": Entry(tries=3, hints=0, right=True)}
    saved = json.loads(course.read_text())["exercises"]
    assert saved == {"classification.mean": {"tries": 3, "hints": 0, "right": True}}


def test_two_notebooks_share_the_record(course):
    ProgressFile(course).add("attention.max", tries=1)
    lab.check("classification.mean", mean)
    assert set(ProgressFile(course).load()) == {"attention.max", "classification.mean"}


broken_records = st.one_of(
    st.binary(max_size=50),
    st.sampled_from(
        [
            b"",
            b"[]",
            b'{"exercises": []}',
            b'{"exercises": {"a": 1}}',
            b'{"exercises": {"a": {"tries": -1}}}',
            b'{"exercises": {"a": {"tries": true}}}',
            b"[" * 100_000,
            b'{"exercises": {"a": {"tries": ' + b"9" * 5000 + b"}}}",
        ]
    ),
)


@given(broken_records)
def test_a_damaged_record_is_set_aside_and_a_new_one_begins(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("record") / "progress.json"
    path.write_bytes(content)
    record = ProgressFile(path)
    assert record.add("attention.max", tries=1) == Entry(tries=1)
    assert path.with_name("progress.json.broken").read_bytes() == content
    assert ProgressFile(path).load() == {"attention.max": Entry(tries=1)}


def test_a_damaged_record_is_told_in_one_sentence(course, capsys):
    course.parent.mkdir()
    course.write_text("{")
    lab.check("attention.max", max)
    assert "progress.json.broken" in capsys.readouterr().err


def test_an_unwritable_folder_is_reported_once_and_the_session_goes_on(course, capsys):
    course.parent.parent.joinpath("runs").write_text("a file where the folder should be")
    for _ in range(3):
        lab.check("attention.max", max)
    said = capsys.readouterr()
    assert said.err.count("this session only") == 1
    assert said.out.count("✓") == 3
    assert lab.progress_record()["attention.max"].tries == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_record_is_reported_and_left_alone(course, capsys):
    course.parent.mkdir()
    course.write_text("{}")
    course.chmod(0)
    lab.check("attention.max", max)
    assert "cannot be read" in capsys.readouterr().err
    assert stat.S_IMODE(course.stat().st_mode) == 0


def test_recording_can_be_switched_off(course, monkeypatch):
    monkeypatch.setenv("PANGU_LAB_NO_PROGRESS", "1")
    lab._record_file.cache_clear()
    lab.check("attention.max", max)
    lab.hint("attention.max")
    assert not course.exists()
    assert lab.progress_record()["attention.max"] == Entry(tries=1, hints=1, right=True)


def test_the_table_has_a_row_for_each_lab_in_the_order_of_study():
    record = {"classification.mean": Entry(tries=2, hints=1, right=True), "unknown.id": Entry(tries=9)}
    assert progress_table(record) == [
        dict(lab="02_attention", exercises=1, right=0, points=0, available=1, tries=0, hints=0),
        dict(lab="06_classification", exercises=1, right=1, points=2, available=2, tries=2, hints=1),
    ]
    (row,) = progress_table(record, "06_classification")
    assert (row["exercise"], row["title"], row["tries"]) == ("classification.mean", "The mean", 2)


def test_the_picture_states_the_finding_and_needs_no_record():
    figure = progress_figure({"classification.mean": Entry(right=True)})
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "2 of 3 points; next: 02_attention"
    assert progress_figure({}).axes[0].get_title(loc="left") == "0 of 3 points; next: 02_attention"


def test_progress_prints_the_table(capsys):
    lab.check("attention.max", max)
    lab.progress()
    lab.progress("attention")
    said = capsys.readouterr().out
    assert "02_attention" in said and "06_classification" in said and "attention.max" in said


@pytest.mark.slow
def test_in_a_kernel_messages_are_html_and_a_failed_check_shows_no_traceback(tmp_path, monkeypatch):
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    monkeypatch.setenv("PANGU_LAB_NO_PROGRESS", "1")
    setup = """
        import pangu_lab.exercises, pangu_lab.lab as lab
        from pangu_lab.exercises.engine import Case, Exercise
        demo = Exercise("attention.max", 1, "", lambda rng: [Case(([2, 1],))], max, (), ("<b>", "b", "c"))
        import pangu_lab.progress
        for module in (pangu_lab.exercises, pangu_lab.progress):
            module.lab_exercises = lambda key: (demo,) if key == "attention" else ()
        lab.check("attention.max", max)
        lab.hint("attention.max")
        lab.progress()
    """
    wrong = 'def mine(x):\n    return x[2]\nlab.check("attention.max", mine)'
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(setup) + "None"), nbformat.v4.new_code_cell(wrong)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.raises(CellExecutionError):
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    right, hint, table, picture = notebook.cells[0].outputs
    assert right.data["text/plain"] == "✓ attention.max: right, 1 point" and "✓" in right.data["text/html"]
    assert "&lt;b&gt;" in hint.data["text/html"]
    assert "Your progress" in table.data["text/plain"] and "image/png" in picture.data
    (error,) = notebook.cells[1].outputs
    shown = "\n".join(error.traceback)
    assert shown.startswith("✗ attention.max") and "line 2, in mine: return x[2]" in shown
    assert "Traceback" not in shown and "lab.py" not in shown
