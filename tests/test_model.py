"""The PanGu model: layers against torch's own, the query layer against its formula, heads against their definitions."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from pangu_lab.model import (
    ModelError,
    PanguConfig,
    PanguForCausalLM,
    PanguForConditionalGeneration,
    PanguForMaskedLM,
    PanguForPreTraining,
    PanguForQuestionAnswering,
    PanguForSequenceClassification,
    PanguModel,
)
from pangu_lab.model.layers import DecoderLayer, EncoderLayer
from pangu_lab.model.positions import RelativePositions

CLOSE = {"rtol": 0, "atol": 1e-5}


def tiny(**changes):
    shape = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    return PanguConfig(**(shape | changes))


def build(head, **changes):
    torch.manual_seed(0)
    return head(tiny(**changes)).eval()


def ids_and_mask():
    """Three texts of nine tokens: whole, padded on the right, padded on the left."""
    ids = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:], mask[2, :3] = 0, 0
    return ids.masked_fill(mask == 0, 0), mask


ENCODER_DECODER = {"architecture": "encoder-decoder", "decoder_layers": 3}
PANGU_ALPHA = {"architecture": "decoder", "norm_position": "pre", "query_layer": True, "num_hidden_layers": 3}


# --- layers against torch's own ---------------------------------------------------------------------


def copy_attention(ours, theirs):
    """The weights of our attention in torch's module, which keeps q, k and v in one array."""
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        theirs.out_proj.load_state_dict(ours.o.state_dict())


def copy_layer(ours, theirs, cross):
    copy_attention(ours.self_attention, theirs.self_attn)
    theirs.linear1.load_state_dict(ours.feed_forward.up.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.down.state_dict())
    norms = [ours.self_attention_norm, ours.feed_forward_norm]
    if cross:
        copy_attention(ours.cross_attention, theirs.multihead_attn)
        norms.insert(1, ours.cross_attention_norm)
    for number, norm in enumerate(norms, start=1):
        getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())


def randomized(layer):
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.eval()


@pytest.mark.parametrize("implementation", ("eager", "sdpa"))
@pytest.mark.parametrize("norm", ("post", "pre"))
@pytest.mark.parametrize("cross", (False, True))
def test_a_layer_equals_torchs_layer_with_the_same_weights(norm, implementation, cross):
    config = tiny(norm_position=norm)
    config._attn_implementation = implementation
    torch.manual_seed(0)
    shape = {"activation": "gelu", "norm_first": norm == "pre", "batch_first": True, "layer_norm_eps": 1e-12}
    x, memory = torch.randn(3, 9, 16), torch.randn(3, 7, 16)
    _, mask = ids_and_mask()
    memory_mask = torch.ones(3, 7, dtype=torch.bool)
    memory_mask[0, 4:] = False
    if cross:
        ours, theirs = randomized(DecoderLayer(config, 0, cross=True)), nn.TransformerDecoderLayer(16, 4, 32, **shape)
        copy_layer(ours, theirs.eval(), cross)
        causal = nn.Transformer.generate_square_subsequent_mask(9)
        expected = theirs(x, memory, tgt_mask=causal, tgt_is_causal=True, memory_key_padding_mask=~memory_mask)
        output = ours(x, None, memory, memory_mask[:, None, None])[0]
    else:
        ours, theirs = randomized(EncoderLayer(config, 0)), nn.TransformerEncoderLayer(16, 4, 32, **shape)
        copy_layer(ours, theirs.eval(), cross)
        expected = theirs(x, src_key_padding_mask=mask == 0)
        output = ours(x, mask[:, None, None].bool())[0]
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ("post", "pre"))
def test_the_whole_decoder_equals_torchs_stack(norm):
    """Embeddings by hand, then torch's nn.TransformerDecoder over the states of our encoder."""
    model = build(PanguModel, norm_position=norm, **ENCODER_DECODER)
    ids, mask = ids_and_mask()
    said = torch.randint(3, 60, (3, 5))
    embeddings = model.decoder.embeddings
    x = embeddings.words(said) + embeddings.positions.weight[:5]
    x = embeddings.norm(x) if norm == "post" else x
    layer = nn.TransformerDecoderLayer(
        16, 4, 32, activation="gelu", norm_first=norm == "pre", batch_first=True, layer_norm_eps=1e-12
    )
    stack = nn.TransformerDecoder(layer, 3, norm=nn.LayerNorm(16, eps=1e-12) if norm == "pre" else None).eval()
    for ours, theirs in zip(model.decoder.layers, stack.layers, strict=True):
        copy_layer(ours, theirs, cross=True)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    with torch.no_grad():
        memory = model.encoder(ids, mask).last_hidden_state
        expected = stack(x, memory, tgt_mask=causal, memory_key_padding_mask=mask == 0)
        found = model(ids, mask, decoder_input_ids=said).last_hidden_state
    torch.testing.assert_close(found, expected, **CLOSE)


