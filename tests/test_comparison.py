"""Paired tests against scipy and against counting every case."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, ttest_1samp

from pangu_lab.tasks.comparison import mcnemar, mean_interval, paired_bootstrap
from pangu_lab.tasks.metrics import MetricsError


def right(only_first, only_second, both=5, none=3):
    pairs = [(1, 0)] * only_first + [(0, 1)] * only_second + [(1, 1)] * both + [(0, 0)] * none
    return np.array(pairs).T.astype(bool)


@pytest.mark.parametrize("cells", [(0, 1), (7, 2), (2, 7), (5, 5), (40, 22), (900, 1000)])
def test_mcnemar_equals_scipys_binomial_test(cells):
    found = mcnemar(*right(*cells))
    assert (found.only_first, found.only_second) == cells
    assert found.p == pytest.approx(binomtest(cells[0], sum(cells), 0.5).pvalue)


def test_mcnemar_equals_the_share_of_all_tosses_that_are_as_uneven():
    tosses = [abs(2 * sum(toss) - 9) >= 5 for toss in itertools.product((0, 1), repeat=9)]
    assert mcnemar(*right(7, 2)).p == pytest.approx(np.mean(tosses))


def test_rows_on_which_both_agree_do_not_count():
    assert mcnemar(*right(6, 1, both=0, none=0)).p == mcnemar(*right(6, 1, both=900, none=300)).p
    assert mcnemar(*right(0, 0)).p == 1


def test_the_paired_bootstrap_agrees_with_scipys():
    generator = np.random.default_rng(0)
    a = generator.random(80)
    b = np.clip(a - 0.05 + 0.1 * generator.standard_normal(80), 0, 1)
    ours = paired_bootstrap(a, b, resamples=4000)
    theirs = bootstrap((a - b,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert ours.value == pytest.approx(np.mean(a - b))
    assert ours.low == pytest.approx(theirs.low, abs=2e-3) and ours.high == pytest.approx(theirs.high, abs=2e-3)


def test_the_paired_bootstrap_equals_counting_every_resample_of_five_rows():
    a, b = np.array([1.0, 0.0, 1.0, 0.3, 0.6]), np.array([0.0, 0.0, 1.0, 0.4, 0.1])
    means = (a - b)[list(itertools.product(range(5), repeat=5))].mean(axis=1)
    found = paired_bootstrap(a, b, resamples=5000)
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.021)


def test_pairing_is_narrower_than_two_intervals_where_models_err_together():
    generator = np.random.default_rng(1)
    easy = generator.random(400) < 0.8
    a, b = easy.astype(float), easy.astype(float)
    b[:10] = 1 - b[:10]
    paired = paired_bootstrap(a, b)
    unpaired = paired_bootstrap(a, generator.permutation(b))
    assert (paired.high - paired.low) < 0.5 * (unpaired.high - unpaired.low)


def test_whole_groups_are_drawn():
    a, b = np.tile([1.0, 0.0], 50), np.zeros(100)
    assert paired_bootstrap(a, b, groups=np.repeat(range(50), 2)).high == 0.5
    alone = paired_bootstrap(a, b, groups=[i % 2 for i in range(100)])
    assert (alone.low, alone.high) == (0, 1)


@pytest.mark.parametrize("a, b", [([1, 0], [1]), ([], []), ([[1]], [[0]])])
def test_rows_that_do_not_pair_are_refused(a, b):
    for test in (mcnemar, paired_bootstrap):
        with pytest.raises(MetricsError, match="one score a row"):
            test(a, b)


def test_scores_are_no_truth_values_and_groups_must_fit():
    with pytest.raises(MetricsError, match="paired_bootstrap"):
        mcnemar([0.5, 1], [1, 0])
    with pytest.raises(MetricsError, match="one group a row"):
        paired_bootstrap([0.5, 1], [1, 0], groups=[1])


def test_the_mean_over_seeds_equals_scipys_interval():
    values = np.random.default_rng(0).normal(0.8, 0.03, 5)
    found, wanted = mean_interval(values), ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high)) and found.value == values.mean()
    with pytest.raises(MetricsError, match="at least two"):
        mean_interval([0.5])
