"""Quantisation-aware training: the forward pass rounds as the integers will, the backward pass ignores it.

Rounding has no useful derivative. The straight-through estimator (Bengio et al. 2013) passes the gradient on
as if x̂ were x. ``quantization_aware_training`` runs the one training loop on a model prepared that way.
"""

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from pangu_lab.compression.affine import Scheme, fake_quantize
from pangu_lab.training import Job, Result, train


def straight_through(x: Tensor, scheme: Scheme) -> Tensor:
    """x̂ in the forward pass, the gradient of x in the backward pass; the shape of x, fp32."""
    x = x.float()
    return x + (fake_quantize(x.detach(), scheme) - x.detach())


class FakeQuantizedLinear(nn.Linear):
    """A linear layer that sees its weight, and its input too if asked, as b-bit integers would show them."""

    weight_scheme: Scheme
    input_scheme: Scheme | None

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) to (…, N)."""
        if self.input_scheme is not None:
            x = straight_through(x, self.input_scheme)
        return functional.linear(x, straight_through(self.weight, self.weight_scheme), self.bias)


def _exchange(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind


def prepare(model: nn.Module, weight: Scheme, activations: Scheme | None = None) -> nn.Module:
    """Let every linear layer of ``model`` quantise in its forward pass; in place, the parameters stay the same.

    A class is exchanged, not a module: names, ties and saved checkpoints are as before.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            _exchange(module, FakeQuantizedLinear)
            vars(module).update(weight_scheme=weight, input_scheme=activations)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Undo ``prepare``: plain linear layers again, whose weights are now used to being rounded."""
    for module in model.modules():
        if isinstance(module, FakeQuantizedLinear):
            _exchange(module, nn.Linear)
            del module.weight_scheme, module.input_scheme
    return model


def quantization_aware_training(
    model: nn.Module, job: Job, folder: Path, weight: Scheme, activations: Scheme | None = None, quiet: bool = False
) -> Result:
    """Train ``model`` in place on ``job`` under fake quantisation; then ``quantize`` it with the same schemes.

    The run's folder should be one of its own: it is resumed as any other run.
    """
    prepare(model, weight, activations)
    try:
        return train(model, job, folder, quiet=quiet, tensorboard=False)
    finally:
        restore(model)
