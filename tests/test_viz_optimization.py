"""Lab 04: the landscapes are what they say, rules walk on them, the figures tell what the numbers tell."""

import time

import numpy as np
import pytest
import torch

from pangu_lab import optim
from pangu_lab.exercises.engine import Status, run
from pangu_lab.exercises.optimization import ADAM, adam, sgd
from pangu_lab.viz import png
from pangu_lab.viz.optimization import (
    LANDSCAPES,
    DescentExplorer,
    Run,
    correction_figure,
    descend,
    descent_figure,
    race,
    race_figure,
    rates_figure,
    runs,
    scalar_figure,
    step_size_figure,
    warmup_figure,
)


def own_adam(theta, g, m, v, t, lr, beta1, beta2, eps):
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    return theta - lr * m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps), m, v


def rules(lr, beta1=0.9, beta2=0.999, eps=1e-8):
    return {
        "SGD": lambda theta, g, t, b: (theta - lr * g, b),
        "momentum": lambda theta, g, t, b: (theta - lr * (beta1 * b + g), beta1 * b + g),
        "Adam": lambda theta, g, t, m, v: own_adam(theta, g, m, v, t, lr, beta1, beta2, eps),
    }


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


@pytest.mark.parametrize("landscape", LANDSCAPES, ids=lambda landscape: landscape.name)
def test_a_landscape_has_its_gradient_and_its_lowest_places(landscape):
    for place in [(0.3, -0.7), landscape.start, (1.1, 0.2)]:
        x, y = (torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in place)
        landscape.value(x, y).backward()
        found = landscape.gradient(x.detach(), y.detach())
        assert [float(f) for f in found] == pytest.approx([float(x.grad), float(y.grad)], abs=1e-9)
    for x, y in landscape.lowest:
        assert landscape.value(x, y) == pytest.approx(0, abs=1e-12)
    left, right, bottom, top = landscape.box
    grid = np.meshgrid(np.linspace(left, right, 60), np.linspace(bottom, top, 60))
    assert landscape.value(*grid).min() >= 0
    assert left < landscape.start[0] < right and bottom < landscape.start[1] < top


