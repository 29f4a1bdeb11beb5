"""Pruning: exact sparsity, masks that hold through training, and smaller matrices that compute what masked ones do."""

import copy
import itertools
import tempfile
from dataclasses import replace

import pytest
import torch
from torch import nn
from training_job import make_job, make_model, weights_hash
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
)

from pangu_lab.compression import pruning, structured
from pangu_lab.compression.pruning import (
    Pruner,
    cubic_sparsity,
    head_importance,
    keep_largest,
    magnitude_masks,
    neuron_importance,
    prunable_weights,
    prune_and_tune,
    sparsity_of,
    two_of_four_mask,
    weakest,
)
from pangu_lab.compression.structured import (
    PruningError,
    encoder_layers,
    keep_layers,
    remove_heads,
    remove_neurons,
    trim_vocabulary,
)
from pangu_lab.model import ModelError, PanguConfig, PanguForSequenceClassification
from pangu_lab.training import train

SHAPE = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_labels": 3,
    "initializer_range": 0.3,
}


def tiny(kind):
    torch.manual_seed(0)
    if kind == "bert":
        model = BertForSequenceClassification(BertConfig(**SHAPE))
    else:
        model = PanguForSequenceClassification(PanguConfig(**SHAPE, bos_token_id=1, eos_token_id=2))
    return model.eval()


def inputs(batch=4, length=9):
    torch.manual_seed(1)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": torch.randint(3, SHAPE["vocab_size"], (batch, length)), "attention_mask": mask}


def logits(model, batch=None):
    with torch.inference_mode():
        return model(**(batch or inputs())).logits


def near(a, b):
    return torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


both = pytest.mark.parametrize("kind", ["bert", "pangu"])


# --- masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.9, 1.0])
def test_exactly_the_asked_number_goes_and_it_is_the_smallest(sparsity):
    scores = torch.rand(7, 11, generator=torch.Generator().manual_seed(0))
    mask = keep_largest(scores, sparsity)
    assert int((~mask).sum()) == round(sparsity * 77)
    if 0 < sparsity < 1:
        assert scores[~mask].max() < scores[mask].min()


def test_ties_do_not_change_the_number():
    assert keep_largest(torch.ones(10), 0.3).tolist() == [False] * 3 + [True] * 7
    scores = torch.tensor([0.0, 1, 1, 1, 1, 2, 0.5])
    assert keep_largest(scores, 4 / 7).tolist() == [False, False, False, True, True, True, False]


def test_a_threshold_for_all_and_one_for_each_differ():
    weights = {"small": 0.01 * torch.randn(10, 10), "large": torch.randn(10, 10)}
    each, all_ = (magnitude_masks(weights, 0.4, scope) for scope in ("layer", "global"))
    assert [int((~mask).sum()) for mask in each.values()] == [40, 40]
    assert sum(int((~mask).sum()) for mask in all_.values()) == 80
    assert int((~all_["small"]).sum()) > 70
    together = torch.cat([weight.abs().flatten() for weight in weights.values()])
    dropped = torch.cat([~mask.flatten() for mask in all_.values()])
    assert together[dropped].max() < together[~dropped].min()


def test_the_sign_does_not_count():
    weight = torch.tensor([[-3.0, 0.1, 2.0, -0.2]])
    assert magnitude_masks({"w": weight}, 0.5)["w"].tolist() == [[True, False, True, False]]


def test_wrong_sparsities_and_scopes_are_refused():
    for bad in (-0.1, 1.1):
        with pytest.raises(PruningError, match="share of zeros"):
            keep_largest(torch.ones(3), bad)
    with pytest.raises(PruningError, match="'layer' or 'global'"):
        magnitude_masks({"w": torch.ones(2, 2)}, 0.5, "matrix")
    with pytest.raises(PruningError, match="no encoder"):
        prunable_weights(nn.Linear(2, 2))


