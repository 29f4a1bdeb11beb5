"""Exercises of lab 08: from characters to tokens, windows, the loss of a span, its decoding, and its scores.

References come from another road than the obvious one: the tokenizers library cuts the windows, torch computes
the loss, every pair is tried for the best span. That they agree with ``tasks.question_answering`` and with
torchmetrics is for the tests.
"""

import itertools
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from pangu_lab.exercises.engine import Case, Compare, Exercise, Mistake

Offsets = list[tuple[int, int]]

# --- from characters to tokens ----------------------------------------------------------------------


def token_span(offsets: Offsets, sequence: list[int | None], start: int, end: int) -> tuple[int, int]:
    """The tokens of the first and of the last character; (0, 0) where one of them is not in the window."""
    passage = [i for i, part in enumerate(sequence) if part == 1]
    first = [i for i in passage if start in range(*offsets[i])]
    last = [i for i in passage if end - 1 in range(*offsets[i])]
    return (first[0], last[0]) if first and last else (0, 0)


def _spanning(
    parts: tuple[int, ...] = (1,), touch: bool = False, whole: bool = True, nowhere: Any = (0, 0)
) -> Callable[..., Any]:
    """The same by overlap, with the ways to get it wrong."""

    def span(offsets: Offsets, sequence: list[int | None], start: int, end: int) -> Any:
        tokens = [(i, *offsets[i]) for i, part in enumerate(sequence) if part in parts]
        inside = [(i, a, b) for i, a, b in tokens if (a <= end and b >= start if touch else a < end and b > start)]
        if not inside or (whole and not (inside[0][1] <= start and inside[-1][2] >= end)):
            return nowhere
        return inside[0][0], inside[-1][0]

    return span


_by_overlap = _spanning()


def _any_text(offsets: Offsets, sequence: list[int | None], start: int, end: int) -> tuple[int, int]:
    return token_span(offsets, [part if part is None else 1 for part in sequence], start, end)


def _after_last(offsets: Offsets, sequence: list[int | None], start: int, end: int) -> tuple[int, int]:
    first, last = token_span(offsets, sequence, start, end)
    return (first, last + 1) if last else (0, 0)


def _end_included(offsets: Offsets, sequence: list[int | None], start: int, end: int) -> tuple[int, int]:
    return token_span(offsets, sequence, start, end + 1)


def _borders_only(offsets: Offsets, sequence: list[int | None], start: int, end: int) -> tuple[int, int]:
    first, last = token_span(offsets, sequence, start, end)
    return (first, last) if offsets[first][0] == start and offsets[last][1] == end else (0, 0)


def _from_passage(offsets: Offsets, sequence: list[int | None], start: int, end: int) -> tuple[int, int]:
    first, last = token_span(offsets, sequence, start, end)
    return (first - sequence.index(1), last - sequence.index(1)) if last else (0, 0)


def _first_twice(offsets: Offsets, sequence: list[int | None], start: int, end: int) -> tuple[int, int]:
    first, _ = token_span(offsets, sequence, start, end)
    return first, first


def _split(rng: np.random.Generator, words: int) -> Offsets:
    """Offsets of words that fall into one or two tokens each; every third word has a comma behind it."""
    offsets, place = [], 0
    for word in range(words):
        for _ in range(int(rng.integers(1, 3))):
            length = int(rng.integers(2, 6))
            offsets.append((place, place + length))
            place += length
        if word % 3 == 2:
            offsets.append((place, place + 1))
            place += 1
        place += 1  # a space
    return offsets


def _window_case(passage: Offsets, start: int, end: int, note: str, question: Offsets) -> Case:
    offsets = [(0, 0), *question, (0, 0), *passage, (0, 0)]
    sequence = [None, *[0] * len(question), None, *[1] * len(passage), None]
    return Case((offsets, sequence, start, end), note=note)


def _span_cases(rng: np.random.Generator) -> list[Case]:
    question = [(a, a + 8) for a in range(0, 40, 8)]  # every character of the passage's begin has a token here, too
    tokens = _split(rng, 9)
    commas = [i for i, (a, b) in enumerate(tokens) if b - a == 1]
    early = commas[0] - int(rng.integers(1, 3))  # its characters exist in the question, too
    wide = [i for i in range(4, len(tokens) - 2) if all(tokens[j][1] - tokens[j][0] > 1 for j in (i, i + 2))]
    inner = int(rng.choice(wide))
    later = [(a + 400, b + 400) for a, b in tokens]
    single = int(rng.integers(3, len(tokens) - 3))
    return [
        _window_case(tokens, tokens[early][0], tokens[commas[0] - 1][1], "a comma follows the answer", question),
        _window_case(tokens, tokens[inner][0] + 1, tokens[inner + 2][1] - 1,
                     "the answer begins and ends inside a token", question),
        _window_case(later, later[single][0], later[single][1], "one token, in a later window", question),
        _window_case(later, later[commas[1] + 1][0], later[commas[2]][1],
                     "the answer begins after a comma and a space", question),
        _window_case(later, later[-2][0], later[-1][1] + 9, "the answer goes on behind the window", question),
        _window_case(later, later[0][0] - 7, later[1][1], "the answer begins before the window", question),
        _window_case(later, later[-1][1] + 20, later[-1][1] + 31, "the answer is in another window", question),
    ]  # fmt: skip


