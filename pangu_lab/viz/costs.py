"""What the parts of a model cost, and what five architectures remember: the other figures of lab 03 and its widget.

``costs`` counts from the configuration alone, fast enough for a slider.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pangu_lab.viz import BLACK, BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, SKY, figure, finding, png


def number_text(n: float) -> str:
    """A large number as people say it: 1.18 M, 2.63 B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:,.0f}"


# --- where parameters and FLOPs sit -----------------------------------------------------------------

COST_PARTS = ("embeddings", "attention: projections", "attention: scores", "feed-forward", "norms", "output words")
COLORS = dict(zip(COST_PARTS, (ORANGE, BLUE, SKY, GREEN, GRAY, PURPLE), strict=True))


@dataclass(frozen=True)
class Cost:
    """Parameters of a part, and floating-point operations of its forward pass for one token."""

    parameters: int
    flops: float


def costs(config: Any, length: int) -> dict[str, Cost]:
    """What each part of an encoder, or of a decoder alone, costs for one token of a text of ``length``.

    A multiplication with its addition counts as two operations; only matrix products are counted, the rest is
    about one in a hundred. The output words share the embeddings' table: operations, but no parameters.
    """
    d, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    segments = 0 if config.is_decoder else config.type_vocab_size
    tables = (config.vocab_size + config.max_position_embeddings * (1 + config.query_layer) + segments) * d
    return {
        "embeddings": Cost(tables, 0.0),
        "attention: projections": Cost(layers * (4 * d * d + 4 * d), layers * 8.0 * d * d),
        "attention: scores": Cost(0, layers * 4.0 * length * d),
        "feed-forward": Cost(layers * (2 * d * f + f + d), layers * 4.0 * d * f),
        "norms": Cost((2 * layers + 1) * 2 * d, 0.0),
        "output words": Cost(0, 2.0 * config.vocab_size * d),
    }


def breakdown_figure(config: Any, length: int) -> Figure:
    """Shares of the parameters and of a token's FLOPs, one bar each."""
    parts = costs(config, length)
    drawn, axes = figure(figsize=(8, 2.9), layout="none")
    drawn.subplots_adjust(left=0.13, right=0.96, bottom=0.36, top=0.83)
    totals = {"parameters": sum(c.parameters for c in parts.values()), "FLOPs": sum(c.flops for c in parts.values())}
    for row, total in enumerate(totals.values()):
        left = 0.0
        for part, cost in parts.items():
            share = (cost.parameters if row == 0 else cost.flops) / total
            axes.barh(1 - row, share, left=left, color=COLORS[part], edgecolor="white", height=0.62,
                      label=part if row == 0 else None)  # fmt: skip
            if share > 0.06:
                dark = part in ("attention: projections", "feed-forward")
                axes.text(left + share / 2, 1 - row, f"{share:.0%}", ha="center", va="center",
                          color="white" if dark else BLACK, fontsize=9.5)  # fmt: skip
            left += share
    names = [f"FLOPs\n{number_text(totals['FLOPs'])}", f"parameters\n{number_text(totals['parameters'])}"]
    axes.set(yticks=(0, 1), xlim=(0, 1), xticks=(0, 0.25, 0.5, 0.75, 1))
    axes.set_yticklabels(names)
    axes.set_xticklabels(("0 %", "25 %", "50 %", "75 %", "100 %"))
    axes.set_xlabel("share of all parameters, and of one token's FLOPs")
    axes.grid(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.34), ncols=3)
    shares = {name: cost.flops / totals["FLOPs"] for name, cost in parts.items()}
    most = max(shares, key=lambda name: shares[name])
    finding(
        drawn,
        f"d = {config.hidden_size:,}, {config.num_hidden_layers} layers, {length:,} tokens: embeddings hold "
        f"{parts['embeddings'].parameters / totals['parameters']:.0%} of the parameters; {shares[most]:.0%} of the "
        f"FLOPs go to {most}",
    )
    return drawn


