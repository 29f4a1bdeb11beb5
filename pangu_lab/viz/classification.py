"""What a classifier does and where it errs: the figures of lab 06 and its two widgets.

``leave_one_out`` asks the model, ``scores_at`` counts; everything else is a pure function that draws.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pangu_lab.tasks.metrics import Metric, wilson_interval
from pangu_lab.viz import BLACK, BLUE, GRAY, GREEN, ORANGE, figure, finding, png

# --- what a model read ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explanation:
    """A prediction and what each word did for it.

    ``change[i]`` is the log-odds of the predicted label with all words, less those without word ``i``: above 0
    the word speaks for the prediction. (A probability near 1 hardly moves, whatever goes; its log-odds do.)
    ``cut`` is the word before which the middle of a long text is missing.
    """

    words: tuple[str, ...]
    change: tuple[float, ...]
    label: str
    probability: float
    cut: int | None = None

    @property
    def strongest(self) -> str:
        """The word that speaks most for the prediction, without its punctuation."""
        order = sorted(range(len(self.words)), key=lambda i: -self.change[i])
        bare = [self.words[i].strip(".,;:!?()\"'…-–— ").lower() for i in order]
        return next((word for word in bare if word), self.words[0])


def leave_one_out(classifier: Any, text: str) -> Explanation:
    """Remove one word after the other and watch the log-odds of the predicted label.

    Words are those the model reads: of a long text head and tail, and nothing moves up when one goes.
    """
    # Torch and transformers take seconds to import, and no figure needs them.
    from pangu_lab.data.text_tasks import clean
    from pangu_lab.tasks.classification import HEAD_SHARE, predict_features

    tokenizer, text = classifier.tokenizer, clean(text)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    room = classifier.max_length - 2
    head = int(room * HEAD_SHARE) if len(ids) > room else len(ids)
    kept = [*range(head), *range(max(head, len(ids) - (room - head)), len(ids))]
    groups: list[list[int]] = []  # the tokens of each word: those with no space between them
    for i in kept:
        if groups and groups[-1][-1] == i - 1 and spans[i - 1][1] == spans[i][0]:
            groups[-1].append(i)
        else:
            groups.append([i])
    rows = []
    for gone in ([], *groups):
        read = [tokenizer.cls_token_id, *(ids[i] for i in kept if i not in set(gone)), tokenizer.sep_token_id]
        rows.append({"input_ids": read, "attention_mask": [1] * len(read)})
    probabilities = predict_features(classifier.model, rows, tokenizer.pad_token_id).astype(
        float
    )  # (1 + words, labels)
    label = int(probabilities[0].argmax())
    chance = probabilities[:, label].clip(1e-6, 1 - 1e-6)
    odds = np.log(chance / (1 - chance))
    return Explanation(
        tuple(text[spans[group[0]][0] : spans[group[-1]][1]] for group in groups),
        tuple((odds[0] - odds[1:]).tolist()),
        classifier.labels[label],
        float(probabilities[0, label]),
        next((n for n, group in enumerate(groups) if group[0] >= head), None) if len(ids) > room else None,
    )


def scores_at(gold: np.ndarray, positive: np.ndarray, threshold: float | np.ndarray) -> dict[str, Any]:
    """Counts, precision, recall and F1 when a probability of at least ``threshold`` counts as positive.

    ``gold`` and ``positive`` are ``(rows,)``; with thresholds ``(n,)`` all results are ``(n,)``.
    """
    threshold = np.asarray(threshold)
    said = positive >= threshold[..., None]  # (…, rows)
    there = gold.astype(bool)
    hits, false_alarms = (said & there).sum(-1), (said & ~there).sum(-1)
    missed = there.sum() - hits
    with np.errstate(all="ignore"):
        values = {
            "precision": hits / (hits + false_alarms),
            "recall": hits / (hits + missed),
            "F1": 2 * hits / (2 * hits + false_alarms + missed),
        }
    counts = {"hits": hits, "false alarms": false_alarms, "missed": missed}
    counts["passed"] = len(gold) - hits - false_alarms - missed
    return counts | {name: np.nan_to_num(value) for name, value in values.items()}


# --- figures ----------------------------------------------------------------------------------------


def dots_figure(scores: Mapping[str, Metric], told: str, axis: str = "accuracy", sort: bool = True) -> Figure:
    """One dot with its 95 % interval for each name; ``told`` is the finding."""
    order = sorted(scores, key=lambda name: scores[name].value) if sort else list(scores)[::-1]
    drawn, axes = figure(figsize=(8, 1.3 + 0.36 * len(order)))
    for row, name in enumerate(order):
        metric = scores[name]
        axes.plot([metric.low, metric.high], [row, row], color=GRAY, linestyle="-", linewidth=2.5, zorder=1)
        axes.plot(metric.value, row, "o", color=BLUE, markersize=7)
        axes.annotate(f"{metric.value:.3f}", (metric.value, row), (0, 6), textcoords="offset points", ha="center",
                      fontsize=9)  # fmt: skip
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(-0.6, len(order) - 0.3)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{axis}, with its 95 % interval")
    finding(drawn, told)
    return drawn


def baselines_figure(scores: Mapping[str, Metric], tested: str, encoder: str = "") -> Figure:
    """Models by accuracy; with ``encoder``, the name of one of them, how close the others come to it.

    ``tested`` says on what, here and below: "188 test reviews, bundled sample".
    """
    others = {name: metric for name, metric in scores.items() if name != encoder}
    best = max(others, key=lambda name: others[name].value)
    if encoder:
        ahead = 100 * (scores[encoder].value - others[best].value)
        apart = scores[encoder].low > others[best].high or scores[encoder].high < others[best].low
        if round(ahead, 1) == 0:
            told = f"The {best} draws level with the {encoder}"
        elif ahead > 0:
            told = f"The {best} comes within {ahead:.1f} points of the {encoder}"
        else:
            told = f"The {best} beats the {encoder} by {-ahead:.1f} points"
        told += "; the intervals do not overlap" if apart else "; the intervals overlap"
    else:
        told = f"The {best} is right on {others[best].value:.0%} without any pre-training"
    return dots_figure(scores, told, f"accuracy ({tested})")


def training_figure(log: Sequence[Mapping[str, Any]], rows: int, where: str) -> Figure:
    """The loss of each step, its mean over tenths of the run, and validation accuracy on ``rows`` after each epoch."""
    steps = [entry for entry in log if "loss" in entry]
    passes = [entry for entry in log if "validation_accuracy" in entry]
    drawn, (left, right) = figure(1, 2, figsize=(8, 3.5))
    loss = np.array([entry["loss"] for entry in steps])
    left.plot(range(1, len(loss) + 1), loss, color=GRAY, linestyle="-", linewidth=1, label="each step")
    parts = np.array_split(np.arange(len(loss)), min(10, len(loss)))
    means = [float(loss[part].mean()) for part in parts]
    left.plot([part.mean() + 1 for part in parts], means, "o-", color=BLUE, label="mean of a tenth")
    left.axhline(math.log(2), color=ORANGE, linestyle="--", linewidth=1.2, label="guessing, ln 2")
    left.set_xlabel("step")
    left.set_ylabel("training loss (nats)")
    left.set_ylim(bottom=0)
    left.legend()
    values = [entry["validation_accuracy"] for entry in passes]
    epochs = [round(entry["epoch"]) for entry in passes]
    bounds = [wilson_interval(round(value * rows), rows) for value in values]
    right.vlines(epochs, [low for low, _ in bounds], [high for _, high in bounds], color=GRAY, linewidth=2.5)
    right.plot(epochs, values, "o-", color=BLUE)
    right.axhline(0.5, color=ORANGE, linestyle="--", linewidth=1.2)
    right.set_xlabel("epoch")
    right.set_xticks(epochs)
    right.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    right.set_ylim(0.4, 1.0)
    right.set_ylabel("validation accuracy")
    right.set_title(f"{rows:,} validation reviews, {where}", fontweight="normal", fontsize=9.5)
    if means[-1] > 0.6:
        told = f"The loss stays at {means[-1]:.2f}, close to guessing: this run has learned next to nothing"
    else:
        told = f"The loss falls from {means[0]:.2f} to " + (f"{means[-1]:.2f}" if means[-1] >= 0.01 else "below 0.01")
        best = values.index(max(values))
        if best == len(values) - 1:
            told += f"; validation accuracy ends at its best, {values[-1]:.2f}"
        else:
            told += f"; validation accuracy is best after epoch {epochs[best]} of {epochs[-1]}"
    finding(drawn, told)
    return drawn


def confusion_figure(
    tables: Mapping[str, np.ndarray], labels: Sequence[str], tested: str, texts: str = "reviews"
) -> Figure:
    """Confusion matrices, counts and shares of each row; the first one is the title's subject, ``texts`` its rows."""
    drawn, all_axes = figure(1, len(tables), figsize=(4 * len(tables), 3.7), squeeze=False)
    for axes, (name, table) in zip(all_axes[0], tables.items(), strict=True):
        _draw_table(axes, np.asarray(table), labels)
        axes.set_title(f"{name}: {tested}", fontweight="normal", fontsize=9.5)
    name, table = next(iter(tables.items()))
    table = np.asarray(table)
    wrong = {(g, p): int(n) for (g, p), n in np.ndenumerate(table) if g != p}
    (gold, predicted), most = max(wrong.items(), key=lambda item: item[1])
    told = f"The {name} takes {most} of {table[gold].sum():,} {labels[gold]} {texts} for {labels[predicted]}"
    if len(labels) == 2:
        told += f", {wrong[predicted, gold]} of {table[predicted].sum():,} the other way round"
    finding(drawn, told)
    return drawn


