"""The figures of lab 08: what they count, what their titles say; and the exercises' references beside the package."""

import math

import numpy as np
import pytest

from pangu_lab.tasks.metrics import Metric
from pangu_lab.tasks.question_answering import Answer
from pangu_lab.viz import png
from pangu_lab.viz.squad import (
    SpanScores,
    pairs_explorer,
    pairs_figure,
    passage_box,
    question_kind,
    scores_figure,
    scores_html,
    span_scores,
    windows_figure,
    wrong_answers_figure,
    wrong_answers_metric,
)

PASSAGE = "Anna ran <home>. " + "Then it rained for $5 and $6, and nobody saw her again. " * 20
PUBLIC = {"small": (70.0, 79.0), "large": (90.0, 95.0)}


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def scores(passage=PASSAGE):
    places, at = [], 0
    for word in passage.split(" "):
        places += [(at, at + len(word))] if word else []
        at += len(word) + 1
    start, end = np.full((2, len(places)), 0.1 / (len(places) - 1))
    start[0] = end[1] = 0.9
    return SpanScores(passage, tuple(places), start, end, (Answer("Anna ran", 0, 8, 9.0, 0.8),))


def test_questions_are_sorted_by_what_they_ask_for():
    kinds = {
        "Who ran?": "who",
        "In which year did it open?": "when",
        "How many ran?": "how many",
        "For how long did it last?": "how many",
        "How did she run?": "how",
        "Why?": "why",
        "To which town did she run?": "where",
        "What is it that whoever wants?": "what, which",
        "Name the river.": "other",
    }
    assert {question: question_kind(question) for question in kinds} == kinds


def test_wrong_answers_earn_what_two_averages_say():
    exact, f1 = [1, 0, 0, 1, 0, 0], [1, 0.5, 0, 1, 0.25, 0.25]
    metric = wrong_answers_metric(exact, f1, list("aabbcc"))
    assert metric.value == pytest.approx((np.mean(f1) - np.mean(exact)) / (1 - np.mean(exact))) == pytest.approx(0.25)
    assert metric.low < metric.value < metric.high
    assert math.isnan(wrong_answers_metric([1, 1], [1, 1], ["a", "b"]).value)


def test_titles_state_what_the_data_say():
    start, end = np.zeros(6), np.zeros(6)
    start[4], end[1], end[5] = 3.0, 4.0, 2.0
    tokens = ["a", "b", "c", "d", "run", "##ner"]
    own = ("yours", Metric(0.1, 0.05, 0.15, ""), [0, 0, 0.3])
    figures = {
        "the best valid pair is “runner”": pairs_figure(start, end, tokens, 3),
        "Best start and best end fit together: “b c”": pairs_figure(np.eye(6)[1], np.eye(6)[2], tokens, 2),
        "5 tokens apart, 2 are allowed": pairs_figure(np.eye(6)[0], np.eye(6)[4], tokens, 2),
        "answer: 0 of 2 with gaps; 1 of 2 with overlap": windows_figure(
            20, {"gaps": [(0, 10), (10, 20)], "overlap": [(0, 12), (10, 20)]}, (9, 12)
        ),
        "earn 30 to 50 % in published models, 5.0 % in the claim; in your run 10.0 %": wrong_answers_figure(
            PUBLIC, ("claim", 80.0, 81.0), own, "3 questions"
        ),
        "The model says “Anna ran”, with 0.80": scores_figure(scores(), "Who?", "Anna"),
    }
    for told, figure in figures.items():
        assert told in title(figure)


def test_figures_are_small_and_can_be_drawn_of_anything():
    assert len(png(scores_figure(scores(), "What cost $5 and $6?"))) < 60_000
    assert len(png(pairs_figure(*np.random.default_rng(0).normal(size=(2, 20)), ["token"] * 20, 8))) < 60_000
    png(scores_figure(scores("東京 🙂\twith_no_spaces" + "x" * 300), "?"))
    nothing = wrong_answers_metric([1.0], [1.0], ["a"])
    assert "your run" not in title(wrong_answers_figure(PUBLIC, ("claim", 80.0, 81.0), ("yours", nothing, []), "x"))


def test_html_keeps_the_passage_and_breaks_at_nothing():
    shown = scores_html(scores())
    assert "&lt;home&gt;" in shown and "<home>" not in shown and "start 0.900" in shown


@pytest.fixture(scope="module")
def reader(tiny_encoder):
    from pangu_lab import hub
    from pangu_lab.tasks.squad import new_reader

    return new_reader(hub.Source("tiny", "cache", tiny_encoder, ""), 48, seed=0)


def test_scores_cover_every_token_of_a_long_passage_once(reader):
    found = span_scores(reader, "Who ran?", PASSAGE)
    whole = reader.tokenizer(PASSAGE, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert list(found.offsets) == whole and found.token(0) == "Anna"
    assert found.start.sum() == pytest.approx(1) and found.end.sum() == pytest.approx(1)
    assert found.answers[0].text == PASSAGE[found.answers[0].start : found.answers[0].end]


def test_widgets_redraw_and_answer(reader):
    slider, image = pairs_explorer(np.eye(6)[0], np.eye(6)[4], list("abcdef"), 2).children
    before = image.value
    slider.value = 6
    assert image.value != before
    _, asked, button, answer = passage_box(reader, "Who ran?", "Anna ran.").children
    assert "probability" in answer.value and "Anna" in answer.value
    asked.value = " "
    button.click()
    assert "at least one word" in answer.value


def test_the_references_are_what_the_package_does(reader):
    from pangu_lab.exercises import squad as lab
    from pangu_lab.tasks import question_answering as package
    from pangu_lab.tasks import squad_metrics

    tokenizer, question = reader.tokenizer, package.Question("0", "Who ran?", PASSAGE)
    asked, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Who ran?", PASSAGE))
    found = package.windows([question], tokenizer, 48, 12)
    cut = lab.windows(asked, ids, 48, 12, tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert cut == [window.input_ids for window in found] and len(cut) > 4
    generator = np.random.default_rng(0)
    for window in found:
        inside = np.array([place is not None for place in window.offsets])
        offsets = [place or (0, 0) for place in window.offsets]
        for _ in range(20):
            first, last = sorted(generator.choice(len(PASSAGE), size=2))
            last = min(last, first + 40) + 1
            cut_off = len(PASSAGE[first:last]) - len(PASSAGE[first:last].lstrip())
            span = (first + cut_off, first + len(PASSAGE[first:last].rstrip()))  # answers begin and end with words
            if span[0] >= span[1]:
                continue
            sequence = [1 if here else None for here in inside]
            assert lab.token_span(offsets, sequence, *span) == package.token_span(window, *span)
        logits = generator.normal(size=(2, len(window.input_ids)))
        first, last, score = lab.best_span(*logits, inside, 5)
        ((best, *_),) = package.decode([question], [window], [logits], max_answer_tokens=5)
        assert (offsets[first][0], offsets[last][1]) == (best.start, best.end) and score == pytest.approx(best.score)
    words = ["the", "a", "cat", "black.", "U.S.", "émile", "sat-on", "it's", "The"]
    for _ in range(200):
        said, *golds = (" ".join(generator.choice(words, size=generator.integers(0, 5))) for _ in range(3))
        expected = squad_metrics.exact_match(said, golds), squad_metrics.f1(said, golds)
        assert lab.exact_and_f1(said, golds) == pytest.approx(expected)
        assert lab.normalize_answer(said) == squad_metrics.normalize_answer(said)
