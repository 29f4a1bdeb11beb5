"""Exercises of lab 12: an interval, two paired tests, arithmetic of printed figures, an honest table, a model card.

Random resamples are given to the student as row numbers (``draws``), so that an answer is one number and not
a draw of luck. McNemar's truth is scipy's binomial distribution; the arithmetic is proved by trying every table.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml
from scipy.special import bdtr

from pangu_lab.exercises.engine import Case, Compare, Exercise, Mistake, call_or_value_error

# --- the bootstrap of F1 ----------------------------------------------------------------------------


def _f1(gold: np.ndarray, predicted: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """F1 of class 1 over the last axis; ``empty`` where nothing is, and nothing is called, positive."""
    hits = ((gold == 1) & (predicted == 1)).sum(axis=-1)
    total = (gold == 1).sum(axis=-1) + (predicted == 1).sum(axis=-1)
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), empty)


def f1_interval(gold: np.ndarray, predicted: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of F1 over the resamples ``draws`` (resamples, rows)."""
    low, high = np.percentile(_f1(gold[draws], predicted[draws]), [2.5, 97.5])
    return float(low), float(high)


def _percentiles(low: float, high: float, empty: float = 0.0, score: Any = None) -> Any:
    def interval(gold: np.ndarray, predicted: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
        values = score(gold[draws], predicted[draws]) if score else _f1(gold[draws], predicted[draws], empty)
        return float(np.percentile(values, low)), float(np.percentile(values, high))

    return interval


def _deviations(times: float) -> Any:
    def interval(gold: np.ndarray, predicted: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
        center, spread = float(_f1(gold, predicted)), float(_f1(gold[draws], predicted[draws]).std())
        return center - times * spread, center + times * spread

    return interval


def _over_classes(gold: np.ndarray, predicted: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
    each = np.array([_f1(1 - gold, 1 - predicted), _f1(gold, predicted)])
    low, high = np.percentile(each[draws[:, :2] % 2].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _torn(gold: np.ndarray, predicted: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(_f1(gold[draws], predicted[draws[::-1]]), [2.5, 97.5])
    return float(low), float(high)


def _gold_only(gold: np.ndarray, predicted: np.ndarray, draws: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(_f1(gold[draws], predicted[None, :]), [2.5, 97.5])
    return float(low), float(high)


def _accuracies(gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return (gold == predicted).mean(axis=-1)


def _other_class(gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return _f1(1 - gold, 1 - predicted)


def _macro(gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return (_f1(gold, predicted) + _f1(1 - gold, 1 - predicted)) / 2


def _interval_cases(rng: np.random.Generator) -> list[Case]:
    def drawn(rows: int, share: float, note: str, empty: int = 0) -> Case:
        gold = (rng.random(rows) < share).astype(int)
        predicted = np.where(rng.random(rows) < 0.75, gold, 1 - gold)
        gold[:4], predicted[:4] = [1, 1, 0, 0], [1, 0, 1, 0]
        draws = rng.integers(0, rows, (40, rows))
        draws[: 2 * empty] = 3  # a row that is negative, and called so
        return Case((gold, predicted, draws), note=note)

    return [
        drawn(30, 0.6, "30 rows, 40 resamples"),
        drawn(45, 0.35, "45 rows, few of them positive"),
        drawn(36, 0.55, "in two resamples no row is positive, or called so: F1 is 0 there", empty=1),
    ]


INTERVAL = Exercise(
    id="results.f1_interval",
    points=3,
    title="A bootstrap interval for F1",
    cases=_interval_cases,
    reference=f1_interval,
    compare=Compare(rtol=1e-6, atol=1e-8),
    mistakes=(
        Mistake("classes", "You draw classes, not rows: what is random in a test set is which rows are in it. Take "
                "gold[draw] and predicted[draw], and compute F1 of them.", _over_classes),
        Mistake("torn", "Gold and predicted labels are drawn apart, so a label meets the prediction for another row. "
                "Use the same row numbers for both.", _torn),
        Mistake("gold-only", "Only the gold labels are resampled; take predicted[draw] as well.", _gold_only),
        Mistake("deviation", "This is F1 ± one standard deviation of the resamples, which covers about 68 %; take "
                "the percentiles 2.5 and 97.5.", _deviations(1.0)),
        Mistake("normal", "This is F1 ± 1.96 standard deviations: it supposes a bell curve, and can leave [0, 1]. "
                "Take the percentiles 2.5 and 97.5 of the resampled values.", _deviations(1.96)),
        Mistake("ninety", "5 % are cut off at each end; that is a 90 % interval. 95 % leaves 2.5 % at each end.",
                _percentiles(5, 95)),
        Mistake("reversed", "Low and high are swapped: 2.5 % of the values lie below the low end.",
                _percentiles(97.5, 2.5)),
        Mistake("one-sided", "Your low end is the smallest value and your high end the 95th percentile: cut off 2.5 % "
                "at both ends.", _percentiles(0, 95)),
        Mistake("shares", "np.percentile counts in percent: 2.5 and 97.5, not 0.025 and 0.975 (np.quantile takes "
                "shares).", _percentiles(0.025, 0.975)),
        Mistake("extremes", "These are the smallest and the largest value; they grow with the number of resamples. "
                "Take the percentiles 2.5 and 97.5.", _percentiles(0, 100)),
        Mistake("accuracy", "This is the interval of the accuracy (micro-averaged F1 is the same number); the F1 of "
                "class 1 is asked.", _percentiles(2.5, 97.5, score=_accuracies)),
        Mistake("macro", "This is macro F1, the mean over both classes; the F1 of class 1 is asked.",
                _percentiles(2.5, 97.5, score=_macro)),
        Mistake("other-class", "This is the F1 of class 0; class 1 is the positive one.",
                _percentiles(2.5, 97.5, score=_other_class)),
        Mistake("nan", "A resample in which nothing is positive makes 0/0; its F1 is 0.",
                _percentiles(2.5, 97.5, empty=math.nan)),
        Mistake("one", "A resample in which nothing is positive gets F1 1 from you; by agreement it is 0.",
                _percentiles(2.5, 97.5, empty=1.0)),
    ),
    hints=(
        "A resample is a test set that could have been. For each row of draws: what would F1 have been on it?",
        "gold[draw] and predicted[draw] are the labels of one resample. F1 = 2 hits / (positives + called positive).",
        "values = [f1(gold[draw], predicted[draw]) for draw in draws]\nreturn tuple(np.percentile(values, [...]))",
    ),
)  # fmt: skip

# --- McNemar's test ---------------------------------------------------------------------------------


def _cells(gold: Any, first: Any, second: Any) -> tuple[int, int, int, int]:
    """Rows on which only the first, only the second, both, none is right."""
    a, b = np.asarray(first) == np.asarray(gold), np.asarray(second) == np.asarray(gold)
    return int((a & ~b).sum()), int((b & ~a).sum()), int((a & b).sum()), int((~a & ~b).sum())


def mcnemar(gold: list[int], first: list[int], second: list[int]) -> float:
    """The two-sided p-value of the rows on which exactly one model is right, by scipy's binomial distribution."""
    only_first, only_second, _, _ = _cells(gold, first, second)
    few, n = min(only_first, only_second), only_first + only_second
    return min(1.0, 2 * float(bdtr(few, n, 0.5)))


def _tail(n: int, k: int) -> float:
    """P(X <= k) for n tosses of a fair coin."""
    return sum(math.comb(n, i) for i in range(k + 1)) / 2**n


def _from_cells(p: Callable[[int, int, int, int], float]) -> Any:
    def test(gold: list[int], first: list[int], second: list[int]) -> float:
        return float(p(*_cells(gold, first, second)))

    return test


def _all_disagreements(gold: list[int], first: list[int], second: list[int]) -> float:
    only_first, only_second, _, _ = _cells(gold, first, second)
    n = int((np.asarray(first) != np.asarray(second)).sum())
    return min(1.0, 2 * _tail(n, min(only_first, only_second)))


def _chi_square(correction: int) -> Any:
    def p(b: int, c: int, *_: int) -> float:
        return math.erfc(max(0, abs(b - c) - correction) / math.sqrt(2 * (b + c))) if b + c else 1.0

    return _from_cells(p)


def _unpaired(b: int, c: int, both: int, none: int) -> float:
    n = b + c + both + none
    p, q = (b + both) / n, (c + both) / n
    pooled = (p + q) / 2
    return math.erfc(abs(p - q) / math.sqrt(2 * pooled * (1 - pooled) / n) / math.sqrt(2))


def _middle(b: int, c: int, *_: int) -> float:
    n, few = b + c, min(b, c)
    return min(1.0, 2 * _tail(n, few) - math.comb(n, few) / 2**n)


def _pairs_of_cells(rng: np.random.Generator, b: int, c: int, both: int, same: int, other: int) -> tuple:
    """Labels of three classes with the given cells; of the rows that both miss, ``other`` get two wrong labels."""
    gold = rng.integers(0, 3, b + c + both + same + other)
    wrong, wronger = (gold + 1) % 3, (gold + 2) % 3
    kind = np.repeat(range(5), (b, c, both, same, other))
    first = np.where(np.isin(kind, (0, 2)), gold, wrong)
    second = np.select([np.isin(kind, (1, 2)), kind == 4], [gold, wronger], wrong)
    order = rng.permutation(len(gold))
    return gold[order].tolist(), first[order].tolist(), second[order].tolist()


def _mcnemar_cases(rng: np.random.Generator) -> list[Case]:
    more = int(rng.integers(8, 12))
    return [
        Case(_pairs_of_cells(rng, more, int(rng.integers(2, 4)), 15, 3, 5), note="the first model is ahead"),
        Case(_pairs_of_cells(rng, 3, more + 1, 20, 2, 4), note="the second model is ahead"),
        Case(_pairs_of_cells(rng, 5, 5, 10, 2, 3), note="as many rows for each"),
        Case(_pairs_of_cells(rng, 0, 0, 9, 3, 2), note="both are right on the same rows: nothing speaks for either"),
        Case(_pairs_of_cells(rng, 0, 6, 25, 4, 3), note="all that differ speak for the second"),
    ]


MCNEMAR = Exercise(
    id="results.mcnemar",
    points=3,
    title="McNemar's exact test",
    cases=_mcnemar_cases,
    reference=mcnemar,
    compare=Compare(rtol=1e-5, atol=1e-9),
    mistakes=(
        Mistake("disagreements", "You count every row on which the models say different things. Only the two "
                "discordant cells count: exactly one of them is right. Two different wrong answers decide nothing.",
                _all_disagreements),
        Mistake("all-rows", "You toss a coin for every row; rows on which both are right, or both wrong, say nothing "
                "about which is better. n is the number of discordant rows.",
                _from_cells(lambda b, c, both, none: min(1.0, 2 * _tail(b + c + both + none, min(b, c))))),
        Mistake("one-sided", "This is the one-sided p-value; either model could have been the better one, so double "
                "it.", _from_cells(lambda b, c, *_: _tail(b + c, min(b, c)) if b + c else 1.0)),
        Mistake("above-one", "A p-value above 1 cannot be: with as many rows for each, the two tails overlap. Cap it "
                "with min(1.0, …).", _from_cells(lambda b, c, *_: 2 * _tail(b + c, min(b, c)) if b + c else 1.0)),
        Mistake("wrong-tail", "You double the tail of the first model whichever is ahead; take the tail of the "
                "smaller count, min(b, c).", _from_cells(lambda b, c, *_: min(1.0, 2 * _tail(b + c, b)))),
        Mistake("strict", "Your tail leaves out the outcome itself: it is P(X ≤ k), not P(X < k).",
                _from_cells(lambda b, c, *_: min(1.0, 2 * _tail(b + c, min(b, c) - 1)) if b + c else 1.0)),
        Mistake("none", "Where no row is discordant there is nothing to toss for: p is 1.",
                _from_cells(lambda b, c, *_: min(1.0, 2 * _tail(b + c, min(b, c))) if b + c else math.nan)),
        Mistake("none-zero", "Where no row is discordant you report 0, the strongest evidence there is; nothing "
                "speaks for either model, so p is 1.",
                _from_cells(lambda b, c, *_: min(1.0, 2 * _tail(b + c, min(b, c))) if b + c else 0.0)),
        Mistake("chi-square", "This is the chi-square approximation; for so few rows it is too sure. Add up the "
                "binomial probabilities.", _chi_square(0)),
        Mistake("corrected", "This is the chi-square approximation with a continuity correction; for so few rows add "
                "up the binomial probabilities themselves.", _chi_square(1)),
        Mistake("middle", "This is the mid-p value, which counts the outcome itself by half; the exact test counts "
                "it whole.", _from_cells(lambda b, c, *_: _middle(b, c) if b + c else 1.0)),
        Mistake("unpaired", "This compares two proportions as if the models had seen different rows. They saw the "
                "same: use the rows on which exactly one is right.", _from_cells(_unpaired)),
        Mistake("concordant", "You test the rows on which both are right against those on which both are wrong; look "
                "at the rows on which exactly one is right.",
                _from_cells(lambda b, c, both, none: min(1.0, 2 * _tail(both + none, min(both, none))))),
        Mistake("complement", "This is 1 - p: a small p-value speaks for a difference.",
                _from_cells(lambda b, c, *_: 1 - min(1.0, 2 * _tail(b + c, min(b, c))))),
    ),
    hints=(
        "Count two cells: rows that only the first model has right, rows that only the second has right.",
        "If the models were equally good, each of those n rows would be a toss of a fair coin. How likely is a split "
        "at least as uneven? math.comb(n, i) / 2**n is the chance of i heads.",
        "n, few = b + c, min(b, c)\ntail = sum(math.comb(n, i) for i in range(few + 1)) / 2**n\n"
        "return min(1.0, ...)",
    ),
)  # fmt: skip

# --- the paired bootstrap ---------------------------------------------------------------------------


def paired_bootstrap(first: np.ndarray, second: np.ndarray, draws: np.ndarray) -> tuple[float, float, float]:
    """Mean difference of the scores, and the 2.5th and 97.5th percentile over resamples of the *rows*."""
    difference = first - second
    low, high = np.percentile(difference[draws].mean(axis=1), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def _paired(
    means: Callable[..., np.ndarray], low: float = 2.5, high: float = 97.5, center: Any = None, times: float = 1.0
) -> Any:
    def compared(first: np.ndarray, second: np.ndarray, draws: np.ndarray) -> tuple[float, float, float]:
        values = times * means(first, second, draws)
        middle = center(values) if center else times * float((first - second).mean())
        return middle, float(np.percentile(values, low)), float(np.percentile(values, high))

    return compared


def _of_rows(first: np.ndarray, second: np.ndarray, draws: np.ndarray) -> np.ndarray:
    return (first - second)[draws].mean(axis=1)


def _of_intervals(first: np.ndarray, second: np.ndarray, draws: np.ndarray) -> tuple[float, float, float]:
    (a, b), (c, d) = (np.percentile(scores[draws].mean(axis=1), [2.5, 97.5]) for scores in (first, second))
    return float((first - second).mean()), float(a - d), float(b - c)


def _one_deviation(first: np.ndarray, second: np.ndarray, draws: np.ndarray) -> tuple[float, float, float]:
    middle, spread = float((first - second).mean()), float(_of_rows(first, second, draws).std())
    return middle, middle - spread, middle + spread


def _rows_spread(first: np.ndarray, second: np.ndarray, draws: np.ndarray) -> tuple[float, float, float]:
    low, high = np.percentile(first - second, [2.5, 97.5])
    return float((first - second).mean()), float(low), float(high)


def _negative(first: np.ndarray, second: np.ndarray, draws: np.ndarray) -> tuple[float, float, float]:
    return paired_bootstrap(second, first, draws)


def _summed(first: np.ndarray, second: np.ndarray, draws: np.ndarray) -> tuple[float, float, float]:
    mean, low, high = paired_bootstrap(first, second, draws)
    return len(first) * mean, len(first) * low, len(first) * high


def _paired_cases(rng: np.random.Generator) -> list[Case]:
    def scores(rows: int, ahead: float, note: str, whole: bool) -> Case:
        hard = rng.random(rows)
        first = np.clip(1.1 - hard + 0.15 * rng.standard_normal(rows), 0, 1)
        second = np.clip(1.1 - ahead - hard + 0.15 * rng.standard_normal(rows), 0, 1)
        if whole:
            first, second = (np.round(scores_of_model) for scores_of_model in (first, second))
            first[:3], second[:3] = [1, 1, 0], [0, 0, 1]
        return Case((first, second, rng.integers(0, rows, (40, rows))), note=note)

    return [
        scores(40, 0.15, "F1 of 40 answers; the first model is ahead", whole=False),
        scores(60, -0.1, "F1 of 60 answers; the second model is ahead", whole=False),
        scores(50, 0.1, "right (1) or wrong (0) on 50 rows", whole=True),
    ]


PAIRED = Exercise(
    id="results.paired_bootstrap",
    points=3,
    title="The paired bootstrap",
    cases=_paired_cases,
    reference=paired_bootstrap,
    compare=Compare(rtol=1e-6, atol=1e-8),
    mistakes=(
        Mistake("unpaired", "The two models are resampled apart, so a row that is hard for both no longer cancels "
                "out. Use the same draw for both: it is a paired test.",
                _paired(lambda a, b, draws: a[draws].mean(axis=1) - b[draws[::-1]].mean(axis=1))),
        Mistake("intervals", "You subtract the ends of two separate intervals; that throws the pairing away. Take "
                "the difference within each resample, then the percentiles.", _of_intervals),
        Mistake("first-only", "Only the first model is resampled; the second one answered those rows too.",
                _paired(lambda a, b, draws: a[draws].mean(axis=1) - b.mean())),
        Mistake("sign", "The sign is the wrong way round: first minus second.",
                _negative),
        Mistake("absolute", "You take the size of each difference: then no interval ever reaches below 0. Keep the "
                "sign.", _paired(lambda a, b, draws: np.abs(a - b)[draws].mean(axis=1))),
        Mistake("deviation", "One standard deviation on each side covers about 68 %; take the percentiles 2.5 and "
                "97.5.", _one_deviation),
        Mistake("rows", "This is the spread of single rows; the interval is that of the mean over a test set. "
                "Average each resample first.", _rows_spread),
        Mistake("ninety", "5 % are cut off at each end; 95 % leaves 2.5 % at each end.", _paired(_of_rows, 5, 95)),
        Mistake("reversed", "Low and high are swapped: 2.5 % of the values lie below the low end.",
                _paired(_of_rows, 97.5, 2.5)),
        Mistake("shares", "np.percentile counts in percent: 2.5 and 97.5, not 0.025 and 0.975.",
                _paired(_of_rows, 0.025, 0.975)),
        Mistake("sums", "You add the differences up; divide by the number of rows.",
                _summed),
        Mistake("center", "The first number is the difference on the rows themselves, not the mean over the "
                "resamples.", _paired(_of_rows, center=lambda values: float(values.mean()))),
        Mistake("percent", "These are percentage points; give shares, as the scores are.",
                _paired(_of_rows, times=100)),
    ),
    hints=(
        "Each row has one difference. What is random is which rows are in the test set.",
        "difference = first - second, then the mean of difference[draw] for each draw.",
        "means = difference[draws].mean(axis=1)  # (resamples,)\nlow, high = np.percentile(means, [...])",
    ),
)  # fmt: skip

# --- what two printed figures say of the rest -------------------------------------------------------


def wrong_overlap(exact_match: float, f1: float) -> float:
    """Mean F1 of the answers that are not exact: the one unknown of F1 = EM · 1 + (1 - EM) · x, by a solver."""
    wrong = 1 - exact_match / 100
    return float(np.linalg.solve([[wrong]], [f1 / 100 - exact_match / 100])[0])


def _overlap_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for note in ("a usual model", "a weak model", "a strong one"):
        em = float(rng.integers(400, 900)) / 10
        overlap = float(rng.uniform(0.25, 0.45))
        cases.append(Case((em, round(em + overlap * (100 - em), 1)), note=note))
    return [*cases, Case((72.5, 72.5), note="no overlap at all"), Case((0.0, 41.5), note="no answer is exact")]


OVERLAP = Exercise(
    id="results.wrong_overlap",
    points=2,
    title="What EM and F1 say of the wrong answers",
    cases=_overlap_cases,
    reference=wrong_overlap,
    mistakes=(
        Mistake("difference", "F1 - EM is what the wrong answers add to the mean over all questions; divide by the "
                "share of questions they are, 1 - EM.", lambda em, f1: (f1 - em) / 100),
        Mistake("exact", "You divide by EM, the share of exact answers; it is the others that overlap.",
                lambda em, f1: (f1 - em) / em if em else math.inf),
        Mistake("f1", "You divide by F1; divide by the share of answers that are not exact, 1 - EM.",
                lambda em, f1: (f1 - em) / f1),
        Mistake("percent", "The inputs are percent, the result is a share from 0 to 1.",
                lambda em, f1: 100 * (f1 - em) / (100 - em)),
        Mistake("one", "EM and F1 come in percent: the share of wrong answers is (100 - EM) / 100, not 1 - EM.",
                lambda em, f1: (f1 - em) / (1 - em)),
        Mistake("lost", "This is the share of what is missing, (100 - F1) / (100 - EM); take it from 1.",
                lambda em, f1: (100 - f1) / (100 - em)),
        Mistake("swapped", "EM and F1 are swapped: the result is negative.",
                lambda em, f1: (em - f1) / (100 - f1)),
        Mistake("whole", "F1 / (100 - EM) gives the wrong answers the F1 of the exact ones, too.",
                lambda em, f1: f1 / (100 - em)),
    ),
    hints=(
        "Of 100 questions, EM are exact. Each of them has F1 1. The mean over all 100 is F1.",
        "F1 = EM + (100 - EM) · x, all in percent but x. Solve for x.",
        "return (f1 - exact_match) / ...",
    ),
)  # fmt: skip

# --- can a row be true? -----------------------------------------------------------------------------

Ranges = dict[str, tuple[float, float]]


def possible_figures(precision: float, recall: float, positives: int, negatives: int) -> Ranges | None:
    """Lowest and highest accuracy and F1, in percent, of all tables that print this precision and recall."""
    return _every_table(precision, recall, positives, negatives)


def _every_table(
    precision: float,
    recall: float,
    positives: int,
    negatives: int,
    half: float = 0.05,
    accuracy: Any = lambda hits, false, p, n: (hits + n - false) / (p + n),
    f1: Any = lambda hits, false, p, n: 2 * hits / (hits + false + p),
    by_round: bool = False,
) -> Ranges | None:
    """Every pair of hits and false alarms whose recall and precision round to the printed ones."""

    def prints(values: np.ndarray, percent: float) -> np.ndarray:
        return np.round(100 * values, 1) == percent if by_round else np.abs(100 * values - percent) <= half + 1e-9

    all_hits = np.arange(positives + 1)
    hits = all_hits[prints(all_hits / positives, recall)][:, None]  # (hits, 1)
    false = np.arange(negatives + 1)[None, :]  # (1, false alarms)
    fits = (hits + false > 0) & prints(hits / np.maximum(hits + false, 1), precision)
    if not fits.any():
        return None
    found = {}
    for name, figure in (("accuracy", accuracy), ("f1", f1)):
        values = 100 * (figure(hits, false, positives, negatives) + np.zeros(fits.shape))[fits]
        found[name] = (float(values.min()), float(values.max()))
    return found


def _rounded(precision: float, recall: float, positives: int, negatives: int) -> Ranges | None:
    return _every_table(precision, recall, positives, negatives, by_round=True)


def _one_table(precision: float, recall: float, positives: int, negatives: int) -> Ranges | None:
    hits = round(recall / 100 * positives)
    false = round(hits / (precision / 100)) - hits
    accuracy, f1 = (hits + negatives - false) / (positives + negatives), 2 * hits / (hits + false + positives)
    return {"accuracy": (100 * accuracy, 100 * accuracy), "f1": (100 * f1, 100 * f1)}


def _swapped_figures(precision: float, recall: float, positives: int, negatives: int) -> Ranges | None:
    return _every_table(recall, precision, positives, negatives)


def _swapped_classes(precision: float, recall: float, positives: int, negatives: int) -> Ranges | None:
    return _every_table(precision, recall, negatives, positives)


def _as_shares(precision: float, recall: float, positives: int, negatives: int) -> Ranges | None:
    found = _every_table(precision, recall, positives, negatives)
    return found and {name: (low / 100, high / 100) for name, (low, high) in found.items()}


def _high_first(precision: float, recall: float, positives: int, negatives: int) -> Ranges | None:
    found = _every_table(precision, recall, positives, negatives)
    return found and {name: (high, low) for name, (low, high) in found.items()}


def _with(**changes: Any) -> Any:
    def figures(precision: float, recall: float, positives: int, negatives: int) -> Ranges | None:
        return _every_table(precision, recall, positives, negatives, **changes)

    return figures


def _impossible_raises(precision: float, recall: float, positives: int, negatives: int) -> Ranges | None:
    found = _every_table(precision, recall, positives, negatives)
    if found is None:
        raise ValueError("min() of an empty list")
    return found


def _both_classes_f1(hits: Any, false: Any, positives: int, negatives: int) -> Any:
    other = negatives - false
    return (2 * hits / (hits + false + positives) + 2 * other / (other + positives - hits + negatives)) / 2


def _mean_f1(hits: Any, false: Any, positives: int, negatives: int) -> Any:
    return (hits / np.maximum(hits + false, 1) + hits / positives) / 2


def _possible_cases(rng: np.random.Generator) -> list[Case]:
    def row(positives: int, negatives: int, note: str) -> Case:
        hits = int(positives * rng.uniform(0.72, 0.82))
        false = int(hits / rng.uniform(0.88, 0.95)) - hits
        precision, recall = round(100 * hits / (hits + false), 1), round(100 * hits / positives, 1)
        return Case((precision, recall, positives, negatives), note=note)

    few = int(rng.integers(2500, 3200))
    return [
        row(few, few + int(rng.integers(700, 1500)), "more negatives than positives"),
        row(few + int(rng.integers(500, 900)), few, "more positives"),
        Case((80.0, 50.0, 7, 9), note="half of 7 positives: no table prints that"),
    ]


POSSIBLE = Exercise(
    id="results.possible_figures",
    points=3,
    title="Which accuracy and F1 fit a precision and a recall",
    cases=_possible_cases,
    reference=possible_figures,
    also_right=(_rounded,),
    compare=Compare(rtol=1e-7, atol=1e-7),
    mistakes=(
        Mistake("one-table", "You compute one table from the printed figures, but they are rounded: many tables print "
                "the same. Try all hits and false alarms, and keep those that print this precision and recall.",
                _one_table),
        Mistake("swapped", "Precision and recall are swapped: recall is hits / positives, precision is hits / (hits + "
                "false alarms).", _swapped_figures),
        Mistake("classes", "Positives and negatives are swapped: hits come from the positives, false alarms from the "
                "negatives.", _swapped_classes),
        Mistake("wide", "You allow 0.1 on each side; a figure with one digit was rounded by 0.05 at most.",
                _with(half=0.1)),
        Mistake("exact", "You ask for (nearly) equal figures, but printed ones are rounded to one digit: allow 0.05 on "
                "each side.", _with(half=0.004)),
        Mistake("hits-only", "Accuracy counts the right negatives, too: (hits + negatives - false alarms) / all rows.",
                _with(accuracy=lambda hits, false, p, n: hits / (p + n))),
        Mistake("recall", "Your accuracy is the recall, hits / positives; micro-averaged recall would be the accuracy, "
                "but over both classes.", _with(accuracy=lambda hits, false, p, n: hits / p)),
        Mistake("balanced", "Your accuracy is the mean of both classes' recalls; accuracy is the share of all rows.",
                _with(accuracy=lambda hits, false, p, n: (hits / p + (n - false) / n) / 2)),
        Mistake("macro", "Your F1 is the mean over both classes; a row with one precision and one recall speaks of the "
                "positive class.", _with(f1=_both_classes_f1)),
        Mistake("arithmetic", "F1 is the harmonic mean, 2PR / (P + R), not the plain one.", _with(f1=_mean_f1)),
        Mistake("shares", "Give percent, as the inputs are.", _as_shares),
        Mistake("reversed", "Give the lowest figure first, then the highest.", _high_first),
        Mistake("raises", "Where no table prints these figures the answer is None; min of an empty list raises an "
                "error.", _impossible_raises),
    ),
    hints=(
        "A table of two classes with known sizes has only two free numbers: hits, and false alarms. Try them all.",
        "For each number of hits whose recall prints right, go through all false alarms; keep the pairs whose "
        "precision prints right. “Prints right”: at most 0.05 away, in percent.",
        "for hits in range(positives + 1):\n    if abs(100 * hits / positives - recall) > 0.05:\n        continue\n"
        "    for false in range(negatives + 1):\n        ...",
    ),
)  # fmt: skip

# --- a table that refuses ---------------------------------------------------------------------------


def real_row(records: list[dict[str, Any]], task: str, split: str, whole: int) -> dict[str, Any] | None:
    """The newest record of the task and split on all ``whole`` rows of the real data; None if there is none."""
    fitting = [
        record
        for record in records
        if (record["task"], record["split"]) == (task, split)
        and record["source"] != "bundled"
        and record["test_rows"] == whole
    ]
    return max(fitting, key=lambda record: record["created"], default=None)


def _choosing(key: Any = lambda record: record["created"], fallback: bool = False, **loose: bool) -> Any:
    def choose(records: list[dict[str, Any]], task: str, split: str, whole: int) -> dict[str, Any] | None:
        about = [
            record
            for record in records
            if (loose.get("task") or record["task"] == task) and (loose.get("split") or record["split"] == split)
        ]
        fitting = [
            record
            for record in about
            if (loose.get("bundled") or record["source"] != "bundled")
            and (loose.get("part") or record["train_rows" if loose.get("train") else "test_rows"] == whole)
        ]
        return max(fitting or (about if fallback else []), key=key, default=None)

    return choose


def _first_listed(records: list[dict[str, Any]], task: str, split: str, whole: int) -> dict[str, Any] | None:
    fitting = [r for r in records if (r["task"], r["split"], r["test_rows"]) == (task, split, whole)]
    return next((record for record in fitting if record["source"] != "bundled"), None)


def _mirror_only(records: list[dict[str, Any]], task: str, split: str, whole: int) -> dict[str, Any] | None:
    return real_row([record for record in records if record["source"] == "mirror"], task, split, whole)


def _row_cases(rng: np.random.Generator) -> list[Case]:
    days = iter(f"2026-{month:02}-{day:02}" for month in range(1, 10) for day in (3, 17))
    whole = int(rng.integers(2000, 30_000))

    def made(task: str, split: str, source: str, rows: int, value: float, train: int | None = None) -> dict[str, Any]:
        return {
            "task": task,
            "split": split,
            "source": source,
            "test_rows": rows,
            "train_rows": train or 3 * whole,
            "accuracy": round(value + float(rng.uniform(0, 0.01)), 4),
            "created": next(days),
        }

    early = made("imdb", "test", "hub", whole, 0.90)
    middle = made("imdb", "test", "mirror", whole, 0.89)
    best = made("imdb", "test", "hub", whole, 0.93)
    newest = made("imdb", "test", "cache", whole, 0.91)
    part = made("imdb", "test", "mirror", whole // 10, 0.94, train=whole)
    other = made("tweets", "test", "mirror", whole, 0.70)
    split = made("imdb", "validation", "mirror", whole, 0.92)
    sample = made("imdb", "test", "bundled", whole, 0.95)
    small = made("imdb", "test", "bundled", 188, 0.96)
    return [
        Case(
            ([sample, best, newest, part, other, early, middle, split, small], "imdb", "test", whole),
            note="many records",
        ),
        Case(
            ([middle, part, early, best, newest, small], "imdb", "test", whole),
            note="an older run was better than the newest",
        ),
        Case(([part, small, sample], "imdb", "test", whole), note="only a part and samples: no real row"),
        Case(([split, other, newest], "tweets", "test", whole), note="another task"),
        Case(([other, sample], "imdb", "validation", whole), note="no record of this split"),
        Case(([], "imdb", "test", whole), note="no record at all"),
    ]


ROW = Exercise(
    id="results.real_row",
    points=2,
    title="Which record may stand in the real row",
    cases=_row_cases,
    reference=real_row,
    mistakes=(
        Mistake("bundled", "A record from the bundled sample got into the real row; its number says nothing about the "
                "real data, whatever its size.", _choosing(bundled=True)),
        Mistake("part", "A record on a part of the test rows got into the real row; test_rows must be all of them.",
                _choosing(part=True)),
        Mistake("best", "You take the best of several records: picking after looking is how tables get too good. The "
                "newest one stands.", _choosing(key=lambda record: record["accuracy"])),
        Mistake("oldest", "You take the oldest record; the newest one stands.",
                _choosing(key=lambda record: -int(record["created"].replace("-", "")))),
        Mistake("first", "You take the first that fits, in the order of the list; the newest one stands.",
                _first_listed),
        Mistake("fallback", "Where nothing fits you put something else in its place. An empty row is a result: None.",
                _choosing(fallback=True)),
        Mistake("split", "A figure of another split got into the row; compare record[\"split\"].",
                _choosing(split=True)),
        Mistake("task", "A figure of another task got into the row; compare record[\"task\"].", _choosing(task=True)),
        Mistake("train-rows", "You look at the training rows; the figure was measured on test_rows.",
                _choosing(train=True)),
        Mistake("mirror", "Real data may come from a mirror, a cache or the hub; only \"bundled\" is a sample.",
                _mirror_only),
    ),
    hints=(
        "Four conditions decide whether a record fits; a fifth rule decides between those that do.",
        "Task, split, source, test_rows. Of those that fit, the newest: created is a text that sorts by date.",
        "fitting = [record for record in records if ...]\n"
        "return max(fitting, key=lambda record: record[...], default=None)",
    ),
)  # fmt: skip

# --- a model card -----------------------------------------------------------------------------------


# The safe ones written in C, where PyYAML has them: five times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def read_card(student: Any, case: Case) -> Any:
    """What a reader, and the hub, find in the student's card; a refusal is the text "raises ValueError"."""
    card = call_or_value_error(student, case)
    if not isinstance(card, str) or card == "raises ValueError":
        return card
    (facts,) = case.args
    parts = card.split("---\n")
    try:
        front = yaml.load(parts[1], _LOADER) if card.startswith("---\n") and len(parts) > 2 else "no front matter"
    except yaml.YAMLError:
        front = "no YAML"
    sections = {}
    for piece in ("\n" + card).split("\n## ")[1:]:
        title, _, body = piece.partition("\n")
        sections[title.strip().lower()] = body
    data, results, limits = (sections.get(name, "") for name in ("data", "results", "limits"))

    def percent(value: float) -> str:
        return f"{100 * value:.1f}"

    told = {
        name: [
            any(percent(v) in line.partition(name)[2] for line in results.splitlines() if name in line) for v in values
        ]
        for name, values in facts["metrics"].items()
    }
    return {
        "front matter": front,
        "sections": {name: name in sections for name in ("data", "results", "limits")},
        "data names its source": facts["dataset"] in data,
        "data names the rows": any(form in data for form in (str(facts["test_rows"]), f"{facts['test_rows']:,}")),
        "data says bundled sample": "bundled sample" in data.lower(),
        "results with value, low and high": told,
        "limits": [limit in limits for limit in facts["limits"]],
    }


_REQUIRED = ("license", "dataset", "metrics", "limits")


def model_card(facts: dict[str, Any]) -> str:
    """A model card in the hub's format: YAML front matter, then data, results and limits."""
    return _card(facts)


def _card(
    facts: dict[str, Any],
    required: tuple[str, ...] = _REQUIRED,
    *,
    dump: bool = True,
    fence: bool = True,
    source: bool = True,
    rows: bool = True,
    ends: bool = True,
    limits: bool = True,
    list_data: bool = True,
    listed_metrics: bool = True,
    scale: int = 100,
) -> str:
    for name in required:
        if not facts.get(name):
            raise ValueError(f"the card lacks {name}")
    dataset = facts.get("dataset", "")
    front: dict[str, Any] = {
        "license": facts.get("license", ""),
        "language": facts["language"],
        "base_model": facts["base_model"],
        "datasets": [dataset] if list_data else dataset,
    }
    if listed_metrics:
        front["metrics"] = list(facts.get("metrics", {}))
    written = yaml.dump(front, Dumper=_DUMPER, sort_keys=False) if dump else _by_hand(front)
    where = "the bundled sample in place of " if facts["source"] == "bundled" and source else ""
    lines = [f"# {facts['name']}", "", "## Data", f"Tested on {where}{dataset}"]
    lines[-1] += f", {facts['test_rows']:,} rows." if rows else "."
    lines += ["", "## Results"]
    for name, (value, low, high) in facts.get("metrics", {}).items():
        line = f"- {name}: {scale * value:.1f}"
        lines.append(line + f" [{scale * low:.1f}, {scale * high:.1f}]" if ends else line)
    if limits:
        lines += ["", "## Limits", *(f"- {limit}" for limit in facts.get("limits", []))]
    return (f"---\n{written}---\n\n" if fence else f"{written}\n") + "\n".join(lines) + "\n"


def _by_hand(front: dict[str, Any]) -> str:
    lines = []
    for name, value in front.items():
        if isinstance(value, list):
            lines += [f"{name}:", *(f"- {item}" for item in value)]
        else:
            lines.append(f"{name}: {value}")
    return "\n".join(lines) + "\n"


def _writing(**changes: Any) -> Any:
    def card(facts: dict[str, Any]) -> str:
        return _card(facts, **changes)

    return card


def _without(name: str) -> tuple[str, ...]:
    return tuple(one for one in _REQUIRED if one != name)


def _card_cases(rng: np.random.Generator) -> list[Case]:
    def facts(**changes: Any) -> dict[str, Any]:
        metrics = {}
        for name in ("accuracy", "f1"):
            value = float(rng.uniform(0.75, 0.95))
            half = float(rng.uniform(0.01, 0.04))
            metrics[name] = [round(v, 4) for v in (value, value - half, value + half)]
        return {
            "name": f"reviews-{int(rng.integers(10, 99))}",
            "license": "apache-2.0",
            "language": "en",
            "base_model": "some/encoder",
            "dataset": "stanfordnlp/imdb",
            "source": "mirror",
            "test_rows": int(rng.integers(1100, 25_000)),
            "metrics": metrics,
            "limits": ["English reviews only", "irony is read as praise"],
        } | changes

    return [
        Case((facts(),), note="a model tested on real data"),
        Case((facts(source="bundled", test_rows=188),), note="a model tested on the bundled sample"),
        Case((facts(language="no"),), note="a Norwegian model"),
        Case((facts(limits=[]),), note="no limits are named: refuse"),
        Case((facts(dataset=""),), note="no data set is named: refuse"),
        Case((facts(license=""),), note="no license: refuse"),
        Case((facts(metrics={}),), note="no results: refuse"),
    ]


CARD = Exercise(
    id="results.model_card",
    points=3,
    title="A model card",
    cases=_card_cases,
    reference=model_card,
    drive=read_card,
    mistakes=(
        Mistake("no-limits", "A card without limits was written; a model without limits does not exist. Raise a "
                "ValueError.", _writing(required=_without("limits"))),
        Mistake("no-data", "A card without a data set was written; its results would mean nothing. Raise a "
                "ValueError.", _writing(required=_without("dataset"))),
        Mistake("no-license", "A card without a license was written; nobody may use the model then. Raise a "
                "ValueError.", _writing(required=_without("license"))),
        Mistake("no-metrics", "A card without results was written. Raise a ValueError.",
                _writing(required=_without("metrics"))),
        Mistake("accepts-all", "Whatever is missing, a card is written; the required fields must be there and not "
                "empty. Raise a ValueError.", _writing(required=())),
        Mistake("bundled", "A number from the bundled sample looks like one on the real data; say “bundled sample” in "
                "the section on data.", _writing(source=False)),
        Mistake("rows", "The section on data does not say how many rows the test had.", _writing(rows=False)),
        Mistake("intervals", "The results stand without their intervals; write low and high beside each.",
                _writing(ends=False)),
        Mistake("shares", "The results are shares; readers expect percent with one digit, 87.3 for 0.8731.",
                _writing(scale=1)),
        Mistake("section", "The section “## Limits” is missing.", _writing(limits=False)),
        Mistake("fence", "The front matter must stand between two lines of three dashes, the first line of the card "
                "being one of them; the hub does not find it.", _writing(fence=False)),
        Mistake("norway", "YAML reads a bare no as False, so the Norwegian model has the language False. Let "
                "yaml.safe_dump write the front matter, it quotes where needed.", _writing(dump=False)),
        Mistake("list", "datasets is a list in the hub's format, even with one entry.", _writing(list_data=False)),
        Mistake("metrics-key", "The front matter lacks metrics, the list of their names.",
                _writing(listed_metrics=False)),
    ),
    hints=(
        "First refuse what is incomplete. Then the front matter, then three sections.",
        "yaml.safe_dump({...}, sort_keys=False) writes the front matter; put a line of --- before and after it.",
        "for name, (value, low, high) in facts[\"metrics\"].items():\n"
        "    lines.append(f\"- {name}: {100 * value:.1f} [...]\")",
    ),
)  # fmt: skip

EXERCISES = (INTERVAL, MCNEMAR, PAIRED, OVERLAP, POSSIBLE, ROW, CARD)