def _draw_table(axes: Any, table: np.ndarray, labels: Sequence[str]) -> None:
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for (row, column), count in np.ndenumerate(table):
        color = "white" if shares[row, column] > 0.55 else BLACK
        text = f"{count:,}\n{shares[row, column]:.0%} of the row"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=10)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels, rotation=90, va="center")
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    axes.grid(visible=False)


def rate_text(rate: float) -> str:
    """A learning rate as people write it: 5e-4."""
    number, _, power = f"{rate:.1e}".partition("e")
    return f"{float(number):g}e{int(power)}"


def search_figure(results: Mapping[float, Sequence[float]], chosen: float, tested: str) -> Figure:
    """Validation accuracy of each run by learning rate, the means, and the choice; nan is a diverged run."""
    drawn, axes = figure(figsize=(8, 3.6))
    rates = sorted(results)
    for rate in rates:
        good = [value for value in results[rate] if value == value]
        axes.plot([rate] * len(good), good, "o", color=GRAY, linestyle="")
        for _ in range(len(results[rate]) - len(good)):
            axes.plot(rate, 0.42, "x", color=BLACK, markersize=8)
            axes.annotate("diverged", (rate, 0.42), (8, -3), textcoords="offset points", fontsize=9)
    means = [float(np.mean(results[rate])) for rate in rates]
    axes.plot(rates, means, "_", markersize=22, markeredgewidth=2.5, color=BLUE, linestyle="")
    axes.plot(chosen, means[rates.index(chosen)], "o", markersize=16, fillstyle="none", color=BLUE)
    for rate, mean in zip(rates, means, strict=True):
        if mean == mean:
            axes.annotate(f"{mean:.2f}", (rate, mean), (14, -3), textcoords="offset points", fontsize=9, color=BLUE)
    axes.axhline(0.5, color=ORANGE, linestyle="--", linewidth=1.2)
    axes.annotate("guessing", (0.01, 0.5), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                  fontsize=9)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(rates, [rate_text(rate) for rate in rates])
    axes.minorticks_off()
    axes.set_xlim(rates[0] / 2.5, rates[-1] * 2.5)
    top = max(value for values in results.values() for value in values if value == value)
    axes.set_ylim(0.38, max(0.8, top + 0.06))
    axes.set_xlabel(f"learning rate ({tested})")
    axes.set_ylabel("validation accuracy")
    seeds = min(len(values) for values in results.values())
    best, low = means[rates.index(chosen)], min((mean for mean in means if mean == mean), default=math.nan)
    told = f"{rate_text(chosen)} is the best of {len(rates)} learning rates: accuracy {best:.2f}"
    told += f", mean of {seeds} seeds" if seeds > 1 else ", one seed"
    told += f"; the worst reaches {low:.2f}" if low < best else ""
    finding(drawn, told)
    return drawn


