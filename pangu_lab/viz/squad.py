"""What a reader of passages sees and where it errs: the figures of lab 08 and its two widgets.

``span_scores`` asks the model, ``question_kind`` sorts questions, ``wrong_answers_metric`` counts; everything
else is a pure function that draws.
"""

import functools
import html
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle

from pangu_lab.tasks.metrics import RESAMPLES, Metric
from pangu_lab.viz import BLACK, BLUE, GRAY, ORANGE, figure, finding, png

# --- what is shown ----------------------------------------------------------------------------------

KINDS = (
    ("how many", re.compile(r"\bhow (many|much|long|old|far|tall|high|large|big|heavy|deep|wide|often)\b")),
    ("when", re.compile(r"\b(when|(what|which) (year|month|day|date|century|decade))\b")),
    ("who", re.compile(r"\b(who|whom|whose)\b")),
    ("where", re.compile(r"\b(where|(what|which) (city|country|town|place|state|region))\b")),
    ("why", re.compile(r"\bwhy\b")),
    ("how", re.compile(r"\bhow\b")),
    ("what, which", re.compile(r"\b(what|which)\b")),
)


def question_kind(question: str) -> str:
    """What a question asks for, by its words: "who", "when", "how many" …; the first kind that fits, or "other".

    >>> question_kind("In which year did the bridge open?"), question_kind("For how long did it stand?")
    ('when', 'how many')
    """
    return next((name for name, pattern in KINDS if pattern.search(question.lower())), "other")


@dataclass(frozen=True)
class SpanScores:
    """How likely each token of a passage is as start and as end of the answer, and the best answers.

    ``offsets[i]`` are the characters of token ``i``; ``start`` and ``end`` are ``(tokens,)`` and sum to 1. Where
    windows overlap, the higher score of a token counts.
    """

    passage: str
    offsets: tuple[tuple[int, int], ...]
    start: np.ndarray
    end: np.ndarray
    answers: tuple[Any, ...]

    def token(self, index: int) -> str:
        first, last = self.offsets[index]
        return self.passage[first:last]


def span_scores(reader: Any, question: str, passage: str, n_best: int = 3) -> SpanScores:
    """What ``reader`` makes of one question on one passage, token by token.

    Raises
    ------
    QuestionAnsweringError
        Question or passage has no words in it.
    """
    # Torch and transformers take seconds to import, and no figure needs them.
    from pangu_lab.tasks.question_answering import Question, ask, span_logits, windows

    answers = tuple(ask(reader, question, passage, n_best))
    found = windows([Question("0", question, passage)], reader.tokenizer, reader.max_length, reader.stride)
    logits = span_logits(reader.model, found, reader.tokenizer.pad_token_id, reader.token_types)
    best: dict[tuple[int, int], np.ndarray] = {}
    for window, both in zip(found, logits, strict=True):
        for place, scores in zip(window.offsets, both.T, strict=True):
            if place and place[0] < place[1]:
                best[place] = np.maximum(best.get(place, scores), scores)
    offsets = tuple(sorted(best))
    scores = np.array([best[place] for place in offsets])  # (tokens, 2)
    shares = np.exp(scores - scores.max(axis=0))
    shares /= shares.sum(axis=0)
    return SpanScores(passage, offsets, shares[:, 0], shares[:, 1], answers)


def wrong_answers_metric(exact: Sequence[float], f1: Sequence[float], groups: Sequence[str], seed: int = 0) -> Metric:
    """Mean F1 of the answers that are not exact, with a bootstrap interval over ``groups`` (passages).

    Without such an answer, and in resamples without one, there is no mean: nan, or left out.
    """
    wrong = 1 - np.asarray(exact, dtype=float)
    earned = np.asarray(f1, dtype=float) * wrong
    names = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    index = np.array([names[group] for group in groups])
    sums, counts = np.bincount(index, earned), np.bincount(index, wrong)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    with np.errstate(invalid="ignore"):
        means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    method = f"bootstrap over passages, {RESAMPLES} resamples, seed {seed}"
    if not wrong.any():
        return Metric(math.nan, math.nan, math.nan, method)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return Metric(float(sums.sum() / counts.sum()), float(low), float(high), method)


# --- figures ----------------------------------------------------------------------------------------


