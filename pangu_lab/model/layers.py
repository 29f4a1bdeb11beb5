"""What an encoder and a decoder are stacked from: embeddings, feed-forward network, residual sum with LayerNorm, layers.

B texts of T tokens in d dimensions flow through as (B, T, d). Read ``EncoderLayer`` first, ``DecoderLayer`` next.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from pangu_lab.model.attention import MultiHeadAttention
from pangu_lab.model.configuration import ModelError, PanguConfig


def _gelu(x: Tensor) -> Tensor:
    """x Φ(x) (Hendrycks and Gimpel 2016), written over x where no gradient will ask for it: a large array saved."""
    return functional.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def _gelu_by_tanh(x: Tensor) -> Tensor:
    """GELU with tanh in place of Φ, as the first BERT and GPT-2 computed it."""
    return functional.gelu(x, approximate="tanh")


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_by_tanh,
    "relu": functional.relu,
    "silu": functional.silu,
}


class Embeddings(nn.Module):
    """The sum of what a token is, where it stands and which segment it belongs to (Devlin et al. 2019, figure 2).

    ``segments`` is left out where the configuration has none and in decoders; ``positions`` in encoders that know
    distances instead (``relative_positions``), and with them the longest text.
    """

    def __init__(self, config: PanguConfig, decoder: bool = False) -> None:
        super().__init__()
        d = config.hidden_size
        self.words = nn.Embedding(config.vocab_size, d, padding_idx=config.pad_token_id)
        relative = config.relative_positions and not decoder
        self.positions = None if relative else nn.Embedding(config.max_position_embeddings, d)
        self.segments = nn.Embedding(config.type_vocab_size, d) if config.type_vocab_size and not decoder else None
        # Under pre-norm the first sublayer normalizes; under post-norm nothing else would.
        self.norm = nn.LayerNorm(d, eps=config.layer_norm_eps) if config.norm_position == "post" else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.offset, self.pad = config.position_offset, config.pad_token_id

    def forward(
        self,
        input_ids: Tensor | None,
        segment_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past: int = 0,
    ) -> Tensor:
        """input_ids (B, T), of which ``past`` earlier tokens are in the cache, to (B, T, d)."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ModelError("give either input_ids or inputs_embeds, and not both")
        x = self.words(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, d)
        if self.segments is not None:
            # Without segment ids all are the first: its row is added to all, without looking it up for each.
            x = x + (self.segments.weight[0] if segment_ids is None else self.segments(segment_ids))
        if self.positions is not None:
            self.check_length(self.positions, past + x.size(1), position_ids)
            if position_ids is None:
                position_ids = self.count_positions(input_ids, x.size(1), past, x.device)  # (T,) or (B, T)
            x = x + self.positions(position_ids)  # (B, T, d)
        return self.dropout(x if self.norm is None else self.norm(x))

    def check_length(self, positions: nn.Embedding, length: int, position_ids: Tensor | None) -> None:
        """Refuse a text that runs out of positions; padding on its left, which position_ids leave out, is no harm."""
        room = positions.num_embeddings
        if length + self.offset > room and (position_ids is None or int(position_ids.max()) >= room):
            raise ModelError(
                f"the text has {length} tokens, but the model has positions for {room - self.offset}; "
                "cut it, for instance by the tokenizer's max_length"
            )

    def count_positions(self, input_ids: Tensor | None, length: int, past: int, device: torch.device) -> Tensor:
        """(T,), or (B, T) where padding is not counted (``position_offset``, as in Liu et al. 2019, RoBERTa)."""
        if self.offset and input_ids is not None:
            real = input_ids.ne(self.pad or 0)  # (B, T)
            return (real.cumsum(dim=-1) + past) * real + self.offset - 1
        return torch.arange(past + self.offset, past + self.offset + length, device=device)


class FeedForward(nn.Module):
    """FFN(x) = f(x W₁ + b₁) W₂ + b₂ (Vaswani et al. 2017, eq. 2), with GELU as f in BERT and PanGu-α."""

    def __init__(self, config: PanguConfig, layer: int = 0) -> None:
        super().__init__()
        neurons = config.neurons_in(layer)
        self.up = nn.Linear(config.hidden_size, neurons)
        self.down = nn.Linear(neurons, config.hidden_size)
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) by way of (B, T, d_ff) to (B, T, d)."""
        return self.down(self.activation(self.up(x)))


class ResidualLayerNorm(nn.LayerNorm):
    """The *Add & Norm* around a sublayer, in both orders; its weights are the LayerNorm's.

    post: x ← LayerNorm(x + Sublayer(x)) (Vaswani et al. 2017, §3.1)
    pre: x ← x + Sublayer(LayerNorm(x)) (PanGu-α, Zeng et al. 2021, §3.1)
    """

    def __init__(self, config: PanguConfig) -> None:
        super().__init__(config.hidden_size, eps=config.layer_norm_eps)
        self.pre = config.norm_position == "pre"
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def before(self, x: Tensor) -> Tensor:
        """What the sublayer gets of x (B, T, d)."""
        return super().forward(x) if self.pre else x

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        """What goes on, x being the sublayer's input and y its output (B, T, d)."""
        x = x + self.dropout(y)
        return x if self.pre else super().forward(x)


