"""What students do instead, in lab 03: the mistakes' implementations, most of them one function with a knob for each.

They stand apart from ``architecture.py`` because there are many. With all knobs at rest each is right in another way
than its reference, and counts as a second right answer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pangu_lab.model.attention import causal_mask, merge_heads, scaled_dot_product, split_heads

EPS = 1e-12
Weights = Mapping[str, Tensor]


def _part(w: Weights, name: str) -> tuple[Tensor, Tensor]:
    return w[f"{name}.weight"], w[f"{name}.bias"]


def layer_norm(
    axis: int | tuple[int, ...] = -1,
    correction: int = 0,
    scale: Callable[[Tensor, float], Tensor] = lambda var, eps: (var + eps).sqrt(),
    center: bool = True,
    affine: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda y, w, b: w * y + b,
) -> Any:
    def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        var = x.var(axis, correction=correction, keepdim=True)
        y = (x - x.mean(axis, keepdim=True) if center else x) / scale(var, eps)
        return affine(y, weight, bias)

    return norm


def rms_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt() + bias


def identity(x: Tensor) -> Tensor:
    return x


def feed_forward(
    middle: Callable[[Tensor], Tensor] = functional.gelu,
    first: Callable[[Tensor], Tensor] = identity,
    last: Callable[[Tensor], Tensor] = identity,
    biases: tuple[int, int] = (1, 1),
    residual: bool = False,
    layout: str = "torch",
) -> Any:
    def ffn(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        u, v = {"torch": (w1.T, w2.T), "plain": (w1, w2), "swapped": (w2, w1)}[layout]
        h = middle(first(x) @ u + biases[0] * b1)  # (…, d_ff)
        y = last(h @ v + biases[1] * b2)  # (…, d)
        return x + y if residual else y

    return ffn


def attend(
    x: Tensor, memory: Tensor, w: Weights, name: str, heads: int, mask: Tensor | None, temper: float = 1.0
) -> Tensor:
    """Multi-head attention by the library's functions: x (B, T_q, d) asks, memory (B, T_k, d) answers."""
    q, k, v = (
        split_heads(functional.linear(h, *_part(w, f"{name}.{part}")), heads)  # (B, H, T, d/H)
        for h, part in ((x, "q"), (memory, "k"), (memory, "v"))
    )
    return functional.linear(merge_heads(scaled_dot_product(temper * q, k, v, mask)[0]), *_part(w, f"{name}.o"))


def norm(x: Tensor, w: Weights, name: str) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], *_part(w, name), EPS)


def ffn(x: Tensor, w: Weights) -> Tensor:
    up = functional.gelu(functional.linear(x, *_part(w, "feed_forward.up")))
    return functional.linear(up, *_part(w, "feed_forward.down"))


def plain_encoder(x: Tensor, w: Weights, heads: int, mask: Tensor | None = None, norm_position: str = "post") -> Tensor:
    return sublayers(x, norm_position, *encoder_parts(w, heads, mask))


def encoder_parts(w: Weights, heads: int, mask: Tensor | None) -> tuple[Any, ...]:
    """(sublayer, norm) in order."""
    return (
        (lambda h: attend(h, h, w, "self_attention", heads, mask), lambda h: norm(h, w, "self_attention_norm")),
        (lambda h: ffn(h, w), lambda h: norm(h, w, "feed_forward_norm")),
    )


def sublayers(x: Tensor, norm_position: str, *parts: Any) -> Tensor:
    for sublayer, norm in parts:
        x = x + sublayer(norm(x)) if norm_position == "pre" else norm(x + sublayer(x))
    return x


def encoder(step: Callable[..., Tensor], use_mask: bool = True, order: tuple[int, ...] = (0, 1)) -> Any:
    """An encoder layer whose sublayers are put together by ``step(x, sublayer, norm, norm_position, number)``."""

    def layer(x: Tensor, w: Weights, heads: int, mask: Tensor | None = None, norm_position: str = "post") -> Tensor:
        parts = encoder_parts(w, heads, mask if use_mask else None)
        for number in order:
            x = step(x, *parts[number], norm_position, number)
        return x

    return layer


