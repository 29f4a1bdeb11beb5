"""Every exercise of the course: a check that cannot fail is a defect, so is a mistake without a name."""

import importlib.util
import inspect

import pytest

from pangu_lab.exercises import LABS, all_exercises, engine, get, lab_exercises
from pangu_lab.exercises.compare import is_plain
from pangu_lab.exercises.engine import Status, draw_cases, run

SEEDS = range(20)
EXERCISES = all_exercises()
WRITTEN = [lab for lab in LABS if importlib.util.find_spec(f"pangu_lab.exercises.{lab}")]


def stub(*args, **kwargs):
    raise NotImplementedError()


def test_the_labs_that_are_written_have_exercises():
    if "environment" not in WRITTEN:
        pytest.skip("no lab is written yet")
    for lab in WRITTEN:
        assert lab_exercises(lab), f"{lab} has no exercises"
        assert all(exercise.id.startswith(f"{lab}.") for exercise in lab_exercises(lab))
    assert len({exercise.id for exercise in EXERCISES}) == len(EXERCISES)


each = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)


@each
def test_an_exercise_is_complete(exercise):
    assert get(exercise.id) is exercise
    assert exercise.points > 0 and exercise.title
    assert len(exercise.hints) == 3 and all(hint.strip() for hint in exercise.hints)
    assert len(exercise.mistakes) >= 3
    assert len({mistake.name for mistake in exercise.mistakes}) == len(exercise.mistakes)
    assert len({mistake.sentence for mistake in exercise.mistakes}) == len(exercise.mistakes)
    assert all(mistake.sentence.rstrip().endswith((".", "?")) for mistake in exercise.mistakes)


@each
def test_the_reference_passes_and_every_other_right_answer_too(exercise):
    for seed in SEEDS:
        for reference in (exercise.reference, *exercise.also_right):
            verdict = run(exercise, reference, seed)
            assert verdict.status is Status.RIGHT, (seed, verdict.difference, verdict.yours)


@pytest.fixture
def each_answer_once(monkeypatch):
    """Naming a mistake calls the others on the same inputs; here each of them is called once for each seed."""
    known, answers = {}, engine.answers

    def remembered(drive, fn, cases, seed=0, quiet=False, start=0):
        key = (drive, fn, seed, start, len(cases))
        if key not in known:
            known[key] = answers(drive, fn, cases, seed, quiet=quiet, start=start)
        return known[key]

    monkeypatch.setattr(engine, "answers", remembered)


@each
def test_every_known_mistake_fails_under_its_own_name(exercise, each_answer_once):
    for seed in SEEDS:
        for mistake in exercise.mistakes:
            verdict = run(exercise, mistake.fn, seed)
            assert verdict.status in (Status.WRONG, Status.ERROR), (seed, mistake.name)
            assert verdict.mistake == mistake.name, (seed, mistake.name, verdict.mistake)
            assert verdict.sentence == mistake.sentence


@each
def test_an_untouched_stub_is_not_attempted(exercise):
    assert run(exercise, stub).status is Status.NOT_ATTEMPTED


@each
def test_a_grader_can_send_the_inputs_and_drive_the_answer_without_the_references(exercise):
    for case in draw_cases(exercise):
        assert is_plain(case.args) and is_plain(case.kwargs), "a case holds more than plain data"
        assert is_plain(exercise.drive(exercise.reference, case)), "the drive returns more than plain data"
    drive = exercise.drive
    assert inspect.isfunction(drive) and drive.__closure__ is None and drive.__qualname__ == drive.__name__
    secrets = (exercise.reference, *exercise.also_right, *(mistake.fn for mistake in exercise.mistakes))
    used = [drive.__globals__.get(name) for name in _names(drive.__code__)]
    assert not any(value is secret for value in used for secret in secrets), "the drive knows an answer"


def _names(code):
    inner = [constant for constant in code.co_consts if inspect.iscode(constant)]
    return {*code.co_names, *(name for part in inner for name in _names(part))}