SPAN = Exercise(
    id="squad.token_span",
    points=3,
    title="From characters to tokens",
    cases=_span_cases,
    reference=token_span,
    also_right=(_by_overlap,),
    mistakes=(
        Mistake("question", "You find tokens of the question: its offsets count the characters of the question, not "
                "of the passage. Look only at tokens whose sequence is 1.", _any_text),
        Mistake("question-overlap", "Tokens of the question take part: their offsets point into the question. Only "
                "tokens whose sequence is 1 belong to the passage.", _spanning(parts=(0, 1))),
        Mistake("cut", "An answer that the window cuts off is labeled all the same: the model would learn half an "
                "answer. Where a character of it is missing, the result is (0, 0).", _spanning(whole=False)),
        Mistake("touching", "A token that only touches the answer is taken, too: ends are exclusive, so a token that "
                "starts where the answer ends is outside.", _spanning(touch=True)),
        Mistake("end-included", "You look for the token of character end; the answer's last character is end - 1.",
                _end_included),
        Mistake("after-last", "The second number is one too large: it is the last token itself, not the one after "
                "it.", _after_last),
        Mistake("borders", "You want a token that starts exactly where the answer does, and one that ends there; an "
                "answer can begin or end inside a token.", _borders_only),
        Mistake("relative", "You count from the first token of the passage; the model's positions count from [CLS].",
                _from_passage),
        Mistake("first-twice", "Both numbers are the first token; the second one belongs to the answer's last "
                "character.", _first_twice),
        Mistake("minus-one", "A window without the answer gets (-1, -1): no position of the model. [CLS], position 0, "
                "stands for “not here”.", _spanning(nowhere=(-1, -1))),
        Mistake("none", "A window without the answer gives None; return (0, 0), the position of [CLS].",
                _spanning(nowhere=None)),
    ),
    hints=(
        "Which token holds the character start, and which holds end - 1? Only tokens of the passage may.",
        "A token (a, b) shares characters with the answer if a < end and b > start. The first and the last of these "
        "are the span, unless the answer reaches beyond them.",
        "inside = [i for i, (a, b) in enumerate(offsets) if sequence[i] == 1 and ...]\n"
        "if not inside or offsets[inside[0]][0] > start or ...:\n    return 0, 0\nreturn inside[0], inside[-1]",
    ),
)  # fmt: skip


# --- windows ----------------------------------------------------------------------------------------