@both
def test_only_the_encoders_matrices_are_pruned(kind):
    model = tiny(kind)
    weights = prunable_weights(model)
    assert len(weights) == 6 * 3 and all(weight.ndim == 2 for weight in weights.values())
    assert all(dict(model.named_parameters())[name] is weight for name, weight in weights.items())
    before = {name: p.clone() for name, p in model.named_parameters() if name not in weights}
    pruned = pruning.pruned_copy(model, 0.5, "global")
    assert abs(sparsity_of(pruned) - 0.5) < 1e-4 and sparsity_of(model) == 0
    after = dict(pruned.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_two_of_four_keeps_the_two_largest_of_each_four():
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    mask = two_of_four_mask(weight)
    assert mask.shape == weight.shape
    for row, kept in zip(weight.tolist(), mask.tolist(), strict=True):
        for start in range(0, 16, 4):
            order = sorted(range(4), key=lambda i: -abs(row[start + i]))
            assert sorted(order[:2]) == [i for i in range(4) if kept[start + i]]
    assert two_of_four_mask(torch.ones(1, 4)).tolist() == [[True, True, False, False]]
    with pytest.raises(PruningError, match="multiple of 4"):
        two_of_four_mask(torch.ones(2, 6))


def test_two_of_four_kernels_are_refused_with_a_reason_where_there_are_none():
    if pruning.two_of_four_available()[0]:
        pytest.skip("this GPU has them")
    with pytest.raises(PruningError, match="2:4 kernels are not to be had"):
        pruning.to_two_of_four(tiny("bert"))


@pytest.mark.skipif(not pruning.two_of_four_available()[0], reason="no GPU with 2:4 arithmetic")
def test_two_of_four_kernels_compute_what_the_mask_does():
    torch.manual_seed(0)
    shape = SHAPE | {"hidden_size": 128, "intermediate_size": 256}
    model = BertForSequenceClassification(BertConfig(**shape)).eval().half().cuda()
    batch = {key: value.cuda() for key, value in inputs(batch=8, length=16).items()}
    weights = prunable_weights(model)
    pruning.apply_masks(model, {name: two_of_four_mask(weight) for name, weight in weights.items()})
    expected = logits(model, batch)
    assert pruning.to_two_of_four(model) == 18
    torch.testing.assert_close(logits(model, batch), expected, rtol=0, atol=2e-2)


# --- schedule and training --------------------------------------------------------------------------------


def test_the_cubic_schedule_has_its_ends_and_its_shape():
    values = [cubic_sparsity(step, 10, 30, 0.9, 0.1) for step in range(41)]
    assert values[:11] == [0.1] * 11 and values[30:] == [0.9] * 11
    assert all(a < b for a, b in itertools.pairwise(values[10:31]))
    assert values[20] == pytest.approx(0.9 - 0.8 / 8)  # halfway, seven eighths of the way
    steps = [b - a for a, b in itertools.pairwise(values[10:31])]
    assert steps == sorted(steps, reverse=True)


class Watch(Pruner):
    """Notes the sparsity after every step."""

    def __call__(self, model, step, steps):
        super().__call__(model, step, steps)
        self.seen = [*getattr(self, "seen", []), sparsity_of(model)]


@pytest.mark.parametrize(("scope", "every"), [("global", 1), ("layer", 4)])
def test_masks_hold_after_every_step_and_reach_the_end(scope, every, tmp_path):
    model, watch = make_model(), Watch(0.8, scope, begin=0.1, end=0.6, every=every)
    train(model, replace(make_job(epochs=2), after_step=watch), tmp_path, quiet=True, tensorboard=False)
    steps, last = len(watch.seen), int(0.6 * len(watch.seen))
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(watch.seen))
    assert watch.seen[0] == 0 and 0 < watch.seen[last // 2] < 0.8
    assert all(abs(value - 0.8) < 1e-3 for value in watch.seen[last - 1 :]) and steps == 18


def test_an_optimizer_with_momentum_brings_weights_back_unless_the_mask_is_applied_again():
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = make_job().collate(make_job().rows[:8])
    masks = magnitude_masks(prunable_weights(model), 0.5)
    pruning.apply_masks(model, masks)
    model(**batch).loss.backward()
    optimizer.step()
    assert sparsity_of(model) < 0.1
    pruning.apply_masks(model, masks)
    assert sparsity_of(model) == pytest.approx(0.5, abs=1e-3)


def interrupted_then_resumed(make, folder, at):
    """The hash of a run that dies in step ``at`` and is started again."""
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return pruning.cross_entropy_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        make(replace(make_job(epochs=2), loss=loss), folder)
    return make(make_job(epochs=2), folder)


@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_a_pruning_run_that_is_resumed_ends_with_the_same_weights(method, tmp_path):
    def make(job, folder):
        model = make_model()
        if method == "magnitude":
            # Masks chosen seldom: a resumed run needs those of the checkpoint.
            prune_and_tune(model, job, folder, 0.7, every=5, quiet=True)
        else:
            pruning.movement_prune(model, job, folder, 0.7, quiet=True)
        assert sparsity_of(model) == pytest.approx(0.7, abs=1e-3)
        return weights_hash(model)

    assert interrupted_then_resumed(make, tmp_path / "killed", at=8) == make(make_job(epochs=2), tmp_path / "whole")


def test_a_run_is_not_resumed_under_another_sparsity(tmp_path):
    prune_and_tune(make_model(), make_job(epochs=1), tmp_path, 0.5, quiet=True)
    with pytest.raises(Exception, match="after_step"):
        prune_and_tune(make_model(), make_job(epochs=1), tmp_path, 0.6, quiet=True)


def test_impossible_schedules_are_refused():
    for settings in ({"sparsity": 1.0}, {"sparsity": 0.5, "begin": 0.8}, {"sparsity": 0.5, "every": 0}):
        with pytest.raises(PruningError, match="cannot be"):
            Pruner(**settings)


def test_scores_of_movement_follow_the_weights_motion():
    """∂L/∂S = ∂L/∂W′ ⊙ W, for pruned weights, too; ∂L/∂W only reaches those that stay."""
    torch.manual_seed(0)
    layer, x, target = nn.Linear(5, 4), torch.randn(3, 5), torch.randn(3, 4)
    mask = pruning.MovementMask(layer.weight)
    mask.scores.data = torch.randn(4, 5)
    mask.sparsity.fill_(0.5)
    weight = layer.weight.detach().clone().requires_grad_()
    effective = mask(weight)
    assert int((effective == 0).sum()) == 10
    effective.retain_grad()
    ((x @ effective.T - target) ** 2).sum().backward()
    near(mask.scores.grad, effective.grad * weight.detach())
    near(weight.grad, effective.grad * keep_largest(mask.scores, 0.5))
    # One step of gradient descent on S raises the score of a weight that the gradient pushes away from zero.
    moves_away = (-effective.grad * weight.detach()) > 0
    assert torch.equal(-mask.scores.grad > 0, moves_away)


# --- importance -------------------------------------------------------------------------------------------


def labelled():
    return inputs() | {"labels": torch.tensor([0, 2, 1, 1])}


def gated_loss(model, batch, linear, block, size, gate):
    """The loss of each text with one block of a linear map's inputs scaled."""

    def hook(module, args):
        x = args[0].clone()
        x[..., block * size : (block + 1) * size] *= gate
        return (x,)

    handle = linear.register_forward_pre_hook(hook)
    with torch.no_grad():
        found = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    handle.remove()
    return nn.functional.cross_entropy(found, batch["labels"], reduction="none")


@both
@pytest.mark.parametrize("part", ["heads", "neurons"])
def test_importance_is_the_mean_absolute_slope_along_a_gate(kind, part):
    """Against finite differences, text by text, in double precision."""
    model, batch = tiny(kind).double(), labelled()
    found = (head_importance if part == "heads" else neuron_importance)(model, [batch], normalize=False)
    for number, layer in enumerate(encoder_layers(model)):
        linear, size = (layer.attention_output, layer.head_size) if part == "heads" else (layer.down, 1)
        for block in range(4):
            up, down = (gated_loss(model, batch, linear, block, size, 1 + e) for e in (1e-5, -1e-5))
            slope = ((up - down) / 2e-5).abs().mean()
            assert float(found[number][block]) == pytest.approx(float(slope), rel=1e-4, abs=1e-9)


def test_importance_does_not_depend_on_batches_and_leaves_no_trace():
    model, batch = tiny("bert").train(), labelled()
    halves = [{key: value[part] for key, value in batch.items()} for part in (slice(0, 2), slice(2, 4))]
    whole, parts = head_importance(model, [batch]), head_importance(model, halves)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert float(a.norm()) == pytest.approx(1)
    assert model.training and all(p.grad is None for p in model.parameters())
    with pytest.raises(PruningError, match="no batches"):
        head_importance(model, [])


def test_the_weakest_are_chosen_per_layer_or_overall():
    importance = [torch.tensor([0.3, 0.1, 0.2, 0.9]), torch.tensor([5.0, 4.0, 0.05, 3.0])]
    assert weakest(importance, 0.5) == {0: [1, 2], 1: [2, 3]}
    assert weakest(importance, 0.5, "global") == {0: [0, 1, 2], 1: [2]}
    assert weakest(importance, 0.75, "global") == {0: [0, 1, 2], 1: [1, 2, 3]}  # one of each layer stays
    assert weakest(importance, 0.1) == {}


# --- smaller matrices -------------------------------------------------------------------------------------


def silenced(model, what, removed):
    """A copy in which the outputs of these heads or neurons are multiplied by zero."""
    model = copy.deepcopy(model)
    for number, layer in enumerate(encoder_layers(model)):
        linear, size = (layer.attention_output, layer.head_size) if what == "heads" else (layer.down, 1)
        with torch.no_grad():
            for block in removed.get(number, ()):
                linear.weight[:, block * size : (block + 1) * size] = 0
    return model


@both
def test_a_model_without_heads_equals_one_whose_heads_are_silent(kind):
    model, removed = tiny(kind), {0: [1], 2: [0, 3]}
    smaller = remove_heads(model, removed)
    near(logits(smaller), logits(silenced(model, "heads", removed)))
    assert [layer.heads for layer in encoder_layers(smaller)] == [3, 4, 2]
    assert encoder_layers(smaller)[2].query.weight.shape == (16, 32)
    assert encoder_layers(smaller)[2].attention_output.weight.shape == (32, 16)
    assert not torch.allclose(logits(smaller), logits(model), atol=1e-3)
    assert [layer.heads for layer in encoder_layers(model)] == [4, 4, 4]


@both
def test_removing_in_two_rounds_counts_positions_anew(kind):
    model = tiny(kind)
    near(logits(remove_heads(remove_heads(model, {1: [0]}), {1: [0, 2]})), logits(remove_heads(model, {1: [0, 1, 3]})))


@both
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_model_without_neurons_equals_one_whose_neurons_are_silent(kind, implementation):
    model, removed = tiny(kind), {0: [5, 47, 0], 1: list(range(40))}
    model.set_attn_implementation(implementation)
    smaller = remove_neurons(model, removed)
    near(logits(smaller), logits(silenced(model, "neurons", removed)))
    assert [layer.neurons for layer in encoder_layers(smaller)] == [45, 8, 48]
    assert smaller.config._attn_implementation == implementation
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in smaller.parameters()) == 43 * 65


