"""Metrics: equal to scikit-learn's, intervals that cover, degenerate cases told or defined."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from pangu_lab.tasks.metrics import MetricsError, classification_metrics, per_class, wilson_interval


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=80))
def test_all_metrics_equal_scikit_learns(pairs):
    gold, predicted = zip(*pairs, strict=True)
    ours = classification_metrics(gold, predicted, labels=3, positive=1)
    macro = precision_recall_fscore_support(gold, predicted, labels=[0, 1, 2], average="macro", zero_division=0)
    single = precision_recall_fscore_support(gold, predicted, labels=[1], average="macro", zero_division=0)
    for name, whole, one in zip(("precision", "recall", "f1"), macro, single, strict=False):
        assert math.isclose(ours[f"macro_{name}"].value, whole, abs_tol=1e-12)
        assert math.isclose(ours[name].value, one, abs_tol=1e-12)
    for metric in ours.values():
        assert 0 <= metric.low <= metric.high <= 1


@given(st.integers(1, 3000), st.data())
def test_the_interval_is_wilsons(total, data):
    right = data.draw(st.integers(0, total))
    low, high = wilson_interval(right, total)
    theirs = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert math.isclose(low, theirs.low, abs_tol=1e-9) and math.isclose(high, theirs.high, abs_tol=1e-9)


def test_the_bootstrap_interval_covers_the_truth_nineteen_times_in_twenty():
    """A classifier whose true F1 is known, measured on 300 samples of 200 rows."""
    generator = np.random.default_rng(0)
    right, positives = 0.8, 0.4
    truth = 2 * positives * right / (2 * positives * right + positives * (1 - right) + (1 - positives) * (1 - right))
    covered = 0
    for seed in range(300):
        gold = (generator.random(200) < positives).astype(int)
        predicted = np.where(generator.random(200) < right, gold, 1 - gold)
        f1 = classification_metrics(gold.tolist(), predicted.tolist(), 2, 1, seed=seed)["f1"]
        covered += f1.low <= truth <= f1.high
    assert 0.90 <= covered / 300 <= 0.98


def test_one_class_only_is_defined():
    metrics = classification_metrics([1, 1, 1], [1, 1, 0], labels=2, positive=1)
    assert metrics["recall"].value == pytest.approx(2 / 3) and metrics["macro_recall"].value == pytest.approx(1 / 3)


def test_the_same_seed_gives_the_same_interval():
    first = classification_metrics([0, 1, 1, 0], [0, 1, 0, 0], 2, 1, seed=5)
    assert first == classification_metrics([0, 1, 1, 0], [0, 1, 0, 0], 2, 1, seed=5)


@pytest.mark.parametrize(("gold", "predicted"), [([], []), ([1], [1, 0])])
def test_labels_that_cannot_be_compared_are_told(gold, predicted):
    with pytest.raises(MetricsError, match="give one of each a row"):
        classification_metrics(gold, predicted, 2, 1)


def test_per_class_names_the_labels():
    rows = per_class([0, 1, 1], [0, 1, 0], ["bad", "good"])
    assert rows[1] == {"label": "good", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "rows": 2}
