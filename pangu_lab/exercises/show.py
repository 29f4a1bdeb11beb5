"""A verdict as plain text that a student can read: the failing input, yours beside expected, the mistake.

At most 30 lines of at most 110 characters, whatever the values are. Read ``report`` first.
"""

import inspect
import textwrap
from typing import Any

import numpy as np

from pangu_lab.exercises.calling import call
from pangu_lab.exercises.compare import as_array, is_tensor
from pangu_lab.exercises.engine import Case, Exercise, Status, Verdict

WIDTH = 100


def points_text(points: float) -> str:
    """ "1 point", "2 points", "2.5 points"."""
    return f"{points:g} point{'' if points == 1 else 's'}"


def report(exercise: Exercise, verdict: Verdict) -> str:
    """Why an answer is wrong (statuses WRONG and ERROR)."""
    assert verdict.case is not None and verdict.yours is not None
    note = f" ({verdict.case.note})" if verdict.case.note else ""
    lines = [f"✗ {exercise.id}: not right yet, {verdict.passed} of {verdict.total} inputs pass"]
    lines += _cut([f"first failing input: number {verdict.number}{note}"], 1)
    lines += _inputs(exercise, verdict.case)
    if verdict.status is Status.ERROR:
        message = f"{verdict.yours.error}: {verdict.yours.message}".rstrip(": ")
        lines += ["your code raised", *_indented(_paragraph(message, 3))]
        lines += _indented(_cut([f"at {verdict.yours.where}"], 1)) if verdict.yours.where else []
        lines += ["expected", *_indented(show(verdict.expected, limit=6))]
    else:
        lines += _side_by_side(verdict.yours.value, verdict.expected)
        lines += _paragraph(f"{verdict.difference[:1].upper()}{verdict.difference[1:]}.", 3)
    if verdict.sentence:
        lines += _paragraph(f"→ {verdict.sentence}", 4)
    lines.append(f'hint("{exercise.id}") opens a hint.')
    return "\n".join(lines)


def show(value: Any, width: int = WIDTH - 4, limit: int = 8) -> list[str]:
    """A value as a few short lines; arrays and tensors under a line with shape and dtype."""
    if is_tensor(value) or isinstance(value, np.ndarray):
        return _cut([_array_header(value), *_array_text(value, width).split("\n")], limit, width)
    if isinstance(value, dict) and value:
        lines = [f"{_repr(key)}: {_one_line(item)}" for key, item in list(value.items())[: limit + 1]]
        return _cut(lines, limit, width)
    text = _one_line(value)
    if isinstance(value, (list, tuple)) and len(value) > 1 and len(text) > width:
        return _cut([f"[{i}] {_one_line(item)}" for i, item in enumerate(value[: limit + 1])], limit, width)
    if len(text) > width:
        return _cut(textwrap.wrap(text[: width * (limit + 1)], width, break_on_hyphens=False), limit, width)
    return [text]


def _array_header(value: Any) -> str:
    word = "tensor" if is_tensor(value) else "array"
    shape = ", ".join(map(str, value.shape))
    return f"{word} ({shape}) {str(value.dtype).removeprefix('torch.')}"


def _array_text(value: Any, width: int) -> str:
    array = as_array(value) if is_tensor(value) else value
    return np.array2string(
        array,
        max_line_width=width,
        precision=4,
        suppress_small=True,
        threshold=60,
        edgeitems=3,
        separator=", ",
    )


def _one_line(value: Any, depth: int = 0) -> str:
    if is_tensor(value) or isinstance(value, np.ndarray):
        if value.ndim == 0 or (value.ndim == 1 and value.shape[0] <= 8):
            word = "tensor" if is_tensor(value) else "array"
            return f"{word}({' '.join(_array_text(value, 10_000).split())})"
        return _array_header(value)
    if isinstance(value, np.generic):
        value = value.item()
    if depth < 6 and type(value) in (list, tuple, set, dict) and value:
        brackets = "[]" if isinstance(value, list) else "()" if isinstance(value, tuple) else "{}"
        if isinstance(value, dict):
            parts = [f"{_repr(k)}: {_one_line(v, depth + 1)}" for k, v in list(value.items())[:100]]
        else:
            items = sorted(value, key=_repr) if isinstance(value, set) else list(value)
            parts = [_one_line(item, depth + 1) for item in items[:100]]
        more = ", …" if len(value) > 100 else "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"{brackets[0]}{', '.join(parts)}{more}{brackets[1]}"
    return _repr(value)


def _repr(value: Any) -> str:
    try:
        text = repr(value[:2000] if isinstance(value, (str, bytes)) else value)
    except Exception:  # a student's class, or an int too long to print
        return f"<{type(value).__name__} that cannot be shown>"
    return " ".join(text.split())[:2000]


def _cut(lines: list[str], limit: int, width: int = WIDTH) -> list[str]:
    shown = lines if len(lines) <= limit else [*lines[: limit - 1], "…"]
    return [line if len(line) <= width else line[: width - 1] + "…" for line in shown]


def _indented(lines: list[str]) -> list[str]:
    return ["  " + line for line in lines]


def _paragraph(text: str, limit: int) -> list[str]:
    """Text wrapped to the width, its own line breaks kept."""
    wrapped = [part for line in text[:2000].splitlines() for part in textwrap.wrap(line, WIDTH) or [""]]
    return _cut(wrapped, limit)


def _inputs(exercise: Exercise, case: Case) -> list[str]:
    named = [*zip(_names(exercise, len(case.args)), case.args, strict=True), *case.kwargs.items()]
    lines = []
    for name, value in named:
        shown = show(value, max(40, WIDTH - len(name) - 5), limit=5 if len(named) > 1 else 8)
        lines += [f"{name} = {shown[0]}", *_indented(shown[1:])]
    return _indented(_cut(lines, 11))


def _names(exercise: Exercise, count: int) -> list[str]:
    """The names of the reference's parameters, where the case's arguments go straight to it."""
    numbered = [f"input {i + 1}" for i in range(count)]
    if exercise.drive is not call:
        return numbered
    try:
        parameters = inspect.signature(exercise.reference).parameters.values()
    except (TypeError, ValueError):
        return numbered
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [*names, *numbered[len(names) :]][:count]


def _side_by_side(yours: Any, expected: Any) -> list[str]:
    half = (WIDTH - 6) // 2
    left, right = show(yours, half), show(expected, half)
    if max(map(len, left + right)) >= half:  # columns would cut: one below the other, the full width each
        return ["yours", *_indented(show(yours, limit=4)), "expected", *_indented(show(expected, limit=4))]
    left, right = ["yours", *_indented(left)], ["expected", *_indented(right)]
    column = max(map(len, left)) + 4
    rows = max(len(left), len(right))
    left, right = left + [""] * (rows - len(left)), right + [""] * (rows - len(right))
    return [f"{a:<{column}}{b}".rstrip() for a, b in zip(left, right, strict=True)]
