"""Does a student's result equal the expected one, and if not, which one sentence says what differs?

Read ``Compare.difference`` first. Torch is never imported here: a tensor can only be met where
something else has imported torch already.
"""

import math
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np

from pangu_lab.errors import PanguLabError


class CannotCompare(PanguLabError):
    """An exercise expects something that is not plain data."""


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a torch tensor, without importing torch to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(tensor: Any) -> np.ndarray:
    """A tensor as numpy array; types that numpy lacks (bfloat16, float8) widen to float64."""
    tensor = tensor.detach().cpu()
    if str(tensor.layout) != "torch.strided":
        tensor = tensor.to_dense()
    if tensor.is_floating_point():
        tensor = tensor.double()
    return tensor.resolve_conj().resolve_neg().numpy()


def is_plain(value: Any) -> bool:
    """Whether ``value`` consists of data alone, so that a grader can send it to another process."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic, np.ndarray)):
        return not (isinstance(value, np.ndarray) and value.dtype == object)
    if isinstance(value, dict):
        return all(is_plain(key) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(is_plain(item) for item in value)
    return is_tensor(value)


@dataclass(frozen=True)
class Compare:
    """How closely a result must agree with the expected one.

    Parameters
    ----------
    rtol, atol
        A number ``y`` equals the expected ``e`` when ``|y - e| <= atol + rtol * |e|``. Integers,
        strings and booleans must be equal exactly. NaN equals NaN; infinities equal by sign.
    strict
        Exact Python types: no int for a float, no tuple for a list, no zero-dimensional tensor for a number.
    dtype
        Arrays and tensors must have the expected dtype. Without it an integer tensor may stand for a
        float tensor, but never a float for an integer, nor a number for a boolean.
    """

    rtol: float = 1e-4
    atol: float = 1e-6
    strict: bool = False
    dtype: bool = False

    def difference(self, yours: Any, expected: Any) -> str | None:
        """One sentence on the first difference, without capital and full stop; None when there is none."""
        return self._difference(yours, expected, "")

    def _difference(self, yours: Any, expected: Any, path: str) -> str | None:
        place = f"in result{path}, " if path else ""
        if expected is None:
            return None if yours is None else f"{place}the result is {kind(yours)}, expected None"
        if _is_scalar(expected):
            return self._scalars(yours, expected, place)
        if isinstance(expected, (str, bytes)):
            if not isinstance(yours, type(expected)):
                return _wrong_kind(yours, expected, place)
            return None if yours == expected else f"{place}{_strings(yours, expected)}"
        if isinstance(expected, (list, tuple)):
            fits = type(yours) is type(expected) if self.strict else isinstance(yours, (list, tuple))
            return self._sequences(yours, expected, path) if fits else _wrong_kind(yours, expected, place)
        if isinstance(expected, Mapping):
            return self._mappings(yours, expected, path, place)
        if isinstance(expected, AbstractSet):
            return _sets(yours, expected, place)
        if isinstance(expected, np.ndarray):
            if not isinstance(yours, np.ndarray):
                return _wrong_kind(yours, expected, place)
            return self._arrays(yours, expected, str(yours.dtype), str(expected.dtype), path, place)
        if is_tensor(expected):
            if not is_tensor(yours):
                return _wrong_kind(yours, expected, place)
            names = [str(tensor.dtype).removeprefix("torch.") for tensor in (yours, expected)]
            return self._arrays(as_array(yours), as_array(expected), names[0], names[1], path, place)
        raise CannotCompare(f"{kind(expected)} cannot be compared; let the exercise's drive return plain data")

    def _scalars(self, yours: Any, expected: Any, place: str) -> str | None:
        if self.strict and type(yours) is not type(expected):
            return _wrong_kind(yours, expected, place)
        if (isinstance(yours, np.ndarray) or is_tensor(yours)) and yours.ndim == 0:
            yours = yours.item()  # loss.item() forgotten: still the right number
        if not _is_scalar(yours) or not _fits(_rank(yours), _rank(expected)):
            return _wrong_kind(yours, expected, place)
        if bool(yours == expected) if _rank(expected) <= 1 else self._close(yours, expected):
            return None
        y, e = number_pair(yours, expected)
        return f"{place}the value is {y}, expected {e}"

    def _close(self, yours: Any, expected: Any) -> bool:
        try:
            with np.errstate(all="ignore"):
                y, e = complex(yours), complex(expected)
                return bool(np.isclose(y, e, rtol=self.rtol, atol=self.atol, equal_nan=True))
        except OverflowError:  # an int beyond the range of floats
            return False

    def _sequences(self, yours: Any, expected: Any, path: str) -> str | None:
        if len(yours) != len(expected):
            place = f"in result{path}, " if path else ""
            return f"{place}the length is {len(yours)}, expected {len(expected)}"
        for position, (y, e) in enumerate(zip(yours, expected, strict=True)):
            found = self._difference(y, e, f"{path}[{position}]")
            if found:
                return found
        return None

    def _mappings(self, yours: Any, expected: Mapping, path: str, place: str) -> str | None:
        if not isinstance(yours, dict if self.strict else Mapping):
            return _wrong_kind(yours, expected, place)
        for key in expected:
            if key not in yours:
                return f"{place}key {_cut(repr(key))} is missing"
        for key in yours:
            if key not in expected:
                return f"{place}key {_cut(repr(key))} is not expected"
        for key, e in expected.items():
            found = self._difference(yours[key], e, f"{path}[{_cut(repr(key))}]")
            if found:
                return found
        return None

    def _arrays(
        self, yours: np.ndarray, expected: np.ndarray, y_type: str, e_type: str, path: str, place: str
    ) -> str | None:
        if yours.shape != expected.shape:
            return f"{place}the shape is {yours.shape}, expected {expected.shape}"
        if (self.dtype or self.strict) and y_type != e_type:
            return f"{place}the dtype is {y_type}, expected {e_type}"
        if expected.dtype == object:
            return self._difference(yours.tolist(), expected.tolist(), path)
        y_rank, e_rank = _KIND_RANK.get(yours.dtype.kind, 9), _KIND_RANK.get(expected.dtype.kind, 9)
        if not _fits(y_rank, e_rank):
            return f"{place}the dtype is {y_type}, expected {_RANK_NAME.get(e_rank, e_type)}"
        if np.array_equal(yours, expected):  # most are, and isclose is slow
            return None
        if e_rank in (2, 3):
            with np.errstate(all="ignore"):
                wrong = ~np.isclose(yours, expected, rtol=self.rtol, atol=self.atol, equal_nan=True)
        else:
            wrong = yours != expected
        if not np.any(wrong):
            return None
        if not yours.shape:
            y, e = number_pair(yours.item(), expected.item())
            return f"{place}the value is {y}, expected {e}"
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        y, e = number_pair(yours[first].item(), expected[first].item())
        count = f" ({wrong.sum()} of {wrong.size} values differ)" if wrong.sum() > 1 else ""
        return f"{place}value at {list(first)} is {y}, expected {e}{count}"


# Kinds of numbers, each of which may stand for a later one; booleans and text (9) only for themselves.
_KIND_RANK = {"b": 0, "i": 1, "u": 1, "f": 2, "c": 3}
_RANK_NAME = {0: "bool", 1: "an integer type", 2: "a floating-point type"}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, complex, np.bool_, np.number))


def _fits(yours: int, expected: int) -> bool:
    return yours == expected or 0 < yours < expected < 9


def _rank(value: Any) -> int:
    if isinstance(value, (bool, np.bool_)):
        return 0
    if isinstance(value, (int, np.integer)):
        return 1
    return 2 if isinstance(value, (float, np.floating)) else 3


def _cut(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def kind(value: Any) -> str:
    """What a value is, with its article: "a float", "a tensor of shape (2, 3)"."""
    if value is None:
        return "None"
    if isinstance(value, np.ndarray):
        return f"a numpy array of shape {value.shape}"
    if is_tensor(value):
        return f"a tensor of shape {tuple(value.shape)}"
    if _is_scalar(value):
        return ("a bool", "an int", "a float", "a complex number")[_rank(value)]
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _wrong_kind(yours: Any, expected: Any, place: str) -> str:
    why = " (is a return missing?)" if yours is None and not place else ""
    y, e = kind(yours), kind(expected)
    if y == e:  # only strict comparison gets here: same family, another class
        y, e = f"a {type(yours).__name__}", f"a {type(expected).__name__}"
    return f"{place}the result is {y}, expected {e}{why}"


def number_pair(yours: Any, expected: Any) -> tuple[str, str]:
    """Two values with as few digits as still show that they differ."""
    if any(isinstance(value, (bool, str, bytes)) or not _is_scalar(value) for value in (yours, expected)):
        return _cut(repr(yours)), _cut(repr(expected))
    for digits in (4, 7, 17):
        y, e = (_number(value, digits) for value in (yours, expected))
        if y != e:
            break
    return y, e


def _number(value: Any, digits: int) -> str:
    if isinstance(value, (int, np.integer)):
        big = int(value)
        return str(big) if big.bit_length() < 130 else f"an integer of {big.bit_length()} bits"
    text = f"{value:.{digits}g}"
    whole = not isinstance(value, complex) and math.isfinite(value) and not set(text) & set(".e")
    return text + ".0" if whole else text


def _strings(yours: Any, expected: Any) -> str:
    if len(yours) <= 40 and len(expected) <= 40:
        return f"the text is {yours!r}, expected {expected!r}"
    common = min(len(yours), len(expected))
    at = next((i for i in range(common) if yours[i] != expected[i]), common)
    start = max(0, at - 10)
    y, e = yours[start : at + 20], expected[start : at + 20]
    return f"the text differs at character {at}: …{y!r}…, expected …{e!r}…"


def _sets(yours: Any, expected: AbstractSet, place: str) -> str | None:
    if not isinstance(yours, AbstractSet):
        return _wrong_kind(yours, expected, place)
    lacking, extra = sorted(map(repr, expected - yours)), sorted(map(repr, yours - expected))
    if lacking:
        return f"{place}{_cut(', '.join(lacking), 60)} is missing from the set"
    return f"{place}{_cut(', '.join(extra), 60)} does not belong in the set" if extra else None
