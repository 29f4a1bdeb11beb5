"""Exercises of lab 10: soft labels, the losses of distillation, and how a student is made and chosen.

References come from torch's own divergence and cross-entropy, or from loops over single tokens. Losses are judged by
their value and by their gradient; a loss may not send a gradient into the teacher.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pangu_lab.exercises.engine import Case, Compare, Exercise, Mistake


def value_and_gradients(student: Any, case: Case) -> dict[str, Any]:
    """Call a loss(student's tensor, teacher's tensor, …); say its value, its gradient, and what reaches the teacher."""
    return _differentiated(student, case, of_student=(0,), of_teacher=(1,))


def value_and_gradients_of_pairs(student: Any, case: Case) -> dict[str, Any]:
    """The same for a loss(student's q, student's k, teacher's q, teacher's k, …)."""
    return _differentiated(student, case, of_student=(0, 1), of_teacher=(2, 3))


def _differentiated(
    loss_function: Any, case: Case, of_student: tuple[int, ...], of_teacher: tuple[int, ...]
) -> dict[str, Any]:
    given = list(case.args)
    for i in (*of_student, *of_teacher):
        given[i] = given[i].clone().requires_grad_()
    loss = loss_function(*given, **case.kwargs)
    if isinstance(loss, Tensor) and loss.requires_grad and loss.dim() == 0:
        loss.backward()
    leaks = [given[i].grad for i in of_teacher if given[i].grad is not None]
    return {
        "loss": loss.detach() if isinstance(loss, Tensor) else loss,
        "gradient of the student": [given[i].grad for i in of_student],
        "a gradient reaches the teacher": any(bool(gradient.ne(0).any()) for gradient in leaks),
    }


def _draw(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.tensor(rng.normal(0, scale, shape), dtype=torch.float32)


# --- soft labels ------------------------------------------------------------------------------------


def soft_labels(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities ``(batch, classes)`` of logits under a temperature, by torch."""
    return torch.softmax(logits / temperature, dim=-1)


def _hard(logits: Tensor, temperature: float) -> Tensor:
    return functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()


def _overflowing(logits: Tensor, temperature: float) -> Tensor:
    powers = torch.exp(logits / temperature)
    return powers / powers.sum(dim=-1, keepdim=True)


def _scaled_afterwards(logits: Tensor, temperature: float) -> Tensor:
    return logits.softmax(dim=-1) / temperature


def _softened_afterwards(logits: Tensor, temperature: float) -> Tensor:
    return (logits.softmax(dim=-1) / temperature).softmax(dim=-1)


def _soft_label_cases(rng: np.random.Generator) -> list[Case]:
    return [
        Case((_draw(rng, 3, 2, scale=2), float(rng.uniform(2, 4))), note="two classes"),
        Case((_draw(rng, 4, 5, scale=2), float(rng.uniform(4, 8))), note="five classes, a high temperature"),
        Case((_draw(rng, 4, 3, scale=1), float(rng.uniform(0.4, 0.7))), note="a temperature below 1 sharpens"),
        Case((_draw(rng, 2, 3, scale=1) + 400, float(rng.uniform(1.5, 2))), note="large logits: exp() alone overflows"),
    ]


SOFT_LABELS = Exercise(
    id="distillation.soft_labels",
    points=2,
    title="Soft labels",
    cases=_soft_label_cases,
    reference=soft_labels,
    mistakes=(
        Mistake("times", "You multiply by the temperature; that sharpens where it should soften. Divide the logits by it.",
                lambda z, t: torch.softmax(z * t, dim=-1)),
        Mistake("no-temperature", "The temperature is not used.", lambda z, t: torch.softmax(z, dim=-1)),
        Mistake("texts", "You normalize over the texts of the batch, dim=0; each text has its own distribution over "
                "the classes, dim=-1.", lambda z, t: torch.softmax(z / t, dim=0)),
        Mistake("afterwards", "You divide the probabilities; they no longer sum to one. Divide the logits, then take "
                "the softmax.", _scaled_afterwards),
        Mistake("twice", "You take the softmax of probabilities, which are all between 0 and 1: almost everything is "
                "lost. Divide the logits and take the softmax once.", _softened_afterwards),
        Mistake("squared", "You divide by the square of the temperature; the square belongs into the loss, not here.",
                lambda z, t: torch.softmax(z / t**2, dim=-1)),
        Mistake("log", "These are logarithms; soft labels are probabilities, between 0 and 1.",
                lambda z, t: torch.log_softmax(z / t, dim=-1)),
        Mistake("hard", "This is the hard label, 1 for the best class and 0 for the others. What the teacher thinks of "
                "the others is what you are after.", _hard),
        Mistake("overflow", "Large logits overflow in exp() and give nan; torch.softmax subtracts the largest first.",
                _overflowing),
    ),
    hints=(
        "The temperature acts on the logits, before they become probabilities.",
        "logits / temperature, then a softmax over the last dimension.",
        "return torch.softmax(... / ..., dim=-1)",
    ),
)  # fmt: skip


# --- the loss on soft labels ------------------------------------------------------------------------


def soft_label_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher ‖ student), the mean over texts, by torch's own divergence."""
    log_q = functional.log_softmax(student_logits / temperature, dim=-1)
    p = functional.softmax(teacher_logits.detach() / temperature, dim=-1)
    return functional.kl_div(log_q, p, reduction="batchmean") * temperature**2