def test_descend_is_torchs_adam_on_each_landscape_alone():
    path = descend(rules(0.05)["Adam"], 20)
    assert path.shape == (21, len(LANDSCAPES), 2)
    for i, landscape in enumerate(LANDSCAPES):
        theta = torch.tensor(landscape.start, dtype=torch.float64, requires_grad=True)
        optimizer = optim.Adam([theta], lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            landscape.value(theta[0], theta[1]).backward()
            optimizer.step()
        assert path[-1, i] == pytest.approx(theta.detach().numpy(), abs=1e-12)


def test_arrived_means_for_good_and_a_flight_is_no_arrival():
    path = np.zeros((5, 2))
    assert Run(0.1, path, np.array([1, 0.005, 0.5, 0.009, 0.001]), True).needed == 3
    assert Run(0.1, path, np.array([1, 0.5, 0.5, 0.5, 0.02]), True).needed is None
    assert Run(0.1, path, np.array([1, 0.001, np.nan, np.nan, np.nan]), True).needed is None
    for found in runs(rules(1e3)["SGD"], 1e3, 30):
        assert found.needed is None and not found.inside


def test_a_race_takes_the_fastest_rate_that_stays_in_the_picture():
    rates, steps = [0.003, 0.01, 0.03, 0.1, 1.0], 120
    found = race(rules, rates, steps)
    for name, each in found.items():
        for i, chosen in enumerate(each):
            tried = [runs(rules(rate)[name], rate, steps)[i] for rate in rates]
            inside = [one for one in tried if one.inside]
            assert chosen.inside and chosen.rate in rates
            assert (chosen.needed or steps + 1) == min(one.needed or steps + 1 for one in inside)


def test_titles_state_what_the_numbers_say():
    found = race(rules, [0.01, 0.1], 120)
    first = min((each[1].needed or 999, name) for name, each in found.items())
    assert f"ravine: {first[1]} ({first[0]} steps)" in title(race_figure(found))
    twins = {"A": found["Adam"], "B": found["Adam"]}
    assert f"ravine: A and B ({found['Adam'][1].needed} steps)" in title(race_figure(twins))
    assert "10 times as long with “a” as with “b”" in title(
        step_size_figure([1e-7, 1e-6, 1e-5], {"a": [1, 1, 1], "b": [0.01, 0.1, 1]}, at=1e-6)
    )
    assert "first step is 3.0 learning rates long bare, step 2 is 5.0" in title(
        correction_figure({"bare": [3.0, 5.0, 1.0], "right": [1.0, 1.0, 1.0]})
    )
    history = {"half": {0: [0.5, 1.0], 1: [0.5, 1.0]}, "whole": {0: [0.5, 0.1], 1: [0.5, 0.9]}}
    assert "ends at 1.00 (half), 0.10 (whole)" in title(scalar_figure(history, "here"))
    losses = {name: {0.1: 0.5, 1.0: value} for name, value in (("A", 0.2), ("B", 0.3), ("C", float("nan")))}
    curves = {name: [0.7, 0.5] for name in losses}
    told = title(rates_figure(losses, curves, {"A": [0.2, 0.3], "B": [0.25, 0.4], "C": [0.5, 0.5]}, "here"))
    assert "A ends lowest, at 0.250 (mean of 2 seeds); the seeds of B overlap" in told and "C ends at 0.500" in told
    measured = {
        "with": {0.1: [0.01, 0.02], 1.0: [0.03, 0.04]},
        "without": {0.1: [0.02, 0.02], 1.0: [0.5, float("nan")]},
    }
    told = title(warmup_figure({"with": [0.5, 1.0], "without": [1.0, 0.5]}, measured, "here"))
    assert "with 1; without 0.1" in told


def test_figures_are_small_enough_for_a_notebook():
    assert len(png(race_figure(race(rules, [0.01, 0.03], 100)))) < 60_000
    assert len(png(descent_figure(rules, "Adam"))) < 60_000


def test_sliders_walk_anew_and_need_not_be_waited_for():
    explorer = DescentExplorer(rules)
    before = explorer.image.value
    durations = []
    for rate in (0.01, 0.02, 0.05, 0.2, 1.0):
        start = time.perf_counter()
        explorer.lr.value = rate
        durations.append(time.perf_counter() - start)
    assert explorer.image.value != before
    explorer.name.value = "SGD"
    explorer.lr.value = 3.0  # flies away, and can still be drawn
    assert min(durations) < 0.1


def test_an_answer_that_keeps_its_state_to_itself_is_wrong():
    """State in a global instead of in the arguments: two parameters share it, though nothing given changes."""
    kept = {}

    def forgetful(theta, g, m, v, t, lr, beta1, beta2, eps):
        m, v = (kept["m"], kept["v"]) if t > 1 else (torch.zeros_like(g), torch.zeros_like(g))
        theta, kept["m"], kept["v"] = own_adam(theta, g, m, v, t, lr, beta1, beta2, eps)
        return theta, kept["m"], kept["v"]

    assert run(ADAM, own_adam).status is Status.RIGHT
    assert run(ADAM, forgetful).status is Status.WRONG


def test_references_take_up_the_state_they_are_given():
    """Two steps of a reference are two steps of one optimizer of torch."""
    g = torch.tensor([[0.3, -2.0], [1.0, 0.5]], dtype=torch.float64)
    parameter = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    theta, m, v = parameter.detach().clone(), torch.zeros(2).double(), torch.zeros(2).double()
    for t in (1, 2):
        parameter.grad = g[t - 1]
        optimizer.step()
        theta, m, v = adam(theta, g[t - 1], m, v, t, 0.1, 0.9, 0.999, 1e-8)
    assert torch.allclose(theta, parameter.detach(), atol=1e-15)
    theta, b = sgd(torch.zeros(2), torch.ones(2), torch.zeros(2), 0.1, 0.9)
    theta, b = sgd(theta, torch.ones(2), b, 0.1, 0.9)
    assert torch.allclose(b, torch.full((2,), 1.9)) and torch.allclose(theta, torch.full((2,), -0.29))
