"""What a student takes over from its teacher: the figures of lab 10 and its widget.

Everything is a pure function that draws; ``temperature_explorer`` puts a slider over one of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pangu_lab.tasks.metrics import wilson_interval
from pangu_lab.viz import BLACK, BLUE, GRAY, GREEN, ORANGE, figure, finding, png


def softened(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities of logits ``(rows, labels)`` under a temperature."""
    scaled = logits / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def temperature_figure(
    teacher: np.ndarray, student: np.ndarray, temperature: float, names: Sequence[str], label: str, index: int = 1
) -> Figure:
    """Teacher's and student's probability of one label side by side, a pair of bars a text.

    ``teacher`` and ``student`` are logits ``(texts, labels)``; ``names`` says which text it is.
    """
    drawn, axes = figure(figsize=(8, 1.5 + 0.42 * len(names)))
    place = np.arange(len(names))[::-1]
    pairs = (("teacher", teacher, 0.2, BLUE), ("student", student, -0.2, ORANGE))
    for name, logits, shift, color in pairs:
        chance = softened(logits, temperature)[:, index]
        axes.barh(place + shift, chance, height=0.36, color=color, label=name)
        for y, value in zip(place + shift, chance, strict=True):
            axes.text(value + 0.008, y, f"{value:.2f}", va="center", fontsize=8.5)
    axes.axvline(0.5, color=BLACK, linestyle=":", linewidth=1)
    axes.set_yticks(place, list(names))
    axes.set_xlim(0, 1.1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"probability of {label} at T = {temperature:g}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    second = np.sort(softened(teacher, temperature), axis=-1)[:, :-1].sum(axis=-1).mean()
    plain = np.sort(softened(teacher, 1.0), axis=-1)[:, :-1].sum(axis=-1).mean()
    told = f"At T = {temperature:g} the teacher leaves {second:.3f} on average to the label it does not choose"
    finding(drawn, told if temperature == 1 else f"{told}; at T = 1 it is {plain:.3f}")
    return drawn


def temperature_explorer(
    teacher: np.ndarray, student: np.ndarray, names: Sequence[str], label: str, index: int = 1
) -> Any:
    """A slider over ``temperature_figure``."""
    import ipywidgets as widgets

    slider = widgets.FloatSlider(
        description="temperature", min=0.5, max=10, step=0.5, value=1.0, layout={"width": "480px"}
    )
    image = widgets.Image(format="png")

    def redraw(_: Any = None) -> None:
        image.value = png(temperature_figure(teacher, student, slider.value, names, label, index))

    slider.observe(redraw, "value")
    redraw()
    return widgets.VBox([slider, image])


def gradient_figure(sizes: Mapping[str, Mapping[float, float]], right: str, told_of: str) -> Figure:
    """The gradient's norm by temperature for several ways of writing the loss; ``right`` names the right one."""
    drawn, axes = figure(figsize=(8, 3.7))
    ends = []
    others = iter((ORANGE, BLACK, GREEN, GRAY))
    for name, values in sizes.items():
        temperatures = sorted(values)
        norms = [values[t] for t in temperatures]
        style: dict[str, Any] = {"color": BLUE, "linestyle": "-", "linewidth": 2.6}
        if name != right:
            style = {"color": next(others), "linestyle": "--"}
        axes.plot(temperatures, norms, marker="o", label=name, **style)
        ends.append((name, norms[-1] / norms[0]))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    temperatures = sorted(sizes[right])
    axes.set_xticks(temperatures, [f"{t:g}" for t in temperatures])
    axes.minorticks_off()
    axes.set_xlabel("temperature T")
    axes.set_ylabel(f"norm of the gradient\n({told_of})")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    changes = ", ".join(f"{change:.2g} ({name})" for name, change in ends)
    finding(
        drawn, f"From T = {temperatures[0]:g} to {temperatures[-1]:g} the gradient changes by a factor of {changes}"
    )
    return drawn


def runs_figure(
    runs: Mapping[str, Sequence[float]], rows: int, levels: Mapping[str, float], tested: str, compare: tuple[str, str]
) -> Figure:
    """Accuracies of each way of training: every seed, their mean and its interval for ``rows`` test texts.

    ``levels`` are drawn as lines, by name; ``compare`` names the two ways of which the title speaks.
    """
    names = list(runs)[::-1]
    drawn, axes = figure(figsize=(8, 1.6 + 0.42 * len(names)))
    for place, name in enumerate(names):
        mean = float(np.mean(runs[name]))
        low, high = wilson_interval(round(mean * rows), rows)
        axes.plot([low, high], [place, place], color=GRAY, linestyle="-", linewidth=2.5, zorder=1)
        axes.plot(runs[name], [place] * len(runs[name]), "o", color=BLACK, fillstyle="none", markersize=5, linestyle="")
        axes.plot(mean, place, "o", color=BLUE, markersize=8)
        axes.annotate(f"{mean:.3f}", (mean, place), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    for (name, level), color, style in zip(levels.items(), (GREEN, ORANGE, BLACK), ("--", ":", "-."), strict=False):
        axes.axvline(level, color=color, linestyle=style, linewidth=1.6, label=f"{name}, {level:.3f}")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.3)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"accuracy, mean of the seeds and its 95 % interval ({tested})")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    finding(drawn, compared(runs, rows, compare))
    return drawn


