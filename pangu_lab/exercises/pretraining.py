"""Exercises of lab 05: what a model is asked while it pre-trains.

Masking and NSP are random, so they are judged by what holds of many draws; everything else is given its draws.
References take another way than the student's: boolean steps, numpy's counts, torch's own losses.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pangu_lab.exercises.engine import Case, Exercise, Mistake

# --- BERT's masking ---------------------------------------------------------------------------------

MASK_ID, WORDS = 4, 90  # special tokens are 0 to 9, words 10 to 89


def mask_tokens(ids: Tensor, special: Tensor, mask_id: int, vocab: int, rate: float = 0.15) -> tuple[Tensor, Tensor]:
    """BERT's masking (Devlin et al. 2019), as boolean steps: select, mask, then half of the rest at random."""
    selected = torch.bernoulli(torch.full(ids.shape, rate)).bool() & ~special
    labels = ids.masked_fill(~selected, -100)
    masked = torch.bernoulli(torch.full(ids.shape, 0.8)).bool() & selected
    random = torch.bernoulli(torch.full(ids.shape, 0.5)).bool() & selected & ~masked
    inputs = ids.masked_fill(masked, mask_id)
    return torch.where(random, torch.randint(vocab, ids.shape), inputs), labels


def _masking(
    factor: float = 1.0,
    shares: tuple[float, float] = (0.8, 0.1),
    draw: str = "one",
    where: str = "words",
    copy: bool = True,
    labels: str = "selected",
    same: bool = False,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """BERT's masking with one draw for the three kinds, or with one thing wrong."""

    def masking(ids: Tensor, special: Tensor, mask_id: int, vocab: int, rate: float = 0.15) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0) if same else None
        allowed = {"words": ~special, "anywhere": torch.ones_like(special), "not padding": ids != 0}[where]
        selected = (torch.rand(ids.shape, generator=generator) < rate * factor) & allowed
        kind = torch.rand(ids.shape, generator=generator)
        masked, random = kind < shares[0], (kind >= shares[0]) & (kind < sum(shares))
        if draw == "random first":
            random = torch.rand(ids.shape) < 0.1
            masked = ~random & (kind < 0.9)
        elif draw == "both":
            random = torch.rand(ids.shape) < 0.1
            masked = ~random & (kind < 0.8)
        inputs = ids.clone() if copy else ids
        kept = ids if labels == "of inputs" else ids.clone()
        inputs[selected & masked] = mask_id
        inputs[selected & random] = torch.randint(vocab, ids.shape, generator=generator)[selected & random]
        if labels == "whole":
            return inputs, kept
        counted = selected & masked if labels == "masked" else selected
        return inputs, torch.where(counted, kept, 0 if labels == "zeros" else -100)

    return masking


def what_holds_of_the_masks(student: Any, case: Case) -> dict[str, Any]:
    """What masking must do, on one batch of random texts: where it selects, how often, what stands there."""
    rows, length, seed, mask_id, vocab, rate = case.args
    generator = torch.Generator().manual_seed(seed)
    before = torch.randint(10, vocab, (rows, length), generator=generator)
    before[:, 0], before[:, length - 3], before[:, length - 2 :] = 2, 3, 0  # [CLS] words [SEP] padding
    special, ids = before < 10, before.clone()
    inputs, labels = student(ids, special, mask_id, vocab, rate)
    selected, changed = labels != -100, inputs != before
    found = {
        "labels count at padding": bool(selected[:, -2:].any()),
        "labels count at [CLS] or [SEP]": bool((selected & special)[:, :-2].any()),
        "special tokens or padding are changed": bool((changed & special).any()),
        "labels at selected tokens": "the original tokens" if (labels == before)[selected].all() else "other tokens",
        "tokens change where no label counts": bool((changed & ~selected).any()),
        "the batch that came in": "unchanged" if ids.equal(before) else "changed",
    }
    if rate < 0.5:
        again = student(before.clone(), special, mask_id, vocab, rate)[1]
        return found | {"a second call selects the same": bool((again != -100).equal(selected))}
    words = selected & ~special
    n, masked, kept = int(words.sum()), int((words & (inputs == mask_id)).sum()), int((words & ~changed).sum())
    shares = np.array([masked, n - masked - kept, kept]) / max(n, 1)
    # A random word is now and then [MASK], or the word itself.
    wanted = np.array([0.8, 0.1, 0.1]) + np.array([1, -2, 1]) * 0.1 / vocab
    share, most = n / int((~special).sum()), int((~special).sum())
    near = abs(share - rate) < 4 * (rate * (1 - rate) / most) ** 0.5
    surprise = n * ((shares - wanted) ** 2 / wanted).sum()  # chi-squared; above 17 once in 5,000 right answers
    return found | {
        "share of words with a label": f"{rate if near else share:.0%}",
        "of these masked/replaced/unchanged": "/".join(
            f"{100 * share:.0f}" for share in ((0.8, 0.1, 0.1) if n and surprise < 17 else shares)
        ),
    }


