"""Is one model better than another, or was it luck? McNemar's test, the paired bootstrap, Student's t over seeds.

The first two use that both models answered the *same* rows: what makes a row hard for both cancels out. Comparing
two separate intervals throws that away. With one figure a seed, ``mean_interval`` of the seeds' differences is paired
in the same sense.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from scipy import stats

from pangu_lab.tasks.metrics import RESAMPLES, Metric, MetricsError


@dataclass(frozen=True)
class McNemar:
    """The rows on which exactly one of two models is right, and the two-sided p-value."""

    only_first: int
    only_second: int
    p: float

    def __str__(self) -> str:
        return f"only the first right {self.only_first}, only the second {self.only_second}, p = {self.p:.3g}"


def mcnemar(first_right: Sequence[bool] | np.ndarray, second_right: Sequence[bool] | np.ndarray) -> McNemar:
    """McNemar's exact test of two models on the same rows.

    Parameters
    ----------
    first_right, second_right
        Whether each model is right, one truth value a row.

    Returns
    -------
    McNemar
        ``p`` is the chance that ``n`` tosses of a fair coin are divided at least as unevenly as the ``n`` rows
        on which the models differ; 1 if there are none. Source: McNemar 1947; the exact binomial form, not
        the chi-square approximation, which is poor for few rows.
    """
    first, second = _pair(first_right, second_right)
    if not {*np.unique(first), *np.unique(second)} <= {0, 1}:
        raise MetricsError("McNemar's test takes right or wrong; for scores such as F1 use paired_bootstrap")
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    n, few = only_first + only_second, min(only_first, only_second)
    tail = sum(comb(n, k) for k in range(few + 1))
    # Whole numbers until the last division: 2 ** n overflows a float from 1,024 rows on.
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**n))


def paired_bootstrap(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    groups: Sequence[object] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Metric:
    """Mean of ``first - second`` over rows, with a 95 % percentile interval.

    Parameters
    ----------
    first, second
        A score a row for each model: 0 or 1, or the F1 of an answer.
    groups
        What rows share, as the passage of a question; then whole groups are drawn.

    Notes
    -----
    Each resample draws rows once and takes both models' scores of them (Efron and Tibshirani 1993, ch. 8 and
    13). An interval without 0 says that the luck of the draw of the rows does not explain the difference.
    """
    a, b = _pair(first, second)
    if groups is not None and len(groups) != len(a):
        raise MetricsError(f"{len(a)} rows and {len(groups)} groups; give one group a row")
    difference = a - b  # (rows,)
    keys = range(len(a)) if groups is None else groups
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    index = np.array([number[key] for key in keys])
    sums, counts = np.bincount(index, difference), np.bincount(index)  # (groups,)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 100):  # 25,000 rows times 1,000 resamples need not be held at once
        drawn = generator.integers(len(sums), size=(min(100, resamples - start), len(sums)))
        means[start : start + len(drawn)] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    unit = "rows" if groups is None else "groups"
    method = f"paired bootstrap over {unit}, {resamples} resamples, seed {seed}"
    return Metric(float(difference.mean()), float(low), float(high), method)


def mean_interval(values: Sequence[float] | np.ndarray) -> Metric:
    """The mean of one figure a seed, with its 95 % interval by Student's t (Student 1908).

    For a gain, give the differences of the two figures of each seed: what a seed does to both cancels out.

    >>> print(mean_interval([0.80, 0.82, 0.78]))
    0.800 [0.750, 0.850]
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) < 2:
        raise MetricsError(f"an interval over seeds needs at least two of them; got figures of shape {x.shape}")
    half = float(stats.t.ppf(0.975, len(x) - 1)) * float(x.std(ddof=1)) / len(x) ** 0.5
    return Metric(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, f"Student's t over {len(x)} seeds")


def _pair(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise MetricsError(f"a paired comparison needs one score a row for each model; got {a.shape} and {b.shape}")
    return a, b