def compared(runs: Mapping[str, Sequence[float]], rows: int, names: tuple[str, str]) -> str:
    """One sentence on two ways of training: the difference of their means, and whether the intervals overlap."""
    (a, first), (b, second) = ((name, float(np.mean(runs[name]))) for name in names)
    ends = [wilson_interval(round(value * rows), rows) for value in (first, second)]
    apart = ends[0][0] > ends[1][1] or ends[1][0] > ends[0][1]
    gain = 100 * (second - first)
    if abs(gain) < 0.05:
        told = f"“{b}” and “{a}” are level"
    else:
        told = f"“{b}” is {abs(gain):.1f} points {'above' if gain > 0 else 'below'} “{a}”"
    return f"{told}; the intervals {'do not overlap' if apart else 'overlap'}"


@dataclass(frozen=True)
class Point:
    """A model as it would be shipped: size in MB, median latency in ms, accuracies by seed."""

    name: str
    megabytes: float
    milliseconds: float
    accuracies: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.accuracies))


def size_figure(teacher: Point, students: Sequence[Point], rows: int, tested: str, timed: str) -> Figure:
    """Accuracy against size and against latency; the title compares the most accurate student with the teacher."""
    drawn, both = figure(1, 2, figsize=(8, 3.8), sharey=True)
    for axes, key, unit in zip(both, ("megabytes", "milliseconds"), ("MB on disk", f"ms, {timed}"), strict=True):
        for number, point in enumerate((teacher, *students)):
            x, y = getattr(point, key), point.accuracy
            low, high = wilson_interval(round(y * rows), rows)
            color, marker = (GREEN, "*") if point is teacher else (BLUE, "o")
            axes.plot([x, x], [low, high], color=GRAY, linestyle="-", linewidth=2, zorder=1)
            axes.plot(x, y, marker, color=color, markersize=13 if point is teacher else 7, linestyle="")
            shift = (8, -12) if number % 2 else (-6, 8)  # neighbors are close: below and above in turns
            axes.annotate(point.name, (x, y), shift, textcoords="offset points", fontsize=8.5,
                          ha="left" if number % 2 else "right")  # fmt: skip
        axes.set_xlim(0, 1.3 * getattr(teacher, key))
        axes.set_xlabel(unit)
    both[0].set_ylabel("accuracy")
    both[0].set_title(tested, fontweight="normal", fontsize=9.5)
    best = max(students, key=lambda point: point.accuracy)
    faster, smaller = teacher.milliseconds / best.milliseconds, teacher.megabytes / best.megabytes
    gap = 100 * (teacher.accuracy - best.accuracy)
    ahead = f"{gap:.1f} points behind" if gap > 0.05 else f"{-gap:.1f} points ahead of" if gap < -0.05 else "level with"
    finding(drawn, f"{best.name}: {faster:.1f} times faster, {smaller:.1f} times smaller and {ahead} the teacher")
    return drawn


def unlabelled_figure(
    points: Mapping[int, Sequence[float]], level: tuple[str, float], rows: int, labelled: int, tested: str
) -> Figure:
    """Accuracy by the number of texts of which only the teacher's opinion is known; ``level`` is drawn as a line."""
    drawn, axes = figure(figsize=(8, 3.6))
    counts = sorted(points)
    means = [float(np.mean(points[n])) for n in counts]
    ends = [wilson_interval(round(mean * rows), rows) for mean in means]
    place = range(len(counts))
    axes.vlines(place, [low for low, _ in ends], [high for _, high in ends], color=GRAY, linewidth=2.5)
    axes.plot(place, means, "o-", color=BLUE)
    for x, mean in zip(place, means, strict=True):
        axes.annotate(f"{mean:.3f}", (x, mean), (8, 4), textcoords="offset points", fontsize=9)
    axes.axhline(level[1], color=ORANGE, linestyle="--", label=f"{level[0]}, {level[1]:.3f}")
    axes.legend(loc="lower right")
    axes.set_xticks(place, [f"+ {n:,}" for n in counts])
    axes.set_xlim(-0.3, len(counts) - 0.6)
    axes.set_xlabel(f"texts without a label, beside {labelled:,} labeled ones")
    axes.set_ylabel("accuracy")
    axes.set_title(tested, fontweight="normal", fontsize=9.5)
    gain = 100 * (means[-1] - means[0])
    apart = ends[-1][0] > ends[0][1] or ends[0][0] > ends[-1][1]
    does = "add" if gain > 0.05 else "cost" if gain < -0.05 else "change"
    told = f"{counts[-1]:,} texts without a label {does} {abs(gain):.1f} points in as many steps"
    finding(drawn, f"{told}; the intervals {'do not overlap' if apart else 'overlap'}")
    return drawn
