"""Plain data across the wall between judge and box: JSON, and safetensors for arrays; never pickle.

``pack`` knows exact types only; ``unpack`` builds nothing else. Subclasses are packed as what the base class
says they are, so that a method someone has overridden is never asked.
"""

import base64
import json
import sys
from typing import Any

import numpy as np

MOST_BYTES, MOST_ITEMS, DEEPEST = 48_000_000, 400_000, 60
_NUMPY = "biufc"


class NotPlain(TypeError):
    """A value that is not plain data, or too much of it."""


def pack(value: Any) -> str:
    """A value as JSON text.

    Raises
    ------
    NotPlain
        Something in it is not plain data, or it is too large or too deep.
    """
    packer = _Packer()
    tree = packer.tree(value, 0)
    text = json.dumps({"tree": tree, **packer.blobs()}, allow_nan=False)
    if len(text) > MOST_BYTES:
        raise NotPlain(f"the result takes {len(text) / 1e6:.0f} MB; {MOST_BYTES / 1e6:.0f} MB is the limit")
    return text


def unpack(text: str) -> Any:
    """The value of a text that ``pack`` wrote; of any other text, ``NotPlain``."""
    try:
        if not isinstance(text, str) or len(text) > MOST_BYTES:
            raise NotPlain("the answer is too large")
        content = json.loads(text)
        return _Unpacker(content).value(content["tree"], 0)
    except NotPlain:
        raise
    except Exception as error:  # a stranger wrote it
        raise NotPlain(f"the answer cannot be read ({type(error).__name__})") from error


class _Packer:
    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.tensors: dict[str, Any] = {}
        self.items = self.size = 0

    def blobs(self) -> dict[str, str]:
        found = {}
        if self.arrays:
            from safetensors.numpy import save

            found["arrays"] = base64.b64encode(save(self.arrays)).decode()
        if self.tensors:
            from safetensors.torch import save as save_tensors

            found["tensors"] = base64.b64encode(save_tensors(self.tensors)).decode()
        return found

    def tree(self, value: Any, depth: int) -> Any:
        self.items += 1
        if self.items > MOST_ITEMS or depth > DEEPEST:
            raise NotPlain("the result has too many parts")
        if value is None or value is True or value is False:
            return value
        if isinstance(value, np.generic) and not isinstance(value, str | bytes):
            return ["np", self._array(np.asarray(value))]
        if isinstance(value, str):
            text = str.__str__(value)
            self._grow(len(text))
            return ["s", str.encode(text, "utf-8", "surrogatepass").hex()] if _odd(text) else text
        if isinstance(value, int):
            return ["i", format(int.__index__(value), "x")]
        if isinstance(value, float):
            return ["f", float.hex(value)]
        if isinstance(value, complex):
            return ["c", float.hex(value.real), float.hex(value.imag)]
        if isinstance(value, bytes):
            self._grow(len(value))
            return ["b", bytes.hex(value)]
        return self._container(value, depth)

    def _container(self, value: Any, depth: int) -> Any:
        bases: tuple[tuple[str, Any], ...] = (("l", list), ("t", tuple), ("e", set), ("z", frozenset))
        for kind, base in bases:
            if isinstance(value, base):
                return [kind, [self.tree(item, depth + 1) for item in base.__iter__(value)]]
        if isinstance(value, dict):
            return ["d", [[self.tree(k, depth + 1), self.tree(v, depth + 1)] for k, v in dict.items(value)]]
        if isinstance(value, np.ndarray):
            return ["a", self._array(np.asarray(value))]
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            return self._tensor(torch, value)
        raise NotPlain(f"the result holds an object of class {type(value).__name__[:60]}, which is not plain data")

    def _grow(self, size: int) -> None:
        self.size += size
        if self.size > MOST_BYTES:
            raise NotPlain(f"the result takes more than {MOST_BYTES / 1e6:.0f} MB")

    def _array(self, array: np.ndarray) -> list:
        if array.dtype.kind not in _NUMPY or array.dtype.itemsize > 16 or array.dtype.str[1:] in ("f16", "c32"):
            raise NotPlain(f"the result holds an array of dtype {str(array.dtype)[:40]}, which is not plain data")
        self._grow(array.nbytes)
        shape, kind = list(array.shape), array.dtype.str.lstrip("<>=|")
        flat = np.ascontiguousarray(array).reshape(-1).astype(array.dtype.newbyteorder("<"), copy=True)
        if array.dtype.kind == "c":
            flat = flat.view(f"<f{array.dtype.itemsize // 2}")
        name = str(len(self.arrays))
        self.arrays[name] = flat
        return [name, kind, shape]

    def _tensor(self, torch: Any, value: Any) -> list:
        tensor = torch.Tensor.detach(value).cpu()
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        if tensor.is_quantized:
            raise NotPlain("the result holds a quantized tensor, which is not plain data")
        self._grow(tensor.numel() * tensor.element_size())
        turned = tensor.is_complex()
        tensor = tensor.resolve_conj().resolve_neg()
        tensor = torch.view_as_real(tensor) if turned else tensor
        name = str(len(self.tensors))
        self.tensors[name] = tensor.contiguous().clone()
        return ["x", name, bool(turned), bool(value.requires_grad)]


