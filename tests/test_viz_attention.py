"""The figures of lab 02: what they measure, what their titles say, and that the head explorer need not be waited for."""

import math
import time

import numpy as np
import pytest
import torch

from pangu_lab.model import PanguConfig, PanguModel
from pangu_lab.model.attention import fused_scaled_dot_product, scaled_dot_product
from pangu_lab.viz import png
from pangu_lab.viz.attention import (
    TARGETS,
    HeadExplorer,
    Reading,
    cost_figure,
    cross_figure,
    differences_figure,
    fit_power,
    head_figure,
    looks,
    looks_figure,
    masks_figure,
    peak_bytes,
    positions_figure,
    read,
    saturation_figure,
    variance_figure,
)

SHAPE = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32}
TEXT = "The old bridge, which nobody had painted for years, was closed after the storm."


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


@pytest.fixture(scope="module")
def model(tiny_encoder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    torch.manual_seed(0)
    config = PanguConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SHAPE)
    return PanguModel(config).eval(), tokenizer


def reading_of(weights):
    return Reading(("[CLS]", "a", "b", "c", "[SEP]"), weights[None, None])


def test_shares_are_counted_over_the_words_between_the_special_tokens():
    previous, following = np.eye(5, k=-1), np.eye(5, k=1)
    for weights, target in ((previous, 0), (following, 1), (np.eye(5), 2)):
        shares = looks(reading_of(weights))[:, 0, 0]
        assert shares[target] == 1
        # The first word stands behind [CLS], the last one before [SEP].
        assert shares[TARGETS.index("[CLS]")] == pytest.approx(1 / 3 if target == 0 else 0)
        assert shares[TARGETS.index("[SEP]")] == pytest.approx(1 / 3 if target == 1 else 0)
    assert looks(reading_of(np.full((5, 5), 0.2))).ravel() == pytest.approx([0.2] * len(TARGETS))


def test_a_text_is_read_as_the_encoder_reads_it(model):
    encoder, tokenizer = model
    reading = read(encoder, tokenizer, TEXT)
    encoded = tokenizer(TEXT, return_tensors="pt")
    with torch.no_grad():
        expected = encoder(**encoded, output_attentions=True).attentions[1][0, 3]
    assert reading.tokens[0] == "[CLS]" and reading.tokens[-1] == "[SEP]"
    assert reading.weights[1, 3] == pytest.approx(expected.numpy())
    assert len(read(encoder, tokenizer, TEXT * 20).tokens) == 40


def test_a_power_law_is_found_with_an_interval_that_covers_it():
    x = np.array([64, 128, 256, 512, 1024])
    assert fit_power(x, 3.0 * x**2.0)[0] == pytest.approx(2)
    noise = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        _, low, high = fit_power(x, 3.0 * x**2.0 * np.exp(noise.normal(0, 0.1, 5)))
        covered += low < 2 < high
    assert 180 <= covered <= 199  # 95 % of 200, give or take three standard errors


def test_peak_memory_counts_what_is_held_at_one_moment():
    assert peak_bytes(lambda: torch.zeros(1_000_000)) == pytest.approx(4_000_000, rel=0.01)
    one_after_the_other = peak_bytes(lambda: [torch.zeros(1_000_000).sum() for _ in range(5)])
    assert one_after_the_other == pytest.approx(4_000_000, rel=0.01)
    together = peak_bytes(lambda: [torch.zeros(1_000_000) for _ in range(5)])
    assert together == pytest.approx(20_000_000, rel=0.01)


def test_the_written_out_formula_holds_the_weights_and_the_kernel_does_not():
    q, k, v = torch.randn(3, 1, 4, 1024, 16)
    weights = 4 * 4 * 1024**2
    assert peak_bytes(lambda: scaled_dot_product(q, k, v)) > weights
    assert peak_bytes(lambda: fused_scaled_dot_product(q, k, v)) < weights / 2


def test_titles_state_what_the_data_say():
    sizes, lengths = [2, 8, 32], [64, 128, 256, 512]
    quadratic, linear = [1e-9 * n**2 for n in lengths], [1e-6 * n for n in lengths]
    curves = {"raw": [3.0, 2.0, 1.0], "scaled": [3.0, 3.0, 2.9]}
    shares = np.full((len(TARGETS), 2, 4), 0.1)
    shares[1, 1, 2] = 0.9
    weights = np.array([[0.9, 0.1], [0.8, 0.2]])
    mask = np.tril(np.ones((3, 3), bool))
    differences = {"your attention": [1e-7, 2e-7], "no scaling": [0.1, 0.5], "worse": [1.0, 2.0]}
    found = {
        title(variance_figure(sizes, sizes, [1.0, 0.9, 1.1], 100)): "to the power 1.00 [1.00, 1.00]; divided by √d it "
        "stays between 0.90 and 1.10",
        title(saturation_figure(sizes, curves, curves, 32)): "the entropy falls from 3.00 to 1.00",
        title(masks_figure({"all": mask | True, "causal": mask}, "abc")): "of 9 pairs, “causal” leaves 6",
        title(looks_figure(shares, 20.0, 7)): "2.3, spends 90% of its attention on the next token; spread evenly it "
        "would be 5% (7 texts)",
        title(differences_figure(differences, 1e-5, "your attention")): "at most 2e-07 apart; the mildest mistake, "
        "“no scaling”, ends 0.5 apart",
        title(
            cross_figure(weights, ("c", "d"), ("a", "b"))
        ): "c → a (0.90), d → a (0.80); spread evenly it would be 0.50",
        title(cost_figure(lengths, {"yours": quadratic}, {"yours": linear}, 64)): "time of yours as length to the 2.00",
    }
    for told, expected in found.items():
        assert expected in told


