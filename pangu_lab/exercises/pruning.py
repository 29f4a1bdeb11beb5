"""Exercises of lab 09: which weights go, when they go, how they stay away, and how matrices become smaller.

References come from an independent truth where there is one: quantiles by full sorting, gates differentiated by
autograd, an indicator over head numbers. Removed neurons are judged by what the smaller network computes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pangu_lab.exercises.engine import Case, Compare, Exercise, Mistake

Weights = dict[str, Tensor]


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.tensor(rng.normal(size=shape), dtype=torch.float32)


# --- masks by magnitude -------------------------------------------------------------------------------


def _ranked(matrix: Tensor, sparsity: float) -> Tensor:
    """True for all but the ``round(sparsity · n)`` entries of lowest rank by magnitude."""
    rank = matrix.abs().flatten().argsort().argsort()
    return (rank >= round(sparsity * matrix.numel())).view(matrix.shape)


def layer_masks(parameters: Weights, sparsity: float) -> Weights:
    """A mask for each matrix, by ranks."""
    return {name: _ranked(p, sparsity) for name, p in parameters.items() if p.ndim == 2}


def global_masks(parameters: Weights, sparsity: float) -> Weights:
    """Masks by the ranks among all matrices' weights."""
    matrices = {name: p for name, p in parameters.items() if p.ndim == 2}
    together = _ranked(torch.cat([p.flatten() for p in matrices.values()]), sparsity)
    parts = together.split([p.numel() for p in matrices.values()])
    return {name: part.view_as(p) for part, (name, p) in zip(parts, matrices.items(), strict=True)}


def _masks(
    pooled: bool,
    score: Callable[[Tensor], Tensor] = torch.abs,
    biases: bool = False,
    density: bool = False,
    shift: int = 0,
    flip: bool = False,
    last: Callable[[Tensor, Tensor], Tensor] = lambda mask, p: mask,
) -> Any:
    """Masks by a threshold: the way most would write it, with its possible mistakes."""

    def threshold(scores: Tensor, sparsity: float) -> float:
        k = round((1 - sparsity if density else sparsity) * scores.numel()) + shift
        return float(scores.sort().values[max(0, min(k, scores.numel()) - 1)]) if k > 0 else -float("inf")

    def masks(parameters: Weights, sparsity: float) -> Weights:
        chosen = {name: p for name, p in parameters.items() if biases or p.ndim == 2}
        all_scores = torch.cat([score(p).flatten() for p in chosen.values()])
        found = {}
        for name, p in chosen.items():
            cut = threshold(all_scores if pooled else score(p).flatten(), sparsity)
            found[name] = last((score(p) > cut) != flip, p)
        return found

    return masks


def _share_of_largest(parameters: Weights, sparsity: float) -> Weights:
    return {name: p.abs() > sparsity * p.abs().max() for name, p in parameters.items() if p.ndim == 2}


def _per_row(parameters: Weights, sparsity: float) -> Weights:
    return {name: torch.stack([_ranked(row, sparsity) for row in p]) for name, p in parameters.items() if p.ndim == 2}


def _mean_threshold(parameters: Weights, sparsity: float) -> Weights:
    matrices = {name: p for name, p in parameters.items() if p.ndim == 2}
    cuts = [float(p.abs().flatten().sort().values[round(sparsity * p.numel()) - 1]) for p in matrices.values()]
    return {name: p.abs() > float(np.mean(cuts)) for name, p in matrices.items()}


def _scaled(parameters: Weights, sparsity: float) -> Weights:
    scaled = {name: p / p.abs().max() for name, p in parameters.items() if p.ndim == 2}
    return global_masks(scaled, sparsity)


def _mask_cases(rng: np.random.Generator) -> list[Case]:
    """Matrices of unlike scale, with biases beside them; no two magnitudes are equal."""
    cases = []
    for shapes, sparsity, note in (
        (((4, 5), (5, 6)), 0.3, "30 % go"),
        (((6, 5), (4, 10), (10, 3)), 0.7, "70 % go"),
        (((5, 8), (8, 5)), 0.9, "90 % go"),
    ):
        parameters: Weights = {}
        for number, (rows, columns) in enumerate(shapes):
            scale = (0.4, 1.0, 1.7)[number] * float(rng.uniform(0.9, 1.1))
            parameters[f"{number}.weight"] = scale * _normal(rng, rows, columns)
            parameters[f"{number}.bias"] = 0.3 * _normal(rng, rows)
        cases.append(Case((parameters, sparsity), note=note))
    return cases


