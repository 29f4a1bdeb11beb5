"""GPTQ (Frantar et al. 2022): round one column of weights after the other, and let those still to come repair it.

The layer's error on real inputs X (rows, K) is ‖X Wᵀ - X Ŵᵀ‖² = Σ_n (w_n - ŵ_n) H (w_n - ŵ_n)ᵀ with H = XᵀX:
which roundings hurt, and which other weights can make up for them, is all in H. Read ``gptq`` first.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pangu_lab.compression.affine import (
    QuantizationError,
    Quantized,
    Scheme,
    extremes,
    quantize,
    scale_and_zero_point,
    to_integers,
)
from pangu_lab.compression.observers import watch_inputs

DAMPING = 0.01  # of H's mean diagonal, added to the diagonal: H of few inputs has no inverse
BLOCK = 128  # columns whose repairs are applied to the rest of the matrix in one product


def hessians(model: nn.Module, names: Iterable[str], batches: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    """H = XᵀX (K, K) of each named layer's inputs; its factor 2 in the paper changes nothing."""
    found: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        x = x.float()
        product = x.T @ x  # (K, K)
        found[name] = found[name].add_(product) if name in found else product

    watch_inputs(model, names, batches, see)
    return found


def output_error(weight: Tensor, rounded: Tensor, hessian: Tensor) -> Tensor:
    """‖X w - X ŵ‖² of each row, (N,), from weight and rounded (N, K) and H (K, K)."""
    difference = (weight - rounded).double()
    return ((difference @ hessian.double()) * difference).sum(dim=1)


def gptq(weight: Tensor, hessian: Tensor, scheme: Scheme, block: int = BLOCK) -> Quantized:
    """Quantise a weight (N, K) for inputs with H (K, K); algorithm 1 of the paper.

    Returns
    -------
    Quantized
        Of each row, rounding to nearest stays where the repairs did not pay: the error is never above it.
    """
    if scheme.granularity not in ("channel", "group"):
        raise QuantizationError(f"GPTQ quantises weights by channel or group, not by {scheme.granularity}")
    nearest = quantize(weight, scheme)
    rows, columns = weight.shape
    w, h = weight.detach().float().clone(), hessian.float().clone()
    unused = h.diagonal() == 0  # inputs that are always 0: their weights do not matter
    h[unused, unused] = 1
    h += DAMPING * h.diagonal().mean() * torch.eye(columns, device=h.device)
    # Row i of the upper Cholesky factor of H⁻¹ is what eliminating columns 0 … i leaves of it (§3.3, step 3).
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)  # (K, K)

    group = scheme.group_size if scheme.granularity == "group" else columns
    row_scheme = Scheme(scheme.bits, scheme.symmetric, "channel")
    values = torch.empty(rows, columns, dtype=torch.int8, device=w.device)
    scales, zero_points = [], []
    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        errors = torch.zeros(rows, end - begin, device=w.device)
        for i in range(begin, end):
            if i % group == 0:  # the scale comes from the weights as repaired so far
                scale, zero = scale_and_zero_point(*extremes(w[:, i : i + group], row_scheme), row_scheme)  # (N, 1)
                scales.append(scale)
                zero_points.append(zero)
            q = to_integers(w[:, i : i + 1], scale, zero, row_scheme)  # (N, 1)
            values[:, i : i + 1] = q
            error = (w[:, i : i + 1] - (q - zero) * scale) / u[i, i]  # (N, 1)
            w[:, i:end] -= error * u[i, i:end]
            errors[:, i - begin] = error[:, 0]
        w[:, end:] -= errors @ u[begin:end, end:]
        # A group that reaches over this block's end saw repairs of this block only; its scale stands.
    stacked = [torch.stack(parts, dim=1) for parts in (scales, zero_points)]  # (N, groups, 1)
    if scheme.granularity == "channel":
        stacked = [part[:, 0] for part in stacked]  # (N, 1)
    repaired = Quantized(values, stacked[0], stacked[1], scheme)

    worse = output_error(weight, repaired.dequantize(), hessian) > output_error(weight, nearest.dequantize(), hessian)
    shape = [-1] + [1] * (repaired.scale.dim() - 1)
    return Quantized(
        torch.where(worse[:, None], nearest.values, values),
        torch.where(worse.view(shape), nearest.scale, repaired.scale),
        torch.where(worse.view(shape), nearest.zero_point, repaired.zero_point),
        scheme,
    )
