"""Measuring: turns, ratios, sizes, the Pareto front."""

import time

import pytest
import torch
from torch import nn

from pangu_lab.compression.measure import (
    MeasureError,
    agreement,
    latency,
    nonzero,
    parameters,
    pareto_front,
    peak_memory,
    ratio,
    size_on_disk,
)


def test_functions_are_timed_in_turns_and_the_warm_up_is_not_counted():
    calls = []
    taken = latency({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=4, warmup=2)
    assert "".join(calls) == "ab" * 6 and len(taken["a"].times) == 4


def test_a_function_that_sleeps_twice_as_long_takes_twice_the_time():
    taken = latency({"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.01)}, repeats=5, warmup=1)
    middle, low, high = ratio(taken["slow"], taken["fast"])
    assert 1.5 < middle < 2.5 and low <= middle <= high
    assert 9 < taken["fast"].p50 <= taken["fast"].p95


def test_time_is_limited():
    assert 3 <= len(latency({"a": lambda: time.sleep(0.02)}, repeats=1000, warmup=0, seconds=0.1)["a"].times) < 20


def test_shared_parameters_count_once_and_zeros_do_not():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert parameters(model) == 16
    with torch.no_grad():
        model[0].weight[0] = 0
    assert nonzero(model) == 12


def test_sizes(tmp_path):
    model = nn.Linear(1000, 10)
    assert 40_000 < size_on_disk(model) < 45_000
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert size_on_disk(tmp_path) == (tmp_path / "weights.pt").stat().st_size
    with pytest.raises(MeasureError, match="no weight file"):
        size_on_disk(tmp_path / "nowhere")


def test_agreement():
    assert agreement([1, 0, 1, 1], [1, 1, 1, 1]) == 0.75
    with pytest.raises(MeasureError, match="equally long"):
        agreement([1], [1, 0])


def test_the_front_holds_what_nothing_beats():
    assert pareto_front([(1, 0.5), (2, 0.9), (3, 0.8), (4, 0.95), (2, 0.7)]) == [0, 1, 3]
    assert peak_memory() > 2**20