_MASK_MISTAKES = {
    "smallest": "You keep the smallest weights and drop the largest; the small ones go.",
    "no-abs": "You compare the weights with their sign: a weight of -3 is large. Take the absolute value.",
    "density": "You keep the share sparsity. Sparsity is the share that goes; the share that stays is the density.",
    "one-more": "One weight too many goes: with k = round(sparsity * n), the k smallest go and the next one stays.",
    "one-less": "One weight too few goes: > keeps, so compare with the k-th smallest, and not with the one before it.",
    "biases": "A bias has a mask, too. A layer has few biases and needs them all: only matrices (p.ndim == 2) get masks.",
    "weights": "These are the weights with zeros in them; return the masks, True where a weight stays.",
    "float": "These masks are numbers; a mask here is boolean, True where a weight stays.",
    "largest": "You cut at a share of the largest weight; sparsity is a share of their number.",
}


def _mask_mistakes(pooled: bool) -> tuple[Mistake, ...]:
    made = {
        "smallest": _masks(pooled, flip=True, density=True),
        "no-abs": _masks(pooled, score=lambda p: p),
        "density": _masks(pooled, density=True),
        "one-more": _masks(pooled, shift=1),
        "one-less": _masks(pooled, shift=-1),
        "biases": _masks(pooled, biases=True),
        "weights": _masks(pooled, last=lambda mask, p: mask * p),
        "float": _masks(pooled, last=lambda mask, p: mask.float()),
        "largest": _share_of_largest,
    }
    return tuple(Mistake(name, _MASK_MISTAKES[name], fn) for name, fn in made.items())


LAYER = Exercise(
    id="pruning.layer_masks",
    points=2,
    title="Magnitude masks, layer by layer",
    cases=_mask_cases,
    reference=layer_masks,
    also_right=(_masks(pooled=False),),
    mistakes=(
        *_mask_mistakes(pooled=False),
        Mistake("global", "One threshold for all matrices: that is the next exercise. Here each matrix loses the same "
                "share, by a threshold of its own.", _masks(pooled=True)),
        Mistake("rows", "Each row loses its share; the threshold is for the whole matrix.", _per_row),
    ),
    hints=(
        "Sort the magnitudes of one matrix. Where in the sorted list is the border between those that go and those that stay?",
        "k = round(sparsity * p.numel()) go. p.abs().flatten().kthvalue(k).values is the largest that goes.",
        "for name, p in parameters.items():\n    if p.ndim == 2:\n        threshold = ...\n"
        "        masks[name] = p.abs() > threshold",
    ),
)  # fmt: skip

GLOBAL = Exercise(
    id="pruning.global_masks",
    points=2,
    title="Magnitude masks, one threshold for all",
    cases=_mask_cases,
    reference=global_masks,
    also_right=(_masks(pooled=True),),
    mistakes=(
        *_mask_mistakes(pooled=True),
        Mistake("per-matrix", "Each matrix has a threshold of its own; global means one threshold for all of them, so "
                "that matrices of small weights lose more.", _masks(pooled=False)),
        Mistake("mean", "You average the thresholds of the matrices. That is one threshold, but another number of weights "
                "goes: put all magnitudes into one list first.", _mean_threshold),
        Mistake("scaled", "You scale each matrix before you compare; global compares the weights as they are.", _scaled),
    ),
    hints=(
        "The same as before, with one longer list.",
        "torch.cat([p.abs().flatten() for p in …]) puts all matrices, but no bias, into one vector.",
        "matrices = {name: p for name, p in parameters.items() if p.ndim == 2}\ntogether = torch.cat([...])\n"
        "threshold = together.kthvalue(round(sparsity * ...)).values\n"
        "return {name: p.abs() > threshold for name, p in matrices.items()}",
    ),
)  # fmt: skip


# --- the cubic schedule -------------------------------------------------------------------------------


def cubic_sparsity(step: int, begin: int, end: int, final: float, initial: float) -> float:
    """Zhu and Gupta's schedule, the time clipped to its interval first."""
    left = 1.0 - float(np.clip((step - begin) / (end - begin), 0.0, 1.0))
    return initial * left**3 + final * (1.0 - left**3)


def _schedule(
    curve: Callable[[float], float] = lambda left: left**3,
    clip: tuple[bool, bool] = (True, True),
    progress: Callable[[int, int, int], float] = lambda step, begin, end: (step - begin) / (end - begin),
    use_initial: bool = True,
    last: Callable[[float], float] = lambda sparsity: sparsity,
) -> Any:
    def sparsity(step: int, begin: int, end: int, final: float, initial: float) -> float:
        done = progress(step, begin, end)
        done = max(0.0, done) if clip[0] else done
        done = min(1.0, done) if clip[1] else done
        return last(final + ((initial if use_initial else 0.0) - final) * curve(1 - done))

    return sparsity


