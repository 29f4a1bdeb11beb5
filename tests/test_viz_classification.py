"""The figures of lab 06: what they count, what their titles say, and that a slider need not wait."""

import math
import time

import numpy as np
import pytest

from pangu_lab.tasks.metrics import Metric, wilson_interval
from pangu_lab.viz import png
from pangu_lab.viz.classification import (
    Explanation,
    baselines_figure,
    capacity_figure,
    confusion_figure,
    curve_figure,
    gap_figure,
    leave_one_out,
    rate_text,
    review_box,
    scores_at,
    search_figure,
    threshold_explorer,
    threshold_figure,
    training_figure,
    words_figure,
    words_html,
)

LABELS = ("negative", "positive")
TESTED = "100 test reviews, bundled sample"
GOLD = np.random.default_rng(0).integers(0, 2, 200)
POSITIVE = np.clip(0.5 * GOLD + np.random.default_rng(1).normal(0.25, 0.2, 200), 0.001, 0.999)
LOG = [{"step": i + 1, "loss": 0.7 * 0.97**i, "epoch": (i + 1) / 30} for i in range(90)]
PASSES = [{"step": 30 * e, "epoch": float(e), "validation_accuracy": v} for e, v in ((1, 0.7), (2, 0.9), (3, 0.8))]
EXPLAINED = Explanation(("I", "liked", "the", "<trailer>."), (0.0, 1.5, -0.2, 0.4), "positive", 0.98, cut=2)


def metric(right, total=100):
    return Metric(right / total, *wilson_interval(right, total), "Wilson")


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def test_scores_at_a_threshold_are_those_of_scikit_learn():
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    for threshold in (0.1, 0.5, 0.8):
        scores, predicted = scores_at(GOLD, POSITIVE, threshold), threshold <= POSITIVE
        expected = precision_recall_fscore_support(GOLD, predicted, average="binary", zero_division=0)[:3]
        assert [scores[name] for name in ("precision", "recall", "F1")] == pytest.approx(expected)
        counts = [scores[name] for name in ("passed", "false alarms", "missed", "hits")]
        assert counts == confusion_matrix(GOLD, predicted).ravel().tolist()


def test_a_threshold_that_nothing_reaches_scores_zero():
    scores = scores_at(GOLD, POSITIVE, 2.0)
    assert scores["precision"] == scores["recall"] == scores["F1"] == 0


def test_many_thresholds_give_what_one_by_one_gives():
    grid = np.linspace(0, 1, 11)
    together = scores_at(GOLD, POSITIVE, grid)
    for i, threshold in enumerate(grid):
        assert together["F1"][i] == scores_at(GOLD, POSITIVE, threshold)["F1"]


def test_titles_state_what_the_data_say():
    scores = {"majority": metric(50), "linear SVM": metric(84), "encoder": metric(86)}
    search = {1e-5: [0.55, 0.6], 1e-4: [0.8, 0.7], 1e-3: [0.5, math.nan]}
    table = np.array([[40, 10], [4, 46]])
    found = {
        title(baselines_figure({"majority": metric(50), "linear SVM": metric(84)}, TESTED)): "SVM is right on 84%",
        title(
            baselines_figure(scores, TESTED, "encoder")
        ): "comes within 2.0 points of the encoder; the intervals overlap",
        title(baselines_figure(scores | {"encoder": metric(80)}, TESTED, "encoder")): "SVM beats the encoder by 4.0",
        title(baselines_figure(scores | {"encoder": metric(99)}, TESTED, "encoder")): "intervals do not overlap",
        title(training_figure([*LOG, *PASSES], 80, "here")): "best after epoch 2 of 3",
        title(training_figure([*LOG[:5], *PASSES], 80, "here")): "close to guessing",
        title(
            confusion_figure({"SVM": table}, LABELS, TESTED)
        ): "SVM takes 10 of 50 negative reviews for positive, 4 of 50",
        title(
            search_figure(search, 1e-4, TESTED)
        ): "1e-4 is the best of 3 learning rates: accuracy 0.75, mean of 2 seeds",
        title(curve_figure({50: metric(60), 500: metric(90)}, 0.8, "it", TESTED)): "With 500 training reviews",
        title(curve_figure({50: metric(60), 500: metric(70)}, 0.8, "it", TESTED)): "stands at 0.700, it at 0.800",
        title(gap_figure({"a": (1.0, 0.8), "b": (0.9, 0.85)}, ("claim", 0.952, 0.945), "here")): "is 5.0 points (b)",
        title(
            capacity_figure({10: (0.6, 0.6), 99: (0.96, 0.8)}, (0.952, 0.945), "here")
        ): "its test is 16.0 points lower",
        title(capacity_figure({10: (0.6, 0.6)}, (0.952, 0.945), "here")): "0.0 points between train and test",
        title(words_figure([(EXPLAINED, "negative")])): "“liked”",
    }
    for told, expected in found.items():
        assert expected in told


