"""Exact match and F1: hand-made cases, an independent library, intervals."""

import random

import pytest

from pangu_lab.tasks.metrics import MetricsError
from pangu_lab.tasks.squad_metrics import exact_match, f1, normalize_answer, squad_metrics

CASES = [
    ("The cat", ["cat"], 1, 1),
    ("a  Cat.", ["the cat!"], 1, 1),
    ("black cat", ["cat"], 0, 2 / 3),
    ("cat", ["black cat", "a cat"], 1, 1),
    ("dog", ["cat"], 0, 0),
    ("in 1999", ["1999", "in the year 1999"], 0, 0.8),
    ("U.S.", ["US"], 1, 1),
    ("to be or not to be", ["to be"], 0, 0.5),
    ("", [], 1, 1),
    ("", ["cat"], 0, 0),
    ("cat", [], 0, 0),
    ("the", ["a"], 1, 1),  # nothing is left of either
    ("café", ["cafe"], 0, 0),  # accents count
    ("东京", ["东京"], 1, 1),
    ("8–16", ["8-16"], 0, 0),  # only ASCII punctuation is removed
    ("other", ["o ther"], 0, 0),
    ("theater", ["ater"], 0, 0),  # articles are words, not letters
]


@pytest.mark.parametrize(("prediction", "golds", "em", "score"), CASES)
def test_hand_made_cases(prediction, golds, em, score):
    assert exact_match(prediction, golds) == em and f1(prediction, golds) == pytest.approx(score)


def test_normalizing_twice_is_normalizing_once():
    for prediction, *_ in CASES:
        assert normalize_answer(normalize_answer(prediction)) == normalize_answer(prediction)


def random_cases(count):
    generator = random.Random(7)
    words = [
        "the",
        "a",
        "an",
        "cat",
        "black.",
        "dog,",
        "on",
        "mat!",
        "U.S.",
        "1999",
        "émile",
        "东京",
        "sat-on",
        "it's",
        "The",
    ]

    def text():
        return " ".join(generator.choices(words, k=generator.randint(1, 6)))

    return {str(i): (text(), [text() for _ in range(generator.randint(1, 4))]) for i in range(count)}


def test_an_independent_library_finds_the_same():
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    cases = random_cases(200)
    for id, (prediction, golds) in cases.items():
        theirs = squad(
            [{"prediction_text": prediction, "id": id}],
            [{"answers": {"text": golds, "answer_start": [0] * len(golds)}, "id": id}],
        )
        assert 100 * exact_match(prediction, golds) == pytest.approx(float(theirs["exact_match"]))
        assert 100 * f1(prediction, golds) == pytest.approx(float(theirs["f1"]), abs=1e-3)
    assert len({exact_match(*case) for case in cases.values()}) == 2, "the cases are all alike"


def test_intervals_are_wider_when_questions_share_passages():
    cases = random_cases(200)
    predictions = {id: prediction if int(id) % 40 < 20 else golds[0] for id, (prediction, golds) in cases.items()}
    golds = {id: golds for id, (_, golds) in cases.items()}
    alone = squad_metrics(predictions, golds)
    grouped = squad_metrics(predictions, golds, {id: str(int(id) // 20) for id in golds})
    assert (
        alone["f1"].value
        == grouped["f1"].value
        == pytest.approx(sum(f1(predictions[i], golds[i]) for i in golds) / 200)
    )
    assert grouped["f1"].high - grouped["f1"].low > 1.3 * (alone["f1"].high - alone["f1"].low)
    assert alone["exact_match"].method == "Wilson" and "passages" in grouped["exact_match"].method
    one = squad_metrics(predictions, golds, dict.fromkeys(golds, "the only passage"))
    assert one == alone  # no spread over passages is no certainty


def test_a_question_without_a_prediction_is_told():
    with pytest.raises(MetricsError, match="question b has no prediction"):
        squad_metrics({"a": "x"}, {"a": ["x"], "b": ["y"]})
    with pytest.raises(MetricsError, match="no questions"):
        squad_metrics({}, {})
