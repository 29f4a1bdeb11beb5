"""What quantisation does to weights, activations, speed and accuracy: the figures of lab 11 and its widget.

Every function draws from plain arrays and tables that the notebook computed; titles say what is in them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pangu_lab.tasks.metrics import Metric
from pangu_lab.viz import BLACK, BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, figure, finding, png


@dataclass(frozen=True)
class Measured:
    """One way to store the model: size in MB, latency in ms, accuracy, share of labels that agree with float."""

    megabytes: float
    p50: float
    p95: float
    accuracy: Metric
    agreement: float


@dataclass(frozen=True)
class AtBits:
    """The model with weights of some bits: relative error of the weights, accuracy."""

    error: float
    accuracy: Metric


def bits_figure(weights: np.ndarray, table: Mapping[int, AtBits], bits: int, level: float, tested: str) -> Figure:
    """One row of weights with the b-bit grid over it; beside it error and accuracy by bits. ``level`` is float's."""
    drawn, (left, right) = figure(1, 2, figsize=(8, 3.5), width_ratios=(3, 2))
    top = 2 ** (bits - 1) - 1
    step = float(np.abs(weights).max()) / top
    left.hist(weights, 60, color=GRAY)
    if bits <= 6:
        left.vlines(np.arange(-top, top + 1) * step, 0, 1, transform=left.get_xaxis_transform(), color=ORANGE,
                    linewidth=1, linestyle="-")  # fmt: skip
    left.set_xlabel("weight of one output channel")
    left.set_ylabel("count")
    left.set_title(f"{2 * top + 1} integers, one every {step:.2g}", fontweight="normal", fontsize=9.5)
    known = sorted(table)
    values = [table[b].accuracy for b in known]
    right.vlines(known, [v.low for v in values], [v.high for v in values], color=GRAY, linewidth=2)
    right.plot(known, [v.value for v in values], "o-", color=BLUE)
    right.axhline(level, color=ORANGE, linestyle="--", linewidth=1.2, label="float")
    if bits in table:
        right.plot(bits, table[bits].accuracy.value, "o", markersize=13, fillstyle="none", color=BLACK)
    right.set_xticks(known)
    right.set_xlabel("bits of each weight")
    right.set_ylabel("accuracy, 95 % interval")
    right.set_title(tested, fontweight="normal", fontsize=9.5)
    right.legend(loc="lower right")
    told = f"With {bits} bits, half a step is {step / 2 / float(weights.std()):.2g} of the weights' spread"
    if bits in table:
        told += f"; all weights together are off by {table[bits].error:.1%}, and the accuracy is "
        told += f"{table[bits].accuracy.value:.3f} (float: {level:.3f})"
    finding(drawn, told)
    return drawn


def bits_explorer(weights: np.ndarray, table: Mapping[int, AtBits], level: float, tested: str) -> Any:
    """A slider over ``bits_figure``; nothing is computed while it moves."""
    import ipywidgets as widgets

    slider = widgets.IntSlider(description="bits", min=min(table), max=max(table), value=4, layout={"width": "480px"})
    image = widgets.Image(format="png")

    def redraw(_: Any = None) -> None:
        image.value = png(bits_figure(weights, table, slider.value, level, tested))

    slider.observe(redraw, "value")
    redraw()
    return widgets.VBox([slider, image])


def outliers_figure(peaks: np.ndarray, where: str) -> Figure:
    """max|x| of each channel of one layer's input, the outliers marked."""
    drawn, axes = figure(figsize=(8, 3.2))
    middle = float(np.median(peaks))
    axes.bar(np.arange(len(peaks)), peaks, width=1.0, color=GRAY)
    largest = np.argsort(peaks)[::-1][:3]
    axes.bar(largest, peaks[largest], width=3.0, color=ORANGE)
    for channel in largest[:1]:
        axes.annotate(f"channel {channel}", (channel, peaks[channel]), (6, -4), textcoords="offset points", fontsize=9)
    axes.axhline(middle, color=BLUE, linestyle="--", linewidth=1.2, label=f"median {middle:.2g}")
    axes.set_xlabel(f"channel of the input ({where})")
    axes.set_ylabel("max |x|")
    axes.legend(loc="upper right")
    ratio = float(peaks.max()) / middle
    finding(drawn, f"The largest channel reaches {ratio:.1f} times the median channel: with one scale for all, the "
            f"median channel gets {127 / ratio:.0f} of 127 integers on each side")  # fmt: skip
    return drawn


