"""Pruning seen: which weights go, what is left of the accuracy, which heads matter, what became faster. Lab 09.

Pure functions that draw, and one widget that calls the first of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pangu_lab.tasks.metrics import Metric
from pangu_lab.viz import BLACK, BLUE, GRAY, GREEN, ORANGE, RED, figure, finding, png

SAMPLE = 4096  # weights of each matrix that a figure looks at: a slider must be quick
PARTS = ("query", "key", "value", "attention out", "up", "down")
MARKS = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "^", "-."), (RED, "D", ":"), (BLACK, "v", "-"))


def sample_magnitudes(weights: Sequence[Any], seed: int = 0) -> np.ndarray:
    """Sorted magnitudes (matrices, ``SAMPLE``) drawn from each matrix, for ``histogram_figure``."""
    generator = np.random.default_rng(seed)
    drawn = []
    for weight in weights:
        flat = np.abs(weight.detach().cpu().numpy().ravel())
        drawn.append(np.sort(flat[generator.integers(0, len(flat), SAMPLE)]))
    return np.stack(drawn)


def histogram_figure(magnitudes: np.ndarray, sparsity: float) -> Figure:
    """Magnitudes of all weights with the global threshold, and the share that each matrix then loses.

    ``magnitudes`` is (6 · layers, samples), layer by layer, in the order of ``PARTS``.
    """
    threshold = float(np.quantile(magnitudes, sparsity))
    lost = (
        (magnitudes <= threshold).mean(axis=1).reshape(-1, len(PARTS))
        if sparsity
        else np.zeros((len(magnitudes) // 6, 6))
    )
    drawn, (left, right) = figure(1, 2, figsize=(8, 3.6), width_ratios=(1.15, 1))
    edges = np.linspace(0, float(np.quantile(magnitudes, 0.998)), 61)
    counts, _ = np.histogram(magnitudes, edges)
    shares = 100 * counts / magnitudes.size
    colors = [GRAY if edge < threshold else BLUE for edge in edges[:-1]]
    left.bar(edges[:-1], shares, width=edges[1], align="edge", color=colors, linewidth=0)
    left.axvline(threshold, color=ORANGE, linewidth=2)
    left.annotate(f"threshold {threshold:.3f}", (threshold, 1), (5, -10), xycoords=("data", "axes fraction"),
                  textcoords="offset points", fontsize=9, color=BLACK)  # fmt: skip
    left.set_xlabel("magnitude of a weight (no unit)")
    left.set_ylabel("share of all weights (%)")
    image = right.imshow(100 * lost, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    right.set_xticks(range(len(PARTS)), PARTS, rotation=30, ha="right", rotation_mode="anchor", fontsize=8.5)
    right.set_yticks(range(len(lost)), [f"layer {i}" for i in range(len(lost))], fontsize=8.5)
    right.grid(visible=False)
    for (row, column), value in np.ndenumerate(100 * lost):
        right.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
                   color="white" if value < 60 else "black")  # fmt: skip
    drawn.colorbar(image, ax=right, label="zeros in the matrix (%)")
    low, high = 100 * lost.min(), 100 * lost.max()
    told = f"One threshold for {100 * sparsity:.0f} % of all weights takes {low:.0f} % of one matrix and {high:.0f} % of another"
    finding(drawn, told if sparsity else "Nothing is pruned yet: move the threshold")
    return drawn


def curves_figure(
    curves: Mapping[str, Mapping[float, Metric]], dense: Metric, tested: str, axis: str, told: str
) -> Figure:
    """Accuracy with its interval by the share that is gone, a line for each method; ``dense`` is the whole model."""
    drawn, axes = figure(figsize=(8, 4))
    axes.axhspan(dense.low, dense.high, color=GRAY, alpha=0.2, linewidth=0)
    axes.axhline(dense.value, color=GRAY, linewidth=1.2)
    axes.annotate(f"whole model {dense.value:.3f}, its interval gray", (1, dense.high), (-4, 4), fontsize=8.5,
                  xycoords=("axes fraction", "data"), textcoords="offset points", ha="right")  # fmt: skip
    for number, (name, points) in enumerate(curves.items()):
        color, marker, line = MARKS[number % len(MARKS)]
        shares = sorted(points)
        x = np.array([100 * share for share in shares]) + 0.5 * (number - (len(curves) - 1) / 2)  # side by side
        axes.vlines(x, [points[s].low for s in shares], [points[s].high for s in shares], color=color, linewidth=1.5)
        axes.plot(x, [points[s].value for s in shares], marker=marker, linestyle=line, color=color, label=name)
    axes.axhline(0.5, color=BLACK, linewidth=0.8, linestyle=":")
    axes.annotate("a coin", (0.5, 0.5), (0, -11), xycoords=("axes fraction", "data"), textcoords="offset points",
                  fontsize=8.5, ha="center")  # fmt: skip
    lowest = min([dense.low, *(point.low for points in curves.values() for point in points.values())])
    axes.set_ylim(min(0.38, lowest - 0.03), None)
    axes.set_xlabel(axis)
    axes.set_ylabel(f"accuracy, 95 % interval\n({tested})", fontsize=9.5)
    axes.legend(loc="lower left", fontsize=9, framealpha=1, frameon=True, edgecolor="none")
    finding(drawn, told)
    return drawn


def heads_figure(importance: np.ndarray, removed: Mapping[int, Sequence[int]]) -> Figure:
    """Importance (layers, heads) as a map; removed heads are crossed out."""
    layers, heads = importance.shape
    drawn, axes = figure(figsize=(8, 0.9 + 0.42 * layers))
    image = axes.imshow(importance, cmap="cividis", aspect="auto", vmin=0)
    for layer, gone in removed.items():
        axes.plot(list(gone), [layer] * len(gone), "x", color="white", markersize=9, markeredgewidth=3.4)
        axes.plot(list(gone), [layer] * len(gone), "x", color=RED, markersize=8, markeredgewidth=1.8)
    axes.set_xticks(range(heads))
    axes.set_yticks(range(layers))
    axes.set_xlabel("head (crossed out: removed)")
    axes.set_ylabel("layer")
    axes.grid(visible=False)
    drawn.colorbar(image, ax=axes, label="importance\n(norm 1 a layer)")
    count = sum(len(gone) for gone in removed.values())
    if not count:
        finding(drawn, f"The most important of {layers * heads} heads is head {np.argmax(importance) % heads} of layer "
                       f"{np.argmax(importance) // heads}")  # fmt: skip
        return drawn
    share = sum(importance[layer, list(gone)].sum() for layer, gone in removed.items()) / importance.sum()
    most = max(removed, key=lambda layer: len(removed[layer]))
    finding(drawn, f"{count} of {layers * heads} heads hold {100 * share:.0f} % of the importance; layer {most} loses "
                   f"most of them, {len(removed[most])}")  # fmt: skip
    return drawn


def latency_figure(times: Mapping[str, Any], what: str, told: str) -> Figure:
    """Median latencies with their quartiles; the first name is what the others are compared with."""
    names = list(times)
    drawn, axes = figure(figsize=(8, 1.3 + 0.4 * len(names)))
    base = times[names[0]]
    widest = max(float(np.percentile(t.times, 75)) for t in times.values())
    for row, name in enumerate(reversed(names)):
        low, middle, high = np.percentile(times[name].times, [25, 50, 75])
        ratio = float(np.median(np.array(base.times) / np.array(times[name].times)))
        axes.barh(row, middle, height=0.6, color=GRAY if name == names[0] else BLUE)
        axes.plot([low, high], [row, row], color=BLACK, linewidth=2, linestyle="-")
        axes.annotate(f"{middle:.3g} ms" + ("" if name == names[0] else f", {ratio:.2f}×"), (high, row), (6, 0),
                      textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_xlim(0, 1.25 * widest)
    axes.set_xlabel(f"milliseconds, median and quartiles ({what})")
    axes.grid(axis="y", visible=False)
    finding(drawn, told)
    return drawn


def schedule_figure(schedule: Any, end: int, final: float) -> Figure:
    """Sparsity by step of a schedule ``schedule(step, begin, end, final, initial)``, and what each step takes."""
    drawn, axes = figure(figsize=(8, 2.8))
    steps = np.arange(0, int(1.4 * end) + 1)
    values = np.array([schedule(int(step), 0, end, final, 0.0) for step in steps])
    axes.plot(steps, 100 * values, color=BLUE, label="your schedule")
    axes.plot(steps, 100 * final * np.minimum(1, steps / end), color=GRAY, linestyle="--", label="a straight line")
    axes.set_xlabel("training step")
    axes.set_ylabel("zeros (%)")
    axes.legend(loc="lower right")
    half = float(np.interp(end / 2, steps, values))
    finding(
        drawn,
        f"Halfway, {100 * half:.0f} of the final {100 * final:.0f} % are gone; from step {end} on the model only recovers",
    )
    return drawn


def sparsity_slider(magnitudes: np.ndarray, sparsity: float = 0.5) -> Any:
    """A slider over ``histogram_figure``."""
    import ipywidgets as widgets

    slider = widgets.FloatSlider(description="sparsity", min=0, max=0.99, step=0.01, value=sparsity,
                                 layout={"width": "480px"})  # fmt: skip
    image = widgets.Image(format="png")

    def redraw(_: Any = None) -> None:
        image.value = png(histogram_figure(magnitudes, slider.value))

    slider.observe(redraw, "value")
    redraw()
    return widgets.VBox([slider, image])
