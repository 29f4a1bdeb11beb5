"""Pre-training runs: batches are what the objectives say, runs resume, losses stay above the floor and fall."""

import copy
import json
import signal

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from pangu_lab import pretraining
from pangu_lab.config import Train
from pangu_lab.data.world import World
from pangu_lab.hub import bundled_weights
from pangu_lab.model import PanguConfig, PanguForMaskedLM, PanguForSequenceClassification
from pangu_lab.model.copying import COPIED
from pangu_lab.objectives import IGNORED
from pangu_lab.pretraining import (
    Collate,
    PretrainingError,
    PretrainingLoss,
    flops_per_token,
    held_out,
    make_model,
    make_rows,
    parse_objectives,
    pretrain,
    text_corpus,
    with_encoder,
    world_corpus,
)
from pangu_lab.tasks import world_tasks
from pangu_lab.tasks.world_tasks import bag_of_words_accuracy
from pangu_lab.training import Interrupted

SHAPE = PanguConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    norm_position="pre",
    max_position_embeddings=256,
    initializer_range=0.1,
)
SETTINGS = Train(learning_rate=5e-3, batch_size=16, precision="fp32", checkpoint_seconds=0.0)


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def corpus(world):
    return world_corpus(world, world.documents(0, 0, 96))


def batch_of(corpus, names, count=24, epoch=0, **options):
    collate = Collate(corpus.tokens, **options)
    return collate(make_rows(corpus, names)[:count], epoch)


def test_a_batch_asks_for_words_only_and_each_epoch_for_others(corpus):
    batch, later = batch_of(corpus, ("mlm",)), batch_of(corpus, ("mlm",), epoch=1)
    asked = batch["labels"] != IGNORED
    assert 0.13 < asked.sum() / (batch["labels"][batch["attention_mask"] == 1]).numel() < 0.16
    words = torch.isin(batch["labels"][asked], torch.from_numpy(corpus.tokens.replacements))
    assert words.all() and not asked[:, 0].any() and not asked[batch["attention_mask"] == 0].any()
    assert not later["labels"].equal(batch["labels"])


def test_tags_stay_with_their_words_when_segments_are_swapped(world, corpus):
    batch = batch_of(corpus, ("mlm", "sop", "pos", "ner"), 96)
    assert 30 < int(batch["next_sentence_label"].sum()) < 66
    truth: dict[int, set[int]] = {}
    ids = {token: i for i, token in enumerate(world.vocabulary)}
    for document in world.documents(0, 0, 96):
        for token, tag in zip(document.tokens, document.pos, strict=True):
            truth.setdefault(ids[token], set()).add(pretraining.POS_TAGS.index(tag))
    seen = torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])
    for token, tag in zip(seen.flatten().tolist(), batch["pos_labels"].flatten().tolist(), strict=True):
        assert (tag in truth[token]) if token in truth else tag == IGNORED


def test_spans_and_masks_share_a_batch(corpus):
    batch = batch_of(corpus, ("mlm", "spans"), 40, span_share=0.5)
    masked, spanned = len(batch["labels"]), len(batch["span_labels"])
    assert masked + spanned == 40 == len(batch["input_ids"]) and 8 < spanned < 32
    first = corpus.tokens.sentinels[0]
    assert (batch["span_labels"][:, 0] == first).all() and (batch["input_ids"][masked:] == first).sum() == spanned
    assert not torch.isin(batch["input_ids"][:masked], torch.from_numpy(corpus.tokens.sentinels)).any()
    assert (batch["input_ids"][:, 0] == corpus.tokens.cls).all()


def test_the_joint_loss_is_the_sum_of_its_means(corpus):
    names = ("mlm", "sop", "pos", "ner")
    torch.manual_seed(0)
    model, batch = make_model(SHAPE, names, corpus.tokens), batch_of(corpus, names)
    model.eval().requires_grad_(False)
    total, items = PretrainingLoss()(model, batch)
    output = model(**batch, predict_at=batch["labels"] != IGNORED)
    assert set(output.losses) == {"words", "pair", "pos", "ner"}
    assert float(total / items) == pytest.approx(float(sum(output.losses.values())), rel=1e-5)
    hard, _ = PretrainingLoss("hard", corpus.tokens.synonyms)(model, batch)
    soft, _ = PretrainingLoss("soft")(model, batch)
    rounding = 4 * torch.finfo(torch.float32).eps * total  # nothing shielded, the two are equal up to this
    assert hard <= total + rounding and total < soft


