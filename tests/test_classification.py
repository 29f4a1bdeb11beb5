"""Fine-tuning end to end on a tiny encoder: features, run, record, saved model, odd texts, odd files."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer, pipeline

from pangu_lab import hub
from pangu_lab.data.text_tasks import TASKS, Rows, Splits
from pangu_lab.results import load_record
from pangu_lab.run_folder import RunFolderError
from pangu_lab.tasks.baselines import BASELINES, run_baselines
from pangu_lab.tasks.classification import (
    ClassificationError,
    course_classifier,
    encode,
    fine_tune,
    load_classifier,
    new_classifier,
    predict,
    predict_features,
    read_texts,
)

IMDB = TASKS["imdb"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(hub.bundled_weights())


def easy_splits():
    """Reviews whose label is one word: whatever learns at all learns this."""
    texts = [f"number {i} was {'wonderful' if i % 2 else 'terrible'}" for i in range(120)]
    rows = Rows(tuple(texts), tuple(i % 2 for i in range(120)))
    source = hub.Source("made/up", "mirror", hub.BUNDLED_DATA, "")
    return Splits(IMDB, rows.take(range(80)), rows.take(range(80, 100)), rows.take(range(100, 120)), source, ())


@pytest.fixture
def easy_config(config, tiny_encoder):
    train = config.train.model_copy(update={"learning_rate": 5e-3, "batch_size": 8})
    smoke = config.imdb.smoke.model_copy(update={"epochs": 4, "max_length": 16})
    imdb = config.imdb.model_copy(update={"smoke": smoke})
    return config.model_copy(update={"model": str(tiny_encoder), "train": train, "imdb": imdb})


@pytest.fixture
def fitted(easy_config):
    return fine_tune("imdb", easy_config, run="easy", splits=easy_splits(), quiet=True)


def test_a_tiny_encoder_learns_what_one_word_says(fitted):
    assert fitted.metrics["accuracy"].value == 1.0
    assert fitted.probabilities.shape == (20, 2) and np.allclose(fitted.probabilities.sum(axis=1), 1, atol=1e-5)


def test_the_record_says_what_was_measured(fitted, easy_config):
    record = load_record(easy_config.paths.runs / "easy" / "record.json")
    assert record == fitted.record
    assert record.rows == {"train": 80, "validation": 20, "test": 20} and record.seeds == (0,)
    assert record.data_source == "mirror" and record.metrics["accuracy"].value == 1.0
    assert "/" not in record.model, "a folder of this machine must not stand in a record"


def test_a_finished_run_is_not_trained_again(fitted, easy_config, monkeypatch):
    from pangu_lab.tasks import runs

    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("trained again"))
    again = fine_tune("imdb", easy_config, run="easy", splits=easy_splits(), quiet=True)
    assert np.allclose(again.probabilities, fitted.probabilities, atol=1e-5) and again.record == fitted.record
    changed = easy_config.model_copy(update={"train": easy_config.train.model_copy(update={"learning_rate": 1e-3})})
    with pytest.raises(RunFolderError, match=r"learning_rate was 0\.005, is 0\.001 now"):
        fine_tune("imdb", changed, run="easy", splits=easy_splits(), quiet=True)


def test_the_course_classifier_is_trained_once_whatever_the_settings(easy_config, monkeypatch):
    from pangu_lab.tasks import classification, runs

    monkeypatch.setattr(classification, "load_splits", lambda *_: easy_splits())
    first = course_classifier(easy_config, "smoke")
    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("trained again"))
    changed = easy_config.model_copy(update={"train": easy_config.train.model_copy(update={"learning_rate": 1e-3})})
    assert np.allclose(course_classifier(changed, "smoke").probabilities, first.probabilities, atol=1e-3)


def test_the_saved_model_loads_here_and_in_transformers(fitted, easy_config):
    folder = easy_config.paths.runs / "easy" / "model"
    classifier = load_classifier(folder)
    assert classifier.labels == ("negative", "positive") and classifier.max_length == 16
    text = "this was wonderful"
    ours = predict(classifier, [text])[0]
    theirs = pipeline("text-classification", model=str(folder), device="cpu")(text)[0]
    assert theirs["label"] == classifier.labels[int(ours.argmax())] and abs(theirs["score"] - ours.max()) < 1e-3


def test_long_texts_keep_their_head_and_their_tail(tokenizer):
    words = [f"word{i}" for i in range(500)]
    (ids,) = encode([" ".join(words)], tokenizer, 64)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert len(ids) == 64 and ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
    assert text.startswith("word0 word1") and text.endswith("word499")


@pytest.mark.parametrize("text", ["x", "😀" * 50, "a\x00b", "字" * 1000, "word " * 100_000, "z" * 100_000])
def test_odd_texts_are_classified(tiny_encoder, text):
    source = hub.Source("tiny", "cache", tiny_encoder, "")
    classifier = new_classifier(source, IMDB, 32, seed=0)
    assert predict(classifier, [text]).shape == (1, 2)


@pytest.mark.parametrize("text", ["", "   ", "\x00\x01", None, 3])
def test_a_text_without_words_is_told(tiny_encoder, text):
    classifier = new_classifier(hub.Source("tiny", "cache", tiny_encoder, ""), IMDB, 32, seed=0)
    with pytest.raises(ClassificationError, match="text 2 has no words in it"):
        predict(classifier, ["fine", text])


def test_probabilities_come_in_the_order_of_the_texts(tiny_encoder):
    classifier = new_classifier(hub.Source("tiny", "cache", tiny_encoder, ""), IMDB, 32, seed=0)
    texts = ["short", "a much longer text with many words in it", "mid length text", "x " * 40]
    together = predict(classifier, texts)
    alone = np.concatenate([predict(classifier, [text]) for text in texts])
    assert np.allclose(together, alone, atol=2e-3)


def test_no_rows_are_told(tiny_encoder):
    classifier = new_classifier(hub.Source("tiny", "cache", tiny_encoder, ""), IMDB, 32, seed=0)
    with pytest.raises(ClassificationError, match="no texts to classify"):
        predict_features(classifier.model, [], 0)


def test_the_head_depends_on_the_seed(tiny_encoder):
    source = hub.Source("tiny", "cache", tiny_encoder, "")
    heads = [new_classifier(source, IMDB, 32, seed=seed).model.classifier.weight for seed in (0, 0, 1)]
    assert (heads[0] == heads[1]).all() and not (heads[0] == heads[2]).all()


def test_a_folder_that_is_no_encoder_is_told(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(ClassificationError, match="cannot be loaded as an encoder"):
        new_classifier(hub.Source("odd", "cache", tmp_path, ""), IMDB, 32, seed=0)


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(ClassificationError, match="train one first"):
        load_classifier(tmp_path)


def test_files_of_texts(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"good, really",1\nbad,0\n', encoding="utf-8")
    assert read_texts(tmp_path / "a.csv") == (["good, really", "bad"], [1, 0])
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n\n', encoding="utf-8")
    assert read_texts(tmp_path / "b.jsonl") == (["fine"], None)
    (tmp_path / "c.txt").write_text("one\n\ntwo 😀\n", encoding="utf-8")
    assert read_texts(tmp_path / "c.txt") == (["one", "two 😀"], None)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "words,label\nx,1\n", "has no column 'text', only words, label"),
        ("a.csv", "", "cannot be read"),
        ("a.csv", "text\n", "holds no rows"),
        ("a.jsonl", "{", "cannot be read"),
        ("a.jsonl", "", "has no column 'text', only nothing"),
        ("a.txt", "\n\n", "holds no rows"),
        ("a.parquet", "no", "cannot be read"),
    ],
)
def test_files_that_cannot_be_used_are_told(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    with pytest.raises(ClassificationError, match=told):
        read_texts(tmp_path / name)
    with pytest.raises(ClassificationError, match="there is no such file"):
        read_texts(tmp_path / "nowhere.csv")


def test_baselines_learn_what_one_word_says():
    splits = easy_splits()
    results = {baseline.name: baseline for baseline in run_baselines(splits.train, splits.test, IMDB)}
    assert tuple(results) == BASELINES
    assert results["majority"].metrics["accuracy"].value == 0.5
    assert all(results[name].metrics["accuracy"].value == 1.0 for name in BASELINES if name != "majority")