def _mask_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for rows, length, rate, note in (
        (60, 30, 0.15, "60 texts"),
        (200, 14, 0.3, "200 short texts, 30 %"),
        (250, 300, 0.9, "250 long texts, 90 %"),
    ):
        cases.append(Case((rows, length, int(rng.integers(2**31)), MASK_ID, WORDS, rate), note=note))
    return cases


MASK = Exercise(
    id="pretraining.mask_tokens",
    points=4,
    title="BERT's masking",
    cases=_mask_cases,
    reference=mask_tokens,
    drive=what_holds_of_the_masks,
    also_right=(_masking(),),
    mistakes=(
        Mistake("81-10-9", "10 % are replaced and then 90 % of the rest masked: 81/10/9. Decide with one draw: below "
                "0.8, below 0.9, or above.", _masking(draw="random first")),
        Mistake("72-10-18", "Masked and replaced are drawn independently, and some tokens are both: 72/10/18. Decide "
                "with one draw: below 0.8, below 0.9, or above.", _masking(draw="both")),
        Mistake("all-masked", "Every selected token is masked; 10 % are to be replaced and 10 % to stay as they are.",
                _masking(shares=(1.0, 0.0))),
        Mistake("no-unchanged", "80 % are masked and 20 % replaced; half of those 20 % stay unchanged.",
                _masking(shares=(0.8, 0.2))),
        Mistake("rate", "Too many tokens are selected: rate is the share that is asked about, not the "
                "share that is masked.", _masking(factor=1 / 0.8)),
        Mistake("all-labels", "The loss is over all tokens: labels must be -100 wherever a token was not selected, or "
                "the model mostly learns to copy.", _masking(labels="whole")),
        Mistake("zero-labels", "Labels are 0 where nothing is asked; 0 is a token's id. The loss skips -100 only.",
                _masking(labels="zeros")),
        Mistake("masked-only", "Labels count at masked tokens only; replaced and unchanged ones are asked about, too.",
                _masking(labels="masked")),
        Mistake("special", "You select special tokens and padding; they are no words, and easy to guess.",
                _masking(where="anywhere")),
        Mistake("cls", "Padding is spared, [CLS] and [SEP] are not; `special` marks them all.",
                _masking(where="not padding")),
        Mistake("in-place-labels", "You mask in place, so the labels change as well: they say [MASK]. Copy first.",
                _masking(copy=False, labels="of inputs")),
        Mistake("in-place", "You mask the batch that came in; the next epoch would start from masked texts. Work on "
                "ids.clone().", _masking(copy=False)),
        Mistake("same", "The same places are selected at every call: your generator has a fixed seed. Dynamic masking "
                "draws anew.", _masking(same=True)),
    ),
    hints=(
        "Two questions for each token, each with a draw of its own: is it selected, and if so, what becomes of it?",
        "selected = (torch.rand(ids.shape) < rate) & ~special. A second torch.rand decides: masked below 0.8, "
        "replaced from 0.8 to 0.9.",
        "labels = ids.masked_fill(~selected, -100)\nkind = torch.rand(ids.shape)\ninputs = ids.clone()\n"
        "inputs[selected & (kind < 0.8)] = mask_id\n...",
    ),
)  # fmt: skip


# --- whole words ------------------------------------------------------------------------------------


def whole_words(words: list[int], order: list[int], rate: float) -> list[bool]:
    """Which pieces are masked, by sizes of words counted with numpy."""
    numbers = np.asarray(words)
    room = max(1, round(rate * int((numbers >= 0).sum())))
    chosen = np.zeros(len(words), dtype=bool)
    for word in order:
        pieces = numbers == word
        if chosen.sum() + pieces.sum() <= room:
            chosen |= pieces
    return [bool(x) for x in chosen]


def _pieces(words: list[int]) -> int:
    return sum(word >= 0 for word in words)


