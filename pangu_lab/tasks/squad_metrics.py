"""Exact match and F1 of extracted answers, as SQuAD's official script defines them (Rajpurkar et al. 2016).

Both compare *normalized* texts and take the best over all gold answers; the mean is over questions. An empty
answer means "there is none" (SQuAD 2.0): it is right exactly where no gold answer exists.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from pangu_lab.tasks.metrics import RESAMPLES, Metric, MetricsError, wilson_interval

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = set(string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, then without the articles, then with single spaces.

    >>> normalize_answer(" The  U.S.-born Anna! ")
    'usborn anna'
    """
    text = "".join(c for c in text.lower() if c not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1 if the prediction equals one of the gold answers, normalized; 0 otherwise."""
    return float(any(normalize_answer(prediction) == normalize_answer(gold) for gold in golds or ("",)))


def f1(prediction: str, golds: Sequence[str]) -> float:
    """The best F1 over the gold answers, of words as bags: precision and recall of the words in common."""
    return max(_f1(prediction, gold) for gold in golds or ("",))


def _f1(prediction: str, gold: str) -> float:
    words, wanted = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if not words or not wanted:  # no answer: all or nothing
        return float(words == wanted)
    common = sum((Counter(words) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(words), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def squad_metrics(
    predictions: Mapping[str, str],
    golds: Mapping[str, Sequence[str]],
    groups: Mapping[str, str] | None = None,
    seed: int = 0,
) -> dict[str, Metric]:
    """Exact match and F1 with 95 % intervals.

    Parameters
    ----------
    predictions, golds
        Question id to the predicted text, and to its gold answers (none: unanswerable).
    groups
        Question id to what its question shares with others, as the passage: questions on one passage stand and
        fall together, so the bootstrap draws whole groups.

    Raises
    ------
    MetricsError
        No questions, or one without a prediction.
    """
    missing = [id for id in golds if id not in predictions]
    if missing or not golds:
        told = f"question {missing[0]} has no prediction" if missing else "there are no questions"
        raise MetricsError(f"{told}; give one prediction for each question, '' for no answer")
    ids = sorted(golds)
    em = np.array([exact_match(predictions[id], golds[id]) for id in ids])
    score = np.array([f1(predictions[id], golds[id]) for id in ids])
    if groups is not None and len({groups[id] for id in ids}) == 1:
        groups = None  # one passage drawn again and again has no spread, and a width of 0 would look certain
    if groups is None:
        low, high = wilson_interval(round(em.sum()), len(em))
        exact = Metric(float(em.mean()), low, high, "Wilson")
    else:
        exact = _bootstrap(em, [groups[id] for id in ids], seed)
    return {"exact_match": exact, "f1": _bootstrap(score, [groups[id] for id in ids] if groups else ids, seed)}


def _bootstrap(values: np.ndarray, groups: Sequence[str], seed: int) -> Metric:
    """Mean with a percentile interval over resampled groups."""
    names = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    index = np.array([names[group] for group in groups])
    sums, counts = np.bincount(index, values), np.bincount(index)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    unit = "questions" if len(names) == len(groups) else "passages"
    return Metric(
        float(values.mean()), float(low), float(high), f"bootstrap over {unit}, {RESAMPLES} resamples, seed {seed}"
    )
