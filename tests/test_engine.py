"""Judging an answer: statuses, in-place changes, several right answers, and naming the mistake."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pangu_lab.exercises.engine import (
    Case,
    Compare,
    Exercise,
    ExerciseError,
    Mistake,
    Status,
    call_or_value_error,
    draw_cases,
    run,
)
from pangu_lab.exercises.show import report, show


def softmax(x):
    return torch.softmax(x, -1)


def wrong_axis(x):
    return torch.softmax(x, 0)


def unnormalized(x):
    return x.exp()


def crashes_on_large(x):
    if x.shape[0] > 2:
        raise IndexError("too large")
    return torch.softmax(x, -1)


def softmax_cases(rng):
    return [Case((torch.tensor(rng.normal(size=(n, 3)), dtype=torch.float32),), note=f"{n} rows") for n in (1, 2, 4)]


SOFTMAX = Exercise(
    id="demo.softmax",
    points=2,
    title="Softmax",
    cases=softmax_cases,
    reference=softmax,
    mistakes=(
        Mistake("axis", "You normalized over the wrong axis.", wrong_axis),
        Mistake("sum", "You forgot to divide by the sum.", unnormalized),
        Mistake("index", "You index past the end.", crashes_on_large),
    ),
    hints=("a", "b", "c"),
)


def test_the_reference_is_right_and_earns_the_points():
    verdict = run(SOFTMAX, softmax)
    assert (verdict.status, verdict.points, verdict.passed, verdict.total) == (Status.RIGHT, 2, 3, 3)


@pytest.mark.parametrize("mistake", SOFTMAX.mistakes, ids=lambda m: m.name)
def test_every_mistake_is_named(mistake):
    verdict = run(SOFTMAX, mistake.fn)
    assert verdict.status is not Status.RIGHT and verdict.points == 0
    assert (verdict.mistake, verdict.sentence) == (mistake.name, mistake.sentence)


def test_a_student_who_writes_a_mistake_differently_hears_the_same_sentence():
    verdict = run(SOFTMAX, lambda x: 2.718281828459045**x)
    assert verdict.mistake == "sum" and verdict.number == 1


def test_a_mistake_on_every_failing_case_is_named_even_if_it_is_right_less_often():
    def only_large_inputs_go_wrong(x):
        return wrong_axis(x) if x.shape[0] > 1 else softmax(x)

    assert run(SOFTMAX, only_large_inputs_go_wrong).mistake == "axis"


def test_an_unknown_mistake_has_no_name_but_a_difference():
    verdict = run(SOFTMAX, lambda x: torch.zeros(5))
    assert verdict.status is Status.WRONG and verdict.mistake == ""
    assert verdict.difference == "the shape is (5,), expected (1, 3)"


def test_an_error_is_reported_with_the_line_of_the_student():
    def broken(x):
        total = x.sum()
        return total.no_such_method()

    verdict = run(SOFTMAX, broken)
    assert verdict.status is Status.ERROR and verdict.yours.error == "AttributeError"
    assert verdict.yours.where.endswith("in broken: return total.no_such_method()")


def test_sys_exit_is_an_error_and_never_a_pass():
    assert run(SOFTMAX, lambda x: sys.exit(0)).status is Status.ERROR


def test_a_stub_is_not_attempted_even_if_only_one_case_reaches_it():
    def stub(x):
        raise NotImplementedError()

    def half(x):
        return softmax(x) if x.shape[0] < 4 else stub(x)

    class Stub:
        def __init__(self, x):
            raise NotImplementedError

    for answer in (stub, half, Stub):
        assert run(SOFTMAX, answer).status is Status.NOT_ATTEMPTED


def test_torch_refusing_an_operation_is_an_error_of_the_answer_not_a_missing_one():
    def refused(x):
        raise NotImplementedError("Could not run 'aten::softmax'")

    assert run(SOFTMAX, refused).status is Status.ERROR


def test_handing_over_the_result_instead_of_the_function_gets_a_sentence():
    verdict = run(SOFTMAX, torch.zeros(2))
    assert verdict.status is Status.ERROR and "the function itself" in verdict.yours.message


@pytest.mark.parametrize("kind", ["tensor", "array", "list", "dict"])
def test_a_change_in_place_is_detected_and_harms_nobody(kind):
    build = {"tensor": torch.tensor, "array": np.array, "list": list, "dict": lambda v: {"v": list(v)}}[kind]

    def total(x):
        return float(sum(x["v"] if kind == "dict" else x))

    def destructive(x):
        result = total(x)
        (x["v"] if kind == "dict" else x)[0] = 99.0
        return result

    exercise = Exercise("demo.sum", 1, "", lambda rng: [Case((build([1.0, 2.0]),))], total, (), ())
    verdict = run(exercise, destructive)
    assert verdict.status is Status.WRONG and "in place" in verdict.difference
    assert run(exercise, total).status is Status.RIGHT


def test_a_destructive_mistake_is_named():
    def sorts_in_place(x):
        x.sort()
        return x

    mistakes = (Mistake("in place", "list.sort changes the list.", sorts_in_place),)
    exercise = Exercise("demo.sort", 1, "", lambda rng: [Case(([3, 1, 2],))], sorted, mistakes, ())
    assert run(exercise, sorts_in_place).mistake == "in place"
    assert run(exercise, lambda x: x[::-1]).mistake == ""


def test_any_of_several_right_answers_passes_but_not_a_mixture():
    cases = [Case((0.5,)), Case((1.5,)), Case((2.5,))]
    half_up = lambda x: int(x + 0.5)  # noqa: E731
    exercise = Exercise("demo.round", 1, "", lambda rng: cases, round, (), (), also_right=(half_up,))
    assert run(exercise, round).status is Status.RIGHT
    assert run(exercise, half_up).status is Status.RIGHT
    verdict = run(exercise, lambda x: half_up(x) if x < 1 else round(x))
    assert verdict.status is Status.WRONG and verdict.passed == 2


def test_random_answers_are_judged_from_equal_seeds_and_leave_no_trace():
    exercise = Exercise("demo.noise", 1, "", lambda rng: [Case((3,))] * 2, torch.randn, (), ())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert run(exercise, lambda n: torch.randn(n)).status is Status.RIGHT
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_prints_of_the_student_are_shown_and_those_of_mistakes_are_not(capsys):
    noisy = (Mistake("noisy", "…", lambda x: print("from the mistake")),)
    exercise = Exercise("demo.print", 1, "", lambda rng: [Case((1,))], lambda x: x, noisy, ())
    run(exercise, lambda x: print("from the student"))
    assert capsys.readouterr().out == "from the student\n"


def test_the_same_seed_draws_the_same_cases_and_another_seed_others():
    first, again, other = (draw_cases(SOFTMAX, seed)[0].args[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_defects_of_an_exercise_are_told_as_such():
    def broken(x):
        raise KeyError("no")

    with pytest.raises(ExerciseError, match="reference itself raised KeyError"):
        run(Exercise("demo.broken", 1, "", lambda rng: [Case((1,))], broken, (), ()), lambda x: x)
    with pytest.raises(ExerciseError, match="no cases"):
        run(Exercise("demo.empty", 1, "", lambda rng: [], broken, (), ()), lambda x: x)


def test_refusing_bad_input_can_be_the_answer():
    def positive(x):
        if x < 0:
            raise ValueError(x)
        return x

    cases = lambda rng: [Case((1,)), Case((-1,))]  # noqa: E731
    exercise = Exercise("demo.refuse", 1, "", cases, positive, (), (), drive=call_or_value_error)
    assert run(exercise, positive).status is Status.RIGHT
    assert run(exercise, lambda x: x).expected == "raises ValueError"


def test_the_report_names_input_both_results_and_the_mistake():
    exercise = Exercise(
        "demo.mean",
        1,
        "",
        lambda rng: [Case(([1.0, 2.0],), note="two values")],
        lambda values: sum(values) / len(values),
        (Mistake("sum", "You forgot to divide by the count.", sum),),
        (),
    )
    assert report(exercise, run(exercise, sum)).split("\n") == [
        "✗ demo.mean: not right yet, 0 of 1 inputs pass",
        "first failing input: number 1 (two values)",
        "  values = [1.0, 2.0]",
        "yours    expected",
        "  3.0      1.5",
        "The value is 3.0, expected 1.5.",
        "→ You forgot to divide by the count.",
        'hint("demo.mean") opens a hint.',
    ]


class Unprintable:
    def __repr__(self):
        raise RuntimeError


values = st.recursive(
    st.none() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=3000) | st.builds(Unprintable),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=200), inner, max_size=30),
    max_leaves=30,
)


@given(values, values, values, st.text(max_size=500))
def test_a_report_stays_small_whatever_the_values_are(argument, yours, expected, text):
    cases = lambda rng: [Case((argument, np.ones((60, 60, 3))), note=text)]  # noqa: E731
    mistake = Mistake("same", text, lambda x, y: {"wrong": yours})

    def raises(x, y):
        raise ValueError(text * 20)

    drive = lambda fn, case: fn(*case.args)  # noqa: E731
    reference = lambda x, y: "expected"  # noqa: E731
    exercise = Exercise("demo.any", 1, "", cases, reference, (mistake,), (), Compare(), drive)
    for answer in (mistake.fn, raises):
        lines = report(exercise, run(exercise, answer)).split("\n")
        assert len(lines) <= 30 and max(map(len, lines)) <= 110
    assert len(show(expected)) <= 8


def test_the_engine_does_not_import_torch():
    code = "import sys, pangu_lab.exercises.show, pangu_lab.exercises; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