def _choosing(
    count: Callable[[list[int]], int] = _pieces,
    stop: str = "skip",
    pieces: str = "all",
) -> Callable[[list[int], list[int], float], list[bool]]:
    def choose(words: list[int], order: list[int], rate: float) -> list[bool]:
        chosen: set[int] = set()
        room = max(1, round(rate * count(words)))
        for word in order:
            places = [i for i, w in enumerate(words) if w == word]
            if pieces == "first":
                places = places[:1]
            if stop == "over" and len(chosen) >= room:
                break
            if stop != "over" and len(chosen) + len(places) > room:
                if stop == "break":
                    break
                places = places[: room - len(chosen)] if stop == "cut" else []
            chosen.update(places)
        if pieces == "special":
            chosen.update(i for i, w in enumerate(words) if w < 0)
        return [i in chosen for i in range(len(words))]

    return choose


def _by_piece(words: list[int], order: list[int], rate: float) -> list[bool]:
    """Pieces instead of words: the numbers of ``order`` are taken for places."""
    places = [word for word in order if words[word] >= 0]
    room = max(1, round(rate * sum(w >= 0 for w in words)))
    return [i in places[:room] for i in range(len(words))]


def _word_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for count, rate, note in ((14, 0.2, "14 words"), (16, 0.3, "16 words, 30 %"), (24, 0.2, "24 words")):
        order = rng.permutation(count)
        sizes = rng.choice([1, 2, 2, 3], size=count)
        # The first word fits; the second does not beside it, though alone it would; the third does again.
        sizes[order[:3]] = 2, 0, 1
        rest = int(sizes.sum())
        sizes[order[1]] = next(size for size in range(1, 40) if round(rate * (rest + size)) <= size + 1)
        inner = [word for word in range(count) for _ in range(sizes[word])]
        cases.append(Case(([-1, *inner, *[-1] * 12], order.tolist(), rate), note=note))
    return cases


WHOLE = Exercise(
    id="pretraining.whole_words",
    points=3,
    title="Whole-word masking",
    cases=_word_cases,
    reference=whole_words,
    also_right=(_choosing(),),
    mistakes=(
        Mistake("pieces", "You select pieces, not words: the rest of a word gives its masked piece away.", _by_piece),
        Mistake("first-piece", "Only a word's first piece is masked; the others give it away.",
                _choosing(pieces="first")),
        Mistake("cut", "A word that does not fit is masked in part; leave it out and try the next one.",
                _choosing(stop="cut")),
        Mistake("over", "The last word passes the room: a word is taken only if all its pieces still fit.",
                _choosing(stop="over")),
        Mistake("break", "You stop at the first word that does not fit; a shorter one further on may.",
                _choosing(stop="break")),
        Mistake("of-words", "The rate is of tokens, not of words: count pieces.",
                _choosing(count=lambda words: len({w for w in words if w >= 0}))),
        Mistake("special-counted", "Special tokens and padding (word -1) do not count towards the number of tokens.",
                _choosing(count=len)),
        Mistake("special", "Special tokens (word -1) are masked; they never are.", _choosing(pieces="special")),
    ),
    hints=(
        "How many pieces may be masked? Then go through the words in the given order.",
        "room = max(1, round(rate * number of pieces with a word)). A word is taken if its pieces still fit.",
        "chosen = [False] * len(words)\nfor word in order:\n    pieces = [i for i, w in enumerate(words) if ...]\n"
        "    if sum(chosen) + len(pieces) <= room:\n        ...",
    ),
)  # fmt: skip


# --- next-sentence prediction -----------------------------------------------------------------------


def nsp_pair(documents: list[list[str]], number: int, rng: np.random.Generator) -> tuple[str, str, int]:
    """A sentence and what follows it, or a sentence of another document, by numpy's choice."""
    at = rng.integers(len(documents[number]) - 1)
    if rng.random() < 0.5:
        return documents[number][at], documents[number][at + 1], 0
    other = rng.choice([i for i in range(len(documents)) if i != number])
    return documents[number][at], documents[other][rng.integers(len(documents[other]))], 1


def _drawing(
    source: str = "other", share: float = 0.5, flip: bool = False, follow: str = "next", start: str = "any"
) -> Callable[[list[list[str]], int, np.random.Generator], tuple[str, str, int]]:
    def pair(documents: list[list[str]], number: int, rng: np.random.Generator) -> tuple[str, str, int]:
        own, count = documents[number], len(documents)
        at = int(rng.integers(len(own) - 1)) if start == "any" else 0
        label = int(rng.random() < share)
        after = {"next": own[at + 1], "any": own[int(rng.integers(len(own)))], "last": own[-1]}[follow]
        if label:
            other = {
                "other": (number + int(rng.integers(1, count))) % count,
                "all": int(rng.integers(count)),
                "neighbor": (number + 1) % count,
                "same": number,
            }[source]
            after = documents[other][int(rng.integers(len(documents[other])))]
        return own[at], after, 1 - label if flip else label

    return pair


