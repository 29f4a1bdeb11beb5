"""What a model is asked while it pre-trains: masked words, sentence pairs, spans, and a loss that forgives synonyms.

Every draw is a pure function of seed, epoch, row and place (``Draws``): a row is masked anew in each epoch,
whatever batch it stands in, and a run that was killed draws the same masks again. Read ``bert_masks`` first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pangu_lab.errors import PanguLabError

IGNORED = -100  # the label of a place whose loss does not count
RATE = 0.15  # of the tokens are selected (Devlin et al. 2019, §3.1)
MASKED, REPLACED = 0.8, 0.1  # of the selected tokens; the rest stays as it is
MEAN_SPAN = 3.0  # tokens (Raffel et al. 2020, §3.1.4)


class ObjectiveError(PanguLabError, ValueError):
    """A text cannot be asked about in this way."""


# --- random numbers ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Draws:
    """Random numbers for some rows in one epoch; the same whoever asks, in whatever order and company.

    Parameters
    ----------
    rows
        Numbers of the rows ``(B,)`` in the whole corpus.
    """

    seed: int
    epoch: int
    rows: np.ndarray

    def uniform(self, stream: int, length: int) -> np.ndarray:
        """``(B, length)`` numbers in [0, 1), independent between streams, rows, places and epochs.

        Each is a hash of its coordinates (the finalizer of splitmix64, Steele et al. 2014), so no generator has
        to be set up for a row, and a row's numbers do not depend on its batch.
        """
        with np.errstate(over="ignore"):  # the products are meant to wrap around
            key = _mix(np.uint64(self.seed) * _ODD[0] + np.uint64(self.epoch) * _ODD[1] + np.uint64(stream) * _ODD[2])
            row = _mix(self.rows.astype(np.uint64) * _ODD[3] ^ key)  # (B,)
            bits = _mix(row[:, None] + np.arange(1, length + 1, dtype=np.uint64) * _ODD[0])  # (B, length)
        return (bits >> np.uint64(11)) * 2.0**-53


_ODD = tuple(np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xD1342543DE82EF95, 0x2545F4914F6CDD1D, 0xBF58476D1CE4E5B9))


def _mix(x: np.ndarray | np.uint64) -> np.ndarray:
    y: Any = np.asarray(x, dtype=np.uint64)
    y = (y ^ (y >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    y = (y ^ (y >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = y ^ (y >> np.uint64(31))
    return mixed


SELECT, KIND, WORD, NOISE, GAP = range(5)  # streams


# --- masked words -----------------------------------------------------------------------------------


class Masked(NamedTuple):
    """What a masked language model sees ``(B, T)``, and the labels ``(B, T)``: -100 where nothing is asked."""

    inputs: np.ndarray
    labels: np.ndarray


def select(scores: np.ndarray, maskable: np.ndarray, rate: float = RATE) -> np.ndarray:
    """In each row, the ``rate`` of the maskable tokens with the lowest scores; one at least, if there is any.

    All arrays are ``(B, T)``.
    """
    count = maskable.sum(axis=1)
    wanted = np.minimum(count, np.maximum(1, np.rint(rate * count)))  # (B,)
    return _lowest(np.where(maskable, scores, np.inf), wanted) & maskable


def _lowest(scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """True at the ``wanted`` (B,) lowest scores of each row (B, T)."""
    if scores.shape[1] == 0:
        return np.zeros(scores.shape, dtype=bool)
    # The score of rank ``wanted`` is the limit; scores of 53 bits do not tie.
    limit = np.take_along_axis(np.sort(scores, axis=1), np.maximum(wanted.astype(int) - 1, 0)[:, None], axis=1)
    return (scores <= limit) & (wanted > 0)[:, None]


def select_words(scores: np.ndarray, words: np.ndarray, rate: float = RATE) -> np.ndarray:
    """Whole words of each row, in the order of their scores, until the next one would pass ``rate`` of the tokens.

    ``words`` ``(B, T)`` numbers the words of a row: pieces of a word stand together and share its number; -1 is a
    token that is never masked. The first word is taken whatever its length. A word's score is its first piece's.
    """
    maskable = words >= 0
    first = maskable.copy()
    first[:, 1:] &= words[:, 1:] != words[:, :-1]
    starts = np.maximum.accumulate(np.where(first, np.arange(words.shape[1]), 0), axis=1)
    shared = np.where(maskable, np.take_along_axis(scores, starts, axis=1), np.inf)
    order = np.argsort(shared, axis=1, kind="stable")  # pieces of a word stay together
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(words.shape[1]), words.shape), axis=1)
    last = maskable.copy()
    last[:, :-1] &= words[:, 1:] != words[:, :-1]
    # After its word, so many tokens would be masked: the rank of the word's last piece, plus one.
    ends = np.minimum.accumulate(np.where(last, np.arange(words.shape[1]), words.shape[1] - 1)[:, ::-1], axis=1)[
        :, ::-1
    ]
    total = np.take_along_axis(rank, ends, axis=1) + 1
    begins = np.take_along_axis(rank, starts, axis=1)
    budget = np.maximum(1, np.rint(rate * maskable.sum(axis=1)))[:, None]
    return maskable & ((total <= budget) | (begins == 0))


def bert_masks(ids: np.ndarray, selected: np.ndarray, draws: Draws, mask_id: int, replacements: np.ndarray) -> Masked:
    """BERT's corruption of the selected tokens (Devlin et al. 2019, §3.1).

    80 % of them become [MASK], 10 % a random token of ``replacements``, 10 % stay; the loss counts at all of
    them. One draw decides between the three: two independent ones would give 81/10/9 or 72/10/18.
    """
    kind = draws.uniform(KIND, ids.shape[1])
    inputs, labels = ids.copy(), np.where(selected, ids, IGNORED)
    inputs[selected & (kind < MASKED)] = mask_id
    random = selected & (kind >= MASKED) & (kind < MASKED + REPLACED)
    words = replacements[(draws.uniform(WORD, ids.shape[1]) * len(replacements)).astype(int)]
    inputs[random] = words[random]
    return Masked(inputs, labels)


# --- pairs of segments ------------------------------------------------------------------------------

Sentences = Sequence[Sequence[int]]  # a document: the ids of each sentence


class Pair(NamedTuple):
    """Two segments and their label: 0 in order (IsNext), 1 not; as in transformers' BertForPreTraining."""

    first: list[int]
    second: list[int]
    label: int