def sinusoids(length, d):
    angle = np.arange(length)[:, None] / 10_000 ** (np.arange(d // 2) / (d // 2))
    return np.stack((np.sin(angle), np.cos(angle)), axis=-1).reshape(length, d)


def test_a_table_that_is_not_sinusoidal_is_told_apart():
    assert float(title(positions_figure(sinusoids(64, 16))).rsplit(" ", 1)[1]) < 1e-6
    random = np.random.default_rng(0).normal(size=(64, 16))
    assert float(title(positions_figure(random)).rsplit(" ", 1)[1]) > 0.1


def test_figures_are_small_enough_for_a_notebook(model):
    reading = read(*model, TEXT * 3)
    assert len(png(head_figure(reading, 1, 2))) < 60_000
    assert len(png(positions_figure(sinusoids(128, 64)))) < 60_000


def test_the_head_of_a_figure_is_the_one_that_its_title_names():
    weights = np.stack([np.stack([np.eye(5, k=-1), np.eye(5)]), np.stack([np.eye(5, k=1), np.eye(5)])])
    reading = Reading(("[CLS]", "a", "b", "c", "[SEP]"), weights)
    assert title(head_figure(reading, 2, 1)).startswith("Layer 2, head 1: 100%")
    assert "on the next token (evenly spread: 20%)" in title(head_figure(reading, 2, 1))
    assert "on itself" in title(head_figure(reading, 1, 2))


def test_the_explorer_reads_a_text_once_and_redraws_while_a_slider_moves(model):
    encoder, tokenizer = model
    passes = []
    handle = encoder.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        explorer = HeadExplorer(encoder, tokenizer, TEXT)
        first = explorer.image.value
        times = []
        for head in (2, 3, 4, 1):
            began = time.process_time()
            explorer.head.value = head
            times.append(time.process_time() - began)
        assert explorer.image.value == first and len(passes) == 1  # back at head 1, nothing was read again
        explorer.layer.value = 2
        assert explorer.image.value != first
        explorer.text.value = "Another text."
        assert len(passes) == 2
        explorer.text.value = TEXT
        explorer.layer.value = 1
        assert explorer.image.value == first and len(passes) == 2
        shown = explorer.image.value
        explorer.text.value = "   "
        assert explorer.image.value == shown  # nothing to read: the picture stays
    finally:
        handle.remove()
    assert min(times) < 0.1
    assert explorer.layer.max == 2 and explorer.head.max == 4


def test_the_references_run_the_encoder_as_its_own_attention_does(model):
    from pangu_lab.exercises.attention import multi_head_attention, padding_mask
    from pangu_lab.exercises.attention import scaled_dot_product as reference

    encoder, tokenizer = model
    batch = tokenizer([TEXT, "Short."], padding=True, return_tensors="pt")
    real = batch["attention_mask"].bool()
    module = encoder.encoder.layers[0].self_attention
    w = {name: (getattr(module, name).weight, getattr(module, name).bias) for name in "qkvo"}
    with torch.no_grad():
        x, mask = encoder.encoder.embeddings(batch["input_ids"]), padding_mask(batch["attention_mask"])
        expected, weights = module(x, x, mask, need_weights=True)
        assert (multi_head_attention(x, w, 4, mask)[real] - expected[real]).abs().max() < 1e-5
        q, k, v = (torch.stack(getattr(module, name)(x).chunk(4, dim=-1), dim=1) for name in "qkv")
        assert (reference(q, k, v, mask)[1] - weights).abs().max() < 1e-5


def test_a_query_that_may_look_nowhere_is_zero_in_the_exercise_the_model_and_the_kernel():
    from pangu_lab.exercises.attention import SCALED_DOT_PRODUCT
    from pangu_lab.exercises.engine import Status, run

    # The model's rows of weights add up to one even there; the exercise does not look at them.
    assert run(SCALED_DOT_PRODUCT, scaled_dot_product).status is Status.RIGHT


def test_sinusoidal_positions_turn_by_one_radian_a_word_and_ever_more_slowly():
    from pangu_lab.exercises.attention import sinusoidal_positions

    table = sinusoidal_positions(3, 4)
    assert table[1].tolist() == pytest.approx([math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)])
