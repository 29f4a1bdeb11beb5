"""Observers: they see activations pass by, batch after batch, and name the range [low, high] to be quantised.

A wide range clips nothing and is coarse; a narrow one is fine and clips outliers. Each observer settles that
in its own way. All work per tensor. Read ``MinMax`` first, then ``Histogram``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pangu_lab.compression.affine import QuantizationError, Scheme, fake_quantize

BINS = 2048  # of a histogram of |x|; a power of two, because bins are merged in pairs when the limit doubles


class MinMax:
    """The smallest and the largest value ever seen."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def observe(self, x: Tensor) -> None:
        """Take in a tensor of any shape."""
        low, high = (float(value) for value in x.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise QuantizationError("calibration met NaN or infinity; look at the model and its inputs")
        self.update(low, high)

    def update(self, low: float, high: float) -> None:
        """Merge one batch's extremes into what is known."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """low and high, scalars, for integers of ``scheme``."""
        if self.low > self.high:
            raise QuantizationError("an observer has seen nothing; give calibration batches")
        return torch.tensor(self.low), torch.tensor(self.high)


class MovingAverage(MinMax):
    """An exponential average of each batch's extremes: one odd batch counts for little (Jacob et al. 2018, §3.1)."""

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum

    def update(self, low: float, high: float) -> None:
        if self.low > self.high:  # the first batch
            self.low, self.high = low, high
        m = self.momentum
        self.low, self.high = m * self.low + (1 - m) * low, m * self.high + (1 - m) * high


class Histogram(MinMax, ABC):
    """Counts |x| in equal bins up to ``limit``; when a value exceeds it, the limit doubles and bins merge in pairs.

    Below it are three ways to choose the threshold beyond which |x| is clipped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.limit = torch.zeros(BINS, dtype=torch.float64), 0.0

    def observe(self, x: Tensor) -> None:
        super().observe(x)
        largest = max(abs(self.low), abs(self.high))
        if self.limit == 0:
            self.limit = largest
        while self.limit < largest:
            merged = self.counts.view(-1, 2).sum(dim=1)
            self.counts, self.limit = torch.cat([merged, torch.zeros_like(merged)]), 2 * self.limit
        if self.limit == 0:  # nothing but zeros so far
            self.counts[0] += x.numel()
            return
        self.counts += torch.histc(x.detach().abs().float(), BINS, 0, self.limit).double().cpu()

    def range(self, scheme: Scheme) -> tuple[Tensor, Tensor]:
        low, high = super().range(scheme)
        if self.limit == 0:
            return low, high
        threshold = self.threshold(scheme)
        return low.clamp(min=-threshold), high.clamp(max=threshold)

    @abstractmethod
    def threshold(self, scheme: Scheme) -> float:
        """Beyond which |x| is clipped."""

    @property
    def width(self) -> float:
        """Of one bin."""
        return self.limit / BINS


class Percentile(Histogram):
    """The threshold that ``percent`` of all |x| do not exceed, to the width of a bin."""

    def __init__(self, percent: float = 99.99) -> None:
        super().__init__()
        self.percent = percent

    def threshold(self, scheme: Scheme) -> float:
        share = self.counts.cumsum(0) / self.counts.sum()
        return (int(torch.searchsorted(share, self.percent / 100)) + 1) * self.width


class MSE(Histogram):
    """The threshold with the least mean squared error of quantisation, rounding and clipping together."""

    def threshold(self, scheme: Scheme) -> float:
        centers = (torch.arange(BINS) + 0.5) * self.width
        candidates = torch.linspace(0.02, 1, 99) * self.limit
        errors = [self._error(centers, float(t), scheme) for t in candidates]
        return float(candidates[errors.index(min(errors))])

    def _error(self, centers: Tensor, threshold: float, scheme: Scheme) -> float:
        # The range a threshold would give: one-sided values (after a ReLU, say) leave asymmetric schemes finer steps.
        low, high = torch.tensor(max(self.low, -threshold)), torch.tensor(min(self.high, threshold))
        by_tensor = Scheme(scheme.bits, scheme.symmetric, "tensor")
        sides = [centers] if high >= -low else [-centers]  # |x| is all we know: put it on the wider side
        error = fake_quantize(sides[0], by_tensor, low, high) - sides[0]
        return float((self.counts * error.double() ** 2).sum())


class Entropy(Histogram):
    """The threshold that keeps the distribution most alike, by KL divergence (Migacz 2017, NVIDIA TensorRT).

    For each candidate, P is the histogram with all outliers put into its last bin, Q the same histogram without
    them at the resolution of the integers, and KL(P ‖ Q) is what quantisation would lose.
    """

    def threshold(self, scheme: Scheme) -> float:
        levels = 2 ** (scheme.bits - 1)
        candidates = range(levels, BINS + 1, max(1, BINS // 128))
        losses = [divergence(self.counts, bins, levels) for bins in candidates]
        return candidates[losses.index(min(losses))] * self.width


def divergence(counts: Tensor, bins: int, levels: int) -> float:
    """KL(P ‖ Q) when the first ``bins`` of a histogram are kept and shown in ``levels`` steps; inf if Q misses some."""
    inside = counts[:bins]
    p = inside.clone()
    p[-1] += counts[bins:].sum()
    step = torch.arange(bins) * levels // bins  # which level each bin falls into
    filled = (inside > 0).double()
    sums = torch.zeros(levels, dtype=torch.float64).index_add(0, step, inside)
    used = torch.zeros(levels, dtype=torch.float64).index_add(0, step, filled)
    q = filled * (sums / used.clamp(min=1))[step]  # each level's count, shared among its bins that are not empty
    p, q = p / p.sum(), q / q.sum().clamp(min=1)
    there = p > 0
    if bool((q[there] == 0).any()):
        return math.inf
    return float((p[there] * (p[there] / q[there]).log()).sum())


OBSERVERS: dict[str, Callable[[], MinMax]] = {
    "min-max": MinMax,
    "moving-average": MovingAverage,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": MSE,
}


def watch_inputs(
    model: nn.Module, names: Iterable[str], batches: Iterable[Mapping[str, Any]], see: Callable[[str, Tensor], None]
) -> None:
    """Run ``batches`` through the model and call ``see(name, x)`` with what each named module gets as input.

    Padding positions are left out where the batch has an attention_mask (B, T) and x is (B, T, K): nothing that
    is computed there matters, and it must not widen a range. x arrives as (rows, K).
    """
    mask: Tensor | None = None

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach()
            if mask is not None and x.shape[:-1] == mask.shape:
                x = x[mask]
            see(name, x.reshape(-1, x.size(-1)))

        return before

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    count = 0
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
                model(**{key: value for key, value in batch.items() if key != "labels"})
                count += 1
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if count == 0:
        raise QuantizationError("this recipe looks at real inputs; give calibration batches from the training data")
