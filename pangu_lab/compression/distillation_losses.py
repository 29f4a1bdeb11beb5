"""The losses of distillation: soft labels, hidden states, attention scores, relations between tokens.

Read ``soft_label_loss`` first. Every loss is a mean over texts, so that it does not matter how texts are cut into
batches, and padding never counts. B texts of T tokens in d dimensions, C classes, H heads; ``mask`` (B, T) is the
tokenizer's, 1 for tokens and 0 for padding.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from pangu_lab.errors import PanguLabError
from pangu_lab.model.attention import minus_infinity_outside, split_heads


class DistillationError(PanguLabError):
    """Teacher, student and settings do not go together."""


def soft_label_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T² KL(softmax(z_t / T) ‖ softmax(z_s / T)), the mean over texts (Hinton et al. 2015, §2.1).

    The gradient of the divergence shrinks as 1/T²; T² keeps its weight against the hard labels'. Logits are (B, C).
    """
    log_p = functional.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)  # (B, C)
    log_q = functional.log_softmax(student_logits.float() / temperature, dim=-1)  # (B, C)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 2.0, alpha: float = 0.5
) -> Tensor:
    """α T² KL(teacher ‖ student) + (1 − α) CE(labels, student), the mean over texts (Hinton et al. 2015, §2.1).

    Of a text whose label (B,) is -100, only the soft term counts.
    """
    soft = soft_label_loss(student_logits, teacher_logits, temperature)
    hard = functional.cross_entropy(student_logits.float(), labels, ignore_index=-100, reduction="sum") / len(labels)
    return alpha * soft + (1 - alpha) * hard


def hidden_state_loss(student: Tensor, teacher: Tensor, mask: Tensor, projection: Tensor | None = None) -> Tensor:
    """MSE(H_s W, H_t) over the real tokens (Jiao et al. 2020, eq. 8).

    ``student`` (B, T, d_s), ``teacher`` (B, T, d_t); ``projection`` W is (d_s, d_t), and may be left out if d_s = d_t.
    """
    if projection is not None:
        student = student @ projection  # (B, T, d_t)
    if student.shape != teacher.shape:
        raise DistillationError(
            f"hidden states of {student.shape[-1]} and {teacher.shape[-1]} dimensions cannot be compared; "
            "give a projection from the student's width to the teacher's"
        )
    error = (student.float() - teacher.detach().float()).square().mean(dim=-1)  # (B, T)
    return _mean_over_texts(error, mask)


def attention_score_loss(
    student_q: Tensor, student_k: Tensor, teacher_q: Tensor, teacher_k: Tensor, mask: Tensor
) -> Tensor:
    """MSE of the scores q kᵀ / √d_k *before* the softmax (Jiao et al. 2020, eq. 7), over pairs of real tokens.

    q and k are (B, H, T, d_k); student and teacher have equally many heads, of any width.
    """
    if student_q.shape[1] != teacher_q.shape[1]:
        raise DistillationError(
            f"attention scores of {student_q.shape[1]} and {teacher_q.shape[1]} heads cannot be compared; "
            "give the student as many heads, or use relations, which are split anew"
        )
    real = mask.bool()
    difference = attention_scores(student_q, student_k) - attention_scores(teacher_q, teacher_k).detach()
    error = difference.square().mean(dim=1)  # (B, T, T)
    error = error.masked_fill(~real[:, None, :], 0).sum(dim=-1) / _count(real)[:, None]  # (B, T), the mean over keys
    return _mean_over_texts(error, mask)


def attention_scores(q: Tensor, k: Tensor) -> Tensor:
    """q kᵀ / √d_k, (B, H, T, T), of q and k (B, H, T, d_k)."""
    return q.float() @ k.float().transpose(-2, -1) / math.sqrt(q.size(-1))


def relation_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor, heads: int) -> Tensor:
    """KL of the relations softmax(x yᵀ / √d_r) between tokens, the mean over heads and real queries.

    ``student`` and ``teacher`` are pairs (x, y) of (B, T, d); their widths may differ, as each is split into ``heads``
    relation heads. Query and key, value and value: MiniLM (Wang et al. 2020, eq. 6 and 8); query and query, key and
    key, value and value: MiniLMv2 (Wang et al. 2021, eq. 5).
    """
    for x in (*student, *teacher):
        if x.size(-1) % heads:
            raise DistillationError(f"{x.size(-1)} dimensions cannot be split into {heads} relation heads")
    real = mask.bool()
    outside = minus_infinity_outside(real[:, None, None, :], torch.float32)  # (B, 1, 1, T)
    with torch.no_grad():
        log_p = (attention_scores(*(split_heads(x, heads) for x in teacher)) + outside).log_softmax(dim=-1)
    log_q = (attention_scores(*(split_heads(x, heads) for x in student)) + outside).log_softmax(dim=-1)  # (B, H, T, T)
    divergence = (log_p.exp() * (log_p - log_q)).masked_fill(~real[:, None, None, :], 0).sum(dim=-1)  # (B, H, T)
    return _mean_over_texts(divergence.mean(dim=1), mask)


def _count(real: Tensor) -> Tensor:
    return real.sum(dim=-1).clamp(min=1)


def _mean_over_texts(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the real tokens of each text, then over texts; values (B, T)."""
    real = mask.bool()
    return (values.masked_fill(~real, 0).sum(dim=-1) / _count(real)).mean()
