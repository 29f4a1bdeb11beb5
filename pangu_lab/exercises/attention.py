"""Exercises of lab 02: softmax, attention with its masks, heads, attention between two texts, positions.

References are torch's own: its softmax, its attention kernel, its ``nn.MultiheadAttention``. A mask is boolean, True
where a query may look, as in ``pangu_lab.model.attention``. Scores stay near 1, so that no mistake hides in a
saturated softmax, and no two sizes of a case are equal unless the case is about that.
"""

import cmath
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pangu_lab.exercises.engine import Case, Compare, Exercise, Mistake

CLOSE = Compare(rtol=1e-4, atol=1e-5)
KERNELS = ("scaled_dot_product_attention", "multi_head_attention_forward", "MultiheadAttention")


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.tensor(rng.normal(size=shape), dtype=torch.float32)


# --- softmax ----------------------------------------------------------------------------------------


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """exp(x) over its sum along ``dim``, by torch."""
    return torch.softmax(x, dim)


def _softmax_less(shift: Callable[[Tensor, int], Any]) -> Callable[..., Tensor]:
    """Softmax of x less a shift; which shifts are safe is the exercise."""

    def shifted(x: Tensor, dim: int = -1) -> Tensor:
        e = (x - shift(x, dim)).exp()
        return e / e.sum(dim, keepdim=True)

    return shifted


def _exp_only(x: Tensor, dim: int = -1) -> Tensor:
    return (x - x.amax(dim, keepdim=True)).exp()


