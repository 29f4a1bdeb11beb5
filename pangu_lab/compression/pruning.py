"""Pruning by masks: which weights are worth least, and how a model learns without them.

``magnitude_masks`` chooses, ``cubic_sparsity`` says how many at which step, ``Pruner`` does both after every update
of the one training loop, and ``prune_and_tune`` starts it. Movement pruning learns the choice (``start_movement``).
``head_importance`` and ``neuron_importance`` ask the gradient what ``structured`` may remove for real.

A mask is boolean, True where a weight stays. *Sparsity* is the share of zeros, density the share of the others.
Zeros alone make nothing faster: a dense matrix product multiplies by them. Read ``magnitude_masks`` first.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pangu_lab.compression.structured import PruningError, encoder_layers, find_encoder
from pangu_lab.training import Job, LossFunction, Result, cross_entropy_loss, train

Masks = dict[str, Tensor]
Scope = Literal["layer", "global"]


# --- masks ------------------------------------------------------------------------------------------------


def prunable_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weight matrices of the encoder's linear maps, by name.

    Biases, LayerNorms, embeddings and the task's head stay dense: they are few, or looked up instead of multiplied.
    """
    place, _ = find_encoder(model)
    named = dict(model.get_submodule(place).named_modules())
    return {f"{place}.{name}.weight": m.weight for name, m in named.items() if isinstance(m, nn.Linear)}


def keep_largest(scores: Tensor, sparsity: float) -> Tensor:
    """A mask of the shape of ``scores`` that drops exactly ``round(sparsity · n)`` of the n smallest.

    Of equal scores the first go first, so that the number is exact whatever the ties.
    """
    if not 0 <= sparsity <= 1:
        raise PruningError(f"sparsity is {sparsity:g}; it is the share of zeros, from 0 to 1")
    flat = scores.detach().flatten().float()
    k = round(sparsity * flat.numel())
    mask = torch.ones_like(flat, dtype=torch.bool)
    if k > 0:
        threshold = flat.kthvalue(k).values  # the k-th smallest
        mask = flat > threshold
        ties = (flat == threshold).nonzero().squeeze(1)
        below = flat.numel() - int(mask.sum()) - len(ties)
        mask[ties[k - below :]] = True
    return mask.view(scores.shape)


def masks_from_scores(scores: Mapping[str, Tensor], sparsity: float, scope: Scope = "layer") -> Masks:
    """Masks that keep the largest scores of each matrix (``layer``) or of all together (``global``)."""
    if scope == "layer":
        return {name: keep_largest(score, sparsity) for name, score in scores.items()}
    if scope != "global":
        raise PruningError(f"scope is {scope!r}; it must be 'layer' or 'global'")
    together = keep_largest(torch.cat([score.flatten() for score in scores.values()]), sparsity)
    parts = together.split([score.numel() for score in scores.values()])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}


