"""Calling one implementation on the cases of an exercise, so that nothing it does can harm the caller.

This half of the engine knows no references: a grader runs it inside a box beside a student's code and
takes the ``Outcome``s, which are plain data, out to the judge in ``engine``. Read ``answers`` first.
"""

import contextlib
import copy
import inspect
import io
import linecache
import random
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pangu_lab.exercises.compare import CannotCompare, Compare, is_tensor

_EXACT = Compare(rtol=0.0, atol=0.0, strict=True, dtype=True)
_PACKAGE = str(Path(__file__).resolve().parent.parent)


@dataclass(frozen=True, eq=False)
class Case:
    """One input of an exercise: plain data, and a note that says what is special about it."""

    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one call gave: a value, or an error by name, message and line; and which input it changed."""

    value: Any = None
    error: str = ""
    message: str = ""
    where: str = ""
    stub: bool = False
    changed: str = ""


Drive = Callable[[Any, Case], Any]


def call(student: Any, case: Case) -> Any:
    """The default drive: call the student's function with the case's arguments."""
    return student(*case.args, **case.kwargs)


def call_or_value_error(student: Any, case: Case) -> Any:
    """A drive for functions that must refuse bad input: a ValueError becomes the text "raises ValueError"."""
    try:
        return student(*case.args, **case.kwargs)
    except ValueError:
        return "raises ValueError"


def clone(value: Any, depth: int = 0) -> Any:
    """A copy that shares no memory with ``value``; tensors become leaves that keep requires_grad."""
    if is_tensor(value):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if depth < 50:  # a list that contains itself ends here
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(clone(item, depth + 1) for item in value)
        if type(value) is dict:
            return {key: clone(item, depth + 1) for key, item in value.items()}
        try:
            return copy.deepcopy(value)
        except Exception:  # generators, locks, open files: kept as they are, compare will refuse them
            return value
    return value


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Whatever happens inside, python, numpy and torch go on drawing as if it had not."""
    torch = sys.modules.get("torch")
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state() if torch else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if torch:
            torch.set_rng_state(torch_state)


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    if torch:
        torch.default_generator.manual_seed(seed % 2**63)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def answers(
    drive: Drive, fn: Any, cases: Sequence[Case], seed: int = 0, quiet: bool = False, start: int = 0
) -> list[Outcome]:
    """The outcomes of ``fn`` on copies of ``cases``; every generator starts from the same seed for each case.

    ``quiet`` swallows output and warnings; it is for our own implementations, a student's prints are shown.
    ``start`` is the number of the first case, where only some of an exercise's cases are asked.
    """
    outcomes = []
    with preserved_random_state(), _quiet() if quiet else contextlib.nullcontext():
        for number, case in enumerate(cases, start):
            _seed_everything(1000 * seed + number)
            outcomes.append(_answer(drive, fn, case))
    return outcomes


def _answer(drive: Drive, fn: Any, case: Case) -> Outcome:
    given = Case(clone(case.args), clone(case.kwargs), case.note)
    if drive is call and not callable(fn):
        what = f"check needs the function itself, not {_described(fn)}; write its name without parentheses"
        return Outcome(error="TypeError", message=what)
    try:
        value = clone(drive(fn, given))
    except (Exception, SystemExit) as error:
        return Outcome(
            error=type(error).__name__,
            message=str(error),
            where=_where(error, fn),
            stub=isinstance(error, NotImplementedError) and not str(error),  # torch's own come with a message
        )
    return Outcome(value=value, changed=_changed(given, case))


def _described(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _changed(after: Case, before: Case) -> str:
    """Which input the call changed in place, or the empty string."""
    pairs = [(f"argument {i + 1}", a, b) for i, (a, b) in enumerate(zip(after.args, before.args, strict=True))]
    pairs += [(f"argument {key!r}", after.kwargs.get(key), value) for key, value in before.kwargs.items()]
    for name, a, b in pairs:
        try:
            if a is not b and _EXACT.difference(a, b):
                return name
        except CannotCompare:
            continue
    return ""


def _where(error: BaseException, fn: Any) -> str:
    """The deepest line of the student's own code on the way to the error: "line 3, in f: return x[10]"."""
    own = _files_of(fn)
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if f.filename in own or "ipykernel_" in f.filename]
    mine = mine or [f for f in frames if "site-packages" not in f.filename and _PACKAGE not in f.filename]
    if not mine:
        return ""
    frame = mine[-1]
    line = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
    return f"line {frame.lineno}, in {frame.name}" + (f": {line}" if line else "")


def _files_of(fn: Any) -> set[str]:
    parts = vars(fn).values() if inspect.isclass(fn) else [fn]
    unwrapped = [inspect.unwrap(part) for part in parts if callable(part)]
    return {part.__code__.co_filename for part in unwrapped if hasattr(part, "__code__")}
