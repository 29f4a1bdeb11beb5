"""Lab 03: the drawing says what the module is, the costs are those of a real model, the race is fair."""

import time

import pytest
import torch

from pangu_lab.exercises import architecture_mistakes as wrong
from pangu_lab.exercises import get
from pangu_lab.exercises.architecture import count_built, layer_weights
from pangu_lab.exercises.engine import Status, draw_cases, run
from pangu_lab.model import PanguConfig, PanguForCausalLM, PanguForMaskedLM, PanguModel
from pangu_lab.model.layers import EncoderLayer, FeedForward
from pangu_lab.tasks import recall
from pangu_lab.viz import png
from pangu_lab.viz.architecture import architecture_figure, parts_of
from pangu_lab.viz.costs import (
    breakdown_figure,
    cost_explorer,
    costs,
    differences_figure,
    growth_figure,
    number_text,
    recall_figure,
)

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 40}
SMALL |= {"num_hidden_layers": 3, "max_position_embeddings": 20}


def meta(**changes):
    with torch.device("meta"):
        return PanguModel(PanguConfig(**(SMALL | changes)), add_pooling_layer=False)


def decoder(**changes):
    alone = {"architecture": "decoder", "norm_position": "pre", "query_layer": True, "type_vocab_size": 0}
    return meta(**alone, **changes)


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def texts(figure):
    return " | ".join(text.get_text() for text in figure.axes[0].texts)


def part(parts, *path):
    for name in path:
        parts = next(p for p in parts.parts if p.name == name)
    return parts


# --- the drawing ------------------------------------------------------------------------------------


def test_the_parts_are_those_of_the_module_and_in_the_order_in_which_they_run():
    model = meta()
    encoder = parts_of(model)["encoder"]
    assert [p.name for p in encoder.parts] == ["embeddings", "0"]
    assert [p.name for p in encoder.parts[0].parts] == ["words", "segments", "positions", "norm"]
    layer = encoder.parts[1]
    assert layer.times == 3 and [p.name for p in layer.parts] == ["self_attention", "feed_forward"]
    assert layer.parts[0].weights == "4 heads of 4" and layer.parts[1].weights == "16 → 40 → 16"
    assert encoder.shape == (1, 10, 16) and all(p.residual and p.norm == "post" for p in layer.parts)
    counted = encoder.parts[0].parameters + 3 * sum(p.parameters + p.norm_parameters for p in layer.parts)
    assert counted == sum(p.numel() for p in model.parameters())


def test_another_configuration_gives_another_drawing():
    plain = parts_of(meta())
    assert parts_of(meta()) == plain
    changes = (
        {"num_hidden_layers": 4},
        {"hidden_size": 32},
        {"intermediate_size": 48},
        {"num_attention_heads": 2},
        {"norm_position": "pre"},
        {"type_vocab_size": 0},
        {"vocab_size": 51},
        {"architecture": "encoder-decoder"},
    )
    drawn = [parts_of(meta(**change)) for change in changes]
    for i, parts in enumerate(drawn):
        assert parts not in [plain, *drawn[:i]], changes[i]
    assert texts(architecture_figure(meta(num_hidden_layers=4))) != texts(architecture_figure(meta()))


def test_the_drawing_follows_the_module_and_not_its_configuration():
    model = meta()
    with torch.device("meta"):
        model.encoder.layers[1].feed_forward = FeedForward(PanguConfig(**(SMALL | {"intermediate_size": 99})))
        model.encoder.layers.append(EncoderLayer(model.config, 3))
    layers = parts_of(model)["encoder"].parts[1:]
    assert [layer.times for layer in layers] == [1, 1, 2]
    assert layers[1].parts[1].weights == "16 → 99 → 16"
    assert "16 → 99 → 16" in texts(architecture_figure(model))


def test_a_sublayer_that_runs_earlier_is_drawn_earlier():
    model = meta()

    def other_way_round(x, mask=None, need_weights=False):
        for layer in (swapped.feed_forward, swapped.self_attention):
            x = layer(x) if layer is swapped.feed_forward else layer(x, x)[0]
        return x, None

    swapped = model.encoder.layers[0]
    swapped.forward = other_way_round
    first = parts_of(model)["encoder"].parts[1]
    assert [p.name for p in first.parts] == ["feed_forward", "self_attention"]


def test_encoder_and_decoder_are_drawn_with_the_memory_between_them():
    model = meta(architecture="encoder-decoder", decoder_layers=2)
    stacks = parts_of(model, 10, 8)
    layer = part(stacks["decoder"], "0")
    assert [p.name for p in layer.parts] == ["self_attention", "cross_attention", "feed_forward"]
    assert layer.times == 2 and stacks["decoder"].shape == (1, 8, 16)
    drawn = architecture_figure(model)
    assert "memory" in texts(drawn) and "3 encoder layers and 2 decoder layers" in title(drawn)