@both
def test_kept_layers_are_those_that_were_named(kind):
    model = tiny(kind)
    smaller = keep_layers(remove_neurons(model, {2: [1]}), [0, 2])
    assert smaller.config.num_hidden_layers == 2
    assert [layer.neurons for layer in encoder_layers(smaller)] == [48, 47]
    by_hand = remove_neurons(model, {2: [1]})
    place, _ = structured.find_encoder(by_hand)
    stack = by_hand.get_submodule(place)
    del stack[1]
    near(logits(smaller), logits(by_hand))


@both
def test_gradients_flow_and_the_mode_stays(kind):
    smaller = remove_heads(tiny(kind).train(), {0: [1]})
    assert smaller.training
    smaller(**labelled()).loss.backward()
    assert all(p.grad is not None for p in smaller.parameters())


@pytest.mark.parametrize("kind", ["bert", "pangu"])
def test_saved_and_loaded_it_is_the_same_model(kind, tmp_path):
    model = tiny(kind)
    cases = {
        "heads": remove_heads(model, {0: [1], 2: [0, 3]}),
        "neurons": remove_neurons(model, {0: [3]}),
        "alike": remove_neurons(model, {i: [i, 9] for i in range(3)}),
        "all": keep_layers(remove_neurons(remove_heads(model, {0: [1]}), {1: [4]}), [1, 0]),
    }
    for name, smaller in cases.items():
        smaller.save_pretrained(tmp_path / name)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / name).eval()
        assert type(loaded) is type(smaller)
        near(logits(loaded), logits(smaller))
        headless = AutoModel.from_pretrained(tmp_path / name)
        assert [layer.heads for layer in encoder_layers(headless)] == [layer.heads for layer in encoder_layers(loaded)]