def test_what_cannot_be_asked_is_one_sentence(world, corpus):
    for text, told in (
        ("mlm,xyz", "'xyz' is not an objective"),
        ("sop", "need mlm"),
        ("mlm,nsp,sop", "share one head"),
        ("mlm,spans,pos", "goes with mlm or wwm only"),
    ):
        with pytest.raises(PretrainingError, match=told):
            parse_objectives(text)
    assert parse_objectives(" mlm, sop") == ("mlm", "sop")
    plain = text_corpus(["one two"], world.tokenizer(), 32)
    with pytest.raises(PretrainingError, match="pos needs tags"):
        make_rows(plain, ("mlm", "pos"))
    with pytest.raises(PretrainingError, match="two sentences"):
        make_rows(plain, ("mlm", "sop"))
    with pytest.raises(PretrainingError, match="no text"):
        text_corpus(["", " \n"], world.tokenizer(), 32)


def test_texts_are_cut_into_pieces_and_words_stay_whole():
    tokenizer = AutoTokenizer.from_pretrained(bundled_weights())
    text = "Unbelievably long words, misunderstandings.\n" * 6
    corpus = text_corpus([text, "Short."], tokenizer, 24)
    rows = make_rows(corpus, ("wwm",))
    assert len(rows) > 3 and max(len(row["input_ids"]) for row in rows) <= 24
    batch = Collate(corpus.tokens, whole_words=True)(rows)
    asked = batch["labels"] != IGNORED
    for row, source in enumerate(rows):
        for word in set(source["words"]) - {-1}:
            places = [i for i, w in enumerate(source["words"]) if w == word]
            assert len({bool(asked[row, i]) for i in places}) == 1
    assert asked.any()


@pytest.mark.parametrize("names", [("mlm", "sop", "pos", "ner"), ("mlm", "spans")])
def test_a_run_that_was_stopped_ends_with_the_same_weights(corpus, tmp_path, names, monkeypatch):
    def run(folder):
        return pretrain(corpus, names, SHAPE, SETTINGS, folder, epochs=2, quiet=True, peak_flops=1e11)

    whole, result = run(tmp_path / "whole")
    if "spans" in names:  # both heads share the table of embeddings, saved and loaded again
        whole.save_pretrained(tmp_path / "model")
        loaded = type(whole).from_pretrained(tmp_path / "model")
        assert loaded.mlm_head.decoder.weight is loaded.lm_head.weight is loaded.model.encoder.embeddings.words.weight
    assert result.log[0]["flops_utilization"] > 0 and result.log[0]["tokens_per_second"] > 0
    assert len({entry["loss"] for entry in result.log}) == 12
    plain, calls = PretrainingLoss.__call__, []

    def stopped(self, model, batch):
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return plain(self, model, batch)

    monkeypatch.setattr(PretrainingLoss, "__call__", stopped)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts")
    again, _ = run(tmp_path / "parts")
    assert len(calls) == 12
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_the_loss_falls_and_stays_above_the_floor(world, tmp_path):
    data = held_out(world, 99, 6)
    assert data.floor.documents == 6 and len(data.floor_losses) == int((data.labels != IGNORED).sum())
    corpus = world_corpus(world, world.documents(0, 0, 320))
    model, result = pretrain(
        corpus, ("mlm",), SHAPE, SETTINGS, tmp_path, epochs=3, evaluate=data.evaluate, evaluate_every=25, quiet=True
    )
    losses = [entry["mlm_loss"] for entry in result.evaluations]
    assert len(losses) == 5 and losses[-1] < losses[0] < np.log(corpus.tokens.size) + 0.5
    assert losses[-1] > data.floor.value and result.evaluations[-1]["ratio"] > 1
    json.dumps(result.evaluations)
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model")
    assert np.allclose(data.losses(again), data.losses(model), atol=1e-5)
    task = with_encoder(PanguForMaskedLM(pretraining.encoder_shape(model)), model)
    first = next(iter(task.model.encoder.parameters()))
    assert torch.equal(first, next(iter(model.model.encoder.parameters())))
    shape = pretraining.encoder_shape(model, num_labels=2)
    fresh = PanguForSequenceClassification(shape)
    pooled = with_encoder(copy.deepcopy(fresh), model).model.pooler
    for own, given, other in zip(
        pooled.parameters(), model.model.pooler.parameters(), fresh.model.pooler.parameters(), strict=True
    ):
        assert torch.equal(own, given) and (own.ndim == 1 or not torch.equal(own, other))