def right_step(x: Tensor, sublayer: Any, norm: Any, norm_position: str, number: int) -> Tensor:
    return x + sublayer(norm(x)) if norm_position == "pre" else norm(x + sublayer(x))


def always(norm_position: str) -> Any:
    return lambda x, sublayer, norm, _, number: right_step(x, sublayer, norm, norm_position, number)


def swapped(x: Tensor, sublayer: Any, norm: Any, norm_position: str, number: int) -> Tensor:
    return right_step(x, sublayer, norm, "post" if norm_position == "pre" else "pre", number)


def without_residual(*numbers: int) -> Any:
    def step(x: Tensor, sublayer: Any, norm: Any, norm_position: str, number: int) -> Tensor:
        if number not in numbers:
            return right_step(x, sublayer, norm, norm_position, number)
        return sublayer(norm(x)) if norm_position == "pre" else norm(sublayer(x))

    return step


def without_norm(x: Tensor, sublayer: Any, norm: Any, norm_position: str, number: int) -> Tensor:
    return x + sublayer(x)


def residual_of_normed(x: Tensor, sublayer: Any, norm: Any, norm_position: str, number: int) -> Tensor:
    h = norm(x)
    return h + sublayer(h) if norm_position == "pre" else norm(x + sublayer(x))


def norm_of_sublayer(x: Tensor, sublayer: Any, norm: Any, norm_position: str, number: int) -> Tensor:
    return x + sublayer(norm(x)) if norm_position == "pre" else x + norm(sublayer(x))


def one_norm(x: Tensor, w: Weights, heads: int, mask: Tensor | None = None, norm_position: str = "post") -> Tensor:
    (attention, norm), (ffn, _) = encoder_parts(w, heads, mask)
    return sublayers(x, norm_position, (attention, norm), (ffn, norm))


def swapped_norms(x: Tensor, w: Weights, heads: int, mask: Tensor | None = None, norm_position: str = "post") -> Tensor:
    (attention, norm_1), (ffn, norm_2) = encoder_parts(w, heads, mask)
    return sublayers(x, norm_position, (attention, norm_2), (ffn, norm_1))


def parallel(x: Tensor, w: Weights, heads: int, mask: Tensor | None = None, norm_position: str = "post") -> Tensor:
    (attention, norm_1), (ffn, norm_2) = encoder_parts(w, heads, mask)
    if norm_position == "pre":
        return x + attention(norm_1(x)) + ffn(norm_2(x))
    return norm_2(norm_1(x + attention(x)) + ffn(x))


def decoder(
    step: Callable[..., Tensor] = right_step,
    order: tuple[int, ...] = (0, 1, 2),
    causal: bool = True,
    use_mask: bool = True,
    cross: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda h, memory: (h, memory),
    cross_causal: bool = False,
    norm_memory: bool = False,
    names: tuple[str, str] = ("self_attention", "cross_attention"),
) -> Any:
    """A decoder layer in which one thing can be wrong; ``cross`` says who asks whom in cross-attention."""

    def layer(
        x: Tensor,
        memory: Tensor,
        w: Weights,
        heads: int,
        memory_mask: Tensor | None = None,
        norm_position: str = "post",
    ) -> Tensor:
        look_back = causal_mask(x.shape[1], x.shape[1]) if causal else None

        def cross_attention(h: Tensor) -> Tensor:
            asks, answers = cross(h, norm(memory, w, "cross_attention_norm") if norm_memory else memory)
            mask = memory_mask if use_mask and answers.shape == memory.shape else None
            if cross_causal:
                early = torch.ones(asks.shape[1], answers.shape[1], dtype=torch.bool).tril()
                mask = early if mask is None else mask & early
            if answers is h:
                mask = look_back
            return attend(asks, answers, w, names[1], heads, mask)

        parts = (
            (lambda h: attend(h, h, w, names[0], heads, look_back), lambda h: norm(h, w, "self_attention_norm")),
            (cross_attention, lambda h: norm(h, w, "cross_attention_norm")),
            (lambda h: ffn(h, w), lambda h: norm(h, w, "feed_forward_norm")),
        )
        for number in order:
            x = step(x, *parts[number], norm_position, number)
        return x

    return layer


