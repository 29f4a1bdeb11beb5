"""What compression gained and what it cost: size, latency, memory, accuracy, agreement.

Latencies of several models are taken in turns, round by round, because a machine is never equally busy for
two minutes: what slows one round slows every model in it, and their ratio stays true.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pangu_lab.errors import PanguLabError

WEIGHTS = (".safetensors", ".bin", ".pt", ".onnx", ".data")


class MeasureError(PanguLabError):
    """There is nothing that could be measured."""


@dataclass(frozen=True)
class Latency:
    """Times of one function, in milliseconds, in the order they were taken."""

    times: tuple[float, ...]

    @property
    def p50(self) -> float:
        return statistics.median(self.times)

    @property
    def p95(self) -> float:
        return float(np.percentile(self.times, 95))

    def __str__(self) -> str:
        return f"{self.p50:.1f} ms (p95 {self.p95:.1f}, {len(self.times)} runs)"


def latency(
    functions: Mapping[str, Callable[[], Any]], repeats: int = 20, warmup: int = 3, seconds: float | None = None
) -> dict[str, Latency]:
    """Time functions in turns.

    Parameters
    ----------
    functions
        Name to a function without arguments; run without gradients.
    repeats, warmup
        Timed rounds, and rounds before them that are not counted: the first calls compile and allocate.
    seconds
        Stop after the round in which this time was spent, with at least three rounds timed.

    Returns
    -------
    dict
        Name to ``Latency``. To compare two, use ``ratio``: it pairs the rounds.
    """
    if not functions or repeats < 1:
        raise MeasureError("latency needs at least one function and one repetition")
    wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    times: dict[str, list[float]] = {name: [] for name in functions}
    began = time.perf_counter()
    with torch.inference_mode():
        for number in range(warmup + repeats):
            for name, function in functions.items():
                started = time.perf_counter()
                function()
                wait()
                if number >= warmup:
                    times[name].append(1000 * (time.perf_counter() - started))
            if seconds and number >= warmup + 2 and time.perf_counter() - began > seconds:
                break
    return {name: Latency(tuple(taken)) for name, taken in times.items()}


def ratio(slow: Latency, fast: Latency) -> tuple[float, float, float]:
    """How many times faster: median over the rounds, and the quartiles around it."""
    ratios = [a / b for a, b in zip(slow.times, fast.times, strict=True)]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return float(middle), float(low), float(high)


def parameters(model: nn.Module) -> int:
    """Weights and biases, shared ones once; integer weights that stand in buffers, or are packed, count as well."""
    packed = sum(int(getattr(module, "parameter_count", 0)) for module in model.modules())
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.dtype in (torch.int8, torch.uint8))]
    return packed + sum({t.data_ptr(): t.numel() for t in tensors if t.numel()}.values())


def nonzero(model: nn.Module) -> int:
    """Parameters that are not zero."""
    distinct = {p.data_ptr(): p for p in model.parameters() if p.numel()}
    return sum(int(torch.count_nonzero(p)) for p in distinct.values())


def size_on_disk(model: nn.Module | Path) -> int:
    """Bytes of the weight files: of a saved model's folder, or of a model as its state would be saved.

    Raises
    ------
    MeasureError
        The folder holds no weight file.
    """
    if isinstance(model, nn.Module):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "state.pt"
            torch.save(model.state_dict(), file)
            return file.stat().st_size
    files = [file for file in Path(model).rglob("*") if file.suffix in WEIGHTS] if Path(model).is_dir() else []
    if not files:
        raise MeasureError(f"{model}: holds no weight file ({', '.join(WEIGHTS)}); give a saved model's folder")
    return sum(file.stat().st_size for file in files)


def agreement(a: Sequence[int] | np.ndarray, b: Sequence[int] | np.ndarray) -> float:
    """Share of equal predictions of two models on the same rows."""
    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape or not first.size:
        raise MeasureError(f"agreement needs two equally long lists of predictions; got {first.shape}, {second.shape}")
    return float((first == second).mean())


def pareto_front(points: Iterable[tuple[float, float]]) -> list[int]:
    """Indices of the points ``(cost, gain)`` that no other beats: none is cheaper and at least as good."""
    listed = list(points)
    return [
        i
        for i, (cost, gain) in enumerate(listed)
        if not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in listed)
    ]


def peak_memory() -> int:
    """The most memory this process has held, in bytes; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux getrusage counts what stood here before exec: the memory of whoever started us
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * 1024