# --- PanGu-α's query layer --------------------------------------------------------------------------


def layer_norm(x, module):
    return functional.layer_norm(x, (16,), module.weight, module.bias, 1e-12)


def test_the_query_layer_is_its_formula():
    """Zeng et al. 2021, §3.2, one head and one position at a time."""
    model = build(PanguModel, **PANGU_ALPHA)
    ids, _ = ids_and_mask()
    with torch.no_grad():
        found = model(ids, output_hidden_states=True)
        top, layer = found.hidden_states[-2], model.decoder.query_layer  # H_L, normalized
        attention, normed = layer.self_attention, layer_norm(top, layer.self_attention_norm)
        for n in range(ids.size(1)):
            p_n, heads = layer.positions.weight[n], []
            for head in range(4):
                own = slice(4 * head, 4 * head + 4)
                q = attention.q.weight[own] @ p_n + attention.q.bias[own]
                k = normed[0, : n + 1] @ attention.k.weight[own].T + attention.k.bias[own]
                v = normed[0, : n + 1] @ attention.v.weight[own].T + attention.v.bias[own]
                heads.append((k @ q / math.sqrt(4)).softmax(0) @ v)
            x = top[0, n] + attention.o(torch.cat(heads))
            x = x + layer.feed_forward(layer_norm(x, layer.feed_forward_norm))
            torch.testing.assert_close(found.last_hidden_state[0, n], x, **CLOSE)


@pytest.mark.parametrize(("size", "billions"), (("2.6B", 2.6), ("13B", 13.1), ("207B", 207.0)))
def test_pangu_alpha_has_the_published_number_of_parameters(size, billions):
    """Built on the meta device: shapes without memory (Zeng et al. 2021, table 1)."""
    config = PanguConfig.pangu_alpha(size)
    with torch.device("meta"):
        model = PanguForCausalLM(config)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert abs(found / (billions * 1e9) - 1) < 0.01
    layers, d, vocabulary, length = config.num_hidden_layers, config.hidden_size, 40_000, 1024
    # A layer: four d × d of attention and two d × 4d of the network, with biases, and two LayerNorms.
    assert found == layers * (12 * d**2 + 13 * d) + vocabulary * d + 2 * length * d + 2 * d


def test_forty_layers_with_the_query_layer_among_them_miss_the_published_13_billion():
    with torch.device("meta"):
        model = PanguForCausalLM(PanguConfig.pangu_alpha("13B", num_hidden_layers=40))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e9, 1) == 12.8


