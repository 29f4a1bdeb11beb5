"""Near-duplicates in a large set of documents: shingles, MinHash signatures, bands (Broder 1997; Leskovec et al., ch. 3).

Read ``near_duplicates`` first. Everything is plain numpy and the same on every platform: words are hashed by
BLAKE2, never by Python's own ``hash``. The cost per document does not depend on how many there are.
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

WORDS = 5  # words in a shingle
# With 20 bands of 6 rows, a pair of Jaccard similarity 0.8 shares a band with probability 0.998, one of 0.3 with 0.014.
BANDS, ROWS = 20, 6
SIMILAR = 0.8
BUCKET = 16  # a bucket remembers so many documents; boilerplate would make it grow without end

_WORD = re.compile(r"\w+")
_BASE = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 4096


def words_of(text: str) -> list[str]:
    """The lower-case words of a text, without punctuation."""
    return _WORD.findall(text.lower())


@functools.lru_cache(maxsize=1 << 20)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def shingle_hashes(words: Sequence[str], n: int = WORDS, bits: int = 32) -> np.ndarray:
    """The set of a text's word n-grams as sorted hashes of 32 or 64 bits, uint64 ``(shingles,)``.

    A text of fewer than ``n`` words is one shingle; a text without words has none. 32 bits are enough to
    compare two texts; to look one up among millions of n-grams, take 64.
    """
    if not words:
        return np.zeros(0, dtype=np.uint64)
    hashed = np.fromiter(map(_word_hash, words), dtype=np.uint64, count=len(words))
    return np.unique(_mixed(rolling(hashed, min(n, len(words)))) >> np.uint64(64 - bits))


def rolling(hashed: np.ndarray, n: int) -> np.ndarray:
    """Polynomial hash of every window of ``n`` word hashes, modulo 2^64: ``(words,)`` to ``(words - n + 1,)``."""
    count = len(hashed) - n + 1
    total = np.zeros(max(count, 0), dtype=np.uint64)
    for offset in range(n if count > 0 else 0):
        total = total * _BASE + hashed[offset : offset + count]  # wraps around, as it should
    return total


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: every bit of the input reaches every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two sorted arrays without repetition; 0 where both are empty."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - shared
    return shared / union if union else 0.0


@dataclass(frozen=True)
class MinHash:
    """A family of hash functions ``h_i(x) = (a_i x + b_i mod 2^64) >> 32``, strongly universal (Dietzfelbinger 1996)."""

    count: int = BANDS * ROWS
    seed: int = 0

    @functools.cached_property
    def parameters(self) -> tuple[np.ndarray, np.ndarray]:
        """``a`` (odd) and ``b``, uint64 ``(count,)`` each."""
        rng = np.random.Generator(np.random.PCG64(self.seed))
        a, b = rng.integers(0, 2**64, (2, self.count), dtype=np.uint64)
        return a | np.uint64(1), b

    def signature(self, shingles: np.ndarray) -> np.ndarray:
        """The least hash of a set of shingles under each function, uint32 ``(count,)``.

        Two sets agree in one entry with a probability that is their Jaccard similarity. An empty set has the
        largest value everywhere.
        """
        a, b = self.parameters
        least = np.full(self.count, 2**32 - 1, dtype=np.uint64)
        for start in range(0, len(shingles), _CHUNK):  # a long document must not fill the memory
            hashed = shingles[start : start + _CHUNK, None] * a + b  # (shingles, count)
            least = np.minimum(least, hashed.min(axis=0) >> np.uint64(32))
        return least.astype(np.uint32)


def band_keys(signatures: np.ndarray, bands: int = BANDS, rows: int = ROWS) -> np.ndarray:
    """One key for each band of each signature: ``(documents, bands * rows)`` to uint64 ``(documents, bands)``."""
    parts = signatures[:, : bands * rows].reshape(len(signatures), bands, rows).astype(np.uint64)
    keys = np.zeros((len(signatures), bands), dtype=np.uint64)
    for row in range(rows):
        keys = _mixed(keys * _BASE + parts[:, :, row] + np.uint64(1))
    return keys


def candidate_pairs(keys: np.ndarray) -> set[tuple[int, int]]:
    """All pairs ``i < j`` that share the key of at least one band; for small sets, a large bucket has many pairs."""
    pairs: set[tuple[int, int]] = set()
    for column in keys.T:
        order = np.argsort(column, kind="stable")
        borders = np.flatnonzero(np.diff(column[order])) + 1
        for bucket in np.split(order, borders):
            members = bucket.tolist()
            pairs.update((i, j) for k, i in enumerate(members) for j in members[k + 1 :])
    return pairs


def collision_probability(similarity: np.ndarray | float, bands: int, rows: int) -> np.ndarray:
    """Probability that a pair shares a band, ``1 - (1 - s^r)^b``; it is steepest near ``(1/b)^(1/r)``."""
    s = np.asarray(similarity, dtype=float)
    return 1 - (1 - s**rows) ** bands


@dataclass(frozen=True)
class Duplicates:
    """``first[i]`` is the document that ``i`` repeats, ``-1`` where it is the first of its kind."""

    first: np.ndarray
    similarity: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """Numbers of the documents that stay."""
        return np.flatnonzero(self.first < 0)


class Index:
    """Documents seen so far, by band; ``add`` tells whether a new one repeats one of them.

    Only documents that stay are remembered, so a license that came a thousand times costs one entry. A
    bucket is compared with its ``BUCKET`` latest documents: the cost of one ``add`` has a bound.
    """

    def __init__(self, threshold: float = SIMILAR) -> None:
        self.threshold = threshold
        self._buckets: dict[tuple[int, int], list[int]] = {}
        self._shingles: dict[int, np.ndarray] = {}

    def add(self, number: int, shingles: np.ndarray, keys: np.ndarray) -> tuple[int, float]:
        """The kept document that this one is nearest to, and their exact similarity; ``(-1, best)`` if it is new."""
        if not len(shingles):
            return -1, 0.0
        places = list(enumerate(keys.tolist()))
        near = sorted({other for place in places for other in self._buckets.get(place, ())})
        best, found = 0.0, -1
        for other in near:
            similarity = jaccard(shingles, self._shingles[other])
            if similarity > best:
                best, found = similarity, other
        if best >= self.threshold:
            return found, best
        self._shingles[number] = shingles.astype(np.uint32)
        for place in places:
            bucket = self._buckets.setdefault(place, [])
            bucket.append(number)
            del bucket[:-BUCKET]
        return -1, best


def near_duplicates(
    texts: Iterable[str],
    threshold: float = SIMILAR,
    n: int = WORDS,
    bands: int = BANDS,
    rows: int = ROWS,
    seed: int = 0,
) -> Duplicates:
    """Find the documents that repeat an earlier one.

    Parameters
    ----------
    texts
        Read once, one after the other.
    threshold
        Exact Jaccard similarity of two sets of ``n`` -word shingles from which on the later one is a duplicate.
        Signatures only propose; each proposal is checked exactly, so nothing below the threshold is ever called one.
    """
    family, index = MinHash(bands * rows, seed), Index(threshold)
    first, similarity = [], []
    for number, text in enumerate(texts):
        shingles = shingle_hashes(words_of(text), n)
        keys = band_keys(family.signature(shingles)[None], bands, rows)[0]
        found, how = index.add(number, shingles, keys)
        first.append(found)
        similarity.append(how)
    return Duplicates(np.array(first, dtype=np.int64), np.array(similarity))
