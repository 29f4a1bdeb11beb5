"""Results seen: claims beside intervals, what a number of rows can tell, errors counted, every model at once. Lab 12.

Pure functions that draw, and one widget that calls the second of them.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pangu_lab.landscape import Point
from pangu_lab.paper import TITLES, Row, named, our_metric, published
from pangu_lab.tasks.metrics import wilson_interval
from pangu_lab.viz import BLACK, BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, SKY, figure, finding, number_points, png

_LOOKS = {"real": (BLUE, "o", "measured in full"), "part": (ORANGE, "s", "measured on a part, labelled so"),
          "bundled": (GREEN, "^", "measured on a bundled sample, labelled so")}  # fmt: skip


def claims_figure(rows: Sequence[Row], split: str = "test") -> Figure:
    """The paper's claims for one split, published figures, and ours with their intervals, in percent."""
    rows = [row for row in rows if row.claim.split == split]
    lines = list(dict.fromkeys((row.claim.task, row.claim.metric, row.claim.percent) for row in rows))
    drawn, axes = figure(figsize=(8, 1.9 + 0.36 * len(lines)))
    for y, (task, metric, percent) in enumerate(lines):
        known = [one.percent for one in published(task, our_metric(task, metric))]
        axes.plot(known, [y] * len(known), "|", color=GRAY, markersize=13, markeredgewidth=2)
        axes.plot(percent, y, "D", color="white", markeredgecolor=BLACK, markeredgewidth=1.5, markersize=7, zorder=4)
        ours = [row for row in rows if (row.claim.task, row.claim.metric) == (task, metric) and row.ours]
        for number, row in enumerate(ours):
            assert row.ours is not None
            color, marker, _ = _LOOKS[row.standing]
            height = y + 0.24 * (number + 1) / (len(ours) + 1)
            axes.plot([100 * row.ours.low, 100 * row.ours.high], [height] * 2, color=color, linestyle="-")
            axes.plot(100 * row.ours.value, height, marker, color=color, markersize=6)
    axes.set_yticks(range(len(lines)), [f"{TITLES[task]}, {named(metric)}" for task, metric, _ in lines], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("percent, with 95 % intervals")
    looks = [Line2D([], [], marker="D", color=BLACK, markerfacecolor="white", linestyle="", label="the paper's claim"),
             Line2D([], [], marker="|", color=GRAY, markeredgewidth=2, markersize=11, linestyle="",
                    label="published with the data set")]  # fmt: skip
    looks += [Line2D([], [], marker=marker, color=color, label=told)
              for kind, (color, marker, told) in _LOOKS.items() if any(row.standing == kind for row in rows)]  # fmt: skip
    axes.legend(handles=looks, loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=2, fontsize=9)
    finding(drawn, _told_of_claims(rows, len(lines)))
    return drawn


def _told_of_claims(rows: Sequence[Row], claims: int) -> str:
    above = [
        row.claim
        for row in rows
        if (known := published(row.claim.task, our_metric(row.claim.task, row.claim.metric)))
        and row.claim.percent > known[-1].percent
    ]
    full = {(row.claim.task, row.claim.metric) for row in rows if row.standing == "real"}
    within = {(r.claim.task, r.claim.metric) for r in rows if r.standing == "real" and "within our" in r.verdict}
    number = len({(claim.task, claim.metric) for claim in above})
    beyond = f"{number} of {claims} claims {'lies' if number == 1 else 'lie'} above every published figure"
    if not full:
        return f"{beyond}; no run in full has tested one yet"
    return f"{beyond}; of {len(full)} tested in full, {len(within)} lie within our interval"


def rows_needed(share: float, difference: float) -> int:
    """The fewest test rows whose Wilson interval around ``share`` is at most ``difference`` to each side, about."""
    low, high = 1, 10_000_000
    while low < high:
        middle = (low + high) // 2
        ends = wilson_interval(round(share * middle), middle)
        low, high = (low, middle) if (ends[1] - ends[0]) / 2 <= difference else (middle + 1, high)
    return low


def width_figure(rows: int, share: float = 0.945, claims: tuple[float, float] = (0.945, 0.948)) -> Figure:
    """The 95 % interval of an accuracy ``share`` by the number of test rows; and where those of two claims part."""
    drawn, axes = figure(figsize=(8, 3.4), layout="none")  # a slider waits for the layout
    drawn.subplots_adjust(left=0.1, right=0.95, bottom=0.16, top=0.82)
    counts = np.unique(np.geomspace(10, 100_000, 120).round().astype(int))
    ends = 100 * np.array([wilson_interval(round(share * n), int(n)) for n in counts])
    axes.fill_between(counts, ends[:, 0], ends[:, 1], color=SKY, alpha=0.4, linewidth=0)
    low, high = (100 * end for end in wilson_interval(round(share * rows), rows))
    axes.plot([rows, rows], [low, high], color=BLUE, linestyle="-", linewidth=3)
    axes.plot(rows, 100 * round(share * rows) / rows, "o", color=BLUE)
    axes.set(xscale="log", xlim=(10, 100_000), ylim=(60, 100))
    axes.set_xticks([10, 100, 1000, 10_000, 100_000], ["10", "100", "1,000", "10,000", "100,000"])
    axes.minorticks_off()
    axes.set_xlabel("test rows")
    axes.set_ylabel(f"accuracy (%), true share {100 * share:g} %")
    needed = rows_needed(claims[0], abs(claims[1] - claims[0]) / 2)
    finding(drawn, f"{rows:,} rows: {low:.1f} to {high:.1f} %, {high - low:.1f} points wide. Intervals of "
                   f"{100 * claims[0]:g} and {100 * claims[1]:g} part at about {float(f'{needed:.2g}'):,.0f}")  # fmt: skip
    return drawn


def rows_slider(rows: int = 200, share: float = 0.945) -> Any:
    """A slider over ``width_figure``."""
    import ipywidgets as widgets

    slider = widgets.SelectionSlider(
        description="test rows",
        options=[(f"{n:,}", n) for n in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_570, 12_284, 25_000, 100_000)],
        value=rows,
        layout={"width": "480px"},
    )
    image = widgets.Image(format="png")

    def redraw(_: Any = None) -> None:
        image.value = png(width_figure(slider.value, share))

    slider.observe(redraw, "value")
    redraw()
    return widgets.VBox([slider, image])


