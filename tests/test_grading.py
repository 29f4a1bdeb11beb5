"""The parts of the grader: reading strangers' bytes, plain data across the wall, cutting out functions, resuming."""

import contextlib
import json
import sys

import grading_files as files
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pangu_lab.exercises import all_exercises
from pangu_lab.exercises.calling import answers
from pangu_lab.exercises.compare import Compare
from pangu_lab.exercises.engine import draw_cases
from pangu_lab.grading import box as boxes
from pangu_lab.grading.judge import Judge
from pangu_lab.grading.probes import can_be_claimed, runs_outside, seed_of
from pangu_lab.grading.rebuild import (
    KEPT,
    InvalidFile,
    Rebuilt,
    Step,
    load_release,
    parse_submission,
    rebuild,
    same_code,
)
from pangu_lab.grading.slices import drive_source, reference_source
from pangu_lab.grading.wire import NotPlain, pack, unpack

EXACT = Compare(rtol=0, atol=0, strict=True, dtype=True)
needs_box = pytest.mark.skipif(bool(boxes.why_no_box()), reason=f"no box here: {boxes.why_no_box()}")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    path = tmp_path_factory.mktemp("labs") / f"{files.LAB}.ipynb"
    path.write_text(files.release_text(), encoding="utf-8")
    return load_release(path)


# --- reading ----------------------------------------------------------------------------------------

GOOD = files.text_of(files.submission())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def graded_or_refused(release, data):
    try:
        rebuilt = rebuild(release, parse_submission(data))
    except InvalidFile as error:
        assert str(error)
    else:
        assert [step.cell for step in rebuilt.steps] == [step.cell for step in release.steps]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_bytes_crash_the_reader(release, data):
    start = data.draw(st.integers(0, len(GOOD)))
    stop = data.draw(st.integers(start, min(len(GOOD), start + 400)))
    graded_or_refused(release, GOOD[:start] + data.draw(st.binary(max_size=30)) + GOOD[stop:])


@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_json_crashes_the_reader(release, data):
    notebook = json.loads(GOOD)
    place = notebook
    for _ in range(data.draw(st.integers(0, 4))):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key]:
            break
        place = place[key]
    key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
    place[key] = data.draw(json_values)
    graded_or_refused(release, json.dumps(notebook).encode())


def test_only_answers_come_from_a_submission(release):
    notebook = files.submission()
    files.cell_of(notebook, "use").source = "raise SystemExit"
    steps = rebuild(release, parse_submission(files.text_of(notebook))).steps
    ours = {step.cell: step.source for step in release.steps}
    assert all(step.source == ours[step.cell] for step in steps if step.kind != "answer")
    assert all(
        step.source == files.RIGHT[name] for name, step in zip(files.RIGHT, [s for s in steps if s.stub], strict=True)
    )


def test_spacing_and_comments_are_no_change_but_indentation_is():
    assert same_code("x = 1  # one\n\n", "x=1")
    assert not same_code("if x:\n    y\n    z", "if x:\n    y\nz")


# --- plain data -------------------------------------------------------------------------------------

numbers = st.integers() | st.floats() | st.booleans() | st.none() | st.complex_numbers() | st.text() | st.binary()
hashable = st.integers() | st.text() | st.booleans()
plain = st.recursive(
    numbers,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(hashable, inner)
        | st.sets(hashable)
        | st.frozensets(hashable)
    ),
    max_leaves=15,
)


@given(plain)
def test_plain_data_crosses_exactly(value):
    assert repr(unpack(pack(value))) == repr(value) or EXACT.difference(unpack(pack(value)), value) is None


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int64", "float16", "float32", "float64", "complex64"])
def test_arrays_and_tensors_cross_exactly(dtype):
    array = np.arange(6).reshape(2, 3).T.astype(dtype)
    for value in (array, array[:0], array[0, 0], np.array(3, dtype), torch.from_numpy(array.copy()).T):
        back = unpack(pack(value))
        assert type(back) is type(value) and EXACT.difference(back, value) is None
    assert unpack(pack(torch.ones(2, dtype=torch.bfloat16, requires_grad=True))).requires_grad


@pytest.mark.parametrize("value", [object(), np.array([object()]), [lambda: 1], {1: type}, "x" * 50_000_000])
def test_what_is_not_plain_does_not_cross(value):
    with pytest.raises(NotPlain):
        pack(value)


@given(st.text() | json_values.map(json.dumps) | json_values.map(lambda value: json.dumps({"tree": value})))
def test_no_answer_crashes_the_judge(text):
    with contextlib.suppress(NotPlain):
        unpack(text)


# --- what enters the box ----------------------------------------------------------------------------


@pytest.mark.parametrize("exercise", all_exercises(), ids=lambda exercise: exercise.id)
def test_drives_and_references_can_be_cut_out_and_do_the_same(exercise):
    cases = draw_cases(exercise, 3)
    expected = answers(exercise.drive, exercise.reference, cases, 3, quiet=True)
    spaces = []
    for source, name in (drive_source(exercise), reference_source(exercise)):
        space: dict = {"__name__": "cut"}
        exec(source, space)
        spaces.append(space[name])
    found = answers(*spaces, cases, 3, quiet=True)
    for one, other in zip(found, expected, strict=True):
        assert not one.error, one
        assert exercise.compare.difference(one.value, other.value) is None


@pytest.mark.parametrize("exercise", all_exercises(), ids=lambda exercise: exercise.id)
def test_no_drive_can_be_talked_into_a_right_answer(exercise):
    assert not can_be_claimed(exercise)


def test_drives_that_find_properties_stay_outside():
    outside = {exercise.id for exercise in all_exercises() if runs_outside(exercise)}
    assert {"environment.shuffle_and_init", "classification.stratified_split"} <= outside


def test_the_mirror_holds_no_reference(tmp_path):
    boxes.mirror(tmp_path)
    texts = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.py")}
    assert not [path for path, text in texts.items() if "EXERCISES = (" in text or "Mistake(\n" in text]
    assert sorted(path.name for path in (tmp_path / "pangu_lab/exercises").iterdir()) == sorted(boxes.KEPT_EXERCISES)


def test_seeds_of_exercises_differ():
    assert len({seed_of("s", e.id) for e in all_exercises()}) == len(all_exercises())


# --- batches ----------------------------------------------------------------------------------------


def test_without_bubblewrap_it_says_so(monkeypatch):
    monkeypatch.setattr(boxes.shutil, "which", lambda name: None)
    if sys.platform.startswith("linux"):
        with pytest.raises(boxes.NoBox, match="--no-box"):
            boxes.Box()


FORGED = """import torch
from pangu_lab.grading import inside
inside.answers = lambda *a, **k: [inside.Outcome(value={"the same seed gives the same order": True})] * 9
inside._answer = lambda *a, **k: inside.Outcome(value=(list(range(50)), 0.02 * torch.randn(64, 64)))
def shuffle_and_init(rows, shape, seed):
    return rows, torch.zeros(shape)"""


@needs_box
@pytest.mark.slow
def test_a_property_that_is_claimed_is_not_believed():
    """The drive of this exercise says only what holds; a kernel in the student's hands could say that it all holds."""
    exercise = "environment.shuffle_and_init"
    steps = (
        Step("answer", "seed", FORGED, stub="shuffle_and_init = None"),
        Step("check", "check", KEPT, "", exercise, "shuffle_and_init", 3, "seed"),
    )
    with boxes.Box() as box:
        (mark,) = Judge(Rebuilt(steps), box, "secret").run().marks
    assert mark.status == "WRONG" and mark.points == 0