# --- both implementations, whole models -------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    ({}, {"norm_position": "pre"}, ENCODER_DECODER, PANGU_ALPHA, ENCODER_DECODER | {"relative_positions": 3}),
)
def test_eager_and_sdpa_agree_with_padding_on_either_side(changes):
    model = build(PanguModel, **changes)
    ids, mask = ids_and_mask()
    mask[0] = 0  # a text of nothing but padding
    more = (
        {"decoder_input_ids": ids.flip(0), "decoder_attention_mask": mask.flip(0)}
        if "decoder_layers" in changes
        else {}
    )
    states = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            states[implementation] = model(ids, mask, **more).last_hidden_state
    assert states["sdpa"].isfinite().all()
    torch.testing.assert_close(states["eager"], states["sdpa"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ("left", "right"))
def test_padding_changes_nothing_for_the_real_tokens(side):
    model = build(PanguModel)
    ids = ids_and_mask()[0][:1, :5]
    none = torch.zeros(1, 3, dtype=torch.long)
    real = torch.ones_like(ids)
    padded, mask = (torch.cat([none, x] if side == "left" else [x, none], 1) for x in (ids, real))
    positions = torch.arange(8) - (3 if side == "left" else 0)
    own = slice(3, 8) if side == "left" else slice(0, 5)
    with torch.no_grad():
        short = model(ids).last_hidden_state
        long = model(padded, mask, position_ids=positions.clamp(min=0)).last_hidden_state[:, own]
    torch.testing.assert_close(long, short, **CLOSE)


@pytest.mark.parametrize("changes", ({}, ENCODER_DECODER, PANGU_ALPHA))
def test_attention_weights_and_hidden_states_come_out_of_both_implementations(changes):
    model = build(PanguModel, **changes)
    ids, mask = ids_and_mask()
    more = {"decoder_input_ids": ids} if "decoder_layers" in changes else {}
    found = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            found[implementation] = model(ids, mask, **more, output_attentions=True, output_hidden_states=True)
    for name in (name for name in found["eager"] if name.endswith(("attentions", "hidden_states"))):
        for x, y in zip(found["eager"][name], found["sdpa"][name], strict=True):
            torch.testing.assert_close(x, y, **CLOSE)
            if name.endswith("attentions"):
                torch.testing.assert_close(x.sum(-1), torch.ones(x.shape[:-1]))
    names = [name for name in found["sdpa"] if name.endswith("attentions")]
    assert len(names) == (3 if more else 1) and all(len(found["sdpa"][n]) in (2, 3) for n in names)


# --- heads ------------------------------------------------------------------------------------------


def test_masked_lm_scores_only_the_positions_asked_for():
    model = build(PanguForMaskedLM)
    ids, mask = ids_and_mask()
    labels = torch.full_like(ids, -100)
    labels[0, 2], labels[1, 4] = 7, 9
    whole, some = model(ids, mask, labels=labels), model(ids, mask, labels=labels, predict_at=labels != -100)
    assert some.logits.shape == (2, 60)
    torch.testing.assert_close(some.logits, whole.logits[labels != -100], **CLOSE)
    torch.testing.assert_close(some.loss, whole.loss)
    expected = -(whole.logits[0, 2].log_softmax(-1)[7] + whole.logits[1, 4].log_softmax(-1)[9]) / 2
    torch.testing.assert_close(whole.loss, expected)


def test_no_label_at_all_is_a_loss_of_zero_not_nan():
    ids, mask = ids_and_mask()
    assert build(PanguForMaskedLM)(ids, mask, labels=torch.full_like(ids, -100)).loss == 0


def test_pretraining_adds_up_words_pairs_and_tags():
    model = build(PanguForPreTraining, num_pos_tags=5, num_ner_tags=3)
    ids, mask = ids_and_mask()
    pair, pos, ner = torch.tensor([0, 1, 1]), ids % 5, ids % 3
    out = model(ids, mask, labels=ids, next_sentence_label=pair, pos_labels=pos, ner_labels=ner)
    assert set(out.losses) == {"words", "pair", "pos", "ner"}
    torch.testing.assert_close(out.loss, sum(out.losses.values()))
    torch.testing.assert_close(out.losses["pair"], functional.cross_entropy(out.pair_logits, pair))
    torch.testing.assert_close(out.losses["ner"], functional.cross_entropy(out.ner_logits.flatten(0, 1), ner.flatten()))
    plain = build(PanguForPreTraining)(ids, mask)
    assert plain.loss is None and plain.pos_logits is None
    with pytest.raises(ModelError, match="set num_pos_tags"):
        build(PanguForPreTraining)(ids, mask, pos_labels=pos)


def test_classification_and_regression():
    ids, mask = ids_and_mask()
    out = build(PanguForSequenceClassification, num_labels=4)(ids, mask, labels=torch.tensor([0, 3, 1]))
    assert out.logits.shape == (3, 4)
    torch.testing.assert_close(out.loss, functional.cross_entropy(out.logits, torch.tensor([0, 3, 1])))
    out = build(PanguForSequenceClassification, num_labels=1)(ids, mask, labels=torch.tensor([0.5, 1, 2]))
    torch.testing.assert_close(out.loss, (out.logits[:, 0] - torch.tensor([0.5, 1, 2])).square().mean())


def test_an_answer_cut_off_does_not_count():
    model = build(PanguForQuestionAnswering)
    ids, mask = ids_and_mask()
    out = model(ids, mask, start_positions=torch.tensor([1, 50, 2]), end_positions=torch.tensor([3, 60, 2]))
    start = functional.cross_entropy(out.start_logits[[0, 2]], torch.tensor([1, 2]))
    end = functional.cross_entropy(out.end_logits[[0, 2]], torch.tensor([3, 2]))
    torch.testing.assert_close(out.loss, (start + end) / 2)


def test_the_decoder_is_given_the_labels_shifted_by_one():
    model = build(PanguForConditionalGeneration, **ENCODER_DECODER)
    ids, mask = ids_and_mask()
    labels = torch.tensor([[5, 6, 2], [7, 2, -100], [8, 9, 2]])
    shifted = torch.tensor([[1, 5, 6], [1, 7, 2], [1, 8, 9]])
    assert torch.equal(model.prepare_decoder_input_ids_from_labels(labels), shifted)
    a, b = model(ids, mask, labels=labels), model(ids, mask, decoder_input_ids=shifted)
    torch.testing.assert_close(a.logits, b.logits)
    torch.testing.assert_close(a.loss, functional.cross_entropy(b.logits.flatten(0, 1), labels.flatten()))


def test_a_causal_model_is_scored_on_the_next_token():
    model = build(PanguForCausalLM, **PANGU_ALPHA)
    ids, _ = ids_and_mask()
    out = model(ids, labels=ids)
    expected = functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)
    changed = ids.clone()
    changed[:, 5:] = 3
    torch.testing.assert_close(model(changed).logits[:, :5], out.logits[:, :5], **CLOSE)