def threshold_figure(gold: np.ndarray, positive: np.ndarray, threshold: float, labels: Sequence[str]) -> Figure:
    """Precision, recall and F1 against the threshold, and the confusion matrix at one of them.

    ``gold`` is 1 where a row is of the positive label, ``positive`` that label's probability, both ``(rows,)``.
    """
    # A fixed layout: finding one takes longer than all the rest, and a slider waits for it.
    drawn, (left, right) = figure(1, 2, figsize=(8, 3.4), layout="none", width_ratios=(1.25, 1))
    drawn.subplots_adjust(left=0.07, right=0.99, bottom=0.16, top=0.88, wspace=0.2)
    grid = np.linspace(0.01, 0.99, 99)
    curves, here = scores_at(gold, positive, grid), scores_at(gold, positive, threshold)
    # A precision of nothing said is 0 by agreement; a curve that drops to 0 would look like a measurement.
    said = curves["hits"] + curves["false alarms"] > 0
    for name, style in (("precision", "-"), ("recall", "--"), ("F1", ":")):
        color = {"precision": BLUE, "recall": ORANGE, "F1": BLACK}[name]
        left.plot(grid[said], curves[name][said], style, color=color, label=name)
    left.plot([threshold] * 5, [0, here["precision"], here["recall"], here["F1"], 1.03], "o-", color=GRAY, linewidth=1)
    # Few ticks: each costs a millisecond and more.
    left.set(xlim=(0, 1), ylim=(0, 1.03), xticks=(0, 0.25, 0.5, 0.75, 1), yticks=(0, 0.5, 1))
    left.set_xlabel(f"threshold on the probability of {labels[1]}")
    left.legend(loc="lower center", ncols=3)
    _draw_table(right, np.array([[here["passed"], here["false alarms"]], [here["missed"], here["hits"]]]), labels)
    best = int(curves["F1"].argmax())
    told = f"At {threshold:.2f}: precision {here['precision']:.2f}, recall {here['recall']:.2f}, F1 {here['F1']:.2f}"
    finding(drawn, f"{told}; F1 is highest at {grid[best]:.2f}, {curves['F1'][best]:.2f}")
    return drawn


