"""What attention does, what its heads look at and what it costs: the figures of lab 02 and its head explorer.

``read`` and ``looks`` ask an encoder, ``fit_power`` and ``peak_bytes`` measure; everything else draws.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pangu_lab.viz import BLACK, BLUE, GRAY, GREEN, ORANGE, Repainted, figure, finding

MOST_TOKENS = 40  # more do not fit on an axis

# --- asking an encoder ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reading:
    """A text as an encoder read it: its tokens, and weights (layers, heads, T, T), a row for each query."""

    tokens: tuple[str, ...]
    weights: np.ndarray


def read(encoder: Any, tokenizer: Any, text: str, most: int = MOST_TOKENS) -> Reading:
    """Run an encoder once over a text of at most ``most`` tokens and keep the attention of all its heads."""
    # Torch takes seconds to import, and no figure needs it.
    import torch

    encoded = tokenizer(text, truncation=True, max_length=most, return_tensors="pt", verbose=False)
    with torch.no_grad():
        layers = encoder(**encoded, output_attentions=True).attentions
    weights = torch.cat(layers).numpy()  # (layers, heads, T, T)
    return Reading(tuple(tokenizer.convert_ids_to_tokens(encoded["input_ids"][0].tolist())), weights)


TARGETS = ("the previous token", "the next token", "itself", "[CLS]", "[SEP]")


def looks(reading: Reading) -> np.ndarray:
    """How much of its attention each head spends on each of ``TARGETS``: (targets, layers, heads).

    A mean over the queries that stand between [CLS] and [SEP].
    """
    length = len(reading.tokens)
    inner = np.arange(1, length - 1)
    places = (inner - 1, inner + 1, inner, np.zeros_like(inner), np.full_like(inner, length - 1))
    return np.stack([reading.weights[:, :, inner, place].mean(axis=-1) for place in places])


# --- measuring --------------------------------------------------------------------------------------


def fit_power(x: Any, y: Any) -> tuple[float, float, float]:
    """The exponent p of y = c·xᵖ by least squares on logarithms, and its 95 % interval by Student's t; x, y are (n,).

    The interval knows how far the points scatter around the line, not what all of them have wrong.
    """
    from scipy import stats

    line = stats.linregress(np.log(x), np.log(y))
    half = stats.t.ppf(0.975, len(x) - 2) * line.stderr if len(x) > 2 else math.inf
    return float(line.slope), float(line.slope - half), float(line.slope + half)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that torch holds at one moment of ``work`` beyond what it held before, on the CPU.

    Torch's profiler sees each allocation and release of its tensors, the scratch memory of its kernels included.
    """
    import os

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would tell of its start and its end each time
    import torch
    from torch.profiler import ProfilerActivity, profile

    work()  # the first call prepares kernels
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, torch.no_grad():
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(max(held, default=0))


# --- figures ----------------------------------------------------------------------------------------


def variance_figure(sizes: Sequence[int], raw: Sequence[float], scaled: Sequence[float], pairs: int) -> Figure:
    """The variance of q·k and of q·k/√d against d, each measured over ``pairs`` random pairs; dotted, the line d."""
    drawn, axes = figure(figsize=(8, 3.6))
    axes.plot(sizes, sizes, ":", color=GRAY, label="d")
    axes.plot(sizes, raw, "o", color=BLUE, linestyle="", label="q · k")
    axes.plot(sizes, scaled, "s", color=GREEN, linestyle="", label="q · k / √d")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(sizes, [f"{size}" for size in sizes])
    axes.set_yticks([1, 8, 64, 512], ["1", "8", "64", "512"])
    axes.minorticks_off()
    axes.set_xlabel(f"d, the length of q and k ({pairs:,} random pairs each)")
    axes.set_ylabel("variance")
    axes.legend(loc="upper left")
    power, low, high = fit_power(sizes, raw)
    finding(drawn, f"The variance of q · k grows as d to the power {power:.2f} [{low:.2f}, {high:.2f}]; divided by √d "
                   f"it stays between {min(scaled):.2f} and {max(scaled):.2f}")  # fmt: skip
    return drawn


