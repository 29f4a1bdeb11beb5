"""Exercises of lab 04: losses with their gradients, and the update rules of five optimizers.

References are torch's own: its losses, autograd, finite differences, and ``torch.optim`` with the state put in.
An update rule is a pure function of one step; its drive takes several steps with two parameters that start from
the very same zeros, so that a rule which changes them in place is found out.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pangu_lab.exercises.engine import Case, Compare, Exercise, Mistake

IGNORED = -100  # torch's label for a position that does not count
OPTIMIZERS = ("SGD", "Adagrad", "RMSprop", "Adam", "AdamW", "NAdam", "RAdam", "Adamax")


def _normal(rng: np.random.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(rng.normal(size=shape), dtype=dtype)


# --- cross-entropy ----------------------------------------------------------------------------------


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Mean of -log p_y of logits ``z`` (n, C) and labels ``y`` (n,), by torch."""
    return functional.cross_entropy(z, y)


def _of_label(log_p: Tensor, y: Tensor) -> Tensor:
    return log_p[torch.arange(len(y)), y]


def _cross_entropy_less(shift: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy by logits less a shift; which shifts are safe is half of the exercise."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        z = z - shift(z)
        return -_of_label(z - z.exp().sum(-1, keepdim=True).log(), y).mean()

    return loss


def _cross_entropy_with(finish: Callable[[Tensor, Tensor], Tensor], dim: int = -1) -> Callable[[Tensor, Tensor], Any]:
    """``finish(log p, y)`` on the right logarithms."""
    return lambda z, y: finish(torch.log_softmax(z, dim), y)


def _labels(rng: np.random.Generator, rows: int, classes: int) -> Tensor:
    """Labels in which the classes 0 and 2 certainly occur: on class 0, wrong losses hide."""
    drawn = np.concatenate([[0, 2], rng.integers(0, classes, rows - 2)])
    return torch.tensor(rng.permutation(drawn))


def _cross_entropy_cases(rng: np.random.Generator) -> list[Case]:
    rows, classes = int(rng.integers(4, 6)), 3
    y = _labels(rng, rows, classes)
    one_far = _normal(rng, rows, classes)
    one_far[0] += 1e4  # its neighbors stay near 0: what is safe for one row is not for all
    sure = _normal(rng, rows, classes)
    sure[1, (int(y[1]) + 1) % classes] += 1e4  # certain of a wrong class: p of the label is below every float
    return [
        Case((_normal(rng, rows, classes), y), note="small logits"),
        Case((one_far, y), note="one row near 10,000, the others near 0"),
        Case((_normal(rng, rows, classes) - 1e4, y), note="all near −10,000"),
        Case((sure, y), note="one row is certain of a wrong class"),
    ]


CROSS_ENTROPY = Exercise(
    id="optimization.cross_entropy",
    points=2,
    title="Cross-entropy that does not overflow",
    cases=_cross_entropy_cases,
    reference=cross_entropy,
    forbidden=("cross_entropy", "log_softmax", "nll_loss", "logsumexp", "CrossEntropyLoss", "LogSoftmax", "NLLLoss"),
    mistakes=(
        Mistake("overflow", "exp(10000) is inf, and exp(−10000) is 0 with the logarithm −∞: your loss is inf or nan. "
                "Subtract the largest logit of each row first.", _cross_entropy_less(lambda z: 0.0)),
        Mistake("largest-of-all", "You subtract the largest logit of the whole batch: a row far below it becomes log 0. "
                "Take the largest of each row: z.amax(-1, keepdim=True).", _cross_entropy_less(lambda z: z.max())),
        Mistake("log-of-softmax", "The softmax is safe, its logarithm is not: a p that rounds to 0 gives −∞. Never "
                "build p; subtract log Σ exp from the logits.",
                lambda z, y: -_of_label(torch.softmax(z, -1).log(), y).mean()),
        Mistake("log-plus-small", "A small number inside the logarithm hides the overflow: the loss can never pass "
                "18 then, and its gradient dies just where the model is most wrong.",
                lambda z, y: -_of_label((torch.softmax(z, -1) + 1e-8).log(), y).mean()),
        Mistake("sum", "You add up the losses; divide by the number of rows, or a larger batch means larger steps.",
                _cross_entropy_with(lambda log_p, y: -_of_label(log_p, y).sum())),
        Mistake("all-entries", "You divide by all entries of z; the mean goes over the rows.",
                _cross_entropy_with(lambda log_p, y: -_of_label(log_p, y).sum() / log_p.numel())),
        Mistake("all-classes", "You average −log p over all classes; only the label's counts.",
                _cross_entropy_with(lambda log_p, y: -log_p.mean())),
        Mistake("sign", "The sign is wrong: log p is below 0, and a loss of −log p is above.",
                _cross_entropy_with(lambda log_p, y: _of_label(log_p, y).mean())),
        Mistake("scalar", "This is the formula with y as a number, −mean(y · log p): rows of class 0 get no loss at "
                "all. In the right formula y is a vector with a single 1; it picks log p of the label.",
                _cross_entropy_with(lambda log_p, y: -(y * _of_label(log_p, y)).mean())),
        Mistake("probability", "The logarithm is missing: this averages −p; the loss averages −log p.",
                _cross_entropy_with(lambda log_p, y: -_of_label(log_p, y).exp().mean())),
        Mistake("base-two", "These are bits; the natural logarithm is meant.",
                _cross_entropy_with(lambda log_p, y: -_of_label(log_p, y).mean() / np.log(2))),
        Mistake("best-class", "You take log p of the class that the model prefers; take the label's.",
                _cross_entropy_with(lambda log_p, y: -log_p.amax(-1).mean())),
        Mistake("over-rows", "Your softmax runs over the rows of the batch; the classes of one row must add up to 1.",
                _cross_entropy_with(lambda log_p, y: -_of_label(log_p, y).mean(), dim=0)),
        Mistake("not-normalized", "You pick the label's logit; the log Σ exp of its row is still to be subtracted.",
                lambda z, y: -_of_label(z, y).mean()),
        Mistake("each-row", "You return a loss for each row; average them.",
                _cross_entropy_with(lambda log_p, y: -_of_label(log_p, y))),
    ),
    hints=(
        "log p = z − log Σ exp(z), and any number may be taken off all logits of a row first. Which one is safe?",
        "z.amax(-1, keepdim=True) is the largest logit of each row; z[torch.arange(len(y)), y] picks the labels'.",
        "z = z - ...\nlog_p = z - ...\nreturn -log_p[torch.arange(len(y)), y].mean()",
    ),
)  # fmt: skip


# --- its gradient -----------------------------------------------------------------------------------


def cross_entropy_gradient(z: Tensor, y: Tensor) -> Tensor:
    """The gradient of the mean cross-entropy by the logits (n, C), by autograd."""
    variable = z.detach().clone().requires_grad_()
    functional.cross_entropy(variable, y).backward()
    assert variable.grad is not None
    return variable.grad


def _gradient_with(finish: Callable[[Tensor, Tensor], Tensor], dim: int = -1) -> Callable[[Tensor, Tensor], Tensor]:
    """``finish(p, one-hot labels)`` on the right probabilities."""
    return lambda z, y: finish(torch.softmax(z, dim), functional.one_hot(y, z.shape[-1]).to(z.dtype))


def _gradient_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for rows, classes, shift, note in ((4, 3, 0.0, "four rows"), (6, 4, 0.0, "six rows"), (5, 3, 1e4, "large logits")):
        z = _normal(rng, rows, classes)
        z[0] += shift
        cases.append(Case((z, _labels(rng, rows, classes)), note=note))
    return cases


GRADIENT = Exercise(
    id="optimization.cross_entropy_gradient",
    points=2,
    title="The gradient of cross-entropy",
    cases=_gradient_cases,
    reference=cross_entropy_gradient,
    forbidden=("backward", "grad", "vjp", "jacobian", "cross_entropy"),
    mistakes=(
        Mistake("no-batch", "The gradient is too large by the batch size: the loss is a mean over n rows, so divide "
                "by n.", _gradient_with(lambda p, one: p - one)),
        Mistake("all-entries", "You divide by all entries of z; the loss is a mean over the n rows only.",
                _gradient_with(lambda p, one: (p - one) / p.numel())),
        Mistake("classes", "You divide by the number of classes; divide by the number of rows.",
                _gradient_with(lambda p, one: (p - one) / p.shape[-1])),
        Mistake("sign", "The sign is wrong: this points downhill. The gradient is p minus the one-hot label.",
                _gradient_with(lambda p, one: (one - p) / len(p))),
        Mistake("no-label", "The one-hot label is missing: at the label's place the gradient is p − 1.",
                _gradient_with(lambda p, one: p / len(p))),
        Mistake("label-only", "Only the label's logit has a gradient here; the others push the loss up, too, by p.",
                _gradient_with(lambda p, one: (p - one) * one / len(p))),
        Mistake("inverse", "This is the derivative of −log p by p. Go on to the logits: p is a function of all of them.",
                _gradient_with(lambda p, one: -one / p / len(p))),
        Mistake("diagonal", "You multiply by p(1 − p), the softmax's derivative by its own logit alone. With all of "
                "them it cancels, and p minus one-hot remains.",
                _gradient_with(lambda p, one: (p - one) * p * (1 - p) / len(p))),
        Mistake("label-number", "You subtract the label's number from all classes; subtract 1 at its place.",
                _gradient_with(lambda p, one: (p - one.argmax(-1, keepdim=True)) / len(p))),
        Mistake("log", "You subtract from log p; it is p.", _gradient_with(lambda p, one: (p.log() - one) / len(p))),
        Mistake("over-rows", "Your softmax runs over the rows of the batch; each row's classes must add up to 1.",
                _gradient_with(lambda p, one: (p - one) / len(p), dim=0)),
        Mistake("overflow", "exp of a large logit is inf, and inf/inf is nan: subtract each row's largest first, or "
                "use torch.softmax.",
                lambda z, y: (z.exp() / z.exp().sum(-1, keepdim=True) - functional.one_hot(y, z.shape[-1])) / len(z)),
        Mistake("summed", "You add up the rows; each row keeps its own gradient, in the shape of z.",
                _gradient_with(lambda p, one: ((p - one) / len(p)).sum(0))),
    ),
    hints=(
        "Write the loss of one row as log Σ exp(z) − z_y, and derive each of the two terms by z_c.",
        "The first term gives p_c, the second 1 at the label and 0 elsewhere. Then think of the mean.",
        "p = torch.softmax(z, -1)\np[torch.arange(len(y)), y] -= ...\nreturn p / ...",
    ),
)  # fmt: skip


# --- the masked-language-model loss -----------------------------------------------------------------


def mlm_loss(z: Tensor, original: Tensor, corrupted: Tensor, selected: Tensor, mask_id: int) -> Tensor:
    """Mean loss over the selected positions, 0 without one: torch's cross-entropy with labels of −100 elsewhere."""
    labels = original.masked_fill(~selected, IGNORED)
    total = functional.cross_entropy(z.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / max(1, int(selected.sum()))


def _position_losses(z: Tensor, tokens: Tensor) -> Tensor:
    return -torch.log_softmax(z, -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _mean_or_zero(losses: Tensor) -> Tensor:
    return losses.mean() if losses.numel() else torch.tensor(0.0)


def _mlm_with(finish: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``finish(losses, original, corrupted, selected, mask_id)`` on the right loss (batch, length) of each position."""

    def loss(z: Tensor, original: Tensor, corrupted: Tensor, selected: Tensor, mask_id: int) -> Tensor:
        return finish(_position_losses(z, original), original, corrupted, selected, mask_id)

    return loss


def _mlm_wrong_targets(z: Tensor, original: Tensor, corrupted: Tensor, selected: Tensor, mask_id: int) -> Tensor:
    return _mean_or_zero(_position_losses(z, corrupted)[selected])


def _mean_of_texts(losses: Tensor, original: Tensor, corrupted: Tensor, selected: Tensor, mask_id: int) -> Tensor:
    counts = selected.sum(-1).clamp_min(1)
    return ((losses * selected).sum(-1) / counts).mean()


def _mlm_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    # Per text: how many selected positions are masked, replaced, left alone. Texts differ in their sums.
    for parts, note in (
        (((2, 1, 1), (1, 0, 0)), "two texts, five selected positions"),
        (((1, 0, 1), (1, 1, 1), (1, 0, 0)), "three texts"),
        (((1, 1, 1), (0, 0, 0)), "a text without a selected position"),
        (((0, 0, 0), (0, 0, 0)), "no position is selected"),
    ):
        length, vocabulary = 7, 6
        original = torch.tensor(rng.integers(0, vocabulary - 1, (len(parts), length)))
        corrupted, selected = original.clone(), torch.zeros(len(parts), length, dtype=torch.bool)
        for row, (masked, replaced, kept) in enumerate(parts):
            places = rng.permutation(length)[: masked + replaced + kept]
            selected[row, places] = True
            corrupted[row, places[:masked]] = vocabulary - 1
            for place in places[masked : masked + replaced]:
                shift = int(rng.integers(1, vocabulary - 1))
                corrupted[row, place] = (original[row, place] + shift) % (vocabulary - 1)
        z = _normal(rng, len(parts), length, vocabulary)
        cases.append(Case((z, original, corrupted, selected, vocabulary - 1), note=note))
    return cases


MLM = Exercise(
    id="optimization.mlm_loss",
    points=2,
    title="The masked-language-model loss",
    cases=_mlm_cases,
    reference=mlm_loss,
    mistakes=(
        Mistake("all-positions", "You average over all positions, also those that the model could read. The loss "
                "belongs to the selected ones.", _mlm_with(lambda losses, *_: losses.mean())),
        Mistake("divided-by-all", "You add up the right losses and divide by all positions; divide by the number of "
                "selected ones.", _mlm_with(lambda losses, o, c, selected, _: (losses * selected).mean())),
        Mistake("masked-only", "Only the masked positions count here. Selected are also those with a random token "
                "and those left as they were: 20 % of them.",
                _mlm_with(lambda losses, o, corrupted, s, mask_id: _mean_or_zero(losses[corrupted == mask_id]))),
        Mistake("changed-only", "You count the positions whose token was changed; the selected ones that were left "
                "alone count, too.",
                _mlm_with(lambda losses, original, corrupted, *_: _mean_or_zero(losses[corrupted != original]))),
        Mistake("corrupted-target", "You ask for the corrupted token, which the model can see; the target is the "
                "original.", _mlm_wrong_targets),
        Mistake("sum", "You add up the losses; divide by the number of selected positions.",
                _mlm_with(lambda losses, o, c, selected, _: (losses * selected).sum())),
        Mistake("mean-of-texts", "You average within each text and then over the texts: a position of a text with few "
                "of them weighs more. Divide the sum by the number of selected positions of the batch.",
                _mlm_with(_mean_of_texts)),
        Mistake("not-selected", "You took the positions that were not selected.",
                _mlm_with(lambda losses, o, c, selected, _: losses[~selected].mean())),
        Mistake("nan", "Without a selected position you get 0/0, and one nan spoils all weights; return 0 then.",
                _mlm_with(lambda losses, o, c, selected, _: losses[selected].mean())),
        Mistake("sign", "The sign is wrong: log p is below 0, the loss above.",
                _mlm_with(lambda losses, o, c, selected, _: -_mean_or_zero(losses[selected]))),
    ),
    hints=(
        "Which of the five inputs say where the loss counts, and which say what the right token is? Two are not needed.",
        "z[selected] has one row of logits for each selected position, original[selected] its label.",
        "if not selected.any():\n    return z.sum() * 0\nreturn cross_entropy(z[...], ...)",
    ),
)  # fmt: skip


# --- mean squared error -----------------------------------------------------------------------------


def mse_with_gradient(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """torch's mean squared error, and its gradient by finite differences: exact for a parabola."""
    loss = functional.mse_loss(prediction, target)
    gradient, h = torch.zeros_like(prediction), 0.5
    for place in np.ndindex(*prediction.shape):
        ends = []
        for side in (h, -h):
            moved = prediction.clone()
            moved[place] += side
            ends.append(functional.mse_loss(moved, target))
        gradient[place] = (ends[0] - ends[1]) / (2 * h)
    return loss, gradient


def _mse(
    loss: Callable[[Tensor], Tensor] = lambda d: (d**2).mean(),
    gradient: Callable[[Tensor], Any] = lambda d: 2 * d / d.numel(),
) -> Callable[[Tensor, Tensor], Any]:
    return lambda prediction, target: (loss(prediction - target), gradient(prediction - target))


def _mse_cases(rng: np.random.Generator) -> list[Case]:
    shapes = (((5,), "five numbers"), ((3, 4), "three rows of four"), ((2, 3, 2), "three axes"))
    return [
        Case((_normal(rng, *shape, dtype=torch.float64), _normal(rng, *shape, dtype=torch.float64)), note=note)
        for shape, note in shapes
    ]


MSE = Exercise(
    id="optimization.mse_with_gradient",
    points=2,
    title="Mean squared error and its gradient",
    cases=_mse_cases,
    reference=mse_with_gradient,
    forbidden=("mse_loss", "MSELoss", "backward", "grad"),
    mistakes=(
        Mistake("no-two", "The 2 of the derivative of d² is missing in the gradient.",
                _mse(gradient=lambda d: d / d.numel())),
        Mistake("no-count", "Your gradient belongs to the sum; the loss is a mean, so divide by the number of entries.",
                _mse(gradient=lambda d: 2 * d)),
        Mistake("rows", "You divide by the batch size only; the mean goes over all entries, so divide by "
                "prediction.numel().", _mse(gradient=lambda d: 2 * d / len(d))),
        Mistake("sign", "The sign of the gradient is wrong: it is 2 · (prediction − target) / n.",
                _mse(gradient=lambda d: -2 * d / d.numel())),
        Mistake("sum", "The loss is a sum; take the mean over all entries.", _mse(loss=lambda d: (d**2).sum())),
        Mistake("sum-both", "Loss and gradient fit each other, but belong to the sum; take the mean.",
                _mse(lambda d: (d**2).sum(), lambda d: 2 * d)),
        Mistake("half", "Loss and gradient fit each other, but a factor ½ is in both; the mean squared error has none.",
                _mse(lambda d: (d**2).mean() / 2, lambda d: d / d.numel())),
        Mistake("root", "You took the root of the loss; the mean of the squares is meant.",
                _mse(loss=lambda d: (d**2).mean().sqrt())),
        Mistake("absolute", "You average absolute differences; square them.", _mse(loss=lambda d: d.abs().mean())),
        Mistake("constant", "Your gradient forgets how far off the prediction is: only its sign is left.",
                _mse(gradient=lambda d: 2 * d.sign() / d.numel())),
        Mistake("scalar-gradient", "The gradient has one number for each entry of the prediction; do not average it.",
                _mse(gradient=lambda d: (2 * d).mean())),
        Mistake("loss-only", "Return two things: the loss and the gradient.",
                lambda prediction, target: ((prediction - target) ** 2).mean()),
    ),
    hints=(
        "n is the number of all entries. The derivative of (ŷ − y)² by ŷ is a product.",
        "Each entry of the prediction stands in one term of the sum only; prediction.numel() is n.",
        "d = prediction - target\nreturn (...).mean(), 2 * ... / ...",
    ),
)  # fmt: skip


# --- several steps of a rule ------------------------------------------------------------------------


def a_few_steps(student: Any, case: Case) -> Any:
    """Some steps of two parameters by one rule, ``student(theta, g, *state, [t,] *settings)``, t for Adam only.

    Both begin with the very same tensors of zeros. Gives what the rule returned after each step, for w and u.
    """
    settings = dict(case.kwargs)
    theta, gradients = list(settings.pop("theta")), settings.pop("gradients")
    names = [name for name in ("b", "s", "m", "v") if name in settings]
    zeros = [settings.pop(name) for name in names]
    states = [zeros for _ in theta]
    seen: dict[str, Any] = {}
    for t, pair in enumerate(gradients, start=1):
        for i, g in enumerate(pair):
            clock = [t] if "m" in names else []
            result = student(theta[i], g, *states[i], *clock, *settings.values())
            if not isinstance(result, (tuple, list)) or len(result) != 1 + len(names):
                return result
            theta[i], states[i] = result[0], list(result[1:])
            for name, value in zip(("theta", *names), result, strict=True):
                if not isinstance(value, torch.Tensor) or value.shape != g.shape:
                    return result
                seen.setdefault(f"{name} after step {t}", []).append(value.detach().clone())
    return {name: torch.cat(values) for name, values in seen.items()}  # w, then u


_UPHILL = "The sign of the update is wrong: this walks uphill."
_NO_EPS = "ε is missing: an entry that never got a gradient is 0/0, which is nan."
_IN_PLACE = ("You change theta in place (theta -= …), and your caller's weights with it; write theta = theta - … and "
             "return it.")  # fmt: skip
EXACT = Compare(rtol=1e-6, atol=1e-18)  # double precision: only rounding is forgiven, also where gradients are tiny


def _step_cases(state: tuple[str, ...], **ranges: tuple[float, float]) -> Callable[[np.random.Generator], list[Case]]:
    """Cases for ``a_few_steps``: usual gradients, tiny ones, and an entry that never gets any."""

    def cases(rng: np.random.Generator) -> list[Case]:
        drawn = []
        for size, idle, note in (
            (1.0, False, "two parameters, w and u"),
            (1e-6, False, "gradients near 1e-6"),
            (1.0, True, "the last entry never gets a gradient"),
        ):
            gradients = rng.normal(size=(2, 2, 2)) * size
            gradients += 0.3 * size * np.sign(gradients)  # none near zero by chance
            gradients[..., 1] *= not idle
            settings = {name: round(float(rng.uniform(*ends)), 3) for name, ends in ranges.items()}
            given = {
                "theta": _normal(rng, 2, 2, dtype=torch.float64),  # (parameter, entry)
                "gradients": torch.tensor(gradients),  # (step, parameter, entry)
                **{name: torch.zeros(2, dtype=torch.float64) for name in state},
                **settings,
                **({} if "b" in state else {"eps": 1e-8}),
            }
            given |= {"weight_decay": given.pop("weight_decay")} if "weight_decay" in given else {}  # behind eps
            drawn.append(Case(kwargs=given, note=note))
        return drawn

    return cases


def _one_torch_step(
    make: Callable[[list[Tensor]], torch.optim.Optimizer], theta: Tensor, g: Tensor, state: dict
) -> Any:
    """``theta`` after one step of an optimizer of torch that finds ``state`` as its own; the state changes in place."""
    parameter = theta.detach().clone().requires_grad_()
    optimizer = make([parameter])
    optimizer.state[parameter] = state
    parameter.grad = g.clone()
    optimizer.step()
    return parameter.detach()


# --- SGD with momentum ------------------------------------------------------------------------------


def sgd(theta: Tensor, g: Tensor, b: Tensor, lr: float, mu: float) -> tuple[Tensor, Tensor]:
    """One step of ``torch.optim.SGD`` with momentum ``mu`` and buffer ``b``: new theta, new b."""
    state = {"momentum_buffer": b.clone()}
    theta = _one_torch_step(lambda p: torch.optim.SGD(p, lr=lr, momentum=mu), theta, g, state)
    return theta, state["momentum_buffer"] if mu else g.clone()


def _sgd(
    gather: Callable[..., Any] = lambda b, g, mu: mu * b + g,
    move: Callable[..., Any] = lambda b, g, old, mu: b,
    give: Callable[..., Any] = lambda theta, b: (theta, b),
    rate: Callable[[float], float] = lambda lr: lr,
) -> Callable[..., Any]:
    """Momentum with one part replaced."""

    def rule(theta: Tensor, g: Tensor, b: Tensor, lr: float, mu: float) -> Any:
        new = gather(b, g, mu)
        return give(theta - rate(lr) * move(new, g, b, mu), new)

    return rule


def _rate_inside(sign: float) -> Callable[..., Any]:
    def rule(theta: Tensor, g: Tensor, b: Tensor, lr: float, mu: float) -> Any:
        b = mu * b + sign * lr * g
        return theta - sign * b, b

    return rule


def _sgd_shared(theta: Tensor, g: Tensor, b: Tensor, lr: float, mu: float) -> Any:
    b.mul_(mu).add_(g)
    return theta - lr * b, b


def _sgd_in_place(theta: Tensor, g: Tensor, b: Tensor, lr: float, mu: float) -> Any:
    b = mu * b + g
    theta -= lr * b
    return theta, b


SGD = Exercise(
    id="optimization.sgd",
    points=2,
    title="Gradient descent with momentum",
    cases=_step_cases(("b",), lr=(0.05, 0.4), mu=(0.5, 0.9)),
    reference=sgd,
    drive=a_few_steps,
    compare=EXACT,
    forbidden=OPTIMIZERS,
    mistakes=(
        Mistake("overwritten", "The momentum is overwritten with the last gradient; it gathers them: μ·b + g.",
                _sgd(lambda b, g, mu: g)),
        Mistake("only-momentum", "You multiply the gradient by μ as well; only the old momentum fades.",
                _sgd(lambda b, g, mu: mu * (b + g))),
        Mistake("never-fades", "The momentum never fades: μ belongs to the old momentum.", _sgd(lambda b, g, mu: b + g)),
        Mistake("mu-at-g", "μ stands at the gradient; it belongs to the old momentum.",
                _sgd(lambda b, g, mu: b + mu * g)),
        Mistake("average", "This is a moving average, with (1 − μ) at the gradient, as in Adam. Momentum adds the full "
                "gradient.", _sgd(lambda b, g, mu: mu * b + (1 - mu) * g)),
        Mistake("unused", "You gather the momentum, but move by the gradient alone.", _sgd(move=lambda b, g, old, mu: g)),
        Mistake("old-momentum", "You move by the old momentum; renew it first.", _sgd(move=lambda b, g, old, mu: old)),
        Mistake("nesterov", "This is Nesterov's momentum, g + μ·b. Right in itself, but plain momentum is asked.",
                _sgd(move=lambda b, g, old, mu: g + mu * b)),
        Mistake("mu-twice", "You multiply by μ again when you move; the momentum holds it already.",
                _sgd(move=lambda b, g, old, mu: mu * b)),
        Mistake("sign", _UPHILL, _sgd(move=lambda b, g, old, mu: -b)),
        Mistake("gathered-negative", "Your momentum gathers −g. Gather g, and subtract it when you move.",
                _sgd(lambda b, g, mu: mu * b - g, lambda b, g, old, mu: -b)),
        Mistake("rate-inside", "The learning rate is inside the momentum. That is the same only while the rate stays: "
                "with a schedule, old gradients would keep their old rate.", _rate_inside(1.0)),
        Mistake("velocity", "Your momentum is a velocity, μ·b − lr·g, as some books have it. With a schedule it is "
                "another method; here b gathers gradients, and lr comes in when you move.", _rate_inside(-1.0)),
        Mistake("no-rate", "The learning rate is missing.", _sgd(rate=lambda lr: 1.0)),
        Mistake("shared", "You change b in place. Two parameters that begin with the same zeros then share one "
                "momentum; return a new tensor: mu * b + g.", _sgd_shared),
        Mistake("in-place", _IN_PLACE, _sgd_in_place),
        Mistake("only-theta", "You return theta alone; the new momentum is needed for the next step: return theta, b.",
                _sgd(give=lambda theta, b: theta)),
        Mistake("exchanged", "theta comes first in the result, then b.", _sgd(give=lambda theta, b: (b, theta))),
    ),
    hints=(
        "Two lines. Which of them must come first?",
        "b_t = μ b_{t−1} + g_t, and then θ_t = θ_{t−1} − lr · b_t. Write b = …, not b *= ….",
        "b = mu * ... + ...\nreturn theta - ..., b",
    ),
)  # fmt: skip


# --- Adagrad ----------------------------------------------------------------------------------------


def adagrad(theta: Tensor, g: Tensor, s: Tensor, lr: float, eps: float) -> tuple[Tensor, Tensor]:
    """One step of ``torch.optim.Adagrad`` with sum ``s`` of squared gradients: new theta, new s."""
    state = {"step": torch.tensor(0.0), "sum": s.clone()}
    return _one_torch_step(lambda p: torch.optim.Adagrad(p, lr=lr, eps=eps), theta, g, state), state["sum"]


def _root_rule(
    gather: Callable[..., Any],
    root: Callable[..., Any] = lambda s, eps: s.sqrt() + eps,
    sign: float = 1.0,
    old: bool = False,
) -> Callable[..., Any]:
    """Adagrad and RMSProp in one: ``gather(s, g[, alpha])``, then a step of ``g / root``."""

    def rule(theta: Tensor, g: Tensor, s: Tensor, lr: float, *rest: float) -> Any:
        *alpha, eps = rest
        new = gather(s, g, *alpha)
        return theta - sign * lr * g / root(s if old else new, eps), new

    return rule


def _steps_astray(gather: Callable[..., Any]) -> tuple[Mistake, ...]:
    """What goes wrong after the squares were gathered, in Adagrad as in RMSProp."""
    return (
        Mistake("no-eps", _NO_EPS, _root_rule(gather, lambda s, eps: s.sqrt())),
        Mistake("not-divided", "The step is not divided by the root: this is plain gradient descent.",
                _root_rule(gather, lambda s, eps: 1.0)),
        Mistake("sign", _UPHILL, _root_rule(gather, sign=-1.0)),
    )  # fmt: skip


def _changes(gather: Callable[..., Any], what: str) -> Callable[..., Any]:
    """The right rule, but state or theta changes in place, or the state is not returned."""

    def rule(theta: Tensor, g: Tensor, s: Tensor, lr: float, *rest: float) -> Any:
        *alpha, eps = rest
        new = gather(s, g, *alpha)
        if what == "state":
            new = s.copy_(new)
        move = lr * g / (new.sqrt() + eps)
        if what == "theta":
            theta -= move
            return theta, new
        return theta - move if what == "none" else (theta - move, new)

    return rule


def _summed(s: Tensor, g: Tensor) -> Tensor:
    return s + g**2


ADAGRAD = Exercise(
    id="optimization.adagrad",
    points=2,
    title="Adagrad",
    cases=_step_cases(("s",), lr=(0.05, 0.4)),
    reference=adagrad,
    drive=a_few_steps,
    compare=EXACT,
    forbidden=OPTIMIZERS,
    mistakes=(
        Mistake("decayed", "Your sum decays: a moving average of squares is RMSProp. Adagrad forgets nothing: s + g².",
                _root_rule(lambda s, g: 0.9 * s + 0.1 * g**2)),
        Mistake("fading", "Your sum fades before it grows; Adagrad forgets nothing: s + g².",
                _root_rule(lambda s, g: 0.9 * s + g**2)),
        Mistake("overwritten", "Only the last gradient is in your sum; add its square to the old one.",
                _root_rule(lambda s, g: g**2)),
        Mistake("not-squared", "You add up gradients; add their squares.", _root_rule(lambda s, g: s + g)),
        Mistake("one-sum", "You add up the squares of all entries in one number; each entry has its own sum.",
                _root_rule(lambda s, g: s + (g**2).sum())),
        Mistake("mean-square", "You average the squares over the entries; each entry has its own sum.",
                _root_rule(lambda s, g: s + (g**2).mean())),
        Mistake("old-sum", "You divide by the root of the old sum, which is 0 at the first step; add g² first.",
                _root_rule(_summed, old=True)),
        Mistake("no-root", "You divide by the sum; divide by its root.", _root_rule(_summed, lambda s, eps: s + eps)),
        Mistake("eps-in-root", "ε stands under the root: with gradients of 1e-6 your steps are a hundredth of Adagrad's. "
                "Add it outside the root.", _root_rule(_summed, lambda s, eps: (s + eps).sqrt())),
        *_steps_astray(_summed),
        Mistake("shared", "You change s in place. Two parameters that begin with the same zeros then share one sum; "
                "return a new tensor: s + g**2.", _changes(_summed, "state")),
        Mistake("in-place", _IN_PLACE, _changes(_summed, "theta")),
        Mistake("only-theta", "You return theta alone; the new sum is needed for the next step: return theta, s.",
                _changes(_summed, "none")),
    ),
    hints=(
        "Every entry of theta has its own sum of squares. Does this step's gradient belong to it? Yes.",
        "s = s + g², and the step is lr · g / (√s + ε), entry by entry.",
        "s = s + ...\nreturn theta - lr * g / (... + eps), s",
    ),
)  # fmt: skip


# --- RMSProp ----------------------------------------------------------------------------------------


def rmsprop(theta: Tensor, g: Tensor, v: Tensor, lr: float, alpha: float, eps: float) -> tuple[Tensor, Tensor]:
    """One step of ``torch.optim.RMSprop`` with average ``v`` of squared gradients: new theta, new v."""
    state = {"step": torch.tensor(0.0), "square_avg": v.clone()}
    theta = _one_torch_step(lambda p: torch.optim.RMSprop(p, lr=lr, alpha=alpha, eps=eps), theta, g, state)
    return theta, state["square_avg"]


def _averaged(v: Tensor, g: Tensor, alpha: float) -> Tensor:
    return alpha * v + (1 - alpha) * g**2


RMSPROP = Exercise(
    id="optimization.rmsprop",
    points=2,
    title="RMSProp",
    cases=_step_cases(("v",), lr=(0.05, 0.4), alpha=(0.8, 0.97)),
    reference=rmsprop,
    drive=a_few_steps,
    compare=EXACT,
    forbidden=OPTIMIZERS,
    mistakes=(
        Mistake("sum", "You add up the squares, as Adagrad does; RMSProp averages: α·v + (1 − α)·g².",
                _root_rule(lambda v, g, alpha: v + g**2)),
        Mistake("weights-swapped", "α and 1 − α have changed places: the old average weighs α.",
                _root_rule(lambda v, g, alpha: (1 - alpha) * v + alpha * g**2)),
        Mistake("no-share", "1 − α is missing at g²: the two weights of an average add up to 1.",
                _root_rule(lambda v, g, alpha: alpha * v + g**2)),
        Mistake("overwritten", "Only the last gradient is in your average; α of the old one stays.",
                _root_rule(lambda v, g, alpha: (1 - alpha) * g**2)),
        Mistake("not-squared", "You average gradients; average their squares.",
                _root_rule(lambda v, g, alpha: alpha * v + (1 - alpha) * g)),
        Mistake("share-squared", "You square 1 − α together with g; only g is squared.",
                _root_rule(lambda v, g, alpha: alpha * v + ((1 - alpha) * g) ** 2)),
        Mistake("one-average", "You average over the entries, too; each entry has its own average.",
                _root_rule(lambda v, g, alpha: alpha * v + (1 - alpha) * (g**2).mean())),
        Mistake("old-average", "You divide by the root of the old average, which is 0 at the first step; renew v first.",
                _root_rule(_averaged, old=True)),
        Mistake("no-root", "You divide by the average of squares; divide by its root.",
                _root_rule(_averaged, lambda v, eps: v + eps)),
        Mistake("eps-in-root", "ε stands under the root: tiny gradients then hardly move a parameter. Add it outside "
                "the root.", _root_rule(_averaged, lambda v, eps: (v + eps).sqrt())),
        *_steps_astray(_averaged),
        Mistake("shared", "You change v in place. Two parameters that begin with the same zeros then share one "
                "average; return a new tensor.", _changes(_averaged, "state")),
        Mistake("in-place", _IN_PLACE, _changes(_averaged, "theta")),
        Mistake("only-theta", "You return theta alone; the new average is needed for the next step: return theta, v.",
                _changes(_averaged, "none")),
    ),
    hints=(
        "One line differs from Adagrad: the sum becomes a moving average.",
        "v = α · v + (1 − α) · g²; the two weights add up to 1.",
        "v = alpha * ... + (1 - alpha) * ...\nreturn theta - lr * g / (... + eps), v",
    ),
)  # fmt: skip


# --- Adam -------------------------------------------------------------------------------------------


def adam(
    theta: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, beta1: float, beta2: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Step ``t`` (from 1) of ``torch.optim.Adam`` with the moments ``m`` and ``v``: new theta, new m, new v."""
    state = {"step": torch.tensor(t - 1.0), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    theta = _one_torch_step(lambda p: torch.optim.Adam(p, lr=lr, betas=(beta1, beta2), eps=eps), theta, g, state)
    return theta, state["exp_avg"], state["exp_avg_sq"]


def _adam(
    first: Callable[..., Any] = lambda m, g, beta1: beta1 * m + (1 - beta1) * g,
    second: Callable[..., Any] = lambda v, g, beta2: beta2 * v + (1 - beta2) * g**2,
    clock: Callable[[int], tuple[float, float]] = lambda t: (t, t),
    step: Callable[..., Any] = lambda m_hat, v_hat, eps: m_hat / (v_hat.sqrt() + eps),
    give: Callable[..., Any] = lambda theta, m, v, m_hat, v_hat: (theta, m, v),
    swapped: bool = False,
) -> Callable[..., Any]:
    """Adam with one part replaced; a clock of infinity means no correction."""

    def rule(theta: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, *settings: float) -> Any:
        lr, beta1, beta2, eps = settings
        if swapped:
            beta1, beta2 = beta2, beta1
        m, v = first(m, g, beta1), second(v, g, beta2)
        for_m, for_v = clock(t)
        m_hat, v_hat = m / (1 - beta1**for_m), v / (1 - beta2**for_v)
        return give(theta - lr * step(m_hat, v_hat, eps), m, v, m_hat, v_hat)

    return rule


NEVER = float("inf")  # β to this power is 0: no bias correction
_SWAPPED = "β₁ and β₂ have changed places: β₁ belongs to m, the mean of the gradients, β₂ to v, that of the squares."
_NO_CORRECTION = ("Bias correction is missing: m and v begin at 0 and are too small at first, v more so, and your first "
                  "steps are too large. Divide by 1 − β₁ᵗ and 1 − β₂ᵗ.")  # fmt: skip
_CLOCK = ("You correct with t − 1, which is 0 at the first step: 1 − β⁰ is 0, and you divide by it. t counts from 1, "
          "so use it as it is.")  # fmt: skip
_EPS_IN_ROOT = ("ε stands under the root, √(v̂ + ε): with gradients of 1e-6 your steps are a hundredth of Adam's. It is "
                "√v̂ + ε.")  # fmt: skip
_EPS_HAT = ("You add ε to √v before the correction, TensorFlow's form: at the first steps its ε is many times as large. "
            "Correct v first.")  # fmt: skip


def _adam_eps_hat(theta: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, *settings: float) -> Any:
    lr, beta1, beta2, eps = settings
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    rate = lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
    return theta - rate * m / (v.sqrt() + eps), m, v


def _adam_shared(theta: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, *settings: float) -> Any:
    lr, beta1, beta2, eps = settings
    m.mul_(beta1).add_((1 - beta1) * g)
    v.mul_(beta2).add_((1 - beta2) * g**2)
    return theta - lr * m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps), m, v


def _adam_in_place(theta: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, *settings: float) -> Any:
    lr, beta1, beta2, eps = settings
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    theta -= lr * m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)
    return theta, m, v


ADAM = Exercise(
    id="optimization.adam",
    points=3,
    title="Adam",
    cases=_step_cases(("m", "v"), lr=(0.05, 0.4), beta1=(0.6, 0.8), beta2=(0.9, 0.98)),
    reference=adam,
    drive=a_few_steps,
    compare=EXACT,
    forbidden=OPTIMIZERS,
    mistakes=(
        Mistake("no-correction", _NO_CORRECTION, _adam(clock=lambda t: (NEVER, NEVER))),
        Mistake("m-only", "Only m is corrected; v is too small at first, too.", _adam(clock=lambda t: (t, NEVER))),
        Mistake("v-only", "Only v is corrected; m is too small at first, too.", _adam(clock=lambda t: (NEVER, t))),
        Mistake("previous-t", _CLOCK, _adam(clock=lambda t: (t - 1, t - 1))),
        Mistake("next-t", "You correct with t + 1; t counts from 1 already.", _adam(clock=lambda t: (t + 1, t + 1))),
        Mistake("first-t", "You divide by 1 − β at every step; it is 1 − βᵗ, which grows to 1.",
                _adam(clock=lambda t: (1, 1))),
        Mistake("swapped", _SWAPPED, _adam(swapped=True)),
        Mistake("eps-in-root", _EPS_IN_ROOT, _adam(step=lambda m_hat, v_hat, eps: m_hat / (v_hat + eps).sqrt())),
        Mistake("eps-hat", _EPS_HAT, _adam_eps_hat),
        Mistake("no-eps", _NO_EPS, _adam(step=lambda m_hat, v_hat, eps: m_hat / v_hat.sqrt())),
        Mistake("no-root", "You divide by v̂; divide by its root.",
                _adam(step=lambda m_hat, v_hat, eps: m_hat / (v_hat + eps))),
        Mistake("sign", _UPHILL, _adam(step=lambda m_hat, v_hat, eps: -m_hat / (v_hat.sqrt() + eps))),
        Mistake("m-overwritten", "m holds the last gradient only: the momentum is overwritten instead of accumulated.",
                _adam(first=lambda m, g, beta1: (1 - beta1) * g)),
        Mistake("m-sum", "m adds the full gradient; as an average it takes 1 − β₁ of it.",
                _adam(first=lambda m, g, beta1: beta1 * m + g)),
        Mistake("v-sum", "v adds the full square; as an average it takes 1 − β₂ of it.",
                _adam(second=lambda v, g, beta2: beta2 * v + g**2)),
        Mistake("v-not-squared", "v averages gradients; it averages their squares.",
                _adam(second=lambda v, g, beta2: beta2 * v + (1 - beta2) * g)),
        Mistake("corrected-state", "You return the corrected moments: at the next step they are corrected again. m̂ and "
                "v̂ live for one step only; return m and v.",
                _adam(give=lambda theta, m, v, m_hat, v_hat: (theta, m_hat, v_hat))),
        Mistake("exchanged", "m comes before v in the result.",
                _adam(give=lambda theta, m, v, m_hat, v_hat: (theta, v, m))),
        Mistake("shared", "You change m and v in place. Two parameters that begin with the same zeros then share "
                "them; return new tensors.", _adam_shared),
        Mistake("in-place", _IN_PLACE, _adam_in_place),
        Mistake("only-theta", "You return theta alone; the moments are needed for the next step: return theta, m, v.",
                _adam(give=lambda theta, m, v, m_hat, v_hat: theta)),
    ),
    hints=(
        "Momentum above, RMSProp below, each as an average; then both are corrected for having begun at 0.",
        "m_hat = m / (1 − β₁ᵗ), v_hat = v / (1 − β₂ᵗ). Keep m and v themselves for the next step.",
        "m = beta1 * m + ...\nv = beta2 * v + ...\nm_hat, v_hat = m / (1 - ...), v / (1 - ...)\n"
        "return theta - lr * ... / (... + eps), m, v",
    ),
)  # fmt: skip


# --- AdamW ------------------------------------------------------------------------------------------


def adamw(
    theta: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Step ``t`` (from 1) of ``torch.optim.AdamW`` with the moments ``m`` and ``v``: new theta, new m, new v."""
    state = {"step": torch.tensor(t - 1.0), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    theta = _one_torch_step(
        lambda p: torch.optim.AdamW(p, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay), theta, g, state
    )
    return theta, state["exp_avg"], state["exp_avg_sq"]


def _adamw(
    before: Callable[..., Any] = lambda theta, lr, decay: (1 - lr * decay) * theta,
    after: Callable[..., Any] = lambda theta, lr, decay: theta,
    gradient: Callable[..., Any] = lambda g, theta, decay: g,
    inner: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """AdamW with the decay at another place or another Adam inside."""
    step = inner or _adam()

    def rule(theta: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, *settings: float) -> Any:
        lr, *others, weight_decay = settings
        g = gradient(g, theta, weight_decay)
        moved, *state = step(before(theta, lr, weight_decay), g, m, v, t, lr, *others)
        return after(moved, lr, weight_decay), *state

    return rule


def _same(theta: Tensor, *_: float) -> Tensor:
    return theta


def _divided_decay(theta: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, *settings: float) -> Any:
    lr, beta1, beta2, eps, weight_decay = settings
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return theta - lr * (m_hat + weight_decay * theta) / (v_hat.sqrt() + eps), m, v


ADAMW = Exercise(
    id="optimization.adamw",
    points=2,
    title="Decoupled weight decay",
    cases=_step_cases(("m", "v"), lr=(0.05, 0.4), beta1=(0.6, 0.8), beta2=(0.9, 0.98), weight_decay=(0.1, 0.5)),
    reference=adamw,
    drive=a_few_steps,
    compare=EXACT,
    forbidden=OPTIMIZERS,
    mistakes=(
        Mistake("coupled", "The decay is coupled: λθ goes into the gradient, and is divided by the root with it, so "
                "weights with large gradients hardly decay. Shrink theta itself, before or beside the step.",
                _adamw(_same, gradient=lambda g, theta, decay: g + decay * theta)),
        Mistake("both", "The decay is there twice, in the gradient and at theta; only theta decays.",
                _adamw(gradient=lambda g, theta, decay: g + decay * theta)),
        Mistake("divided", "λθ stands next to m̂ and is divided by the root; it belongs outside the fraction.",
                _divided_decay),
        Mistake("no-rate", "The decay lacks the learning rate: theta is multiplied by 1 − lr·λ.",
                _adamw(lambda theta, lr, decay: (1 - decay) * theta)),
        Mistake("after", "You shrink theta after the step, and the step with it; the decay belongs to the old theta.",
                _adamw(_same, after=lambda theta, lr, decay: (1 - lr * decay) * theta)),
        Mistake("grows", "The sign of the decay is wrong: the weights grow.",
                _adamw(lambda theta, lr, decay: (1 + lr * decay) * theta)),
        Mistake("no-decay", "This is Adam; nothing decays.", _adamw(_same)),
        Mistake("constant", "You subtract the same amount from every weight; the decay is a share of it, λθ.",
                _adamw(lambda theta, lr, decay: theta - lr * decay)),
        Mistake("no-correction", _NO_CORRECTION, _adamw(inner=_adam(clock=lambda t: (NEVER, NEVER)))),
        Mistake("previous-t", _CLOCK, _adamw(inner=_adam(clock=lambda t: (t - 1, t - 1)))),
        Mistake("swapped", _SWAPPED, _adamw(inner=_adam(swapped=True))),
        Mistake("eps-in-root", _EPS_IN_ROOT,
                _adamw(inner=_adam(step=lambda m_hat, v_hat, eps: m_hat / (v_hat + eps).sqrt()))),
        Mistake("sign", _UPHILL,
                _adamw(inner=_adam(step=lambda m_hat, v_hat, eps: -m_hat / (v_hat.sqrt() + eps)))),
        Mistake("shared", "You change m and v in place. Two parameters that begin with the same zeros then share "
                "them; return new tensors.", _adamw(inner=_adam_shared)),
    ),
    hints=(
        "Two things happen to theta: it shrinks by a share of itself, and it takes Adam's step. They do not meet.",
        "Your adam does the step: hand it a theta that has shrunk already. The gradient stays as it is.",
        "theta = (1 - ...) * theta\nreturn adam(theta, ...)",
    ),
)  # fmt: skip

EXERCISES = (CROSS_ENTROPY, GRADIENT, MLM, MSE, SGD, ADAGRAD, RMSPROP, ADAM, ADAMW)