def test_the_query_layer_stands_on_top_and_takes_no_memory_in_any_size():
    parts = parts_of(decoder())["decoder"]
    assert [p.name for p in parts.parts] == ["embeddings", "0", "norm", "query_layer"]
    assert [p.name for p in parts.parts[-1].parts] == ["positions", "self_attention", "feed_forward"]
    with torch.device("meta"):
        large = PanguModel(PanguConfig.pangu_alpha("207B"))
    drawn = architecture_figure(large)
    assert "207 B parameters" in title(drawn) and "query" in texts(drawn)


def test_a_drawing_leaves_the_model_as_it_was():
    model = PanguModel(PanguConfig(**SMALL)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts_of(model)
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_drawings_are_small_enough_for_a_notebook():
    for model in (meta(architecture="encoder-decoder"), decoder()):
        assert len(png(architecture_figure(model))) < 60_000


# --- what it costs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [meta(), meta(norm_position="pre", type_vocab_size=0), decoder()])
def test_costs_are_the_parameters_of_a_real_model(model):
    assert sum(c.parameters for c in costs(model.config, 10).values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["2.6B", "13B", "207B"])
def test_costs_of_the_published_sizes_are_those_of_the_models(name):
    config = PanguConfig.pangu_alpha(name)
    with torch.device("meta"):
        model = PanguModel(config)
    assert sum(c.parameters for c in costs(config, 1).values()) == sum(p.numel() for p in model.parameters())


def test_costs_are_the_flops_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    length, config = 12, PanguConfig(**SMALL, attn_implementation="eager")
    model = PanguForMaskedLM(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros((1, length), dtype=torch.long))
    head = 2 * length * config.hidden_size**2  # the masked-word head's own dense layer is no part of the model
    assert counter.get_total_flops() - head == length * sum(c.flops for c in costs(config, length).values())
    alone = decoder().config
    alone._attn_implementation = "eager"
    lone = PanguForCausalLM(alone).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        lone(torch.zeros((1, length), dtype=torch.long))
    assert counter.get_total_flops() == length * sum(c.flops for c in costs(alone, length).values())


def test_titles_state_what_the_data_say():
    config = PanguConfig(**SMALL)
    told = title(breakdown_figure(config, 10))
    parts = costs(config, 10)
    share = parts["embeddings"].parameters / sum(c.parameters for c in parts.values())
    assert "d = 16, 3 layers, 10 tokens" in told and f"{share:.0%} of the parameters" in told
    long = title(breakdown_figure(config, 100_000))
    assert "of the FLOPs go to attention: scores" in long
    grown = growth_figure(config, (16, 64), (1, 12), (16, 4096), 16)
    assert "From width 16 to 64" in title(grown)
    told = title(differences_figure({"float32": [1e-7, 2e-6], "float64": [0.0, 3e-15]}))
    assert "at most 2.0e-06 in float32 and 3.0e-15 in float64" in told
    results = [
        recall.Recall(kind, seed, 100, {1: 1.0, 63: last + 0.1 * seed}, 8, 1.0)
        for kind, last in (("RNN", 0.1), ("CNN", 0.5))
        for seed in (0, 1)
    ]
    told = title(recall_figure(results, 1 / 8, "here"))
    assert "63 tokens back, the CNN is right in 0.55" in told and "RNN 0.15; guessing 0.12" in told


def test_large_numbers_are_written_as_people_say_them():
    assert [number_text(n) for n in (12, 1234, 2.625e9, 207e9, 1.5e12)] == ["12", "1.23 k", "2.62 B", "207 B", "1.5 T"]


def test_the_cost_explorer_redraws_while_a_slider_moves():
    box = cost_explorer(PanguConfig())
    *sliders, image = box.children
    before = image.value
    sliders[1].value = 96
    assert image.value != before and len(image.value) < 60_000
    seconds = []
    for value in (2, 4, 8):
        start = time.process_time()
        sliders[1].value = value
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.25  # 0.1 s on a quiet machine


# --- one task, five architectures -------------------------------------------------------------------


def test_the_question_at_the_end_asks_for_the_letter_so_many_tokens_back():
    which = torch.arange(len(recall.GAPS))
    drawn, letters = recall.draw_texts(which, 64, torch.Generator().manual_seed(0))
    for row, gap in enumerate(recall.GAPS):
        assert drawn[row, -1] == recall.LETTERS + row and drawn[row, -1 - gap] == letters[row]
    assert int(drawn[:, :-1].max()) < recall.LETTERS
    with pytest.raises(recall.RecallError, match="needs 64 tokens"):
        recall.draw_texts(which, 63, torch.Generator())


def test_all_readers_have_as_many_parameters_within_a_few_percent():
    size = recall.Reader("Transformer", 24, 64).parameters_count
    for kind in recall.KINDS:
        reader = recall.Reader(kind, recall.width_for(kind, size, 64), 64)
        assert abs(reader.parameters_count / size - 1) < 0.04, kind
    with pytest.raises(recall.RecallError, match="no reader 'Mamba'"):
        recall.Reader("Mamba", 24, 64)


def test_the_convolutions_cannot_see_beyond_their_reach():
    reader = recall.Reader("CNN", 8, 64)
    drawn = torch.randint(recall.LETTERS, (1, 64))
    inside, outside = drawn.clone(), drawn.clone()
    inside[0, -1 - reader.body.reach] = (inside[0, -1 - reader.body.reach] + 1) % recall.LETTERS
    outside[0, -2 - reader.body.reach] = (outside[0, -2 - reader.body.reach] + 1) % recall.LETTERS
    with torch.no_grad():
        assert torch.equal(reader(outside), reader(drawn)) and not torch.equal(reader(inside), reader(drawn))


def test_a_race_trains_and_repeats_itself():
    first = [*recall.race(("GRU",), (3,), 64, 40, width=16)]
    again = [*recall.race(("GRU",), (3,), 64, 40, width=16)]
    other = [*recall.race(("GRU",), (4,), 64, 40, width=16)]
    assert first[0].accuracy == again[0].accuracy != other[0].accuracy
    assert list(first[0].accuracy) == list(recall.GAPS) and first[0].kind == "GRU" and first[0].seed == 3
    assert first[0].accuracy[1] > 0.25  # chance is 0.125: something was learned


# --- the references ---------------------------------------------------------------------------------


def test_references_are_what_the_library_computes_on_the_same_weights():
    """The encoder layer's, the decoder layer's and the query layer's reference against this package's own layers."""
    from pangu_lab.model.layers import DecoderLayer, QueryLayer

    for seed in range(3):
        for name, kind in (
            ("encoder_layer", EncoderLayer),
            ("decoder_layer", DecoderLayer),
            ("query_layer", QueryLayer),
        ):
            exercise = get(f"architecture.{name}")
            for case in draw_cases(exercise, seed):
                x, d = case.args[0], case.args[0].shape[-1]
                memory = case.args[1] if name == "decoder_layer" else None
                number, heads, *rest = case.args[2 if name == "decoder_layer" else 1 :]
                mask, norm_position = rest if rest else (None, "pre")
                positions = x.shape[1] + 3 if name == "query_layer" else 0
                config = PanguConfig(
                    hidden_size=d,
                    num_attention_heads=heads,
                    intermediate_size=2 * d,
                    norm_position=norm_position,
                    max_position_embeddings=positions or 8,
                    attn_implementation="eager",
                )
                layer = kind(config, 0, True) if name == "decoder_layer" else kind(config, 0)
                layer.load_state_dict(layer_weights(number, d, memory is not None, positions))
                inputs = {
                    "encoder_layer": (x, mask),
                    "decoder_layer": (x, None, memory, mask),
                    "query_layer": (x, torch.arange(x.shape[1])),
                }
                with torch.no_grad():
                    ours = layer.eval()(*inputs[name])[0]
                expected = exercise.drive(exercise.reference, case)
                assert torch.allclose(ours, expected, atol=1e-5), (name, seed, case.note)


def test_the_embeddings_reference_is_berts():
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertEmbeddings

    exercise = get("architecture.embed")
    for case in draw_cases(exercise, 1):
        ids, segments, w = case.args
        vocab, d = w["words.weight"].shape
        sizes = {"max_position_embeddings": len(w["positions.weight"]), "num_attention_heads": 1, "pad_token_id": 0}
        bert = BertEmbeddings(BertConfig(vocab_size=vocab, hidden_size=d, layer_norm_eps=1e-12, **sizes)).eval()
        for module, name in (
            (bert.word_embeddings, "words"),
            (bert.position_embeddings, "positions"),
            (bert.token_type_embeddings, "segments"),
        ):
            module.weight.data.copy_(w[f"{name}.weight"])
        bert.LayerNorm.load_state_dict({"weight": w["norm.weight"], "bias": w["norm.bias"]})
        with torch.no_grad():
            theirs = bert(input_ids=ids, token_type_ids=segments)
        assert torch.allclose(theirs, exercise.reference(*case.args), atol=1e-5)


def test_the_published_sizes_come_out_of_the_formula():
    count = get("architecture.parameter_count")
    for name, published in (("2.6B", 2.6e9), ("13B", 13.1e9), ("207B", 207.0e9)):
        config = PanguConfig.pangu_alpha(name)
        assert count_built(config) == count.reference(config)
        assert count.reference(config) == pytest.approx(published, rel=0.01)


def test_answers_written_in_another_way_are_right():
    others = {
        "feed_forward": wrong.feed_forward(),
        "encoder_layer": wrong.plain_encoder,
        "decoder_layer": wrong.plain_decoder,
        "query_layer": wrong.plain_query,
        "parameter_count": count_built,
        "embed": wrong.embed(),
        "layer_norm": wrong.layer_norm(),
    }
    for name, answer in others.items():
        for seed in range(5):
            verdict = run(get(f"architecture.{name}"), answer, seed)
            assert verdict.status is Status.RIGHT, (name, seed, verdict.difference)