def test_the_decoder_learns_to_copy():
    """The whole path, from labels to generated text: after 250 steps the model repeats what it read."""
    torch.manual_seed(0)
    small = {"num_hidden_layers": 1, "decoder_layers": 1, "vocab_size": 12, "initializer_range": 0.1}
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = PanguForConditionalGeneration(tiny(**(ENCODER_DECODER | small | calm))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    end = torch.full((64, 1), 2)
    for _ in range(250):
        ids = torch.randint(3, 12, (64, 4))
        loss = model(ids, labels=torch.cat([ids, end], 1)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids = torch.randint(3, 12, (50, 4))
    said = model.eval().generate(ids, max_new_tokens=5, do_sample=False)
    assert (said[:, 1:5] == ids).all(1).float().mean() > 0.9


# --- relative positions -----------------------------------------------------------------------------


def test_with_relative_positions_only_distances_count(tmp_path):
    model = build(PanguModel, relative_positions=3)
    ids = torch.randint(5, 60, (1, 6), generator=torch.manual_seed(0))
    with torch.no_grad():
        alone = model(ids).last_hidden_state
        padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
        moved = model(padded, (padded > 0).long()).last_hidden_state[:, 5:]
        turned = model(ids.flip(1)).last_hidden_state.flip(1)
        longer = model(ids.repeat(1, 10)).last_hidden_state  # 60 tokens; there is no table of positions to run out of
    torch.testing.assert_close(moved, alone, rtol=1e-5, atol=1e-5)
    assert longer.isfinite().all() and (turned - alone).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        again = PanguModel.from_pretrained(tmp_path).eval()(ids).last_hidden_state
    assert torch.equal(again, alone)


def test_distances_are_cut_off_on_both_sides():
    bias = RelativePositions(heads=2, most=2)
    table = bias(5)
    assert table.shape == (2, 5, 5)
    for row, column in ((0, 0), (0, 1), (3, 1), (0, 4), (4, 0)):
        wanted = bias.SCALE * bias.weight[:, max(-2, min(2, column - row)) + 2]
        torch.testing.assert_close(table[:, row, column], wanted)


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    (
        ({"architecture": "tower"}, "architecture is 'tower'; it must be one of encoder, encoder-decoder, decoder"),
        ({"hidden_act": "swash"}, "hidden_act is 'swash'"),
        ({"norm_position": "middle"}, "it must be one of post, pre"),
        ({"num_attention_heads": 5}, "hidden_size 16 cannot be split over 5 heads"),
        ({"query_layer": True}, "query_layer belongs to a lone pre-norm decoder"),
        ({"decoder_layers": 2}, "decoder_layers belongs to an encoder-decoder"),
        ({"relative_positions": -1}, "relative_positions is -1 in architecture 'encoder'; it must be 0 or more"),
        (PANGU_ALPHA | {"relative_positions": 4}, "and 0 without an encoder"),
    ),
)
def test_a_shape_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ModelError, match=sentence):
        tiny(**changes)


def test_misuse_is_told_in_one_sentence():
    with pytest.raises(ModelError, match="needs architecture 'encoder-decoder'"):
        build(PanguForConditionalGeneration)
    with pytest.raises(ModelError, match="not published in size '7B'"):
        PanguConfig.pangu_alpha("7B")
    with pytest.raises(ModelError, match="the text has 40 tokens, but the model has positions for 32"):
        build(PanguModel)(torch.ones(1, 40, dtype=torch.long))
    model = build(PanguForCausalLM, **PANGU_ALPHA, eos_token_id=None)
    with pytest.raises(ModelError, match="positions for 32"):
        model.generate(torch.ones(1, 20, dtype=torch.long), max_new_tokens=20, do_sample=False)
    with pytest.raises(ModelError, match="leave cache_implementation out"):
        model.generate(torch.ones(1, 4, dtype=torch.long), max_new_tokens=4, cache_implementation="static")
    with pytest.raises(ModelError, match="needs decoder_input_ids"):
        build(PanguModel, **ENCODER_DECODER)(torch.ones(1, 4, dtype=torch.long))
    with pytest.raises(ModelError, match="either input_ids or inputs_embeds"):
        build(PanguModel)()
