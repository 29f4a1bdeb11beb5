"""Attention as in Vaswani et al. 2017, §3.2: two functions for one formula, the masks, and the module with its weights.

A mask is boolean, True where a query may look, and broadcasts to (B, H, T_q, T_k): B texts, H heads, T_q queries,
T_k keys. A query that may look nowhere gets zeros. Read ``scaled_dot_product`` first.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache, EncoderDecoderCache

from pangu_lab.model.configuration import ModelError, PanguConfig
from pangu_lab.model.positions import RelativePositions


def scaled_dot_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V (Vaswani et al. 2017, eq. 1), written out.

    Parameters
    ----------
    q, k, v
        (B, H, T_q, d_k), (B, H, T_k, d_k), (B, H, T_k, d_k).
    mask, causal
        Where a query may look, and whether the last of T_q queries stands at the last of T_k keys and none looks ahead.
    dropout
        The share of weights set to zero, the others scaled up.
    bias
        What is added to the scores (H, T_q, T_k), as ``RelativePositions`` gives it.

    Returns
    -------
    output (B, H, T_q, d_k), weights (B, H, T_q, T_k)
        Each row of the weights sums to one. If the mask leaves a query nothing, its output is zero.
    """
    if causal:
        mask = with_causal(mask, q, k)
    d_k = q.size(-1)
    scores = q @ k.transpose(-2, -1) * d_k**-0.5  # (B, H, T_q, T_k)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores + minus_infinity_outside(mask, scores.dtype)
    weights = scores.softmax(dim=-1)  # (B, H, T_q, T_k)
    output = functional.dropout(weights, dropout) @ v  # (B, H, T_q, d_k)
    if mask is not None:
        output = output * mask.any(dim=-1, keepdim=True)  # nothing to look at: zeros, not the mean of all
    return output, weights


def fused_scaled_dot_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """The same output (B, H, T_q, d_k) by torch's kernel, which never holds all weights in memory at once."""
    if causal and (mask is not None or bias is not None or q.size(-2) != k.size(-2)):
        mask, causal = with_causal(mask, q, k), False
    added = mask if bias is None or mask is None else bias + minus_infinity_outside(mask, bias.dtype)
    added = bias if added is None else added
    output = functional.scaled_dot_product_attention(q, k, v, attn_mask=added, dropout_p=dropout, is_causal=causal)
    return output if bias is None or mask is None else output * mask.any(dim=-1, keepdim=True)


# --- masks ------------------------------------------------------------------------------------------


def padding_mask(attention_mask: Tensor | None) -> Tensor | None:
    """(B, 1, 1, T_k) from the tokenizer's (B, T_k) of ones and zeros; None if nothing is padded.

    (B, T_q, T_k) and (B, H or 1, T_q, T_k) say it for each query and are taken as they are.
    """
    if attention_mask is None:
        return None
    if attention_mask.dim() not in (2, 3, 4) or (attention_mask.dim() > 2 and attention_mask.is_floating_point()):
        raise ModelError(
            f"attention_mask has shape {tuple(attention_mask.shape)} and type {attention_mask.dtype}; give ones (look) "
            "and zeros (do not) as (B, T), or as integers or booleans for each query, (B, T_q, T_k) or (B, 1, T_q, T_k)"
        )
    mask = attention_mask.bool()
    # What the values are cannot be asked while a graph is recorded: the mask then stays.
    if not torch.compiler.is_compiling() and mask.device.type != "meta" and bool(mask.all()):
        return None
    match mask.dim():
        case 2:
            return mask[:, None, None, :]
        case 3:
            return mask[:, None]
    return mask


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """(T_q, T_k): the queries are the last T_q of T_k positions, and none looks ahead."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def with_causal(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    """``mask`` with the causal mask of q (…, T_q, d_k) and k (…, T_k, d_k) put on it."""
    causal = causal_mask(q.size(-2), k.size(-2), q.device)
    return causal if mask is None else mask & causal


def minus_infinity_outside(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to scores: 0 where the mask is True, else a number that softmax turns into 0.

    It stands for −∞, which would make a row of nothing else NaN; half the lowest number leaves room for a score.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min / 2)


# --- heads ------------------------------------------------------------------------------------------


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, d) to (B, H, T, d/H): head h has the columns h·d/H up to (h+1)·d/H."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, T, d/H) back to (B, T, d)."""
    return x.transpose(1, 2).flatten(-2)


class MultiHeadAttention(nn.Module):
    """MultiHead(Q, K, V) = Concat(head_1, …, head_h) Wᴼ (Vaswani et al. 2017, §3.2.2).

    Self-attention gives the same text as ``x`` and ``memory``; cross-attention asks from the decoder's ``x`` into the
    encoder's ``memory``. With a cache, self-attention adds its keys and values to those of earlier tokens, and
    cross-attention computes them once. With ``relative`` (an encoder's R), scores depend on distances, too.
    """

    def __init__(self, config: PanguConfig, layer: int = 0, cross: bool = False, relative: int = 0) -> None:
        super().__init__()
        d, heads = config.hidden_size, config.heads_in(layer)
        inner = heads * (d // config.num_attention_heads)  # d, unless heads were pruned
        self.config, self.heads, self.layer, self.cross = config, heads, layer, cross
        self.q, self.k, self.v = (nn.Linear(d, inner) for _ in range(3))
        self.o = nn.Linear(inner, d)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.distances = RelativePositions(heads, relative) if relative else None

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T_q, d), memory (B, T_k, d) to (B, T_q, d), and the weights (B, H, T_q, T_k) if they are needed."""
        q = split_heads(self.q(x), self.heads)  # (B, H, T_q, d_k)
        k, v = self.keys_and_values(memory, cache)  # (B, H, T_k, d_k)
        output, weights = self.attend(q, k, v, mask, causal, need_weights)  # (B, H, T_q, d_k)
        return self.o(merge_heads(output)), weights  # (B, T_q, d)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The formula, by the implementation that the configuration names; only the written-out one has weights."""
        dropout = self.dropout.p if self.training else 0.0
        bias = None if self.distances is None else self.distances(q.size(-2)).to(q.dtype)  # (H, T, T)
        implementation = self.config._attn_implementation
        if need_weights or implementation == "eager":
            return scaled_dot_product(q, k, v, mask, causal, dropout, bias)
        if implementation == "sdpa":
            return fused_scaled_dot_product(q, k, v, mask, causal, dropout, bias), None
        raise ModelError(f"attn_implementation is {implementation!r}; this model has 'eager' and 'sdpa'")

    def keys_and_values(self, memory: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """k and v (B, H, T_k, d_k) of ``memory`` (B, T, d), and of what the cache holds."""
        if self.cross and isinstance(cache, EncoderDecoderCache) and cache.is_updated.get(self.layer):
            stored = cache.cross_attention_cache.layers[self.layer]
            return stored.keys, stored.values
        k, v = split_heads(self.k(memory), self.heads), split_heads(self.v(memory), self.heads)
        if isinstance(cache, EncoderDecoderCache):
            own = cache.cross_attention_cache if self.cross else cache.self_attention_cache
            k, v = own.update(k, v, self.layer)
            if self.cross:
                cache.is_updated[self.layer] = True
        elif cache is not None:
            k, v = cache.update(k, v, self.layer)
        return k, v
