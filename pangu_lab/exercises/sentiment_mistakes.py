"""What students do instead, in lab 07: the mistakes' implementations, most of them one function with a knob for each.

They stand apart from ``sentiment.py`` because there are many. With all knobs at rest each is right in another way
than its reference, and counts as a second right answer.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import log_softmax, softmax

from pangu_lab.exercises.calling import preserved_random_state

# --- averages ---------------------------------------------------------------------------------------


def each_class(table: np.ndarray, empty: float | None = 0.0) -> np.ndarray:
    """Precision, recall and F1 of each class, (3, classes); ``empty`` is what 0/0 gives, None lets it raise."""

    def ratio(a: float, b: float) -> float:
        return float(a) / float(b) if b or empty is None else empty

    scores = []
    for label in range(len(table)):
        hits, said, there = int(table[label, label]), int(table[:, label].sum()), int(table[label].sum())
        scores.append((ratio(hits, said), ratio(hits, there), ratio(2 * hits, said + there)))
    return np.array(scores).T


def mean_of_classes(empty: float | None = 0.0, order: tuple[int, int, int] = (0, 1, 2)) -> Any:
    def scores(table: np.ndarray) -> tuple[float, ...]:
        means = each_class(table, empty).mean(axis=1)
        return tuple(float(means[i]) for i in order)

    return scores


def micro(table: np.ndarray) -> tuple[float, float, float]:
    accuracy = float(np.trace(table) / table.sum())
    return accuracy, accuracy, accuracy


def by_support(table: np.ndarray) -> tuple[float, ...]:
    return tuple((each_class(table) @ (table.sum(axis=1) / table.sum())).tolist())


def present_classes(table: np.ndarray) -> tuple[float, ...]:
    present = table.sum(axis=1) > 0
    return tuple(each_class(table)[:, present].mean(axis=1).tolist())


def f1_of_means(table: np.ndarray) -> tuple[float, float, float]:
    precision, recall, _ = each_class(table).mean(axis=1).tolist()
    return precision, recall, 2 * precision * recall / (precision + recall)


def outer_classes(table: np.ndarray) -> tuple[float, ...]:
    return tuple(each_class(table)[:, [0, -1]].mean(axis=1).tolist())


# --- the bootstrap ----------------------------------------------------------------------------------


def macro_recalls(gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Macro recall of many resamples at once, from (resamples, rows)."""
    recalls = [
        ((gold == label) & (predicted == label)).sum(axis=1) / np.maximum((gold == label).sum(axis=1), 1)
        for label in range(3)
    ]
    return np.mean(recalls, axis=0)


def boot(
    draw: Any = None,
    ends: tuple[float, float] = (0.025, 0.975),
    seeded: Any = np.random.default_rng,
    apart: bool = False,
) -> Any:
    """A bootstrap with other row numbers, percentiles or generator."""

    def interval(gold: Any, predicted: Any, resamples: int, seed: int) -> tuple[float, float, np.ndarray]:
        own, n = seeded(seed), len(gold)
        pick = draw or (lambda own, count, n: own.integers(0, n, (count, n)))
        rows = pick(own, resamples, n)
        others = pick(own, resamples, n) if apart else rows
        scores = macro_recalls(gold[rows], predicted[others])
        low, high = np.quantile(scores, ends)
        return float(low), float(high), scores

    return interval


def recalls_resampled(gold: Any, predicted: Any, resamples: int, seed: int) -> tuple[float, float, np.ndarray]:
    own = np.random.default_rng(seed)
    recalls = np.array([(predicted[gold == label] == label).mean() for label in range(3)])
    scores = recalls[own.integers(0, 3, (resamples, 3))].mean(axis=1)
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high), scores


def of_the_mean(gold: Any, predicted: Any, resamples: int, seed: int) -> tuple[float, float, np.ndarray]:
    scores = boot()(gold, predicted, resamples, seed)[2]
    half = 1.96 * scores.std() / np.sqrt(resamples)
    return float(scores.mean() - half), float(scores.mean() + half), scores


