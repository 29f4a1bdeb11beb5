"""Attention: the written-out formula, torch's kernel and torch's own module agree under every mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pangu_lab.model import ModelError, PanguConfig
from pangu_lab.model.attention import (
    MultiHeadAttention,
    causal_mask,
    fused_scaled_dot_product,
    merge_heads,
    padding_mask,
    scaled_dot_product,
    split_heads,
)


def qkv(texts=3, heads=2, queries=5, keys=5, d=4, seed=0, kind=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    shapes = ((texts, heads, queries, d), (texts, heads, keys, d), (texts, heads, keys, d))
    return [torch.randn(shape, generator=draw).to(kind).requires_grad_() for shape in shapes]


RIGHT = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
LEFT = RIGHT.flip(-1)
EMPTY = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]])
MASKS = {"none": None, "right": padding_mask(RIGHT), "left": padding_mask(LEFT), "empty text": padding_mask(EMPTY)}


@pytest.mark.parametrize("causal", (False, True))
@pytest.mark.parametrize("name", MASKS)
def test_both_implementations_agree_under_every_mask_and_so_do_their_gradients(name, causal):
    results = []
    for attend in (lambda *x: scaled_dot_product(*x)[0], fused_scaled_dot_product):
        q, k, v = qkv()
        output = attend(q, k, v, MASKS[name], causal)
        output.square().sum().backward()
        results.append([output, q.grad, k.grad, v.grad])
    for ours, fused in zip(*results, strict=True):
        assert not ours.isnan().any() and not fused.isnan().any()
        torch.testing.assert_close(ours, fused, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40)
def test_both_implementations_agree_on_any_mask_and_any_number_of_queries_and_keys(queries, keys, seed, causal):
    q, k, v = qkv(queries=queries, keys=keys, seed=seed)
    mask = torch.rand(3, 1, queries, keys, generator=torch.Generator().manual_seed(seed)) < 0.6
    output, weights = scaled_dot_product(q, k, v, mask, causal)
    torch.testing.assert_close(output, fused_scaled_dot_product(q, k, v, mask, causal), rtol=1e-5, atol=1e-5)
    allowed = mask & causal_mask(queries, keys) if causal else mask
    seen = allowed.any(-1, keepdim=True)
    assert (output.masked_select(~seen) == 0).all()
    assert (weights.masked_select(seen & ~allowed) == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, queries))


def test_a_query_that_may_look_nowhere_gets_zeros():
    q, k, v = qkv()
    output, _ = scaled_dot_product(q, k, v, MASKS["empty text"])
    assert (output[1] == 0).all() and (output[[0, 2]] != 0).all()


@pytest.mark.parametrize("kind", (torch.bfloat16, torch.float16))
def test_half_precision_stays_finite_and_close(kind):
    for mask in MASKS.values():
        q, k, v = qkv(kind=kind)
        output, _ = scaled_dot_product(q * 20, k * 20, v, mask)
        assert output.dtype == kind and output.isfinite().all()
        torch.testing.assert_close(output, fused_scaled_dot_product(q * 20, k * 20, v, mask), rtol=0.05, atol=0.05)


def test_very_low_scores_do_not_overflow_under_a_mask():
    q, k, v = (torch.full((3, 1, 5, 4), value, dtype=torch.float16) for value in (40.0, -40.0, 1.0))
    output, weights = scaled_dot_product(q, k, v, MASKS["empty text"])
    assert weights.isfinite().all() and (output[1] == 0).all() and (output[[0, 2]] == 1).all()


def test_the_formula_by_hand():
    """Two keys, scores 2/√4 = 1 and 0: weights e/(e+1) and 1/(e+1)."""
    q = torch.tensor([[[[2.0, 0, 0, 0]]]])
    k = torch.tensor([[[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]]])
    v = torch.tensor([[[[1.0], [0.0]]]])
    output, weights = scaled_dot_product(q, k, v)
    e = torch.tensor(1.0).exp()
    torch.testing.assert_close(weights.flatten(), torch.stack([e, torch.tensor(1.0)]) / (e + 1))
    torch.testing.assert_close(output.flatten(), (e / (e + 1)).reshape(1))


def test_no_token_sees_what_comes_after_it():
    q, k, v = qkv()
    before, _ = scaled_dot_product(q, k, v, causal=True)
    with torch.no_grad():
        k[:, :, 3:] += 1
        v[:, :, 3:] -= 1
    after, _ = scaled_dot_product(q, k, v, causal=True)
    assert torch.equal(before[:, :, :3], after[:, :, :3]) and not torch.equal(before[:, :, 3:], after[:, :, 3:])


def test_the_last_queries_stand_at_the_last_keys():
    """With three tokens in the cache, a fourth and fifth query see keys up to the fourth and fifth."""
    assert causal_mask(2, 5).tolist() == [[True] * 4 + [False], [True] * 5]


def test_each_head_has_its_own_columns_and_merging_undoes_splitting():
    x = torch.arange(2 * 3 * 8.0).reshape(2, 3, 8)
    heads = split_heads(x, 4)
    assert heads.shape == (2, 4, 3, 2) and torch.equal(heads[:, 1], x[..., 2:4])
    assert torch.equal(merge_heads(heads), x)


def test_dropout_leaves_the_expected_output():
    q, k, v = qkv(texts=1)
    torch.manual_seed(0)
    mean = torch.stack([scaled_dot_product(q, k, v, dropout=0.3)[0] for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, scaled_dot_product(q, k, v)[0], rtol=0, atol=0.06)


def test_no_mask_is_made_where_nothing_is_padded():
    assert padding_mask(None) is None and padding_mask(torch.ones(2, 3, dtype=torch.long)) is None
    assert padding_mask(RIGHT).shape == (3, 1, 1, 5)
    assert padding_mask(torch.tril(torch.ones(2, 4, 4, dtype=torch.long))).shape == (2, 1, 4, 4)


@pytest.mark.parametrize("mask", (torch.ones(5), torch.zeros(2, 1, 5, 5)))
def test_a_mask_of_unknown_meaning_is_refused(mask):
    with pytest.raises(ModelError, match="attention_mask has shape"):
        padding_mask(mask)


@pytest.mark.parametrize("implementation", ("eager", "sdpa"))
def test_multi_head_attention_equals_torchs_module_with_the_same_weights(implementation):
    config = PanguConfig(hidden_size=16, num_attention_heads=4, attention_probs_dropout_prob=0.0)
    config._attn_implementation = implementation
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(config), nn.MultiheadAttention(16, 4, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    with torch.no_grad():
        theirs.out_proj.weight.copy_(ours.o.weight)
        theirs.out_proj.bias.copy_(ours.o.bias)
        for layer, weight, bias in zip(
            (ours.q, ours.k, ours.v), theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), strict=True
        ):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    x, memory = torch.randn(3, 4, 16), torch.randn(3, 5, 16)
    expected, weights = theirs(x, memory, memory, key_padding_mask=RIGHT == 0, average_attn_weights=False)
    output, none = ours(x, memory, padding_mask(RIGHT))
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert (none is None) == (implementation == "sdpa")
    torch.testing.assert_close(ours(x, memory, padding_mask(RIGHT), need_weights=True)[1], weights)


def test_an_unknown_implementation_is_refused():
    attention = MultiHeadAttention(PanguConfig(hidden_size=8, num_attention_heads=2))
    attention.config._attn_implementation_internal = "other"
    with pytest.raises(ModelError, match="'eager' and 'sdpa'"):
        attention(torch.zeros(1, 2, 8), torch.zeros(1, 2, 8))