def windows_figure(tokens: int, ways: Mapping[str, Sequence[tuple[int, int]]], answer: tuple[int, int]) -> Figure:
    """Ways to cut a passage of ``tokens`` into windows ``(first, one after last)``, and its answer across them."""
    rows = sum(len(spans) for spans in ways.values())
    drawn, axes = figure(figsize=(8, 1.2 + 0.24 * (rows + len(ways))))
    y, ticks, names, told = 0.0, [], [], []
    for name, spans in ways.items():
        whole = [a <= answer[0] and answer[1] <= b for a, b in spans]
        ticks.append(y + (len(spans) - 1) / 2)
        names.append(name)
        for (a, b), holds in zip(spans, whole, strict=True):
            axes.barh(y, b - a, left=a, height=0.72, color=BLUE if holds else GRAY, alpha=0.9 if holds else 0.45)
            y += 1
        y += 0.7
        told.append(f"{sum(whole)} of {len(spans)} with {name}")
    axes.axvspan(*answer, color=ORANGE, alpha=0.85, linewidth=0)
    axes.set_yticks(ticks, names)
    axes.set_ylim(y - 1, -0.6)
    axes.set_xlim(0, tokens)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("token of the passage (blue: windows that hold the whole answer; orange: the answer)")
    finding(drawn, f"Windows that hold the whole answer: {'; '.join(told)}")
    return drawn


def pairs_figure(start: np.ndarray, end: np.ndarray, tokens: Sequence[str], max_tokens: int) -> Figure:
    """The score of every pair of start and end, and the best one among the valid.

    ``start``, ``end`` are logits ``(tokens,)`` of a part of a passage; a span has at most ``max_tokens`` tokens.
    """
    # A fixed layout: finding one takes longer than all the rest, and a slider waits for it.
    drawn, axes = figure(figsize=(8, 4.9), layout="none")
    drawn.subplots_adjust(left=0.2, right=0.78, bottom=0.23, top=0.89)
    count = len(tokens)
    scores = start[:, None] + end[None, :]  # (start, end)
    length = np.arange(count)[None, :] - np.arange(count)[:, None] + 1
    valid = (length >= 1) & (length <= max_tokens)
    shown = axes.imshow(np.where(valid, scores, np.nan), aspect="auto", vmin=scores.min(), vmax=scores.max())
    axes.set_facecolor("#EDEDED")
    first, last = divmod(int(np.where(valid, scores, -np.inf).argmax()), count)
    alone = int(start.argmax()), int(end.argmax())
    axes.plot(
        alone[1],
        alone[0],
        "x",
        color=BLACK,
        markersize=11,
        markeredgewidth=2.5,
        label="best start and\nbest end, each\non its own",
    )
    axes.plot(
        last, first, "o", color=ORANGE, markersize=14, fillstyle="none", markeredgewidth=2.5, label="best valid pair"
    )
    axes.set_xticks(range(count), tokens, rotation=90, fontsize=8)
    axes.set_yticks(range(count), tokens, fontsize=8)
    axes.set_xlabel("end token")
    axes.set_ylabel("start token")
    axes.grid(visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.01))
    bar = drawn.add_axes((0.82, 0.23, 0.02, 0.36))
    drawn.colorbar(shown, cax=bar, label="start + end (logits)")
    axes.text(1.04, -0.02, "gray: not allowed", transform=axes.transAxes, fontsize=8.5, va="top")
    span = " ".join(tokens[first : last + 1]).replace(" ##", "")
    if alone == (first, last):
        told = f"Best start and best end fit together: “{span}”"
    elif alone[1] < alone[0]:
        told = f"Best end before best start; the best valid pair is “{span}”"
    else:
        told = f"Best start and best end are {alone[1] - alone[0] + 1} tokens apart, {max_tokens} are allowed: “{span}”"
    finding(drawn, told)
    return drawn


CHARACTERS, LINE, SIZE = 108, 25.0, 8.0  # a line of the passage in characters, its height and font size in points


def _lines(passage: str) -> list[tuple[int, int]]:
    """The passage in lines of at most CHARACTERS, broken at spaces where there are any: character ranges."""
    lines, start = [], 0
    while start < len(passage):
        end = min(len(passage), start + CHARACTERS)
        if end < len(passage):
            space = passage.rfind(" ", start, end)
            end = space + 1 if space > start else end
        lines.append((start, end))
        start = end
    return lines


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans Mono")).get_charmap())


def _drawable(text: str) -> str:
    """The text with a box for each character that the font lacks; none is lost, since places count."""
    return "".join(c if ord(c) in _glyphs() else "□" for c in text)


