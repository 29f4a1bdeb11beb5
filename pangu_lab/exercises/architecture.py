"""Exercises of lab 03: the parts of the PanGu model, from layer norm to the query layer, and how large it is.

References come from torch's own modules with copied weights; the formula that counts a model's parameters is held
against models that are really built. Layers get their weights as a model's ``state_dict`` names them, so that an
answer runs on a real layer's weights as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pangu_lab.exercises import architecture_mistakes as wrong
from pangu_lab.exercises.engine import Case, Compare, Exercise, Mistake
from pangu_lab.model.configuration import PanguConfig

EPS = 1e-12
CLOSE = Compare(rtol=1e-3, atol=1e-4)
Weights = Mapping[str, Tensor]


def _normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.tensor(scale * rng.normal(size=shape), dtype=torch.float32)


# --- layer norm -------------------------------------------------------------------------------------


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Each vector of x (…, d) with mean 0 and variance 1, then scaled and shifted, by torch."""
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _norm_cases(rng: np.random.Generator) -> list[Case]:
    def case(note: str, *shape: int, scale: float, eps: float, flat: bool = False) -> Case:
        x = _normal(rng, *shape, scale=scale) + 2 * scale
        if flat:
            x[0, 0] = 3.0
        d = shape[-1]
        weight = _normal(rng, d, scale=0.3) + 1.5
        return Case((x, weight, _normal(rng, d) + 1, eps), note=note)

    d = int(rng.integers(4, 7))
    return [
        case("a large ε shows where it stands", 2, 3, d, scale=1.0, eps=0.2),
        case("small numbers, for which ε matters", 3, 2, d + 1, scale=3e-3, eps=1e-5),
        case("a vector of equal numbers", 2, 4, d, scale=1.0, eps=1e-5, flat=True),
    ]


NORM = Exercise(
    id="architecture.layer_norm",
    points=2,
    title="Layer norm",
    cases=_norm_cases,
    reference=layer_norm,
    compare=Compare(rtol=1e-3, atol=1e-5),
    mistakes=(
        Mistake("over-tokens", "You average over the tokens; each token's vector is normalized alone, over its last "
                "axis (dim=-1).", wrong.layer_norm(axis=-2)),
        Mistake("over-texts", "You average over the texts of the batch, as batch norm does; each token's vector is "
                "normalized alone, over its last axis (dim=-1).", wrong.layer_norm(axis=0)),
        Mistake("over-text", "You normalize a whole text at once; mean and variance belong to each token, so they "
                "are taken over the last axis only.", wrong.layer_norm(axis=(-2, -1))),
        Mistake("unbiased", "Your variance divides by d - 1, torch's default; layer norm divides by d: "
                "x.var(-1, correction=0, keepdim=True).", wrong.layer_norm(correction=1)),
        Mistake("eps-outside", "Your ε stands outside the root: √σ² + ε. It belongs inside: √(σ² + ε).",
                wrong.layer_norm(scale=lambda var, eps: var.sqrt() + eps)),
        Mistake("std-plus-eps", "x.std() + ε is wrong twice: std divides by d - 1, and ε belongs under the root.",
                wrong.layer_norm(correction=1, scale=lambda var, eps: var.sqrt() + eps)),
        Mistake("no-eps", "ε is missing: a vector of equal numbers has variance 0, and 0/0 is nan.",
                wrong.layer_norm(scale=lambda var, eps: var.sqrt())),
        Mistake("no-root", "You divide by the variance; divide by its root.",
                wrong.layer_norm(scale=lambda var, eps: var + eps)),
        Mistake("no-center", "The mean is not subtracted.", wrong.layer_norm(center=False)),
        Mistake("rms", "This is RMS norm: it leaves the mean where it is. Layer norm subtracts it first.", wrong.rms_norm),
        Mistake("no-weight", "The learned scale, weight, is missing.", wrong.layer_norm(affine=lambda y, w, b: y + b)),
        Mistake("no-bias", "The learned shift, bias, is missing.", wrong.layer_norm(affine=lambda y, w, b: w * y)),
        Mistake("scaled-bias", "Your weight scales the bias, too: first times weight, then plus bias.",
                wrong.layer_norm(affine=lambda y, w, b: w * (y + b))),
    ),
    hints=(
        "Every token is alone with its d_model numbers. Which axis holds them?",
        "mean and var over dim=-1 with keepdim=True. What does torch's var divide by, if nobody tells it?",
        "mu = x.mean(-1, keepdim=True)\nvar = x.var(-1, correction=..., keepdim=True)\n"
        "return weight * (x - mu) / (...).sqrt() + bias",
    ),
    forbidden=("layer_norm", "LayerNorm", "native_layer_norm", "rms_norm", "RMSNorm", "batch_norm", "group_norm"),
)  # fmt: skip


# --- feed-forward -----------------------------------------------------------------------------------


