"""How low a loss can be: exact probabilities under the synthetic world's grammar.

Given its hidden choices, a document is a hidden Markov chain: a state is a place in a template, the word is
drawn from the state's table, the next state is the next place, or after the last one the first place of a
following template. So the forward and backward sums give the probability of every document and of every
masked word, exactly; no model can have a lower expected loss (Gibbs' inequality). What remains random is
which documents and masks are drawn, hence an interval.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pangu_lab.data.world import Document, World

MASKED, KEPT, REPLACED = 0.8, 0.1, 0.1  # of the selected tokens (Devlin et al. 2019)


@dataclass(frozen=True)
class Floor:
    """The lowest mean loss in nats a token, with a 95 % interval over documents."""

    value: float
    low: float
    high: float
    tokens: int
    documents: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Corrupted:
    """A document as a masked language model sees it.

    ``seen[i]`` is the token at place ``i``, None for [MASK]; ``selected`` are the places whose loss counts.
    """

    document: Document
    seen: tuple[str | None, ...]
    selected: tuple[int, ...]


class Oracle:
    """Exact inference in a world.

    Parameters
    ----------
    world
        The world; memory grows with its hidden combinations times the places of all templates.
    replacements
        The tokens that random replacement draws from, all alike: usually the whole vocabulary.
    rate
        Share of tokens that are selected for the masked-language-model loss.
    """

    def __init__(self, world: World, replacements: Sequence[str] | None = None, rate: float = 0.15) -> None:
        self.world, self.rate = world, rate
        self.replacements = frozenset(world.vocabulary if replacements is None else replacements)
        self.hidden = world.all_hidden()
        lengths = [len(slots) for slots in world.slots]
        self.first = np.cumsum([0, *lengths[:-1]])  # (templates,) state of each template's first place
        self.last = np.cumsum(lengths) - 1
        self.states = [slot for slots in world.slots for slot in slots]
        self.categories = sorted({slot.category for slot in self.states if slot.category})
        index = {category: i for i, category in enumerate(self.categories)}
        self.drawn = np.array([i for i, slot in enumerate(self.states) if slot.category])
        self.category_of = np.array([index[self.states[i].category] for i in self.drawn])
        self._columns: dict[str, np.ndarray] = {}

    @cached_property
    def arrivals(self) -> np.ndarray:
        """``(templates, templates)``: probability that the second follows the first; the rest is the end."""
        templates = self.world.templates
        stage = np.array([t.stage for t in templates])
        weight = np.array([t.weight for t in templates], dtype=float)
        share = weight / np.array([weight[stage == s].sum() for s in stage])
        nexts = np.array([np.array(self.world.next_stage[s]) / sum(self.world.next_stage[s]) for s in stage])
        return np.where(stage[None, :] > 0, nexts[:, np.maximum(stage - 1, 0)] * share[None, :], 0.0)

    @cached_property
    def opening(self) -> np.ndarray:
        """``(templates,)``: probability that a document opens with each."""
        weight = np.array([t.weight if t.stage == 0 else 0 for t in self.world.templates], dtype=float)
        return weight / weight.sum()

    def emission(self, word: str) -> np.ndarray:
        """``(states, hidden)``: probability that a state's word is ``word``."""
        if word not in self._columns:
            by_category = np.zeros((len(self.categories), len(self.hidden)), dtype=np.float32)
            for row, category in enumerate(self.categories):
                shares: dict[str, float] = {}
                for column, hidden in enumerate(self.hidden):
                    key = self.world.key(category, hidden)
                    if key not in shares:
                        entries = self.world.words[key]
                        total = sum(weight for *_, weight in entries)
                        shares[key] = sum(weight for w, _, weight in entries if w == word) / total
                    by_category[row, column] = shares[key]
            self._columns[word] = by_category
        table = np.zeros((len(self.states), len(self.hidden)), dtype=np.float32)
        table[[i for i, slot in enumerate(self.states) if slot.word == word]] = 1.0
        table[self.drawn] = self._columns[word][self.category_of]
        return table

    def _evidence(self, seen: str | None) -> np.ndarray | float:
        """How likely each state makes what is seen, by the noise of masking; [MASK] says nothing."""
        if seen is None:
            return 1.0
        noise = self.rate * REPLACED / len(self.replacements) * (seen in self.replacements)
        return (1 - self.rate + self.rate * KEPT) * self.emission(seen) + np.float32(noise)

    def _step(self, alpha: np.ndarray) -> np.ndarray:
        """One place further: ``(states, hidden)`` to the same."""
        moved = np.empty_like(alpha)
        moved[1:] = alpha[:-1]
        moved[self.first] = self.arrivals.T.astype(np.float32) @ alpha[self.last]
        return moved

    def _step_back(self, beta: np.ndarray) -> np.ndarray:
        moved = np.empty_like(beta)
        moved[:-1] = beta[1:]
        moved[self.last] = self.arrivals.astype(np.float32) @ beta[self.first]
        return moved

    def _start(self) -> np.ndarray:
        alpha = np.zeros((len(self.states), len(self.hidden)), dtype=np.float32)
        alpha[self.first] = (self.opening / len(self.hidden)).astype(np.float32)[:, None]
        return alpha

    def _ending(self) -> np.ndarray:
        beta = np.zeros((len(self.states), len(self.hidden)), dtype=np.float32)
        beta[self.last] = (1 - self.arrivals.sum(axis=1)).astype(np.float32)[:, None]
        return beta

    def next_token_losses(self, document: Document) -> np.ndarray:
        """``(tokens + 1,)``: -log probability of each token after those before it, then of the end."""
        losses = np.empty(len(document.tokens) + 1)
        alpha = self._start()
        for i, word in enumerate(document.tokens):
            here = alpha * self.emission(word)
            total = here.sum(dtype=np.float64)
            losses[i] = -np.log(total)
            alpha = here / np.float32(total)
            if i + 1 < len(document.tokens):
                # Here the document went on: each state that could have ended it did not.
                alpha = self._step(alpha)
        ended = (alpha * self._ending()).sum(dtype=np.float64)
        losses[-1] = -np.log(ended)
        return losses

    def masked_losses(self, corrupted: Corrupted) -> np.ndarray:
        """``(selected,)``: -log probability of the true token at each selected place, given all that is seen.

        A place that shows a token may be unchanged or replaced at random: among selected places the two are
        equally frequent, and the best guess weighs them so.
        """
        evidence = [self._evidence(word) for word in corrupted.seen]
        length = len(evidence)
        betas: list[np.ndarray] = [self._ending()] * length
        for i in range(length - 2, -1, -1):
            beta = self._step_back(betas[i + 1] * evidence[i + 1])
            betas[i] = beta / beta.max()
        losses, wanted = {}, set(corrupted.selected)
        alpha = self._start()
        for i in range(length):
            if i in wanted:
                context = alpha * betas[i]
                losses[i] = -np.log(self._posterior(context, corrupted.document.tokens[i], corrupted.seen[i]))
            alpha = alpha * evidence[i]
            alpha = self._step(alpha / alpha.max())
        return np.array([losses[i] for i in corrupted.selected])

    def _posterior(self, context: np.ndarray, true: str, seen: str | None) -> float:
        """P(true token | what is seen) from the message of all other places."""
        whole = context.sum(dtype=np.float64)
        prior = (context * self.emission(true)).sum(dtype=np.float64) / whole
        if seen is None:
            return float(prior)
        random = REPLACED / len(self.replacements) * (seen in self.replacements)
        seen_prior = prior if seen == true else (context * self.emission(seen)).sum(dtype=np.float64) / whole
        return float(prior * (KEPT * (seen == true) + random) / (KEPT * seen_prior + random))


