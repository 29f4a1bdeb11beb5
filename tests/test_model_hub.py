"""The PanGu model as a Hugging Face model: files, Auto classes, pipelines, generation, training aids, compilation."""

import copy
import subprocess
import sys

import pytest
import torch
from test_model import ENCODER_DECODER, PANGU_ALPHA, build, ids_and_mask
from torch import nn
from torch.export import Dim, export
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from pangu_lab.hub import bundled_weights
from pangu_lab.model import (
    PanguConfig,
    PanguForCausalLM,
    PanguForConditionalGeneration,
    PanguForMaskedLM,
    PanguForPreTraining,
    PanguForQuestionAnswering,
    PanguForSequenceClassification,
    PanguModel,
    from_bert,
)
from pangu_lab.training import prefer_fast_attention, set_dropout

HEADS = (
    (AutoModel, PanguModel, {}),
    (AutoModel, PanguModel, ENCODER_DECODER),
    (AutoModelForMaskedLM, PanguForMaskedLM, {"norm_position": "pre"}),
    (AutoModelForPreTraining, PanguForPreTraining, {"num_pos_tags": 4}),
    (AutoModelForSequenceClassification, PanguForSequenceClassification, {"num_labels": 3}),
    (AutoModelForQuestionAnswering, PanguForQuestionAnswering, {}),
    (AutoModelForSeq2SeqLM, PanguForConditionalGeneration, ENCODER_DECODER),
    (AutoModelForCausalLM, PanguForCausalLM, PANGU_ALPHA),
)
TRAINED = (HEADS[2], HEADS[6], HEADS[7])


def inputs_for(head, config):
    ids, mask = ids_and_mask()
    more = {"decoder_input_ids": ids[:, :4]} if config.is_encoder_decoder else {}
    return {"input_ids": ids, "attention_mask": mask, **more}


@torch.no_grad()
def first_output(model, inputs):
    out = model(**inputs)
    return out[next(name for name in out if name.endswith(("logits", "last_hidden_state")))]


@pytest.mark.parametrize(("auto", "head", "changes"), HEADS)
def test_saved_and_loaded_it_is_the_same_model(auto, head, changes, tmp_path):
    model = build(head, **changes)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is head and not loaded.training
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())
    inputs = inputs_for(head, model.config)
    assert torch.equal(first_output(model, inputs), first_output(loaded, inputs))


FRESH = """
import sys
import pangu_lab.model
import pangu_lab.model.attention
assert "transformers.modeling_utils" not in sys.modules
from transformers import AutoModel
assert type(AutoModel.from_pretrained(sys.argv[1])).__name__ == "PanguModel"
"""


def test_importing_the_package_is_enough_for_the_auto_classes_and_loads_no_model(tmp_path):
    build(PanguModel).save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", FRESH, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_weights_that_are_one_stay_one_after_loading(tmp_path):
    for head, changes, tied in (
        (PanguForMaskedLM, {}, ("lm_head.decoder", "model.encoder.embeddings.words")),
        (
            PanguForConditionalGeneration,
            ENCODER_DECODER,
            ("lm_head", "model.encoder.embeddings.words", "model.decoder.embeddings.words"),
        ),
        (PanguForCausalLM, PANGU_ALPHA, ("lm_head", "model.decoder.embeddings.words")),
    ):
        build(head, **changes).save_pretrained(tmp_path)
        loaded = head.from_pretrained(tmp_path)
        assert len({id(loaded.get_submodule(name).weight) for name in tied}) == 1
        loaded.resize_token_embeddings(70)
        assert len({loaded.get_submodule(name).weight.data_ptr() for name in tied}) == 1
        assert loaded.get_output_embeddings().weight.shape == (70, 16)


def test_an_encoder_loads_under_any_head_and_a_head_gives_its_encoder_back(tmp_path):
    build(PanguModel).save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2)
    base = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(
        classifier.model.encoder.layers[1].feed_forward.up.weight, base.encoder.layers[1].feed_forward.up.weight
    )
    assert classifier.classifier.weight.abs().sum() > 0
    classifier.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert all(torch.equal(x, y) for x, y in zip(again.parameters(), base.parameters(), strict=True))