def test_figures_are_small_enough_for_a_notebook():
    long = Explanation(("word",) * 110, tuple(np.linspace(-1, 1, 110)), "positive", 0.99, 40)
    assert len(png(words_figure([(long, "negative")] * 3))) < 60_000
    assert len(png(threshold_figure(GOLD, POSITIVE, 0.5, LABELS))) < 60_000


def test_a_figure_of_one_row_and_of_a_perfect_model_can_be_drawn():
    perfect = np.array([[50, 0], [0, 50]])
    assert "0 of 50" in title(confusion_figure({"encoder": perfect}, LABELS, TESTED))
    threshold_figure(np.array([1]), np.array([0.9]), 0.5, LABELS)
    training_figure([{"loss": 0.7, "step": 1}, {"epoch": 1.0, "validation_accuracy": 0.5}], 4, "here")
    search_figure({1e-4: [0.5]}, 1e-4, TESTED)


def test_learning_rates_are_written_as_people_write_them():
    assert [rate_text(rate) for rate in (1e-4, 2e-5, 0.0005, 1.5e-3)] == ["1e-4", "2e-5", "5e-4", "1.5e-3"]


def test_words_become_html_that_a_text_cannot_break():
    shown = words_html(EXPLAINED)
    assert "&lt;trailer&gt;" in shown and "<trailer>" not in shown
    assert "[…]" in shown and "+1.50" in shown


def test_the_strongest_word_is_one_with_letters():
    assert EXPLAINED.strongest == "liked"
    assert Explanation(("!", "Dull,"), (2.0, 1.0), "negative", 0.9).strongest == "dull"


@pytest.fixture(scope="module")
def classifier(tiny_encoder):
    from pangu_lab import hub
    from pangu_lab.data.text_tasks import TASKS
    from pangu_lab.tasks.classification import new_classifier

    return new_classifier(hub.Source("tiny", "cache", tiny_encoder, ""), TASKS["imdb"], 32, seed=0)


def test_leaving_a_word_out_changes_what_the_model_says_without_it(classifier):
    from pangu_lab.tasks.classification import predict

    text = "Not a wonderful film, and I don't care."
    explained = leave_one_out(classifier, text)
    assert explained.words == ("Not", "a", "wonderful", "film,", "and", "I", "don't", "care.")
    label = classifier.labels.index(explained.label)
    with_it, without = predict(classifier, [text, "Not a film, and I don't care."])[:, label].astype(float)
    assert explained.probability == pytest.approx(with_it, abs=1e-5)
    odds = [math.log(p / (1 - p)) for p in (with_it, without)]
    assert explained.change[2] == pytest.approx(odds[0] - odds[1], abs=1e-4)
    assert explained.cut is None


def test_of_a_long_text_head_and_tail_are_explained(classifier):
    from pangu_lab.tasks.classification import predict

    text = " ".join(f"word{i}" for i in range(100))
    explained = leave_one_out(classifier, text)
    assert explained.words[0] == "word0" and explained.words[-1].endswith("99")
    assert explained.cut is not None and explained.probability == pytest.approx(
        predict(classifier, [text]).max(), abs=1e-5
    )


def test_the_threshold_explorer_redraws_while_a_slider_moves():
    box = threshold_explorer(GOLD, POSITIVE, LABELS)
    slider, image = box.children
    before = image.value
    slider.value = 0.9
    assert image.value != before
    times = []
    for value in np.linspace(0.1, 0.8, 12):
        began = time.process_time()
        slider.value = float(value)
        times.append(time.process_time() - began)
    # A slider waits at most 0.1 s on an idle machine; this one may be busy, and its clock coarse.
    assert min(times) < 0.2


def test_the_review_box_answers_with_label_and_words(classifier):
    box = review_box(classifier, "A fine film.")
    field, button, answer = box.children
    assert "probability" in answer.value and "film." in answer.value
    field.value = "  "
    button.click()
    assert "at least one word" in answer.value


def test_the_reference_truncation_is_what_training_does(classifier):
    from pangu_lab.exercises.classification import head_and_tail
    from pangu_lab.tasks.classification import encode

    tokenizer = classifier.tokenizer
    for words in (1, 5, 30, 31, 200):
        text = " ".join(["good"] * words)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for length in (8, 32, 100, 512):
            cut = head_and_tail(ids, length, tokenizer.cls_token_id, tokenizer.sep_token_id)
            assert cut == encode([text], tokenizer, length)[0]
