"""Figures of lab 05: masking under a slider, the loss above its floor, guesses, shortcuts, and what pre-training pays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pangu_lab.objectives import IGNORED, SELECT, Draws, bert_masks, select
from pangu_lab.viz import BLACK, BLUE, GRAY, GREEN, ORANGE, RED, SKY, encoded, figure, finding

KINDS = ("left alone", "[MASK]", "replaced", "kept")
COLORS = dict(zip(KINDS, (GRAY, BLUE, ORANGE, GREEN), strict=True))


def masked_sentence(words: Sequence[str], vocabulary: Sequence[str], rate: float, epoch: int) -> list[tuple[str, str]]:
    """Each word as the model sees it, and which of ``KINDS`` it is."""
    ids = np.arange(len(words))[None]
    draws = Draws(0, epoch, np.zeros(1, dtype=int))
    chosen = select(draws.uniform(SELECT, len(words)), np.ones_like(ids, dtype=bool), rate)
    inputs, labels = bert_masks(ids, chosen, draws, -1, np.arange(len(words), len(words) + len(vocabulary)))
    shown = []
    for word, seen, label in zip(words, inputs[0].tolist(), labels[0].tolist(), strict=True):
        if label == IGNORED:
            shown.append((word, "left alone"))
        elif seen == -1:
            shown.append(("[MASK]", "[MASK]"))
        elif seen >= len(words):
            shown.append((vocabulary[seen - len(words)], "replaced"))
        else:
            shown.append((word, "kept"))
    return shown


def masking_figure(words: Sequence[str], vocabulary: Sequence[str], rate: float, epoch: int = 0) -> Figure:
    """A text as the model sees it at a masking rate; each selected word in the color of what became of it."""
    shown = masked_sentence(words, vocabulary, rate, epoch)
    counts = {kind: sum(k == kind for _, k in shown) for kind in KINDS}
    asked = len(shown) - counts["left alone"]
    drawn, axes = figure(figsize=(8, 2.6))
    x, y, width = 0.0, 0.0, 92
    for word, kind in shown:
        if x + len(word) > width:
            x, y = 0.0, y - 1
        bold = kind != "left alone"
        axes.text(x, y, word, family="monospace", fontsize=9, color=COLORS[kind] if bold else BLACK,
                  weight="bold" if bold else "normal", va="top")  # fmt: skip
        x += len(word) + 1
    axes.set(xlim=(0, width), ylim=(min(y, -4) - 1.6, 0.4))
    axes.axis("off")
    for i, kind in enumerate(KINDS[1:]):
        axes.text(i * 22, min(y, -4) - 1, f"■ {kind}: {counts[kind]}", color=COLORS[kind], fontsize=9, va="top")
    finding(drawn, f"At {rate:.0%}, the model is asked about {asked} of {len(shown)} words (epoch {epoch})")
    return drawn


def explore_masking(words: Sequence[str], vocabulary: Sequence[str]) -> Any:
    """Two sliders, masking rate and epoch, over ``masking_figure``."""
    import ipywidgets

    image = ipywidgets.Image(format="png")
    rate = ipywidgets.FloatSlider(0.15, min=0.05, max=0.8, step=0.05, description="rate")
    epoch = ipywidgets.IntSlider(0, min=0, max=9, description="epoch")

    def redraw(_: Any = None) -> None:
        drawn = masking_figure(words, vocabulary, rate.value, epoch.value)
        drawn.canvas.draw()
        image.value = encoded(drawn.canvas)

    for slider in (rate, epoch):
        slider.observe(redraw, "value")
    redraw()
    return ipywidgets.VBox([rate, epoch, image])


def shortcut_figure(results: Mapping[str, tuple[int, int]], intervals: Mapping[str, tuple[float, float]]) -> Figure:
    """Accuracy of a bag of words on NSP and SOP, with 95 % intervals; chance is a half."""
    drawn, axes = figure(figsize=(8, 2.8))
    names = list(results)
    shares = {name: right / total for name, (right, total) in results.items()}
    for i, name in enumerate(names):
        low, high = intervals[name]
        axes.barh(i, shares[name], color=(BLUE, ORANGE)[i % 2], height=0.55)
        axes.plot([low, high], [i, i], color=BLACK, lw=2)
        axes.text(0.01, i, f"{shares[name]:.1%}", va="center", color="white", weight="bold")
    axes.axvline(0.5, color=BLACK, ls="--", lw=1)
    axes.text(0.505, len(names) - 0.55, "chance", fontsize=9, va="bottom")
    axes.set_yticks(range(len(names)), [name.upper() for name in names])
    axes.set(xlim=(0, 1), ylim=(-0.5, len(names) - 0.2), xlabel="accuracy on held-out pairs")
    finding(drawn, "A bag of words gets " + ", ".join(f"{shares[n]:.0%} of {n.upper()}" for n in names))
    return drawn


def loss_figure(evaluations: Sequence[Mapping[str, float]], low: float, high: float, start: float) -> Figure:
    """The held-out loss as training goes, above the floor with its interval; ``start`` is the loss of pure chance."""
    steps, losses = [e["step"] for e in evaluations], [e["mlm_loss"] for e in evaluations]
    floor = evaluations[-1]["floor"]
    drawn, axes = figure(figsize=(8, 3.6))
    axes.plot([0, *steps], [start, *losses], color=BLUE, marker="o", ms=3, label="model, held-out words")
    axes.axhline(floor, color=RED, lw=1.5, label="floor: exact inference")
    axes.axhspan(low, high, color=RED, alpha=0.15, lw=0)
    axes.set(xlabel="training step", ylabel="loss (nats a masked word)", xlim=(0, None), yscale="log")
    # Ratios are what matters near the floor: on a linear axis the curve would lie on it.
    axes.set_yticks([0.5, 0.7, 1, 2, 3, 5], ["0.5", "0.7", "1", "2", "3", "5"])
    axes.yaxis.set_minor_formatter("")
    axes.legend(loc="upper right")
    ratio = losses[-1] / floor
    finding(
        drawn,
        f"The loss falls from {start:.1f} to {losses[-1]:.2f}; that is {ratio:.2f} times the floor of {floor:.2f}",
    )
    return drawn


def guesses_figure(
    steps: Sequence[int], guesses: Sequence[Mapping[str, float]], best: Mapping[str, float], title: str
) -> Figure:
    """Probabilities of a few words behind one [MASK] as training goes; dots at the right are exact inference."""
    words = sorted(best, key=lambda word: -best[word])[:5]
    drawn, axes = figure(figsize=(8, 3.4))
    for word, color in zip(words, (BLUE, ORANGE, GREEN, SKY, RED), strict=False):
        axes.plot(steps, [g.get(word, 0.0) for g in guesses], color=color, label=word)
        axes.plot([steps[-1] * 1.03], [best[word]], marker="D", color=color, ms=6, clip_on=False)
    axes.set(xlabel="training step", ylabel="probability", ylim=(0, 1), xlim=(0, steps[-1] * 1.05))
    axes.legend(loc="center right")
    finding(drawn, title)
    return drawn


def payoff_figure(results: Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]]) -> Figure:
    """Test accuracy by number of examples, from random and from pre-trained weights: seeds, means, paired gains.

    ``results[task][count]`` has one ``{"random": …, "pretrained": …}`` for each seed.
    """
    drawn, axes = figure(1, len(results), figsize=(8, 3.4), sharey=True, squeeze=False)
    told = []
    for panel, (task, by_count) in zip(axes[0], results.items(), strict=True):
        counts = list(by_count)
        place = np.arange(len(counts))
        for name, color, shift in (("random", GRAY, -0.06), ("pretrained", BLUE, 0.06)):
            runs = [[run[name] for run in by_count[count]] for count in counts]
            panel.plot(place + shift, [np.mean(values) for values in runs], color=color, label=name)
            for x, values in zip(place, runs, strict=True):
                panel.plot([x + shift] * len(values), values, "o", color=color, ms=4, alpha=0.7)
        panel.set_xticks(place, [str(count) for count in counts])
        panel.set(title=task, xlabel="labeled examples", ylim=(0, 1.02), xlim=(-0.5, len(counts) - 0.5))
        middle = counts[min(1, len(counts) - 1)]
        gain = np.mean([run["pretrained"] - run["random"] for run in by_count[middle]])
        told.append(f"{100 * gain:+.0f} points on {task}s")
    axes[0, 0].set_ylabel("test accuracy")
    axes[0, 0].legend(loc="lower right")
    finding(drawn, f"At {middle} examples, pre-trained weights are worth " + " and ".join(told))
    return drawn