def scores_figure(scores: SpanScores, question: str, gold: str = "") -> Figure:
    """The passage with a bar over each likely start and under each likely end; the answer is underlined.

    ``gold`` is the answer that counts as right, if one is known.
    """
    lines = _lines(scores.passage)
    height = LINE * (len(lines) + 1.1) + 44
    drawn, axes = figure(figsize=(8, height / 72), layout="none")
    axes.set_position((0.012, 0, 0.98, 1 - 42 / height))
    axes.axis("off")
    wide = 0.602 * SIZE  # the width of a character, all are as wide
    axes.set_xlim(0, 8 * 72 * 0.98)
    axes.set_ylim(height - 42, 0)
    said = scores.answers[0]
    rectangles: list[tuple[float, float, float, str]] = []
    under = []
    for number, (a, b) in enumerate(lines):
        y = LINE * (number + 0.75)
        axes.text(0, y, _drawable(re.sub(r"\s", " ", scores.passage[a:b])), family="DejaVu Sans Mono", fontsize=SIZE,
                  va="baseline", parse_math=False)  # fmt: skip
        for index, (first, last) in enumerate(scores.offsets):
            if not a <= first < b:
                continue
            x, width = wide * (first - a), wide * (last - first)
            for share, color, place in ((scores.start[index], BLUE, y - 8), (scores.end[index], ORANGE, y + 3.2)):
                if share >= 0.02:
                    tall = 1.5 + 6.5 * float(share) ** 0.5
                    rectangles.append((x, place - tall if color == BLUE else place, width, color))
                    axes.add_patch(Rectangle(rectangles[-1][:2], width, tall, color=color, linewidth=0))
        left, right = max(a, said.start), min(b, said.end)
        if left < right:
            under.append([(wide * (left - a), y + 2), (wide * (right - a), y + 2)])
    axes.add_collection(LineCollection(under, colors=BLACK, linewidths=1.4))
    key = "blue bar over a token: probability that the answer starts there; orange bar under it: that it ends there"
    axes.text(0, LINE * (len(lines) + 0.85), key, fontsize=8.5, color="#555555")
    told = f"“{question}” The model says “{_short(said.text)}”, with {said.probability:.2f} among its {len(scores.answers)} best"
    told += f"; gold: “{_short(gold)}”" if gold else ""
    told = textwrap.fill(_drawable(told).replace("$", r"\$"), 76)  # a question is broader than most titles
    drawn.suptitle(told, x=0.01, ha="left")
    return drawn


