"""Do probabilities mean what they say? Reliability, calibration error, and the temperature that mends both."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pangu_lab.tasks.metrics import MetricsError, wilson_interval

LOWEST, HIGHEST = 0.05, 20.0  # temperatures that are searched


@dataclass(frozen=True)
class Bin:
    """Rows whose highest probability lies in one interval: how sure the model is, and how often it is right."""

    confidence: float
    accuracy: float
    low: float
    high: float
    count: int


def reliability(probabilities: np.ndarray, labels: Sequence[int], bins: int = 10) -> list[Bin]:
    """Bins of equal width over the highest probability ``(rows, classes)``; empty ones are left out.

    Source: DeGroot and Fienberg 1983; Guo et al. 2017, §2. The interval of a bin's accuracy is Wilson's.
    """
    confidence, right = _checked(probabilities, labels)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    found = []
    for number in range(bins):
        members = place == number
        if members.any():
            count, hits = int(members.sum()), int(right[members].sum())
            found.append(Bin(float(confidence[members].mean()), hits / count, *wilson_interval(hits, count), count))
    return found


def expected_calibration_error(probabilities: np.ndarray, labels: Sequence[int], bins: int = 10) -> float:
    """Mean distance of confidence and accuracy over the bins, weighted by their rows (Guo et al. 2017, eq. 3)."""
    found = reliability(probabilities, labels, bins)
    total = sum(one.count for one in found)
    return sum(one.count * abs(one.confidence - one.accuracy) for one in found) / total


def negative_log_likelihood(probabilities: np.ndarray, labels: Sequence[int]) -> float:
    """Mean of -log p(label), in nats."""
    rows = np.arange(len(probabilities))
    return float(-np.log(np.clip(probabilities[rows, np.asarray(labels)], 1e-12, None)).mean())


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T): above 1 the model is less sure, below 1 surer; which label is highest never changes."""
    if not temperature > 0:
        raise MetricsError(f"the temperature is {temperature:g}; it must be greater than 0")
    scaled = np.log(np.clip(probabilities, 1e-12, None)) / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def fit_temperature(probabilities: np.ndarray, labels: Sequence[int]) -> float:
    """The temperature with the lowest negative log-likelihood (Guo et al. 2017, §4.2).

    Fit it on validation rows: on the test rows it would be one more parameter trained on them. The loss has
    one minimum in 1/T, so golden-section search finds it.
    """
    _checked(probabilities, labels)
    golden = (np.sqrt(5) - 1) / 2
    low, high = np.log(LOWEST), np.log(HIGHEST)

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(with_temperature(probabilities, float(np.exp(log_temperature))), labels)

    while high - low > 1e-4:
        first, second = high - golden * (high - low), low + golden * (high - low)
        if loss(first) < loss(second):
            high = second
        else:
            low = first
    return float(np.exp((low + high) / 2))


def _checked(probabilities: np.ndarray, labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    if probabilities.ndim != 2 or len(probabilities) != len(labels) or not len(labels):
        raise MetricsError(
            f"probabilities {probabilities.shape} and {len(labels)} labels; give (rows, classes) and a label for each row"
        )
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == np.asarray(labels)
