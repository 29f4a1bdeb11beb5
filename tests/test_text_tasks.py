"""Rows and splits: cleaned, proven, disjoint, stratified, the same for the same seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_lab.data.text_tasks import TASKS, DataError, Rows, checked_rows, clean, load_splits, stratified

IMDB = TASKS["imdb"]


@pytest.mark.parametrize(
    ("dirty", "cleaned"),
    [
        ("one<br /><br />two<BR>three", "one two three"),
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("a\x00b\x07c", "a b c"),
        ("tabs\tand\nlines  and spaces ", "tabs and lines and spaces"),
        ("family 👨‍👩‍👧 and ❤️", "family 👨‍👩‍👧 and ❤️"),
        ("", ""),
    ],
)
def test_cleaning_undoes_what_the_web_did(dirty, cleaned):
    assert clean(dirty) == cleaned


@given(st.text())
def test_cleaning_leaves_one_printable_line_and_is_done_once(text):
    cleaned = clean(text)
    assert not any(ord(character) < 32 for character in cleaned) and cleaned == cleaned.strip()


@pytest.mark.parametrize(
    ("text", "label", "told"),
    [
        (None, 1, "row 0: the text is NoneType; it must be a string"),
        (3.5, 1, "row 0: the text is float"),
        ("fine", 2, "row 0: the label is 2; it must be a whole number from 0 to 1"),
        ("fine", -1, "the label is -1"),
        ("fine", None, "the label is None"),
        ("fine", True, "the label is True"),
        ("fine", 0.5, "the label is 0.5"),
        ("  \x00 ", 1, "has no row with a text"),
    ],
)
def test_bad_rows_are_told_with_their_number(text, label, told):
    with pytest.raises(DataError, match=told):
        checked_rows([text], [label], IMDB, "file.csv")


def test_rows_without_words_are_left_out():
    rows = checked_rows(["good", "", "bad"], [1, 0, 0], IMDB, "file.csv")
    assert rows.texts == ("good", "bad") and rows.labels == (1, 0)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=300), st.data())
def test_a_stratified_sample_has_the_size_asked_for_and_the_shares_of_the_whole(labels, data):
    count = data.draw(st.integers(1, len(labels)))
    rows = Rows(tuple(map(str, range(len(labels)))), tuple(labels))
    chosen = stratified(rows, count, seed=0)
    assert len(chosen) == len(set(chosen)) == count and chosen == sorted(chosen)
    for label in set(labels):
        share = sum(labels[i] == label for i in chosen)
        assert abs(share - count * labels.count(label) / len(labels)) <= 1


def mirrored(config, mirror):
    return config.model_copy(update={"paths": config.paths.model_copy(update={"mirror": mirror})})


def test_validation_is_taken_from_train_and_said_so(config, made_up_mirror):
    splits = load_splits(IMDB, mirrored(config, made_up_mirror), "full")
    assert len(splits.train) == 18 and len(splits.validation) == 2 and len(splits.test) == 20
    assert not set(splits.train.texts) & set(splits.validation.texts)
    assert any("ships no validation split" in note and "seed 0" in note for note in splits.notes)


def test_the_split_depends_on_the_seed_alone(config, made_up_mirror):
    config = mirrored(config, made_up_mirror)
    assert load_splits(IMDB, config, "full", seed=1) == load_splits(IMDB, config, "full", seed=1)
    assert load_splits(IMDB, config, "full", seed=1).train != load_splits(IMDB, config, "full", seed=4).train


def test_train_texts_that_stand_in_test_are_dropped(config, made_up_mirror):
    import datasets

    folder = made_up_mirror / "stanfordnlp" / "imdb" / "plain_text"
    rows = [
        {"text": f"test {i}: {'lovely' if i % 2 else 'dreadful'} from start to end", "label": i % 2} for i in range(4)
    ]
    rows += [{"text": f"another {i}", "label": i % 2} for i in range(20)]
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    splits = load_splits(IMDB, mirrored(config, made_up_mirror), "full")
    assert not set(splits.train.texts) & set(splits.test.texts)
    assert "4 train texts that stand in the test split were dropped" in splits.notes


def test_the_real_reviews_overlap_as_the_fact_sheet_says(config, real_mirror):
    splits = load_splits(IMDB, mirrored(config, real_mirror), "full")
    assert len(splits.test) == 25_000 and "123 train texts that stand in the test split were dropped" in splits.notes
    assert sum(splits.test.labels) == 12_500


def test_the_rest_of_train_is_kept_without_labels(config, made_up_mirror):
    small, whole = load_splits(IMDB, config, "smoke"), load_splits(IMDB, config, "full")
    assert len(small.train) < len(whole.train) and not whole.unlabelled
    assert sorted((*small.train.texts, *small.unlabelled)) == sorted(whole.train.texts)


def test_training_on_the_bundled_sample_tests_on_the_tasks_own_rows(config, made_up_mirror):
    splits = load_splits(IMDB, mirrored(config, made_up_mirror), "full", train_on_bundled=True)
    assert splits.source.kind == "mirror" and len(splits.test) == 20 and len(splits.train) >= 500
    assert "trained on the bundled sample" in splits.notes