def thresholds_figure(values: np.ndarray, thresholds: Mapping[str, float], where: str) -> Figure:
    """|activation| counted on a log scale, and where each way of calibrating would clip."""
    drawn, axes = figure(figsize=(8, 3.5))
    axes.hist(np.abs(values), 120, color=GRAY, log=True)
    styles = zip((BLUE, GREEN, RED, PURPLE, BLACK), ("-", "--", "-.", ":", (0, (5, 1))), strict=True)
    for (name, at), (color, style) in zip(thresholds.items(), styles, strict=False):
        axes.axvline(at, color=color, linestyle=style, linewidth=1.6, label=f"{name}: {at:.2f}")
    axes.set_xlabel(f"|x| ({where})")
    axes.set_ylabel("count")
    axes.legend(loc="upper center")
    low, high = min(thresholds, key=lambda n: thresholds[n]), max(thresholds, key=lambda n: thresholds[n])
    beyond = float((np.abs(values) > thresholds[low]).mean())
    finding(drawn, f"“{low}” clips {beyond:.2%} of the values and has steps {thresholds[high] / thresholds[low]:.1f} "
            f"times as fine as “{high}”")  # fmt: skip
    return drawn


def error_map_figure(errors: np.ndarray, layers: Sequence[str], parts: Sequence[str], method: str) -> Figure:
    """Relative output error of each linear layer alone, (layers, parts), in percent."""
    drawn, axes = figure(figsize=(8, 0.9 + 0.42 * len(layers)))
    percent = 100 * errors
    axes.imshow(percent, cmap="Blues", vmin=0, aspect="auto")
    for (row, column), value in np.ndenumerate(percent):
        color = "white" if value > 0.6 * percent.max() else BLACK
        axes.text(column, row, f"{value:.2g}", ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(parts)), parts)
    axes.set_yticks(range(len(layers)), layers)
    axes.grid(visible=False)
    axes.set_xlabel("relative error of the output, %")
    row, column = np.unravel_index(int(percent.argmax()), percent.shape)
    finding(drawn, f"{method}: {parts[int(column)]} of {layers[int(row)]} is off most, by {percent.max():.2g} %; the "
            f"median layer by {float(np.median(percent)):.2g} %")  # fmt: skip
    return drawn


def methods_figure(methods: Mapping[str, Measured], tested: str) -> Figure:
    """Size, latency and accuracy of every method side by side; the first method is the float model."""
    names = list(methods)[::-1]
    rows = np.arange(len(names))
    drawn, axes = figure(1, 3, figsize=(8, 1.3 + 0.34 * len(names)), sharey=True)
    found = [methods[name] for name in names]
    axes[0].barh(rows, [m.megabytes for m in found], color=GRAY)
    for row, m in zip(rows, found, strict=True):
        axes[0].annotate(f"{m.megabytes:.0f}", (m.megabytes, row), (3, -3), textcoords="offset points", fontsize=9)
    axes[0].set_xlim(0, 1.25 * max(m.megabytes for m in found))
    axes[0].set_xlabel("size (MB)")
    axes[0].set_yticks(rows, names)
    axes[1].hlines(rows, [m.p50 for m in found], [m.p95 for m in found], color=GRAY, linewidth=2.5)
    axes[1].plot([m.p50 for m in found], rows, "o", color=BLUE, linestyle="")
    axes[1].set_xlim(left=0)
    axes[1].set_xlabel("latency, p50 to p95 (ms)")
    axes[2].hlines(rows, [m.accuracy.low for m in found], [m.accuracy.high for m in found], color=GRAY, linewidth=2.5)
    axes[2].plot([m.accuracy.value for m in found], rows, "o", color=BLUE, linestyle="")
    axes[2].set_xlabel("accuracy, 95 % interval")
    first, *rest = methods
    smallest = min(rest, key=lambda name: methods[name].megabytes)
    fastest = min(methods, key=lambda name: methods[name].p50)
    worst = min(methods[name].accuracy.value for name in rest) - methods[first].accuracy.value
    told = f"Smallest: {smallest}, {methods[first].megabytes / methods[smallest].megabytes:.1f} times smaller than "
    told += (
        f"{first}. Fastest here: {fastest}. Largest change of accuracy downwards: {max(0.0, -100 * worst):.1f} points"
    )
    told += f" ({tested})"
    finding(drawn, told)
    return drawn
