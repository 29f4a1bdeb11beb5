"""The exercise engine: what an exercise is, and how an answer to it is judged.

An exercise is data (``Exercise``). ``run`` draws its cases, calls an implementation on them
(``calling.answers``) and judges the outcomes (``judge``); a grader does the same three steps in two
processes. A wrong answer is compared with the known mistakes, so that the student hears which one it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from pangu_lab.errors import PanguLabError
from pangu_lab.exercises.calling import (
    Case,
    Drive,
    Outcome,
    answers,
    call,
    call_or_value_error,
    preserved_random_state,
)
from pangu_lab.exercises.compare import CannotCompare, Compare

__all__ = [
    "Case",
    "Compare",
    "Exercise",
    "ExerciseError",
    "Mistake",
    "Outcome",
    "Status",
    "Verdict",
    "call",
    "call_or_value_error",
    "draw_cases",
    "judge",
    "run",
]


class ExerciseError(PanguLabError):
    """A defect of an exercise, never of an answer to it."""


class Status(StrEnum):
    RIGHT = "RIGHT"
    WRONG = "WRONG"
    ERROR = "ERROR"
    NOT_ATTEMPTED = "NOT_ATTEMPTED"


@dataclass(frozen=True, eq=False)
class Mistake:
    """A known wrong implementation, under the sentence that explains it."""

    name: str
    sentence: str
    fn: Any


@dataclass(frozen=True, eq=False)
class Exercise:
    """One exercise, declared as data.

    Parameters
    ----------
    cases
        Inputs drawn from a random generator; plain data, so that a grader can send them to another process.
    reference
        The right answer, from an independent truth where one exists; also what the student gets who has
        not attempted the exercise.
    drive
        Uses the student's object on one case and returns plain data. A module-level function that knows
        neither reference nor mistakes: the grader runs it beside the student's code.
    also_right
        Further right answers; an answer must agree with one of them on all cases.
    partial
        A grader gives the share of the points that is the share of inputs that pass; otherwise all or nothing.
    forbidden
        Names that an answer may not use, the last part of what it would call ("scaled_dot_product_attention").
    """

    id: str
    points: float
    title: str
    cases: Callable[[np.random.Generator], list[Case]]
    reference: Any
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, ...]
    compare: Compare = field(default_factory=Compare)
    drive: Drive = call
    also_right: tuple[Any, ...] = ()
    partial: bool = False
    forbidden: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Verdict:
    """The judgment on one answer; of a wrong one, the first failing case and the mistake, if it is known."""

    exercise: str
    status: Status
    points: float = 0
    passed: int = 0
    total: int = 0
    number: int = 0
    case: Case | None = None
    yours: Outcome | None = None
    expected: Any = None
    difference: str = ""
    mistake: str = ""
    sentence: str = ""


def draw_cases(exercise: Exercise, seed: int = 0) -> list[Case]:
    """The cases of ``exercise`` under ``seed``: the same seed gives the same cases."""
    with preserved_random_state():
        cases = list(exercise.cases(np.random.default_rng(seed)))
    if not cases:
        raise ExerciseError(f"{exercise.id}: draws no cases for seed {seed}; a check without cases cannot fail")
    return cases


def run(exercise: Exercise, fn: Any, seed: int = 0) -> Verdict:
    """Judge ``fn`` on the cases that ``seed`` draws. Whatever ``fn`` raises becomes part of the verdict."""
    cases = draw_cases(exercise, seed)
    return judge(exercise, cases, answers(exercise.drive, fn, cases, seed), seed)


def judge(exercise: Exercise, cases: Sequence[Case], outcomes: Sequence[Outcome], seed: int = 0) -> Verdict:
    """Compare outcomes with the references', and name the mistake if it is a known one."""
    total = len(cases)
    if any(outcome.stub for outcome in outcomes):
        return Verdict(exercise.id, Status.NOT_ATTEMPTED, total=total)

    expected, differences = _closest_reference(exercise, cases, outcomes, seed)
    failing = [i for i, difference in enumerate(differences) if difference]
    if not failing:
        return Verdict(exercise.id, Status.RIGHT, points=exercise.points, passed=total, total=total)

    first = failing[0]
    mistake = _name_mistake(exercise, cases, outcomes, expected, failing, seed)
    return Verdict(
        exercise.id,
        Status.ERROR if outcomes[first].error else Status.WRONG,
        passed=total - len(failing),
        total=total,
        number=first + 1,
        case=cases[first],
        yours=outcomes[first],
        expected=expected[first].value,
        difference=differences[first],
        mistake=mistake.name if mistake else "",
        sentence=mistake.sentence if mistake else "",
    )


def _closest_reference(
    exercise: Exercise, cases: Sequence[Case], outcomes: Sequence[Outcome], seed: int
) -> tuple[list[Outcome], list[str]]:
    """Of all right answers the one that the outcomes miss on the fewest cases, and what they miss there."""
    best: tuple[list[Outcome], list[str]] | None = None
    for reference in (exercise.reference, *exercise.also_right):
        expected = answers(exercise.drive, reference, cases, seed, quiet=True)
        for number, outcome in enumerate(expected, start=1):
            if outcome.error:
                what = f"{outcome.error} on case {number}: {outcome.message}"
                raise ExerciseError(f"{exercise.id}: the reference itself raised {what}")
        differences = [_difference(exercise.compare, y, e) for y, e in zip(outcomes, expected, strict=True)]
        if best is None or sum(map(bool, differences)) < sum(map(bool, best[1])):
            best = expected, differences
        if not any(differences):
            break
    assert best is not None
    return best


def _difference(compare: Compare, yours: Outcome, expected: Outcome) -> str:
    if yours.error:
        return f"your code raised {yours.error}"
    found = compare.difference(yours.value, expected.value)
    if not found and yours.changed:
        return f"the result is right, but your code changes {yours.changed} in place; work on a copy"
    return found or ""


def _name_mistake(
    exercise: Exercise,
    cases: Sequence[Case],
    outcomes: Sequence[Outcome],
    expected: Sequence[Outcome],
    failing: Sequence[int],
    seed: int,
) -> Mistake | None:
    """The mistake that behaves as the answer does on all cases, else one that does on every failing case."""
    partly: Mistake | None = None
    first = failing[0]
    for mistake in exercise.mistakes:
        # Most mistakes are ruled out by one case, and the others need not be tried on them.
        (made_first,) = answers(exercise.drive, mistake.fn, [cases[first]], seed, quiet=True, start=first)
        if not _alike(exercise.compare, outcomes[first], made_first, expected[first]):
            continue
        made = answers(exercise.drive, mistake.fn, cases, seed, quiet=True)
        same = [_alike(exercise.compare, y, m, e) for y, m, e in zip(outcomes, made, expected, strict=True)]
        if all(same):
            return mistake
        if partly is None and all(same[i] for i in failing):
            partly = mistake
    return partly


def _alike(compare: Compare, yours: Outcome, mistaken: Outcome, expected: Outcome) -> bool:
    """Whether an answer and a known mistake do the same on one case; errors are the same by type."""
    if yours.error or mistaken.error:
        return yours.error == mistaken.error
    try:
        if compare.difference(yours.value, mistaken.value):
            return False
    except CannotCompare:  # the mistake returns a generator, say: its own kind of wrong
        return type(yours.value) is type(mistaken.value)
    # A change in place makes the difference only where the value is right.
    right = not compare.difference(yours.value, expected.value)
    return not right or bool(yours.changed) == bool(mistaken.changed)
