"""Several models of a task side by side: size, speed, memory, accuracy or F1, agreement; the first is the one to beat.

Latencies are taken in turns (``measure.latency``), metrics on the same rows, and peak memory in a process
of its own for each model, because a process never gives all its memory back.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pangu_lab.compression.measure import (
    Latency,
    agreement,
    latency,
    parameters,
    pareto_front,
    peak_memory,
    ratio,
    size_on_disk,
)
from pangu_lab.compression.recipes import describe
from pangu_lab.compression.tasks import CompressionTask, load_compressed
from pangu_lab.errors import PanguLabError
from pangu_lab.machine import hardware, versions
from pangu_lab.tasks.metrics import Metric

NAMES = {"accuracy": "accuracy", "f1": "F1", "exact_match": "exact match"}
SHAPES = ((1, 128), (8, 128), (32, 128))  # (batch, length)


class CompareError(PanguLabError):
    """Models cannot be compared."""


@dataclass(frozen=True)
class Measured:
    """One model's figures. ``latency`` and ``speedup`` by (batch, length); ``speedup`` over the first model.

    ``metrics`` are the task's, the one that counts first; ``agreement`` is the share of predictions (labels, or
    texts of answers) that are those of the first model.
    """

    name: str
    shape: str
    bytes: int
    parameters: int
    latency: Mapping[tuple[int, int], Latency]
    speedup: Mapping[tuple[int, int], tuple[float, float, float]]
    metrics: Mapping[str, Metric]
    agreement: float
    peak_bytes: int

    @property
    def metric(self) -> str:
        """The name of the metric that counts, in words."""
        return NAMES[next(iter(self.metrics))]

    @property
    def score(self) -> Metric:
        """The metric that counts."""
        return next(iter(self.metrics.values()))

    def as_json(self) -> dict[str, Any]:
        """Plain data for a record."""
        times = {
            f"{batch}x{length}": {
                "p50_ms": round(taken.p50, 3),
                "p95_ms": round(taken.p95, 3),
                "texts_per_second": round(1000 * batch / taken.p50, 1),
                "speedup": [round(value, 3) for value in self.speedup[batch, length]],
                "times_ms": [round(value, 3) for value in taken.times],
            }
            for (batch, length), taken in self.latency.items()
        }
        return {
            "name": self.name,
            "shape": self.shape,
            "bytes": self.bytes,
            "parameters": self.parameters,
            "latency": times,
            **{name: vars(metric) for name, metric in self.metrics.items()},
            "agreement": round(self.agreement, 4),
            "peak_bytes": self.peak_bytes,
        }


def compare(
    folders: Mapping[str, Path],
    task: CompressionTask,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    repeats: int = 20,
    memory: bool = True,
    quiet: bool = True,
) -> list[Measured]:
    """Measure saved models of a task on its test rows and on the same inputs.

    Parameters
    ----------
    folders
        Name to a folder that ``save_compressed`` or ``fine_tune`` wrote; the first is the baseline.
    shapes
        Batch sizes and lengths to time, without padding; word ids are drawn from the smallest vocabulary.
    repeats
        Timed rounds a shape.
    """
    if not folders or not task.test_rows:
        raise CompareError("compare needs at least one model and one test row")
    subjects = {name: task.load(folder) for name, folder in folders.items()}
    for name, subject in subjects.items():
        longest = int(subject.model.config.max_position_embeddings)
        if any(length > longest for _, length in shapes):
            raise CompareError(f"{name}: reads at most {longest} tokens; give shorter shapes")
    words = min(int(subject.model.config.vocab_size) for subject in subjects.values())
    times = {shape: latency(_calls(subjects, shape, words), repeats) for shape in shapes}
    first = next(iter(folders))
    predicted: dict[str, np.ndarray] = {}
    measured = []
    for name, subject in subjects.items():
        metrics, predicted[name] = task.evaluate(subject, quiet)
        measured.append(
            Measured(
                name,
                describe(subject.model),
                size_on_disk(folders[name]),
                parameters(subject.model),
                {shape: taken[name] for shape, taken in times.items()},
                {shape: ratio(taken[first], taken[name]) for shape, taken in times.items()},
                {metric: metrics[metric] for metric in task.metrics},
                agreement(predicted[first], predicted[name]),
                peak_of(folders[name], shapes[0]) if memory else 0,
            )
        )
    return measured


def _calls(subjects: Mapping[str, Any], shape: tuple[int, int], words: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(999, words // 2), words, shape, generator=generator)
    mask = torch.ones_like(ids)
    return {
        name: lambda model=subject.model: model(input_ids=ids, attention_mask=mask)
        for name, subject in subjects.items()
    }


def peak_of(folder: Path, shape: tuple[int, int]) -> int:
    """Peak memory of loading a model and running it once, above that of a Python with everything imported."""
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from pangu_lab.compression import compare as c\n"
        "before = c.peak_memory()\n"
        "m = c.load_compressed(Path(sys.argv[1])).model\n"
        "ids = torch.ones(int(sys.argv[2]), int(sys.argv[3]), dtype=torch.long)\n"
        "with torch.inference_mode(): m(input_ids=ids, attention_mask=ids)\n"
        "print(c.peak_memory() - before)"
    )
    command = [sys.executable, "-c", code, str(folder), *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompareError(f"{folder}: cannot be run ({done.stderr.strip().splitlines()[-1]})")
    return int(done.stdout.split()[-1])


def table(measured: Sequence[Measured]) -> str:
    """A Markdown table of the figures, the best trade-offs marked."""
    shapes = list(measured[0].latency)
    heads = [f"{b} × {n}, ms (times faster)" for b, n in shapes]
    metrics = [f"{NAMES[name]} [95 %]" for name in measured[0].metrics]
    lines = [
        f"| model | size, MB | parameters, M | {' | '.join(heads + metrics)} | agreement | peak memory, MB |",
        "|" + "---|" * (5 + len(shapes) + len(metrics)),
    ]
    for one in measured:
        cells = [f"{one.latency[s].p50:.1f} ({one.speedup[s][0]:.2f})" for s in shapes]
        cells += [f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}]" for metric in one.metrics.values()]
        lines.append(
            f"| {one.name} | {one.bytes / 1e6:.1f} | {one.parameters / 1e6:.1f} | {' | '.join(cells)} "
            f"| {one.agreement:.4f} | {one.peak_bytes / 1e6:.0f} |"
        )
    return "\n".join(lines)


def record(measured: Sequence[Measured], rows: int, data: str, what: str) -> dict[str, Any]:
    """Everything measured, as plain data with versions and hardware."""
    first_shape = next(iter(measured[0].latency))
    points = [(one.latency[first_shape].p50, one.score.value) for one in measured]
    return {
        "what": what,
        "data": data,
        "test_rows": rows,
        "models": [one.as_json() for one in measured],
        "pareto": [measured[i].name for i in pareto_front(points)],
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "hardware": hardware(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


__all__ = [
    "SHAPES",
    "CompareError",
    "Measured",
    "compare",
    "load_compressed",
    "peak_memory",
    "peak_of",
    "record",
    "table",
]
