"""SmoothQuant (Xiao et al. 2023): move outliers out of activations, where they hurt, into weights, where they do not.

Y = (X diag(s)⁻¹) (diag(s) W), with s_j = max|X_j|^α / max|W_j|^(1-α) for each input channel j: the same function,
but both factors are easy to quantise. Read ``smoothing_factors`` first.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pangu_lab.compression.affine import QuantizationError
from pangu_lab.compression.observers import watch_inputs


def smoothing_factors(activation_max: Tensor, weight_max: Tensor, alpha: float = 0.5) -> Tensor:
    """s (K,) from max|X_j| (K,) and max|W_j| (K,), eq. 4; a channel that one of them leaves empty keeps s = 1."""
    if not 0 <= alpha <= 1:
        raise QuantizationError(
            f"alpha is {alpha}; it must be from 0 (all to the activations) to 1 (all to the weights)"
        )
    s = activation_max.float() ** alpha / weight_max.float() ** (1 - alpha)
    return torch.where((activation_max > 0) & (weight_max > 0), s, torch.ones_like(s))


class SmoothedLinear(nn.Module):
    """A linear layer with weight W diag(s) behind x diag(s)⁻¹.

    The paper folds 1/s into the LayerNorm before the layer. In a post-norm encoder, BERT's or ours, the output of
    that LayerNorm is the residual, too, which must stay as it is; so 1/s stays a factor of its own.
    """

    def __init__(self, linear: nn.Linear, s: Tensor) -> None:
        super().__init__()
        self.inverse_factors: Tensor
        self.register_buffer("inverse_factors", 1 / s)
        self.linear = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.linear.weight = nn.Parameter(linear.weight.detach() * s)
        self.linear.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) to (…, N)."""
        out: Tensor = self.linear(x * self.inverse_factors)
        return out


def fold_into_norm(norm: nn.LayerNorm, linears: Iterable[nn.Linear], s: Tensor) -> None:
    """Put 1/s (K,) into a LayerNorm that nothing but ``linears`` reads (pre-norm models), and s into their weights."""
    with torch.no_grad():
        norm.weight.div_(s)
        norm.bias.div_(s)
        for linear in linears:
            linear.weight.mul_(s)


def input_maxima(
    model: nn.Module, names: Iterable[str], batches: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, Tensor], list[list[str]]]:
    """max|X_j| (K,) of each named layer's input, and which layers read the very same input (q, k and v do)."""
    maxima: dict[str, Tensor] = {}
    readers: dict[str, str] = {}  # layer: the first layer with its input
    last: list[Any] = ["", None]

    def see(name: str, x: Tensor) -> None:
        peak = x.abs().amax(dim=0).float()
        maxima[name] = torch.maximum(maxima[name], peak) if name in maxima else peak
        if last[1] is None or last[1].shape != x.shape or not torch.equal(last[1], x):
            last[:] = [name, x]
        readers.setdefault(name, last[0])

    watch_inputs(model, names, batches, see)
    groups: dict[str, list[str]] = {}
    for name, first in readers.items():
        groups.setdefault(first, []).append(name)
    return maxima, list(groups.values())


def smooth(model: nn.Module, names: Iterable[str], batches: Iterable[Mapping[str, Any]], alpha: float = 0.5) -> None:
    """Replace the named linear layers of ``model`` by smoothed ones, in place; its function stays the same.

    Layers that read the same input get the same s, so that this input needs to be quantised once.
    """
    maxima, groups = input_maxima(model, names, batches)
    for group in groups:
        linears = [model.get_submodule(name) for name in group]
        rows = torch.cat([linear.get_parameter("weight").detach() for linear in linears])  # (N of all, K)
        weight_max = rows.abs().amax(dim=0)
        s = smoothing_factors(maxima[group[0]], weight_max, alpha)
        for name, linear in zip(group, linears, strict=True):
            assert isinstance(linear, nn.Linear)
            model.set_submodule(name, SmoothedLinear(linear, s))