def saturation_figure(
    sizes: Sequence[int],
    entropy: Mapping[str, Sequence[float]],
    gradient: Mapping[str, Sequence[float]],
    keys: int,
) -> Figure:
    """Entropy of the weights and size of softmax's gradient against d; the first name is the unscaled one."""
    drawn, (left, right) = figure(1, 2, figsize=(8, 3.6))
    for axes, values in ((left, entropy), (right, gradient)):
        for (name, curve), color, marker in zip(values.items(), (BLUE, GREEN), "os", strict=True):
            axes.plot(sizes, curve, marker + "-", color=color, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("d")
    left.axhline(math.log(keys), color=GRAY, linestyle=":", linewidth=1.4)
    left.annotate(f"all {keys} keys alike", (0.02, math.log(keys)), (0, 3), xycoords=("axes fraction", "data"),
                  textcoords="offset points", fontsize=9)  # fmt: skip
    left.set_ylim(0, 1.18 * math.log(keys))
    left.set_ylabel("entropy of the weights (nats)")
    right.set_ylim(bottom=0)
    right.set_ylabel("size of ∂weights/∂scores")
    left.legend(loc="lower left")
    raw, scaled = list(entropy)
    e, g = entropy[raw], gradient[raw]
    finding(drawn, f"Without √d, from d = {sizes[0]} to {sizes[-1]}, the entropy falls from {e[0]:.2f} to {e[-1]:.2f} "
                   f"and the gradient from {g[0]:.3f} to {g[-1]:.3f}; with it, the gradient at d = {sizes[-1]} is "
                   f"{gradient[scaled][-1]:.3f}")  # fmt: skip
    return drawn


def masks_figure(masks: Mapping[str, np.ndarray], words: Sequence[str]) -> Figure:
    """Boolean masks (T, T) side by side: dark where a query (row) may look at a key (column)."""
    masks = {name: np.asarray(mask, dtype=bool) for name, mask in masks.items()}
    drawn, all_axes = figure(1, len(masks), figsize=(8, 3.5), sharey=True)
    for axes, (name, mask) in zip(all_axes, masks.items(), strict=True):
        axes.imshow(mask, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
        axes.set_title(f"{name}: {mask.mean():.0%}", fontweight="normal")
        axes.set_xticks(range(len(words)), words, rotation=90)
        axes.set_yticks(range(len(words)), words)
        axes.set_xticks(np.arange(-0.5, len(words)), minor=True)
        axes.set_yticks(np.arange(-0.5, len(words)), minor=True)
        axes.grid(visible=False)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="both", length=0)
        axes.set_xlabel("key")
    all_axes[0].set_ylabel("query")
    last, mask = list(masks.items())[-1]
    finding(drawn, f"Dark is where a query may look: of {mask.size} pairs, “{last}” leaves {int(mask.sum())}")
    return drawn


def head_figure(reading: Reading, layer: int, head: int) -> Figure:
    """One head's attention over one text, tokens on both axes; layers and heads are counted from 1."""
    return _HeadDrawing(reading, layer, head).drawn


class _HeadDrawing:
    """A drawing of one head that can be redrawn for another: axes and tokens stay, the image's numbers change."""

    def __init__(self, reading: Reading, layer: int, head: int) -> None:
        # A fixed layout: finding one takes longer than all the rest, and a slider waits for it.
        self.drawn, self.axes = figure(figsize=(6.8, 5.8), layout="none")
        self.drawn.subplots_adjust(left=0.17, right=0.87, bottom=0.18, top=0.88)
        self.reading = reading
        tokens = reading.tokens
        self.image = self.axes.imshow(np.zeros((len(tokens),) * 2), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        small = 9.5 if len(tokens) <= 24 else 7
        self.axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=small)
        self.axes.set_yticks(range(len(tokens)), tokens, fontsize=small)
        self.axes.tick_params(length=0)
        self.axes.grid(visible=False)
        self.axes.set_xlabel("key: what is looked at")
        self.axes.set_ylabel("query: which token looks")
        bar = self.drawn.colorbar(self.image, cax=self.drawn.add_axes((0.89, 0.18, 0.025, 0.7)))
        bar.set_label("weight")
        self.painted = Repainted(self.drawn, (self.image, self.drawn.suptitle("")))
        self.show(layer, head)

    def show(self, layer: int, head: int) -> None:
        """Put another head of the same text into the image."""
        self.image.set_data(self.reading.weights[layer - 1, head - 1])
        finding(self.drawn, _head_told(self.reading, layer, head))

    def picture(self, layer: int, head: int) -> bytes:
        """The drawing of a head as a PNG."""
        self.show(layer, head)
        return self.painted.png()


def _head_told(reading: Reading, layer: int, head: int) -> str:
    shares = looks(reading)[:, layer - 1, head - 1]
    most = int(shares.argmax())
    uniform = 1 / len(reading.tokens)
    told = f"Layer {layer}, head {head}: {shares[most]:.0%} of the attention of this text's tokens on {TARGETS[most]}"
    return f"{told} (evenly spread: {uniform:.0%})"


def looks_figure(shares: np.ndarray, tokens: float, texts: int) -> Figure:
    """Mean shares (targets, layers, heads) over ``texts`` texts of ``tokens`` tokens on average, a map a target."""
    drawn, all_axes = figure(1, len(shares), figsize=(8, 2.9), sharey=True)
    layers, heads = shares.shape[1:]
    for axes, values, name in zip(all_axes, shares, TARGETS, strict=True):
        image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        layer, head = np.unravel_index(values.argmax(), values.shape)
        axes.plot(head, layer, "o", color=ORANGE, fillstyle="none", markersize=10, markeredgewidth=1.8, clip_on=False)
        axes.set_title(f"{name}\nhead {layer + 1}.{head + 1}: {values.max():.0%}", fontweight="normal", fontsize=9.5)
        axes.set_xticks([0, heads // 2 - 1, heads - 1], ["1", f"{heads // 2}", f"{heads}"])
        axes.set_yticks(range(layers), [f"{i + 1}" for i in range(layers)])
        axes.set_xlabel("head")
        axes.grid(visible=False)
    all_axes[0].set_ylabel("layer")
    drawn.colorbar(image, ax=all_axes, label="share", shrink=0.9)
    target, layer, head = np.unravel_index(shares.argmax(), shares.shape)
    finding(drawn, f"The most single-minded head, {layer + 1}.{head + 1}, spends {shares.max():.0%} of its attention on "
                   f"{TARGETS[target]}; spread evenly it would be {1 / tokens:.0%} ({texts} texts)")  # fmt: skip
    return drawn


def differences_figure(differences: Mapping[str, Sequence[float]], limit: float, own: str) -> Figure:
    """The largest difference of hidden states after each layer, for each way to compute attention; ``own`` is yours."""
    drawn, axes = figure(figsize=(8, 3.8))
    smallest = min((value for values in differences.values() for value in values if value > 0), default=1e-9)
    floor = smallest / 3
    layers = len(next(iter(differences.values())))
    for name, values in differences.items():
        axes.semilogy(range(1, layers + 1), np.maximum(values, floor), marker="o", label=name)
    axes.axhline(limit, color=GRAY, linewidth=1, linestyle=":")
    axes.annotate(f"{limit:g}", (1, limit), (0, 3), textcoords="offset points", fontsize=9)
    axes.set_xticks(range(1, layers + 1))
    axes.set_xlabel("after layer")
    axes.set_ylabel("largest difference of a hidden state")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    mine, others = max(differences[own]), {n: v[-1] for n, v in differences.items() if max(v) > 100 * limit}
    told = f"{own[0].upper()}{own[1:]}: hidden states at most {mine:.1g} apart"
    if others:
        least = min(others, key=lambda name: others[name])
        told += f"; the mildest mistake, “{least}”, ends {others[least]:.2g} apart"
    finding(drawn, told)
    return drawn


def cross_figure(weights: np.ndarray, asking: Sequence[str], asked: Sequence[str]) -> Figure:
    """Cross-attention (T_q, T_k) of one text's tokens over another's."""
    drawn, axes = figure(figsize=(8, 1.5 + 0.36 * len(asking)))
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(asked)), asked, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(asking)), asking)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for row, column in enumerate(weights.argmax(axis=1)):
        color = "white" if weights[row, column] > 0.55 else BLACK
        axes.text(column, row, f"{weights[row, column]:.2f}", ha="center", va="center", color=color, fontsize=8.5)
    axes.set_xlabel("key: token of the text that is asked")
    axes.set_ylabel("query: token that asks")
    order = np.argsort(-weights.max(axis=1))[:3]
    pairs = [f"{asking[i]} → {asked[weights[i].argmax()]} ({weights[i].max():.2f})" for i in order]
    finding(drawn, f"The firmest looks: {', '.join(pairs)}; spread evenly it would be {1 / len(asked):.2f}")
    return drawn


