"""Classification metrics with their 95 % intervals.

Accuracy is a proportion, so its interval is Wilson's; precision, recall and F1 are ratios of counts
that vary together, so theirs come from the bootstrap over rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from pangu_lab.errors import PanguLabError

Z95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution
RESAMPLES = 1000


class MetricsError(PanguLabError):
    """The labels cannot be compared."""


@dataclass(frozen=True)
class Metric:
    """A figure and its 95 % interval; ``method`` says how the interval was made."""

    value: float
    low: float
    high: float
    method: str

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927): unlike the normal one it stays within [0, 1].

    >>> low, high = wilson_interval(830, 1000)
    >>> print(f"{low:.3f} {high:.3f}")
    0.805 0.852
    """
    if not 0 <= right <= total or total == 0:
        raise MetricsError(f"{right} right of {total} is no proportion; there must be at least one row")
    p, z2 = right / total, Z95**2
    center = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return max(0.0, center - half), min(1.0, center + half)


def classification_metrics(
    gold: Sequence[int], predicted: Sequence[int], labels: int, positive: int | None, seed: int = 0
) -> dict[str, Metric]:
    """Accuracy, precision, recall and F1, of the positive class and macro-averaged.

    Parameters
    ----------
    gold, predicted
        Labels from 0 to ``labels`` - 1, one a row.
    positive
        The class that ``precision``, ``recall`` and ``f1`` speak of; None leaves only the macro averages.
    seed
        Of the 1,000 bootstrap resamples over rows.

    Notes
    -----
    A class that is never predicted has precision 0, one that never occurs recall 0 (scikit-learn's
    ``zero_division=0``); the macro average is the plain mean over all classes.
    """
    gold_array, predicted_array = np.asarray(gold), np.asarray(predicted)
    if gold_array.shape != predicted_array.shape or gold_array.ndim != 1 or len(gold_array) == 0:
        raise MetricsError(
            f"{len(gold_array)} gold and {len(predicted_array)} predicted labels; give one of each a row"
        )
    accuracy = accuracy_score(gold_array, predicted_array)
    metrics = {"accuracy": Metric(accuracy, *wilson_interval(round(accuracy * len(gold)), len(gold)), "Wilson")}
    table = confusion_matrix(gold_array, predicted_array, labels=range(labels))
    values = _from_confusion(table, positive)
    # A resample of rows is a multinomial draw of the confusion matrix: the same distribution, no rows touched.
    shares = (table / table.sum()).ravel()
    draws = np.random.default_rng(seed).multinomial(len(gold), shares, size=RESAMPLES)
    spread = _from_confusion(draws.reshape(RESAMPLES, labels, labels), positive)
    for name, value in values.items():
        low, high = np.quantile(spread[name], [0.025, 0.975])
        method = f"bootstrap, {RESAMPLES} resamples, seed {seed}"
        metrics[name] = Metric(float(value), float(low), float(high), method)
    return metrics


def _from_confusion(table: np.ndarray, positive: int | None) -> dict[str, np.ndarray]:
    """Precision, recall and F1 from confusion matrices ``(..., gold, predicted)``; each figure is ``(...)``."""
    hits = np.diagonal(table, axis1=-2, axis2=-1).astype(float)  # (..., labels)
    golds, predictions = table.sum(axis=-1), table.sum(axis=-2)

    def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        return np.divide(numerator, denominator, out=np.zeros_like(hits), where=denominator > 0)

    each = {
        "precision": ratio(hits, predictions),
        "recall": ratio(hits, golds),
        "f1": ratio(2 * hits, golds + predictions),
    }
    values = {f"macro_{name}": value.mean(axis=-1) for name, value in each.items()}
    if positive is not None:
        values |= {name: value[..., positive] for name, value in each.items()}
    return values


def per_class(gold: Sequence[int], predicted: Sequence[int], labels: Sequence[str]) -> list[dict[str, object]]:
    """One row a class: precision, recall, F1 and how many rows have it."""
    scores = precision_recall_fscore_support(gold, predicted, labels=range(len(labels)), zero_division=0)
    return [
        {"label": name, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
        for name, p, r, f, n in zip(labels, *scores, strict=True)
    ]
