"""Weights of BERT and RoBERTa checkpoints in the PanGu encoder: what transformers computes, we compute."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from pangu_lab.config import DEFAULT_MODEL
from pangu_lab.hub import bundled_weights, find_model
from pangu_lab.model import (
    ModelError,
    PanguForConditionalGeneration,
    PanguForMaskedLM,
    PanguForPreTraining,
    PanguForSequenceClassification,
    PanguModel,
    from_bert,
)
from pangu_lab.model.attention import MultiHeadAttention

TINY = {
    "vocab_size": 90,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
EXACT = {"rtol": 0, "atol": 1e-5}


def bert(**changes):
    torch.manual_seed(0)
    return BertModel(BertConfig(**(TINY | {"initializer_range": 0.2} | changes))).eval()


def roberta(**changes):
    torch.manual_seed(0)
    return RobertaModel(RobertaConfig(**(TINY | {"initializer_range": 0.2, "type_vocab_size": 1} | changes))).eval()


def batch(config, length=20, segments=True):
    """Four texts: whole, padded on the right, padded on the left, one token long; two segments."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, config.vocab_size, (4, length), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :], mask[2, : length // 3], mask[3, 1:] = 0, 0, 0
    found = {"input_ids": ids.masked_fill(mask == 0, config.pad_token_id), "attention_mask": mask}
    if segments and config.type_vocab_size > 1:
        found["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=draw)
    return found


@torch.no_grad()
def assert_equal_states(ours, theirs, inputs):
    for implementation in ("eager", "sdpa"):
        ours.set_attn_implementation(implementation)
        theirs.set_attn_implementation(implementation)
        a, b = (model(**inputs, output_hidden_states=True) for model in (ours, theirs))
        assert len(a.hidden_states) == len(b.hidden_states)
        for x, y in zip(a.hidden_states, b.hidden_states, strict=True):
            torch.testing.assert_close(x, y, **EXACT)
        torch.testing.assert_close(a.pooler_output, b.pooler_output, **EXACT)


def test_the_bundled_weights_give_transformers_hidden_states():
    theirs = AutoModel.from_pretrained(bundled_weights()).eval()
    ours = from_bert(bundled_weights())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 22_713_216
    for inputs in (batch(theirs.config, 40), {"input_ids": torch.randint(5, 30000, (2, 128))}):
        assert_equal_states(ours, theirs, inputs)


@pytest.mark.parametrize("make", (bert, roberta))
@pytest.mark.parametrize("changes", ({}, {"hidden_act": "gelu_new"}, {"hidden_act": "relu", "layer_norm_eps": 1e-5}))
def test_random_bert_and_roberta_give_transformers_hidden_states(make, changes):
    theirs = make(**changes)
    assert_equal_states(from_bert(theirs), theirs, batch(theirs.config))


def test_every_attention_weight_equals_transformers():
    theirs = bert(attn_implementation="eager")
    theirs.set_attn_implementation("eager")
    inputs = batch(theirs.config)
    ours = from_bert(theirs)(**inputs, output_attentions=True).attentions
    for x, y in zip(ours, theirs(**inputs, output_attentions=True).attentions, strict=True):
        torch.testing.assert_close(x, y, **EXACT)


def test_the_masked_word_and_sentence_pair_heads_come_along():
    torch.manual_seed(0)
    theirs = BertForPreTraining(BertConfig(**TINY, initializer_range=0.2)).eval()
    torch.nn.init.normal_(theirs.cls.predictions.bias)
    ours, inputs = from_bert(theirs, PanguForPreTraining), batch(theirs.config)
    with torch.no_grad():
        a, b = ours(**inputs), theirs(**inputs)
        alone = from_bert(theirs, PanguForMaskedLM)(**inputs).logits
    torch.testing.assert_close(a.prediction_logits, b.prediction_logits, **EXACT)
    torch.testing.assert_close(alone, b.prediction_logits, **EXACT)
    torch.testing.assert_close(a.pair_logits, b.seq_relationship_logits, **EXACT)


def test_robertas_head_comes_along():
    torch.manual_seed(0)
    theirs = RobertaForMaskedLM(RobertaConfig(**TINY, initializer_range=0.2)).eval()
    torch.nn.init.normal_(theirs.lm_head.bias)
    inputs = batch(theirs.config, segments=False)
    with torch.no_grad():
        torch.testing.assert_close(
            from_bert(theirs, PanguForMaskedLM)(**inputs).logits, theirs(**inputs).logits, **EXACT
        )


def test_a_classifier_gets_the_encoder_and_a_fresh_head_with_the_labels_asked_for():
    theirs = BertForSequenceClassification(BertConfig(**TINY, num_labels=5)).eval()
    ours = from_bert(theirs, PanguForSequenceClassification, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    assert ours.classifier.weight.shape == (2, 24) and ours.config.id2label[1] == "yes"
    assert from_bert(theirs, PanguForSequenceClassification, num_labels=3).classifier.out_features == 3
    assert torch.equal(ours.model.encoder.embeddings.words.weight, theirs.bert.embeddings.word_embeddings.weight)


def test_fine_tuning_takes_the_same_steps_as_transformers_class():
    """From the same weights on the same batches, five steps of AdamW end at the same logits."""
    theirs = BertForSequenceClassification(
        BertConfig(**TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    )
    ours = from_bert(theirs, PanguForSequenceClassification)
    ours.classifier.load_state_dict(theirs.classifier.state_dict())
    inputs, labels = batch(theirs.config), torch.tensor([0, 1, 1, 0])
    for implementation in ("eager", "sdpa"):
        for model in (ours.train(), theirs.train()):
            model.set_attn_implementation(implementation)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            for _ in range(5):
                model(**inputs, labels=labels).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        with torch.no_grad():
            torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, rtol=0, atol=1e-4)


def test_a_function_of_ones_own_can_take_the_place_of_attention():
    """What lab 02 does: the student's attention runs the pre-trained encoder."""
    model = from_bert(bundled_weights())
    inputs = batch(model.config)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        calls = []

        def attend(q, k, v, mask, causal, need_weights):
            calls.append(q.shape)
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.size(-1) ** 0.5
            weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            return torch.einsum("bhqk,bhkd->bhqd", weights, v), None

        for module in model.modules():
            if isinstance(module, MultiHeadAttention):
                module.attend = attend
        found = model(**inputs).last_hidden_state
    assert calls == [(4, 12, 20, 32)] * 6
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_source_of_the_hub_module_is_taken(config):
    source = find_model(DEFAULT_MODEL, config)
    assert from_bert(source).config.hidden_size == 384


def test_a_decoder_can_be_put_behind_the_encoder():
    theirs = bert()
    ours = from_bert(theirs, PanguForConditionalGeneration, architecture="encoder-decoder", decoder_layers=2)
    inputs = batch(theirs.config)
    with torch.no_grad():
        states = ours.get_encoder()(**inputs).last_hidden_state
    torch.testing.assert_close(states, theirs(**inputs).last_hidden_state, **EXACT)
    assert ours.model.decoder.embeddings.words.weight is ours.model.encoder.embeddings.words.weight
    assert ours.lm_head.weight is ours.model.encoder.embeddings.words.weight


@pytest.fixture
def checkpoint(tmp_path):
    bert().save_pretrained(tmp_path)
    return tmp_path


def test_old_names_and_old_files_are_read(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        weights = {f"{key.replace(new, old)}": value for key, value in weights.items()}
    (checkpoint / "model.safetensors").unlink()
    torch.save({f"bert.{key}": value for key, value in weights.items()}, checkpoint / "pytorch_model.bin")
    assert_equal_states(from_bert(checkpoint), bert(), batch(bert().config))


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    (
        ({"model_type": "distilbert"}, "architecture 'distilbert'; from_bert takes bert, roberta"),
        ({"model_type": "gpt2"}, "architecture 'gpt2'"),
        ({"model_type": None}, "architecture None"),
        ({"is_decoder": True}, "is a bert decoder"),
        ({"position_embedding_type": "relative_key"}, "relative_key positions"),
        ({"hidden_act": "mish"}, "activation 'mish'"),
        ({"num_hidden_layers": 4}, "lacks 16 weights of the encoder"),
        ({"num_hidden_layers": 2}, "weights that BERT's encoder does not have"),
        ({"intermediate_size": 50}, "not of one model"),
        ({"num_attention_heads": 5}, "cannot be split over 5 heads"),
    ),
)
def test_what_does_not_fit_is_refused_in_one_sentence(checkpoint, changes, sentence):
    change_config(checkpoint, **changes)
    with pytest.raises(ModelError, match=sentence):
        from_bert(checkpoint)


@pytest.mark.parametrize("head", (PanguModel, PanguForSequenceClassification))
def test_from_pretrained_loads_nothing_of_another_architecture(head, checkpoint):
    """transformers warns and hands back random weights; a BERT folder must go through from_bert."""
    with pytest.raises(ModelError, match="architecture 'bert', not 'pangu'; from_bert loads"):
        head.from_pretrained(checkpoint)


def test_missing_and_damaged_files_are_named(checkpoint, tmp_path):
    with pytest.raises(ModelError, match=r"not a folder with a config\.json"):
        from_bert("bert-base-uncased")
    with pytest.raises(ModelError, match="give a transformers model or a folder"):
        from_bert(torch.nn.Linear(2, 2))
    weights = load_file(checkpoint / "model.safetensors")
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"lacks 1 weights of the encoder, first encoder\.layers\.1\.feed_forward\.down"
    ):
        from_bert(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="cannot be read"):
        from_bert(checkpoint)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        from_bert(checkpoint)