def what_holds_of_the_pairs(student: Any, case: Case) -> dict[str, Any]:
    """What NSP pairs must be, over many draws: labels, their share, and where the second sentence comes from."""
    documents, number, seed = case.args
    rng = np.random.default_rng(seed)
    pairs = [student(documents, number, rng) for _ in range(300)]
    own = documents[number]
    follows = set(itertools.pairwise(own))
    positive, negative = ([(a, b) for a, b, label in pairs if label == wanted] for wanted in (0, 1))
    others = {i for i, document in enumerate(documents) for _, b in negative if b in document}
    share = len(negative) / len(pairs)
    from_same = sum(b in own for _, b in negative)
    return {
        "labels": sorted({int(label) for _, _, label in pairs}),
        "share of label 1": "about half" if 0.4 <= share <= 0.6 else f"{share:.0%}",
        "pairs of label 0 follow each other": all(pair in follows for pair in positive),
        "first sentences of label 0": len({a for a, _ in positive}),
        "second sentences of label 0": len({b for _, b in positive}),
        "pairs of label 1 from the same document": {0: "none", len(negative): "all"}.get(from_same, "some"),
        "other documents that label 1 draws from": len(others - {number}),
    }


def _nsp_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for count in (3, 4, 5):
        sizes = rng.integers(4, 7, count)
        documents = [[f"document {d}, sentence {s}" for s in range(size)] for d, size in enumerate(sizes)]
        number, seed = int(rng.integers(count)), int(rng.integers(2**31))
        cases.append(Case((documents, number, seed), note=f"{count} documents, 300 draws for document {number}"))
    return cases


NSP = Exercise(
    id="pretraining.nsp_pair",
    points=3,
    title="Next-sentence prediction: pairs",
    cases=_nsp_cases,
    reference=nsp_pair,
    drive=what_holds_of_the_pairs,
    also_right=(_drawing(),),
    mistakes=(
        Mistake("same", "Negatives come from the same document; they may even be the true next sentence. Take another "
                "document.", _drawing(source="same")),
        Mistake("all", "Negatives come from all documents, this one included; leave it out of the draw.",
                _drawing(source="all")),
        Mistake("neighbor", "Negatives always come from the next document; draw among all others.",
                _drawing(source="neighbor")),
        Mistake("flipped", "Labels are swapped: 0 is for the true next sentence (IsNext), 1 for a random one.",
                _drawing(flip=True)),
        Mistake("share", "Half of the pairs are negatives, not 15 %; that rate belongs to masking.",
                _drawing(share=0.15)),
        Mistake("not-next", "Your positives are two sentences of one document; the second must follow the first.",
                _drawing(follow="any")),
        Mistake("last", "Your positives always take the document's last sentence; take the one after the first.",
                _drawing(follow="last")),
        Mistake("start", "You always begin with the document's first sentence; draw any that has one after it.",
                _drawing(start="first")),
    ),
    hints=(
        "Three draws: which sentence, whether the true next one follows, and if not, which sentence of which document.",
        "rng.integers(n) is a number below n. The last sentence has none after it, so draw below len(own) - 1.",
        "other = rng.integers(len(documents) - 1)\nif other >= number:\n    other += 1\n...",
    ),
)  # fmt: skip


# --- sentence order ---------------------------------------------------------------------------------


def sop_input(first: list[int], second: list[int], swap: bool, cls: int, sep: int) -> dict[str, Any]:
    """Ids, segment ids and label, by counting separators."""
    parts = [second, first] if swap else [first, second]
    ids = np.array([cls, *parts[0], sep, *parts[1], sep])
    seen = np.cumsum(ids == sep) - (ids == sep)
    return {"input_ids": ids.tolist(), "token_type_ids": seen.tolist(), "label": int(swap)}


def _ordering(
    types: str = "right", label: str = "swap", swap_ids: bool = True, closing: bool = True, middle: bool = True
) -> Callable[..., dict[str, Any]]:
    def build(first: list[int], second: list[int], swap: bool, cls: int, sep: int) -> dict[str, Any]:
        a, b = (second, first) if swap and swap_ids else (first, second)
        left, right = [cls, *a, *([sep] * middle)], [*b, *([sep] * closing)]
        segments = {
            "right": [0] * len(left) + [1] * len(right),
            "early": [0] * (len(left) - 1) + [1] * (len(right) + 1),
            "zeros": [0] * (len(left) + len(right)),
            "follow": [int(swap)] * len(left) + [1 - int(swap)] * len(right),
            "last": [0] * len(left) + [1] * (len(right) - 1) + [0],
        }[types]
        told = {"swap": int(swap), "not": int(not swap), "zero": 0}[label]
        return {"input_ids": left + right, "token_type_ids": segments, "label": told}

    return build