def magnitude_masks(weights: Mapping[str, Tensor], sparsity: float, scope: Scope = "layer") -> Masks:
    """M = 1[|W| > τ] with τ so that exactly the share ``sparsity`` of the weights goes (Han et al. 2015).

    Parameters
    ----------
    weights
        Matrices by name, as ``prunable_weights`` gives them.
    scope
        ``layer``: one threshold a matrix, each loses the same share. ``global``: one threshold for all, so matrices
        of small weights lose more.
    """
    return masks_from_scores({name: weight.detach().abs() for name, weight in weights.items()}, sparsity, scope)


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """W ← W ⊙ M in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask.to(parameters[name].device))


def sparsity_of(weights: nn.Module | Mapping[str, Tensor]) -> float:
    """The share of exact zeros in the matrices, or in the prunable matrices of a model."""
    matrices = (prunable_weights(weights) if isinstance(weights, nn.Module) else weights).values()
    return sum(int((matrix == 0).sum()) for matrix in matrices) / sum(matrix.numel() for matrix in matrices)


def pruned_copy(model: nn.Module, sparsity: float, scope: Scope = "layer") -> nn.Module:
    """The model with its smallest weights at zero, without training; the given one stays as it is."""
    pruned = copy.deepcopy(model)
    apply_masks(pruned, magnitude_masks(prunable_weights(pruned), sparsity, scope))
    return pruned


# --- prune and tune ---------------------------------------------------------------------------------------


def cubic_sparsity(step: float, begin: float, end: float, final: float, initial: float = 0.0) -> float:
    """s_t = s_f + (s_i − s_f) (1 − (t − t_0) / (nΔt))³ (Zhu & Gupta 2017, eq. 1); s_i before t_0, s_f at the end.

    Many weights go early, while there are many to spare, and few at a time later.

    >>> [round(cubic_sparsity(step, 0, 10, 0.8), 3) for step in (0, 5, 10, 12)]
    [0.0, 0.7, 0.8, 0.8]
    """
    if step >= end:
        return final
    if step <= begin:
        return initial
    return final + (initial - final) * (1 - (step - begin) / (end - begin)) ** 3


@dataclass
class Pruner:
    """Iterative magnitude pruning, after every step of the training loop.

    Every ``every`` steps the masks are chosen anew for the sparsity of the moment, and after *each* step they are
    applied: the optimizer, with its momentum, would otherwise bring pruned weights back. A weight at zero has the
    smallest magnitude there is, so what was pruned stays pruned.

    Parameters
    ----------
    sparsity
        The share of zeros at the end.
    begin, end
        When the cubic schedule begins and is complete, as parts of all steps; afterwards the model only recovers.
    """

    sparsity: float
    scope: Scope = "global"
    begin: float = 0.0
    end: float = 0.7
    every: int = 1
    masks: Masks = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not (0 <= self.sparsity < 1 and 0 <= self.begin < self.end <= 1 and self.every >= 1):
            raise PruningError(f"{self} cannot be: sparsity is from 0 to below 1, 0 <= begin < end <= 1, every >= 1")

    def __call__(self, model: nn.Module, step: int, steps: int) -> None:
        """Choose masks where they are due, and apply them; ``step`` of ``steps`` updates are done."""
        last = max(1, math.floor(self.end * steps))  # from this step on the sparsity is the final one
        if (step % self.every == 0 and step < last) or step == last:
            now = cubic_sparsity(step, self.begin * steps, last, self.sparsity)
            self.masks = magnitude_masks(prunable_weights(model), now, self.scope)
        apply_masks(model, self.masks)

    def state_dict(self) -> dict[str, Any]:
        """The masks, for a checkpoint."""
        return {"masks": self.masks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the masks of a checkpoint."""
        self.masks = state["masks"]


def prune_and_tune(
    model: nn.Module,
    job: Job,
    folder: Path,
    sparsity: float,
    scope: Scope = "global",
    begin: float = 0.0,
    end: float = 0.7,
    every: int = 1,
    quiet: bool = False,
) -> Result:
    """Train ``model`` in place while its weights go to zero by the cubic schedule, on the one training loop.

    The last weights count, not the best on validation, as an early epoch is less sparse: ``job.better`` is ignored.
    """
    pruner = Pruner(sparsity, scope, begin, end, every)
    return train(model, replace(job, better=None, after_step=pruner), folder, quiet=quiet, tensorboard=False)


# --- movement pruning -------------------------------------------------------------------------------------


class _StraightThrough(torch.autograd.Function):
    """Top_v(S) forward; backward, the mask's gradient goes to the scores as if the choice were the identity."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, sparsity: float) -> Tensor:
        return keep_largest(scores, sparsity).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class MovementMask(nn.Module):
    """W′ = W ⊙ Top_v(S), a parametrization of one weight matrix (Sanh et al. 2020, §4).

    From ∂L/∂S = ∂L/∂W′ ⊙ W follows that a score grows while its weight moves away from zero. Scores start at 0, and
    Adam's steps are in units of the learning rate, so their order, all that counts here, does not depend on it:
    scores need no learning rate of their own.
    """

    sparsity: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros_like(weight))
        self.register_buffer("sparsity", torch.zeros((), dtype=torch.float64))

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in) to (out, in) with the share ``sparsity`` of it zero."""
        return weight * _StraightThrough.apply(self.scores, float(self.sparsity))


def start_movement(model: nn.Module) -> None:
    """Put a ``MovementMask`` on every prunable matrix, in place."""
    place, _ = find_encoder(model)
    for module in list(model.get_submodule(place).modules()):
        if isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", MovementMask(module.weight))