def _last_axis(x: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(x, -1)


def _first_axis(x: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(x, 0)


def _sum_of_all(x: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(x.flatten(), 0).view_as(x)


def _largest_along_dim_sum_of_all(x: Tensor, dim: int = -1) -> Tensor:
    e = (x - x.amax(dim, keepdim=True)).exp()
    return e / e.sum()


def _log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    return torch.log_softmax(x, dim)


def _clamped(x: Tensor, dim: int = -1) -> Tensor:
    return torch.softmax(x.clamp(-80, 80), dim)


def _plain_shares(x: Tensor, dim: int = -1) -> Tensor:
    return x / x.sum(dim, keepdim=True)


def _softmax_cases(rng: np.random.Generator) -> list[Case]:
    rows, columns = int(rng.integers(2, 4)), int(rng.integers(4, 6))
    small, two_far = _normal(rng, rows, columns), _normal(rng, rows, columns)
    two_far[0] += 1000.0  # the other rows stay near 0: what is safe for one row is not for all
    wide = torch.linspace(-60, 60, columns).repeat(rows, 1) + _normal(rng, rows, columns)
    hidden = _normal(rng, rows, columns)
    hidden[:, int(rng.integers(columns))] = -torch.inf
    return [
        Case((small, -1), note="small numbers"),
        Case((_normal(rng, 2, 3, columns), 1), note="along the middle axis"),
        Case((two_far, -1), note="one row near 1000, the others near 0"),
        Case((_normal(rng, rows, columns) - 1000.0, -1), note="all near −1000"),
        Case((wide, -1), note="rows from −60 to 60"),
        Case((hidden, -1), note="one column is −∞, as a mask makes it"),
    ]


SOFTMAX = Exercise(
    id="attention.softmax",
    points=2,
    title="A softmax that does not overflow",
    cases=_softmax_cases,
    reference=softmax,
    forbidden=("softmax", "log_softmax", "Softmax"),
    mistakes=(
        Mistake("overflow", "exp(1000) is inf in float32, and exp(−1000) is 0: you get inf/inf or 0/0. Subtract the "
                "largest number of each row first; it cancels.", _softmax_less(lambda x, dim: 0.0)),
        Mistake("largest-of-all", "You subtract the largest number of the whole tensor. A row that lies far below it "
                "becomes 0/0; take the largest along dim.", _softmax_less(lambda x, dim: x.max())),
        Mistake("mean", "You subtract the mean, which does not bound the exponent, and is −∞ where a mask put one; "
                "subtract the largest.", _softmax_less(lambda x, dim: x.mean(dim, keepdim=True))),
        Mistake("smallest", "You subtract the smallest number: all exponents are positive then and can overflow; "
                "subtract the largest.", _softmax_less(lambda x, dim: x.amin(dim, keepdim=True))),
        Mistake("no-sum", "The division by the sum is missing; the numbers along dim must add up to 1.", _exp_only),
        Mistake("last-axis", "You always work along the last axis; dim says which one is meant.", _last_axis),
        Mistake("first-axis", "You work along axis 0; dim says which one is meant.", _first_axis),
        Mistake("sum-of-all", "You divide by the sum over everything; sum along dim, with keepdim=True.",
                _sum_of_all),
        Mistake("mixed-sums", "The largest is taken along dim, but the sum over everything; sum along dim, too.",
                _largest_along_dim_sum_of_all),
        Mistake("log", "These are logarithms of the shares.", _log_softmax),
        Mistake("clamped", "You cut large numbers off, which changes the shares of a row; subtract the largest "
                "instead, which does not.", _clamped),
        Mistake("no-exp", "The exponential is missing.", _plain_shares),
    ),
    hints=(
        "softmax(x) and softmax(x − c) are equal for every number c. Which c keeps all exponents at 0 or below?",
        "x.amax(dim, keepdim=True) keeps the axis, so that it broadcasts against x.",
        "e = (x - ...).exp()\nreturn e / e.sum(..., keepdim=True)",
    ),
)  # fmt: skip


# --- scaled dot-product attention -------------------------------------------------------------------


def output_and_weights(student: Any, case: Case) -> Any:
    """Call the student's function; the weights of a query that may look nowhere mean nothing and count as zero."""
    result = student(**case.kwargs)
    mask = case.kwargs["mask"]
    if mask is None or not isinstance(result, (tuple, list)) or len(result) != 2:
        return result
    output, weights = result
    seen = mask.any(-1, keepdim=True)  # (…, T_q, 1)
    try:
        return output, weights.masked_fill(~seen, 0.0)
    except (AttributeError, RuntimeError):  # another type or shape: shown as it is
        return output, weights


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Output (B, H, T_q, d_k) and weights (B, H, T_q, T_k) by torch's kernel; on an identity, the weights come out."""
    identity = torch.eye(k.size(-2), dtype=k.dtype).expand(*k.shape[:-2], -1, -1)
    output = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return output, functional.scaled_dot_product_attention(q, k, identity, attn_mask=mask)


def _attention(
    scale: Callable[[Tensor], float] = lambda q: q.size(-1) ** -0.5,
    axis: int = -1,
    mask_as: str = "fill",
    fill: float = -math.inf,
    empty: str = "zero",
    late_scale: bool = False,
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Attention with one thing wrong. ``empty`` is what a query that may look nowhere gets: zero, nan or mean."""
    if empty == "mean" and fill == -math.inf:
        fill = -1e9

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scores = q @ k.transpose(-2, -1) * (1.0 if late_scale else scale(q))  # (B, H, T_q, T_k)
        if mask is not None and mask_as in ("fill", "inverted"):
            scores = scores.masked_fill(mask if mask_as == "inverted" else ~mask, fill)
        elif mask is not None and mask_as == "added":
            scores = scores + mask
        weights = scores.softmax(axis)
        if late_scale:
            weights = weights * scale(q)
        if mask is not None and mask_as == "after":
            weights = weights * mask
        if empty == "zero":
            weights = weights.nan_to_num()
        output = weights @ v  # (B, H, T_q, d_k)
        if mask is not None and empty == "zero" and fill > -math.inf:
            output = output * mask.any(-1, keepdim=True)
        return output, weights

    return attention


def _output_only(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _weights_first(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    output, weights = _attention()(q, k, v, mask)
    return weights, output


def _scores_for_weights(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    scores = q @ k.transpose(-2, -1) * q.size(-1) ** -0.5
    scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1).nan_to_num() @ v, scores


def _with_empty_rows_wrong(*mistakes: tuple[str, str, dict[str, Any]]) -> tuple[Mistake, ...]:
    """Each mistake twice: who makes it often has the query that may look nowhere wrong as well, and hears of both."""
    more = " Besides, a query that may look nowhere gets nan from you; its output is zero."
    alone = tuple(Mistake(name, sentence, _attention(**options)) for name, sentence, options in mistakes)
    both = (
        Mistake(f"{name}-nan", sentence + more, _attention(empty="nan", **options))
        for name, sentence, options in mistakes
    )
    return (*alone, *both)


def _qkv(
    rng: np.random.Generator, queries: int, keys: int, d_k: int, batch: int = 2, heads: int = 2
) -> dict[str, Tensor]:
    shapes = {"q": (batch, heads, queries, d_k), "k": (batch, heads, keys, d_k), "v": (batch, heads, keys, d_k)}
    return {name: _normal(rng, *shape) for name, shape in shapes.items()}


def _scaled_dot_product_cases(rng: np.random.Generator) -> list[Case]:
    d_k = int(rng.integers(6, 9))
    padded = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    padded[1, ..., int(rng.integers(2, 4)) :] = False
    square = torch.ones(4, 4, dtype=torch.bool).tril()
    empty = torch.tensor(rng.random((2, 1, 3, 5)) < 0.5)
    empty[..., 0], empty[..., 1] = True, False
    empty[0, 0, 1] = False
    return [
        Case((), _qkv(rng, 3, 5, d_k) | {"mask": None}, note="no mask"),
        Case((), _qkv(rng, 3, 5, d_k) | {"mask": padded}, note="the second text is padded"),
        Case((), _qkv(rng, 4, 4, d_k) | {"mask": square}, note="a causal mask"),
        Case((), _qkv(rng, 3, 5, d_k) | {"mask": empty}, note="a query that may look nowhere"),
    ]


SCALED_DOT_PRODUCT = Exercise(
    id="attention.scaled_dot_product",
    points=4,
    title="Scaled dot-product attention with a mask",
    cases=_scaled_dot_product_cases,
    reference=scaled_dot_product,
    drive=output_and_weights,
    compare=CLOSE,
    forbidden=KERNELS,
    mistakes=(
        *_with_empty_rows_wrong(
            ("no-scale", "You do not divide the scores by √d_k.", {"scale": lambda q: 1.0}),
            ("scale-d", "You divide the scores by d_k, not by √d_k.", {"scale": lambda q: 1 / q.size(-1)}),
            ("wrong-axis", "Your softmax runs over the queries, so that each column of the weights adds up to 1. It "
             "runs over the keys, the last axis: each query shares out its attention.", {"axis": -2}),
            ("inverted", "Your mask is the wrong way round: True means that a query may look there.",
             {"mask_as": "inverted"}),
        ),
        Mistake("nan", "A query that may look nowhere gets nan: softmax over nothing but −∞ is 0/0. Its output is "
                "zero, a sum over nothing.", _attention(empty="nan")),
        Mistake("mean", "A query that may look nowhere gets the mean of all values, padding included, since equal "
                "scores make equal weights, however low they are. Its output is zero.", _attention(empty="mean")),
        Mistake("times-root", "You multiply the scores by √d_k; divide.", _attention(scale=lambda q: q.size(-1) ** 0.5)),
        Mistake("scale-length", "You divide by the root of the number of queries; d_k is the last size of q.",
                _attention(scale=lambda q: q.size(-2) ** -0.5)),
        Mistake("scale-model", "You divide by √d_model, all heads together; each head has d_k = q.size(-1) numbers.",
                _attention(scale=lambda q: (q.size(-1) * q.size(1)) ** -0.5)),
        Mistake("late-scale", "You divide by √d_k after the softmax, so that a row of weights does not add up to 1; "
                "divide the scores.", _attention(late_scale=True)),
        Mistake("axis-heads", "Your softmax runs over the heads; it runs over the keys, the last axis.",
                _attention(axis=1)),
        Mistake("mask-after", "You set weights to zero after the softmax: the rest of the row no longer adds up to 1. "
                "Set the scores to −∞ before it.", _attention(mask_as="after")),
        Mistake("mask-zero", "You set masked scores to 0 (or to a number near it, such as 1e-9); a score of 0 is an "
                "ordinary score, exp(0) = 1. It takes −∞.", _attention(fill=0.0)),
        Mistake("mask-zero-mean", "You set masked scores to 0, an ordinary score, exp(0) = 1; it takes −∞. Besides, "
                "the output of a query that may look nowhere is zero.", _attention(fill=0.0, empty="mean")),
        Mistake("mask-added", "You add the mask to the scores: True counts as 1. A forbidden score must become −∞.",
                _attention(mask_as="added")),
        Mistake("no-mask", "You do not use the mask.", _attention(mask_as="ignored")),
        Mistake("output-only", "Return two things: the output and the weights.", _output_only),
        Mistake("weights-first", "Output and weights are swapped: the output comes first.", _weights_first),
        Mistake("raw-weights", "What you return as weights are the scores before the softmax.", _scores_for_weights),
    ),
    hints=(
        "Scores first: q @ k.transpose(-2, -1) is (…, T_q, T_k), a row for each query. Then mask, softmax, @ v.",
        "scores.masked_fill(~mask, -torch.inf) before the softmax. A row of nothing but −∞ becomes nan there; where "
        "mask.any(-1, keepdim=True) is False, put 0.",
        "scores = q @ ... / math.sqrt(...)\nif mask is not None:\n    scores = scores.masked_fill(...)\n"
        "weights = softmax(scores, ...)\nif mask is not None:\n    weights = weights.masked_fill(..., 0.0)\n"
        "return weights @ ..., weights",
    ),
)  # fmt: skip


# --- masks ------------------------------------------------------------------------------------------


def causal_mask(queries: int, keys: int) -> Tensor:
    """(T_q, T_k), True where the key is not behind the query, by comparing positions."""
    stands_at = torch.arange(keys - queries, keys)  # the queries are the last ones
    return torch.arange(keys) <= stands_at[:, None]


def _tril(diagonal: Callable[[int, int], int]) -> Callable[[int, int], Tensor]:
    def mask(queries: int, keys: int) -> Tensor:
        return torch.ones(queries, keys, dtype=torch.bool).tril(diagonal(queries, keys))

    return mask


def _looks_ahead(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries)


def _forbidden_is_true(queries: int, keys: int) -> Tensor:
    return ~causal_mask(queries, keys)


def _ones_and_zeros(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys).tril(keys - queries)


def _to_be_added(queries: int, keys: int) -> Tensor:
    return torch.zeros(queries, keys).masked_fill(~causal_mask(queries, keys), -math.inf)


def _keys_by_queries(queries: int, keys: int) -> Tensor:
    return causal_mask(queries, keys).T


def _always_square(queries: int, keys: int) -> Tensor:
    return torch.ones(keys, keys, dtype=torch.bool).tril()


def _causal_cases(rng: np.random.Generator) -> list[Case]:
    queries, keys = int(rng.integers(3, 6)), int(rng.integers(6, 9))
    return [
        Case((queries, queries), note="a whole text"),
        Case((queries, keys), note="the last words of a text, the others came before"),
        Case((1, keys), note="one new word at the end"),
    ]


CAUSAL_MASK = Exercise(
    id="attention.causal_mask",
    points=2,
    title="The causal mask",
    cases=_causal_cases,
    reference=causal_mask,
    mistakes=(
        Mistake("blind-to-itself", "Shifted by one: a word does not see itself, and the first word sees nothing. A "
                "query sees its own position and all before it.", _tril(lambda q, k: k - q - 1)),
        Mistake("one-ahead", "Shifted by one: each word sees its successor, which is what it has to predict.",
                _tril(lambda q, k: k - q + 1)),
        Mistake("ahead", "This is the transposed mask: each word sees what comes after it and nothing before. Rows "
                "are queries, columns keys.", _looks_ahead),
        Mistake("at-the-start", "Right for equal lengths only. The queries are the *last* positions: query 0 stands at "
                "position keys − queries.", _tril(lambda q, k: 0)),
        Mistake("wrong-shift", "The shift has the wrong sign: query i stands at position i + keys − queries.",
                _tril(lambda q, k: q - k)),
        Mistake("inverted", "The wrong way round: True means that a query may look there.", _forbidden_is_true),
        Mistake("numbers", "These are ones and zeros; the mask is boolean. ~ of a number is not what you expect.",
                _ones_and_zeros),
        Mistake("to-add", "This mask of 0 and −∞ is made to be added to scores; here a mask is boolean.",
                _to_be_added),
        Mistake("keys-by-queries", "The shape is (queries, keys), a row for each query; yours is (keys, queries).",
                _keys_by_queries),
        Mistake("square", "There is a row for each query, not for each key: the shape is (queries, keys).",
                _always_square),
    ),
    hints=(
        "Draw the square case for three words. Which entries of the first row are True?",
        "Either compare positions, torch.arange(keys) <= position of the query, or cut a matrix of True with tril.",
        "torch.ones(queries, keys, dtype=torch.bool).tril(...): the number says how far the diagonal moves right.",
    ),
)  # fmt: skip


def padding_mask(attention_mask: Tensor) -> Tensor:
    """(B, 1, 1, T), True for words and False for padding."""
    return attention_mask.eq(1)[:, None, None, :]


def _reshaped(*place: Any) -> Callable[[Tensor], Tensor]:
    return lambda attention_mask: attention_mask.bool()[place]


def _queries_and_keys(attention_mask: Tensor) -> Tensor:
    real = attention_mask.bool()
    return (real[:, :, None] & real[:, None, :])[:, None]


def _padding_is_true(attention_mask: Tensor) -> Tensor:
    return ~padding_mask(attention_mask)


def _still_numbers(attention_mask: Tensor) -> Tensor:
    return attention_mask[:, None, None, :]


def _padding_to_be_added(attention_mask: Tensor) -> Tensor:
    return torch.zeros(attention_mask.shape).masked_fill(attention_mask == 0, -math.inf)[:, None, None, :]


def _by_length(attention_mask: Tensor) -> Tensor:
    lengths = attention_mask.sum(-1, keepdim=True)
    return (torch.arange(attention_mask.size(1)) < lengths)[:, None, None, :]


def _first_text_only(attention_mask: Tensor) -> Tensor:
    return padding_mask(attention_mask[:1]).expand(attention_mask.size(0), -1, -1, -1)


def _padding_cases(rng: np.random.Generator) -> list[Case]:
    length, cases = int(rng.integers(5, 8)), []
    for note in ("padded on the right", "padded on the left", "a single text", "as many texts as words"):
        texts = {"a single text": 1, "as many texts as words": length}.get(note, 3)
        words = [length, *rng.integers(1, length, texts).tolist()][-texts:]
        ids = torch.zeros(texts, length, dtype=torch.long)
        for row, count in enumerate(words):
            ids[row, :count] = 1
        cases.append(Case((ids.flip(-1) if "left" in note else ids,), note=note))
    return cases


PADDING_MASK = Exercise(
    id="attention.padding_mask",
    points=2,
    title="The padding mask",
    cases=_padding_cases,
    reference=padding_mask,
    mistakes=(
        Mistake("queries", "You mask the padded queries: the shape (B, 1, T, 1) broadcasts over keys. Nobody reads "
                "what padding asks for; what must not be looked at are padded *keys*, the last axis.",
                _reshaped(slice(None), None, slice(None), None)),
        Mistake("two-axes", "The shape (B, T) does not broadcast to (B, H, T_q, T_k): torch lines sizes up from the "
                "right and takes your texts for queries. Put two axes of size 1 between.", _reshaped()),
        Mistake("three-axes", "With (B, 1, T) torch takes your texts for heads; the shape is (B, 1, 1, T).",
                _reshaped(slice(None), None, slice(None))),
        Mistake("both", "You mask padded queries as well, which leaves them nothing to look at; keys are enough: "
                "(B, 1, 1, T).", _queries_and_keys),
        Mistake("inverted", "The wrong way round: True means that a query may look there.", _padding_is_true),
        Mistake("numbers", "These are still ones and zeros; the mask is boolean.", _still_numbers),
        Mistake("to-add", "This mask of 0 and −∞ is made to be added to scores; here a mask is boolean.",
                _padding_to_be_added),
        Mistake("by-length", "You count words and fill from the left; padding can stand on the left, too.", _by_length),
        Mistake("first-text", "Every text gets the mask of the first one.", _first_text_only),
    ),
    hints=(
        "The scores are (B, H, T_q, T_k). Which of the four axes does padding concern?",
        "A mask broadcasts along axes of size 1: heads and queries share one.",
        "attention_mask.bool()[:, ..., ..., :]: None makes an axis of size 1.",
    ),
)  # fmt: skip


# --- heads ------------------------------------------------------------------------------------------


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, d) to (B, H, T, d / H): the columns cut into blocks, one for each head."""
    return torch.stack(x.chunk(heads, dim=-1), dim=1)


def _viewed(x: Tensor, heads: int) -> Tensor:
    batch, length, d = x.shape
    return x.reshape(batch, heads, length, d // heads)


def _interleaved(x: Tensor, heads: int) -> Tensor:
    batch, length, d = x.shape
    return x.reshape(batch, length, d // heads, heads).permute(0, 3, 1, 2)


def _not_transposed(x: Tensor, heads: int) -> Tensor:
    batch, length, d = x.shape
    return x.reshape(batch, length, heads, d // heads)


def _transposed_head(x: Tensor, heads: int) -> Tensor:
    return split_heads(x, heads).transpose(-2, -1)


def _heads_first(x: Tensor, heads: int) -> Tensor:
    return split_heads(x, heads).transpose(0, 1)


def _folded(x: Tensor, heads: int) -> Tensor:
    return split_heads(x, heads).flatten(0, 1)


def _size_for_number(x: Tensor, heads: int) -> Tensor:
    return split_heads(x, x.size(-1) // heads)


def _copied(x: Tensor, heads: int) -> Tensor:
    return torch.stack([x] * heads, dim=1)


def _split_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for batch, length, heads, d_k, note in ((2, 5, 3, 4, "three heads"), (1, 3, 2, 5, "a single text, two heads"),
                                            (3, 5, 4, 2, "four heads")):  # fmt: skip
        cases.append(Case((_normal(rng, batch, length, heads * d_k), heads), note=note))
    return cases


SPLIT_HEADS = Exercise(
    id="attention.split_heads",
    points=2,
    title="Splitting heads",
    cases=_split_cases,
    reference=split_heads,
    mistakes=(
        Mistake("wrong-reshape", "The shape is right, the numbers are not: reshaping straight to (B, H, T, d/H) fills "
                "the first head with the first *words*. Reshape to (B, T, H, d/H), then swap two axes.", _viewed),
        Mistake("interleaved", "Head 0 gets every H-th column; it gets the first d/H columns in a row: reshape to "
                "(B, T, H, d/H), not to (B, T, d/H, H).", _interleaved),
        Mistake("not-transposed", "The shape is still (B, T, H, d/H); attention needs the words beside the head's own "
                "numbers: swap axes 1 and 2.", _not_transposed),
        Mistake("transposed-head", "The last two axes are swapped: (B, H, d/H, T).", _transposed_head),
        Mistake("heads-first", "Heads and texts are swapped: the shape is (H, B, T, d/H).", _heads_first),
        Mistake("folded", "You fold heads into the batch, (B·H, T, d/H); here they keep an axis of their own.",
                _folded),
        Mistake("size-for-number", "heads is the number of heads, not the size of one.", _size_for_number),
        Mistake("copied", "Every head gets all of x; each gets a part of its columns.", _copied),
    ),
    hints=(
        "Only the last axis is cut. The words stay where they are.",
        "x.unflatten(-1, (heads, -1)) or a reshape to (B, T, H, d/H); then transpose.",
        "batch, length, d_model = x.shape\nreturn x.reshape(batch, length, ..., ...).transpose(...)",
    ),
)  # fmt: skip

Weights = dict[str, tuple[Tensor, Tensor]]


def multi_head_attention(
    x: Tensor, w: dict[str, tuple[Tensor, Tensor]], heads: int, mask: Tensor | None = None
) -> Tensor:
    """(B, T, d) to (B, T, d) by torch's nn.MultiheadAttention with these weights."""
    d = x.size(-1)
    module = nn.MultiheadAttention(d, heads, batch_first=True).eval()
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.cat([w[name][0] for name in "qkv"]))
        module.in_proj_bias.copy_(torch.cat([w[name][1] for name in "qkv"]))
        module.out_proj.weight.copy_(w["o"][0])
        module.out_proj.bias.copy_(w["o"][1])
        if mask is not None:  # torch's modules mean the opposite by True, and want an axis B·H
            mask = ~mask.expand(x.size(0), heads, x.size(1), x.size(1)).flatten(0, 1)
        return module(x, x, x, attn_mask=mask, need_weights=False)[0]


def _merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(-2)


def _multi_head(
    split: Callable[[Tensor, int], Tensor] = split_heads,
    merge: Callable[[Tensor], Tensor] = _merged,
    names: str = "qkv",
    last: bool = True,
    biases: bool = True,
    transpose: bool = True,
    masked: bool = True,
    residual: bool = False,
    scale_model: bool = False,
    scaled: bool = True,
) -> Callable[..., Tensor]:
    """Multi-head attention by hand with one thing wrong; "-" in ``names`` is a projection left out."""

    def attention(x: Tensor, w: Weights, heads: int, mask: Tensor | None = None) -> Tensor:
        def project(y: Tensor, name: str) -> Tensor:
            if name == "-":
                return y
            return y @ (w[name][0].T if transpose else w[name][0]) + biases * w[name][1]

        q, k, v = (split(project(x, name), heads) for name in names)
        d = x.size(-1) if scale_model else q.size(-1)
        inner = _attention(scale=lambda q: d**-0.5 if scaled else 1.0)
        merged = merge(inner(q, k, v, mask if masked else None)[0])
        output = project(merged, "o") if last else merged
        return output + x if residual else output

    return attention


def _flat_merge(x: Tensor) -> Tensor:
    return x.reshape(x.size(0), x.size(2), -1)


def _interleaved_merge(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(-2)


def _one_head(x: Tensor, heads: int) -> Tensor:
    return x[:, None]


def _random_weights(rng: np.random.Generator, d: int) -> Weights:
    """A matrix (out, in) and a bias for each of q, k, v, o."""
    return {name: (_normal(rng, d, d) / d**0.5, _normal(rng, d)) for name in "qkvo"}


def _multi_head_cases(rng: np.random.Generator) -> list[Case]:
    cases: list[Case] = []
    for batch, length, heads, d_k, kind in ((2, 5, 3, 4, ""), (3, 4, 2, 3, "padding"), (1, 5, 2, 4, "causal")):
        mask: Tensor | None = None
        if kind == "padding":
            mask = torch.ones(batch, 1, 1, length, dtype=torch.bool)
            mask[1, ..., -1], mask[2, ..., -2:] = False, False
        elif kind == "causal":
            mask = torch.ones(length, length, dtype=torch.bool).tril()
        x, w = _normal(rng, batch, length, heads * d_k), _random_weights(rng, heads * d_k)
        cases.append(Case((x, w, heads, mask), note=f"a {kind} mask" if kind else "no mask"))
    return cases


MULTI_HEAD = Exercise(
    id="attention.multi_head_attention",
    points=4,
    title="Multi-head attention",
    cases=_multi_head_cases,
    reference=multi_head_attention,
    compare=CLOSE,
    forbidden=KERNELS,
    mistakes=(
        Mistake("no-output-projection", "The output projection W_O is missing: without it no head's result ever meets "
                "another's.", _multi_head(last=False)),
        Mistake("flat-merge", "You merge the heads by a plain reshape of (B, H, T, d/H), which mixes up words and "
                "heads. Swap axes 1 and 2 back first.", _multi_head(merge=_flat_merge)),
        Mistake("wrong-reshape", "Heads are split and merged by a reshape without swapping axes: a head then sees some "
                "words with all their columns, not all words with some of their columns.",
                _multi_head(split=_viewed, merge=_flat_merge)),
        Mistake("interleaved", "Heads take every H-th column; each takes d/H columns in a row.",
                _multi_head(split=_interleaved, merge=_interleaved_merge)),
        Mistake("one-head", "You never split the heads: this is one head of size d_model.",
                _multi_head(split=_one_head)),
        Mistake("not-transposed", "torch stores a linear map as (out, in): functional.linear(x, weight, bias), or "
                "x @ weight.T + bias.", _multi_head(transpose=False)),
        Mistake("no-bias", "The biases are missing.", _multi_head(biases=False)),
        Mistake("q-for-k", "The keys are made with the queries' weights; they have their own, w[\"k\"].",
                _multi_head(names="qqv")),
        Mistake("k-for-v", "The values are made with the keys' weights; they have their own, w[\"v\"].",
                _multi_head(names="qkk")),
        Mistake("raw-values", "The values are x itself; they have a projection, w[\"v\"].", _multi_head(names="qk-")),
        Mistake("no-projections", "Queries, keys and values are x itself; each has its projection.",
                _multi_head(names="---")),
        Mistake("no-mask", "You do not hand the mask on to the attention.", _multi_head(masked=False)),
        Mistake("residual", "You add x to the result; the residual sum belongs to the layer around it.",
                _multi_head(residual=True)),
        Mistake("no-scale", "The scores are not divided by √d_k.", _multi_head(scaled=False)),
        Mistake("scale-model", "The scores are divided by √d_model; each head has d_k = d_model / heads numbers.",
                _multi_head(scale_model=True)),
    ),
    hints=(
        "Five steps, and three are functions that you have: project, split, attend, merge, project.",
        "functional.linear(x, *w[\"q\"]) is (B, T, d). Merging undoes splitting: swap axes 1 and 2, then flatten.",
        "q, k, v = (split_heads(functional.linear(x, *w[name]), heads) for name in \"qkv\")\n"
        "output, _ = scaled_dot_product(...)\nmerged = output.transpose(...).flatten(...)\nreturn ...",
    ),
)  # fmt: skip


# --- cross-attention --------------------------------------------------------------------------------


def cross_attention(
    x: Tensor, memory: Tensor, w: dict[str, tuple[Tensor, Tensor]], heads: int, real: Tensor
) -> tuple[Tensor, Tensor]:
    """Output (B, T_q, d) and weights (B, H, T_q, T_k) by torch's nn.MultiheadAttention with these weights."""
    module = nn.MultiheadAttention(x.size(-1), heads, batch_first=True).eval()
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.cat([w[name][0] for name in "qkv"]))
        module.in_proj_bias.copy_(torch.cat([w[name][1] for name in "qkv"]))
        module.out_proj.weight.copy_(w["o"][0])
        module.out_proj.bias.copy_(w["o"][1])
        # As a mask of every head: to check a key_padding_mask torch loads sympy, 34 MB that each judge would carry.
        padding = ~real.bool()[:, None, None].expand(-1, heads, x.size(1), -1).flatten(0, 1)
        return module(x, memory, memory, attn_mask=padding, need_weights=True, average_attn_weights=False)


def _cross(
    sides: str = "xmm", last: bool = True, pad: str = "keys", mean: bool = False, order: int = 1
) -> Callable[..., Any]:
    """Cross-attention by hand with one thing wrong; ``sides`` says where q, k and v come from, x or memory."""

    def attention(x: Tensor, memory: Tensor, w: Weights, heads: int, real: Tensor) -> tuple[Tensor, Tensor]:
        source = {"x": x, "m": memory}
        projected = (source[side] @ w[name][0].T + w[name][1] for side, name in zip(sides, "qkv", strict=True))
        q, k, v = (split_heads(y, heads) for y in projected)
        keys = real.bool()[:, None, None, :]
        mask = {
            "keys": keys,
            "ignored": None,
            "inverted": ~keys,
            "queries": real.bool()[:, None, :, None],
            "causal": keys & causal_mask(x.size(1), memory.size(1)),
        }[pad]
        output, weights = _attention()(q, k, v, mask)
        output = _merged(output)
        if last:
            output = output @ w["o"][0].T + w["o"][1]
        weights = weights.mean(1) if mean else weights
        return (output, weights) if order == 1 else (weights, output)

    return attention


def _output_of_cross(x: Tensor, memory: Tensor, w: Weights, heads: int, real: Tensor) -> Tensor:
    return _cross()(x, memory, w, heads, real)[0]


def _cross_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for batch, queries, keys, heads, d_k, gone, note in (
        (2, 4, 4, 2, 3, 1, "both texts of four words, one of memory's padded"),
        (3, 2, 5, 3, 2, 2, "two words ask five, some padded"),
        (2, 6, 3, 2, 4, 0, "more words ask than are there, none padded"),
    ):
        real = torch.ones(batch, keys, dtype=torch.long)
        if gone:
            real[-1, -gone:] = 0
        d = heads * d_k
        inputs = _normal(rng, batch, queries, d), _normal(rng, batch, keys, d), _random_weights(rng, d)
        cases.append(Case((*inputs, heads, real), note=note))
    return cases


CROSS_ATTENTION = Exercise(
    id="attention.cross_attention",
    points=3,
    title="Cross-attention",
    cases=_cross_cases,
    reference=cross_attention,
    compare=CLOSE,
    forbidden=KERNELS,
    mistakes=(
        Mistake("self", "Keys and values come from x: that is self-attention. They come from memory, the text that is "
                "asked.", _cross("xxx")),
        Mistake("swapped", "x and memory are swapped: x asks (queries), memory answers (keys and values).",
                _cross("mxx")),
        Mistake("values-from-x", "The values come from x; keys and values belong together, both come from memory.",
                _cross("xmx")),
        Mistake("keys-from-x", "The keys come from x; keys and values belong together, both come from memory.",
                _cross("xxm")),
        Mistake("memory-only", "The queries come from memory; x is the text that asks.", _cross("mmm")),
        Mistake("no-mask", "You ignore real: padding of memory is looked at.", _cross(pad="ignored")),
        Mistake("inverted", "The mask is the wrong way round: only padding is looked at.", _cross(pad="inverted")),
        Mistake("queries", "The padding mask stands on the queries' axis; it is memory, the keys, that is padded.",
                _cross(pad="queries")),
        Mistake("causal", "A causal mask has no place here: the asked text is complete, and its positions are not "
                "those of x.", _cross(pad="causal")),
        Mistake("no-output-projection", "The output projection W_O is missing.", _cross(last=False)),
        Mistake("mean-weights", "You average the weights over the heads; return them all, (B, H, T_q, T_k).",
                _cross(mean=True)),
        Mistake("weights-first", "Output and weights are swapped: the output comes first.", _cross(order=-1)),
        Mistake("output-only", "Return two things: the output and the weights.", _output_of_cross),
    ),
    hints=(
        "It is multi-head attention; only who is projected to q, and who to k and v, has changed.",
        "real is what a tokenizer calls attention_mask, and you have a function that turns it into a mask.",
        "q = split_heads(functional.linear(..., *w[\"q\"]), heads)\nk, v = (... for name in \"kv\")\n"
        "output, weights = scaled_dot_product(q, k, v, padding_mask(...))",
    ),
)  # fmt: skip


# --- positions --------------------------------------------------------------------------------------


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """(T, d), pair i turning by 10000^(−2i/d) a word (Vaswani et al. 2017, §3.5): a complex number on a circle."""
    table = torch.empty(length, d_model)
    for position in range(length):
        for i in range(d_model // 2):
            turned = cmath.exp(1j * position / 10_000 ** (2 * i / d_model))
            table[position, 2 * i], table[position, 2 * i + 1] = turned.imag, turned.real
    return table


def _positions(
    exponent: Callable[[np.ndarray, int], np.ndarray] = lambda column, d: (column - column % 2) / d,
    base: float = 10_000.0,
    first: int = 0,
    even: Callable[[Any], Any] = np.sin,
    odd: Callable[[Any], Any] = np.cos,
    turn: float = 1.0,
) -> Callable[[int, int], Tensor]:
    """The table by numpy with one thing wrong; ``exponent`` gives each column's power of the base."""

    def table(length: int, d_model: int) -> Tensor:
        column, position = np.arange(d_model), np.arange(first, first + length)[:, None]
        angle = turn * position / base ** exponent(column, d_model)  # (T, d)
        return torch.tensor(np.where(column % 2 == 0, even(angle), odd(angle)), dtype=torch.float32)

    return table


def _halves(length: int, d_model: int) -> Tensor:
    table = _positions()(length, d_model)
    return torch.cat((table[:, 0::2], table[:, 1::2]), dim=1)


def _transposed_table(length: int, d_model: int) -> Tensor:
    return _positions()(length, d_model).T


def _multiplied(length: int, d_model: int) -> Tensor:
    return _positions(exponent=lambda column, d: -(column - column % 2) / d)(length, d_model)


def _position_cases(rng: np.random.Generator) -> list[Case]:
    return [
        Case((int(rng.integers(4, 7)), 8), note="eight columns"),
        Case((int(rng.integers(9, 13)), 6), note="six columns"),
        Case((int(rng.integers(14, 20)), 12), note="twelve columns"),
    ]


POSITIONS = Exercise(
    id="attention.sinusoidal_positions",
    points=3,
    title="Sinusoidal positions",
    cases=_position_cases,
    reference=sinusoidal_positions,
    compare=Compare(rtol=1e-3, atol=1e-5),
    mistakes=(
        Mistake("own-frequencies", "Each column has a frequency of its own: the exponent is the column over d. Columns "
                "2i and 2i+1 are a pair and share the exponent 2i/d.", _positions(lambda column, d: column / d)),
        Mistake("half-exponent", "The frequencies fall too slowly: the exponent is 2i/d, you use i/d.",
                _positions(lambda column, d: (column // 2) / d)),
        Mistake("double-exponent", "The frequencies fall too fast: in 2i/d, i counts pairs, so 2i is the even column's "
                "own number and is not doubled again.", _positions(lambda column, d: 2 * (column - column % 2) / d)),
        Mistake("last-is-end", "You divide by d/2 − 1, so that the last pair reaches 10000; the paper divides by d/2.",
                _positions(lambda column, d: (column // 2) / (d / 2 - 1))),
        Mistake("swapped", "Sine and cosine are swapped: sine in even columns.", _positions(even=np.cos, odd=np.sin)),
        Mistake("sine-only", "Odd columns have the cosine.", _positions(odd=np.sin)),
        Mistake("halves", "All sines stand on the left, all cosines on the right. Some programs do that, and a model "
                "would not mind; the paper's formula, and this exercise, take them in turns.", _halves),
        Mistake("base", "The base is 10000, not 1000.", _positions(base=1000.0)),
        Mistake("from-one", "You count positions from 1; the first is 0.", _positions(first=1)),
        Mistake("transposed", "The shape is (length, d_model), a row for each position.", _transposed_table),
        Mistake("multiplied", "You multiply the position by 10000^(2i/d); divide.", _multiplied),
        Mistake("two-pi", "There is no 2π in the formula: pair 0 turns by 1 radian a word.",
                _positions(turn=2 * math.pi)),
    ),
    hints=(
        "Columns come in pairs: 0 and 1 are pair i = 0, 2 and 3 are pair 1. A pair has one frequency.",
        "torch.arange(0, d_model, 2) is 2i for every pair. position / 10000 ** (…) broadcasts to (length, d_model/2).",
        "angle = torch.arange(length)[:, None] / 10000 ** (...)\ntable = torch.empty(length, d_model)\n"
        "table[:, 0::2] = ...\ntable[:, 1::2] = ...",
    ),
)  # fmt: skip


EXERCISES = (
    SOFTMAX,
    SCALED_DOT_PRODUCT,
    CAUSAL_MASK,
    PADDING_MASK,
    SPLIT_HEADS,
    MULTI_HEAD,
    CROSS_ATTENTION,
    POSITIONS,
)
