"""The trade-off of compression: accuracy (or F1) against latency, size as area, the best ones joined."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pangu_lab.compression.measure import pareto_front
from pangu_lab.viz import BLUE, GRAY, ORANGE, figure, finding, number_points


def tradeoff_figure(measured: Sequence[Any], tested: str) -> Figure:
    """The metric with its interval against latency at the first shape; ``measured`` as ``compare`` gives them."""
    shape = next(iter(measured[0].latency))
    times = [one.latency[shape].p50 for one in measured]
    points = [(time, one.score.value) for time, one in zip(times, measured, strict=True)]
    best = sorted(pareto_front(points), key=lambda i: times[i])
    drawn, axes = figure(figsize=(8, 4.6), layout="constrained")
    axes.plot([times[i] for i in best], [points[i][1] for i in best], color=GRAY, zorder=1, label="nothing beats these")
    largest = max(one.bytes for one in measured)
    areas = [30 + 500 * one.bytes / largest for one in measured]
    for number, (time, one) in enumerate(zip(times, measured, strict=True)):
        color = BLUE if one is not measured[0] else ORANGE
        axes.plot([time, time], [one.score.low, one.score.high], color=color, lw=1.2, alpha=0.6, zorder=2)
        name = one.name if one.name.startswith(f"{number} ") else f"{number} {one.name}"
        told = f"{name}: {one.bytes / 1e6:.1f} MB, {one.speedup[shape][0]:.1f}×"
        axes.scatter(time, one.score.value, s=areas[number], color=color, alpha=0.75, zorder=3)
        axes.plot([], [], " ", label=told)
    number_points(axes, points, areas, first=0)
    axes.set_xscale("log")
    ticks = [t for t in np.array([1, 2, 5])[None, :] * 10.0 ** np.arange(-1, 4)[:, None]]
    flat = [float(t) for row in ticks for t in row if min(times) / 1.6 < t < max(times) * 1.8]
    axes.set_xticks(flat, [f"{t:g}" for t in flat])
    axes.minorticks_off()
    axes.set_xlim(min(times) / 1.3, max(times) * 1.9)
    axes.set_xlabel(f"latency, ms (batch {shape[0]}, {shape[1]} tokens, median)")
    axes.set_ylabel(f"{measured[0].metric}, with its 95 % interval")
    drawn.legend(loc="outside lower left", ncols=2, handlelength=1.2)
    last, first = measured[-1], measured[0]
    lost = 100 * (first.score.value - last.score.value)
    finding(
        drawn,
        f"{last.name}: {first.bytes / last.bytes:.1f} times smaller, {last.speedup[shape][0]:.1f} times faster, "
        f"{abs(lost):.1f} points {'lost' if lost >= 0 else 'won'} ({tested})",
    )
    return drawn