def windows(
    question: list[int], passage: list[int], max_length: int, overlap: int, cls: int, sep: int
) -> list[list[int]]:
    """The windows as the tokenizers library cuts them: each id is a word, only the passage is truncated."""
    vocabulary = {str(token): token for token in {*question, *passage, cls, sep}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=str(cls)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing((str(sep), sep), (str(cls), cls))
    tokenizer.enable_truncation(max_length, stride=overlap, strategy="only_second")
    first = tokenizer.encode(" ".join(map(str, question)), " ".join(map(str, passage)))
    return [first.ids, *(other.ids for other in first.overflowing)]


def _cutting(
    room: Callable[[int, int], int] = lambda limit, asked: limit - asked - 3,
    step: Callable[[int, int], int] = lambda room, overlap: room - overlap,
    stop: str = "covered",
    joined: Callable[..., list[int]] = lambda q, p, cls, sep, number: [cls, *q, sep, *p, sep],
) -> Callable[..., list[list[int]]]:
    """Windows by hand: how many passage tokens fit, how far to go on, when to stop, what a window is made of."""

    def cut(q: list[int], passage: list[int], limit: int, overlap: int, cls: int, sep: int) -> list[list[int]]:
        width = room(limit, len(q))
        found: list[list[int]] = []
        start = 0
        while True:
            part = passage[start : start + width]
            if stop == "moved back" and start + width > len(passage):
                part = passage[-width:]
            found.append(joined(q, part, cls, sep, len(found)))
            start += step(width, overlap)
            covered = start + width - step(width, overlap) >= len(passage)
            if stop == "first" or (covered and stop in ("covered", "moved back")):
                return found
            if stop == "full only" and start + width > len(passage):
                return found
            if stop == "passage ends" and start >= len(passage):
                return found

    return cut


def _window_cases(rng: np.random.Generator) -> list[Case]:
    asked, limit = int(rng.integers(4, 8)), int(rng.integers(22, 30))
    room, overlap = limit - asked - 3, int(rng.integers(2, 5))
    cases = []
    for length, note in (
        (3 * room + 2 * (room - 2 * overlap) // 3 - 3 * overlap + 1, "several windows"),
        (room + 1, "one token too long for one window"),
        (room, "the passage fits exactly"),
        (room - 4, "the passage is short"),
        (room + 2 * (room - overlap), "the last window ends where the passage does"),
    ):
        ids = rng.choice(np.arange(1000, 30_000), size=asked + length, replace=False).tolist()
        cases.append(Case((ids[:asked], ids[asked:], limit, overlap, 101, 102), note=note))
    return cases


WINDOWS = Exercise(
    id="squad.windows",
    points=3,
    title="Overlapping windows",
    cases=_window_cases,
    reference=windows,
    also_right=(_cutting(),),
    mistakes=(
        Mistake("no-overlap", "The windows do not overlap: an answer at a border is whole in none of them. The next "
                "window starts room - overlap tokens on.", _cutting(step=lambda room, overlap: room)),
        Mistake("step", "You go on by overlap tokens; overlap says how many tokens two neighbors share, so the step "
                "is room - overlap.", _cutting(step=lambda room, overlap: overlap)),
        Mistake("last-lost", "The last window is lost where it is not full: the end of the passage is never read.",
                _cutting(stop="full only")),
        Mistake("one-more", "There is a window too many: once a window reaches the passage's end, the next one would "
                "hold nothing new.", _cutting(stop="passage ends")),
        Mistake("moved-back", "You move the last window back until it is full: it then overlaps by more than "
                "overlap. Let it be short.", _cutting(stop="moved back")),
        Mistake("first-only", "Only the first window is there; the rest of the passage is never read.",
                _cutting(stop="first")),
        Mistake("no-room", "The windows are three tokens too long: [CLS] and two [SEP] need room, too.",
                _cutting(room=lambda limit, asked: limit - asked)),
        Mistake("two-specials", "The windows are one token too long: there are three special tokens, [CLS] and two "
                "[SEP].", _cutting(room=lambda limit, asked: limit - asked - 2)),
        Mistake("question-free", "You forget the question's length: room is max_length - len(question) - 3.",
                _cutting(room=lambda limit, asked: limit - 3)),
        Mistake("asked-once", "Only the first window holds the question; the model reads each window on its own, so "
                "each needs it.",
                _cutting(joined=lambda q, p, cls, sep, n: [cls, *q, sep, *p, sep] if n == 0 else [cls, *p, sep])),
        Mistake("no-last-sep", "The [SEP] after the passage is missing.",
                _cutting(joined=lambda q, p, cls, sep, n: [cls, *q, sep, *p])),
        Mistake("no-middle-sep", "The [SEP] between question and passage is missing.",
                _cutting(joined=lambda q, p, cls, sep, n: [cls, *q, *p, sep])),
        Mistake("order", "The question comes first, then the passage.",
                _cutting(joined=lambda q, p, cls, sep, n: [cls, *p, sep, *q, sep])),
    ),
    hints=(
        "How many tokens of the passage have room beside the question and three special tokens? How far is it from "
        "one window's start to the next one's?",
        "room = max_length - len(question) - 3, step = room - overlap. Stop as soon as a window has reached the end.",
        "start = 0\nwhile True:\n    found.append([cls, *question, sep, *passage[start : ...], sep])\n"
        "    if start + room >= len(passage):\n        return found\n    start += ...",
    ),
)  # fmt: skip


# --- the loss ---------------------------------------------------------------------------------------


def span_loss(start: Tensor, end: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Torch's cross-entropy over start and end, one row after the other, cut to the row's real tokens."""
    losses = []
    for i, length in enumerate(mask.sum(dim=1).tolist()):
        both = torch.stack([start[i, :length], end[i, :length]])  # (2, length)
        losses.append(nn.functional.cross_entropy(both, labels[i]))
    return torch.stack(losses).mean()


def _losing(
    masking: Callable[[Tensor, Tensor], Tensor] = lambda logits, mask: logits.masked_fill(mask == 0, -1e4),
    one: Callable[[Tensor, Tensor], Tensor] = lambda logits, at: nn.functional.cross_entropy(
        logits, at, reduction="none"
    ),
    joined: Callable[[Tensor, Tensor], Tensor] = lambda a, b: (a + b) / 2,
    reduced: Callable[[Tensor, Tensor], Tensor] = lambda loss, labels: loss.mean(),
    swapped: bool = False,
) -> Callable[..., Tensor]:
    """The loss in parts: mask, cross-entropy ``(batch,)`` of each end, both joined, mean over windows."""

    def loss(start: Tensor, end: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        places = labels.flip(1) if swapped else labels
        a, b = (one(masking(logits, mask), places[:, i]) for i, logits in enumerate((start, end)))
        return reduced(joined(a, b), labels)

    return loss


def _picked(logits: Tensor, at: Tensor) -> Tensor:
    return logits.gather(1, at[:, None])[:, 0]


def _answered(labels: Tensor) -> Tensor:
    return (labels.sum(dim=1) > 0).float()


def _loss_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for rows, note in ((1, "one window"), (3, "the second window holds no answer"), (5, "three without an answer")):
        width = int(rng.integers(9, 14))
        logits = torch.from_numpy(rng.normal(size=(2, rows, width)).astype(np.float32))
        lengths = rng.integers(6, width - 1, rows)
        mask = torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))
        first = rng.integers(2, 4, rows)
        labels = np.stack([first, first + rng.integers(1, 3, rows)], axis=1)
        labels[1::2] = 0
        if rows == 5:
            labels[4] = 0
        logits[:, mask == 0] += 1.5
        cases.append(Case((logits[0], logits[1], torch.from_numpy(labels), mask), note=note))
    return cases


LOSS = Exercise(
    id="squad.span_loss",
    points=3,
    title="The loss of a span",
    cases=_loss_cases,
    reference=span_loss,
    also_right=(_losing(), _losing(masking=lambda logits, mask: logits.masked_fill(mask == 0, -math.inf))),
    mistakes=(
        Mistake("padding", "Padding takes part in the softmax: set the scores where mask is 0 to a very low number "
                "first.", _losing(masking=lambda logits, mask: logits)),
        Mistake("zeroed", "You multiply the scores by the mask: padding then has the score 0, which is no low one. "
                "Use masked_fill with -1e4.", _losing(masking=lambda logits, mask: logits * mask)),
        Mistake("answered-only", "Windows without an answer are left out of the mean: the model would never learn to "
                "say “not here”. Position 0 is a label like any other.",
                _losing(reduced=lambda loss, labels: (loss * _answered(labels)).sum() / _answered(labels).sum())),
        Mistake("free", "Windows without an answer cost nothing: their loss counts as 0. Position 0 is a label like "
                "any other.", _losing(reduced=lambda loss, labels: (loss * _answered(labels)).mean())),
        Mistake("summed", "Start and end are added; the loss is their mean, half of that.",
                _losing(joined=lambda a, b: a + b)),
        Mistake("start-only", "The end has no part in your loss.", _losing(joined=lambda a, b: a)),
        Mistake("end-only", "The start has no part in your loss.", _losing(joined=lambda a, b: b)),
        Mistake("swapped", "Start and end are swapped: labels[:, 0] is the start.", _losing(swapped=True)),
        Mistake("batch-sum", "You add up the windows; take their mean.",
                _losing(reduced=lambda loss, labels: loss.sum())),
        Mistake("twice", "Softmax is applied twice: cross_entropy does it itself, so give it the scores.",
                _losing(one=lambda logits, at: nn.functional.cross_entropy(logits.softmax(-1), at, reduction="none"))),
        Mistake("no-log", "The logarithm is missing: you take one minus the probability.",
                _losing(one=lambda logits, at: 1 - _picked(logits.softmax(-1), at))),
        Mistake("sign", "The sign is wrong: a loss is minus the log-probability.",
                _losing(one=lambda logits, at: _picked(logits.log_softmax(-1), at))),
        Mistake("raw", "You take the scores themselves; they become log-probabilities by log_softmax over the tokens.",
                _losing(one=lambda logits, at: -_picked(logits, at))),
    ),
    hints=(
        "A start is one of length classes, an end, too. What does classification do with that?",
        "Mask first, then nn.functional.cross_entropy(scores, labels[:, 0]), the same for the end, and their mean.",
        "loss = 0\nfor scores, place in ((start, labels[:, 0]), (end, labels[:, 1])):\n"
        "    scores = scores.masked_fill(mask == 0, -1e4)\n    loss = loss + ...\nreturn loss",
    ),
)  # fmt: skip


# --- the best span ----------------------------------------------------------------------------------


def best_span(start: np.ndarray, end: np.ndarray, in_passage: np.ndarray, max_tokens: int) -> tuple[int, int, float]:
    """First and last token and the score of the best span: every pair is tried."""
    tokens = np.flatnonzero(in_passage).tolist()
    valid = [(i, j) for i, j in itertools.combinations_with_replacement(tokens, 2) if j < i + max_tokens]
    first, last = max(valid, key=lambda pair: start[pair[0]] + end[pair[1]])
    return first, last, float(start[first] + end[last])


def _decoding(
    special: bool = False,
    shortest: int = 1,
    longest: Callable[[int], float] = lambda limit: limit,
    joined: Callable[[Any, Any], Any] = lambda a, b: a + b,
    backward: bool = False,
    result: Callable[[int, int, float], Any] = lambda first, last, score: (first, last, score),
) -> Callable[..., Any]:
    """All pairs at once, with the ways to get it wrong."""

    def decode(start: np.ndarray, end: np.ndarray, in_passage: np.ndarray, max_tokens: int) -> Any:
        length = np.arange(len(end))[None, :] - np.arange(len(start))[:, None] + 1
        allowed = (length >= shortest) | backward
        allowed &= length <= longest(max_tokens)
        if not special:
            allowed &= in_passage[:, None] & in_passage[None, :]
        scores = np.where(allowed, joined(start[:, None], end[None, :]), -np.inf)
        first, last = divmod(int(scores.argmax()), len(end))
        return result(first, last, float(start[first] + end[last]))

    return decode


def _one_then_other(order: str, sort: bool = False) -> Callable[..., tuple[int, int, float]]:
    """The best of one end first, then the best that fits to it, or the other end on its own ("both")."""

    def decode(start: np.ndarray, end: np.ndarray, in_passage: np.ndarray, max_tokens: int) -> tuple[int, int, float]:
        start, end = np.where(in_passage, start, -np.inf), np.where(in_passage, end, -np.inf)
        first, last = int(start.argmax()), int(end.argmax())
        if order == "start":
            last = first + int(end[first : first + max_tokens].argmax())
        elif order == "end":
            low = max(0, last - max_tokens + 1)
            first = low + int(start[low : last + 1].argmax())
        elif sort:
            first, last = sorted((first, last))
        return first, last, float(start[first] + end[last])

    return decode


def _by_probability(
    start: np.ndarray, end: np.ndarray, in_passage: np.ndarray, max_tokens: int
) -> tuple[int, int, float]:
    first, last, score = best_span(start, end, in_passage, max_tokens)
    return first, last, float(np.exp(score) / np.exp(start).sum() / np.exp(end).sum())


def _from_first(start: np.ndarray, end: np.ndarray, in_passage: np.ndarray, max_tokens: int) -> tuple[int, int, float]:
    first, last, score = best_span(start, end, in_passage, max_tokens)
    zero = int(np.flatnonzero(in_passage)[0])
    return first - zero, last - zero, score


def _logits_case(rng: np.random.Generator, note: str, peaks: Sequence[tuple[int, int, float]], limit: int) -> Case:
    """Noise with peaks ``(0 for start or 1 for end, token of the passage, height)``; [CLS] is above the noise."""
    asked, passage = int(rng.integers(3, 6)), 20
    logits = rng.normal(0, 0.3, (2, asked + passage + 3)) - 3
    logits[:, 0] = rng.uniform(0.5, 1.0, 2)
    logits[:, 1 : asked + 2] -= 1
    for which, token, height in peaks:
        logits[which, asked + 2 + token] = height + rng.uniform(0, 0.1)
    in_passage = np.zeros(logits.shape[1], dtype=bool)
    in_passage[asked + 2 : -1] = True
    return Case((logits[0].round(3), logits[1].round(3), in_passage, limit), note=note)


def _decode_cases(rng: np.random.Generator) -> list[Case]:
    limit, at = int(rng.integers(4, 7)), int(rng.integers(2, 5))
    return [
        _logits_case(rng, "the best end stands before the best start",
                     [(1, at, 5.0), (0, at + 6, 4.5), (1, at + 8, 3.6), (0, at - 1, 2.7)], limit),
        _logits_case(rng, "the best start has no good end",
                     [(0, at + 9, 4.0), (0, at, 3.5), (1, at + 2, 3.5)], limit),
        _logits_case(rng, "the best end has no good start",
                     [(1, at, 4.0), (0, at + 8, 3.5), (1, at + 10, 3.5)], limit),
        _logits_case(rng, "one token alone", [(0, at + 4, 4.0), (1, at + 4, 4.2), (1, at + 6, 2.0)], limit),
        _logits_case(rng, "a span of max_tokens tokens", [(0, at, 4.0), (1, at + limit - 1, 4.0), (1, at + 1, 2.0)],
                     limit),
        _logits_case(rng, "one of max_tokens + 1 is too long",
                     [(0, at, 4.0), (1, at + limit, 4.0), (1, at + 2, 3.0)], limit),
        _logits_case(rng, "one far too long", [(0, at, 4.0), (1, at + 12, 4.0), (1, at + 2, 3.0)], limit),
        _logits_case(rng, "nothing in the passage reaches [CLS]", [(0, at, -1.4), (1, at + 2, -1.5)], limit),
    ]  # fmt: skip


BEST = Exercise(
    id="squad.best_span",
    points=3,
    title="The best span",
    cases=_decode_cases,
    reference=best_span,
    also_right=(_decoding(),),
    mistakes=(
        Mistake("separate", "You take the best start and the best end separately, so the end can stand before the "
                "start, or far away. Compare pairs that fit together.", _one_then_other("both")),
        Mistake("sorted", "You swap start and end where they cross: that joins two half answers into something that "
                "nobody scored. Compare pairs that fit together.", _one_then_other("both", sort=True)),
        Mistake("separate-all", "You take the best start and the best end of all tokens separately: the end can stand "
                "before the start, and [CLS] is no answer.",
                _decoding(special=True, backward=True, longest=lambda limit: math.inf)),
        Mistake("start-first", "You fix the best start and then look for its end; another start with a better end "
                "can have the higher sum.", _one_then_other("start")),
        Mistake("end-first", "You fix the best end and then look for its start; another pair can have the higher sum.",
                _one_then_other("end")),
        Mistake("special", "[CLS] or a token of the question is in your span; only tokens of the passage can be.",
                _decoding(special=True)),
        Mistake("backward", "The end may not stand before the start.", _decoding(backward=True)),
        Mistake("no-limit", "max_tokens is ignored: the span is longer than it allows.",
                _decoding(longest=lambda limit: math.inf)),
        Mistake("one-more", "A span from first to last has last - first + 1 tokens; yours may have one too many.",
                _decoding(longest=lambda limit: limit + 1)),
        Mistake("one-less", "A span of exactly max_tokens tokens is allowed.",
                _decoding(longest=lambda limit: limit - 1)),
        Mistake("two-tokens", "An answer of one token is allowed: start and end can be the same.",
                _decoding(shortest=2)),
        Mistake("product", "You multiply the scores: two negative ones give a positive product. Logits are added.",
                _decoding(joined=lambda a, b: a * b)),
        Mistake("exclusive", "The second number is one too large: it is the last token itself, not the one after it.",
                _decoding(result=lambda first, last, score: (first, last + 1, score))),
        Mistake("relative", "You count from the first token of the passage; positions count from [CLS].", _from_first),
        Mistake("probability", "The span is right, the score is not: windows are compared by the sum of the logits, "
                "since probabilities of different windows have different denominators.", _by_probability),
        Mistake("no-score", "Return three values: first token, last token, and the score, start[first] + end[last].",
                _decoding(result=lambda first, last, score: (first, last))),
    ),
    hints=(
        "Try all pairs. Which are allowed? Of these, which has the largest start[first] + end[last]?",
        "Two loops: first over the tokens of the passage, last from first to first + max_tokens - 1, as long as "
        "in_passage[last] holds.",
        "best = (0, 0, -np.inf)\nfor first in np.flatnonzero(in_passage):\n"
        "    for last in range(first, min(first + max_tokens, len(end))):\n"
        "        if in_passage[last] and start[first] + end[last] > best[2]:\n            best = ...\nreturn best",
    ),
)  # fmt: skip


# --- normalization ----------------------------------------------------------------------------------

ARTICLES = frozenset(("a", "an", "the"))
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces: word by word."""
    return " ".join(word for word in text.lower().translate(_NO_PUNCTUATION).split() if word not in ARTICLES)


def _by_expressions(text: str) -> str:
    """The same in the order and by the means of the official script."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _normalizing(
    lower: str = "first",
    punctuation: Callable[[str], str] = lambda text: text.translate(_NO_PUNCTUATION),
    pattern: str = r"\b(a|an|the)\b",
    articles_first: bool = False,
    spaces: Callable[[str], str] = lambda text: " ".join(text.split()),
) -> Callable[[str], str]:
    def normalize(text: str) -> str:
        text = text.lower() if lower == "first" else text
        if not articles_first:
            text = punctuation(text)
        text = re.sub(pattern, " ", text)
        if articles_first:
            text = punctuation(text)
        return spaces(text.lower() if lower == "last" else text)

    return normalize


def _without_accents(text: str) -> str:
    kept = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return normalize_answer(kept)


def _text_cases(rng: np.random.Generator) -> list[Case]:
    names = rng.choice(["Anna", "Lima", "Oslo", "Turing", "Kenya", "Bohr"], 4, replace=False).tolist()
    things = rng.choice(["river", "comet", "bridge", "engine", "harbor", "violin"], 4, replace=False).tolist()
    year = int(rng.integers(1800, 1990))
    return [
        Case((f"The {things[0]} of {names[0]}",), note="an article"),
        Case((f"A {things[1]}, an {names[1]} and the {things[2]}!",), note="three articles, punctuation"),
        Case((f"another theater near the {things[0]}",), note="words that contain articles"),
        Case((f"U.S.-born {names[2]}'s {things[3]}",), note="punctuation inside words"),
        Case((f"“vitamin-a”, plan-A of {names[3]}",), note="an article that punctuation ties to a word"),
        Case((f"  {names[1]} \t {things[1]}\n ({year:,}) ",), note="many spaces, a number"),
        Case((f"Élodie, {year}–{year % 100 + 10}, 東京",), note="letters and dashes beyond ASCII"),
        Case(("The",), note="nothing but an article"),
    ]


NORMALIZE = Exercise(
    id="squad.normalize_answer",
    points=2,
    title="Normalizing an answer",
    cases=_text_cases,
    reference=normalize_answer,
    also_right=(_by_expressions,),
    mistakes=(
        Mistake("articles", "The articles a, an, the are still there.", _normalizing(pattern="(?!)")),
        Mistake("articles-first", "You remove articles before punctuation: “vitamin-a” then loses its a. Punctuation "
                "goes first.", _normalizing(articles_first=True)),
        Mistake("case", "Upper and lower case are still told apart.",
                _normalizing(lower="never", pattern=r"\b(a|an|the|A|An|The)\b")),
        Mistake("case-last", "“The” is still there: make the text lower case before you look for articles.",
                _normalizing(lower="last")),
        Mistake("case-never", "The text is not in lower case, and so “The” is not found, either.",
                _normalizing(lower="never")),
        Mistake("inside", "You remove a, an, the inside of words, too: “theater” becomes “ter”. An article is a whole "
                "word.", _normalizing(pattern=r"(the|an|a)")),
        Mistake("only-the", "Only “the” is removed; a and an are articles, too.", _normalizing(pattern=r"\bthe\b")),
        Mistake("no-punctuation", "Punctuation is still there.", _normalizing(punctuation=lambda text: text)),
        Mistake("spaced", "Punctuation becomes a space: “U.S.” falls into two words. The official script leaves "
                "nothing in its place.",
                _normalizing(punctuation=lambda text: re.sub(f"[{re.escape(string.punctuation)}]", " ", text))),
        Mistake("ends", "Punctuation is removed only around words, not inside: “U.S.” must become “us”.",
                _normalizing(punctuation=lambda text: " ".join(w.strip(string.punctuation) for w in text.split()))),
        Mistake("unicode", "You remove punctuation beyond ASCII, too; the official script knows string.punctuation "
                "only, and a dash such as – stays.",
                _normalizing(punctuation=lambda text: re.sub(r"[^\w\s]", "", text))),
        Mistake("accents", "You take accents off letters; they count.", _without_accents),
        Mistake("ascii", "Letters beyond ASCII are lost.",
                _normalizing(punctuation=lambda text: re.sub(r"[^a-z0-9\s]", "", text))),
        Mistake("spaces", "Several spaces stay where one should be; \" \".join(text.split()) leaves one.",
                _normalizing(spaces=lambda text: text)),
        Mistake("trimmed", "You only trim the ends; inside the text several spaces stay where one should be.",
                _normalizing(spaces=str.strip)),
        Mistake("no-spaces", "There are no spaces left: single ones stay between words.",
                _normalizing(spaces=lambda text: "".join(text.split()))),
        Mistake("stop-words", "You remove more than articles: “of” and “and” stay.",
                _normalizing(pattern=r"\b(a|an|the|of|and|in|near)\b")),
    ),
    hints=(
        "Four steps, and their order matters: case, punctuation, articles, spaces.",
        "string.punctuation holds the characters to drop. After split(), articles are words to leave out.",
        "text = \"\".join(c for c in text.lower() if ...)\n"
        "return \" \".join(word for word in text.split() if ...)",
    ),
)  # fmt: skip


# --- exact match and F1 -----------------------------------------------------------------------------


def _plain_words(text: str) -> list[str]:
    return [word for word in text.lower().translate(_NO_PUNCTUATION).split() if word not in ARTICLES]


def exact_and_f1(prediction: str, golds: list[str]) -> tuple[float, float]:
    """Exact match and F1, each the best over the gold answers; the common words are struck off one by one."""
    exact, best = 0.0, 0.0
    for gold in golds:
        words, left = _plain_words(prediction), _plain_words(gold)
        total = len(words) + len(left)
        exact = max(exact, float(words == left))
        common = 0
        for word in words:
            if word in left:
                left.remove(word)
                common += 1
        best = max(best, 2 * common / total if total else 1.0)
    return exact, best


def _overlap(words: list[str], wanted: list[str]) -> tuple[int, int, int]:
    return sum((Counter(words) & Counter(wanted)).values()), len(words), len(wanted)


def _set_overlap(words: list[str], wanted: list[str]) -> tuple[int, int, int]:
    return len({*words} & {*wanted}), len({*words}), len({*wanted})


def _f1(common: int, said: int, wanted: int) -> float:
    if not said or not wanted:
        return float(said == wanted)
    return 2 * common / (said + wanted)


def _scoring(
    count: Callable[[list[str], list[str]], tuple[int, int, int]] = _overlap,
    score: Callable[[int, int, int], float] = _f1,
    over: Callable[[list[float]], float] = max,
    split: Callable[[str], list[str]] = str.split,
    normal: Callable[[str], str] = normalize_answer,
    same: Callable[[str, str], bool] = lambda a, b: a == b,
) -> Callable[[str, list[str]], tuple[float, float]]:
    """Both scores in parts: normalize, split, count what is common, score, join over the gold answers."""

    def scores(prediction: str, golds: list[str]) -> tuple[float, float]:
        exact = [float(same(normal(prediction), normal(gold))) for gold in golds]
        f1 = [score(*count(split(normal(prediction)), split(normal(gold)))) for gold in golds]
        return float(over(exact)), float(over(f1))

    return scores


def _pooled(prediction: str, golds: list[str]) -> tuple[float, float]:
    return exact_and_f1(prediction, golds)[0], exact_and_f1(prediction, [" ".join(golds)])[1]


def _exact_of_f1(prediction: str, golds: list[str]) -> tuple[float, float]:
    f1 = exact_and_f1(prediction, golds)[1]
    return float(f1 > 0), f1


def _swapped(prediction: str, golds: list[str]) -> tuple[float, float]:
    exact, f1 = exact_and_f1(prediction, golds)
    return f1, exact


def _by_division(common: int, said: int, wanted: int) -> float:
    precision, recall = common / said, common / wanted
    return 2 * precision * recall / (precision + recall)


def _answer_cases(rng: np.random.Generator) -> list[Case]:
    w = rng.choice(["river", "comet", "bridge", "engine", "harbor", "violin", "lantern", "copper", "meadow", "signal",
                    "winter", "needle"], 12, replace=False).tolist()  # fmt: skip
    return [
        Case((f"The {w[0]}.", [f"{w[1]} {w[2]}", f"{w[0].title()}"]), note="equal to the second gold answer"),
        Case((f"{w[3]} {w[4]} and {w[3]} {w[5]}", [f"{w[3]} {w[6]} {w[3]} of {w[4]}"]), note="a word twice in both"),
        Case((f"{w[3]} {w[3]} {w[4]}", [f"{w[3]} {w[5]}"]), note="a word twice in one of them"),
        Case((f"{w[7]} {w[8]}", [f"{w[8]}", f"in the {w[7]} {w[8]}", w[9]]), note="three gold answers"),
        Case((f"{w[0]} {w[1]} {w[2]} {w[3]}", [w[1]]), note="the gold answer inside a longer one"),
        Case((w[10], [f"{w[10]}s by the {w[11]}", f"an old {w[11]}"]), note="letters in common, no word"),
        Case(("the", ["a"]), note="nothing is left of either"),
        Case(("", [w[4]]), note="no prediction"),
    ]


SCORES = Exercise(
    id="squad.exact_and_f1",
    points=3,
    title="Exact match and F1",
    cases=_answer_cases,
    reference=exact_and_f1,
    also_right=(_scoring(),),
    compare=Compare(rtol=1e-4, atol=1e-6),
    mistakes=(
        Mistake("characters", "Your F1 compares characters; it compares words. Split the normalized texts.",
                _scoring(split=list)),
        Mistake("sets", "You compare sets of words; a word that stands twice counts twice, so compare bags "
                "(Counter).", _scoring(count=_set_overlap)),
        Mistake("set-overlap", "The common words are a set, the lengths are not: a word that both have twice is common "
                "twice. Counter(a) & Counter(b) counts so.",
                _scoring(count=lambda a, b: (len({*a} & {*b}), len(a), len(b)))),
        Mistake("any-common", "You count each predicted word that the gold answer has, however often it stands there: "
                "a word twice against once is common once.",
                _scoring(count=lambda a, b: (sum(word in b for word in a), len(a), len(b)))),
        Mistake("first-gold", "You look at the first gold answer only; the best of all counts.",
                _scoring(over=lambda values: values[0])),
        Mistake("last-gold", "Only the last gold answer counts in your result; take the maximum over all.",
                _scoring(over=lambda values: values[-1])),
        Mistake("mean-golds", "You take the mean over the gold answers; the best of them counts.",
                _scoring(over=lambda values: sum(values) / len(values))),
        Mistake("worst-gold", "You take the worst over the gold answers; the best of them counts.",
                _scoring(over=min)),
        Mistake("pooled", "All gold answers are put into one bag; compare with each on its own and take the best.",
                _pooled),
        Mistake("raw", "The texts are not normalized: articles, case and punctuation must not count.",
                _scoring(normal=lambda text: text)),
        Mistake("contains", "A prediction that merely contains the gold answer is no exact match.",
                _scoring(same=lambda a, b: b in a)),
        Mistake("any-overlap", "Your exact match is 1 as soon as a word is common; the normalized texts must be "
                "equal.", _exact_of_f1),
        Mistake("precision", "This is the precision: common words over predicted words. F1 is its harmonic mean with "
                "the recall.", _scoring(score=lambda common, said, wanted: common / said if said
                                        else float(not wanted))),
        Mistake("recall", "This is the recall: common words over gold words. F1 is its harmonic mean with the "
                "precision.", _scoring(score=lambda common, said, wanted: common / wanted if wanted
                                       else float(not said))),
        Mistake("mean", "F1 is the harmonic mean, 2PR / (P + R), not the plain mean of precision and recall.",
                _scoring(score=lambda common, said, wanted: (common / said + common / wanted) / 2
                         if said and wanted else float(said == wanted))),
        Mistake("jaccard", "You divide the common words by all different ones; F1 is 2PR / (P + R).",
                _scoring(score=lambda common, said, wanted: common / (said + wanted - common)
                         if said and wanted else float(said == wanted))),
        Mistake("empty-zero", "If nothing is left of either text, they are equal: exact match and F1 are 1.",
                _scoring(score=lambda common, said, wanted: 2 * common / (said + wanted) if common else 0.0)),
        Mistake("division", "Without a common word you divide by zero; F1 is 0 then.", _scoring(score=_by_division)),
        Mistake("swapped", "Exact match comes first in the result, then F1.", _swapped),
    ),
    hints=(
        "Write both for one gold answer first; then take the maximum over all of them.",
        "Counter(words) & Counter(wanted) is the bag of common words; its values add up to their number.",
        "common = sum((Counter(words) & Counter(wanted)).values())\n"
        "if not words or not wanted:\n    f1 = float(words == wanted)\nelse:\n    f1 = 2 * common / (...)",
    ),
)  # fmt: skip


# --- what the wrong answers share with the right ones -----------------------------------------------


def wrong_answers_f1(em: float, f1: float) -> float:
    """The mean F1 of all answers that are not exact, in percent, solved for as an unknown.

    ``em`` of 100 answers earn 100 each, the other ``100 - em`` earn x: em · 100 + (100 - em) · x = f1 · 100.
    """
    if em == 100:
        return math.nan
    return float(np.linalg.solve(np.array([[100 - em]]), np.array([100 * (f1 - em)]))[0])


def _percent(of: Callable[[float, float], float], empty: float | None = math.nan) -> Callable[[float, float], float]:
    def share(em: float, f1: float) -> float:
        return empty if em == 100 and empty is not None else of(em, f1)

    return share


def _wrong_f1(em: float, f1: float) -> float:
    return 100 * (f1 - em) / (100 - em)


def _percent_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for low, high, note in ((60, 75, "a good model"), (5, 20, "a weak model"), (82, 90, "a strong model")):
        em = round(float(rng.uniform(low, high)), 1)
        f1 = round(em + float(rng.uniform(0.2, 0.45)) * (100 - em), 1)
        cases.append(Case((em, f1), note=note))
    return [*cases, Case((100.0, 100.0), note="no answer is wrong"), Case((40.0, 40.0), note="right or nothing")]


WRONG = Exercise(
    id="squad.wrong_answers_f1",
    points=2,
    title="What the wrong answers earn",
    cases=_percent_cases,
    reference=wrong_answers_f1,
    also_right=(_percent(_wrong_f1),),
    mistakes=(
        Mistake("difference", "F1 - EM is what the wrong answers add to the mean over *all* answers; divide by how "
                "many are wrong.", _percent(lambda em, f1: f1 - em)),
        Mistake("over-em", "You divide by EM, the answers that are right; the wrong ones are 100 - EM.",
                _percent(lambda em, f1: 100 * (f1 - em) / em)),
        Mistake("over-f1", "You divide by 100 - F1; the answers that are not exact are 100 - EM.",
                _percent(lambda em, f1: 100 * (f1 - em) / (100 - f1), empty=None)),
        Mistake("over-all-f1", "You divide by F1; the answers that are not exact are 100 - EM.",
                _percent(lambda em, f1: 100 * (f1 - em) / f1)),
        Mistake("keeps-right", "The right answers are still in your mean: subtract the 100 % of each of them first.",
                _percent(lambda em, f1: 100 * f1 / (100 - em))),
        Mistake("share", "This is a share between 0 and 1; the result is in percent, as EM and F1 are.",
                _percent(lambda em, f1: (f1 - em) / (100 - em))),
        Mistake("complement", "This is what the wrong answers lack, 100 minus what they earn.",
                _percent(lambda em, f1: 100 * (100 - f1) / (100 - em))),
        Mistake("sign", "The sign is wrong: F1 is never below EM.",
                _percent(lambda em, f1: 100 * (em - f1) / (100 - em))),
        Mistake("raises", "Without a wrong answer you divide by zero; there is no mean then: return math.nan.",
                _percent(_wrong_f1, empty=None)),
        Mistake("zero", "Without a wrong answer there is no mean of them: return math.nan, not 0.",
                _percent(_wrong_f1, empty=0.0)),
        Mistake("hundred", "Without a wrong answer there is no mean of them: return math.nan, not 100.",
                _percent(_wrong_f1, empty=100.0)),
    ),
    hints=(
        "Of 100 answers, em are exact and have F1 = 100 %. How many are left, and how much F1 do these bring?",
        "f1 = (em · 100 + (100 - em) · x) / 100. Solve for x.",
        "if em == 100:\n    return math.nan\nreturn 100 * (f1 - em) / ...",
    ),
)  # fmt: skip

EXERCISES = (SPAN, WINDOWS, LOSS, BEST, NORMALIZE, SCORES, WRONG)
