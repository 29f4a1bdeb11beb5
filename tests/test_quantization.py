"""Quantisation: the arithmetic against brute force, whole tiny models, and files that are refused."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from pangu_lab.compression.affine import (
    QuantizationError,
    Scheme,
    emulated_int_matmul,
    extremes,
    fake_quantize,
    int_matmul,
    quantize,
    scale_and_zero_point,
)
from pangu_lab.compression.gptq import gptq, output_error
from pangu_lab.compression.observers import BINS, MSE, OBSERVERS, Entropy, MinMax, MovingAverage, Percentile
from pangu_lab.compression.qat import prepare, quantization_aware_training, restore, straight_through
from pangu_lab.compression.quantization import (
    RECIPES,
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    Recipe,
    find_recipe,
    layer_errors,
    load_quantized,
    pack_int4,
    save_quantized,
    token_scales,
)
from pangu_lab.compression.quantization import quantize as quantize_model
from pangu_lab.compression.smoothquant import fold_into_norm, input_maxima, smooth, smoothing_factors
from pangu_lab.config import Train
from pangu_lab.data.batches import collate
from pangu_lab.model import PanguConfig, PanguForConditionalGeneration, PanguForSequenceClassification
from pangu_lab.training import Job, cross_entropy_loss

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
schemes = st.builds(
    Scheme,
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    granularity=st.sampled_from(["tensor", "channel", "group"]),
    group_size=st.sampled_from([3, 4, 7]),
)


def correlated(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return mixed + torch.randn(rows, 1, generator=generator)


def tiny_bert(seed=0):
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(vocab_size=100, max_position_embeddings=20, **SIZES)).eval()


def tiny_pangu(kind=PanguForSequenceClassification, **options):
    torch.manual_seed(0)
    return kind(PanguConfig(vocab_size=100, max_position_embeddings=20, **SIZES, **options)).eval()


def batches(count=3):
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(5, 100, (4, 12), generator=generator) for _ in range(count)]
    mask = torch.ones(4, 12, dtype=torch.long)
    mask[1, 7:] = 0
    return [{"input_ids": i, "attention_mask": mask} for i in ids]


# --- affine arithmetic ------------------------------------------------------------------------------


@given(schemes, st.integers(0, 10**6), st.floats(0.001, 1000), st.floats(-3, 3))
@settings(max_examples=80)
def test_the_round_trip_is_off_by_half_a_step_at_most_and_zero_is_exact(scheme, seed, size, shift):
    x = (torch.randn(5, 10, generator=torch.Generator().manual_seed(seed)) + shift) * size
    x[2, 3] = 0
    q = quantize(x, scheme)
    low, high = scheme.range
    assert q.values.dtype == torch.int8 and low <= int(q.values.min()) and int(q.values.max()) <= high
    back = q.dequantize()
    assert back.shape == x.shape and back[2, 3] == 0
    # A zero point is rounded, too, so an end of the range may be half a step outside: that half is clipped.
    steps = q.scale.amax() if scheme.granularity == "tensor" else q.scale
    allowed = (0.5 if scheme.symmetric else 1.0) * steps * (1 + 1e-4)
    error = (back - x).abs()
    if scheme.granularity == "group":
        error = error.amax(dim=1, keepdim=True)
        allowed = allowed.amax(dim=1)
    assert bool((error <= allowed).all())


def test_an_affine_map_by_hand():
    scheme = Scheme(8, symmetric=False, granularity="tensor")
    x = torch.tensor([-1.0, 0.0, 0.5, 1.55])
    q = quantize(x, scheme)
    assert float(q.scale) == pytest.approx(0.01) and int(q.zero_point) == -28
    assert q.values.tolist() == [-128, -28, 22, 127]
    assert quantize(x, Scheme(8, True, "tensor")).values.tolist() == [-82, 0, 41, 127]


def test_a_range_is_widened_to_hold_zero_and_one_without_width_gets_scale_one():
    scheme = Scheme(8, symmetric=False, granularity="tensor")
    scale, zero = scale_and_zero_point(torch.tensor(3.0), torch.tensor(5.1), scheme)
    assert float(scale) == pytest.approx(0.02) and int(zero) == -128
    assert float(quantize(torch.zeros(4), Scheme()).scale) == 1
    assert quantize(torch.zeros(4), Scheme(4, False, "tensor")).dequantize().tolist() == [0] * 4


def test_a_channel_is_a_row_and_a_group_is_part_of_one():
    w = torch.randn(6, 10) * torch.tensor([[0.01], [1], [100], [1], [1], [1]])
    assert quantize(w, Scheme(granularity="channel")).scale.shape == (6, 1)
    assert quantize(w, Scheme(granularity="group", group_size=4)).scale.shape == (6, 3, 1)
    errors = [
        float(((fake_quantize(w, Scheme(4, True, g, 2)) - w) ** 2 / w.var(1, keepdim=True)).mean())
        for g in ("tensor", "channel", "group")
    ]
    assert errors[0] > 2 * errors[1] > 2 * errors[2]
    low, high = extremes(w, Scheme(granularity="group", group_size=4))
    assert low[0, 2, 0] == min(0, w[0, 8:].min()) and high[0, 2, 0] == max(0, w[0, 8:].max())


def test_what_cannot_be_quantised_is_refused():
    for bad in (math.nan, math.inf):
        with pytest.raises(QuantizationError, match="NaN or infinity"):
            quantize(torch.tensor([1.0, bad]), Scheme())
    for options in ({"bits": 1}, {"bits": 9}, {"granularity": "row"}, {"group_size": 0}):
        with pytest.raises(QuantizationError):
            Scheme(**options)


@given(st.integers(1, 20), st.integers(1, 2100), st.integers(1, 9), st.integers(0, 99), st.booleans())
@settings(max_examples=25)
def test_the_integer_product_is_exact(m, k, n, seed, saturated):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-128, 128, shape) for shape in ((m, k), (k, n)))
    if saturated:  # the largest sums there are
        a[:], b[:] = -128, -128
    left, right = (torch.tensor(x, dtype=torch.int8) for x in (a, b))
    for product in (int_matmul, emulated_int_matmul):
        result = product(left, right)
        assert result.dtype == torch.int32 and np.array_equal(result.numpy(), a @ b)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(emulated_int_matmul(left, right).numpy(), a @ b)


def test_a_sum_that_could_overflow_is_refused():
    with pytest.raises(QuantizationError, match="int32"):
        int_matmul(torch.zeros(1, 140_000, dtype=torch.int8), torch.zeros(140_000, 1, dtype=torch.int8))


# --- observers --------------------------------------------------------------------------------------


def seen(observer, tensors):
    for x in tensors:
        observer.observe(x)
    return observer


def outliers(seed=0):
    x = torch.randn(4, 3000, generator=torch.Generator().manual_seed(seed))
    x[3, :3] = torch.tensor([30.0, -40.0, 25.0])
    return x


def test_min_max_and_moving_average():
    tensors = [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 1.0]), torch.tensor([0.0, 5.0])]
    low, high = seen(MinMax(), tensors).range(Scheme())
    assert (float(low), float(high)) == (-3, 5)
    low, high = seen(MovingAverage(0.5), tensors).range(Scheme())
    assert (float(low), float(high)) == (-1.0, 3.25)


@pytest.mark.parametrize("percent", [90, 99, 99.9])
def test_a_percentile_is_that_of_all_values(percent):
    x = outliers()
    _, high = seen(Percentile(percent), x).range(Scheme())  # row by row: the limit doubles on the way
    values = x.abs().flatten()
    below, above = (float(torch.quantile(values, percent / 100, interpolation=i)) for i in ("lower", "higher"))
    assert below <= float(high) <= above + 2 * 40 / BINS


def test_mse_is_the_best_threshold_of_a_search_over_the_values_themselves():
    x, scheme = outliers(), Scheme(4, True, "tensor")
    _, high = seen(MSE(), x).range(scheme)

    def error(t):
        return float(((fake_quantize(x, scheme, torch.tensor(-t), torch.tensor(t)) - x) ** 2).mean())

    best = min(error(float(t)) for t in torch.linspace(0.5, 40, 400))
    assert error(float(high)) <= 1.03 * best and float(high) < 40


def test_entropy_agrees_with_the_divergence_written_out():
    observer = seen(Entropy(), outliers())
    counts, levels = observer.counts.tolist(), 8

    def slow(bins):
        p = counts[:bins]
        q = [0.0] * bins
        for level in range(levels):
            members = [i for i in range(bins) if i * levels // bins == level and p[i] > 0]
            for i in members:
                q[i] = sum(p[j] for j in members) / len(members)
        p = [*p[:-1], p[-1] + sum(counts[bins:])]
        total_p, total_q = sum(p), sum(q)
        if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
            return math.inf
        pairs = [(a / total_p, b / total_q) for a, b in zip(p, q, strict=True) if a > 0]
        return sum(a * math.log(a / b) for a, b in pairs)

    candidates = range(levels, BINS + 1, BINS // 128)
    expected = min(candidates, key=slow) * observer.width
    assert observer.threshold(Scheme(4)) == pytest.approx(expected)
    assert expected < 40


@pytest.mark.parametrize("name", OBSERVERS)
def test_every_observer_takes_zeros_and_refuses_nothing_and_nan(name):
    with pytest.raises(QuantizationError, match="seen nothing"):
        OBSERVERS[name]().range(Scheme())
    with pytest.raises(QuantizationError, match="NaN"):
        OBSERVERS[name]().observe(torch.tensor([math.nan]))
    low, high = seen(OBSERVERS[name](), [torch.zeros(3), torch.zeros(3)]).range(Scheme())
    assert float(low) == float(high) == 0
    low, high = seen(OBSERVERS[name](), [torch.zeros(3), torch.tensor([0.0, 1.0, 2.0])]).range(Scheme())
    assert float(low) == 0 and 0 < float(high) <= 2.01


# --- SmoothQuant and GPTQ ---------------------------------------------------------------------------


def test_smoothing_keeps_the_float_function_and_shares_factors_of_a_shared_input():
    model, plain = tiny_bert(), tiny_bert()
    with torch.no_grad():  # an outlier channel, as large models have
        for m in (model, plain):
            m.bert.embeddings.LayerNorm.weight[3] = 40
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    before, _ = input_maxima(model, names, batches())
    smooth(model, names, batches(), 0.5)
    for batch in batches():
        assert torch.allclose(model(**batch).logits, plain(**batch).logits, atol=1e-5)
    attention = model.bert.encoder.layer[0].attention.self
    assert torch.equal(attention.query.inverse_factors, attention.value.inverse_factors)
    after, _ = input_maxima(model, ["bert.encoder.layer.0.attention.self.query.linear"], batches())
    first, smoothed = before["bert.encoder.layer.0.attention.self.query"], next(iter(after.values()))
    assert smoothed.max() / smoothed.median() < 0.5 * first.max() / first.median()


def test_smoothing_factors_by_hand_and_folding_into_a_norm():
    s = smoothing_factors(torch.tensor([16.0, 1.0, 0.0]), torch.tensor([4.0, 4.0, 1.0]), 0.5)
    assert s.tolist() == [2.0, 0.5, 1.0]
    with pytest.raises(QuantizationError, match="alpha"):
        smoothing_factors(s, s, 1.5)
    norm, linear, x = nn.LayerNorm(3), nn.Linear(3, 2), torch.randn(4, 3)
    expected = linear(norm(x))
    fold_into_norm(norm, [linear], s)
    assert torch.allclose(linear(norm(x)), expected, atol=1e-6) and not torch.equal(norm.weight, torch.ones(3))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "scheme", [Scheme(4), Scheme(3, False), Scheme(4, True, "group", 8), Scheme(2, True, "group", 5)]
)
def test_gptq_is_never_worse_than_rounding_to_nearest_and_better_in_sum(scheme, seed):
    x, w = correlated(200, 24, seed), torch.randn(12, 24, generator=torch.Generator().manual_seed(seed))
    h = x.T @ x
    repaired = gptq(w, h, scheme, block=10)
    errors = output_error(w, repaired.dequantize(), h), output_error(w, fake_quantize(w, scheme), h)
    assert bool((errors[0] <= errors[1]).all()) and errors[0].sum() < 0.8 * errors[1].sum()
    assert torch.allclose(errors[0], ((x @ (w - repaired.dequantize()).T).double() ** 2).sum(0), rtol=1e-3)
    low, high = scheme.range
    assert repaired.values.min() >= low and repaired.values.max() <= high


def test_gptq_does_not_depend_on_the_block_and_bears_inputs_that_are_always_zero():
    x, w = correlated(100, 16, 0), torch.randn(4, 16)
    x[:, 5] = 0
    whole, small = (gptq(w, x.T @ x, Scheme(4), block).dequantize() for block in (16, 5))
    assert torch.allclose(whole, small, atol=1e-4)


# --- training under fake quantisation ---------------------------------------------------------------


def test_the_gradient_goes_straight_through():
    x = torch.randn(3, 8, requires_grad=True)
    y = straight_through(x, Scheme(3))
    assert torch.allclose(y, fake_quantize(x.detach(), Scheme(3)), atol=1e-6)
    (y * torch.arange(8.0)).sum().backward()
    assert torch.equal(x.grad, torch.arange(8.0).expand(3, 8))


def test_a_prepared_model_computes_as_the_quantised_one_will_and_goes_back():
    model, batch = tiny_bert(), batches(1)[0]
    state, plain = model.state_dict(), model(**batch).logits
    prepare(model, Scheme(8), Scheme(8, granularity="token"))
    rounded = model(**batch).logits
    integers = quantize_model(restore(model), Recipe(embedding=False))(**batch).logits
    assert torch.allclose(rounded, integers, atol=1e-4)
    assert not torch.equal(rounded, plain) and torch.equal(model(**batch).logits, plain)
    assert model.state_dict().keys() == state.keys()


def test_training_under_fake_quantisation_learns_with_weights_of_two_bits(tmp_path):
    rng, schemes = np.random.default_rng(0), (Scheme(2), Scheme(3, granularity="token"))
    rows = [{"input_ids": rng.integers(5, 100, 8).tolist(), "attention_mask": [1] * 8} for _ in range(64)]
    rows = [row | {"labels": int(sum(row["input_ids"][:3]) > 150)} for row in rows]
    batch, model = collate(rows, 0), tiny_bert()
    weight = model.bert.encoder.layer[0].output.dense.weight
    before = weight.detach().clone()

    def loss(prepared):
        with torch.no_grad():
            return float(cross_entropy_loss(prepared, batch)[0]) / 64

    untrained = loss(prepare(model, *schemes))
    settings = Train(learning_rate=3e-3, precision="fp32")
    job = Job(rows, lambda r: collate(r, 0), cross_entropy_loss, epochs=20, settings=settings)
    quantization_aware_training(restore(model), job, tmp_path, *schemes, quiet=True)
    assert type(model.classifier) is nn.Linear and not torch.equal(weight, before)
    assert loss(prepare(model, *schemes)) < 0.1 * untrained


# --- whole models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("make", [tiny_bert, tiny_pangu])
def test_every_recipe_keeps_the_interface_and_nearly_the_function(make, name, tmp_path):
    model = make()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    quantized = quantize_model(model, name, batches())
    batch = batches(1)[0]
    with torch.no_grad():
        expected, found = model.base_model(**batch), quantized.base_model(**batch)
        logits = quantized(**batch).logits
    a, b = expected.last_hidden_state, found.last_hidden_state
    assert float((a - b).norm() / a.norm()) < (0.25 if "int4" in name else 0.04)
    assert not torch.equal(a, b) and logits.dtype == torch.float32
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items()), "the model was changed"
    kinds = {type(module) for module in quantized.modules()}
    assert nn.Linear not in kinds and nn.Embedding not in kinds

    save_quantized(quantized, tmp_path)
    loaded = load_quantized(tmp_path)
    assert type(loaded) is type(model) and loaded.quantization_recipe == RECIPES[name]
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, logits)
    save_quantized(loaded, tmp_path / "again")
    assert (tmp_path / "again" / "quantized.safetensors").read_bytes() == (
        tmp_path / "quantized.safetensors"
    ).read_bytes()


def test_int8_linear_is_the_documented_arithmetic_bit_for_bit():
    x, linear = torch.randn(2, 5, 33), nn.Linear(33, 7)
    x[0, 1] = 0
    x[1, 2, 3] = 1e4
    layer = quantize_model(nn.Sequential(linear), "int8-dynamic")[0]
    w = linear.weight.detach().numpy()
    s_w = (np.abs(w).max(1) / np.float32(127)).astype(np.float32)
    q_w = np.rint(w / s_w[:, None]).astype(np.int64)
    rows = x.reshape(10, 33).numpy()
    s_x = np.abs(rows).max(1, keepdims=True) / np.float32(127)
    s_x[s_x == 0] = 1
    q_x = np.rint(rows / s_x).astype(np.int64)
    expected = (q_x @ q_w.T).astype(np.float32) * (s_x * s_w) + linear.bias.detach().numpy()
    assert np.array_equal(layer(x).reshape(10, 7).numpy(), expected)
    assert layer.weight.abs().max() <= 127 and token_scales(x[0]).shape == (5, 1)
    x[0, 0, 0] = math.nan
    assert not torch.isfinite(layer(x)[0, 0]).any() and torch.isfinite(layer(x)[0, 1:]).all()


def test_padding_does_not_widen_a_static_range_and_outliers_are_clipped():
    model, seen_rows = tiny_bert(), []
    from pangu_lab.compression.observers import watch_inputs

    watch_inputs(model, ["bert.encoder.layer.0.intermediate.dense"], batches(2), lambda _, x: seen_rows.append(len(x)))
    assert seen_rows == [43, 43]  # 4 · 12 less 5 padded
    wide = quantize_model(model, Recipe(activations="static", observer="min-max"), batches())
    narrow = quantize_model(model, Recipe(activations="static", observer="mse"), batches())
    name = "bert.encoder.layer.1.output.dense"
    assert narrow.get_submodule(name).activation_scale <= 1.001 * wide.get_submodule(name).activation_scale


def test_four_bit_weights_survive_packing():
    values = torch.randint(-8, 8, (3, 10), dtype=torch.int8)
    layer = Int4Linear(pack_int4(values, 4), torch.ones(3, 3), None, 10)
    assert torch.equal(layer.dequantized(), values.float()) and layer.weight.shape == (3, 6)


def test_an_embedding_row_is_off_by_half_its_step():
    table = nn.Embedding(10, 8)
    quantized = quantize_model(nn.Sequential(table), "int8-dynamic")[0]
    assert isinstance(quantized, Int8Embedding)
    ids = torch.tensor([[1, 2], [9, 1]])
    assert torch.equal(quantized(ids), quantized.weight[ids])
    assert bool(((quantized(ids) - table(ids)).abs() <= 0.501 * quantized.scale[ids]).all())


def test_skipped_modules_stay_float_and_errors_name_each_layer():
    model = tiny_bert()
    quantized = quantize_model(model, {"skip": ["classifier", "pooler.dense"], "embedding": False})
    assert type(quantized.classifier) is nn.Linear and type(quantized.bert.pooler.dense) is nn.Linear
    assert isinstance(quantized.bert.encoder.layer[0].output.dense, Int8Linear)
    errors = layer_errors(model, quantized, batches(1)[0])
    assert len(errors) == 12 and all(0 < error < 0.05 for error in errors.values())


def test_an_encoder_decoder_shares_its_table_in_memory_and_on_disk(tmp_path):
    model = tiny_pangu(PanguForConditionalGeneration, architecture="encoder-decoder")
    quantized = quantize_model(model, "int8-dynamic")
    inner = quantized.model
    assert inner.encoder.embeddings.words.values.data_ptr() == inner.decoder.embeddings.words.values.data_ptr()
    loaded = load_quantized(save_quantized(quantized, tmp_path))
    batch = batches(1)[0] | {"decoder_input_ids": torch.tensor([[1, 7, 9]] * 4)}
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, quantized(**batch).logits)


def test_size_on_disk(tmp_path):
    model = BertForSequenceClassification(BertConfig(vocab_size=2000, **(SIZES | {"hidden_size": 64})))
    whole = sum(p.numel() for p in model.parameters())
    for name, bytes_each in (("int8-dynamic", 1.0), ("int4-weights", 1.0)):
        save_quantized(quantize_model(model, name), tmp_path / name)
        size = (tmp_path / name / "quantized.safetensors").stat().st_size
        assert size < 1.2 * bytes_each * whole + 20_000
    sizes = [(tmp_path / name / "quantized.safetensors").stat().st_size for name in ("int4-weights", "int8-dynamic")]
    assert sizes[0] < sizes[1]


# --- refusals ---------------------------------------------------------------------------------------


def test_recipes_that_make_no_sense_are_refused():
    assert find_recipe({"bits": 4, "activations": "float"}) == RECIPES["int4-weights"]
    for bad in ({"bits": 4}, {"gptq": True}, {"smooth": 0.5, "activations": "float"}, {"smooth": 2}, {"colour": 1}):
        with pytest.raises(QuantizationError, match="recipe"):
            find_recipe(bad)
    with pytest.raises(QuantizationError, match="int8-dynamic"):
        find_recipe("int9")
    for name in ("int8-static", "int8-smooth", "int4-gptq"):
        with pytest.raises(QuantizationError, match="training data"):
            quantize_model(tiny_bert(), name)


def test_weights_that_are_not_finite_are_refused():
    model = tiny_bert()
    with torch.no_grad():
        model.classifier.weight[0, 0] = math.nan
    with pytest.raises(QuantizationError, match="NaN"):
        quantize_model(model, "int8-dynamic")


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(QuantizationError, match="not made by quantize"):
        save_quantized(tiny_bert(), tmp_path)
    with pytest.raises(QuantizationError, match="holds no quantised model"):
        load_quantized(tmp_path)
    save_quantized(quantize_model(tiny_bert(), "int8-dynamic"), tmp_path)
    described, tensors = tmp_path / "quantized.json", tmp_path / "quantized.safetensors"
    text, data = described.read_text(), tensors.read_bytes()

    def refused(message, description=text, content=data):
        described.write_text(description)
        tensors.write_bytes(content)
        with pytest.raises(QuantizationError, match=message):
            load_quantized(tmp_path)

    refused("checksum", content=data[:-1])
    refused("checksum", content=data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    refused("damaged", description=text[:100])
    refused("version 2", description=json.dumps(json.loads(text) | {"version": 2}))
    refused("not known", description=json.dumps(json.loads(text) | {"class": "Thing"}))
    refused("lacks sha256", description=json.dumps({k: v for k, v in json.loads(text).items() if k != "sha256"}))
    tensors.unlink()
    described.write_text(text)
    with pytest.raises(QuantizationError, match="cannot be read"):
        load_quantized(tmp_path)