def _zero_before(step: int, begin: int, end: int, final: float, initial: float) -> float:
    return 0.0 if step < begin else cubic_sparsity(step, begin, end, final, initial)


def _nearly(step: int, begin: int, end: int, final: float, initial: float) -> float:
    return cubic_sparsity(min(step, end - 1), begin, end, final, initial)


def _falls_back(step: int, begin: int, end: int, final: float, initial: float) -> float:
    return cubic_sparsity(step, begin, end, final, initial) if begin <= step <= end else initial


def _schedule_cases(rng: np.random.Generator) -> list[Case]:
    begin = int(rng.integers(6, 12))
    end = begin + int(rng.integers(10, 18))
    final, initial = float(rng.uniform(0.7, 0.95)), float(rng.uniform(0.05, 0.25))
    early = begin + int((end - begin) * rng.uniform(0.15, 0.3))
    late = begin + int((end - begin) * rng.uniform(0.6, 0.85))
    return [
        Case((early, begin, end, final, initial), note="soon after the begin"),
        Case((late, begin, end, final, initial), note="towards the end"),
        Case((begin, begin, end, final, initial), note="the first step"),
        Case((end, begin, end, final, initial), note="the last step"),
        Case((begin // 2, begin, end, final, initial), note="before the begin"),
        Case((2 * end, begin, end, final, initial), note="long after the end"),
    ]


CUBIC = Exercise(
    id="pruning.cubic_sparsity",
    points=2,
    title="The cubic schedule",
    cases=_schedule_cases,
    reference=cubic_sparsity,
    compare=Compare(rtol=1e-6, atol=1e-7),
    mistakes=(
        Mistake("linear", "This rises in a straight line; the cubic schedule takes most weights early.",
                _schedule(curve=lambda left: left)),
        Mistake("square", "The power is 3, not 2.", _schedule(curve=lambda left: left**2)),
        Mistake("slow-start", "You cube the part that is done, so that most weights go at the end; cube the part that "
                "is left, 1 - done.", _schedule(curve=lambda left: 1 - (1 - left) ** 3)),
        Mistake("no-end", "After the end the sparsity goes on rising; it stays at final from the end on.",
                _schedule(clip=(True, False))),
        Mistake("no-begin", "Before the begin the formula does not hold; the sparsity is initial there.",
                _schedule(clip=(False, True))),
        Mistake("no-clip", "The formula holds between begin and end only; before it is initial, afterwards final.",
                _schedule(clip=(False, False))),
        Mistake("zero-before", "Before the begin the sparsity is initial, which need not be 0.", _zero_before),
        Mistake("never-final", "At the last step the schedule has not reached final; at step == end it must.", _nearly),
        Mistake("falls-back", "After the end you return initial: all pruned weights would come back.", _falls_back),
        Mistake("whole-length", "You divide by end; the schedule is end - begin steps long.",
                _schedule(progress=lambda step, begin, end: (step - begin) / end)),
        Mistake("from-zero", "You count from step 0; the schedule starts at begin.",
                _schedule(progress=lambda step, begin, end: step / end)),
        Mistake("no-initial", "The schedule starts at initial, not at 0.", _schedule(use_initial=False)),
        Mistake("density", "This is the density, 1 - sparsity; return the share that is zero.",
                _schedule(last=lambda sparsity: 1 - sparsity)),
    ),
    hints=(
        "What part of the way is done? It is 0 at begin, 1 at end. What part is left?",
        "done = (step - begin) / (end - begin), held between 0 and 1 by min and max.",
        "done = min(1, max(0, ...))\nreturn final + (initial - final) * (...) ** 3",
    ),
)  # fmt: skip


# --- a step that keeps the mask -----------------------------------------------------------------------


def trained_with_masks(student: Any, case: Case) -> dict[str, Any]:
    """Three steps of the student on a small network whose optimizer already has momentum: losses and weights."""
    weights, masks, inputs, targets = case.args
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    hidden, columns = weights["0.weight"].shape
    model = nn.Sequential(nn.Linear(columns, hidden), nn.Tanh(), nn.Linear(hidden, weights["2.weight"].shape[0]))
    model.load_state_dict(weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    losses = [float(student(model, masks, optimizer, inputs, targets)) for _ in range(3)]
    return {"losses": losses} | {name: model.get_parameter(name).detach() for name in names}


def masked_step(
    model: nn.Module, masks: Weights, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor
) -> float:
    """One step of training after which the masked weights are zero again."""
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(inputs), targets)
    loss.backward()
    optimizer.step()
    for name, mask in masks.items():
        weight = model.get_parameter(name).data
        weight[~mask] = 0.0
    return loss.item()


def _step(
    zero: bool = True,
    before: bool = False,
    after: bool = True,
    gradients: bool = False,
    flip: bool = False,
    update: bool = True,
    biases: bool = False,
    anew: bool = False,
    only_first: bool = False,
    guarded: bool = True,
    returns: bool = True,
) -> Any:
    def apply(model: nn.Module, masks: Weights) -> None:
        for name, mask in list(masks.items())[: 1 if only_first else None]:
            weight = model.get_parameter(name)
            if anew:
                mask = _ranked(weight.detach(), float((~mask).float().mean()))
            if guarded:
                weight.data *= mask != flip
            else:
                weight.mul_(mask)  # the mistake: a leaf that needs a gradient
            if biases:
                model.get_parameter(name.replace("weight", "bias")).data.zero_()

    def step(
        model: nn.Module, masks: Weights, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor
    ) -> Any:
        if zero:
            optimizer.zero_grad()
        if before:
            apply(model, masks)
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        if gradients:
            for name, mask in masks.items():
                gradient = model.get_parameter(name).grad
                assert gradient is not None
                gradient *= mask
        if update:
            optimizer.step()
        if after:
            apply(model, masks)
        return loss.item() if returns else None

    return step


def _step_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for columns, hidden, labels, note in (
        (5, 6, 2, "half of the weights are pruned"),
        (4, 8, 3, "two thirds"),
        (6, 5, 2, "a third"),
    ):
        weights = {
            "0.weight": _normal(rng, hidden, columns),
            "0.bias": 0.5 * _normal(rng, hidden),
            "2.weight": _normal(rng, labels, hidden),
            "2.bias": 0.5 * _normal(rng, labels),
        }
        share = {"half of the weights are pruned": 1 / 2, "two thirds": 2 / 3, "a third": 1 / 3}[note]
        masks = {}
        for name in ("0.weight", "2.weight"):
            # The mask is drawn, so that it is not the one a magnitude threshold would give.
            size = weights[name].numel()
            kept = np.ones(size, dtype=bool)
            kept[rng.permutation(size)[: max(2, round(share * size))]] = False
            masks[name] = torch.tensor(kept).view_as(weights[name])
        targets = torch.tensor([i % labels for i in range(9)])
        cases.append(Case((weights, masks, _normal(rng, 9, columns), targets), note=note))
    return cases  # fmt: skip


STEP = Exercise(
    id="pruning.masked_step",
    points=3,
    title="A step that keeps the mask",
    cases=_step_cases,
    reference=masked_step,
    compare=Compare(rtol=1e-4, atol=1e-5),
    drive=trained_with_masks,
    also_right=(_step(), _step(before=True), _step(gradients=True)),
    mistakes=(
        Mistake("mask-lost", "The mask is lost after the optimizer's step: the weights were zero in the forward pass, and "
                "the step moved them. Apply the masks after optimizer.step().", _step(before=True, after=False)),
        Mistake("no-mask", "You never apply the masks: the first step brings all pruned weights back.", _step(after=False)),
        Mistake("gradients", "Masked gradients are not enough: the optimizer's momentum from earlier steps still moves "
                "pruned weights. Mask the weights themselves after the step.", _step(gradients=True, after=False)),
        Mistake("no-zero-grad", "The gradients of the step before are still there; begin with optimizer.zero_grad().",
                _step(zero=False)),
        Mistake("inverted", "The mask is turned round: True means that a weight stays.", _step(flip=True)),
        Mistake("no-update", "The weights never change: optimizer.step() is missing.", _step(update=False)),
        Mistake("biases", "You set biases to zero; the masks name the matrices that are pruned, and nothing else.",
                _step(biases=True)),
        Mistake("anew", "You choose the masks anew by magnitude; in this step the given ones hold.", _step(anew=True)),
        Mistake("one-matrix", "Only the first matrix is masked; go through all items of masks.", _step(only_first=True)),
        Mistake("no-guard", "torch refuses to change a parameter in place while it records gradients; do it inside "
                "a with torch.no_grad() block.", _step(guarded=False)),
        Mistake("no-return", "Nothing is returned; give back the loss as a number, loss.item().", _step(returns=False)),
    ),
    hints=(
        "An ordinary step has four lines: zero_grad, loss, backward, step. What must be repaired after the fourth?",
        "model.get_parameter(name) is the weight that a mask belongs to; weight.mul_(mask) changes it in place.",
        "optimizer.zero_grad()\nloss = functional.cross_entropy(model(inputs), targets)\n...\n"
        "with torch.no_grad():\n    for name, mask in masks.items():\n        ...\nreturn loss.item()",
    ),
)  # fmt: skip


# --- head importance ----------------------------------------------------------------------------------


def head_importance(context: Tensor, gradient: Tensor) -> Tensor:
    """Mean over texts of |∂L/∂gate|, the gates differentiated by autograd in the loss's linear approximation."""
    gates = torch.ones(context.shape[0], context.shape[2], requires_grad=True)  # (batch, heads)
    loss = (gates[:, None, :, None] * context * gradient).sum()
    loss.backward()
    assert gates.grad is not None
    return gates.grad.abs().mean(dim=0)


def _importance(
    product: Callable[[Tensor, Tensor], Tensor] = lambda c, g: c * g,
    inner: Callable[[Tensor], Tensor] = lambda x: x,
    per_text: Callable[[Tensor], Tensor] = lambda x: x.sum(dim=(1, 3)),
    absolute: Callable[[Tensor], Tensor] = torch.abs,
    over_texts: Callable[[Tensor], Tensor] = lambda x: x.mean(dim=0),
    last: Callable[[Tensor], Tensor] = lambda x: x,
) -> Any:
    def importance(context: Tensor, gradient: Tensor) -> Tensor:
        return last(over_texts(absolute(per_text(inner(product(context, gradient))))))  # (heads,)

    return importance


def _importance_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for batch, length, heads, size in ((4, 3, 3, 2), (5, 6, 4, 3), (3, 2, 2, 5)):
        shape = (batch, length, heads, size)
        note = f"{batch} texts, {length} tokens, {heads} heads"
        cases.append(Case((_normal(rng, *shape), _normal(rng, *shape)), note=note))
    return cases


IMPORTANCE = Exercise(
    id="pruning.head_importance",
    points=3,
    title="Head importance by gradient",
    cases=_importance_cases,
    reference=head_importance,
    compare=Compare(rtol=1e-4, atol=1e-5),
    also_right=(_importance(),),
    mistakes=(
        Mistake("no-abs", "The absolute value is missing: a head that helps one text and harms another would count as "
                "useless.", _importance(absolute=lambda x: x)),
        Mistake("abs-late", "You average over the texts first and take the absolute value then: texts that a head helps "
                "and texts that it harms cancel. Take it per text.",
                _importance(absolute=lambda x: x, last=torch.abs)),
        Mistake("abs-early", "You take the absolute value of every product before you add them up; the sum over "
                "positions and dimensions is the derivative, so it comes first.", _importance(inner=torch.abs)),
        Mistake("abs-position", "You take the absolute value per position; add up all positions of a text first.",
                _importance(per_text=lambda x: x.sum(dim=3).abs().sum(dim=1))),
        Mistake("gradient-only", "This is the size of the gradient alone; multiply by what the head put out.",
                _importance(product=lambda c, g: g)),
        Mistake("output-only", "This is the size of the head's output alone; a large output may not matter to the loss. "
                "Multiply by the gradient.", _importance(product=lambda c, g: c)),
        Mistake("sum", "You add up the texts; importance is their mean, so that it does not depend on how many there "
                "are.", _importance(over_texts=lambda x: x.sum(dim=0))),
        Mistake("mean-inside", "You average over positions and dimensions; the derivative along the gate is their sum.",
                _importance(per_text=lambda x: x.mean(dim=(1, 3)))),
        Mistake("squares", "You square where the absolute value belongs.", _importance(absolute=torch.square)),
        Mistake("per-text", "This still has one row a text; average over the texts.",
                _importance(over_texts=lambda x: x)),
    ),
    hints=(
        "Which of the four dimensions must be summed before the absolute value, and which averaged after it?",
        "(context * gradient) is (batch, length, heads, d_head). Sum over length and d_head: one slope a text and head.",
        "slope = (context * gradient).sum(dim=(1, 3))  # (batch, heads)\nreturn ...",
    ),
)  # fmt: skip


# --- neurons ------------------------------------------------------------------------------------------


def smaller_network(student: Any, case: Case) -> dict[str, Any]:
    """The shapes of the student's matrices and, where they fit together, what the smaller network computes."""
    up, up_bias, down, importance, keep, x = case.args
    new_up, new_bias, new_down = student(up, up_bias, down, importance, keep)
    shapes = {"up": tuple(new_up.shape), "up_bias": tuple(new_bias.shape), "down": tuple(new_down.shape)}
    fits = new_up.shape[:1] == new_bias.shape == new_down.shape[1:] and new_up.shape[1] == x.shape[1]
    output = functional.gelu(x @ new_up.T + new_bias) @ new_down.T if fits else "the matrices do not fit together"
    return {"shapes": shapes, "output": output}


def remove_neurons(
    up: Tensor, up_bias: Tensor, down: Tensor, importance: Tensor, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices with only the rows and columns of the most important neurons."""
    stay = importance.argsort(descending=True)[:keep].sort().values
    return up.index_select(0, stay), up_bias.index_select(0, stay), down.index_select(1, stay)


def _neurons(
    choose: Callable[[Tensor, int], Tensor] = lambda importance, keep: importance.topk(keep).indices,
    rows: Callable[[Tensor, Tensor], Tensor] = lambda up, stay: up[stay],
    bias: Callable[[Tensor, Tensor], Tensor] = lambda b, stay: b[stay],
    columns: Callable[[Tensor, Tensor], Tensor] = lambda down, stay: down[:, stay],
) -> Any:
    def remove(
        up: Tensor, up_bias: Tensor, down: Tensor, importance: Tensor, keep: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        stay = choose(importance, keep)
        return rows(up, stay), bias(up_bias, stay), columns(down, stay)

    return remove


def _zeroed(up: Tensor, up_bias: Tensor, down: Tensor, importance: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    mask = torch.zeros_like(importance).index_fill(0, importance.topk(keep).indices, 1.0)
    return up * mask[:, None], up_bias * mask, down * mask


def _neuron_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for d, neurons, keep, note in ((10, 9, 5, "5 of 9 stay"), (11, 10, 3, "3 of 10 stay"), (13, 12, 8, "8 of 12 stay")):
        up, down = _normal(rng, neurons, d), _normal(rng, d, neurons)
        # Strictly different importances, in an order that is neither rising nor falling.
        order = rng.permutation(neurons)
        while (np.diff(order) > 0).all() or sorted(order.tolist())[:keep] == sorted(order[:keep].tolist()):
            order = rng.permutation(neurons)
        importance = torch.tensor((order + rng.uniform(0.1, 0.9, neurons)) / neurons, dtype=torch.float32)
        x = _normal(rng, 3, d)
        cases.append(Case((up, _normal(rng, neurons), down, importance, keep, x), note=note))
    return cases


NEURONS = Exercise(
    id="pruning.remove_neurons",
    points=3,
    title="Removing neurons for real",
    cases=_neuron_cases,
    reference=remove_neurons,
    compare=Compare(rtol=1e-4, atol=1e-5),
    drive=smaller_network,
    also_right=(_neurons(),),
    mistakes=(
        Mistake("down-whole", "The rows of up are gone, but down still has all its columns: the two matrices no longer fit. "
                "Column n of down reads neuron n.", _neurons(columns=lambda down, stay: down)),
        Mistake("down-rows", "You took rows of down; its rows are the outputs. Its columns belong to the neurons.",
                _neurons(columns=lambda down, stay: down[stay])),
        Mistake("bias-whole", "up_bias still has all neurons; each removed neuron takes its bias with it.",
                _neurons(bias=lambda b, stay: b)),
        Mistake("bias-zero", "The biases of the neurons that stay are lost.",
                _neurons(bias=lambda b, stay: torch.zeros(len(stay)))),
        Mistake("up-columns", "You cut the columns of up, its inputs; a neuron is a row of up.",
                _neurons(rows=lambda up, stay: up[:, stay])),
        Mistake("smallest", "You keep the least important neurons; the most important ones stay.",
                _neurons(choose=lambda importance, keep: (-importance).topk(keep).indices)),
        Mistake("count", "You remove keep neurons; keep is how many stay.",
                _neurons(choose=lambda importance, keep: importance.topk(len(importance) - keep).indices)),
        Mistake("one-more", "One neuron too many stays: exactly keep of them.",
                _neurons(choose=lambda importance, keep: importance.topk(keep + 1).indices)),
        Mistake("one-less", "One neuron too few stays: exactly keep of them.",
                _neurons(choose=lambda importance, keep: importance.topk(keep - 1).indices)),
        Mistake("first", "You keep the first neurons, whatever their importance.",
                _neurons(choose=lambda importance, keep: torch.arange(keep))),
        Mistake("two-orders", "Rows and columns stand in different orders: the same list of neurons must cut up, up_bias "
                "and down.", _neurons(columns=lambda down, stay: down[:, stay.flip(0)])),
        Mistake("zeroed", "You set the neurons to zero; the matrices are as large as before, and as slow. Take the rows "
                "and columns out.", _zeroed),
    ),
    hints=(
        "A neuron has three parts: a row of up, an entry of up_bias, a column of down.",
        "importance.topk(keep).indices are the neurons that stay. One list of them cuts all three.",
        "stay = importance.topk(keep).indices\nreturn up[stay], ..., down[:, ...]",
    ),
)  # fmt: skip


# --- heads --------------------------------------------------------------------------------------------


def remove_heads(
    qkv: Tensor, output: Tensor, there: list[int], remove: list[int], d_head: int
) -> tuple[Tensor, Tensor, list[int]]:
    """Matrices and list without some heads: every row of a head carries the head's number, and is asked by it."""
    number = torch.tensor(there).repeat_interleave(d_head)  # (heads · d_head,)
    stays = ~torch.isin(number, torch.tensor(remove))
    return qkv[:, stays], output[:, stays], [head for head in there if head not in remove]


def _positions_left(there: list[int], remove: list[int]) -> list[int]:
    return [i for i, head in enumerate(there) if head not in remove]


def _numbers_left(there: list[int], remove: list[int]) -> list[int]:
    return [head for head in there if head not in remove]


def _heads(
    position: Callable[[list[int], list[int]], list[int]] = _positions_left,
    block: Callable[[int, int, int], list[int]] = lambda i, heads, size: list(range(i * size, (i + 1) * size)),
    qkv_cut: Callable[[Tensor, list[int]], Tensor] = lambda qkv, rows: qkv[:, rows],
    output_cut: Callable[[Tensor, list[int]], Tensor] = lambda output, rows: output[:, rows],
    left: Callable[[list[int], list[int]], list[int]] = _numbers_left,
) -> Any:
    def remove_(
        qkv: Tensor, output: Tensor, there: list[int], remove: list[int], d_head: int
    ) -> tuple[Tensor, Tensor, list[int]]:
        rows = [row for i in position(there, remove) for row in block(i, len(there), d_head)]
        return qkv_cut(qkv, rows), output_cut(output, rows), left(there, remove)

    return remove_


def _only_query(qkv: Tensor, rows: list[int]) -> Tensor:
    return torch.stack([qkv[0, rows], qkv[1, : len(rows)], qkv[2, : len(rows)]])


def _head_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for heads, gone, remove, size, note in (
        (4, (), 2, 3, "the first round: nothing is gone yet"),
        (5, (0,), 1, 2, "the second round: head 0 is gone already"),
        (6, (0, 2), 2, 3, "two heads are gone already"),
    ):
        d, there = heads * size, [head for head in range(heads) if head not in gone]
        inner = len(there) * size
        # The last head stays: the first rows of a matrix are then never the right ones.
        wanted = sorted(rng.choice(there[:-1], remove, replace=False).tolist())
        qkv, output = _normal(rng, 3, inner, d), _normal(rng, d, inner)
        cases.append(Case((qkv, output, there, wanted, size), note=note))
    return cases


HEADS = Exercise(
    id="pruning.remove_heads",
    points=3,
    title="Removing heads, in rounds",
    cases=_head_cases,
    reference=remove_heads,
    also_right=(_heads(),),
    mistakes=(
        Mistake("not-renumbered", "You take a head's number for its position. After a first round they differ: there[i] is "
                "the number of the head at position i.",
                _heads(position=lambda there, remove: [i for i in range(len(there)) if i not in remove])),
        Mistake("keeps-removed", "You keep the heads that should go.",
                _heads(position=lambda there, remove: [i for i, head in enumerate(there) if head in remove])),
        Mistake("one-row", "You take one row for each head; a head is a block of d_head rows.",
                _heads(block=lambda i, heads, size: [i])),
        Mistake("interleaved", "You take every so-many-th row; the rows of a head stand together, from i * d_head to "
                "(i + 1) * d_head.", _heads(block=lambda i, heads, size: [i + heads * j for j in range(size)])),
        Mistake("output-whole", "The output matrix still has the columns of the removed heads; it no longer fits.",
                _heads(output_cut=lambda output, rows: output)),
        Mistake("output-rows", "You cut rows of the output matrix; its columns belong to the heads, its rows are the "
                "model's dimensions.", _heads(output_cut=lambda output, rows: output[rows])),
        Mistake("query-only", "Only the query matrix lost the right rows; key and value have the same heads.",
                _heads(qkv_cut=_only_query)),
        Mistake("zeroed", "The heads are set to zero and still there; take their rows and columns out.",
                _heads(qkv_cut=lambda qkv, rows: qkv * torch.isin(torch.arange(qkv.shape[1]), torch.tensor(rows))[:, None],
                       output_cut=lambda output, rows: output
                       * torch.isin(torch.arange(output.shape[1]), torch.tensor(rows)))),
        Mistake("list-old", "The list still names the removed heads; return the ones that are left.",
                _heads(left=lambda there, remove: list(there))),
        Mistake("list-positions", "The list holds positions; keep the heads' own numbers, or the next round is lost.",
                _heads(left=lambda there, remove: list(range(len(there) - len(remove))))),
    ),
    hints=(
        "First find the positions that stay: go through there with enumerate.",
        "The head at position i has the rows from i * d_head to (i + 1) * d_head of q, k and v, and those columns of output.",
        "stay = [i for i, head in enumerate(there) if ...]\nrows = [i * d_head + j for i in stay for j in range(d_head)]\n"
        "return qkv[:, rows], output[...], [there[i] for i in stay]",
    ),
)  # fmt: skip


# --- two of four --------------------------------------------------------------------------------------


def two_of_four(weight: Tensor) -> Tensor:
    """The two largest of each four, by ranks within the four."""
    fours = weight.abs().reshape(-1, 4)
    return (fours.argsort(dim=1).argsort(dim=1) >= 2).reshape(weight.shape)


def _pattern(
    score: Callable[[Tensor], Tensor] = torch.abs, stay: int = 2, largest: bool = True, columns: bool = False
) -> Any:
    def pattern(weight: Tensor) -> Tensor:
        matrix = weight.T if columns else weight
        fours = score(matrix).reshape(-1, 4)
        mask = torch.zeros_like(fours, dtype=torch.bool).scatter(1, fours.topk(stay, largest=largest).indices, True)
        mask = mask.reshape(matrix.shape)
        return mask.T.contiguous() if columns else mask

    return pattern


def _strided(weight: Tensor) -> Tensor:
    rows, n = weight.shape
    moved = weight.reshape(rows, 4, n // 4).transpose(1, 2).reshape(rows, n)
    return two_of_four(moved).reshape(rows, n // 4, 4).transpose(1, 2).reshape(rows, n)


def _half_of_row(weight: Tensor) -> Tensor:
    return torch.stack([_ranked(row, 0.5) for row in weight])


def _half_of_all(weight: Tensor) -> Tensor:
    return _ranked(weight, 0.5)


def _pattern_cases(rng: np.random.Generator) -> list[Case]:
    shapes = ((4, 12), (8, 8), (12, 16))
    return [Case((_normal(rng, *shape),), note=f"{shape[0]} rows of {shape[1]}") for shape in shapes]


PATTERN = Exercise(
    id="pruning.two_of_four",
    points=2,
    title="The 2:4 pattern",
    cases=_pattern_cases,
    reference=two_of_four,
    also_right=(_pattern(),),
    mistakes=(
        Mistake("columns", "You group down the columns; the four neighbors stand in one row.", _pattern(columns=True)),
        Mistake("row-half", "Half of each row stays, but not two of each four: some fours keep three or one.",
                _half_of_row),
        Mistake("half", "Half of the matrix stays, but not two of each four.", _half_of_all),
        Mistake("smallest", "You keep the two smallest of each four.", _pattern(largest=False)),
        Mistake("no-abs", "You compare with the sign; take magnitudes.", _pattern(score=lambda w: w)),
        Mistake("one", "One of each four stays; the pattern keeps two.", _pattern(stay=1)),
        Mistake("three", "Three of each four stay; the pattern keeps two.", _pattern(stay=3)),
        Mistake("strided", "A group of yours is spread over the row; the four are neighbors: columns 0 to 3, 4 to 7, and "
                "so on.", _strided),
        Mistake("float", "This mask is numbers; give booleans, True where a weight stays.",
                lambda weight: two_of_four(weight).float()),
        Mistake("weights", "This is the pruned matrix; return the mask.", lambda weight: weight * two_of_four(weight)),
    ),
    hints=(
        "Reshape the matrix so that each row holds one group of four.",
        "topk(2, dim=1).indices says which two of each four stay; scatter_ writes True there.",
        "fours = weight.abs().reshape(-1, 4)\nmask = torch.zeros_like(fours, dtype=torch.bool)\n"
        "mask.scatter_(1, ..., True)\nreturn mask.reshape(...)",
    ),
)  # fmt: skip

EXERCISES = (LAYER, GLOBAL, CUBIC, STEP, NEURONS, IMPORTANCE, HEADS, PATTERN)