def finish_movement(model: nn.Module) -> None:
    """Write the masked weights into the model and take the scores away: an ordinary model with zeros is left."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


@dataclass
class MovementSchedule:
    """Moves the sparsity of all ``MovementMask``s along the cubic schedule; it is part of the model's own state."""

    sparsity: float
    begin: float = 0.0
    end: float = 0.7

    def __call__(self, model: nn.Module, step: int, steps: int) -> None:
        """Set the sparsity for the next step."""
        last = max(1, math.floor(self.end * steps))
        now = cubic_sparsity(step, self.begin * steps, last, self.sparsity)
        for module in model.modules():
            if isinstance(module, MovementMask):
                module.sparsity.fill_(now)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the masks hold it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def movement_prune(
    model: nn.Module,
    job: Job,
    folder: Path,
    sparsity: float,
    begin: float = 0.0,
    end: float = 0.7,
    quiet: bool = False,
) -> Result:
    """Fine-tune ``model`` in place while movement pruning chooses, per matrix, what goes.

    Worth its trouble below about 15 % of the weights; above, magnitude is as good (Sanh et al. 2020, figure 2).
    """
    start_movement(model)
    schedule = MovementSchedule(sparsity, begin, end)
    result = train(model, replace(job, better=None, after_step=schedule), folder, quiet=quiet, tensorboard=False)
    finish_movement(model)
    return result


# --- importance by gradient -------------------------------------------------------------------------------


def head_importance(
    model: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    loss: LossFunction = cross_entropy_loss,
    normalize: bool = True,
) -> list[Tensor]:
    """I_h = E_x |∂L(x)/∂ξ_h|, ξ_h = 1 a gate on head h (Michel et al. 2019, eq. 2): one (heads,) for each layer.

    Each text has gates of its own, so that the absolute value is taken per text: without it, texts for which a head
    is good and texts for which it is bad would cancel.

    Parameters
    ----------
    batches
        Inputs with labels, as ``collate`` makes them; weights do not change.
    loss
        Summed over the texts of a batch, as the training loop wants it.
    normalize
        Divide each layer's values by their ℓ₂ norm (Michel et al., §3.2), to compare heads of different layers.
    """
    layers = encoder_layers(model)
    groups = [(layer.attention_output, layer.heads) for layer in layers]
    return _gate_gradients(model, groups, batches, loss, normalize)


def neuron_importance(
    model: nn.Module,
    batches: Iterable[dict[str, Tensor]],
    loss: LossFunction = cross_entropy_loss,
    normalize: bool = False,
) -> list[Tensor]:
    """E_x |Σ_t a_n(t) ∂L/∂a_n(t)|, a_n a neuron's output (first-order Taylor): one (neurons,) for each layer."""
    groups = [(layer.down, layer.neurons) for layer in encoder_layers(model)]
    return _gate_gradients(model, groups, batches, loss, normalize)