def _short(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def scores_html(scores: SpanScores) -> str:
    """The same as HTML: blue from above is the start, orange from below the end; the pointer shows the numbers."""
    rows = "".join(
        f"<tr><td style='text-align:right'>{answer.probability:.2f}</td><td style='text-align:right'>{answer.score:+.1f}"
        f"</td><td style='text-align:left'>{html.escape(answer.text) or '<i>no answer</i>'}</td></tr>"
        for answer in scores.answers
    )
    parts, place, said = [], 0, scores.answers[0]
    for index, (first, last) in enumerate(scores.offsets):
        parts.append(html.escape(scores.passage[place:first]))
        above, below = (min(0.85, float(share[index]) ** 0.5) for share in (scores.start, scores.end))
        line = "border-bottom:2px solid #000;" if said.start <= first < said.end else ""
        style = (
            f"{line}background:linear-gradient(rgba(0,114,178,{above:.2f}) 45%,transparent 45%,transparent 55%,"
            f"rgba(230,159,0,{below:.2f}) 55%)"
        )
        plain = above < 0.03 and below < 0.03 and not line
        token = html.escape(scores.passage[first:last])
        title = f"start {scores.start[index]:.3f}, end {scores.end[index]:.3f}"
        parts.append(token if plain else f'<span style="{style}" title="{title}">{token}</span>')
        place = last
    parts.append(html.escape(scores.passage[place:]))
    head = "<tr><th>probability</th><th>score</th><th style='text-align:left'>answer</th></tr>"
    return f'<div style="max-width:60em;line-height:1.9"><table>{head}{rows}</table>{"".join(parts)}</div>'


def wrong_answers_figure(
    public: Mapping[str, tuple[float, float]],
    claim: tuple[str, float, float],
    own: tuple[str, Metric, Sequence[float]],
    tested: str,
) -> Figure:
    """What answers that are not exact earn in F1: published models ``(EM, F1)``, a claim, and one's own run.

    ``own`` is a name, the metric of ``wrong_answers_metric``, and the F1 of each answer that is not exact; the
    right panel shows how these are spread. ``tested`` says on what.
    """
    share = {name: 100 * (f1 - em) / (100 - em) for name, (em, f1) in public.items()}
    claimed = 100 * (claim[2] - claim[1]) / (100 - claim[1])
    order = sorted(public, key=lambda name: public[name][0])
    name, metric, values = own
    drawn, (left, right) = figure(1, 2, figsize=(8, 3.7), width_ratios=(1.35, 1))
    labels = [name, *(f"{model}, EM {public[model][0]}" for model in order), f"{claim[0]}, EM {claim[1]}"]
    rows = [100 * metric.value, *(share[model] for model in order), claimed]
    left.plot([100 * metric.low, 100 * metric.high], [0, 0], color=GRAY, linestyle="-", linewidth=3)
    for row, value in enumerate(rows):
        hollow = row == len(rows) - 1
        color = ORANGE if hollow else BLACK if row == 0 else BLUE
        left.plot(value, row, "s" if row == 0 else "o", color=color, markersize=8, fillstyle="none" if hollow else "full",
                  markeredgewidth=2)  # fmt: skip
        left.annotate(f"{value:.1f}", (value, row), (0, 7), textcoords="offset points", ha="center", fontsize=9)
    left.set_yticks(range(len(rows)), labels)
    left.set_ylim(-0.6, len(rows) - 0.2)
    left.set_xlim(0, max(60.0, 105 * metric.high if metric.high == metric.high else 0))
    left.grid(axis="y", visible=False)
    left.set_xlabel("mean F1 of the answers that are not exact (%)")
    edges = (0.0, 1e-9, 0.25, 0.5, 0.75, 1.0)
    counts = np.histogram(np.asarray(values, dtype=float), bins=edges)[0]
    right.bar(range(5), counts, color=BLACK, width=0.75)
    for place, count in enumerate(counts):
        right.annotate(f"{count}", (place, count), (0, 3), textcoords="offset points", ha="center", fontsize=9)
    right.set_xticks(range(5), ["0", "≤ ¼", "≤ ½", "≤ ¾", "< 1"])
    right.set_ylim(0, 1.15 * max(1, counts.max()))
    right.set_xlabel("F1 of an answer, not exact")
    right.set_ylabel("answers")
    right.set_title(textwrap.fill(tested, 28), fontweight="normal", fontsize=9)
    low, high = min(share.values()), max(share.values())
    told = (
        f"Answers that are not exact earn {low:.0f} to {high:.0f} % in published models, {claimed:.1f} % in the claim"
    )
    told += f"; in your run {100 * metric.value:.1f} %" if metric.value == metric.value else ""
    finding(drawn, told)
    return drawn


# --- widgets ----------------------------------------------------------------------------------------


def pairs_explorer(start: np.ndarray, end: np.ndarray, tokens: Sequence[str], max_tokens: int = 8) -> Any:
    """A slider for the longest answer over ``pairs_figure``."""
    import ipywidgets as widgets

    slider = widgets.IntSlider(
        description="max_tokens", min=1, max=len(tokens), value=min(max_tokens, len(tokens)), layout={"width": "480px"}
    )
    image = widgets.Image(format="png")

    def redraw(_: Any = None) -> None:
        image.value = png(pairs_figure(start, end, tokens, slider.value))

    slider.observe(redraw, "value")
    redraw()
    return widgets.VBox([slider, image])


def passage_box(reader: Any, question: str, passage: str) -> Any:
    """Fields for a passage and a question of one's own: the answers and the scores of each token."""
    import ipywidgets as widgets

    wide = {"width": "640px"}
    text = widgets.Textarea(value=passage, description="passage", layout=wide | {"height": "130px"})
    asked = widgets.Text(value=question, description="question", layout=wide)
    button = widgets.Button(description="Answer", button_style="primary")
    answer = widgets.HTML()

    def respond(_: Any = None) -> None:
        if not text.value.strip() or not asked.value.strip():
            answer.value = "Type a passage and a question with at least one word each."
            return
        answer.value = scores_html(span_scores(reader, asked.value, text.value))

    button.on_click(respond)
    respond()
    return widgets.VBox([text, asked, button, answer])