def test_a_model_with_relative_positions_starts_by_copying(corpus):
    shape = PanguConfig(**SHAPE.to_dict() | {"relative_positions": 4})
    torch.manual_seed(0)
    for names in (("mlm",), ("mlm", "spans")):
        model = make_model(shape, names, corpus.tokens)
        attention = model.model.encoder.layers[0].self_attention
        handed_on = attention.o.weight @ attention.v.weight
        torch.testing.assert_close(handed_on, COPIED * torch.eye(32), rtol=1e-4, atol=1e-5)
    plain = make_model(SHAPE, ("mlm",), corpus.tokens).model.encoder.layers[0].self_attention
    assert (plain.o.weight @ plain.v.weight - COPIED * torch.eye(32)).abs().max() > 0.1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_bag_of_words_tells_documents_apart_but_not_their_order(world, seed):
    corpus = world_corpus(world, world.documents(50 + seed, 0, 2500))
    (nsp, total), (sop, _) = (bag_of_words_accuracy(corpus, name, 1000, seed) for name in ("nsp", "sop"))
    assert nsp >= 0.9 * total and sop <= 0.55 * total


def test_a_bag_of_words_learns_its_training_pairs_even_where_there_is_nothing_to_learn(world, monkeypatch):
    fitted = []

    class Watched(world_tasks.LogisticRegression):
        def fit(self, x, y):
            super().fit(x, y)
            fitted.append(self.score(x, y))
            return self

    monkeypatch.setattr(world_tasks, "LogisticRegression", Watched)
    bag_of_words_accuracy(world_corpus(world, world.documents(50, 0, 1000)), "sop", 200)
    assert fitted[0] > 0.6  # else a low test accuracy would say nothing of the order of sentences


def test_flops_count_matrices_and_attention(corpus):
    model = make_model(SHAPE, ("mlm",), corpus.tokens)
    matrices = 4 * 32 * 32 + 2 * 32 * 64 + 32 * 32 + 32 * 32 + 2 * 32  # layer, pooler, head, pair
    wanted = 6 * (matrices + 0.15 * corpus.tokens.size * 32) + 12 * 32 * 40
    assert flops_per_token(model, 40) == pytest.approx(wanted)


def test_the_command_line_pretrains_on_the_world_and_on_texts(tmp_path, monkeypatch, capsys):
    from pangu_lab import cli
    from pangu_lab.model.denoising import PanguForDenoising

    (tmp_path / "config.yaml").write_text("paths: {runs: runs}\n")
    (tmp_path / "texts.txt").write_text("One line here.\nAnd a second one.\n\n" * 20)
    common = ["--mode", "smoke", "--documents", "32", "--config", str(tmp_path / "config.yaml"), "--json"]

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["pangu-lab", "pretrain", *arguments, *common])
        cli.main()
        return json.loads(capsys.readouterr().out)

    found = run("--objective", "mlm,spans")
    assert found["floor"] < found["mlm_loss"] and found["steps"] == 2 and found["tokens_per_second"] > 0
    PanguForDenoising.from_pretrained(found["folder"] + "/model")
    assert AutoTokenizer.from_pretrained(found["folder"] + "/model").mask_token == "[MASK]"
    assert run("--objective", "wwm,sop", "--on", str(tmp_path / "texts.txt"))["train_loss"] > 0
    with pytest.raises(SystemExit) as stop:
        run("--objective", "xyz")
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        run("--on", str(tmp_path / "nowhere.txt"))
    assert stop.value.code == 2