def _backwards(first: list[int], second: list[int], swap: bool, cls: int, sep: int) -> dict[str, Any]:
    if swap:
        first, second = first[::-1], second[::-1]
    return _ordering(swap_ids=False)(first, second, swap, cls, sep)


def _unrelated(first: list[int], second: list[int], swap: bool, cls: int, sep: int) -> dict[str, Any]:
    """NSP's kind of negative: the second segment is drawn at random."""
    other = np.random.default_rng(0).integers(100, 200, len(second)).tolist()
    return _ordering(swap_ids=False)(first, other if swap else second, swap, cls, sep)


def _sop_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for swap, sizes in ((False, (3, 5)), (True, (4, 2)), (True, (3, 6)), (False, (6, 2))):
        words = rng.choice(np.arange(10, 90), size=sum(sizes), replace=False).tolist()
        note = "swapped" if swap else "in order"
        cases.append(Case((words[: sizes[0]], words[sizes[0] :], swap, 2, 3), note=note))
    return cases


SOP = Exercise(
    id="pretraining.sop_input",
    points=2,
    title="Sentence-order prediction: the input",
    cases=_sop_cases,
    reference=sop_input,
    also_right=(_ordering(),),
    mistakes=(
        Mistake("not-swapped", "The label says swapped, but the segments stand in order.", _ordering(swap_ids=False)),
        Mistake("unrelated", "The negative has a segment from elsewhere; that is NSP. SOP swaps the same two "
                "segments.", _unrelated),
        Mistake("backwards", "You turn the words of each segment around; swap the two segments as wholes.", _backwards),
        Mistake("label", "Labels are the wrong way round: 1 is swapped, 0 in order.", _ordering(label="not")),
        Mistake("no-label", "The label is always 0.", _ordering(label="zero")),
        Mistake("types-follow", "Segment ids travel with the segments; they must say which stands first in the input, "
                "whatever it is, or they give the answer away.", _ordering(types="follow")),
        Mistake("types-early", "The first [SEP] belongs to segment 0.", _ordering(types="early")),
        Mistake("types-zero", "Segment ids are all 0; the second segment has 1.", _ordering(types="zeros")),
        Mistake("types-last", "The last [SEP] belongs to segment 1.", _ordering(types="last")),
        Mistake("no-closing", "The [SEP] at the end is missing.", _ordering(closing=False)),
        Mistake("no-middle", "The [SEP] between the segments is missing.", _ordering(middle=False)),
    ),
    hints=(
        "First decide which segment comes first. All the rest is the same for both cases.",
        "[CLS] a [SEP] has len(a) + 2 tokens of segment 0; b [SEP] has len(b) + 1 of segment 1.",
        "a, b = (second, first) if swap else (first, second)\nids = [cls, *a, sep, *b, sep]\n...",
    ),
)  # fmt: skip


# --- spans ------------------------------------------------------------------------------------------


def span_corruption(tokens: list[str], noise: list[bool]) -> tuple[list[str], list[str]]:
    """T5's input and target: each place asks its left neighbor whether a span begins."""
    inputs: list[str] = []
    target: list[str] = []
    spans = 0
    for i, token in enumerate(tokens):
        if noise[i] and not (i and noise[i - 1]):
            for side in (inputs, target):
                side.append(f"<extra_id_{spans}>")
            spans += 1
        (target if noise[i] else inputs).append(token)
    return inputs, [*target, f"<extra_id_{spans}>"]


