"""What a probe is made of on the judge's side: seeds, calls that cross the wall, and answers read with suspicion.

A drive whose calls are plain data runs here, outside, on a ``Stranger`` that stands for the student's function: so
what such a drive finds ("every row is there once") cannot be claimed, it must be true of data that came out. Other
drives run inside, and only values that depend on the inputs can come from them. Read ``runs_outside`` first.
"""

import ast
import builtins
import functools
import hashlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pangu_lab.exercises.calling import Outcome, answers, call, call_or_value_error
from pangu_lab.exercises.compare import Compare, is_tensor
from pangu_lab.exercises.engine import Exercise, draw_cases
from pangu_lab.grading import inside
from pangu_lab.grading.notebook_format import without_magics
from pangu_lab.grading.wire import NotPlain, pack, unpack

Ask = Callable[[str, dict[str, Any]], list[Outcome]]


def seed_of(secret: str, exercise_id: str) -> int:
    """The seed of an exercise's hidden cases; it tells nothing of the secret or of another exercise's seed."""
    return int(hashlib.sha256(f"{secret}/{exercise_id}".encode()).hexdigest()[:8], 16)


@functools.cache
def runs_outside(exercise: Exercise) -> bool:
    """Whether the exercise's drive can stay outside: all that it passes to the answer and gets is plain data."""
    if exercise.drive in (call, call_or_value_error):
        return False  # hands back what the answer returned, so there is nothing to claim
    cases = draw_cases(exercise, 0)

    def across(*args: Any, **kwargs: Any) -> Any:
        sent = unpack(pack((args, kwargs)))
        result = unpack(pack(exercise.reference(*sent[0], **sent[1])))
        write_back((args, kwargs), sent)
        return result

    direct = answers(exercise.drive, exercise.reference, cases, quiet=True)
    crossed = answers(exercise.drive, across, cases, quiet=True)
    exact = Compare(strict=True, dtype=True)
    return all(
        not there.error and not exact.difference(there.value, here.value)
        for here, there in zip(direct, crossed, strict=True)
    )


def can_be_claimed(exercise: Exercise) -> bool:
    """Whether a drive runs inside although its right results do not depend on the inputs, so could be made up."""
    if exercise.drive in (call, call_or_value_error) or runs_outside(exercise):
        return False
    one, other = (
        answers(exercise.drive, exercise.reference, draw_cases(exercise, seed), seed, quiet=True) for seed in (1, 2)
    )
    return len(one) == len(other) and not any(
        Compare().difference(a.value, b.value) for a, b in zip(one, other, strict=True)
    )


class Stranger:
    """Stands for the student's function where a drive runs outside; each call goes into the box and comes back."""

    def __init__(self, ask: Ask, expression: str, until: float) -> None:
        self._ask, self._expression, self._until = ask, expression, until

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if time.monotonic() > self._until:
            raise TimeoutError("the calls of your function took too long together")
        before = inside.states("torch" in sys.modules)
        outcomes = self._ask("call", {"expression": self._expression, "call": pack((args, kwargs, before))})
        if not outcomes:
            raise _raised(unreadable())
        if outcomes[0].error:
            raise _raised(outcomes[0])
        if len(outcomes) == 2 and not outcomes[1].error:
            try:
                *given, after = outcomes[1].value
                write_back((args, kwargs), tuple(given))
                inside.set_states(after)
            except Exception as error:  # a stranger's data
                raise TypeError("your function leaves its inputs or the random generators unreadable") from error
        return outcomes[0].value


def write_back(given: Any, after: Any) -> None:
    """Make ``given`` equal to ``after`` in place, where the two are of the same kind."""
    if isinstance(given, tuple):
        for old, new in zip(given, after, strict=True):
            write_back(old, new)
    elif isinstance(given, list):
        if len(given) == len(after):
            for old, new in zip(given, after, strict=True):
                write_back(old, new)
        given[:] = after
    elif isinstance(given, dict):
        for key in given.keys() & after.keys():
            write_back(given[key], after[key])
        given.update(after)
        for key in given.keys() - after.keys():
            del given[key]
    elif isinstance(given, set):
        given.clear()
        given.update(after)
    elif isinstance(given, np.ndarray) and given.flags.writeable:
        given[...] = after
    elif is_tensor(given):
        given.data.copy_(after.data)


def outcome_of(item: dict[str, Any]) -> Outcome:
    """An outcome from what the box sent; only plain data of exact types comes of it."""
    texts = {key: _text(item.get(key)) for key in ("error", "message", "where", "changed")}
    if texts["error"]:
        return Outcome(**texts, stub=item.get("stub") is True)
    try:
        return Outcome(value=unpack(item["value"]), changed=texts["changed"])
    except NotPlain as error:
        return Outcome(error="TypeError", message=str(error))


def _text(value: Any) -> str:
    return value[:2000] if type(value) is str else ""


def unreadable(outcomes: list[Outcome] | None = None) -> Outcome:
    """What stands for an answer that did not come, or came without its nonce."""
    if outcomes and outcomes[0].error:
        return outcomes[0]
    message = "the kernel gave no readable answer; does your code change Python's builtins or IPython?"
    return Outcome(error="TypeError", message=message)


def _raised(outcome: Outcome) -> Exception:
    """The exception that an outcome tells of; a drive may catch it by its type."""
    kind = getattr(builtins, outcome.error, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
        return kind(*([outcome.message] if outcome.message else []))
    return type(outcome.error if outcome.error.isidentifier() else "Error", (Exception,), {})(outcome.message)


def forbidden_use(source: str, exercise: Exercise) -> str:
    """What an answer uses although it may not: the exercises' own modules, or a call that the exercise rules out."""
    try:
        tree = ast.parse(without_magics(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isprintable():
            names = [node.value] if "." in node.value else []
        for name in names:
            if name.startswith("pangu_lab.exercises") or name.rpartition(".")[2] in exercise.forbidden:
                return name[:80]
    return ""