class _Unpacker:
    def __init__(self, content: dict[str, Any]) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.tensors: dict[str, Any] = {}
        self.items = 0
        if "arrays" in content:
            from safetensors.numpy import load

            self.arrays = load(base64.b64decode(content["arrays"], validate=True))
        if "tensors" in content:
            from safetensors.torch import load as load_tensors

            self.tensors = load_tensors(base64.b64decode(content["tensors"], validate=True))

    def value(self, tree: Any, depth: int) -> Any:
        self.items += 1
        if self.items > MOST_ITEMS or depth > DEEPEST:
            raise NotPlain("the answer has too many parts")
        if tree is None or isinstance(tree, bool | str):
            return tree
        kind, *rest = tree
        read = getattr(self, f"_{kind}") if kind in _KINDS else None
        if read is None:
            raise NotPlain("the answer cannot be read")
        return read(*rest, depth=depth + 1)

    def _s(self, digits: str, depth: int) -> str:
        return bytes.fromhex(digits).decode("utf-8", "surrogatepass")

    def _i(self, digits: str, depth: int) -> int:
        return int(digits, 16)

    def _f(self, digits: str, depth: int) -> float:
        return float.fromhex(digits)

    def _c(self, real: str, imag: str, depth: int) -> complex:
        return complex(float.fromhex(real), float.fromhex(imag))

    def _b(self, digits: str, depth: int) -> bytes:
        return bytes.fromhex(digits)

    def _l(self, items: list, depth: int) -> list:
        return [self.value(item, depth) for item in items]

    def _t(self, items: list, depth: int) -> tuple:
        return tuple(self._l(items, depth))

    def _e(self, items: list, depth: int) -> set:
        return set(self._l(items, depth))

    def _z(self, items: list, depth: int) -> frozenset:
        return frozenset(self._l(items, depth))

    def _d(self, pairs: list, depth: int) -> dict:
        return {self.value(key, depth): self.value(item, depth) for key, item in pairs}

    def _a(self, parts: list, depth: int) -> np.ndarray:
        name, kind, shape = parts
        dtype = np.dtype(str(kind))
        if dtype.kind not in _NUMPY:
            raise NotPlain("the answer holds an array of an odd type")
        return self.arrays[name].copy().view(dtype).reshape([int(n) for n in shape])

    def _np(self, parts: list, depth: int) -> Any:
        return self._a(parts, depth)[()]

    def _x(self, name: str, turned: bool, grad: bool, depth: int) -> Any:
        import torch

        tensor = self.tensors[name]
        tensor = torch.view_as_complex(tensor) if turned else tensor
        return tensor.requires_grad_() if grad and tensor.is_floating_point() else tensor


_KINDS = {"s", "i", "f", "c", "b", "l", "t", "e", "z", "d", "a", "np", "x"}


def _odd(text: str) -> bool:
    """Whether a text holds lone surrogates, which UTF-8 cannot carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