def corrupt(oracle: Oracle, document: Document, rng: np.random.Generator) -> Corrupted:
    """Select tokens at the oracle's rate, then mask 80 %, replace 10 % at random, keep 10 %."""
    length = len(document.tokens)
    count = max(1, round(oracle.rate * length))
    selected = sorted(rng.choice(length, size=count, replace=False).tolist())
    seen: list[str | None] = list(document.tokens)
    choices = sorted(oracle.replacements)
    for i in selected:
        kind = rng.random()
        if kind < MASKED:
            seen[i] = None
        elif kind < MASKED + REPLACED:
            seen[i] = choices[rng.integers(len(choices))]
    return Corrupted(document, tuple(seen), tuple(selected))


def floor_of(losses: Iterable[np.ndarray]) -> Floor:
    """Mean loss a token; the interval treats documents, not tokens, as independent (ratio estimator)."""
    listed = [np.asarray(values) for values in losses]
    sums, counts = np.array([v.sum() for v in listed]), np.array([len(v) for v in listed])
    mean = sums.sum() / counts.sum()
    spread = np.sqrt(((sums - mean * counts) ** 2).sum()) / counts.sum()
    return Floor(mean, mean - 1.96 * spread, mean + 1.96 * spread, int(counts.sum()), len(listed))


def next_token_floor(oracle: Oracle, documents: Iterable[Document]) -> Floor:
    """The lowest next-token loss on documents of the world, the end of the document included."""
    return floor_of(oracle.next_token_losses(document) for document in documents)


def mlm_floor(oracle: Oracle, documents: Iterable[Document], seed: int = 0) -> Floor:
    """The lowest masked-language-model loss, for the masking of ``corrupt``."""
    rng = np.random.default_rng(seed)
    return floor_of(oracle.masked_losses(corrupt(oracle, document, rng)) for document in documents)