def positions_figure(table: np.ndarray) -> Figure:
    """The table of positions (T, d), and how alike two positions are against their distance."""
    drawn, (left, right) = figure(1, 2, figsize=(8, 3.6))
    left.imshow(table, cmap="PuOr", vmin=-1, vmax=1, aspect="auto")
    left.grid(visible=False)
    left.set_xlabel("column")
    left.set_ylabel("position")
    length, d = table.shape
    alike = table @ table.T / (d / 2)
    starts = [0, length // 4, length // 2]
    for start, color, style in zip(starts, (BLUE, ORANGE, BLACK), ("-", "--", ":"), strict=True):
        right.plot(alike[start, start:][: length // 2], color=color, linestyle=style, label=f"from position {start}")
    right.set_xlabel("distance (tokens)")
    right.set_ylabel("dot product, of its largest")
    right.legend()
    gap = max(np.abs(alike[0, : length // 2] - alike[s, s : s + length // 2]).max() for s in starts)
    finding(drawn, f"How alike two positions are depends on their distance alone: the curves from {len(starts)} places "
                   f"differ by at most {gap:.0e}")  # fmt: skip
    return drawn


def cost_figure(
    lengths: Sequence[int], seconds: Mapping[str, Sequence[float]], memory: Mapping[str, Sequence[float]], above: int
) -> Figure:
    """Time and peak memory against length on logarithmic axes, and power laws fitted to lengths from ``above`` on."""
    drawn, all_axes = figure(1, 2, figsize=(8, 4.0))
    long = [i for i, length in enumerate(lengths) if length >= above]
    x = np.array([lengths[i] for i in long], float)
    told: list[str] = []
    for axes, measured, unit in zip(all_axes, (seconds, memory), ("ms", "MB"), strict=True):
        for (name, values), color, marker in zip(measured.items(), (BLUE, ORANGE), "os", strict=False):
            y = np.array(values) * (1e3 if unit == "ms" else 1e-6)
            power, low, high = fit_power(x, y[long])
            label = f"{name}: length$^{{{power:.2f}}}$ [{low:.2f}, {high:.2f}]"
            axes.loglog(lengths, y, marker, color=color, linestyle="", label=label)
            center = np.exp(np.log(y[long]).mean() - power * np.log(x).mean())
            axes.loglog(x, center * x**power, "-", color=color, linewidth=1.4)
            if not told or unit == "MB":
                told.append(f"{'time' if unit == 'ms' else 'memory'} of {name} as length to the {power:.2f}")
        ticks = [length for i, length in enumerate(lengths) if i == 0 or math.log2(length / lengths[0]) % 1 == 0]
        axes.set_xticks(ticks, [f"{length}" for length in ticks])
        axes.minorticks_off()
        axes.set_xlabel("length (tokens)")
        axes.legend(loc="upper left", fontsize=8.5)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * 12)  # room for the legend
        axes.set_ylabel("time (ms)" if unit == "ms" else "peak memory (MB)")
    finding(drawn, f"From {above} tokens on: {', '.join(told)}")
    return drawn


# --- the head explorer ------------------------------------------------------------------------------


class HeadExplorer:
    """A sentence, a layer, a head: their attention. A text is read once, and a slider only changes the image."""

    def __init__(self, encoder: Any, tokenizer: Any, text: str, layer: int = 1, head: int = 1) -> None:
        import ipywidgets as widgets

        self._encoder, self._tokenizer = encoder, tokenizer
        self._drawings: dict[str, _HeadDrawing] = {}
        layers, heads = encoder.config.num_hidden_layers, encoder.config.num_attention_heads
        wide = {"width": "480px"}
        self.text = widgets.Text(description="text", value=text, continuous_update=False, layout={"width": "640px"})
        self.layer = widgets.IntSlider(description="layer", min=1, max=layers, value=layer, layout=wide)
        self.head = widgets.IntSlider(description="head", min=1, max=heads, value=head, layout=wide)
        self.image = widgets.Image(format="png")
        self.box = widgets.VBox([self.text, self.layer, self.head, self.image])
        for control in (self.text, self.layer, self.head):
            control.observe(self.redraw, "value")
        self.redraw()

    def redraw(self, _: Any = None) -> None:
        """Draw the chosen head of the text that stands in the field."""
        text = self.text.value.strip()
        if not text:
            return
        if text not in self._drawings:
            if len(self._drawings) >= 8:  # the oldest goes: a drawing holds some megabytes
                del self._drawings[next(iter(self._drawings))]
            reading = read(self._encoder, self._tokenizer, text)
            self._drawings[text] = _HeadDrawing(reading, self.layer.value, self.head.value)
        self.image.value = self._drawings[text].picture(self.layer.value, self.head.value)