def test_with_equal_numbers_of_neurons_it_stays_an_ordinary_bert():
    model = tiny("bert")
    alike = remove_neurons(model, {i: [1, 2] for i in range(3)})
    assert type(alike) is BertForSequenceClassification and type(alike.config) is BertConfig
    assert alike.config.intermediate_size == 46
    unlike = remove_heads(remove_neurons(model, {0: [1, 2]}), {1: [0]})
    assert isinstance(unlike, BertForSequenceClassification) and unlike.config.model_type == "bert-pruned"
    # What made it unlike the others goes with the layer: an ordinary BERT again.
    assert type(keep_layers(unlike, [2])) is BertForSequenceClassification


def test_what_is_not_there_cannot_go():
    model = tiny("bert")
    for call, message in (
        (lambda: remove_heads(model, {3: [0]}), "no layer 3"),
        (lambda: remove_heads(model, {0: [4]}), r"layer 0 has no heads \[4\]"),
        (lambda: remove_heads(model, {0: range(4)}), "would lose all its heads"),
        (lambda: remove_neurons(model, {1: range(48)}), "would lose all its neurons"),
        (lambda: keep_layers(model, []), "name at least one"),
        (lambda: keep_layers(model, [1, 1]), "each once"),
    ):
        with pytest.raises(PruningError, match=message):
            call()