class EncoderLayer(GradientCheckpointingLayer):
    """Self-attention and feed-forward network (Vaswani et al. 2017, figure 1, left)."""

    def __init__(self, config: PanguConfig, layer: int) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config, layer, relative=config.relative_positions)
        self.self_attention_norm = ResidualLayerNorm(config)
        self.feed_forward = FeedForward(config, layer)
        self.feed_forward_norm = ResidualLayerNorm(config)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, d) to (B, T, d), and the attention's weights (B, H, T, T) if they are needed."""
        h = self.self_attention_norm.before(x)
        a, weights = self.self_attention(h, h, mask, need_weights=need_weights)
        x = self.self_attention_norm.after(x, a)
        h = self.feed_forward_norm.before(x)
        return self.feed_forward_norm.after(x, self.feed_forward(h)), weights


class DecoderLayer(GradientCheckpointingLayer):
    """Causal self-attention, cross-attention if there is an encoder, feed-forward network (figure 1, right)."""

    def __init__(self, config: PanguConfig, layer: int, cross: bool) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config, layer)
        self.self_attention_norm = ResidualLayerNorm(config)
        self.cross_attention = MultiHeadAttention(config, layer, cross=True) if cross else None
        self.cross_attention_norm = ResidualLayerNorm(config) if cross else None
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = ResidualLayerNorm(config)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        need_weights: bool = False,
        past_key_values: Cache | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x (B, T_q, d), memory (B, T_m, d) to (B, T_q, d), weights over the text, weights over the memory.

        ``mask`` holds the causal mask already; without one, causality is all there is to mask.
        """
        h = self.self_attention_norm.before(x)
        a, weights = self.self_attention(h, h, mask, mask is None, past_key_values, need_weights)
        x = self.self_attention_norm.after(x, a)
        cross_weights = None
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            h = self.cross_attention_norm.before(x)
            a, cross_weights = self.cross_attention(h, memory, memory_mask, False, past_key_values, need_weights)
            x = self.cross_attention_norm.after(x, a)
        h = self.feed_forward_norm.before(x)
        return self.feed_forward_norm.after(x, self.feed_forward(h)), weights, cross_weights


class QueryLayer(GradientCheckpointingLayer):
    """PanGu-α's top layer: its query is not the token but the position to be predicted (Zeng et al. 2021, §3.2).

    a = p_n W^q (LN(H_L) W^k)ᵀ / √d_k, where p_n is a learned embedding of position n. All else is a pre-norm layer,
    the residual sum included: H_L goes past the attention, so the token itself is not lost.
    """

    def __init__(self, config: PanguConfig, layer: int) -> None:
        super().__init__()
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.self_attention = MultiHeadAttention(config, layer)
        self.self_attention_norm = ResidualLayerNorm(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = ResidualLayerNorm(config)

    def forward(
        self,
        x: Tensor,
        position_ids: Tensor,
        mask: Tensor | None = None,
        need_weights: bool = False,
        past_key_values: Cache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T_q, d), position_ids (T_q,) or (B, T_q) to (B, T_q, d), and the weights if they are needed."""
        p = self.positions(position_ids).expand_as(x)  # (B, T_q, d)
        h = self.self_attention_norm.before(x)
        a, weights = self.self_attention(p, h, mask, mask is None, past_key_values, need_weights)
        x = self.self_attention_norm.after(x, a)
        h = self.feed_forward_norm.before(x)
        return self.feed_forward_norm.after(x, self.feed_forward(h)), weights


class Pooler(nn.Module):
    """tanh(W x₁ + b) of the first token, [CLS]: the text as one vector (Devlin et al. 2019)."""

    def __init__(self, config: PanguConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) to (B, d)."""
        return torch.tanh(self.dense(x[:, 0]))


class MaskedLMHead(nn.Module):
    """A dense layer, GELU, LayerNorm, and the word embeddings once more as output weights, with a bias of their own."""

    def __init__(self, config: PanguConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        """(…, d) to (…, V)."""
        return self.decoder(self.norm(self.activation(self.dense(x))))