def _soft_loss(
    power: int = 2,
    reduction: str = "batchmean",
    log: bool = True,
    swap: bool = False,
    student_t: bool = True,
    teacher_t: bool = True,
    times: bool = False,
    detach: bool = True,
    target: Callable[..., Tensor] = torch.softmax,
    sign: int = 1,
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """The loss with one thing done otherwise."""

    def loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        factor = temperature if times else 1 / temperature
        q = student_logits * (factor if student_t else 1)
        p = (teacher_logits.detach() if detach else teacher_logits) * (factor if teacher_t else 1)
        if swap:
            q, p = p, q
        log_q = torch.log_softmax(q, dim=-1) if log else torch.softmax(q, dim=-1)
        divergence = functional.kl_div(log_q, target(p, dim=-1), reduction=reduction)
        return sign * divergence * temperature**power

    return loss


def _soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    p = torch.softmax(teacher_logits.detach() / temperature, dim=-1)
    return temperature**2 * functional.cross_entropy(student_logits / temperature, p)


def _matched_logits(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    return functional.mse_loss(student_logits, teacher_logits.detach())


def _matched_probabilities(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    q, p = (torch.softmax(x / temperature, dim=-1) for x in (student_logits, teacher_logits.detach()))
    return temperature**2 * functional.mse_loss(q, p)


def _teachers_choice(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    return functional.cross_entropy(student_logits / temperature, teacher_logits.argmax(dim=-1)) * temperature**2


def _each_text(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    return _soft_loss(reduction="none")(student_logits, teacher_logits, temperature).sum(dim=-1)


def _without_gradient(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    return soft_label_loss(student_logits.detach(), teacher_logits, temperature)


def _logit_pairs(rng: np.random.Generator, rows: int, classes: int) -> tuple[Tensor, Tensor]:
    return _draw(rng, rows, classes), _draw(rng, rows, classes, scale=1.5)


def _soft_loss_cases(rng: np.random.Generator) -> list[Case]:
    return [
        Case((*_logit_pairs(rng, 4, 2), float(rng.uniform(1.6, 2.4))), note="two classes"),
        Case((*_logit_pairs(rng, 3, 5), float(rng.uniform(3, 5))), note="five classes"),
        Case((*_logit_pairs(rng, 5, 3), float(rng.uniform(0.5, 0.8))), note="a temperature below 1"),
    ]


SOFT_LOSS = Exercise(
    id="distillation.soft_label_loss",
    points=4,
    title="The loss on soft labels",
    cases=_soft_loss_cases,
    reference=soft_label_loss,
    drive=value_and_gradients,
    compare=Compare(rtol=1e-3, atol=1e-5),
    forbidden=("soft_label_loss",),  # the package has one
    mistakes=(
        Mistake("no-square", "T² is forgotten: the higher the temperature, the smaller the gradient (about 1/T²), and "
                "beside hard labels the teacher falls silent.", _soft_loss(power=0)),
        Mistake("one-power", "You multiply by T; the gradient shrinks as 1/T², so the factor is T².",
                _soft_loss(power=1)),
        Mistake("mean", 'reduction="mean" divides by the number of classes, too; "batchmean" divides by the texts only.',
                _soft_loss(reduction="mean")),
        Mistake("sum", 'reduction="sum" makes the loss grow with the batch; divide by the number of texts ("batchmean").',
                _soft_loss(reduction="sum")),
        Mistake("no-log", "kl_div wants the student's side as logarithms, log_softmax; you gave it probabilities. "
                "It computes on, and the number means nothing.", _soft_loss(log=False)),
        Mistake("log-target", "The teacher's side is given to kl_div as logarithms, where it expects probabilities: "
                "softmax, or log_target=True.", _soft_loss(target=torch.log_softmax)),
        Mistake("swapped", "Teacher and student are swapped: this is KL(student ‖ teacher). The teacher's probabilities "
                "weigh the sum, the student's logarithms come first in kl_div.", _soft_loss(swap=True)),
        Mistake("student-only", "Only the student's logits are divided by the temperature: it is made to copy labels "
                "sharper than the teacher's soft ones. Divide both.", _soft_loss(teacher_t=False)),
        Mistake("teacher-only", "Only the teacher's logits are divided by the temperature; the student would have to "
                "be as unsure as the softened teacher. Divide both.", _soft_loss(student_t=False)),
        Mistake("no-temperature", "The temperature is in the factor only; divide both sides' logits by it.",
                _soft_loss(teacher_t=False, student_t=False)),
        Mistake("times", "You multiply the logits by the temperature; that sharpens. Divide them.",
                _soft_loss(times=True)),
        Mistake("attached", "The value is right, but a gradient flows into the teacher: it would come down to meet the "
                "student. Use teacher_logits.detach().", _soft_loss(detach=False)),
        Mistake("cross-entropy", "This is the cross-entropy with soft labels. Its gradient is right, but it does not "
                "reach 0 when student and teacher agree: take off the teacher's entropy, or use kl_div.",
                _soft_cross_entropy),
        Mistake("sign", "The sign is turned: a divergence is never negative, and this one would drive the student away.",
                _soft_loss(sign=-1)),
        Mistake("logits-mse", "This is the squared difference of the logits; compare the softened probabilities by "
                "their divergence.", _matched_logits),
        Mistake("mse", "This is the squared difference of probabilities; the divergence compares their logarithms.",
                _matched_probabilities),
        Mistake("hard", "You use the teacher's best class as the label; what it thinks of the other classes is lost.",
                _teachers_choice),
        Mistake("each-text", "This is one number for each text; return their mean.", _each_text),
        Mistake("student-detached", "The student's logits are detached: the value is right, and nothing is learned.",
                _without_gradient),
    ),
    hints=(
        "Three steps: both logits divided by T, a divergence between the two distributions, a factor.",
        "functional.kl_div(log_q, p, reduction=...) wants the student's log-probabilities first, then the teacher's "
        "probabilities. The teacher is detached.",
        'log_q = functional.log_softmax(student_logits / ..., dim=-1)\n'
        'p = functional.softmax(teacher_logits.detach() / ..., dim=-1)\n'
        'return functional.kl_div(log_q, p, reduction="...") * ...',
    ),
)  # fmt: skip


# --- soft and hard together -------------------------------------------------------------------------


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, alpha: float
) -> Tensor:
    """α T² KL + (1 − α) CE, text by text; a text labeled -100 has no hard term."""
    terms = []
    for s, t, label in zip(student_logits, teacher_logits.detach(), labels.tolist(), strict=True):
        log_p, log_q = (t / temperature).log_softmax(-1), (s / temperature).log_softmax(-1)
        soft = temperature**2 * (log_p.exp() * (log_p - log_q)).sum()
        terms.append(alpha * soft + (1 - alpha) * (-s.log_softmax(-1)[label] if label >= 0 else 0.0))
    return torch.stack(terms).mean()


def _combined(
    weights: Callable[[float], tuple[float, float]] = lambda alpha: (alpha, 1 - alpha),
    power: int = 2,
    hard_power: int = 0,
    soft_reduction: str = "batchmean",
    hard: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None,
) -> Callable[[Tensor, Tensor, Tensor, float, float], Tensor]:
    """Both terms with one thing done otherwise."""

    def loss(s: Tensor, t: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
        a, b = weights(alpha)
        soft = _soft_loss(power=power, reduction=soft_reduction)(s, t, temperature)
        entropy = hard(s, t.detach(), labels, temperature) if hard else _hard_sum(s, labels) / len(labels)
        return a * soft + b * entropy * temperature**hard_power

    return loss


def _hard_sum(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="sum")  # ignores -100


def _of_labeled_only(s: Tensor, t: Tensor, labels: Tensor, temperature: float) -> Tensor:
    return functional.cross_entropy(s, labels)


def _of_labeled_or_zero(s: Tensor, t: Tensor, labels: Tensor, temperature: float) -> Tensor:
    return _hard_sum(s, labels) / (labels != -100).sum().clamp(min=1)


def _as_class_zero(s: Tensor, t: Tensor, labels: Tensor, temperature: float) -> Tensor:
    return functional.cross_entropy(s, labels.clamp(min=0))


def _drops_unlabeled(s: Tensor, t: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
    kept = labels != -100
    if not kept.any():
        return 0.0 * s.sum()
    return _combined()(s[kept], t[kept], labels[kept], temperature, alpha)


def _combined_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for rows, classes, lacking, note in (
        (4, 2, 0, "two classes, every text labeled"),
        (6, 5, 0, "five classes, every text labeled"),
        (6, 3, 4, "four of six texts have no label, -100"),
        (3, 3, 3, "no text has a label"),
    ):
        labels = torch.tensor(rng.integers(0, classes, rows))
        labels[torch.tensor(rng.permutation(rows)[:lacking].copy(), dtype=torch.long)] = -100
        s, t = _logit_pairs(rng, rows, classes)
        alpha = float(rng.choice([rng.uniform(0.15, 0.4), rng.uniform(0.6, 0.85)]))
        cases.append(Case((s, t, labels, float(rng.uniform(2, 4)), alpha), note=note))
    return cases


COMBINED = Exercise(
    id="distillation.distillation_loss",
    points=3,
    title="Soft and hard labels together",
    cases=_combined_cases,
    reference=distillation_loss,
    drive=value_and_gradients,
    compare=Compare(rtol=1e-3, atol=1e-5),
    forbidden=("distillation_loss",),  # the package has one
    mistakes=(
        Mistake("alpha", "Alpha is on the wrong term: it weighs the soft labels, 1 − alpha the hard ones.",
                _combined(weights=lambda a: (1 - a, a))),
        Mistake("no-complement", "Both terms have the weight alpha; the hard one's is 1 − alpha.",
                _combined(weights=lambda a: (a, a))),
        Mistake("unweighted", "The two terms are added without alpha.", _combined(weights=lambda a: (1.0, 1.0))),
        Mistake("hard-full", "The hard term has full weight; its weight is 1 − alpha.",
                _combined(weights=lambda a: (a, 1.0))),
        Mistake("soft-only", "The hard labels are not used.", _combined(weights=lambda a: (a, 0.0))),
        Mistake("hard-only", "The teacher is not used.", _combined(weights=lambda a: (0.0, 1 - a))),
        Mistake("no-square", "The soft term has lost its T²: the balance between the two terms then depends on the "
                "temperature.", _combined(power=0)),
        Mistake("square-on-both", "T² multiplies the soft term only; the hard term has no temperature to make up for.",
                _combined(hard_power=2)),
        Mistake("hard-softened", "The hard term is computed at the temperature; labels are for the logits as they are, "
                "T = 1.", _combined(hard=lambda s, t, y, T: _hard_sum(s / T, y) / len(y))),
        Mistake("teachers-error", "The hard term judges the teacher's logits, which do not learn; it is the student's "
                "cross-entropy.", _combined(hard=lambda s, t, y, T: _hard_sum(t, y) / len(y))),
        Mistake("probabilities", "cross_entropy wants logits and applies its own softmax; you gave it probabilities.",
                _combined(hard=lambda s, t, y, T: _hard_sum(s.softmax(-1), y) / len(y))),
        Mistake("nan", "A batch without any label makes the hard term 0/0, nan, and one nan ends the run. Sum over the "
                'labeled texts (reduction="sum" passes over -100) and divide by all texts.',
                _combined(hard=_of_labeled_only)),
        Mistake("labeled-mean", "You average the hard term over the labeled texts only: a single labeled text then "
                "weighs as much as a whole batch of them. Divide by the number of all texts.",
                _combined(hard=_of_labeled_or_zero)),
        Mistake("class-zero", "-100 is not a class: a text without a label has no hard term.",
                _combined(hard=_as_class_zero)),
        Mistake("drops", "Texts without a label are left out altogether; the teacher speaks of them as well, so their "
                "soft term counts.", _drops_unlabeled),
        Mistake("mean", 'The soft term is divided by the number of classes, too (reduction="mean").',
                _combined(soft_reduction="mean")),
    ),
    hints=(
        "You have the soft term already. The hard one is a cross-entropy of the student's own logits.",
        'functional.cross_entropy(..., reduction="sum") passes over labels of -100. Divide by the number of texts.',
        'soft = soft_label_loss(...)\nhard = functional.cross_entropy(student_logits, labels, reduction="sum") / ...\n'
        "return ... * soft + ... * hard",
    ),
)  # fmt: skip


# --- hidden states ----------------------------------------------------------------------------------


def hidden_state_loss(student: Tensor, teacher: Tensor, mask: Tensor, projection: Tensor) -> Tensor:
    """The mean squared difference of projected hidden states over real tokens, by loops over texts and tokens."""
    texts = []
    for h_s, h_t, real in zip(student, teacher.detach(), mask.tolist(), strict=True):
        tokens = [functional.mse_loss(h_s[i] @ projection, h_t[i]) for i, one in enumerate(real) if one]
        texts.append(torch.stack(tokens).mean())
    return torch.stack(texts).mean()


def _hidden(
    error: Callable[[Tensor], Tensor] = lambda difference: difference.square().mean(dim=-1),
    pool: Callable[[Tensor, Tensor], Tensor] | None = None,
    project: Callable[[Tensor, Tensor], Tensor] = lambda h, w: h @ w,
    detach: bool = True,
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The loss with one thing done otherwise; ``pool`` gets errors (batch, length) and the mask."""

    def loss(student: Tensor, teacher: Tensor, mask: Tensor, projection: Tensor) -> Tensor:
        difference = project(student, projection) - (teacher.detach() if detach else teacher)
        return (pool or _text_by_text)(error(difference), mask.float())

    return loss


def _text_by_text(error: Tensor, mask: Tensor) -> Tensor:
    return ((error * mask).sum(dim=1) / mask.sum(dim=1)).mean()


def _all_at_once(error: Tensor, mask: Tensor) -> Tensor:
    return (error * mask).sum() / mask.sum()


def _hidden_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for batch, length, d_s, d_t, note in (
        (2, 4, 3, 5, "a narrow student"),
        (3, 5, 4, 4, "equal widths, a projection all the same"),
        (4, 6, 2, 6, "a very narrow student"),
    ):
        counts = [length, *rng.integers(1, length - 1, batch - 1).tolist()]
        mask = (torch.arange(length) < torch.tensor(counts)[:, None]).long()
        # Padded places hold other numbers than real ones, as they do in a model.
        shift = 3.0 * (1 - mask[:, :, None].float())
        student, teacher = _draw(rng, batch, length, d_s), _draw(rng, batch, length, d_t) + shift
        cases.append(Case((student, teacher, mask, _draw(rng, d_s, d_t, scale=0.7)), note=note))
    return cases


HIDDEN = Exercise(
    id="distillation.hidden_state_loss",
    points=3,
    title="Hidden states",
    cases=_hidden_cases,
    reference=hidden_state_loss,
    drive=value_and_gradients,
    also_right=(_hidden(pool=_all_at_once),),
    compare=Compare(rtol=1e-3, atol=1e-5),
    forbidden=("hidden_state_loss",),  # the package has one
    mistakes=(
        Mistake("padding", "Padding counts: the student learns what the teacher computes for nothing. Use the mask.",
                _hidden(pool=lambda e, m: e.mean())),
        Mistake("divided-by-all", "Padding is set to zero but still counted in the mean: divide by the number of real "
                "tokens, mask.sum(), not by all places.", _hidden(pool=lambda e, m: (e * m).mean())),
        Mistake("inverted", "The mask is turned around: you count the padding and leave out the tokens.",
                _hidden(pool=lambda e, m: (e * (1 - m)).sum() / (1 - m).sum())),
        Mistake("sum", "You sum over the real tokens; take their mean, or long texts and large batches weigh more.",
                _hidden(pool=lambda e, m: (e * m).sum())),
        Mistake("batch", "You divide by the number of texts only; divide by the number of real tokens.",
                _hidden(pool=lambda e, m: (e * m).sum() / len(m))),
        Mistake("dimensions", "You sum over the dimensions of a vector; MSE is their mean, so that the width does not "
                "decide the loss's size.", _hidden(error=lambda d: d.square().sum(dim=-1))),
        Mistake("cls", "Only the first token counts here; all real tokens do.", _hidden(pool=lambda e, m: e[:, 0].mean())),
        Mistake("l1", "This is the absolute difference; the loss is the squared one.",
                _hidden(error=lambda d: d.abs().mean(dim=-1))),
        Mistake("root", "The square root is too much: the loss is the mean squared difference.",
                lambda *a: _hidden()(*a).sqrt()),
        Mistake("attached", "The value is right, but a gradient flows into the teacher; use teacher.detach().",
                _hidden(detach=False)),
        Mistake("no-projection", "The projection is not used: a student of another width cannot be compared at all.",
                _hidden(project=lambda h, w: h)),
        Mistake("transposed", "The projection is (d_student, d_teacher): multiply by it as it is, h @ W, not by its "
                "transpose.", _hidden(project=lambda h, w: h @ w.T)),
    ),
    hints=(
        "First bring the student's vectors to the teacher's width: one matrix product.",
        "(difference ** 2).mean(dim=-1) is one number for each token, (batch, length). The mask says which count.",
        "error = (student @ projection - teacher.detach()).square().mean(dim=-1)\nreturn (error * mask).sum() / ...",
    ),
)  # fmt: skip


# --- attention scores -------------------------------------------------------------------------------


def attention_score_loss(
    student_q: Tensor, student_k: Tensor, teacher_q: Tensor, teacher_k: Tensor, mask: Tensor
) -> Tensor:
    """The mean squared difference of attention scores over pairs of real tokens, by a loop over texts."""
    texts = []
    for text, count in enumerate(mask.sum(dim=1).tolist()):
        scores = []
        for q, k in ((student_q, student_k), (teacher_q.detach(), teacher_k.detach())):
            q, k = q[text, :, :count], k[text, :, :count]
            scores.append(torch.einsum("hid,hjd->hij", q, k) / math.sqrt(q.shape[-1]))
        texts.append(functional.mse_loss(scores[0], scores[1]))
    return torch.stack(texts).mean()


def _pairs_text_by_text(error: Tensor, mask: Tensor) -> Tensor:
    both = (mask[:, None, :, None] * mask[:, None, None, :]).expand_as(error)
    return ((error * both).sum(dim=(1, 2, 3)) / both.sum(dim=(1, 2, 3))).mean()


def _pairs_at_once(error: Tensor, mask: Tensor) -> Tensor:
    both = (mask[:, None, :, None] * mask[:, None, None, :]).expand_as(error)
    return (error * both).sum() / both.sum()


def _attention(
    pool: Callable[[Tensor, Tensor], Tensor] = _pairs_text_by_text,
    transform: Callable[[Tensor, Tensor], Tensor] = lambda scores, mask: scores,
    scales: Callable[[Tensor, Tensor], tuple[float, float]] = lambda s, t: (s.shape[-1] ** 0.5, t.shape[-1] ** 0.5),
    error: Callable[[Tensor], Tensor] = torch.square,
    detach: bool = True,
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The loss with one thing done otherwise; ``pool`` gets errors (batch, heads, length, length) and the mask."""

    def loss(student_q: Tensor, student_k: Tensor, teacher_q: Tensor, teacher_k: Tensor, mask: Tensor) -> Tensor:
        low, high = scales(student_q, teacher_q)
        real = mask.float()
        mine = transform(student_q @ student_k.transpose(-2, -1) / low, real)
        its = transform(teacher_q @ teacher_k.transpose(-2, -1) / high, real)
        return pool(error(mine - (its.detach() if detach else its)), real)

    return loss


def _softmax_over_real(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(mask[:, None, None, :] == 0, float("-inf")).softmax(dim=-1)


def _attention_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for batch, heads, length, d_s, d_t, note in (
        (2, 2, 4, 2, 5, "heads of a narrow student"),
        (3, 1, 5, 3, 3, "one head, equal widths"),
        (3, 3, 4, 2, 4, "three heads"),
    ):
        counts = [length, *rng.integers(2, length, batch - 1).tolist()]
        mask = (torch.arange(length) < torch.tensor(counts)[:, None]).long()
        padded = (1 - mask)[:, None, :, None].float()
        q_s, k_s = _draw(rng, batch, heads, length, d_s), _draw(rng, batch, heads, length, d_s)
        q_t, k_t = _draw(rng, batch, heads, length, d_t) + padded, _draw(rng, batch, heads, length, d_t) + padded
        cases.append(Case((q_s, k_s, q_t, k_t, mask), note=note))
    return cases


ATTENTION = Exercise(
    id="distillation.attention_score_loss",
    points=3,
    title="Attention scores",
    cases=_attention_cases,
    reference=attention_score_loss,
    drive=value_and_gradients_of_pairs,
    also_right=(_attention(pool=_pairs_at_once),),
    compare=Compare(rtol=1e-3, atol=1e-5),
    forbidden=("attention_score_loss",),  # the package has one
    mistakes=(
        Mistake("softmax", "You compare after the softmax. TinyBERT compares the scores themselves: most weights are "
                "close to 0, and so would be the gradient.", _attention(transform=_softmax_over_real)),
        Mistake("plain-softmax", "You compare after a softmax, over padded keys, too. Compare the scores themselves, at "
                "real tokens only.", _attention(transform=lambda s, m: s.softmax(dim=-1))),
        Mistake("no-root", "The scores are not divided by √d_k.", _attention(scales=lambda s, t: (1.0, 1.0))),
        Mistake("no-square-root", "You divide by d_k; the scores are divided by its square root.",
                _attention(scales=lambda s, t: (float(s.shape[-1]), float(t.shape[-1])))),
        Mistake("students-width", "Both scores are divided by the root of the student's width; the teacher's heads "
                "have a width of their own.", _attention(scales=lambda s, t: (s.shape[-1] ** 0.5,) * 2)),
        Mistake("teachers-width", "Both scores are divided by the root of the teacher's width; the student's heads "
                "have a width of their own.", _attention(scales=lambda s, t: (t.shape[-1] ** 0.5,) * 2)),
        Mistake("padding", "Padded queries and keys count; use the mask for both.",
                _attention(pool=lambda e, m: e.mean())),
        Mistake("queries", "Padded queries count: the mask is on the keys only, and padded rows attend, too.",
                _attention(pool=lambda e, m: (e * m[:, None, None, :]).sum() / m.sum() / e.shape[1] / e.shape[2])),
        Mistake("keys", "Padded keys count: the mask is on the queries only.",
                _attention(pool=lambda e, m: (e * m[:, None, :, None]).sum() / m.sum() / e.shape[1] / e.shape[3])),
        Mistake("divided-by-all", "Padded pairs are set to zero but still counted in the mean; the loss then shrinks "
                "with the padding. (TinyBERT's public code does so.) Divide by the number of real pairs.",
                _attention(pool=lambda e, m: (e * m[:, None, :, None] * m[:, None, None, :]).mean())),
        Mistake("heads", "You sum over the heads; take their mean.",
                lambda *a: _attention()(*a) * a[0].shape[1]),
        Mistake("sum", "You sum over all pairs; take their mean.",
                _attention(pool=lambda e, m: (e * m[:, None, :, None] * m[:, None, None, :]).sum())),
        Mistake("l1", "This is the absolute difference; the loss is the squared one.", _attention(error=torch.abs)),
        Mistake("attached", "The value is right, but a gradient flows into the teacher; use detach() on its side.",
                _attention(detach=False)),
    ),
    hints=(
        "Scores first, for each model with its own width: (batch, heads, length, length).",
        "q @ k.transpose(-2, -1) / math.sqrt(d). A pair counts where the query and the key are real: "
        "mask[:, None, :, None] * mask[:, None, None, :].",
        "error = (student_scores - teacher_scores.detach()).square()\n"
        "both = (mask[:, None, :, None] * mask[:, None, None, :]).expand_as(error)\nreturn (error * both).sum() / ...",
    ),
)  # fmt: skip


# --- which layers -----------------------------------------------------------------------------------


def what_holds_of_the_layers(student: Any, case: Case) -> dict[str, Any]:
    """Call the student's function; say what holds of the layers it chose."""
    teacher_layers, student_layers = case.args
    chosen = [int(layer) for layer in student(teacher_layers, student_layers)]
    gaps, block = [b - a for a, b in itertools.pairwise(chosen)], math.ceil(teacher_layers / student_layers)
    return {
        "as many as the student has": len(chosen) == student_layers,
        "counted from 0, below the teacher's number": all(0 <= layer < teacher_layers for layer in chosen),
        "none twice": len(set(chosen)) == len(chosen),
        "in ascending order": chosen == sorted(chosen),
        "the last layer is among them": teacher_layers - 1 in chosen,
        "the first comes from the first block": bool(chosen) and min(chosen) < block,
        "neighbors are equally far apart, give or take one": not gaps or max(gaps) - min(gaps) <= 1,
        "not more than a block is left out at the end": bool(chosen) and teacher_layers - max(chosen) <= block,
    }  # fmt: skip


def choose_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """The last layer of each of ``student_layers`` equal blocks."""
    blocks = np.array_split(np.arange(teacher_layers), student_layers)
    return [int(block[-1]) for block in blocks]


def _by_formula(teacher_layers: int, student_layers: int) -> list[int]:
    return [m * teacher_layers // student_layers - 1 for m in range(1, student_layers + 1)]


def _ends_included(teacher_layers: int, student_layers: int) -> list[int]:
    """First and last layer and between them even steps, as DistilBERT took 0, 2, 4, 7, 9, 11 of 12."""
    if student_layers == 1:
        return [teacher_layers - 1]
    return [i * (teacher_layers - 1) // (student_layers - 1) for i in range(student_layers)]


def _from_the_front(teacher_layers: int, student_layers: int) -> list[int]:
    return list(range(student_layers))


def _from_the_end(teacher_layers: int, student_layers: int) -> list[int]:
    return list(range(teacher_layers - student_layers, teacher_layers))


def _block_starts(teacher_layers: int, student_layers: int) -> list[int]:
    return [i * teacher_layers // student_layers for i in range(student_layers)]


def _every_kth(teacher_layers: int, student_layers: int) -> list[int]:
    return list(range(0, teacher_layers, teacher_layers // student_layers))


def _one_based(teacher_layers: int, student_layers: int) -> list[int]:
    return [layer + 1 for layer in choose_layers(teacher_layers, student_layers)]


def _descending(teacher_layers: int, student_layers: int) -> list[int]:
    return choose_layers(teacher_layers, student_layers)[::-1]


def _last_repeated(teacher_layers: int, student_layers: int) -> list[int]:
    step = math.ceil(teacher_layers / student_layers)
    return [min((i + 1) * step, teacher_layers) - 1 for i in range(student_layers - 1)] + [teacher_layers - 1]


def _last_appended(teacher_layers: int, student_layers: int) -> list[int]:
    return [*range(student_layers - 1), teacher_layers - 1]


def _layer_cases(rng: np.random.Generator) -> list[Case]:
    even = int(rng.choice([3, 4, 6]))
    return [
        Case((12, even), note=f"every {12 // even}th layer"),
        Case((6, int(rng.choice([2, 3]))), note="the course's encoder"),
        Case((8, 3), note="not a multiple"),
        Case((9, 7), note="almost all"),
        Case((10, 4), note="not a multiple"),
        Case((int(rng.integers(5, 13)), 1), note="a student of one layer"),
    ]


LAYERS = Exercise(
    id="distillation.choose_layers",
    points=2,
    title="Which layers the student starts from",
    cases=_layer_cases,
    reference=choose_layers,
    drive=what_holds_of_the_layers,
    also_right=(_by_formula, _ends_included),
    forbidden=("choose_layers",),  # the package has one
    mistakes=(
        Mistake("front", "These are the first layers only: the head was trained on top of the last one and would read "
                "states it has never seen.", _from_the_front),
        Mistake("end", "These are the last layers only: they expect what the layers below have computed, not bare "
                "embeddings. Spread them over all of the teacher.", _from_the_end),
        Mistake("block-starts", "The last layer is missing: you take the first layer of each block; take its last one.",
                _block_starts),
        Mistake("every-kth", "Where the numbers do not divide, these are too many layers, and the last one may be "
                "missing: count the student's layers, not the steps.", _every_kth),
        Mistake("one-based", "You count from 1; layers are counted from 0, so the last one of 12 is 11.", _one_based),
        Mistake("descending", "The order is turned around: the student's first layer comes from the teacher's bottom.",
                _descending),
        Mistake("repeated", "A layer is taken twice: a rounded-up step runs out of layers before the student has all "
                "of its own. Compute each place from the number of layers, not from a rounded step.", _last_repeated),
        Mistake("appended", "The last layer is there, but the others all come from the front; spread them evenly.",
                _last_appended),
    ),
    hints=(
        "Cut the teacher into as many blocks as the student has layers, and take the last layer of each block.",
        "Block m of M (counted from 1) ends after layer m · L / M, rounded down; from 0 that is one less.",
        "return [m * teacher_layers // ... - 1 for m in range(1, ...)]",
    ),
)  # fmt: skip


# --- which student ----------------------------------------------------------------------------------

Students = list[dict[str, Any]]


def choose_student(students: Students, max_megabytes: float, max_milliseconds: float) -> str | None:
    """The most accurate student within both budgets; of equal ones the smaller, then the faster."""
    fits = [s for s in students if s["megabytes"] <= max_megabytes and s["milliseconds"] <= max_milliseconds]
    if not fits:
        return None
    best = sorted(fits, key=lambda s: (-s["accuracy"], s["megabytes"], s["milliseconds"]))[0]
    return str(best["name"])


def _chosen(
    fits: Callable[[dict[str, Any], float, float], bool],
    key: Callable[[dict[str, Any]], Any] = lambda s: (-s["accuracy"], s["megabytes"], s["milliseconds"]),
) -> Callable[[Students, float, float], str | None]:
    def choose(students: Students, max_megabytes: float, max_milliseconds: float) -> str | None:
        left = sorted((s for s in students if fits(s, max_megabytes, max_milliseconds)), key=key)
        return str(left[0]["name"]) if left else None

    return choose


def _fits(s: dict[str, Any], mb: float, ms: float) -> bool:
    return bool(s["megabytes"] <= mb and s["milliseconds"] <= ms)


def _without_check(students: Students, max_megabytes: float, max_milliseconds: float) -> str:
    fits = [s for s in students if _fits(s, max_megabytes, max_milliseconds)]
    return str(min(fits, key=lambda s: (-s["accuracy"], s["megabytes"], s["milliseconds"]))["name"])


def _or_the_smallest(students: Students, max_megabytes: float, max_milliseconds: float) -> str:
    found = choose_student(students, max_megabytes, max_milliseconds)
    return found or str(min(students, key=lambda s: s["megabytes"])["name"])


def _whole_row(students: Students, max_megabytes: float, max_milliseconds: float) -> dict[str, Any] | None:
    name = choose_student(students, max_megabytes, max_milliseconds)
    return next((s for s in students if s["name"] == name), None)


def _student_cases(rng: np.random.Generator) -> list[Case]:
    names = [f"student {letter}" for letter in "ABCDEFGH"]
    names = [names[i] for i in rng.permutation(len(names))]
    mb, ms, top = float(rng.integers(40, 60)), float(rng.integers(10, 20)), float(rng.uniform(0.8, 0.85))

    def table(*rows: tuple[float, float, float]) -> Students:
        """Rows of accuracy less the best that fits, and shares of both budgets; shuffled."""
        made = [
            {
                "name": name,
                "accuracy": round(top + a, 4),
                "megabytes": round(mb * b, 2),
                "milliseconds": round(ms * c, 2),
            }
            for name, (a, b, c) in zip(names, rows, strict=False)
        ]
        return [made[i] for i in rng.permutation(len(made))]

    mixed = table(
        (0.0, 0.8, 0.9),  # the answer
        (-0.03, 0.3, 0.7),  # the smallest that fits
        (-0.05, 0.5, 0.2),  # the fastest that fits
        (0.02, 0.9, 1.4),  # too slow
        (0.03, 1.5, 0.8),  # too large
        (0.06, 1.8, 1.9),  # the best of all
    )
    ties = [
        {"name": n, "accuracy": round(top, 4), "megabytes": m, "milliseconds": t}
        for n, m, t in zip(names, (0.5 * mb, 0.9 * mb, 0.5 * mb), (0.9 * ms, 0.2 * ms, 0.6 * ms), strict=False)
    ]  # the slower of the two small ones stands first
    return [
        Case((mixed, mb, ms), note="two budgets"),
        Case((table((0.0, 1.0, 1.0), (-0.02, 0.5, 0.5), (0.03, 1.01, 0.5)), mb, ms), note="exactly at both budgets: it fits"),
        Case((ties, mb, ms), note="three are equally accurate"),
        Case((table((0.0, 1.2, 0.5), (0.01, 0.6, 1.3), (0.02, 2.0, 2.0)), mb, ms), note="none fits"),
    ]  # fmt: skip


CHOICE = Exercise(
    id="distillation.choose_student",
    points=2,
    title="Choosing a student",
    cases=_student_cases,
    reference=choose_student,
    mistakes=(
        Mistake("any", "The budgets are not looked at: this is the most accurate of all.",
                _chosen(lambda s, mb, ms: True)),
        Mistake("no-size", "The size is not looked at: this one is too large.",
                _chosen(lambda s, mb, ms: s["milliseconds"] <= ms)),
        Mistake("no-latency", "The latency is not looked at: this one is too slow.",
                _chosen(lambda s, mb, ms: s["megabytes"] <= mb)),
        Mistake("either", "One budget is kept and the other is not; a student must fit both.",
                _chosen(lambda s, mb, ms: s["megabytes"] <= mb or s["milliseconds"] <= ms)),
        Mistake("strict", "A student that is exactly at a budget fits: <=, not <.",
                _chosen(lambda s, mb, ms: s["megabytes"] < mb and s["milliseconds"] < ms)),
        Mistake("smallest", "This is the smallest that fits; the budget may be spent. Take the most accurate.",
                _chosen(_fits, lambda s: (s["megabytes"], s["milliseconds"]))),
        Mistake("fastest", "This is the fastest that fits; the budget may be spent. Take the most accurate.",
                _chosen(_fits, lambda s: (s["milliseconds"], s["megabytes"]))),
        Mistake("worst", "This is the least accurate of those that fit; take the largest accuracy.",
                _chosen(_fits, lambda s: (s["accuracy"], s["megabytes"], s["milliseconds"]))),
        Mistake("first-of-equals", "Of equally accurate students you take the first in the table; take the smaller, and "
                "of equally small ones the faster.", _chosen(_fits, lambda s: -s["accuracy"])),
        Mistake("faster-first", "Of equally accurate students you take the faster; the smaller comes first, and only of "
                "equally small ones the faster.",
                _chosen(_fits, lambda s: (-s["accuracy"], s["milliseconds"], s["megabytes"]))),
        Mistake("raises", "Where none fits, your code raises an error; the answer is None.", _without_check),
        Mistake("smallest-anyway", "Where none fits, you return one all the same; the answer is None.", _or_the_smallest),
        Mistake("row", "Return the name of the student, not its whole row.", _whole_row),
    ),
    hints=(
        "First throw out what does not fit, then take the best of the rest. What if nothing is left?",
        "min() with a key of three parts: the accuracy with its sign turned, megabytes, milliseconds.",
        'fits = [s for s in students if s["megabytes"] <= ... and ...]\nif not fits:\n    return None\n'
        'return min(fits, key=lambda s: (-s["accuracy"], ..., ...))["name"]',
    ),
)  # fmt: skip


EXERCISES = (LAYERS, SOFT_LABELS, SOFT_LOSS, COMBINED, HIDDEN, ATTENTION, CHOICE)