def test_configurations_that_fit_no_layer_are_refused():
    for bad in ([4, 4], [4, 4, 5], [4, 0, 4]):
        with pytest.raises(ModelError, match="heads_per_layer"):
            PanguConfig(**SHAPE, heads_per_layer=bad)
    with pytest.raises(ModelError, match="lone encoder"):
        PanguConfig(**SHAPE, architecture="encoder-decoder", neurons_per_layer=[1, 1, 1])


# --- vocabulary -------------------------------------------------------------------------------------------

TEXTS = ["A wonderful, unbelievable film: zxqjy! ☃ snow☃man 😀", "Café naïveté, 1984's remake", "plain"]


@pytest.fixture(scope="module")
def tokenizer():
    from pangu_lab.hub import bundled_weights

    return AutoTokenizer.from_pretrained(bundled_weights())


def test_a_trimmed_vocabulary_changes_no_token_and_no_logit_of_its_texts(tokenizer):
    shape = BertConfig(**(SHAPE | {"vocab_size": len(tokenizer), "num_hidden_layers": 1}))
    torch.manual_seed(0)
    model = BertForSequenceClassification(shape).eval()
    smaller, small = trim_vocabulary(model, tokenizer, TEXTS)
    assert len(small) == smaller.config.vocab_size == smaller.get_input_embeddings().num_embeddings < 100
    for text in TEXTS:
        assert small.tokenize(text) == tokenizer.tokenize(text)
    before, after = (t(TEXTS, TEXTS[::-1], padding=True, return_tensors="pt") for t in (tokenizer, small))
    assert torch.equal(before["token_type_ids"], after["token_type_ids"])
    near(logits(smaller, after), logits(model, before))
    # A new word of seen letters falls to pieces; it does not vanish.
    assert small.unk_token not in small.tokenize("filmless")
    with tempfile.TemporaryDirectory() as folder:
        small.save_pretrained(folder)
        smaller.save_pretrained(folder)
        again = AutoTokenizer.from_pretrained(folder)
        assert again(TEXTS)["input_ids"] == small(TEXTS)["input_ids"]
        near(logits(AutoModelForSequenceClassification.from_pretrained(folder).eval(), after), logits(smaller, after))


def test_the_output_layer_of_a_language_model_is_trimmed_too(tokenizer):
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**(SHAPE | {"vocab_size": len(tokenizer), "num_hidden_layers": 1}))).eval()
    smaller, small = trim_vocabulary(model, tokenizer, TEXTS)
    before, after = (t(TEXTS, padding=True, return_tensors="pt") for t in (tokenizer, small))
    ids = tokenizer.convert_tokens_to_ids(small.convert_ids_to_tokens(list(range(len(small)))))
    near(logits(smaller, after), logits(model, before)[..., ids])
    assert smaller.get_output_embeddings().weight is smaller.get_input_embeddings().weight


def test_a_word_that_had_no_pieces_still_has_none():
    """Greedy search gets stuck behind a long piece; without that piece it would get through by a shorter one."""
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ab", "abc", "##cd", "##c", "abx", "a", "##x", "c"]
    big = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    assert big.tokenize("abcd") == ["[UNK]"]
    model = BertForSequenceClassification(BertConfig(**(SHAPE | {"vocab_size": len(words), "num_hidden_layers": 1})))
    texts = ["abcd ab", "c"]
    _, small = trim_vocabulary(model, big, texts)
    assert [small.tokenize(text) for text in texts] == [big.tokenize(text) for text in texts]
    assert len(small) < len(words)


def test_another_tokenizer_is_refused(tokenizer):
    with pytest.raises(PruningError, match="give the model's own tokenizer"):
        trim_vocabulary(tiny("bert"), tokenizer, TEXTS)


def test_the_given_model_is_untouched():
    model = tiny("bert")
    before = weights_hash(model)
    state = torch.get_rng_state()
    for smaller in (remove_heads(model, {0: [0]}), keep_layers(model, [0])):
        with torch.no_grad():
            next(smaller.parameters()).zero_()
    assert weights_hash(model) == before and torch.equal(torch.get_rng_state(), state)