def words_figure(cases: Sequence[tuple[Explanation, str]]) -> Figure:
    """Predictions with their gold labels; each word shaded by the log-odds that it adds to the predicted label."""
    drawn, axes = figure(figsize=(8, 0.5), layout="none")
    axes.axis("off")
    renderer = FigureCanvasAgg(drawn).get_renderer()
    width, line, y = 8 * 72 - 16, 14.0, 0.0  # points; y grows downwards
    pieces: list[tuple[float, float, str, dict[str, Any]]] = []
    plain = axes.text(0, 0, "", fontsize=8.5)

    def measured(text: str, weight: str) -> float:
        plain.set_text(text)
        plain.set_fontweight(weight)
        return float(plain.get_window_extent(renderer).width) * 72 / drawn.dpi

    for explanation, gold in cases:
        head = f"gold {gold}, predicted {explanation.label} with {explanation.probability:.3f}"
        pieces.append((0, y, head, {"fontweight": "bold", "fontsize": 9.5}))
        y += 1.25 * line
        x = 0.0
        strong = sorted(map(abs, explanation.change), reverse=True)[:8][-1]
        scale = max(0.5, *map(abs, explanation.change))
        for i, (word, change) in enumerate(zip(explanation.words, explanation.change, strict=True)):
            marked = abs(change) >= max(strong, 0.05)
            if i == explanation.cut:
                pieces.append((x, y, "[…]", {"color": GRAY}))
                x += measured("[…]", "normal") + 4
            weight = "bold" if marked and change > 0 else "normal"
            wide = measured(word, weight)
            if x + wide > width:
                x, y = 0.0, y + line
            style: dict[str, Any] = {"fontweight": weight, "fontstyle": "italic" if marked and change < 0 else "normal"}
            if abs(change) > 0.1 * scale:
                alpha = 0.15 * math.ceil(4 * abs(change) / scale)  # few shades: a smaller picture
                shade = BLUE if change > 0 else ORANGE
                style["bbox"] = {"facecolor": shade, "alpha": alpha, "edgecolor": "none", "pad": 1.0}
            pieces.append((x, y, word, style))
            x += wide + 3.4
        y += 1.7 * line
    plain.remove()
    height = y + 2.6 * line
    drawn.set_size_inches(8, height / 72)
    axes.set_position((8 / 576, 0, 1 - 16 / 576, 1 - 1.6 * line / height))
    axes.set_xlim(0, width)
    axes.set_ylim(y + line, -0.9 * line)
    for x, place, text, style in pieces:
        axes.text(x, place, text, va="baseline", **({"fontsize": 8.5} | style))
    key = "blue, bold: speaks for the prediction; orange, italic: against it (log-odds). […]: cut out"
    axes.text(0, y + 0.5 * line, key, fontsize=8.5, color="#555555")
    named = ", ".join(f"“{word}”" for word in dict.fromkeys(e.strongest for e, _ in cases))
    drawn.suptitle(f"The words that cost most when they go: {named}", x=8 / 576, y=1 - 0.3 * line / height, ha="left",
                   va="top", fontsize=11)  # fmt: skip
    return drawn


