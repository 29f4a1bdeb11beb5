"""Our optimizers against torch's: numbers, state dicts, groups, closures, refusals; epsilon inside the root."""

import copy

import pytest
import torch
from torch import nn

from pangu_lab import optim

SETTINGS = [
    ("SGD", {"lr": 0.05}),
    ("SGD", {"lr": 0.02, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.01, "initial_accumulator_value": 0.1}),
    ("RMSprop", {"lr": 0.01, "alpha": 0.9}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.5, "centered": True, "weight_decay": 0.01}),
    ("Adam", {"lr": 0.02}),
    ("Adam", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.02}),
    ("AdamW", {"lr": 0.02, "betas": (0.5, 0.9), "weight_decay": 0.3}),
]


def rosenbrock(p):
    return 0.2 * (1 - p[0][0]) ** 2 + (p[0][1] - p[0][0] ** 2) ** 2 + (p[1] ** 2).sum()


def regression(p):
    x = torch.linspace(-1, 1, 2 * len(p[1]), dtype=p[1].dtype).reshape(2, -1)
    return ((torch.tanh(x * p[1] + p[0].sum()) - 0.3) ** 2).mean()


def start(dtype):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(n, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for n in (2, 3)]


def run(kind, problem, settings, dtype, steps=100, groups=False):
    parameters = start(dtype)
    given = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.003}] if groups else parameters
    optimizer = kind(given, **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        problem(parameters).backward()
        optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("problem", [rosenbrock, regression])
@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=lambda value: str(value))
def test_after_100_steps_the_parameters_are_torchs(name, settings, problem, dtype):
    ours, _ = run(getattr(optim, name), problem, settings, dtype, groups=True)
    theirs, _ = run(getattr(torch.optim, name), problem, settings, dtype, groups=True)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.isfinite(a).all() and float((a - b).detach().abs().max()) < 1e-6
    assert float((ours[0] - start(dtype)[0]).detach().abs().max()) > 1e-3, "nothing moved, so nothing was compared"


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=lambda value: str(value))
def test_state_dicts_go_over_in_both_directions(name, settings):
    """Ten steps with one, its state into the other, ten more: the same as twenty with either."""
    kinds = getattr(optim, name), getattr(torch.optim, name)
    whole, _ = run(kinds[1], regression, settings, torch.float64, steps=20)
    for first, second in (kinds, kinds[::-1]):
        parameters, optimizer = run(first, regression, settings, torch.float64, steps=10)
        follower = second(parameters, **settings)
        follower.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for _ in range(10):
            follower.zero_grad()
            regression(parameters).backward()
            follower.step()
        assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(parameters, whole, strict=True))


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RMSprop", "Adam", "AdamW"])
def test_bad_settings_are_refused_as_torch_refuses_them(name):
    wrong = [{"lr": -1.0}, {"weight_decay": -0.1}]
    wrong += [{"eps": -1e-8}] if name != "SGD" else [{"momentum": -0.5}, {"nesterov": True}]
    wrong += [{"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}] if name.startswith("Adam") else []
    for settings in wrong:
        told = []
        for module in (optim, torch.optim):
            with pytest.raises(ValueError) as caught:
                getattr(module, name)([torch.zeros(2, requires_grad=True)], **settings)
            told.append(str(caught.value))
        assert told[0] == told[1]


def test_closures_and_parameters_without_a_gradient():
    used, idle = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = optim.Adam([used, idle], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 2.0
    assert torch.equal(idle, torch.ones(2)) and used[0].item() == pytest.approx(0.9, abs=1e-5)


def test_sparse_gradients_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optim.Adam(table.parameters()).step()


def first_step(gradient, **options):
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    theta.grad = torch.tensor([gradient], dtype=torch.float64)
    optim.Adam([theta], lr=1.0, **options).step()
    return -theta.item()


def test_epsilon_inside_the_root_stops_small_gradients():
    """With g = 1e-6 and epsilon 1e-8: 0.99 of the rate outside of the root, 0.01 of it inside."""
    assert first_step(1e-6) == pytest.approx(1e-6 / (1e-6 + 1e-8))
    assert first_step(1e-6, eps_inside_root=True) == pytest.approx(1e-6 / (1e-12 + 1e-8) ** 0.5)
    assert first_step(1.0) == pytest.approx(first_step(1.0, eps_inside_root=True), rel=1e-6)


def test_without_bias_correction_the_first_step_is_another():
    assert first_step(0.5, bias_correction=False) == pytest.approx(0.1 * 0.5 / ((0.001 * 0.25) ** 0.5 + 1e-8))


def test_a_schedule_of_torch_drives_them():
    theta = torch.ones(1, requires_grad=True)
    optimizer = optim.SGD([theta], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for _ in range(3):
        theta.grad = torch.ones(1)
        optimizer.step()
        schedule.step()
    assert theta.item() == pytest.approx(1 - 1 - 0.5 - 0.25)
