"""The int8 engine against its arithmetic in plain torch, on every path that this processor has."""

import dataclasses

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, BertModel

from pangu_lab.compression import engine
from pangu_lab.compression.engine import EngineError, PackedLinear, integer_sums, quantize_channels, reference_linear
from pangu_lab.compression.int8_encoder import Int8Encoder, describe, encoder_of, with_int8_encoder
from pangu_lab.model import PanguConfig, PanguModel

COMPILED = engine.supported_paths() if engine.find_compiler() else []
PATHS = [*COMPILED, "torch"]
SHAPES = [(1, 1, 1), (3, 7, 5), (33, 65, 100), (70, 31, 1000), (129, 96, 64)]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def layer(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight, scale = quantize_channels(torch.randn(n, k, generator=generator))
    return weight, scale, torch.randn(n, generator=generator)


def inputs(m, k, seed=1):
    return torch.randn(m, k, generator=torch.Generator().manual_seed(seed)) * 3


def sums_of(packed, x):
    return packed.run(x, False, None, None, want_sums=True)[1]


@pytest.mark.parametrize("path", COMPILED)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_integers_are_those_of_the_reference(path, m, n, k):
    weight, scale, bias = layer(n, k)
    x = inputs(m, k)
    x[m // 2] = 0
    expected = integer_sums(engine.quantize_rows(x)[0], weight)
    assert torch.equal(sums_of(PackedLinear(weight, scale, bias, path=path), x), expected)


@pytest.mark.parametrize("path", COMPILED)
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_the_largest_numbers_do_not_saturate(path, signs):
    weight = torch.full((33, 3000), 127 * signs[0], dtype=torch.int8)
    x = torch.full((9, 3000), 0.5 * signs[1])
    sums = sums_of(PackedLinear(weight, torch.ones(33), path=path), x)
    assert sums.unique().tolist() == [127 * 127 * 3000 * signs[0] * signs[1]]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("gelu", [False, True])
def test_fp32_result_is_the_references_up_to_rounding(path, m, n, k, gelu):
    weight, scale, bias = layer(n, k)
    x, residual = inputs(m, k), inputs(m, n, seed=2)
    packed = PackedLinear(weight, scale, bias, path=path)
    expected = reference_linear(x, weight, scale, bias, gelu=gelu, residual=residual)
    # Sums of parts that may cancel: one rounding of the largest part, and GELU's polynomial.
    tolerance = 2e-7 * float(reference_linear(x, weight, scale).abs().max() + 5) + (2e-6 if gelu else 0)
    assert (packed(x, gelu=gelu, residual=residual) - expected).abs().max() <= tolerance
    assert packed(x[None], gelu=gelu).shape == (1, m, n)


@pytest.mark.parametrize("path", COMPILED)
def test_gelu_to_two_millionths(path):
    x = torch.linspace(-8, 8, 40_001)
    weight, scale = torch.zeros(len(x), 1, dtype=torch.int8), torch.ones(len(x))
    y = PackedLinear(weight, scale, x, path=path)(torch.ones(1, 1), gelu=True)[0]
    assert (y - functional.gelu(x.double())).abs().max() < 2e-6


@pytest.mark.parametrize("path", COMPILED)
def test_any_number_of_threads_gives_the_same(path, threads):
    weight, scale, bias = layer(40, 70)
    packed, x = PackedLinear(weight, scale, bias, path=path), inputs(300, 70)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(packed(x))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("path", PATHS)
def test_rows_that_are_not_finite_give_nan_and_only_they(path):
    weight, scale, bias = layer(20, 33)
    x = inputs(6, 33)
    expected = reference_linear(x, weight, scale, bias)
    x[1, 3], x[4, 32], x[5, 0] = torch.nan, torch.inf, -torch.inf
    y = PackedLinear(weight, scale, bias, path=path)(x)
    assert y[[1, 4, 5]].isnan().all()
    assert torch.allclose(y[[0, 2, 3]], expected[[0, 2, 3]], atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_rows_of_zeros_give_the_bias(path):
    weight, scale, bias = layer(20, 33)
    x = torch.zeros(3, 33)
    x[1] = 1e-35
    assert torch.equal(PackedLinear(weight, scale, bias, path=path)(x), bias.expand(3, 20))


@pytest.mark.parametrize("path", PATHS)
def test_static_scale_clamps(path):
    weight, scale, bias = layer(20, 33)
    x = inputs(7, 33)
    packed = PackedLinear(weight, scale, bias, activation_scale=0.01, path=path)
    expected = reference_linear(x.clamp(-1.27, 1.27), weight, scale, bias, activation_scale=0.01)
    assert torch.allclose(packed(x), expected, atol=1e-5)
    assert not torch.allclose(packed(x, activation_scale=0.1), expected, atol=1e-2)


def test_wrong_shapes_are_told():
    weight, scale, bias = layer(4, 6)
    with pytest.raises(EngineError, match="5 columns and the layer 6 inputs"):
        PackedLinear(weight, scale, bias)(torch.ones(2, 5))
    with pytest.raises(EngineError, match="residual has shape"):
        PackedLinear(weight, scale, bias)(torch.ones(2, 6), residual=torch.ones(2, 5))
    with pytest.raises(EngineError, match=r"torch\.float32"):
        PackedLinear(weight.float(), scale)


# --- choosing and compiling -------------------------------------------------------------------------


def test_the_environment_chooses_the_path(monkeypatch):
    for path in PATHS:
        monkeypatch.setenv("PANGU_LAB_ENGINE", path)
        assert engine.engine_path() == path
        assert engine.available()[0] == (path != "torch")
    monkeypatch.setenv("PANGU_LAB_ENGINE", "sse9")
    with pytest.raises(EngineError, match="'sse9'; it must be one of amx"):
        engine.engine_path()


def test_without_a_compiler_torch_computes_and_says_why(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(engine, "find_compiler", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PANGU_LAB_ENGINE", raising=False)
    engine.load.cache_clear()
    engine._choose.cache_clear()
    try:
        assert engine.available() == (False, engine.available()[1])
        assert engine.engine_path() == "torch"
        assert capsys.readouterr().err.count("no C++ compiler") == 1
    finally:
        engine.load.cache_clear()
        engine._choose.cache_clear()


@pytest.mark.skipif(not COMPILED, reason="no C++ compiler")
def test_compiled_once_and_again_when_the_source_changes(tmp_path, monkeypatch):
    first = engine.build("portable", tmp_path)
    stamp = first.stat().st_mtime_ns
    assert engine.build("portable", tmp_path) == first and first.stat().st_mtime_ns == stamp
    broken = tmp_path / "engine.cpp"
    broken.write_text("int main( {", encoding="utf-8")
    monkeypatch.setattr(engine, "SOURCES", (broken,))
    with pytest.raises(EngineError, match="cannot compile"):
        engine.build("portable", tmp_path)
    assert list(tmp_path.glob("*.so")) == [first]


# --- the encoder ------------------------------------------------------------------------------------


def bert(**sizes):
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 5} | sizes
    config = BertConfig(intermediate_size=72, max_position_embeddings=90, **shape)
    model = BertModel(config).eval()
    for parameter in model.parameters():  # the initial weights are too small to do anything
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def ragged(texts=5, length=70, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 50, (texts, length), generator=generator)
    tokens = torch.randint(1, length + 1, (texts, 1), generator=generator)
    tokens[0] = length
    mask = (torch.arange(length) < tokens).long()
    return ids * mask, mask


def similar(a, b, mask):
    return functional.cosine_similarity(a, b, dim=-1)[mask.bool()].min()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 128, "num_attention_heads": 2}, {"hidden_act": "relu"}], ids=str)
def test_encoder_is_close_to_fp32(path, sizes):
    model, (ids, mask) = bert(**sizes), ragged()
    segments = (torch.arange(70) > 9).long().expand(5, 70)
    with torch.no_grad():
        expected = model(ids, mask, token_type_ids=segments)
    output = Int8Encoder.from_model(model, path)(ids, mask, token_type_ids=segments)
    assert similar(output.last_hidden_state, expected.last_hidden_state, mask) > 0.998
    assert functional.cosine_similarity(output.pooler_output, expected.pooler_output).min() > 0.998
    assert not output.last_hidden_state[mask == 0].any()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_encoder_of_our_model(path, norm_position):
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = PanguConfig(intermediate_size=96, norm_position=norm_position, position_offset=2, **sizes)
    model, (ids, mask) = PanguModel(config).eval(), ragged()
    with torch.no_grad():
        expected = model(ids, mask).last_hidden_state
    assert similar(Int8Encoder.from_model(model, path)(ids, mask).last_hidden_state, expected, mask) > 0.998


@pytest.mark.parametrize("path", COMPILED)
def test_a_text_is_computed_the_same_in_any_company(path, threads):
    encoder, (ids, mask) = Int8Encoder.from_model(bert(), path), ragged(texts=40, length=60)
    together = encoder.hidden_states(ids, mask)
    threads(3)
    assert torch.equal(encoder.hidden_states(ids, mask), together)
    for i in (0, 7, 39):
        tokens = int(mask[i].sum())
        alone = encoder.hidden_states(ids[i : i + 1, :tokens])
        assert torch.equal(alone[0], together[i, :tokens])


@pytest.mark.parametrize("path", PATHS)
def test_masks_with_holes_and_empty_texts(path):
    model, (ids, _) = bert(), ragged(texts=3)
    mask = torch.ones_like(ids)
    mask[0, :30], mask[1, ::3], mask[2] = 0, 0, 0
    with torch.no_grad():
        expected = model(ids, mask).last_hidden_state
    states = Int8Encoder.from_model(model, path).hidden_states(ids, mask)
    assert similar(states, expected, mask) > 0.998
    assert not states[2].any()


@pytest.mark.parametrize("path", COMPILED)
def test_nan_stays_in_its_text(path):
    model, (ids, mask) = bert(), ragged(texts=3)
    ids[0], ids[1], ids[2] = 3, 4, 3
    ids[1, 0] = 5
    model.embeddings.word_embeddings.weight.data[5] = torch.nan
    states = Int8Encoder.from_model(model, path).hidden_states(ids, mask)
    assert states[1][mask[1].bool()].isnan().all()
    assert states[[0, 2]].isfinite().all()


@pytest.mark.parametrize("path", PATHS)
def test_word_embeddings_in_int8(path):
    model, (ids, mask) = bert(), ragged()
    tensors = describe(model)
    words, scale = quantize_channels(tensors.words)
    small = Int8Encoder(dataclasses.replace(tensors, words=words, word_scale=scale), path=path)
    whole = dataclasses.replace(tensors, words=words * scale[:, None])
    expected = Int8Encoder(whole, path=path).hidden_states(ids, mask)
    assert similar(small.hidden_states(ids, mask), expected, mask) > 0.9999


def test_a_model_with_a_head_keeps_its_head():
    torch.manual_seed(0)
    model = BertForSequenceClassification(bert().config).eval()
    ids, mask = ragged()
    small = with_int8_encoder(model)
    with torch.no_grad():
        assert (small(ids, mask).logits - model(ids, mask).logits).abs().max() < 0.02
    assert type(small) is type(model) and encoder_of(model) is model.bert  # the first model is as it was


def test_what_cannot_be_computed_is_told():
    encoder = Int8Encoder.from_model(bert())
    with pytest.raises(EngineError, match="input_ids go from 1 to 50; the model has 0 to 49"):
        encoder.hidden_states(torch.tensor([[1, 50]]))
    with pytest.raises(EngineError, match="position_ids go from 0 to 90; the model has 0 to 89"):
        encoder.hidden_states(torch.ones(1, 91, dtype=torch.long))
    with pytest.raises(EngineError, match="attention_mask"):
        encoder.hidden_states(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 4))
    with pytest.raises(EngineError, match="hidden_act is 'silu'"):
        describe(bert(hidden_act="silu"))
    with pytest.raises(EngineError, match="Linear has no encoder"):
        describe(torch.nn.Linear(2, 2))