def words_html(explanation: Explanation) -> str:
    """The same for one text as HTML; the number of a word shows under the pointer."""
    scale = max(0.5, *map(abs, explanation.change))
    parts = []
    for i, (word, change) in enumerate(zip(explanation.words, explanation.change, strict=True)):
        if i == explanation.cut:
            parts.append('<span style="color:#777">[…]</span>')
        red, green, blue = (0, 114, 178) if change > 0 else (230, 159, 0)
        alpha = 0.67 * abs(change) / scale
        style = f"background:rgba({red},{green},{blue},{alpha:.2f});padding:1px 2px;border-radius:2px"
        parts.append(f'<span style="{style}" title="{change:+.2f}">{html.escape(word)}</span>')
    said = f"<b>{html.escape(explanation.label)}</b>, probability {explanation.probability:.3f}"
    return f'<div style="max-width:60em;line-height:1.7">{said}<br>{" ".join(parts)}</div>'


def curve_figure(
    points: Mapping[int, Metric], level: float, level_name: str, tested: str, name: str = "linear SVM"
) -> Figure:
    """Accuracy of one model by the number of its training rows, and the level of another."""
    drawn, axes = figure(figsize=(8, 3.6))
    sizes = sorted(points)
    axes.vlines(sizes, [points[n].low for n in sizes], [points[n].high for n in sizes], color=GRAY, linewidth=2.5)
    axes.plot(sizes, [points[n].value for n in sizes], "o-", color=BLUE)
    axes.axhline(level, color=ORANGE, linestyle="--")
    axes.annotate(f"{level_name}, {level:.3f}", (0.01, level), (0, 4), xycoords=("axes fraction", "data"),
                  textcoords="offset points", fontsize=9)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.minorticks_off()
    axes.set_xlabel(f"training reviews of the {name}")
    axes.set_ylabel(f"accuracy\n({tested})")
    enough = [n for n in sizes if points[n].value >= level]
    last = sizes[-1]
    if enough:
        told = f"With {enough[0]:,} training reviews the {name} reaches {points[enough[0]].value:.3f}, level with {level_name}"
    else:
        told = (
            f"With {last:,} training reviews the {name} stands at {points[last].value:.3f}, {level_name} at {level:.3f}"
        )
    finding(drawn, told)
    return drawn


