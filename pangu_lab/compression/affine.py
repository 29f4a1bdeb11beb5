"""Affine quantisation, the arithmetic of every recipe: real number x ≈ s (q - z) with an integer q of b bits.

A ``Scheme`` says how many bits, whether z is 0, and how many numbers share one scale; ``quantize`` and
``Quantized.dequantize`` do the rest. Rounding is half to even throughout. Read ``scale_and_zero_point`` first.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pangu_lab.errors import PanguLabError

Granularity = Literal["tensor", "channel", "token", "group"]


class QuantizationError(PanguLabError):
    """A tensor, a model or a file cannot be quantised or read as asked."""


@dataclass(frozen=True)
class Scheme:
    """How a tensor (…, K) becomes integers.

    Parameters
    ----------
    bits
        2 to 8.
    symmetric
        z = 0 and q in [-(2^(b-1) - 1), 2^(b-1) - 1], so that -x becomes -q. Otherwise z is free and q uses all of
        [-2^(b-1), 2^(b-1) - 1].
    granularity
        What shares one scale: the whole ``tensor``; an output ``channel``, which is a row of a weight (N, K); a
        ``token``, which is a row of activations (…, K); or a ``group`` of ``group_size`` neighbors in a row.
    """

    bits: int = 8
    symmetric: bool = True
    granularity: Granularity = "channel"
    group_size: int = 64

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise QuantizationError(f"bits is {self.bits}; it must be from 2 to 8")
        if self.granularity not in ("tensor", "channel", "token", "group"):
            raise QuantizationError(f"granularity is {self.granularity!r}; it is tensor, channel, token or group")
        if self.group_size < 1:
            raise QuantizationError(f"group_size is {self.group_size}; it must be 1 or more")

    @property
    def range(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        top = 2 ** (self.bits - 1) - 1
        return (-top if self.symmetric else -top - 1), top


@dataclass(frozen=True)
class Quantized:
    """Integers with what turns them back: ``scale`` and ``zero_point`` broadcast against ``blocks(values)``."""

    values: Tensor  # int8 (…, K)
    scale: Tensor
    zero_point: Tensor  # int32; all 0 in a symmetric scheme
    scheme: Scheme

    def dequantize(self) -> Tensor:
        """x̂ = s (q - z), (…, K) in fp32."""
        q = blocks(self.values, self.scheme).to(torch.int32)  # q - z needs a bit more than q has
        return joined((q - self.zero_point) * self.scale, self.values.shape)


def blocks(x: Tensor, scheme: Scheme) -> Tensor:
    """A view of x (…, K) whose last dimension shares one scale; groups become (…, groups, group_size).

    A last group that is not full is filled up with zeros, which are inside every range.
    """
    if scheme.granularity != "group":
        return x
    missing = -x.size(-1) % scheme.group_size
    return functional.pad(x, (0, missing)).unflatten(-1, (-1, scheme.group_size))


def joined(x: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of ``blocks``: back to ``shape``, what filled the last group cut off."""
    return x if x.shape == shape else x.flatten(-2)[..., : shape[-1]]


def extremes(x: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of what shares a scale, broadcasting against ``blocks(x)``."""
    if scheme.granularity == "tensor":
        low, high = x.aminmax()
        return low, high
    low, high = blocks(x, scheme).aminmax(dim=-1, keepdim=True)
    return low, high


def scale_and_zero_point(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """s and z of the range [low, high], widened to hold 0, so that 0 is represented exactly.

    asymmetric: s = (x_max - x_min) / (2^b - 1), z = round(q_min - x_min / s) (Jacob et al. 2018, §2.1)
    symmetric: s = max|x| / q_max, z = 0
    A range without width gets s = 1.
    """
    q_min, q_max = scheme.range
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    scale = torch.maximum(-low, high) / q_max if scheme.symmetric else (high - low) / (q_max - q_min)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    if scheme.symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    return scale, (q_min - low / scale).round().clamp(q_min, q_max).to(torch.int32)


def to_integers(x: Tensor, scale: Tensor, zero_point: Tensor | int, scheme: Scheme) -> Tensor:
    """q = clip(round(x / s) + z, q_min, q_max) as int8, the shape of x."""
    return ((x / scale).round() + zero_point).clamp(*scheme.range).to(torch.int8)


def quantize(x: Tensor, scheme: Scheme, low: Tensor | None = None, high: Tensor | None = None) -> Quantized:
    """Quantise x (…, K); ``low`` and ``high`` give a range other than the tensor's own, as an observer found it.

    Raises
    ------
    QuantizationError
        x holds NaN or infinity, for which there is no scale.
    """
    if not bool(torch.isfinite(x).all()):
        raise QuantizationError("the tensor holds NaN or infinity, for which there is no scale; look at the weights")
    x = x.float()
    own = extremes(x, scheme)
    scale, zero_point = scale_and_zero_point(own[0] if low is None else low, own[1] if high is None else high, scheme)
    values = to_integers(blocks(x, scheme), scale, zero_point, scheme)
    return Quantized(joined(values, x.shape), scale, zero_point, scheme)


def fake_quantize(x: Tensor, scheme: Scheme, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Quantise and dequantise: x (…, K) as the integers will represent it, in fp32."""
    return quantize(x, scheme, low, high).dequantize()


# --- integer matrix product -------------------------------------------------------------------------

MOST_TERMS = (2**31 - 1) // 128**2  # more of them could overflow an int32 sum
EXACT_TERMS = 2**24 // 128**2  # fp32 holds each sum of so many products of two int8 exactly


def int_matmul(a: Tensor, b: Tensor) -> Tensor:
    """The exact product of int8 a (M, K) and int8 b (K, N) as int32 (M, N).

    Torch's own kernel where it takes the shapes; both must be contiguous there, or it runs a hundred times slower.
    """
    if a.size(1) > MOST_TERMS:
        raise QuantizationError(f"{a.size(1)} products of int8 may not fit into an int32 sum; {MOST_TERMS} always do")
    if a.device.type == "cpu" or (a.size(0) > 16 and a.size(1) % 8 == b.size(1) % 8 == 0):
        return torch._int_mm(a.contiguous(), b.contiguous())
    return emulated_int_matmul(a, b)


def emulated_int_matmul(a: Tensor, b: Tensor) -> Tensor:
    """The same product through fp32: sums of up to ``EXACT_TERMS`` products are exact there, whatever their order."""
    total = torch.zeros(a.size(0), b.size(1), dtype=torch.int32, device=a.device)
    with torch.autocast(a.device.type, enabled=False):  # bf16 would round the sums
        for k in range(0, a.size(1), EXACT_TERMS):
            part = a[:, k : k + EXACT_TERMS].float() @ b[k : k + EXACT_TERMS].float()
            total += part.to(torch.int32)
    return total