def difference_figure(means: np.ndarray, value: float, low: float, high: float, names: tuple[str, str]) -> Figure:
    """Resampled differences of two models, in points, with the interval and zero."""
    drawn, axes = figure(figsize=(8, 3))
    values, counts = np.unique(np.round(100 * means, 6), return_counts=True)
    if len(values) <= 80:  # differences of counts lie on a grid: bins that do not fit it would show stripes
        axes.bar(values, counts, width=np.diff(values).min(initial=1.0), color=SKY)
    else:
        axes.hist(100 * means, bins=30, color=SKY)
    axes.axvline(0, color=BLACK, linestyle=":")
    bottom = -0.05 * axes.get_ylim()[1]
    axes.plot([100 * low, 100 * high], [bottom] * 2, color=BLUE, linestyle="-", linewidth=4)
    axes.plot(100 * value, bottom, "o", color=BLUE, markersize=8)
    axes.set_xlabel(f"accuracy of {names[0]} minus that of {names[1]}, in points")
    axes.set_ylabel("resamples")
    ahead = names[0] if value > 0 else names[1]
    told = f"0 lies inside: the rows do not tell the two apart ({100 * low:+.1f} to {100 * high:+.1f})"
    if not low <= 0 <= high:
        told = (
            f"0 lies outside: {ahead} is ahead by {abs(100 * value):.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        )
    finding(drawn, told)
    return drawn


def overlap_figure(known: Mapping[str, float], claim: float) -> Figure:
    """Mean F1 of the answers that are not exact: published models and the claim; shares."""
    names = ["the paper's claim", *known]
    shares = [claim, *known.values()]
    drawn, axes = figure(figsize=(8, 1.1 + 0.38 * len(names)))
    axes.barh(names, [100 * share for share in shares], color=[ORANGE, *[BLUE] * len(known)], height=0.62)
    for y, share in enumerate(shares):
        axes.annotate(f"{100 * share:.0f} %", (100 * share, y), (5, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("mean F1 of the answers that are not exact (%)")
    ratio = min(known.values()) / claim if claim else float("inf")
    finding(
        drawn, f"Wrong answers usually overlap: every published model is at least {ratio:.0f} times above the claim"
    )
    return drawn


def taxonomy_figure(kinds: Sequence[str], rows: int) -> Figure:
    """Counted kinds of errors of ``rows`` that were read, each share with its Wilson interval."""
    counted = Counter(kinds).most_common()
    drawn, axes = figure(figsize=(8, 1.2 + 0.38 * len(counted)))
    for y, (name, count) in enumerate(counted):
        low, high = wilson_interval(count, rows)
        axes.barh(y, count, color=GRAY if name == "?" else BLUE, height=0.6)
        if name != "?":
            axes.plot([rows * low, rows * high], [y, y], color=BLACK, linestyle="-", linewidth=1.4)
    axes.set_yticks(range(len(counted)), ["not read yet" if name == "?" else name for name, _ in counted])
    axes.invert_yaxis()
    axes.set_xlim(0, rows + 0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"errors of {rows} that were looked at; lines: 95 % interval")
    read = [(name, count) for name, count in counted if name != "?"]
    unread = dict(counted).get("?", 0)
    told = f"{unread} of {rows} errors are not read yet: fill in the list" if unread else ""
    if read and not unread:
        low, high = wilson_interval(read[0][1], rows)
        told = f"Most frequent: {read[0][0]}, {read[0][1]} of {rows}; in all errors it may be {100 * low:.0f} to {100 * high:.0f} %"
    finding(drawn, told)
    return drawn


def landscape_figure(points: Sequence[Point]) -> Figure:
    """Accuracy with its interval against latency, size as area; a color for each set of test rows."""
    points = sorted(points, key=lambda one: (one.milliseconds, one.accuracy.value))
    rows = -(-len(points) // 2)
    drawn, axes = figure(figsize=(8, 4.2 + 0.2 * rows), layout="constrained")
    sets = list(dict.fromkeys(point.tested for point in points))
    colors = dict(zip(sets, (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, BLACK) * len(sets), strict=False))
    places = [(point.milliseconds, 100 * point.accuracy.value) for point in points]
    areas = [25 + 36 * math.sqrt(point.megabytes) for point in points]
    for point, (x, y), area in zip(points, places, areas, strict=True):
        interval = [100 * point.accuracy.low, 100 * point.accuracy.high]
        axes.plot([x, x], interval, color=colors[point.tested], linestyle="-", linewidth=1.2)
        axes.scatter(x, y, s=area, color=colors[point.tested], alpha=0.75, zorder=3, linewidth=0)
    number_points(axes, places, areas)
    axes.set_xscale("log")
    times = [x for x, _ in places]
    axes.set_xlim(min(times) / 1.6, max(times) * 1.6)
    ticks = [t * 10.0**e for e in range(-3, 4) for t in (1, 2, 5)]
    shown = [t for t in ticks if min(times) / 1.6 < t < max(times) * 1.6]
    axes.set_xticks(shown[:: 1 + len(shown) // 10], [f"{t:g}" for t in shown[:: 1 + len(shown) // 10]])
    axes.minorticks_off()
    axes.set_xlabel("milliseconds for one text of 128 tokens (median)")
    axes.set_ylabel("accuracy (%), 95 % interval")
    dots = [Line2D([], [], marker="o", linestyle="", color=colors[s], label=s) for s in sets]
    axes.legend(handles=dots, title="tested on (compare within a color only)", title_fontsize=9, fontsize=8.5)
    names = [
        Line2D([], [], linestyle="", label=f"{number}  {point.name}, {_size(point.megabytes)}")
        for number, point in enumerate(points, 1)
    ]
    drawn.legend(handles=names, loc="outside lower left", ncols=2, fontsize=8.5, handlelength=0, handletextpad=0)
    largest = max(sets, key=lambda one: sum(point.tested == one for point in points))
    finding(drawn, _told_of_points([point for point in points if point.tested == largest]))
    return drawn


def _size(megabytes: float) -> str:
    return f"{megabytes:.0f} MB" if megabytes >= 10 else f"{megabytes:.1f} MB"


def _told_of_points(points: Sequence[Point]) -> str:
    best = max(points, key=lambda point: point.accuracy.value)
    fast = min(points, key=lambda point: point.milliseconds)
    slow = max(points, key=lambda point: point.milliseconds)
    if fast is slow:
        return f"On {best.tested}, there is only {best.name} so far"
    other = slow if best.milliseconds < 1.5 * fast.milliseconds else fast
    lost, times = 100 * (best.accuracy.value - other.accuracy.value), best.milliseconds / other.milliseconds
    told = f"{times:.0f} times faster" if other is fast else f"{1 / times:.0f} times slower"
    return f"On {best.tested}: {best.name} is most accurate; {other.name} is {told} and {lost:.1f} points behind"
