"""What becomes of a crawl, and what the choices cost: the figures of lab 01 and its widgets.

Every function draws from plain numbers that the notebook computed; titles say what is in them.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pangu_lab.data.corpus import Report
from pangu_lab.data.dedup import collision_probability
from pangu_lab.tasks.metrics import Metric
from pangu_lab.viz import BLACK, BLUE, GRAY, ORANGE, SKY, figure, finding, png


def funnel_figure(skipped: int, reports: Sequence[Report]) -> Figure:
    """Documents and characters left after each step; the skipped files stand first."""
    drawn, (left, right) = figure(1, 2, figsize=(8, 3.4), width_ratios=(3, 2), sharey=True)
    start = reports[0].before
    names = ["found", "readable", *(report.step for report in reports)]
    documents = [start + skipped, start, *(report.after for report in reports)]
    characters = [np.nan, reports[0].characters_before, *(report.characters_after for report in reports)]
    rows = np.arange(len(names))[::-1]
    left.barh(rows, documents, color=BLUE, height=0.62)
    lost = -np.diff([documents[0], *documents])
    left.barh(rows, lost, left=documents, color=SKY, height=0.62)
    for row, count, gone in zip(rows, documents, lost, strict=True):
        text = f"{count:,}" + (f"  (−{gone:,})" if gone else "")
        left.annotate(text, (count + gone, row), (4, -3), textcoords="offset points", fontsize=9)
    left.set_xlim(0, 1.28 * documents[0])
    left.set_yticks(rows, names)
    left.set_xlabel("documents (light: removed in this step)")
    right.barh(rows, np.array(characters) / 1e6, color=ORANGE, height=0.62)
    right.set_xlabel("characters (millions)")
    most = max(reports, key=lambda report: report.before - report.after)
    share = documents[-1] / documents[0]
    told = f"{share:.0%} of the texts found are left at the end; the step that removes most is “{most.step}”"
    finding(drawn, told + f" ({most.before - most.after:,} documents)")
    return drawn


def banding_figure(similarity: np.ndarray, bands: int, rows: int, threshold: float) -> Figure:
    """Similar pairs by their exact Jaccard similarity, and the probability that bands propose them."""
    drawn, axes = figure(figsize=(8, 3.5))
    s = np.linspace(0, 1, 401)
    axes.hist(similarity, np.linspace(0, 1, 41), color=GRAY)
    axes.set_xlabel("exact Jaccard similarity of a pair")
    axes.set_ylabel("pairs of this crawl (log scale)")
    axes.set_yscale("symlog", linthresh=1)
    curve = axes.twinx()
    curve.plot(s, collision_probability(s, bands, rows), color=BLUE, label=f"proposed, b = {bands}, r = {rows}")
    curve.axvline(threshold, color=ORANGE, linestyle="--", linewidth=1.4, label=f"threshold {threshold:g}")
    half = (1 / bands) ** (1 / rows)
    curve.axvline(half, color=BLACK, linestyle=":", linewidth=1.4, label=f"(1/b)^(1/r) = {half:.2f}")
    curve.set_ylim(0, 1.03)
    curve.set_ylabel("probability of being proposed")
    curve.grid(False)
    curve.legend(loc="center left", fontsize=8.5, frameon=True, facecolor="white", framealpha=0.9)
    p = collision_probability(similarity, bands, rows)
    above = similarity >= threshold
    found = float(p[above].mean()) if above.any() else float("nan")
    told = f"{bands} bands of {rows} rows are expected to propose {found:.1%} of the {above.sum():,} pairs from "
    told += f"{threshold:g} on, and {p[~above].sum():,.0f} pairs below it, which an exact comparison must turn down"
    finding(drawn, told)
    return drawn


def banding_explorer(similarity: np.ndarray, bands: int = 20, rows: int = 6, threshold: float = 0.8) -> Any:
    """Sliders over ``banding_figure``."""
    import ipywidgets as widgets

    wide = {"width": "420px"}
    b = widgets.IntSlider(description="bands b", min=1, max=64, value=bands, layout=wide)
    r = widgets.IntSlider(description="rows r", min=1, max=16, value=rows, layout=wide)
    t = widgets.FloatSlider(description="threshold", min=0.3, max=1.0, step=0.05, value=threshold, layout=wide)
    image = widgets.Image(format="png")

    def redraw(_: Any = None) -> None:
        image.value = png(banding_figure(similarity, b.value, r.value, t.value))

    for slider in (b, r, t):
        slider.observe(redraw, "value")
    redraw()
    return widgets.VBox([b, r, t, image])


def pieces_html(text: str, cut: Callable[[str], list[str]]) -> str:
    """A text's pieces as colored boxes; a piece inside a word is lighter, an unknown word is orange."""
    boxes = []
    for piece in cut(text):
        color = "#f6c88f" if piece == "[UNK]" else "#e3f0fa" if piece.startswith("##") else "#a8d3ee"
        boxes.append(f'<span style="background:{color};color:#111;padding:2px 5px;margin:2px;border-radius:3px;'
                     f'display:inline-block;font-family:monospace">{escape(piece)}</span>')  # fmt: skip
    return f'<div style="line-height:2">{"".join(boxes)}</div>'