def growth_figure(
    base: Any, widths: Sequence[int], depths: Sequence[int], lengths: Sequence[int], length: int
) -> Figure:
    """How the shares move: parameters by width and by depth, FLOPs by length; all else as in ``base``."""
    drawn, all_axes = figure(1, 3, figsize=(8, 3.5), sharey=True)
    head = base.hidden_size // base.num_attention_heads
    wide = [_resized(base, hidden_size=d, intermediate_size=4 * d, num_attention_heads=d // head) for d in widths]
    deep = [_resized(base, num_hidden_layers=n) for n in depths]
    panels = (
        (widths, [costs(c, length) for c in wide], "width d", "parameters"),
        (depths, [costs(c, length) for c in deep], "layers", "parameters"),
        (lengths, [costs(base, n) for n in lengths], "tokens of the text", "FLOPs"),
    )
    for axes, (xs, tables, label, what) in zip(all_axes, panels, strict=True):
        values = np.array(
            [[c.parameters if what == "parameters" else c.flops for c in table.values()] for table in tables]
        )
        shares = values / values.sum(axis=1, keepdims=True)
        axes.stackplot(xs, shares.T, colors=[COLORS[part] for part in COST_PARTS], labels=COST_PARTS, linewidth=0)
        axes.set(xscale="log", xlim=(xs[0], xs[-1]), ylim=(0, 1), yticks=(0, 0.5, 1))
        axes.set_xticks(xs, [f"{x:,}" for x in xs])
        axes.minorticks_off()
        axes.tick_params(axis="x", rotation=90)
        axes.set_xlabel(label)
        axes.set_title(f"share of the {what}", fontweight="normal")
    drawn.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    first, last = (
        t["embeddings"].parameters / sum(c.parameters for c in t.values()) for t in (panels[0][1][0], panels[0][1][-1])
    )
    longest = panels[2][1][-1]
    scores = longest["attention: scores"].flops / sum(c.flops for c in longest.values())
    finding(
        drawn,
        f"From width {widths[0]:,} to {widths[-1]:,} the embeddings fall from {first:.0%} to {last:.0%} of the "
        f"parameters; at {lengths[-1]:,} tokens the scores take {scores:.0%} of the FLOPs",
    )
    return drawn


def _resized(config: Any, **changes: Any) -> Any:
    return type(config)(**{**config.to_diff_dict(), **changes})


# --- five architectures, one task -------------------------------------------------------------------

LINES = {
    "RNN": (GRAY, "-", "o"),
    "LSTM": (ORANGE, "--", "s"),
    "GRU": (RED, ":", "^"),
    "CNN": (GREEN, "-.", "D"),
    "Transformer": (BLUE, "-", "o"),
}


def recall_figure(results: Sequence[Any], chance: float, task: str) -> Figure:
    """Accuracy against the gap: the mean over seeds as a line, every seed as a dot, the spread as an area.

    ``results`` are ``tasks.recall.Recall``; ``task`` says how they were trained.
    """
    drawn, axes = figure(figsize=(8, 4.3))
    kinds = list(dict.fromkeys(result.kind for result in results))
    gaps = list(results[0].accuracy)
    means = {}
    for number, kind in enumerate(kinds):
        table = np.array([[r.accuracy[gap] for gap in gaps] for r in results if r.kind == kind])  # (seeds, gaps)
        color, line, marker = LINES[kind]
        shift = 1.04 ** (number - (len(kinds) - 1) / 2)  # side by side where they agree
        xs = [gap * shift for gap in gaps]
        axes.fill_between(xs, table.min(axis=0), table.max(axis=0), color=color, alpha=0.15, linewidth=0)
        axes.plot(xs, table.mean(axis=0), line, color=color, marker=marker, label=kind, zorder=3)
        for row in table:
            axes.plot(xs, row, marker, color=color, markersize=2.5, linestyle="", alpha=0.8)
        means[kind] = table.mean(axis=0)
    axes.axhline(chance, color=BLACK, linestyle=":", linewidth=1)
    axes.annotate("guessing", (0.01, chance), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                  fontsize=9)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(gaps, [str(gap) for gap in gaps])
    axes.minorticks_off()
    axes.set_ylim(0, 1.04)
    axes.set_xlabel(f"gap: how many tokens back ({task})")
    axes.set_ylabel("accuracy: mean, each seed, and range")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=len(kinds))
    far = {kind: float(mean[-1]) for kind, mean in means.items()}
    best = max(far, key=lambda kind: far[kind])
    others = "; ".join(f"{kind} {value:.2f}" for kind, value in far.items() if kind != best)
    seeds = len({result.seed for result in results})
    told = f"{gaps[-1]} tokens back, the {best} is right in {far[best]:.2f} of the texts"
    finding(drawn, f"{told}, mean of {seeds} seed{'s' * (seeds > 1)} ({others}; guessing {chance:.2f})")
    return drawn


def differences_figure(differences: Mapping[str, Sequence[float]]) -> Figure:
    """The largest difference of two models' hidden states behind the embeddings and each layer, by precision."""
    drawn, axes = figure(figsize=(8, 3.4))
    lowest = 1e-18
    for (precision, values), color, marker in zip(differences.items(), (BLUE, ORANGE, GREEN), "osD", strict=False):
        places = range(len(values))
        axes.plot(places, [max(value, lowest) for value in values], marker, color=color, markersize=7, linestyle="",
                  label=precision)  # fmt: skip
    count = len(next(iter(differences.values())))
    axes.set_yscale("log")
    axes.set_ylim(lowest / 3, max(1e-3, *(3 * max(values) for values in differences.values())))
    axes.set_xticks(range(count), ["embeddings", *(f"layer {i}" for i in range(1, count))])
    axes.set_ylabel("largest difference")
    axes.set_xlabel("hidden states behind")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=len(differences))
    told = " and ".join(f"{max(values):.1e} in {precision}" for precision, values in differences.items())
    finding(drawn, f"Your layers beside the library's: the hidden states differ by at most {told}")
    return drawn


# --- widget -----------------------------------------------------------------------------------------


def cost_explorer(base: Any, length: int = 128) -> Any:
    """Sliders over ``breakdown_figure``: width, layers, length and vocabulary."""
    import ipywidgets as widgets

    def slider(name: str, values: Sequence[int], value: int) -> Any:
        options = [(f"{n:,}", n) for n in values]
        layout = {"width": "480px"}
        return widgets.SelectionSlider(
            description=name, options=options, value=min(values, key=lambda n: abs(n - value)), layout=layout
        )

    head = base.hidden_size // base.num_attention_heads
    width = slider("width d", [head * n for n in (2, 4, 8, 12, 16, 24, 32, 64, 128, 256, 512)], base.hidden_size)
    depth = slider("layers", [1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96], base.num_hidden_layers)
    tokens = slider("tokens", [2**n for n in range(5, 18)], length)
    vocabulary = slider("vocabulary", [1000, 5000, 10_000, 30_522, 40_000, 100_000, 153_376], base.vocab_size)
    image = widgets.Image(format="png")

    def redraw(_: Any = None) -> None:
        d = width.value
        config = _resized(
            base, hidden_size=d, intermediate_size=4 * d, num_attention_heads=d // head,
            num_hidden_layers=depth.value, vocab_size=vocabulary.value,
        )  # fmt: skip
        image.value = png(breakdown_figure(config, tokens.value))

    for each in (width, depth, tokens, vocabulary):
        each.observe(redraw, "value")
    redraw()
    return widgets.VBox([width, depth, tokens, vocabulary, image])