def test_pipelines_take_the_folder(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(bundled_weights())
    tokenizer.save_pretrained(tmp_path)
    build(PanguForMaskedLM, vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    guesses = pipeline("fill-mask", model=str(tmp_path))("the [MASK] was good .", top_k=3)
    assert len(guesses) == 3 and all(0 < guess["score"] < 1 for guess in guesses)
    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    build(PanguForSequenceClassification, vocab_size=len(tokenizer), **names).save_pretrained(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path))
    assert all(r["label"] in names["label2id"] for r in classify(["good", "a very bad film"], batch_size=2))
    build(PanguForQuestionAnswering, vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    answering = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert answering(**tokenizer("who ?", "she .", return_tensors="pt")).start_logits.shape == (1, 7)


# --- generation -------------------------------------------------------------------------------------


def greedy(model, ids, steps, **encoder):
    """Greedy decoding without any cache, by running the whole text through the model again for each word."""
    for _ in range(steps):
        inputs = {"decoder_input_ids": ids, **encoder} if encoder else {"input_ids": ids}
        with torch.no_grad():
            ids = torch.cat([ids, model(**inputs, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids


@pytest.mark.parametrize("implementation", ("eager", "sdpa"))
@pytest.mark.parametrize("query_layer", (True, False))
def test_a_causal_model_generates_the_same_with_a_cache_and_without(query_layer, implementation):
    model = build(PanguForCausalLM, **PANGU_ALPHA | {"query_layer": query_layer}, eos_token_id=None)
    model.set_attn_implementation(implementation)
    ids, _ = ids_and_mask()
    cached = model.generate(ids[:1], max_new_tokens=12, do_sample=False)
    assert torch.equal(cached, greedy(model, ids[:1], 12))
    padded = model.generate(
        torch.cat([torch.zeros(1, 3, dtype=torch.long), ids[:1]], 1),
        attention_mask=torch.tensor([[0] * 3 + [1] * 9]),
        max_new_tokens=12,
        do_sample=False,
    )
    assert torch.equal(padded[:, 3:], cached)


@pytest.mark.parametrize(
    ("head", "changes"), ((PanguForCausalLM, PANGU_ALPHA), (PanguForConditionalGeneration, ENCODER_DECODER))
)
def test_reading_in_pieces_with_a_cache_is_reading_at_once(head, changes):
    """Nine tokens at once, or four, one, and four that see what the cache holds."""
    model = build(head, **changes)
    ids, _ = ids_and_mask()
    name, more = ("input_ids", {}) if head is PanguForCausalLM else ("decoder_input_ids", {"input_ids": ids})
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        cache, pieces = None, []
        with torch.no_grad():
            for piece in ids.split((4, 1, 4), dim=1):
                out = model(**{name: piece}, **more, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                pieces.append(out.logits)
            torch.testing.assert_close(torch.cat(pieces, 1), model(**{name: ids}, **more).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("implementation", ("eager", "sdpa"))
def test_an_encoder_decoder_generates_the_same_with_a_cache_and_without(implementation):
    model = build(PanguForConditionalGeneration, **ENCODER_DECODER, eos_token_id=None)
    model.set_attn_implementation(implementation)
    ids, mask = ids_and_mask()
    cached = model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False)
    start = torch.ones(3, 1, dtype=torch.long)
    assert torch.equal(cached, greedy(model, start, 10, input_ids=ids, attention_mask=mask))


def test_the_cache_is_used_token_by_token():
    """With a cache the encoder runs once and the decoder sees one new token a step."""
    model = build(PanguForConditionalGeneration, **ENCODER_DECODER, eos_token_id=None)
    ids, mask = ids_and_mask()
    seen = []
    model.model.encoder.register_forward_hook(lambda *_: seen.append("encoder"))
    model.model.decoder.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].size(1)))
    model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert seen == ["encoder", 1, 1, 1, 1]


def test_beams_find_a_text_at_least_as_likely_as_the_greedy_one():
    model = build(PanguForConditionalGeneration, **ENCODER_DECODER, eos_token_id=None)
    ids, mask = ids_and_mask()

    def likelihood(said):
        with torch.no_grad():
            scores = model(ids, mask, decoder_input_ids=said[:, :-1]).logits.log_softmax(-1)
        return scores.gather(-1, said[:, 1:, None]).sum((1, 2))

    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    best, plain = (likelihood(model.generate(ids, num_beams=beams, **options)) for beams in (4, 1))
    assert (best >= plain - 1e-4).all()


# --- training aids ----------------------------------------------------------------------------------


def gradients(model, inputs):
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("_", "head", "changes"), TRAINED)
def test_gradient_checkpointing_changes_no_gradient(_, head, changes):
    model = build(head, **changes).train()
    set_dropout(model, 0.0)
    ids, mask = ids_and_mask()
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    plain = gradients(model, inputs)
    assert plain and len(plain) == len(list(model.parameters()))
    calls = []
    layers = [*model.model.encoder.layers] if model.model.encoder else [*model.model.decoder.layers]
    layers[0].feed_forward.register_forward_pre_hook(lambda *_: calls.append(1))
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        calls.clear()
        found = gradients(model, inputs)
        assert len(calls) == 2, "the layer was computed once more for the backward pass"
        for name, gradient in plain.items():
            torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize(("_", "head", "changes"), HEADS)
def test_bf16_stays_near_fp32(_, head, changes):
    model = build(head, **changes)
    inputs = inputs_for(head, model.config)
    expected = first_output(model, inputs)
    half = copy.deepcopy(model).to(torch.bfloat16)
    for implementation in ("eager", "sdpa"):
        half.set_attn_implementation(implementation)
        found = first_output(half, inputs)
        assert found.dtype == torch.bfloat16 and found.isfinite().all()
        assert (found.float() - expected).norm() < 0.05 * expected.norm()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = first_output(model, inputs)
    assert (mixed.float() - expected).norm() < 0.05 * expected.norm()


def test_the_training_loops_switches_work():
    model = build(PanguForSequenceClassification)
    prefer_fast_attention(model)
    if not torch.cuda.is_available():
        assert model.config._attn_implementation == "eager"
    set_dropout(model, 0.0)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.0}
    ids, mask = ids_and_mask()
    model.train()
    assert torch.equal(model(ids, mask).logits, model(ids, mask).logits)


def test_dropout_is_on_in_training_only():
    model = build(PanguModel, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    ids, mask = ids_and_mask()
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        still, moving = model.eval()(ids, mask)[0], model.train()(ids, mask)[0]
        assert torch.equal(still, model.eval()(ids, mask)[0]) and not torch.allclose(still, moving)


# --- compilation and export -------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ("eager", "sdpa"))
@pytest.mark.parametrize(("_", "head", "changes"), TRAINED)
def test_it_compiles_without_a_graph_break(_, head, changes, implementation):
    torch._dynamo.reset()
    model = build(head, **changes)
    model.set_attn_implementation(implementation)
    ids, mask = ids_and_mask()
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids, "use_cache": False}
    inputs = inputs if model.config.architecture != "encoder" else {k: inputs[k] for k in list(inputs)[:3]}
    expected = model(**inputs)
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        found = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ("eager", "sdpa"))
def test_the_encoder_is_exported_for_any_batch_and_length(implementation):
    model = build(PanguModel)
    model.set_attn_implementation(implementation)
    ids, mask = ids_and_mask()
    shapes = {0: Dim("texts", min=1, max=64), 1: Dim("tokens", min=2, max=32)}
    program = export(model, (ids, mask), dynamic_shapes=(shapes, shapes)).module()
    for other in ((ids, mask), (ids[:2, :5], mask[:2, :5])):
        with torch.no_grad():
            torch.testing.assert_close(program(*other).last_hidden_state, model(*other).last_hidden_state)


def test_the_default_shape_is_that_of_the_bundled_weights():
    model, defaults = from_bert(bundled_weights()), PanguConfig()
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert getattr(model.config, name) == getattr(defaults, name)