def feed_forward(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """FFN(x) (…, d) through torch's modules; w1 (d_ff, d), w2 (d, d_ff)."""
    with torch.no_grad():
        up, down = nn.Linear(w1.shape[1], w1.shape[0]), nn.Linear(w2.shape[1], w2.shape[0])
        for module, w, b in ((up.to(x.dtype), w1, b1), (down.to(x.dtype), w2, b2)):
            module.weight.copy_(w)
            module.bias.copy_(b)
        return nn.Sequential(up, nn.GELU(), down)(x)


def _ffn_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for batch, length, note in ((2, 3, "two texts"), (1, 4, "one text"), (3, 2, "short texts")):
        d = int(rng.integers(4, 6))
        d_ff = 2 * d + int(rng.integers(0, 3))
        w1, w2 = _normal(rng, d_ff, d, scale=0.8), _normal(rng, d, d_ff, scale=0.5)
        args = (_normal(rng, batch, length, d), w1, _normal(rng, d_ff), w2, _normal(rng, d) + 1)
        cases.append(Case(args, note=note))
    return cases


FFN = Exercise(
    id="architecture.feed_forward",
    points=2,
    title="The feed-forward network",
    cases=_ffn_cases,
    reference=feed_forward,
    compare=Compare(rtol=1e-4, atol=1e-5),
    mistakes=(
        Mistake("no-activation", "The activation is missing: two linear maps in a row are one linear map.",
                wrong.feed_forward(middle=wrong.identity)),
        Mistake("activation-last", "The activation stands after the second map; it belongs between the two.",
                wrong.feed_forward(middle=wrong.identity, last=functional.gelu)),
        Mistake("activation-first", "The activation stands before the first map; it belongs between the two.",
                wrong.feed_forward(middle=wrong.identity, first=functional.gelu)),
        Mistake("activation-twice", "There is an activation after the second map as well; the output is a plain sum.",
                wrong.feed_forward(last=functional.gelu)),
        Mistake("relu", "This is ReLU, as in Vaswani et al.; BERT and PanGu-α take GELU.",
                wrong.feed_forward(middle=torch.relu)),
        Mistake("tanh-gelu", "This is GELU by its tanh approximation; take the exact one, x Φ(x), torch's default.",
                wrong.feed_forward(middle=lambda x: functional.gelu(x, approximate="tanh"))),
        Mistake("silu", "This is SiLU, x times the sigmoid of x; GELU multiplies by the normal distribution Φ(x).",
                wrong.feed_forward(middle=functional.silu)),
        Mistake("no-second-bias", "The second linear map's bias, b2, is missing.", wrong.feed_forward(biases=(1, 0))),
        Mistake("no-first-bias", "The first linear map's bias, b1, is missing.", wrong.feed_forward(biases=(0, 1))),
        Mistake("no-biases", "Both biases are missing.", wrong.feed_forward(biases=(0, 0))),
        Mistake("residual", "You add x to the result. The residual sum is the layer's business, not the network's.",
                wrong.feed_forward(residual=True)),
        Mistake("not-transposed", "torch keeps a linear map as (out, in): multiply by its transpose, x @ w1.T.",
                wrong.feed_forward(layout="plain")),
    ),
    hints=(
        "Up to d_ff numbers, an activation, down to d_model numbers. Each token for itself.",
        "x @ w1.T + b1 is what nn.Linear computes. torch.nn.functional has gelu.",
        "h = functional.gelu(...)\nreturn h @ w2.T + ...",
    ),
)  # fmt: skip


# --- the weights of one layer -----------------------------------------------------------------------


def _linear(rng: np.random.Generator, name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    weight = _normal(rng, outputs, inputs, scale=1.2 / inputs**0.5)
    return {f"{name}.weight": weight, f"{name}.bias": _normal(rng, outputs, scale=0.5)}


def _norm_weights(rng: np.random.Generator, name: str, d: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + _normal(rng, d, scale=0.3), f"{name}.bias": _normal(rng, d, scale=0.5)}


def layer_weights(seed: int, d: int, cross: bool = False, positions: int = 0) -> dict[str, Tensor]:
    """Random weights under the names of a layer's ``state_dict``; a case holds their seed, short enough to read."""
    rng = np.random.default_rng(seed)
    d_ff = 2 * d
    weights = {"positions.weight": _normal(rng, positions, d, scale=1.5)} if positions else {}
    for attention in ("self_attention", "cross_attention")[: 2 if cross else 1]:
        for part in "qkvo":
            weights |= _linear(rng, f"{attention}.{part}", d, d)
        weights |= _norm_weights(rng, f"{attention}_norm", d)
    weights |= _linear(rng, "feed_forward.up", d, d_ff) | _linear(rng, "feed_forward.down", d_ff, d)
    return weights | _norm_weights(rng, "feed_forward_norm", d)


def _part(w: Weights, name: str) -> tuple[Tensor, Tensor]:
    return w[f"{name}.weight"], w[f"{name}.bias"]


def _load_torch(layer: nn.Module, w: Weights, renamed: Mapping[str, str]) -> None:
    """Copy a layer's weights into torch's module; q, k and v stand in one matrix there."""
    own = {}
    for theirs, ours in renamed.items():
        for kind in ("weight", "bias"):
            if ours.endswith("attention"):
                own[f"{theirs}.in_proj_{kind}"] = torch.cat([w[f"{ours}.{part}.{kind}"] for part in "qkv"])
                own[f"{theirs}.out_proj.{kind}"] = w[f"{ours}.o.{kind}"]
            else:
                own[f"{theirs}.{kind}"] = w[f"{ours}.{kind}"]
    layer.load_state_dict(own)


def _torch_layer(kind: Any, x: Tensor, w: Weights, heads: int, norm_position: str) -> nn.Module:
    """An encoder or decoder layer of torch; in training mode without dropout, so that no fast path is taken."""
    d_ff = len(w["feed_forward.up.bias"])
    layer = kind(
        x.shape[-1], heads, d_ff, dropout=0.0, activation="gelu", layer_norm_eps=EPS, batch_first=True,
        norm_first=norm_position == "pre",
    )  # fmt: skip
    return layer.to(x.dtype)


def _padded(mask: Tensor | None) -> Tensor | None:
    """A mask (B, 1, 1, T), True where one may look, as torch wants it: (B, T), True where one may not."""
    return None if mask is None else ~mask[:, 0, 0]


def _key_mask(rng: np.random.Generator, batch: int, length: int) -> Tensor:
    """(B, 1, 1, T): each text but the first has padding at its end."""
    real = [length, *rng.integers(1, length, batch - 1).tolist()]
    return (torch.arange(length) < torch.tensor(real)[:, None])[:, None, None]


# --- encoder layer ----------------------------------------------------------------------------------


def encoder_layer(x: Tensor, w: Weights, heads: int, mask: Tensor | None = None, norm_position: str = "post") -> Tensor:
    """x (B, T, d) through ``nn.TransformerEncoderLayer`` with the weights w."""
    layer = _torch_layer(nn.TransformerEncoderLayer, x, w, heads, norm_position)
    names = {"self_attn": "self_attention", "norm1": "self_attention_norm", "linear1": "feed_forward.up"}
    _load_torch(layer, w, names | {"linear2": "feed_forward.down", "norm2": "feed_forward_norm"})
    with torch.no_grad():
        return layer(x, src_key_padding_mask=_padded(mask))


def run_encoder_layer(student: Any, case: Case) -> Tensor:
    """Give the student's layer the weights whose seed the case holds."""
    x, seed, *rest = case.args
    return student(x, layer_weights(seed, x.shape[-1]), *rest)


def _encoder_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for norm_position, padded in (("post", False), ("pre", True), ("post", True)):
        heads = int(rng.integers(2, 4))
        d, batch, length = 2 * heads, 2 + padded, int(rng.integers(3, 6))
        x = 1.5 * _normal(rng, batch, length, d) + 1
        mask = _key_mask(rng, batch, length) if padded else None
        cases.append(
            Case(
                (x, int(rng.integers(2**31)), heads, mask, norm_position),
                note=f"{norm_position}-norm{', padded texts' * padded}",
            )
        )
    return cases


ENCODER = Exercise(
    id="architecture.encoder_layer",
    points=3,
    title="The encoder layer",
    cases=_encoder_cases,
    reference=encoder_layer,
    drive=run_encoder_layer,
    compare=CLOSE,
    mistakes=(
        Mistake("swapped", "Post-norm and pre-norm are swapped. post: norm(x + sublayer(x)); pre: "
                "x + sublayer(norm(x)).", wrong.encoder(wrong.swapped)),
        Mistake("always-post", "You always build post-norm; with norm_position \"pre\" the norm stands before the "
                "sublayer: x + sublayer(norm(x)).", wrong.encoder(wrong.always("post"))),
        Mistake("always-pre", "You always build pre-norm; with norm_position \"post\" the norm stands after the sum: "
                "norm(x + sublayer(x)).", wrong.encoder(wrong.always("pre"))),
        Mistake("no-residual", "Both residual sums are forgotten: x must go past each sublayer and be added to its "
                "output.", wrong.encoder(wrong.without_residual(0, 1))),
        Mistake("no-first-residual", "The residual sum around the attention is forgotten.",
                wrong.encoder(wrong.without_residual(0))),
        Mistake("no-second-residual", "The residual sum around the feed-forward network is forgotten.",
                wrong.encoder(wrong.without_residual(1))),
        Mistake("residual-of-normed", "In pre-norm your residual starts behind the norm: you add norm(x), not x. "
                "The sum carries x itself.", wrong.encoder(wrong.residual_of_normed)),
        Mistake("norm-of-sublayer", "In post-norm you normalize the sublayer's output alone; the sum is normalized: "
                "norm(x + sublayer(x)).", wrong.encoder(wrong.norm_of_sublayer)),
        Mistake("no-norm", "The two layer norms are missing.", wrong.encoder(wrong.without_norm)),
        Mistake("one-norm", "You use self_attention_norm twice; the feed-forward network has a norm of its own, "
                "feed_forward_norm.", wrong.one_norm),
        Mistake("swapped-norms", "The two norms are swapped: self_attention_norm belongs to the attention, "
                "feed_forward_norm to the network.", wrong.swapped_norms),
        Mistake("ffn-first", "The feed-forward network runs before the attention; attention comes first.",
                wrong.encoder(wrong.right_step, order=(1, 0))),
        Mistake("parallel", "The feed-forward network reads the layer's input; it reads what the attention's sum "
                "left.", wrong.parallel),
        Mistake("no-mask", "The mask is not passed on: your tokens look at padding.",
                wrong.encoder(wrong.right_step, use_mask=False)),
    ),
    hints=(
        "Two sublayers, attention and feed-forward network. Around each: a residual sum and a norm. In which order?",
        "post: x = norm(x + sublayer(x)). pre: x = x + sublayer(norm(x)). Keys and queries come from the same tokens.",
        'if norm_position == "post":\n    x = norm(x + attention(x, x, ...), w, "self_attention_norm")\n'
        '    return norm(x + ..., w, "feed_forward_norm")\nh = norm(x, w, "self_attention_norm")\nx = x + ...',
    ),
)  # fmt: skip


# --- decoder layer ----------------------------------------------------------------------------------


def decoder_layer(
    x: Tensor, memory: Tensor, w: Weights, heads: int, memory_mask: Tensor | None = None, norm_position: str = "post"
) -> Tensor:
    """x (B, T, d), memory (B, T_m, d) through ``nn.TransformerDecoderLayer`` with the weights w."""
    layer = _torch_layer(nn.TransformerDecoderLayer, x, w, heads, norm_position)
    names = {"self_attn": "self_attention", "norm1": "self_attention_norm"}
    names |= {"multihead_attn": "cross_attention", "norm2": "cross_attention_norm"}
    names |= {"linear1": "feed_forward.up", "linear2": "feed_forward.down", "norm3": "feed_forward_norm"}
    _load_torch(layer, w, names)
    length = x.shape[1]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    with torch.no_grad():
        return layer(x, memory, tgt_mask=future, memory_key_padding_mask=_padded(memory_mask))


def run_decoder_layer(student: Any, case: Case) -> Tensor:
    """Give the student's layer the weights whose seed the case holds."""
    x, memory, seed, *rest = case.args
    return student(x, memory, layer_weights(seed, x.shape[-1], cross=True), *rest)


def _decoder_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for norm_position, padded in (("post", False), ("pre", True), ("post", True)):
        heads = int(rng.integers(2, 4))
        d, batch, length = 2 * heads, 2 + padded, int(rng.integers(3, 5))
        memory_length = length + int(rng.integers(1, 3))
        x, memory = 1.5 * _normal(rng, batch, length, d) + 1, 1.5 * _normal(rng, batch, memory_length, d) - 1
        mask = _key_mask(rng, batch, memory_length) if padded else None
        seed = int(rng.integers(2**31))
        note = f"{norm_position}-norm{', padded memory' * padded}"
        cases.append(Case((x, memory, seed, heads, mask, norm_position), note=note))
    return cases


DECODER = Exercise(
    id="architecture.decoder_layer",
    points=3,
    title="The decoder layer with cross-attention",
    cases=_decoder_cases,
    reference=decoder_layer,
    drive=run_decoder_layer,
    compare=CLOSE,
    mistakes=(
        Mistake("own-keys", "In cross-attention your decoder looks at itself: queries come from x, but keys and "
                "values come from memory.", wrong.decoder(cross=lambda h, memory: (h, h))),
        Mistake("asked-by-memory", "Cross-attention is the wrong way round: x asks, memory answers; the result is as "
                "long as x.", wrong.decoder(cross=lambda h, memory: (memory, h))),
        Mistake("cross-first", "Cross-attention runs before self-attention; self-attention comes first.",
                wrong.decoder(order=(1, 0, 2))),
        Mistake("ffn-early", "The feed-forward network runs before cross-attention; it comes last.",
                wrong.decoder(order=(0, 2, 1))),
        Mistake("no-cross", "Cross-attention is missing: the decoder never reads memory.", wrong.decoder(order=(0, 2))),
        Mistake("no-self", "Self-attention is missing.", wrong.decoder(order=(1, 2))),
        Mistake("no-causal", "Your self-attention sees the future; the causal mask belongs there.",
                wrong.decoder(causal=False)),
        Mistake("cross-causal", "Your causal mask lies on cross-attention, too: the memory is complete, and each "
                "token of x may see all of it.", wrong.decoder(cross_causal=True)),
        Mistake("no-memory-mask", "memory_mask is not used: cross-attention looks at padding.",
                wrong.decoder(use_mask=False)),
        Mistake("swapped", "Post-norm and pre-norm are swapped. post: norm(x + sublayer(x)); pre: "
                "x + sublayer(norm(x)).", wrong.decoder(wrong.swapped)),
        Mistake("no-residual", "The residual sums are forgotten: x goes past each of the three sublayers.",
                wrong.decoder(wrong.without_residual(0, 1, 2))),
        Mistake("no-cross-residual", "The residual sum around cross-attention is forgotten.",
                wrong.decoder(wrong.without_residual(1))),
        Mistake("no-ffn-residual", "The residual sum around the feed-forward network is forgotten.",
                wrong.decoder(wrong.without_residual(2))),
        Mistake("normed-memory", "You normalize memory; the encoder hands it over ready. Only what x asks with is "
                "normalized, and only in pre-norm.", wrong.decoder(norm_memory=True)),
        Mistake("one-attention", "Both attentions use self_attention's weights; cross-attention has its own, "
                "cross_attention.", wrong.decoder(names=("self_attention", "self_attention"))),
    ),
    hints=(
        "Three sublayers: look back at yourself, look at the encoder's text, think. Who may see what?",
        "causal_mask(T, T) goes into self-attention only, memory_mask into cross-attention only. In cross-attention "
        "the decoder's tokens are the first argument, memory is the second.",
        'look_back = causal_mask(x.shape[1], x.shape[1])\nif norm_position == "post":\n'
        "    x = norm(x + attention(x, x, ..., look_back), ...)\n    x = norm(x + attention(x, memory, ...), ...)\n"
        "    return norm(x + ..., ...)",
    ),
)  # fmt: skip


# --- embeddings -------------------------------------------------------------------------------------


def embed(ids: Tensor, segments: Tensor, w: Weights) -> Tensor:
    """ids and segments (B, T) to (B, T, d): three of torch's tables, added, and its layer norm."""
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    looked_up = [
        nn.Embedding.from_pretrained(w[f"{name}.weight"])(rows)
        for name, rows in (("words", ids), ("positions", positions), ("segments", segments))
    ]
    return functional.layer_norm(torch.stack(looked_up).sum(0), (w["norm.weight"].numel(),), *_part(w, "norm"), EPS)


def _embed_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for batch, note in ((2, "two texts"), (1, "one text"), (3, "three texts")):
        d, vocab, length = int(rng.integers(4, 7)), int(rng.integers(12, 20)), int(rng.integers(4, 6))
        w = {
            "words.weight": _normal(rng, vocab, d),
            "positions.weight": _normal(rng, length + 3, d),
            "segments.weight": _normal(rng, 2, d, scale=1.5),
        }
        ids = torch.tensor(rng.choice(vocab, (batch, length), replace=batch > 2), dtype=torch.long)
        first = torch.tensor(rng.integers(1, length, batch))[:, None]
        segments = (torch.arange(length) >= first).long()  # 0 0 1 1: a first sentence and a second one
        cases.append(Case((ids, segments, w | _norm_weights(rng, "norm", d)), note=note))
    return cases


EMBED = Exercise(
    id="architecture.embed",
    points=2,
    title="Embeddings",
    cases=_embed_cases,
    reference=embed,
    compare=CLOSE,
    mistakes=(
        Mistake("from-one", "Your positions start at 1; the first token stands at position 0.",
                wrong.embed(position=lambda ids: torch.arange(1, ids.shape[1] + 1))),
        Mistake("no-segments", "The segment embedding is forgotten: the model cannot tell the two sentences apart.",
                wrong.embed(parts=("words", "positions"))),
        Mistake("no-positions", "The position embedding is forgotten: attention cannot see the order of the tokens.",
                wrong.embed(parts=("words", "segments"))),
        Mistake("first-segment", "All tokens get the first segment's row; segments says which row each token gets.",
                wrong.embed(segment=torch.zeros_like)),
        Mistake("swapped-segments", "The two segments are swapped: 0 is row 0.",
                wrong.embed(segment=lambda segments: 1 - segments)),
        Mistake("one-position", "All tokens get position 0; count along the text, from 0 on.",
                wrong.embed(position=torch.zeros_like)),
        Mistake("backwards", "Your positions count from the end of the text; the first token stands at position 0.",
                wrong.embed(position=lambda ids: torch.arange(ids.shape[1]).flip(0))),
        Mistake("no-norm", "The layer norm at the end is missing.", wrong.embed(norm=lambda x, w: x)),
        Mistake("norm-first", "You normalize the word embeddings alone; the sum of all three is normalized.",
                wrong.embed_norm_first),
        Mistake("concatenated", "You put the three side by side; they are added, so the width stays d_model.",
                wrong.embed(join=lambda looked_up: torch.cat([t.expand_as(looked_up[0]) for t in looked_up], -1),
                       norm=lambda x, w: x)),
        Mistake("scaled", "You multiply the words by √d, as Vaswani et al. did; BERT and PanGu add them as they are.",
                wrong.embed(word_scale=None)),
    ),
    hints=(
        "Three tables, three lookups, one sum, one norm. Which row of the position table does token t get?",
        "A table looked up is w[\"words.weight\"][ids]: (B, T, d). Positions are torch.arange(T), the same for all texts.",
        'x = w["words.weight"][ids] + w["positions.weight"][...] + ...\nreturn norm(x, w, "norm")',
    ),
)  # fmt: skip


# --- weight tying -----------------------------------------------------------------------------------


class TiedModel(nn.Module):
    """Words in and words out through one table (Press and Wolf 2017)."""

    def __init__(self, vocab: int, d_model: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, d_model)
        self.output = nn.Linear(d_model, vocab)
        self.output.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) to logits (B, T, vocab)."""
        return self.output(torch.tanh(self.embedding(ids)))


def what_the_table_does(student: Any, case: Case) -> dict[str, Any]:
    """Build the student's model and watch the table from both sides: written to, counted, trained."""
    ids, table, change, gold = case.args
    model = student(*table.shape)
    with torch.no_grad():
        written_by_table = torch.tanh(model.embedding(ids)) @ model.embedding.weight.T
        left = (model(ids) - written_by_table).flatten(0, 1)  # (B·T, vocab): the bias, the same for all tokens
        for p in model.parameters():
            p.zero_()  # the bias, and a table that is not tied
        model.embedding.weight.copy_(table)
        start = model(ids)
        model.embedding.weight.add_(change)
        changed = model(ids)
        model.embedding.weight.copy_(table)
    # Adam's first step is about as large for every number: what two parameters share, it would move twice.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    loss = functional.cross_entropy(model(ids).flatten(0, 1), gold.flatten())
    loss.backward()
    gradient = model.embedding.weight.grad
    gradient = torch.zeros_like(table) if gradient is None else gradient.detach().clone()
    optimizer.step()
    with torch.no_grad():
        trained = model(ids)
    return {
        "both sides start with the same numbers": bool((left - left[0]).abs().max() < 1e-4),
        "logits": start,
        "logits after the embedding was changed": changed,
        "numbers to train": sum(p.numel() for p in model.parameters()),
        "gradient of the embedding": gradient,
        "logits after a training step": trained,
    }


def _tying_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for batch, note in ((2, "a small vocabulary"), (1, "one text"), (3, "three texts")):
        vocab, d, length = int(rng.integers(7, 11)), int(rng.integers(3, 6)), int(rng.integers(3, 5))
        ids, gold = (torch.tensor(rng.integers(0, vocab, (batch, length))) for _ in range(2))
        cases.append(Case((ids, _normal(rng, vocab, d), _normal(rng, vocab, d), gold), note=note))
    return cases


TYING = Exercise(
    id="architecture.tied_model",
    points=2,
    title="Weight tying",
    cases=_tying_cases,
    reference=TiedModel,
    drive=what_the_table_does,
    also_right=(wrong.Functional,),
    compare=CLOSE,
    mistakes=(
        Mistake("untied", "The output has a table of its own; assign the embedding's weight to it.", wrong.Untied),
        Mistake("copied", "You copied the table: the numbers start alike, but change one table and the other stays. "
                "Assign the parameter itself.", wrong.Copied),
        Mistake("shared-memory", "The two share memory but are two parameters: each gets half of the gradient, and "
                "Adam moves the numbers twice. Assign the parameter, not its .data.", wrong.SharedMemory),
        Mistake("copied-each-time", "You copy the table in every forward pass: the output's part of the gradient "
                "goes into the copy and is lost.", wrong.CopiedEachTime),
        Mistake("detached", "detach cuts off the gradient: the table learns as input only, not as output.",
                wrong.Detached),
        Mistake("frozen", "The tied table cannot be trained: requires_grad is False.", wrong.FrozenTable),
        Mistake("no-bias", "The output's bias is missing: it is one number a word, and it is not tied.", wrong.NoBias),
        Mistake("no-tanh", "The tanh between embedding and output is gone; keep forward as it was given.", wrong.NoTanh),
        Mistake("scaled", "You scale the table on its way out; both sides use the same numbers.", wrong.Scaled),
    ),
    hints=(
        "Two modules may hold the same nn.Parameter. Their weights have the same shape, (vocab, d_model).",
        "An assignment between attributes makes two names for one parameter. clone, copy_ and .data do not.",
        "self.embedding = ...\nself.output = nn.Linear(d_model, vocab)\nself.output.weight = ...",
    ),
)  # fmt: skip


# --- counting parameters ----------------------------------------------------------------------------


def parameter_count(config: PanguConfig) -> int:
    """How many numbers a model has without a head, part by part."""
    return counting()(config)


def count_built(config: PanguConfig) -> int:
    """The same of a model that is really built, without memory. No reference: the grader would import all models."""
    from pangu_lab.model.modeling import PanguModel

    with torch.device("meta"):
        model = PanguModel(config, add_pooling_layer=False)
    return sum(p.numel() for p in model.parameters())


def counting(
    embeddings: bool = True,
    biases: bool = True,
    norms: bool = True,
    final_norm: bool = True,
    embedding_norm: bool = True,
    output: bool = False,
    matrices: int = 4,
    projections: int = 2,
    cross: bool = True,
    decoder: bool = True,
    decoder_words: bool = False,
    decoder_positions: bool = True,
    segments: bool = True,
    query_positions: bool = True,
    query_extra: bool = False,
    per_head: bool = False,
    d_ff: Callable[[PanguConfig], int] = lambda config: config.intermediate_size,
) -> Any:
    """The formula; each of its arguments is a mistake."""

    def count(config: PanguConfig) -> int:
        d, f, post = config.hidden_size, d_ff(config), config.norm_position == "post"
        norm = 2 * d * norms
        attention = matrices * (d * d * (config.num_attention_heads if per_head else 1) + d * biases) + norm
        ffn = projections * d * f + biases * (f + d if projections == 2 else f) + norm
        positions = config.max_position_embeddings * d
        table = config.vocab_size * d * embeddings
        around = norm * embedding_norm if post else norm * final_norm  # of each stack
        segment_rows = config.type_vocab_size * d * segments * embeddings
        layers = config.num_hidden_layers
        total = table + (table if output else 0)
        if config.architecture == "decoder":
            total += positions * embeddings + around + layers * (attention + ffn)
            if config.query_layer:
                total += positions * query_positions + query_extra * (attention + ffn)
            return total
        total += positions * embeddings + segment_rows + around + layers * (attention + ffn)
        if config.architecture == "encoder-decoder" and decoder:
            total += positions * embeddings * decoder_positions + table * decoder_words + around
            total += (config.decoder_layers or 0) * ((1 + cross) * attention + ffn)
        return total

    return count


def count_a_model(student: Any, case: Case) -> Any:
    """Give the student's function the configuration that the case describes."""
    return student(PanguConfig(**case.kwargs))


def _unlike(seed: int) -> tuple[int, ...]:
    """Sizes of which none is a simple multiple of another, so that no two mistakes give one number."""
    rng = np.random.default_rng(seed)
    heads = int(rng.integers(3, 6))
    d = heads * int(rng.integers(7, 12))
    return heads, d, 3 * d + int(rng.integers(5, 25)), int(rng.integers(211, 397)), int(rng.integers(67, 101))


def _count_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for architecture, norm_position, note in (
        ("encoder", "post", "an encoder, post-norm"),
        ("encoder-decoder", "post", "an encoder-decoder, post-norm"),
        ("encoder-decoder", "pre", "an encoder-decoder, pre-norm"),
        ("decoder", "pre", "a decoder with PanGu-α's query layer"),
    ):
        heads, d, d_ff, vocab, positions = _unlike(int(rng.integers(2**31)))
        shape: dict[str, Any] = {
            "architecture": architecture,
            "norm_position": norm_position,
            "num_attention_heads": heads,
            "hidden_size": d,
            "intermediate_size": d_ff,
            "vocab_size": vocab,
            "max_position_embeddings": positions,
            "num_hidden_layers": int(rng.integers(2, 5)),
            "type_vocab_size": 0 if architecture == "decoder" else int(rng.integers(2, 4)),
        }
        if architecture == "encoder-decoder":
            shape["decoder_layers"] = shape["num_hidden_layers"] + 1
        if architecture == "decoder":
            shape["query_layer"] = True
        cases.append(Case(kwargs=shape, note=note))
    return cases


COUNT = Exercise(
    id="architecture.parameter_count",
    points=4,
    title="How many parameters?",
    cases=_count_cases,
    reference=parameter_count,
    drive=count_a_model,
    also_right=(count_built,),
    compare=Compare(rtol=0.0, atol=0.0),
    mistakes=(
        Mistake("no-biases", "The biases are missing: each linear map has one number for each of its outputs.",
                counting(biases=False)),
        Mistake("no-norms", "The layer norms are missing: each has a weight and a bias, 2·d numbers.",
                counting(norms=False)),
        Mistake("no-embeddings", "The embeddings are missing: words, positions and segments have a table each.",
                counting(embeddings=False)),
        Mistake("untied", "You count an output matrix of vocab × d; it is the embedding's own table and counts once.",
                counting(output=True)),
        Mistake("three-matrices", "Attention has four matrices: for q, k and v, and the output projection.",
                counting(matrices=3)),
        Mistake("one-projection", "The feed-forward network has two linear maps, up to d_ff and down again.",
                counting(projections=1)),
        Mistake("four-d", "You assume d_ff = 4·d; read config.intermediate_size.",
                counting(d_ff=lambda config: 4 * config.hidden_size)),
        Mistake("per-head", "You count a d × d matrix for each head; the heads share it, d/h columns each.",
                counting(per_head=True)),
        Mistake("no-cross", "A decoder layer behind an encoder has a second attention, cross-attention, with its norm.",
                counting(cross=False)),
        Mistake("no-decoder", "The decoder is missing: config.decoder_layers more layers, and its embeddings.",
                counting(decoder=False)),
        Mistake("decoder-words", "You count the decoder's words again; encoder and decoder share that table.",
                counting(decoder_words=True)),
        Mistake("no-decoder-positions", "The decoder has positions of its own; only the word table is shared.",
                counting(decoder_positions=False)),
        Mistake("no-segments", "The segment table is missing: config.type_vocab_size rows, in the encoder only.",
                counting(segments=False)),
        Mistake("no-embedding-norm", "In post-norm each stack has a layer norm behind its embeddings.",
                counting(embedding_norm=False)),
        Mistake("no-final-norm", "In pre-norm each stack has a layer norm at its end.", counting(final_norm=False)),
        Mistake("no-query-positions", "The query layer has a position table of its own, as large as the first one.",
                counting(query_positions=False)),
        Mistake("query-extra", "The query layer is one of num_hidden_layers, not one more.",
                counting(query_extra=True)),
    ),
    hints=(
        "Take the parts one by one: a linear map, a norm, an attention, a network, a layer. Then count layers.",
        "linear: in·out + out. Attention: four of d·d. Norm: 2d. A pre-norm stack ends with a norm; a post-norm stack "
        "has one behind its embeddings. Both stacks have positions; words are counted once.",
        "attention = 4 * (d * d + d) + 2 * d\nffn = ...\ntotal = vocab * d\nif config.architecture != \"decoder\":\n"
        "    total += positions + segments * d + 2 * d + layers * (attention + ffn)\n...",
    ),
)  # fmt: skip


# --- PanGu-α's query layer --------------------------------------------------------------------------


def query_layer(x: Tensor, w: Weights, heads: int) -> Tensor:
    """x (B, T, d) through ``nn.MultiheadAttention``, asked by the positions, and torch's feed-forward network."""
    attention = nn.MultiheadAttention(x.shape[-1], heads, batch_first=True).to(x.dtype)
    _load_torch(nn.ModuleDict({"self_attn": attention}), w, {"self_attn": "self_attention"})
    length = x.shape[1]
    p = w["positions.weight"][:length].expand_as(x)  # (B, T, d)
    h = functional.layer_norm(x, x.shape[-1:], *_part(w, "self_attention_norm"), EPS)
    with torch.no_grad():
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        x = x + attention(p, h, h, attn_mask=future, need_weights=False)[0]
    h = functional.layer_norm(x, x.shape[-1:], *_part(w, "feed_forward_norm"), EPS)
    up = functional.gelu(functional.linear(h, *_part(w, "feed_forward.up")))
    return x + functional.linear(up, *_part(w, "feed_forward.down"))


def run_query_layer(student: Any, case: Case) -> Tensor:
    """Give the student's layer the weights whose seed the case holds."""
    x, seed, heads = case.args
    return student(x, layer_weights(seed, x.shape[-1], positions=x.shape[1] + 3), heads)


def _query_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for batch, note in ((2, "two texts"), (1, "one text"), (3, "three texts")):
        heads = int(rng.integers(2, 4))
        d, length = 2 * heads, int(rng.integers(3, 6))
        x = 1.5 * _normal(rng, batch, length, d) + 1
        cases.append(Case((x, int(rng.integers(2**31)), heads), note=note))
    return cases


QUERY = Exercise(
    id="architecture.query_layer",
    points=3,
    title="PanGu-α's query layer",
    cases=_query_cases,
    reference=query_layer,
    drive=run_query_layer,
    compare=CLOSE,
    mistakes=(
        Mistake("token-query", "Your query comes from the token states: that is an ordinary layer. Here the position's "
                "own embedding asks, positions.weight.", wrong.query(query=lambda p, h: h)),
        Mistake("both-query", "You add position and token for the query; the position's embedding asks alone.",
                wrong.query(query=lambda p, h: p + h)),
        Mistake("residual-p", "Your residual sum starts from the position's embedding; it carries the token states x.",
                wrong.query(residual=lambda x, p: p)),
        Mistake("no-residual", "The residual sum around the attention is forgotten: x goes past it.",
                wrong.query(residual=lambda x, p: torch.zeros_like(x))),
        Mistake("no-causal", "Your positions see the future; the causal mask holds here, too.", wrong.query(causal=False)),
        Mistake("norm-query", "You normalize the position's embedding; only the token states are normalized.",
                wrong.query(norm_query=True)),
        Mistake("raw-keys", "Keys and values come from the normalized token states: norm x first.",
                wrong.query(norm_keys=False)),
        Mistake("from-one", "Your positions start at 1; row 0 of the table belongs to the first token, whose output "
                "predicts the second.", wrong.query(rows=lambda length: torch.arange(1, length + 1))),
        Mistake("last-position", "All tokens ask with the last position's embedding; each asks with its own.",
                wrong.query(rows=lambda length: torch.full((length,), length - 1))),
        Mistake("first-position", "All tokens ask with position 0; each asks with its own.",
                wrong.query(rows=lambda length: torch.zeros(length, dtype=torch.long))),
        Mistake("sqrt-d", "You divide by √d, as the paper's formula is printed; each head has d/h dimensions, so the "
                "public code divides by √(d/h).", wrong.query(temper=lambda heads: heads**-0.5)),
        Mistake("no-ffn", "The feed-forward network is missing: behind the attention the layer is an ordinary one.",
                wrong.query(with_ffn=False)),
        Mistake("post", "This is post-norm; PanGu-α's layers are pre-norm: x + sublayer(norm(x)).",
                wrong.query(post=True)),
    ),
    hints=(
        "An ordinary pre-norm decoder layer, in which somebody else asks. Who?",
        "p = w[\"positions.weight\"][:T] is (T, d), the same for all texts: expand_as(x). It is the first argument of "
        "attention; the normalized tokens are the second.",
        'p = w["positions.weight"][: x.shape[1]].expand_as(x)\nh = norm(x, w, "self_attention_norm")\n'
        'x = x + attention(p, ..., causal_mask(...))\nreturn x + ...',
    ),
)  # fmt: skip


EXERCISES = (NORM, FFN, ENCODER, DECODER, EMBED, TYING, COUNT, QUERY)
