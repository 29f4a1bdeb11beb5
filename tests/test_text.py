"""Cleaning and WordPiece: what is undone, the same pieces as the tokenizers library, a vocabulary that saves and loads."""

import time

import numpy as np
import pytest
from transformers import AutoTokenizer

from pangu_lab.hub import BUNDLED_DATA, bundled_weights
from pangu_lab.text import VocabularyError, bert_words, clean, token_ids, train_wordpiece, wordpiece


@pytest.fixture(scope="module")
def pretrained():
    return AutoTokenizer.from_pretrained(bundled_weights())


@pytest.fixture(scope="module")
def texts():
    import json

    path = BUNDLED_DATA / "reviews" / "train.jsonl"
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("a<br/>b <b>bold</b>", "a b bold"),
        ("Tom &amp; Jerry &lt;b&gt;", "Tom & Jerry <b>"),
        ("about &amp;amp; itself", "about &amp; itself"),
        ("cafe\u0301", "café"),
        ("a\u200bb\ufeff\x07", "ab"),
        ("one\r\ntwo\r\n\r\n\r\n\r\nthree", "one\ntwo\n\nthree"),
        ("  much \t space \u00a0 here ", "much space here"),
        ("3 < 4 and 5 > 4", "3 < 4 and 5 > 4"),
        ("👩\u200d🔬 works", "👩\u200d🔬 works"),
    ],
)
def test_clean_undoes_the_web(raw, wanted):
    assert clean(raw) == wanted
    assert clean(wanted) == wanted or "&" in wanted or "<" in wanted


def test_wordpiece_by_hand_equals_tokenizers_on_ten_thousand_words(pretrained, texts):
    vocabulary = pretrained.get_vocab()
    model = pretrained.backend_tokenizer.model
    rng = np.random.default_rng(0)
    words = sorted({word for text in texts for word in bert_words(text)})
    letters = np.array(list("abcdefghijklmnopqrstuvwxyzäßé中0123456789-'"))
    odd = ["".join(rng.choice(letters, rng.integers(1, 25))) for _ in range(10_000 - len(words) // 2)]
    words += [*odd, "x" * 100, "x" * 101, "", "☃", "unaffable"]
    assert len(words) >= 10_000
    for word in words:
        assert wordpiece(word, vocabulary) == [piece.value for piece in model.tokenize(word)], word


def test_words_are_cut_as_bert_cuts_them(pretrained, texts):
    backend = pretrained.backend_tokenizer
    samples = [*texts[:100], "Zoë's naïve co-op, 中文字 & $5 [x] ~¡hola!\u3000tab\tnew\nline\u200b"]
    for text in samples:
        normal = backend.normalizer.normalize_str(text)
        assert bert_words(text) == [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]


def test_a_trained_vocabulary_saves_and_loads_and_is_the_same_each_time(texts, tmp_path):
    tokenizer = train_wordpiece(texts[:300], 800)
    assert len(tokenizer) == 800
    assert tokenizer.get_vocab() == train_wordpiece(iter(texts[:300]), 800).get_vocab()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    pair = ("The actors are wonderful.", "Never again!")
    assert loaded(*pair)["input_ids"] == tokenizer(*pair)["input_ids"]
    assert loaded(*pair)["token_type_ids"].count(1) == len(loaded.tokenize(pair[1])) + 1
    assert loaded.mask_token == "[MASK]" and loaded.pad_token_id == 0
    assert loaded.decode(loaded("The actors")["input_ids"], skip_special_tokens=True) == "the actors"
    by_hand = [p for word in bert_words(texts[400]) for p in wordpiece(word, loaded.get_vocab())]
    assert loaded.tokenize(texts[400]) == by_hand


@pytest.mark.parametrize("size", [0, 14])
def test_a_vocabulary_that_cannot_be_is_refused(size):
    with pytest.raises(VocabularyError, match="15 pieces or more"):
        train_wordpiece(["some text"], size)
    with pytest.raises(VocabularyError, match="no words"):
        train_wordpiece(["", "  "], 100)


def test_a_megabyte_a_second(pretrained, texts):
    megabyte = (texts * 5)[: 5 * len(texts)]
    size = sum(len(text.encode()) for text in megabyte)
    list(token_ids(megabyte[:50], pretrained))
    began = time.process_time()
    rows = list(token_ids(megabyte, pretrained))
    seconds = time.process_time() - began
    assert rows[0] == pretrained(megabyte[0], add_special_tokens=False)["input_ids"] and len(rows) == len(megabyte)
    assert size / 1e6 / seconds > 1.0