def sorted_ranks(gold: Any, predicted: Any, resamples: int, seed: int) -> tuple[float, float, list[float]]:
    scores = boot()(gold, predicted, resamples, seed)[2]
    ordered = sorted(scores.tolist())
    return ordered[int(0.025 * resamples)], ordered[int(0.975 * resamples)], scores.tolist()


class _Legacy:
    """The shared generator of numpy, under the names of a new one."""

    integers = staticmethod(np.random.randint)


def shared_numpy(seed: int) -> Any:
    np.random.seed(seed % 2**32)
    return _Legacy()


# --- weights ----------------------------------------------------------------------------------------


def weights(rule: Callable[[int, np.ndarray, int], Any]) -> Callable[[list[int], int], Any]:
    def weights(labels: list[int], classes: int) -> Any:
        return rule(len(labels), np.bincount(labels, minlength=classes), classes)

    return weights


def inverse(n: float, counts: np.ndarray, classes: float) -> np.ndarray:
    return np.divide(n, classes * counts, out=np.zeros(len(counts)), where=counts > 0)


def integer_division(labels: list[int], classes: int) -> np.ndarray:
    return np.array([len(labels) // (classes * c) if c else 0 for c in np.bincount(labels, minlength=classes)], float)


def raising_weights(labels: list[int], classes: int) -> np.ndarray:
    return np.array([len(labels) / (classes * labels.count(label)) for label in range(classes)])


def infinite_weights(labels: list[int], classes: int) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return len(labels) / (classes * np.bincount(labels, minlength=classes))


def present_weights(labels: list[int], classes: int) -> np.ndarray:
    counts = np.unique(labels, return_counts=True)[1]
    return len(labels) / (classes * counts)


# --- augmentation -----------------------------------------------------------------------------------


def deletion(
    keep: Any = None, last: Any = None, generator: Any = np.random.default_rng
) -> Callable[[list[str], float, int], Any]:
    """Deletion with another rule of what is kept, another way out when all is gone, or another generator."""

    def delete(words: list[str], probability: float, seed: int) -> Any:
        own = generator(seed)
        chances = own.random(len(words))
        if keep:
            kept = keep(words, chances, probability)
        else:
            kept = [word for word, chance in zip(words, chances, strict=True) if chance >= probability]
        if kept or not words:
            return kept
        return last(words, own) if last else [words[int(own.random() * len(words))]]

    return delete


def python_deletion(words: list[str], probability: float, seed: int) -> list[str]:
    own = random.Random(seed)
    kept = [word for word in words if own.random() > probability]
    return kept if kept else [own.choice(words)]


def seeded_globally(seed: int) -> Any:
    np.random.seed(seed % 2**32)
    return np.random


def restored_deletion(words: list[str], probability: float, seed: int) -> Any:
    with preserved_random_state():
        return deletion(generator=seeded_globally)(words, probability, seed)


def by_value(words: list[str], chances: np.ndarray, probability: float) -> list[str]:
    gone = {word for word, chance in zip(words, chances, strict=True) if chance < probability}
    return [word for word in words if word not in gone]


def fixed_number(words: list[str], chances: np.ndarray, probability: float) -> list[str]:
    gone = set(np.argsort(chances)[: round(probability * len(words))].tolist())
    return [word for i, word in enumerate(words) if i not in gone]


def joined(words: list[str], probability: float, seed: int) -> str:
    return " ".join(deletion()(words, probability, seed))


def swapping(
    pick: Any = None, exchange: Any = None, times: Any = None, seeded: Any = random.Random, guard: bool = True
) -> Callable[[list[str], int, int], Any]:
    """Swapping with other places, another exchange, another number of swaps, or another generator."""
    pick = pick or (lambda own, n: own.sample(range(n), 2))

    def swap(words: list[str], swaps: int, seed: int) -> Any:
        own, words = seeded(seed), list(words)
        if guard and len(words) < 2:
            return words
        for _ in range(times(swaps) if times else swaps):
            i, j = pick(own, len(words))
            if exchange:
                exchange(words, i, j)
            else:
                words[i], words[j] = words[j], words[i]
        return words

    return swap


def overwrite(words: list[str], i: int, j: int) -> None:
    words[i] = words[j]


def drop(words: list[str], i: int, j: int) -> None:
    if len(words) > 2:
        del words[min(i, len(words) - 1)]


def neighbors(own: random.Random, n: int) -> tuple[int, int]:
    i = own.randrange(n - 1)
    return i, i + 1


def shuffled(words: list[str], swaps: int, seed: int) -> list[str]:
    return random.Random(seed).sample(words, len(words))


def shared(seed: int) -> Any:
    random.seed(seed)
    return random


# --- temperature and reliability --------------------------------------------------------------------


def plain_softmax(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        exponents = np.exp(z)
        return exponents / exponents.sum(axis=-1, keepdims=True)


def _calibrate(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    best = min(grid, key=lambda x: nll(v / x, vg))
    return best, nll(t / best, tg)


def nll(logits: np.ndarray, gold: list[int]) -> float:
    return float(-log_softmax(logits, axis=-1)[np.arange(len(gold)), gold].mean())


def accuracy(logits: np.ndarray, gold: list[int]) -> float:
    return float((logits.argmax(axis=-1) == np.asarray(gold)).mean())


def on_test(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    return _calibrate(t, tg, t, tg, grid)


def multiplying(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    best = min(grid, key=lambda x: nll(v * x, vg))
    return best, nll(t * best, tg)


def on_probabilities(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    return _calibrate(softmax(v, axis=-1), vg, softmax(t, axis=-1), tg, grid)


def best_accuracy(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    best = max(grid, key=lambda x: accuracy(v / x, vg))
    return best, nll(t / best, tg)


def worst(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    best = max(grid, key=lambda x: nll(v / x, vg))
    return best, nll(t / best, tg)


def not_applied(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    return _calibrate(v, vg, t, tg, grid)[0], nll(t, tg)


def validation_loss(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    best = _calibrate(v, vg, t, tg, grid)[0]
    return best, nll(v / best, vg)


def summed(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    best, loss = _calibrate(v, vg, t, tg, grid)
    return best, loss * len(tg)


def likelihood(v: Any, vg: Any, t: Any, tg: Any, grid: list[float]) -> tuple[float, float]:
    best, loss = _calibrate(v, vg, t, tg, grid)
    return best, -loss


def binning(
    of: Any = None,
    hit: Any = None,
    last: str = "in",
    order: tuple[int, int, int] = (0, 1, 2),
    middle: bool = False,
    empty: str = "out",
    equal: bool = False,
    share: bool = False,
) -> Any:
    """The bins by hand, with one thing wrong."""

    def binned(probabilities: np.ndarray, gold: list[int], bins: int) -> Any:
        labels = np.asarray(gold)
        confidence = of(probabilities, labels) if of else probabilities.max(axis=1)
        right = hit(probabilities, labels) if hit else probabilities.argmax(axis=1) == labels
        place = (confidence * bins).astype(int)
        if equal:
            place = np.argsort(np.argsort(confidence)) * bins // len(labels)
        elif last == "in":
            place = np.minimum(place, bins - 1)
        found: list[Any] = [[] for _ in range(bins)]
        for row, number in enumerate(place.tolist()):
            if number < bins or last == "raises":
                found[number].append(row)
        made: list[tuple[float, ...]] = []
        for number, rows in enumerate(found):
            if not rows:
                if empty == "out":
                    continue
                value = float("nan") if empty == "nan" else 0.0
                made.append((value, value, 0))
                continue
            sure = (number + 0.5) / bins if middle else float(confidence[rows].mean())
            count = len(rows) / len(labels) if share else len(rows)
            one = (sure, float(right[rows].mean()), count)
            made.append((one[order[0]], one[order[1]], one[order[2]]))
        return made

    return binned


def rows_gold(probabilities: np.ndarray, gold: np.ndarray) -> np.ndarray:
    return probabilities[np.arange(len(gold)), gold]
