"""A language model that trains in a second: n-grams of bytes with interpolated smoothing.

It measures quality in the corpus pipeline, and in lab 01 what duplicates do to a model. No torch, exact
counts, probabilities that sum to one (a test says so).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_MOST = 7  # bytes that fit into 64 bits with one to spare


@dataclass(frozen=True)
class ByteNgram:
    """Byte n-grams, each order smoothed with the one below (MacKay and Peto 1995).

    .. math:: p_n(w \\mid h) = \\frac{c(h, w) + \\alpha\\, p_{n-1}(w \\mid h')}{c(h) + \\alpha}, \\qquad p_0 = 1/256

    ``h`` are the ``n - 1`` bytes before, ``h'`` is ``h`` without its first byte. ``grams[i]`` and ``counts[i]``
    hold the distinct ``i+1``-grams as sorted integers and how often each was seen; ``contexts[i]`` and
    ``totals[i]`` the same for what stands before the last byte.
    """

    order: int
    alpha: float
    grams: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]
    contexts: tuple[np.ndarray, ...]
    totals: tuple[np.ndarray, ...]

    @classmethod
    def train(cls, texts: Iterable[str], order: int = 5, alpha: float = 4.0) -> "ByteNgram":
        """Count the n-grams of ``texts``. ``order`` is at most 7; ``alpha`` is the weight of the order below."""
        if not 1 <= order <= _MOST:
            raise ValueError(f"order is {order}; it must be from 1 to {_MOST}")
        pieces = [_grams(text, order) for text in texts]
        grams, counts, contexts, totals = [], [], [], []
        for n in range(order):
            whole = np.concatenate([piece[n] for piece in pieces] or [np.zeros(0, np.uint64)])
            found, count = np.unique(whole, return_counts=True)
            before, inverse = np.unique(found >> np.uint64(8), return_inverse=True)
            grams.append(found)
            counts.append(count)
            contexts.append(before)
            totals.append(np.bincount(inverse, weights=count, minlength=len(before)))
        return cls(order, alpha, tuple(grams), tuple(counts), tuple(contexts), tuple(totals))

    def probabilities(self, text: str | bytes) -> np.ndarray:
        """The probability of each byte of a text, given those before it: ``(bytes,)``."""
        pieces = _grams(text, self.order)
        p = np.full(len(pieces[0]), 1 / 256)
        for n in range(self.order):
            seen = _looked_up(self.grams[n], self.counts[n], pieces[n])
            total = _looked_up(self.contexts[n], self.totals[n], pieces[n] >> np.uint64(8))
            p = (seen + self.alpha * p) / (total + self.alpha)
        return p

    def bits_per_byte(self, text: str) -> float:
        """Cross-entropy in bits per byte; an empty text has 0. The perplexity of a byte is 2 to its power."""
        p = self.probabilities(text)
        return float(-np.log2(p).mean()) if len(p) else 0.0


def _grams(text: str | bytes, order: int) -> list[np.ndarray]:
    """For n = 1 … order, the n-gram that ends at each byte, as an integer; a text begins after zeros."""
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    bytes_ = np.frombuffer(data, dtype=np.uint8).astype(np.uint64)
    padded = np.concatenate([np.zeros(order - 1, dtype=np.uint64), bytes_])
    gram, result = np.zeros(len(bytes_), dtype=np.uint64), []
    for n in range(order):
        start = order - 1 - n
        gram = gram | (padded[start : start + len(bytes_)] << np.uint64(8 * n))
        result.append(gram)
    return result


def _looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """``values`` where ``keys`` (sorted) has what is wanted, 0 elsewhere."""
    if not len(keys):
        return np.zeros(len(wanted))
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0.0)
