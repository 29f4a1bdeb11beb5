"""The four edits: what they keep, what they change, and that a seed decides."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_lab.data.text_tasks import Rows
from pangu_lab.tasks.augmentation import (
    METHODS,
    AugmentationError,
    augment,
    augmented,
    random_deletion,
    random_insertion,
    random_swap,
    synonym_replacement,
    synonyms,
)

WORDS = st.lists(
    st.sampled_from(
        ["not", "a", "good", "day", ",", "Great!", "@user", "#sad", "the", "train", "isn't", "late", "🙃", "http"]
    ),
    max_size=12,
)
SEEDS = st.integers(0, 2**32)


@given(WORDS, st.floats(0, 1), SEEDS)
def test_deletion_keeps_order_and_never_empties_a_text(words, probability, seed):
    kept = random_deletion(words, probability, random.Random(seed))
    rest = iter(words)
    assert all(any(word == other for other in rest) for word in kept)
    assert bool(kept) == bool(words)


def test_deletion_deletes_its_share():
    words = [str(i) for i in range(4000)]
    assert 0.27 < 1 - len(random_deletion(words, 0.3, random.Random(0))) / 4000 < 0.33
    assert random_deletion(words, 0.0, random.Random(0)) == words
    assert len(random_deletion(words, 1.0, random.Random(0))) == 1


@given(WORDS, st.integers(0, 5), SEEDS)
def test_swap_keeps_each_word_once(words, swaps, seed):
    assert Counter(random_swap(words, swaps, random.Random(seed))) == Counter(words)


def test_one_swap_moves_exactly_two_words():
    for seed in range(50):
        moved = random_swap(list("abcde"), 1, random.Random(seed))
        assert sum(a != b for a, b in zip(moved, "abcde", strict=True)) == 2


@given(WORDS, st.integers(0, 4), SEEDS)
def test_insertion_adds_synonyms_of_words_that_are_there(words, count, seed):
    longer = random_insertion(words, count, random.Random(seed))
    known = [word for word in words if synonyms(word)]
    assert len(longer) == len(words) + (count if known else 0)
    assert not Counter(words) - Counter(longer)


@given(WORDS, st.integers(0, 4), SEEDS)
def test_replacement_changes_only_words_that_the_table_knows(words, count, seed):
    replaced = synonym_replacement(words, count, random.Random(seed))
    changed = [i for i, (a, b) in enumerate(zip(words, replaced, strict=True)) if a != b]
    assert len(changed) == min(count, sum(bool(synonyms(word)) for word in words))
    assert all(synonyms(words[i]) for i in changed)


def test_replacement_keeps_case_and_punctuation():
    for seed in range(20):
        (word,) = synonym_replacement(["“Great!"], 1, random.Random(seed))
        assert word.startswith("“") and word.endswith("!") and word[1].isupper() and word != "“Great!"
    assert synonyms("GOOD,") and not synonyms("#good") and not synonyms("@good")


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides(method):
    text = "not a good day but the slow train was late again and people were really angry"
    assert augment(text, method, 0.3, seed=1) == augment(text, method, 0.3, seed=1)
    assert len({augment(text, method, 0.3, seed) for seed in range(8)}) > 1
    assert augment("", method) == ""


def test_copies_carry_their_labels_and_equal_ones_are_left_out():
    rows = Rows(("a good day", "one", "a bad day"), (2, 1, 0))
    more = augmented(rows, 3, seed=4)
    assert more.texts[:3] == rows.texts and len(more) > 3
    assert all(text not in rows.texts for text in more.texts[3:])
    assert set(more.labels[3:]) <= {0, 2}  # "one" has no other version
    assert augmented(rows, 3, seed=4) == more


def test_bad_input_is_told():
    with pytest.raises(AugmentationError, match="'paraphrase' is not an augmentation; they are deletion"):
        augment("a", "paraphrase")
    with pytest.raises(AugmentationError, match="strength is 2; it must be from 0 to 1"):
        augment("a", "swap", 2)