def pieces_box(cuts: Mapping[str, Callable[[str], list[str]]], text: str) -> Any:
    """Type a text and see its pieces under each vocabulary."""
    import ipywidgets as widgets

    box = widgets.Text(value=text, layout={"width": "720px"}, continuous_update=True)
    shown = {name: widgets.HTML() for name in cuts}

    def redraw(_: Any = None) -> None:
        for name, cut in cuts.items():
            shown[name].value = f"<b>{escape(name)}</b>: {len(cut(box.value))} pieces" + pieces_html(box.value, cut)

    box.observe(redraw, "value")
    redraw()
    return widgets.VBox([box, *shown.values()])


def vocabulary_figure(table: Mapping[int, tuple[float, float]], width: int, where: str) -> Figure:
    """Pieces per word and parameters of the embedding by vocabulary size; ``table[size]`` is (pieces, whole words)."""
    drawn, (left, right) = figure(1, 2, figsize=(8, 3.2))
    sizes = sorted(table)
    left.plot(sizes, [table[size][0] for size in sizes], "o-", color=BLUE)
    left.axhline(1, color=GRAY, linestyle="--", linewidth=1.2)
    left.set_ylabel("pieces per word")
    left.set_ylim(bottom=0.9)
    right.plot(sizes, [width * size / 1e6 for size in sizes], "s-", color=ORANGE)
    right.set_ylabel(f"embedding parameters\n(millions; {width} a piece)")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45, fontsize=8)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("pieces in the vocabulary")
    first, last = sizes[0], sizes[-1]
    told = f"{last / first:.0f} times as many pieces make a text {table[first][0] / table[last][0]:.1f} times as short"
    told += f"; {table[last][1]:.0%} of the running words are one piece then ({where})"
    finding(drawn, told)
    return drawn


def stop_words_figure(slices: Mapping[str, Mapping[str, Metric]], tested: str) -> Figure:
    """Accuracy with and without stop words on each slice: ``slices[slice][way]``."""
    drawn, axes = figure(figsize=(8, 1.6 + 0.45 * sum(map(len, slices.values()))))
    ways = list(next(iter(slices.values())))
    colors = dict(zip(ways, (BLUE, ORANGE, GRAY), strict=False))
    names: list[tuple[float, str]] = []
    row = 0.0
    for name, table in slices.items():
        for way, metric in table.items():
            axes.hlines(row, metric.low, metric.high, color=colors[way], linewidth=2.5)
            label = way if not names else None
            axes.plot(metric.value, row, "os"[ways.index(way) % 2], color=colors[way], linestyle="", label=label)
            row -= 0.5
        names.append((row + 0.25 + 0.25 * len(table), name))
        if len(names) == 1:
            axes.legend(*_first_of(axes, colors), loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(ways))
        row -= 0.5
    axes.set_yticks([at for at, _ in names], [name for _, name in names])
    axes.set_xlabel(f"accuracy, 95 % interval ({tested})")
    axes.grid(False, axis="y")
    changes = {name: 100 * (table[ways[1]].value - table[ways[0]].value) for name, table in slices.items()}
    finding(
        drawn,
        f"{ways[1].capitalize()}: "
        + "; ".join(f"{c:+.1f} points on {n.replace(chr(10), ' ')}" for n, c in changes.items()),
    )
    return drawn


def _first_of(axes: Any, colors: Mapping[str, str]) -> tuple[list[Any], list[str]]:
    handles = [axes.plot([], [], "os"[i % 2], color=color)[0] for i, color in enumerate(colors.values())]
    return handles, list(colors)


def duplicates_figure(shares: Sequence[float], losses: Mapping[str, Sequence[Sequence[float]]], trained: str) -> Figure:
    """Loss by the share of the training bytes that are copies: one line each of ``losses``, (share, seed)."""
    drawn, axes = figure(figsize=(8, 3.3))
    for (name, table), color, mark in zip(losses.items(), (BLUE, ORANGE), "os", strict=False):
        values = np.array(table)
        axes.plot(100 * np.array(shares), values.mean(axis=1), mark + "-", color=color, label=name)
        axes.fill_between(100 * np.array(shares), values.min(axis=1), values.max(axis=1), color=color, alpha=0.2)
    axes.set_xlabel(f"share of the training bytes that are copies (%; {trained})")
    axes.set_ylabel("loss (bits per byte)")
    axes.legend()
    first, last = (np.mean(next(iter(losses.values()))[i]) for i in (0, -1))
    name = next(iter(losses))
    finding(
        drawn, f"With {shares[-1]:.0%} copies, the loss on {name} is {last:.2f} bits per byte instead of {first:.2f}"
    )
    return drawn