def _cut(document: Sentences, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """The document in two segments, cut between two of its sentences."""
    if len(document) < 2:
        raise ObjectiveError("a document of one sentence cannot be cut into a pair of segments; leave it out")
    at = int(rng.integers(1, len(document)))
    return [i for s in document[:at] for i in s], [i for s in document[at:] for i in s]


def nsp_pair(documents: Sequence[Sentences], number: int, rng: np.random.Generator) -> Pair:
    """Next-sentence prediction (Devlin et al. 2019, §3.1): what follows, or the end of another document, half each."""
    first, second = _cut(documents[number], rng)
    label = int(rng.integers(2))
    if label:
        if len(documents) < 2:
            raise ObjectiveError("NSP takes its negatives from another document, and there is only one")
        other = (number + int(rng.integers(1, len(documents)))) % len(documents)
        second = _cut(documents[other], rng)[1]
    return Pair(first, second, label)


def sop_pair(document: Sentences, rng: np.random.Generator) -> Pair:
    """Sentence-order prediction (Lan et al. 2020, §3.1): two neighboring segments, swapped in half of the cases."""
    first, second = _cut(document, rng)
    label = int(rng.integers(2))
    return Pair(second, first, 1) if label else Pair(first, second, 0)


def pair_input(first: Sequence[int], second: Sequence[int], cls: int, sep: int) -> tuple[list[int], list[int]]:
    """``[CLS] first [SEP] second [SEP]`` and its segment ids: 0 up to the first [SEP], 1 after it."""
    ids = [cls, *first, sep, *second, sep]
    return ids, [0] * (len(first) + 2) + [1] * (len(second) + 1)


# --- spans ------------------------------------------------------------------------------------------


def noise_spans(lengths: np.ndarray, draws: Draws, rate: float = RATE, mean_span: float = MEAN_SPAN) -> np.ndarray:
    """T5's spans (Raffel et al. 2020, §3.1.4): True ``(B, longest)`` at the tokens that are taken out.

    In a row of ``N`` tokens, round(rate · N) are noise, in round(noise / mean_span) spans; the cuts between spans,
    and between what is left, are drawn evenly. A text begins with a token that stays and ends with a span.
    """
    longest = int(lengths.max(initial=0))
    if (lengths < 2).any():
        raise ObjectiveError("span corruption needs texts of at least 2 tokens; leave shorter ones out")
    noise = np.clip(np.rint(rate * lengths), 1, lengths - 1).astype(int)  # (B,)
    spans = np.clip(np.rint(noise / mean_span), 1, np.minimum(noise, lengths - noise)).astype(int)  # (B,)
    taken = _parts(noise, spans, draws.uniform(NOISE, longest))  # (B, most spans)
    kept = _parts(lengths - noise, spans, draws.uniform(GAP, longest))
    starts = np.cumsum(kept, axis=1) + np.cumsum(taken, axis=1) - taken
    edges = np.zeros((len(lengths), longest + 1), dtype=int)
    row, span = np.nonzero(taken)
    edges[row, starts[row, span]] = 1
    edges[row, (starts + taken)[row, span]] -= 1
    inside: np.ndarray = edges[:, :longest].cumsum(axis=1) > 0
    return inside


def _parts(total: np.ndarray, parts: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Cut each total (B,) into so many whole parts of at least 1, all ways alike: (B, most parts), 0 beyond."""
    place = np.arange(scores.shape[1])
    cut = _lowest(np.where(place < (total - 1)[:, None], scores, np.inf), parts - 1)  # after these tokens
    number = np.cumsum(cut, axis=1) - cut  # the part that each token belongs to
    sizes = np.zeros((len(total), int(parts.max(initial=1))), dtype=int)
    row, token = np.nonzero(place < total[:, None])
    np.add.at(sizes, (row, number[row, token]), 1)
    return sizes


def span_corruption(
    ids: np.ndarray, noise: np.ndarray, sentinels: np.ndarray, padding: int
) -> tuple[np.ndarray, np.ndarray]:
    """T5's input and target (Raffel et al. 2020, figure 2) from texts ``(B, T)`` and their noise ``(B, T)``.

    Input: each span has become one sentinel, the first span the first sentinel. Target: each sentinel with what it
    stands for, and one more sentinel at the end. Input is padded with ``padding``, the target with -100.

    Raises
    ------
    ObjectiveError
        A text has more spans than there are sentinels, less one for the end.
    """
    noise = noise & (ids != padding)
    first = noise.copy()
    first[:, 1:] &= ~noise[:, :-1]
    number = np.cumsum(first, axis=1) - 1  # of the span that a token is in, or the last before it
    spans = first.sum(axis=1)
    if spans.max(initial=0) >= len(sentinels):
        raise ObjectiveError(
            f"a text has {spans.max()} spans and there are {len(sentinels)} sentinels, one of them for the end; "
            "shorten the texts or lower the rate"
        )
    inputs = _squeezed(
        np.where(first, sentinels[np.maximum(number, 0)], ids), (ids != padding) & (~noise | first), padding
    )
    size = noise.sum(axis=1) + spans + 1
    target = np.full((len(ids), int(size.max(initial=1))), IGNORED, dtype=ids.dtype)
    before = np.cumsum(noise, axis=1) - noise  # noise tokens before each place
    row, place = np.nonzero(noise)
    target[row, before[row, place] + number[row, place] + 1] = ids[row, place]
    row, place = np.nonzero(first)
    target[row, before[row, place] + number[row, place]] = sentinels[number[row, place]]
    target[np.arange(len(ids)), size - 1] = sentinels[spans]
    return inputs, target


def _squeezed(values: np.ndarray, keep: np.ndarray, padding: int) -> np.ndarray:
    """The kept values of each row, moved to its front."""
    out = np.full((len(values), int(keep.sum(axis=1).max(initial=1))), padding, dtype=values.dtype)
    row, place = np.nonzero(keep)
    out[row, (np.cumsum(keep, axis=1) - 1)[row, place]] = values[row, place]
    return out


# --- correction -------------------------------------------------------------------------------------
# The public form of the idea: "Language Model Pre-training on True Negatives" (Zhang et al. 2023). Whether
# Mengzi's "dynamic gradient correction" is this very formula could not be confirmed from its report.


def synonym_table(pairs: Iterable[tuple[int, int]], size: int) -> Tensor:
    """``(size, most)``: the synonyms of each token id, -1 where there are no more."""
    found: dict[int, set[int]] = {}
    for a, b in pairs:
        found.setdefault(a, set()).add(b)
        found.setdefault(b, set()).add(a)
    table = torch.full((size, max(map(len, found.values()), default=1)), -1)
    for token, others in found.items():
        table[token, : len(others)] = torch.tensor(sorted(others))
    return table


def hard_correction(logits: Tensor, labels: Tensor, synonyms: Tensor) -> Tensor:
    """Cross-entropy that is 0, and has no gradient, where the model's best guess is a synonym of the word.

    .. math:: \\mathcal L = -\\frac1{|M|}\\sum_{i \\in M}
              (1 - [\\hat x_i \\ne x_i \\wedge \\hat x_i \\in \\mathrm{Syn}(x_i)]) \\log p(x_i)

    logits ``(N, V)``, labels ``(N,)`` with -100 where nothing counts, synonyms ``(V, K)`` by ``synonym_table``.
    The mean is over all selected places, the shielded ones too.
    """
    losses = functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")  # (N,)
    shielded = is_synonym(logits.argmax(dim=-1), labels, synonyms)
    return losses.masked_fill(shielded, 0.0).sum() / (labels != IGNORED).sum().clamp(min=1)


def is_synonym(guess: Tensor, labels: Tensor, synonyms: Tensor) -> Tensor:
    """True ``(N,)`` where the guess is another word than the label, and means the same."""
    others: Tensor = (synonyms[labels.clamp(min=0)] == guess[:, None]).any(dim=-1)
    return others & (labels != IGNORED)


def soft_correction(logits: Tensor, labels: Tensor, embeddings: Tensor) -> Tensor:
    """Mean distance 1 - cos between the embeddings of the expected guess and of the word; added to the loss.

    Where the published form takes the best guess, whose choice has no gradient, this takes the mean embedding
    under the model's probabilities, :math:`\\sum_v p_v e_v`. logits ``(N, V)``, labels ``(N,)``, embeddings ``(V, d)``.
    """
    counts = labels != IGNORED
    guessed = logits.float().softmax(dim=-1) @ embeddings.float()  # (N, d)
    true = embeddings.float()[labels.clamp(min=0)]  # (N, d)
    distance = 1 - functional.cosine_similarity(guessed, true, dim=-1)
    return (distance * counts).sum() / counts.sum().clamp(min=1)
