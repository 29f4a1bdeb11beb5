"""Losses against torch, gradients against autograd and finite differences, large logits."""

import pytest
import torch
from torch.nn import functional as F

from pangu_lab.losses import cross_entropy, cross_entropy_gradient, log_softmax, mlm_loss, mse, mse_gradient


def finite_differences(fn, x, h=1e-6):
    gradient = torch.zeros_like(x)
    for index in range(x.numel()):
        step = torch.zeros_like(x).view(-1)
        step[index] = h
        step = step.view_as(x)
        gradient.view(-1)[index] = (fn(x + step) - fn(x - step)) / (2 * h)
    return gradient


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    y = torch.tensor([[1, -100, 4, 0], [-100, -100, 2, 2]])
    return z, y


def test_values_are_torchs(batch):
    z, y = batch
    expected = F.cross_entropy(z.reshape(-1, 5), y.reshape(-1))
    assert torch.allclose(cross_entropy(z, y), expected) and torch.allclose(mlm_loss(z, y), expected)
    assert torch.allclose(log_softmax(z), F.log_softmax(z, dim=-1))
    assert torch.allclose(mse(z, 2 * z), F.mse_loss(z, 2 * z))


def test_gradients_are_autograds_and_finite_differences(batch):
    z, y = batch
    for fn, gradient in (
        (lambda x: cross_entropy(x, y), cross_entropy_gradient(z, y)),
        (lambda x: mse(x, z.sin()), mse_gradient(z, z.sin())),
    ):
        variable = z.clone().requires_grad_()
        fn(variable).backward()
        assert torch.allclose(gradient, variable.grad, atol=1e-12)
        assert torch.allclose(gradient, finite_differences(fn, z), atol=1e-7)


def test_a_position_that_does_not_count_has_no_gradient(batch):
    z, y = batch
    assert (cross_entropy_gradient(z, y)[y == -100] == 0).all()


def test_large_logits_do_not_overflow():
    z, y = torch.tensor([[1e4, 0.0, -1e4]]), torch.tensor([1])
    assert float(cross_entropy(z, y)) == 1e4 and torch.isfinite(cross_entropy_gradient(z, y)).all()


def test_no_label_that_counts_gives_zero_and_not_nan():
    z = torch.randn(2, 3, requires_grad=True)
    loss = cross_entropy(z, torch.tensor([-100, -100]))
    loss.backward()
    assert float(loss.detach()) == 0 and (z.grad == 0).all()