def _gate_gradients(
    model: nn.Module,
    groups: Sequence[tuple[nn.Linear, int]],
    batches: Iterable[dict[str, Tensor]],
    loss: LossFunction,
    normalize: bool,
) -> list[Tensor]:
    """For each (linear map, n): its inputs, in n equal blocks, get a gate a text; the mean of |∂L/∂gate|, (n,)."""
    device = next(model.parameters()).device
    gates: dict[int, Tensor] = {}

    def gate(number: int, count: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = inputs[0]  # (B, T, n · size)
            gates[number] = torch.ones(x.size(0), 1, count, 1, device=x.device, dtype=x.dtype, requires_grad=True)
            return ((x.unflatten(-1, (count, -1)) * gates[number]).flatten(-2),)

        return hook

    sums = [torch.zeros(count, dtype=torch.float64) for _, count in groups]
    hooks = [linear.register_forward_pre_hook(gate(i, count)) for i, (linear, count) in enumerate(groups)]
    was_training, texts = model.training, 0
    model.eval()  # dropout would add noise
    try:
        for batch in batches:
            moved = {key: value.to(device) for key, value in batch.items()}
            with torch.enable_grad():
                total, _ = loss(model, moved)
                # Only the gates' gradients: those of the weights are neither computed nor left behind.
                found = torch.autograd.grad(total, [gates[i] for i in range(len(groups))])
            for value, gradient in zip(sums, found, strict=True):
                value += gradient.flatten(1).abs().sum(dim=0).double().cpu()
            texts += found[0].size(0)
    finally:
        for handle in hooks:
            handle.remove()
        model.train(was_training)
    if texts == 0:
        raise PruningError("there are no batches to measure importance on; give at least one")
    means = [value / texts for value in sums]
    return [value / value.norm().clamp(min=1e-30) if normalize else value for value in means]


def weakest(
    importance: Sequence[Tensor], share: float, scope: Scope = "layer", at_least: int = 1
) -> dict[int, list[int]]:
    """Layer to the positions of its least important heads or neurons, as ``structured`` takes them.

    Parameters
    ----------
    share
        How many go: with ``layer`` ``round(share · n)`` of each layer's n, so that all layers stay alike and a
        checkpoint stays ordinary; with ``global`` that share of all, at most all but ``at_least`` of a layer.
    """
    if not 0 <= share < 1:
        raise PruningError(f"share is {share:g}; it is the part that goes, from 0 to below 1")
    room = [max(0, len(layer) - at_least) for layer in importance]
    if scope == "layer":
        counts = [min(round(share * len(layer)), most) for layer, most in zip(importance, room, strict=True)]
        chosen = {
            i: layer.argsort(stable=True)[:n].tolist()
            for i, (layer, n) in enumerate(zip(importance, counts, strict=True))
        }
    else:
        together = [(float(value), i, j) for i, layer in enumerate(importance) for j, value in enumerate(layer)]
        wanted = round(share * len(together))
        chosen = {i: [] for i in range(len(importance))}
        for _, i, j in sorted(together):
            if wanted and len(chosen[i]) < room[i]:
                chosen[i].append(j)
                wanted -= 1
    return {layer: sorted(positions) for layer, positions in chosen.items() if positions}


# --- two of four ------------------------------------------------------------------------------------------


def two_of_four_mask(weight: Tensor) -> Tensor:
    """2:4: of every four neighbors in a row of (out, in) the two of largest magnitude stay (Mishra et al. 2021).

    Of equal ones the first stay. GPUs since NVIDIA's Ampere multiply such matrices up to twice as fast.
    """
    if weight.ndim != 2 or weight.shape[1] % 4:
        raise PruningError(f"2:4 needs a matrix whose rows are a multiple of 4 long; this one is {tuple(weight.shape)}")
    fours = weight.detach().abs().unflatten(1, (-1, 4))  # (out, in / 4, 4)
    largest = fours.argsort(dim=-1, descending=True, stable=True)[..., :2]
    return torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, largest, True).flatten(1)


def two_of_four_available() -> tuple[bool, str]:
    """Whether this machine multiplies 2:4 matrices faster, and the reason as a text."""
    if not torch.cuda.is_available():
        return False, "there is no GPU; a CPU has no 2:4 arithmetic"
    major, minor = torch.cuda.get_device_capability()
    able = major >= 8
    return able, f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}; 2:4 needs 8.0"


def to_two_of_four(model: nn.Module) -> int:
    """Put the encoder's matrices into 2:4 form for the GPU's sparse kernels, in place; how many it were.

    Weights are masked by ``two_of_four_mask`` first. The model must be on a GPU, in float16 or bfloat16.

    Raises
    ------
    PruningError
        No such GPU, or another dtype.
    """
    able, reason = two_of_four_available()
    if not able:
        raise PruningError(f"2:4 kernels are not to be had: {reason}")
    count = 0
    for name, weight in prunable_weights(model).items():
        if weight.dtype not in (torch.float16, torch.bfloat16):
            raise PruningError(f"{name} is {weight.dtype}; 2:4 kernels take float16 or bfloat16: model.half()")
        if weight.shape[0] % 64 or weight.shape[1] % 64:
            continue  # the kernels' tiles
        module = model.get_submodule(name.removesuffix(".weight"))
        masked = weight.detach() * two_of_four_mask(weight)
        module.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(masked), requires_grad=False)
        count += 1
    return count
