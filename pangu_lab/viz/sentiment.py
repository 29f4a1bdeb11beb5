"""Calibration, averages, labels, domains and edits: the figures of lab 07 and its widget.

Every function draws from arrays and numbers that the notebook computed; titles say what is in them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pangu_lab.tasks.calibration import (
    Bin,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
    with_temperature,
)
from pangu_lab.tasks.metrics import Metric
from pangu_lab.viz import BLACK, BLUE, GRAY, GREEN, ORANGE, figure, finding, png

# --- averages and intervals -------------------------------------------------------------------------


def resamples_figure(scores: np.ndarray, interval: tuple[float, float], value: float, tested: str) -> Figure:
    """A histogram of the scores of resampled rows, the interval, and the score of the rows as they are."""
    drawn, axes = figure(figsize=(8, 3.0))
    axes.hist(scores, 40, color=GRAY)
    for end in interval:
        axes.axvline(end, color=ORANGE, linestyle="--", linewidth=1.5)
    axes.axvline(value, color=BLUE, linewidth=2, linestyle="-")
    axes.set_xlabel(f"macro recall ({tested})")
    axes.set_ylabel(f"resamples, of {len(scores):,}")
    low, high = interval
    finding(
        drawn,
        f"Macro recall {value:.3f}; of {len(scores):,} resamples 95 % lie from {low:.3f} to {high:.3f}, "
        f"{100 * (high - low):.0f} points apart",
    )
    return drawn


def averages_figure(scores: Mapping[str, Mapping[str, float]], tested: str) -> Figure:
    """Accuracy and macro recall of each model side by side; outer keys are models."""
    drawn, axes = figure(figsize=(8, 1.5 + 0.42 * len(scores)))
    names = list(scores)[::-1]
    rows = np.arange(len(names))
    for name, color, shift, hatch in (("accuracy", GRAY, 0.18, ""), ("macro recall", BLUE, -0.18, "//")):
        values = [scores[model][name] for model in names]
        axes.barh(rows + shift, values, 0.34, color=color, hatch=hatch, edgecolor="white", label=name)
        for row, value in zip(rows, values, strict=True):
            axes.annotate(f"{value:.2f}", (value, row + shift), (3, -3), textcoords="offset points", fontsize=9)
    axes.set_yticks(rows, names)
    axes.set_xlim(0, 1)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"share ({tested})")
    axes.legend(loc="lower right")
    apart = {name: scores[name]["accuracy"] - scores[name]["macro recall"] for name in scores}
    most = max(apart, key=lambda name: abs(apart[name]))
    more = "more" if apart[most] > 0 else "less"
    points = round(100 * abs(apart[most]))
    told = f"Farthest apart: {most}, whose accuracy is {points} points {more} than its macro recall"
    finding(drawn, told if points else "On these test tweets accuracy and macro recall are the same")
    return drawn


# --- calibration ------------------------------------------------------------------------------------


def _draw_bins(axes: Any, bins: Sequence[Bin], total: int) -> None:
    axes.plot([0, 1], [0, 1], color=BLACK, linestyle=":", linewidth=1.2)
    for one in bins:
        axes.plot([one.confidence] * 2, [one.low, one.high], color=GRAY, linestyle="-", linewidth=2.5, zorder=1)
        axes.plot([one.confidence] * 2, [one.confidence, one.accuracy], color=ORANGE, linestyle="-", linewidth=1.2)
    sizes = [20 + 260 * one.count / total for one in bins]
    axes.scatter([one.confidence for one in bins], [one.accuracy for one in bins], s=sizes, color=BLUE, zorder=3)
    axes.set(xlim=(0.2, 1.02), ylim=(0, 1.03), xticks=(0.2, 0.4, 0.6, 0.8, 1), yticks=(0, 0.5, 1))
    axes.set_xlabel("confidence: mean highest probability")
    axes.set_ylabel("share of right labels")


def reliability_figure(panels: Mapping[str, np.ndarray], gold: Sequence[int], tested: str) -> Figure:
    """Reliability diagrams of several sets of probabilities of the same rows; dots grow with their rows."""
    drawn, all_axes = figure(1, len(panels), figsize=(4 * len(panels), 3.8), squeeze=False)
    errors = {}
    for axes, (name, probabilities) in zip(all_axes[0], panels.items(), strict=True):
        _draw_bins(axes, reliability(probabilities, gold), len(gold))
        errors[name] = expected_calibration_error(probabilities, gold)
        axes.set_title(f"{name}: calibration error {errors[name]:.3f}", fontweight="normal", fontsize=9.5)
    names = [*errors]
    first, last = names[0], names[-1]
    before, after = errors[first], errors[last]
    sure = float(panels[first].max(axis=1).mean())
    right = float((panels[first].argmax(axis=1) == np.asarray(gold)).mean())
    told = f"{first}: {sure:.0%} sure on average and {right:.0%} right"
    if len(errors) > 1:
        told += f"; {last}, the calibration error goes from {before:.3f} to {after:.3f}"
    finding(drawn, f"{told} ({tested})")
    return drawn


def temperature_figure(
    test: np.ndarray,
    gold: Sequence[int],
    validation: np.ndarray,
    validation_gold: Sequence[int],
    temperature: float,
) -> Figure:
    """The reliability diagram of the test rows under a temperature, and the loss of both parts by temperature."""
    # A fixed layout: finding one takes longer than all the rest, and a slider waits for it.
    drawn, (left, right) = figure(1, 2, figsize=(8, 3.6), layout="none", width_ratios=(1, 1.15))
    drawn.subplots_adjust(left=0.08, right=0.99, bottom=0.16, top=0.85, wspace=0.27)
    now = with_temperature(test, temperature)
    _draw_bins(left, reliability(now, gold), len(gold))
    grid = np.exp(np.linspace(np.log(0.25), np.log(6), 40))
    best = {}
    for name, part, labels, color, style in (
        ("validation", validation, validation_gold, GREEN, "--"),
        ("test", test, gold, BLUE, "-"),
    ):
        losses = [negative_log_likelihood(with_temperature(part, float(t)), labels) for t in grid]
        best[name] = float(grid[int(np.argmin(losses))])
        right.plot(grid, losses, style, color=color, label=name)
    right.plot(temperature, negative_log_likelihood(now, gold), "o", color=BLACK, markersize=8)
    right.axhline(np.log(test.shape[1]), color=GRAY, linestyle=":", linewidth=1.2, label="guessing")
    right.set_xscale("log")
    right.set_xticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
    right.minorticks_off()
    right.set_xlabel("temperature")
    right.set_ylabel("loss (nats)")
    right.set_ylim(top=min(right.get_ylim()[1], 3 * np.log(test.shape[1])))
    right.legend(loc="upper right")
    finding(
        drawn,
        f"T = {temperature:.2f}: calibration error {expected_calibration_error(now, gold):.3f}; the loss is lowest at "
        f"{best['validation']:.2f} on validation, {best['test']:.2f} on test",
    )
    return drawn


def temperature_explorer(
    test: np.ndarray, gold: Sequence[int], validation: np.ndarray, validation_gold: Sequence[int]
) -> Any:
    """A slider over ``temperature_figure``."""
    import ipywidgets as widgets

    slider = widgets.FloatLogSlider(
        description="temperature", base=2, min=-2, max=2.5, step=0.1, value=1.0, layout={"width": "480px"}
    )
    image = widgets.Image(format="png")

    def redraw(_: Any = None) -> None:
        image.value = png(temperature_figure(test, gold, validation, validation_gold, slider.value))

    slider.observe(redraw, "value")
    redraw()
    return widgets.VBox([slider, image])


# --- labels, domains, edits -------------------------------------------------------------------------


def labels_figure(curves: Mapping[str, Mapping[int, Metric]], classes: int, tested: str) -> Figure:
    """Macro recall of each model by the number of its labels, with intervals."""
    drawn, axes = figure(figsize=(8, 3.6))
    styles = (("o-", BLUE), ("s--", ORANGE), ("^:", GREEN))
    for (name, points), (style, color) in zip(curves.items(), styles, strict=False):
        sizes = sorted(points)
        axes.vlines(sizes, [points[n].low for n in sizes], [points[n].high for n in sizes], color=color, alpha=0.4)
        axes.plot(sizes, [points[n].value for n in sizes], style, color=color, label=name)
    axes.axhline(1 / classes, color=GRAY, linestyle=":", label="guessing")
    every = sorted({n for points in curves.values() for n in points})
    axes.set_xscale("log")
    axes.set_xticks(every, [f"{n:,}" for n in every])
    axes.minorticks_off()
    axes.set_xlabel(f"labeled training tweets ({tested})")
    axes.set_ylabel("macro recall")
    axes.legend(loc="best")
    few = every[0]
    told = f"With {few:,} labels: "
    told += ", ".join(f"{name} {points[few].value:.2f}" for name, points in curves.items() if few in points)
    told += f"; with {every[-1]:,}: "
    told += ", ".join(f"{name} {points[every[-1]].value:.2f}" for name, points in curves.items() if every[-1] in points)
    finding(drawn, told)
    return drawn


def domains_figure(
    matrices: Mapping[str, Mapping[tuple[str, str], Metric]], domains: Sequence[str], tested: str
) -> Figure:
    """For each model accuracy by training (row) and test domain (column); ``(trained, tested)`` are the keys."""
    drawn, all_axes = figure(1, len(matrices), figsize=(4.1 * len(matrices), 3.6), squeeze=False)
    falls = {}
    for axes, (name, table) in zip(all_axes[0], matrices.items(), strict=True):
        values = np.array([[table[row, column].value for column in domains] for row in domains])
        axes.imshow(values, vmin=0.5, vmax=1, cmap="Blues", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            one = table[domains[row], domains[column]]
            text = f"{value:.2f}\n[{one.low:.2f}, {one.high:.2f}]"
            color = "white" if value > 0.78 else BLACK
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=color)
        axes.set_xticks(range(len(domains)), domains)
        axes.set_yticks(range(len(domains)), domains, rotation=90, va="center")
        axes.set_xlabel("tested on")
        axes.set_ylabel("trained on")
        axes.set_title(f"{name}, accuracy; {tested}", fontweight="normal", fontsize=9)
        axes.grid(visible=False)
        home = float(np.mean(np.diag(values)))
        away = float(values[~np.eye(len(domains), dtype=bool)].mean())
        falls[name] = (home, away)
    told = "; ".join(f"{name}: {home:.2f} at home, {away:.2f} abroad" for name, (home, away) in falls.items())
    finding(drawn, f"{told} (means)")
    return drawn


def flips_figure(flips: Mapping[str, Mapping[str, Metric]], tested: str) -> Figure:
    """How often a model changes its mind: methods by group of texts; outer keys are methods."""
    methods = list(flips)
    groups = list(flips[methods[0]])
    drawn, axes = figure(figsize=(8, 3.4))
    width = 0.8 / len(groups)
    looks = ((BLUE, ""), (ORANGE, "//"), (GRAY, ".."))
    for number, (group, (color, hatch)) in enumerate(zip(groups, looks, strict=False)):
        found = [flips[method][group] for method in methods]
        at = np.arange(len(methods)) + (number - (len(groups) - 1) / 2) * width
        axes.bar(at, [m.value for m in found], 0.9 * width, color=color, hatch=hatch, edgecolor="white", label=group)
        axes.vlines(at, [m.low for m in found], [m.high for m in found], color=BLACK, linewidth=1)
    axes.set_xticks(range(len(methods)), methods)
    axes.set_ylabel("share of predictions that change")
    axes.set_xlabel(tested)
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="best")
    mean = {method: float(np.mean([m.value for m in flips[method].values()])) for method in methods}
    worst, mildest = max(mean, key=lambda m: mean[m]), min(mean, key=lambda m: mean[m])
    finding(drawn, f"{worst} changes the model's mind most, {mean[worst]:.0%} of the time; {mildest} least, "
            f"{mean[mildest]:.0%} (means of the groups)")  # fmt: skip
    return drawn


def claim_figure(
    published: Mapping[str, float], claim: float, rows: int, own: Mapping[str, Metric], where: str
) -> Figure:
    """Published macro recalls on one public test set, a claim, and own figures, which are of ``where``, hollow."""
    order = sorted(published, key=lambda name: published[name])
    names = [*own, *order, "the claim"]
    drawn, axes = figure(figsize=(8, 1.6 + 0.3 * len(names)))
    for row, name in enumerate(names):
        if name in own:
            metric = own[name]
            axes.plot([metric.low, metric.high], [row, row], color=GRAY, linestyle="-", linewidth=2.5, zorder=1)
            axes.plot(metric.value, row, "o", color=GREEN, markersize=7, markerfacecolor="white")
            value = metric.value
        else:
            value = claim if name == "the claim" else published[name]
            axes.plot(value, row, "D" if name == "the claim" else "o", color=ORANGE if name == "the claim" else BLUE,
                      markersize=7)  # fmt: skip
        axes.annotate(f"{value:.3f}", (value, row), (9, -3), textcoords="offset points", fontsize=9)
    axes.axhline(len(own) - 0.5, color=GRAY, linewidth=1, linestyle="-")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    low = min([*published.values(), *(metric.low for metric in own.values())])
    axes.set_xlim(min(0.5, low - 0.03), 1.02)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"macro recall on three classes\nblue: {rows:,} public test tweets; hollow: yours, {where}",
                    fontsize=9)  # fmt: skip
    best = order[-1]
    spread = published[best] - published[order[0]]
    finding(
        drawn,
        f"The claim stands {100 * (claim - published[best]):.0f} points above the best result listed; all listed "
        f"results lie within {100 * spread:.0f} points",
    )
    return drawn