plain_decoder = decoder()


def added(parts: list[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*parts)).sum(dim=0)


def embed(
    parts: tuple[str, ...] = ("words", "positions", "segments"),
    position: Callable[[Tensor], Tensor] = lambda ids: torch.arange(ids.shape[1]),
    segment: Callable[[Tensor], Tensor] = identity,
    join: Callable[[list[Tensor]], Tensor] = added,
    norm: Callable[[Tensor, Weights], Tensor] = lambda x, w: norm(x, w, "norm"),
    word_scale: float | None = 1.0,
) -> Any:
    def embeddings(ids: Tensor, segments: Tensor, w: Weights) -> Tensor:
        rows = {"words": ids, "positions": position(ids), "segments": segment(segments)}
        looked_up = [w[f"{name}.weight"][rows[name]] for name in parts]
        looked_up[0] = looked_up[0] * (word_scale or looked_up[0].shape[-1] ** 0.5)
        return norm(join(looked_up), w)

    return embeddings


def embed_norm_first(ids: Tensor, segments: Tensor, w: Weights) -> Tensor:
    words = norm(w["words.weight"][ids], w, "norm")
    return words + w["positions.weight"][: ids.shape[1]] + w["segments.weight"][segments]


class Functional(nn.Module):
    """Tied by using the table itself, without a second module; and the ways to spoil it."""

    def __init__(self, vocab: int, d_model: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, d_model)
        self.bias = nn.Parameter(torch.zeros(vocab))

    def table(self) -> Tensor:
        return self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.embedding(ids)) @ self.table().T + self.bias


class Detached(Functional):
    def table(self) -> Tensor:
        return self.embedding.weight.detach()


class Scaled(Functional):
    def table(self) -> Tensor:
        return self.embedding.weight / self.embedding.embedding_dim**0.5


class NoTanh(Functional):
    def forward(self, ids: Tensor) -> Tensor:
        return self.embedding(ids) @ self.table().T + self.bias


class NoBias(Functional):
    def __init__(self, vocab: int, d_model: int) -> None:
        super().__init__(vocab, d_model)
        del self.bias

    def forward(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.embedding(ids)) @ self.table().T


class Untied(nn.Module):
    def __init__(self, vocab: int, d_model: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, d_model)
        self.output = nn.Linear(d_model, vocab)
        self.tie()

    def tie(self) -> None:
        pass

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(torch.tanh(self.embedding(ids)))


class Copied(Untied):
    def tie(self) -> None:
        self.output.weight = nn.Parameter(self.embedding.weight.detach().clone())


class SharedMemory(Untied):
    def tie(self) -> None:
        self.output.weight.data = self.embedding.weight.data


class CopiedEachTime(Untied):
    def forward(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            self.output.weight.copy_(self.embedding.weight)
        return super().forward(ids)


class FrozenTable(Untied):
    def tie(self) -> None:
        self.output.weight = self.embedding.weight
        self.embedding.weight.requires_grad_(False)


def query(
    query: Callable[[Tensor, Tensor], Tensor] = lambda p, h: p,
    residual: Callable[[Tensor, Tensor], Tensor] = lambda x, p: x,
    rows: Callable[[int], Any] = lambda length: torch.arange(length),
    causal: bool = True,
    norm_query: bool = False,
    norm_keys: bool = True,
    temper: Callable[[int], float] = lambda heads: 1.0,
    with_ffn: bool = True,
    post: bool = False,
) -> Any:
    def layer(x: Tensor, w: Weights, heads: int) -> Tensor:
        length = x.shape[1]
        p = w["positions.weight"][rows(length)].expand_as(x)
        h = norm(x, w, "self_attention_norm") if norm_keys and not post else x
        asks = norm(p, w, "self_attention_norm") if norm_query else query(p, h)
        mask = causal_mask(length, length) if causal else None
        a = residual(x, p) + attend(asks, h, w, "self_attention", heads, mask, temper(heads))
        if post:
            a = norm(a, w, "self_attention_norm")
            return norm(a + ffn(a, w), w, "feed_forward_norm")
        return a + ffn(norm(a, w, "feed_forward_norm"), w) if with_ffn else a

    return layer


plain_query = query()