def gap_figure(models: Mapping[str, tuple[float, float]], claim: tuple[str, float, float], where: str) -> Figure:
    """Train and test accuracy of models, and of a claim ``(name, train, test)`` that is drawn hollow."""
    order = sorted(models, key=lambda name: models[name][1])
    drawn, axes = figure(figsize=(8, 1.7 + 0.36 * (len(order) + 1)))
    names = [*order, claim[0]]
    for row, name in enumerate(names):
        train, test = models.get(name, claim[1:])
        fill = "full" if name in models else "none"
        axes.plot([test, train], [row, row], color=GRAY, linestyle="-", linewidth=2.5, zorder=1)
        for value, color, marker, label in ((test, BLUE, "o", "test"), (train, GREEN, "s", "train")):
            axes.plot(value, row, marker, color=color, fillstyle=fill, markersize=7, linestyle="",
                      label=label if row == 0 else None)  # fmt: skip
        gap = f"{100 * (train - test):+.1f}"
        axes.annotate(gap, (1.03, row), va="center", fontsize=9.5)
    axes.annotate("train − test\n(points)", (1.03, len(names) - 0.45), fontsize=8.5, va="bottom", annotation_clip=False)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(min(0.6, *(min(pair) for pair in models.values())) - 0.02, 1.11)
    axes.set_xticks([tick for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0) if tick >= axes.get_xlim()[0]])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"accuracy ({where})")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=2)
    learned = {name: train - test for name, (train, test) in models.items() if test > 0.55}
    smallest = min(learned, key=lambda name: learned[name])
    finding(
        drawn,
        f"The smallest gap between train and test here is {100 * learned[smallest]:.1f} points ({smallest}); "
        f"the claim is {100 * (claim[1] - claim[2]):.1f}",
    )
    return drawn


def capacity_figure(path: Mapping[int, tuple[float, float]], claim: tuple[float, float], where: str) -> Figure:
    """Train and test accuracy of a linear SVM by the number of words it may use, beside a claim (train, test)."""
    drawn, axes = figure(figsize=(8, 3.8))
    words = sorted(path)
    train, test = [path[n][0] for n in words], [path[n][1] for n in words]
    axes.fill_between(words, test, train, color=GRAY, alpha=0.2, linewidth=0)
    axes.plot(words, train, "s--", color=GREEN, label="train")
    axes.plot(words, test, "o-", color=BLUE, label="test")
    for value, name, place in ((claim[0], "claimed train", 3), (claim[1], "claimed test", -12)):
        axes.axhline(value, color=ORANGE, linestyle=":", linewidth=1.4)
        axes.annotate(f"{name} {value:.3f}", (0.01, value), (0, place), xycoords=("axes fraction", "data"),
                      textcoords="offset points", fontsize=9)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(words, [f"{n:,}" for n in words])
    axes.minorticks_off()
    axes.set_xlabel(f"most frequent words the SVM may use; {where}")
    axes.set_ylabel("accuracy")
    axes.legend(loc="lower right")
    there = next((n for n in words if path[n][0] >= claim[0]), None)
    if there is None:
        told = f"With {words[-1]:,} words the SVM has {100 * (train[-1] - test[-1]):.1f} points between train and test"
    else:
        told = f"With {there:,} words the SVM reaches the claimed train accuracy; its test is "
        told += f"{100 * (path[there][0] - path[there][1]):.1f} points lower"
    finding(drawn, f"{told}, the claim's {100 * (claim[0] - claim[1]):.1f}")
    return drawn


# --- widgets ----------------------------------------------------------------------------------------


def threshold_explorer(gold: np.ndarray, positive: np.ndarray, labels: Sequence[str]) -> Any:
    """A slider over ``threshold_figure``."""
    import ipywidgets as widgets

    slider = widgets.FloatSlider(
        description="threshold", min=0.01, max=0.99, step=0.01, value=0.5, layout={"width": "480px"}
    )
    image = widgets.Image(format="png")

    def redraw(_: Any = None) -> None:
        image.value = png(threshold_figure(gold, positive, slider.value, labels))

    slider.observe(redraw, "value")
    redraw()
    return widgets.VBox([slider, image])


def review_box(classifier: Any, text: str = "I expected nothing, and it was not even that bad.") -> Any:
    """A field for a review of one's own: the model's label and what each word does for it."""
    import ipywidgets as widgets

    field = widgets.Textarea(value=text, layout={"width": "600px", "height": "90px"})
    button = widgets.Button(description="Classify", button_style="primary")
    answer = widgets.HTML()

    def classify(_: Any = None) -> None:
        words = field.value.strip()
        answer.value = words_html(leave_one_out(classifier, words)) if words else "Type at least one word."

    button.on_click(classify)
    classify()
    return widgets.VBox([field, button, answer])
