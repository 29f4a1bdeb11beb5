"""Cross-entropy, the masked-language-model loss and the mean squared error, each beside its gradient.

The gradients are the ones derived in lab 04; autograd finds the same, and tests hold both against finite
differences. Letters: ``z`` logits, ``p`` probabilities, ``y`` labels, ``C`` classes.
"""

import torch
from torch import Tensor

IGNORED = -100  # the label of positions that do not count, as in torch and transformers


def log_softmax(z: Tensor) -> Tensor:
    """Logarithm of the softmax over the last axis, without overflow.

    .. math:: \\log p_c = z_c - \\max z - \\log \\sum_k e^{z_k - \\max z}

    The largest exponent is 0, so logits of 1e4 are as safe as logits of 1. Shape ``(..., C)`` in and out.
    """
    shifted = z - z.amax(dim=-1, keepdim=True)
    return shifted - shifted.exp().sum(dim=-1, keepdim=True).log()


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Mean of :math:`-\\log p_{y}` over the labels that count.

    Parameters
    ----------
    z
        Logits ``(..., C)``.
    y
        Labels ``(...)``, whole numbers; ``-100`` where a position does not count.

    Returns
    -------
    Tensor
        One number; 0 where no label counts (and not NaN, which would spoil the weights).
    """
    counts = y != IGNORED
    log_p = log_softmax(z).gather(-1, y.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return -(log_p * counts).sum() / counts.sum().clamp_min(1)


def cross_entropy_gradient(z: Tensor, y: Tensor) -> Tensor:
    """Gradient of ``cross_entropy`` by the logits: :math:`(p - \\mathrm{onehot}(y)) / n`, 0 where nothing counts."""
    counts = (y != IGNORED).unsqueeze(-1)
    onehot = torch.zeros_like(z).scatter_(-1, y.clamp_min(0).unsqueeze(-1), 1.0)
    return (log_softmax(z).exp() - onehot) * counts / counts.sum().clamp_min(1)


def mlm_loss(z: Tensor, labels: Tensor) -> Tensor:
    """Masked-language-model loss (Devlin et al. 2019, §3.1).

    .. math:: \\mathcal L = -\\frac{1}{|M|} \\sum_{i \\in M} \\log p_\\theta(x_i \\mid \\tilde x)

    ``M`` holds all positions that were *selected*: the masked ones, the replaced ones, and the unchanged
    ones. ``labels`` ``(batch, length)`` has their token, and ``-100`` elsewhere; ``z`` is
    ``(batch, length, vocabulary)``.
    """
    return cross_entropy(z, labels)


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all entries."""
    return ((prediction - target) ** 2).mean()


def mse_gradient(prediction: Tensor, target: Tensor) -> Tensor:
    """Gradient of ``mse`` by the prediction: :math:`2 (\\hat y - y) / n`."""
    return 2 * (prediction - target) / prediction.numel()