def _runs(noise: list[bool]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(noise, dtype=int), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _spanning(
    number: Callable[[int, int], int] = lambda k, n: k, target: str = "right", inputs: str = "right"
) -> Callable[[list[str], list[bool]], tuple[list[str], list[str]]]:
    def corrupt(tokens: list[str], noise: list[bool]) -> tuple[list[str], list[str]]:
        runs = [(i, i + 1) for i, n in enumerate(noise) if n] if inputs == "each" else _runs(noise)
        seen: list[str] = []
        said: list[str] = []
        place = 0
        for k, (a, b) in enumerate(runs):
            name = f"<extra_id_{number(k, len(runs))}>"
            seen += tokens[place:a] + ([] if inputs == "dropped" else [name])
            said += {"bare": tokens[a:b], "after": [*tokens[a:b], name]}.get(target, [name, *tokens[a:b]])
            place = b
        seen += tokens[place:]
        end = [] if target == "no end" else [f"<extra_id_{number(len(runs), len(runs))}>"]
        said = list(tokens) if target == "whole" else said + end
        return (said, seen) if target == "swapped" else (seen, said)

    return corrupt


def _span_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for length, starts in ((12, [(2, 3), (8, 2)]), (16, [(0, 2), (5, 1), (11, 3)]), (14, [(1, 3), (6, 2), (11, 3)])):
        words = rng.choice(["rain", "wind", "snow", "sun", "fog", "ice", "sky", "sea", "hill", "road"], size=length)
        noise = np.zeros(length, dtype=bool)
        for start, size in starts:
            noise[start : start + size] = True
        tokens = [f"{word}{i}" for i, word in enumerate(words.tolist())]
        cases.append(Case((tokens, noise.tolist()), note=f"{len(starts)} spans"))
    return cases


SPANS = Exercise(
    id="pretraining.span_corruption",
    points=3,
    title="T5's span corruption",
    cases=_span_cases,
    reference=span_corruption,
    also_right=(_spanning(),),
    mistakes=(
        Mistake("no-end", "The target lacks its last sentinel, the one that says that nothing more follows.",
                _spanning(target="no end")),
        Mistake("reversed", "Sentinels are in the wrong order: the first span in the text is <extra_id_0>.",
                _spanning(number=lambda k, n: n - k)),
        Mistake("from-one", "Sentinels count from 0.", _spanning(number=lambda k, n: k + 1)),
        Mistake("same", "Every span has the same sentinel, so the target cannot say which is which.",
                _spanning(number=lambda k, n: 0)),
        Mistake("each-token", "Each token gets a sentinel; neighbors of one span share one.", _spanning(inputs="each")),
        Mistake("dropped", "Spans vanish from the input without a trace; a sentinel must stand for each.",
                _spanning(inputs="dropped")),
        Mistake("no-sentinels", "The target holds the words without the sentinels they belong to.",
                _spanning(target="bare")),
        Mistake("after", "In the target, a sentinel stands before the words it announces, not after them.",
                _spanning(target="after")),
        Mistake("whole", "The target is the whole text, as in BART; T5's holds only what was taken out.",
                _spanning(target="whole")),
        Mistake("swapped", "Input and target are swapped.", _spanning(target="swapped")),
    ),
    hints=(
        "Walk through the text once, with two lists to append to.",
        "A span begins where a token is noise and the one before it is not: append the same sentinel to both lists.",
        "if noise[i] and not (i > 0 and noise[i - 1]):\n    ...  # a new sentinel, to both\n"
        "(target if noise[i] else inputs).append(token)",
    ),
)  # fmt: skip


# --- the joint loss ---------------------------------------------------------------------------------

PARTS = ("words", "pair", "pos", "ner")


def joint_loss(outputs: dict[str, Tensor], gold: dict[str, Tensor]) -> Tensor:
    """The sum of the four mean cross-entropies, by torch's module."""
    mean = nn.CrossEntropyLoss()  # skips -100 and takes the mean over the rest
    return torch.stack([mean(outputs[name].flatten(0, -2), gold[name].flatten()) for name in PARTS]).sum()


def _by_hand(logits: Tensor, labels: Tensor, counted: Tensor, divide: str = "counted") -> Tensor:
    log_p = logits.log_softmax(dim=-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    total = -(log_p * counted).sum()
    return total / (counted.sum() if divide == "counted" else labels.numel() if divide == "all" else 1)


def _joining(
    leave: str = "", divide: str = "counted", mean: bool = False, tags: str = "tokens", padding: bool = False
) -> Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]:
    def loss(outputs: dict[str, Tensor], gold: dict[str, Tensor]) -> Tensor:
        parts = []
        for name in PARTS:
            counted = torch.ones_like(gold[name], dtype=torch.bool) if padding else gold[name] != -100
            if name in ("pos", "ner") and tags == "masked":
                counted = counted & (gold["words"] != -100)
            if name != leave:
                parts.append(_by_hand(outputs[name], gold[name], counted, "counted" if name == "pair" else divide))
        total = torch.stack(parts).sum()
        return total / len(parts) if mean else total

    return loss


def _pooled(outputs: dict[str, Tensor], gold: dict[str, Tensor]) -> Tensor:
    """One mean over all labels of all tasks: the task with the most labels wins."""
    sums = [_by_hand(outputs[name], gold[name], gold[name] != -100, "none") for name in PARTS]
    return torch.stack(sums).sum() / sum(int((gold[name] != -100).sum()) for name in PARTS)


def what_the_loss_is(student: Any, case: Case) -> Any:
    """The loss as a number, and which outputs it has a gradient by."""
    outputs, gold = case.args
    outputs = {name: value.clone().requires_grad_() for name, value in outputs.items()}
    loss = student(outputs, gold)
    if not isinstance(loss, torch.Tensor):
        return loss
    grads = torch.autograd.grad(loss, list(outputs.values()), allow_unused=True) if loss.requires_grad else []
    named = zip(outputs, grads, strict=False)
    return {"loss": float(loss.detach()), "outputs with a gradient": [name for name, g in named if g is not None]}


def _joint_cases(rng: np.random.Generator) -> list[Case]:
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    cases = []
    for batch, length, note in ((2, 6, "two texts"), (3, 5, "three texts"), (4, 8, "four texts")):
        sizes = {"words": 12, "pos": 5, "ner": 4}
        outputs = {name: torch.randn(batch, length, n, generator=generator) for name, n in sizes.items()}
        outputs["pair"] = torch.randn(batch, 2, generator=generator)
        gold = {name: torch.randint(n, (batch, length), generator=generator) for name, n in sizes.items()}
        gold["pair"] = torch.randint(2, (batch,), generator=generator)
        for row in range(batch):
            for name in ("pos", "ner"):
                gold[name][row, length - 1 - row % 2 :] = -100
        masked = torch.rand(batch, length, generator=generator) < 0.3
        masked[0, 1] = masked[-1, 2] = True
        masked[:, -2:] = False
        gold["words"] = gold["words"].masked_fill(~masked, -100)
        cases.append(Case((outputs, gold), note=note))
    return cases


JOINT = Exercise(
    id="pretraining.joint_loss",
    points=3,
    title="The joint loss",
    cases=_joint_cases,
    reference=joint_loss,
    drive=what_the_loss_is,
    also_right=(_joining(),),
    mistakes=(
        Mistake("no-words", "The masked words are missing from the sum.", _joining(leave="words")),
        Mistake("no-pair", "The pair's loss is missing from the sum.", _joining(leave="pair")),
        Mistake("no-pos", "The parts of speech are missing from the sum.", _joining(leave="pos")),
        Mistake("no-ner", "The named entities are missing from the sum.", _joining(leave="ner")),
        Mistake("mean-of-four", "This is the mean of the four losses; the joint loss is their sum.",
                _joining(mean=True)),
        Mistake("pooled", "You take one mean over all labels together, so the task with the most labels outweighs "
                "the others. Each task has a mean of its own.", _pooled),
        Mistake("sums", "Losses of tokens are sums here; each is the mean over the labels that count.",
                _joining(divide="none")),
        Mistake("divided-by-all", "You divide by the number of all places; divide by the number of labels that are "
                "not -100.", _joining(divide="all")),
        Mistake("padding", "Labels of -100 count, as if they were token 0: leave those places out.",
                _joining(padding=True)),
        Mistake("tags-masked", "Tags count at masked tokens only; every token has a tag.", _joining(tags="masked")),
    ),
    hints=(
        "Four times the same: logits, labels, a mean cross-entropy. Then a sum.",
        "functional.cross_entropy wants logits (N, classes) and labels (N,); it skips -100 by itself. flatten(0, -2).",
        "total = 0\nfor name in ('words', 'pair', 'pos', 'ner'):\n    total = total + functional.cross_entropy(...)",
    ),
)  # fmt: skip


# --- hard correction --------------------------------------------------------------------------------


def hard_correction(logits: Tensor, labels: Tensor, synonyms: Tensor) -> Tensor:
    """Mean over the selected places of the losses that are not shielded, place by place."""
    total = torch.zeros(())
    for row, label in zip(logits, labels.tolist(), strict=True):
        guess = int(row.argmax())
        if guess == label or not synonyms[label, guess]:
            total = total + functional.cross_entropy(row[None], torch.tensor([label]))
    return total / len(labels)


def _correcting(shield: Callable[[Tensor, Tensor, Tensor], Tensor], divide: str = "all") -> Callable[..., Tensor]:
    def loss(logits: Tensor, labels: Tensor, synonyms: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits, labels, reduction="none")
        kept = (~shield(logits.argmax(dim=-1), labels, synonyms)).float()
        return (losses * kept).sum() / (len(labels) if divide == "all" else kept.sum().clamp(min=1))

    return loss


def _is_synonym(guess: Tensor, labels: Tensor, synonyms: Tensor) -> Tensor:
    return synonyms[labels, guess] & (guess != labels)


def _forgiving(logits: Tensor, labels: Tensor, synonyms: Tensor) -> Tensor:
    """Trains towards the guess instead: shielded places reward the synonym."""
    guess = logits.argmax(dim=-1)
    return functional.cross_entropy(logits, torch.where(_is_synonym(guess, labels, synonyms), guess, labels))


def _value_only(logits: Tensor, labels: Tensor, synonyms: Tensor) -> Tensor:
    """The value is right, but the gradient flows as if nothing were shielded."""
    plain = functional.cross_entropy(logits, labels)
    return plain - (plain - _correcting(_is_synonym)(logits, labels, synonyms)).detach()


def what_is_shielded(student: Any, case: Case) -> Any:
    """The loss, and for each place whether it has a gradient."""
    logits, labels, synonyms = case.args
    logits = logits.clone().requires_grad_()
    loss = student(logits, labels, synonyms)
    if not isinstance(loss, torch.Tensor):
        return loss
    places: list[bool] = []
    if loss.requires_grad:
        gradient = torch.autograd.grad(loss, logits)[0]
        places = [bool(row.abs().max() > 1e-7) for row in gradient]
    return {"loss": float(loss.detach()), "places with a gradient": places}


def _correction_cases(rng: np.random.Generator) -> list[Case]:
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    cases = []
    for count, note in ((6, "6 places"), (8, "8 places"), (5, "5 places")):
        size = 9
        synonyms = torch.zeros(size, size, dtype=torch.bool)
        # In the table a word stands with itself, as in a thesaurus that lists whole groups.
        for group in ([1, 2], [4, 5, 6]):
            synonyms[torch.tensor(group)[:, None], torch.tensor(group)] = True
        labels = torch.tensor([1, 4, 5, 3, 6, 2, 7, 4][:count])
        guesses = torch.tensor([2, 4, 6, 5, 8, 2, 7, 5][:count])
        logits = torch.randn(count, size, generator=generator) * 0.3
        logits[torch.arange(count), guesses] += 2.5
        order = torch.randperm(count, generator=generator)
        cases.append(Case((logits[order], labels[order], synonyms), note=note))
    return cases


HARD = Exercise(
    id="pretraining.hard_correction",
    points=3,
    title="Hard correction: synonyms are no errors",
    cases=_correction_cases,
    reference=hard_correction,
    drive=what_is_shielded,
    also_right=(_correcting(_is_synonym),),
    mistakes=(
        Mistake("no-shield", "Nothing is shielded: this is plain cross-entropy.",
                _correcting(lambda g, y, s: torch.zeros_like(y, dtype=torch.bool))),
        Mistake("shields-right", "Right guesses are shielded, too: a word stands in its own row of the table. Only "
                "a guess other than the label is.", _correcting(lambda g, y, s: s[y, g])),
        Mistake("any-synonym", "Every word that has a synonym is shielded, whatever the model guessed.",
                _correcting(lambda g, y, s: s[y].sum(dim=-1) > 1)),
        Mistake("any-wrong", "Every wrong guess is shielded; only synonyms of the label are.",
                _correcting(lambda g, y, s: g != y)),
        Mistake("inverted", "The shield is the wrong way round: only the synonyms are trained on.",
                _correcting(lambda g, y, s: ~_is_synonym(g, y, s))),
        Mistake("kept-mean", "You divide by the places that are left; the mean is over all selected places, or the "
                "others would gain weight.", _correcting(_is_synonym, divide="kept")),
        Mistake("forgiving", "You train towards the model's own guess; shielding means no gradient at all.",
                _forgiving),
        Mistake("value-only", "The value is right, but gradient still flows from shielded places: multiply each "
                "place's loss by 0 or 1 before the sum.", _value_only),
    ),
    hints=(
        "You need the loss of each place on its own, and then which of them count.",
        "functional.cross_entropy(..., reduction='none') gives one loss a place; logits.argmax(dim=-1) the guesses.",
        "guess = logits.argmax(dim=-1)\nshielded = synonyms[labels, guess] & ...\n"
        "return losses.masked_fill(shielded, 0.0).sum() / ...",
    ),
)  # fmt: skip

EXERCISES = (MASK, WHOLE, NSP, SOP, SPANS, JOINT, HARD)
