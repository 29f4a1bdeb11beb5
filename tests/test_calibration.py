"""Reliability and temperature, on probabilities whose truth is known."""

import numpy as np
import pytest
import torch

from pangu_lab.tasks.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    with_temperature,
)
from pangu_lab.tasks.metrics import MetricsError


def honest(rows=6000, classes=3, seed=0):
    """Labels drawn from the probabilities themselves: calibrated by construction."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, 0.7), rows)
    labels = (probabilities.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    return probabilities, labels.tolist()


def test_honest_probabilities_are_calibrated_and_need_no_temperature():
    probabilities, labels = honest()
    assert expected_calibration_error(probabilities, labels) < 0.02
    assert fit_temperature(probabilities, labels) == pytest.approx(1, abs=0.06)
    bins = reliability(probabilities, labels)
    assert sum(one.count for one in bins) == 6000
    assert sum(one.low <= one.confidence <= one.high for one in bins) >= len(bins) - 1


@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_the_temperature_that_was_applied_is_found_and_undone(temperature):
    probabilities, labels = honest()
    spoiled = with_temperature(probabilities, temperature)
    assert expected_calibration_error(spoiled, labels) > 0.05
    found = fit_temperature(spoiled, labels)
    assert found == pytest.approx(1 / temperature, rel=0.06)
    mended = with_temperature(spoiled, found)
    assert expected_calibration_error(mended, labels) < 0.02
    assert (mended.argmax(axis=1) == spoiled.argmax(axis=1)).all()


def test_torch_finds_the_same_temperature():
    probabilities, labels = honest(800)
    spoiled = with_temperature(probabilities, 0.5)
    log_p, gold = torch.log(torch.tensor(spoiled)), torch.tensor(labels)
    t = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([t], lr=0.5, max_iter=200)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(log_p / t, gold)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert fit_temperature(spoiled, labels) == pytest.approx(t.item(), rel=1e-2)
    fitted = negative_log_likelihood(with_temperature(spoiled, fit_temperature(spoiled, labels)), labels)
    assert fitted <= closure().item() + 1e-6


def test_bad_input_is_told():
    with pytest.raises(MetricsError, match="a label for each row"):
        reliability(np.ones((3, 2)), [0])
    with pytest.raises(MetricsError, match="greater than 0"):
        with_temperature(np.ones((1, 2)) / 2, 0)
