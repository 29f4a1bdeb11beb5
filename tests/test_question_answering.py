"""Windows, offsets, spans and answers of extractive question answering, for any Unicode text."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig, BertForQuestionAnswering

from pangu_lab import hub
from pangu_lab.data.batches import collate
from pangu_lab.tasks import question_answering, squad
from pangu_lab.tasks.question_answering import (
    Question,
    QuestionAnsweringError,
    Reader,
    ask,
    checked_questions,
    decode,
    evaluate,
    features,
    read_questions,
    span_loss,
    token_span,
    windows,
    write_predictions,
)

PIECES = [
    "anna",
    "Émile",
    "naïve",
    "東京",
    "🙂",
    "👩‍🚀",
    "e\u0301te\u0301",
    "\t",
    "\u00a0",
    "U.S.-born",
    "1999",
    "ﬁne",
    "Straße",
    "‏עברית",
    "—",
    "\u200b",
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), min_size=1, max_size=30).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(hub.bundled_weights())


@given(passage=texts, data=st.data())
@settings(max_examples=150, deadline=None)
def test_offsets_are_exact_whatever_the_text(tokenizer, passage, data):
    """Each token's characters, normalized as the tokenizer does, are the token; a span goes to tokens and back."""
    (window, *_) = windows([Question("0", "who ?", passage)], tokenizer, 384, 32)
    inside = [i for i, place in enumerate(window.offsets) if place and place[0] < place[1]]
    normalize = tokenizer.backend_tokenizer.normalizer.normalize_str
    for i in inside:
        token = tokenizer.convert_ids_to_tokens(window.input_ids[i])
        start, end = window.offsets[i]
        assert 0 <= start < end <= len(passage)
        if token != tokenizer.unk_token:
            # One character can be several tokens: a Hangul syllable falls into its letters.
            assert token.removeprefix("##") in normalize(passage[start:end])
    if inside:
        first = data.draw(st.sampled_from(inside))
        last = data.draw(st.sampled_from([i for i in inside if i >= first]))
        start, end = window.offsets[first][0], window.offsets[last][1]
        found = token_span(window, start, end)
        assert window.offsets[found[0]][0] <= start and window.offsets[found[1]][1] >= end
        logits = np.zeros((2, len(window.input_ids)))
        logits[0, first] = logits[1, last] = 9.0
        (options,) = decode([Question("0", "who ?", passage)], [window], [logits], max_answer_tokens=400)
        assert options[0].text == passage[start:end] == passage[options[0].start : options[0].end]


def long_question(words=400):
    passage = " ".join(f"word{i}" for i in range(words))
    start = passage.index("word250")
    return Question("q", "which word ?", passage, (("word250 word251", start),))


def test_windows_overlap_and_cover_the_passage(tokenizer):
    question = long_question()
    found = windows([question], tokenizer, 96, 24)
    assert len(found) > 5 and all(len(window.input_ids) <= 96 for window in found)
    places = [[place for place in window.offsets if place] for window in found]
    whole = tokenizer(question.passage, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert sorted({place for part in places for place in part}) == sorted(whole)
    for before, after in itertools.pairwise(places):
        assert before[-24:] == after[:24]


def test_only_windows_that_hold_the_whole_answer_are_labeled_with_it(tokenizer):
    question = long_question()
    found = windows([question], tokenizer, 96, 24)
    labels = [row["labels"] for row in features([question], found)]
    holding = [window for window, label in zip(found, labels, strict=True) if label != [0, 0]]
    assert 1 <= len(holding) < len(found)
    for window, (start, end) in zip(found, labels, strict=True):
        if (start, end) != (0, 0):
            text = question.passage[window.offsets[start][0] : window.offsets[end][1]]
            assert text == "word250 word251"


def test_a_passage_of_20000_words_is_read(tokenizer):
    question = long_question(20_000)
    found = windows([question], tokenizer, 384, 128)
    assert sum(label["labels"] != [0, 0] for label in features([question], found)) >= 1
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    reader = Reader(BertForQuestionAnswering(BertConfig(vocab_size=tokenizer.vocab_size, **sizes)), tokenizer, 384, 96)
    options = ask(reader, question.question, question.passage)
    assert len(options) == 5 and all(question.passage[o.start : o.end] == o.text != "" for o in options)


def test_a_long_question_leaves_room_for_the_passage(tokenizer):
    (window,) = windows([Question("0", "why " * 500, "because of it")], tokenizer, 96, 8)
    assert [place for place in window.offsets if place] == [(0, 7), (8, 10), (11, 13)]
    with pytest.raises(QuestionAnsweringError, match="raise max_length or lower the overlap"):
        windows([Question("0", "why ?", "because")], tokenizer, 32, 31)


def squad_row(passage, text, start, id="1"):
    return {"id": id, "question": "q ?", "context": passage, "answers": {"text": [text], "answer_start": [start]}}


def test_wrong_starts_are_found_again_and_lost_answers_are_dropped():
    rows = [
        squad_row("one two one three", "one", 9),  # points beside it; the second "one" is nearer
        squad_row("one two", "four", 0),
        squad_row("one two", "two", -5),
        squad_row("one two", "one", 0),
        {"id": "2", "question": "q ?", "context": "one two", "answers": {"text": [], "answer_start": []}},
    ]
    questions, notes = checked_questions(rows, "file")
    assert [question.answers for question in questions] == [(("one", 8),), (("two", 4),), (("one", 0),), ()]
    assert "2 answers did not stand where they were said to" in notes[0]
    assert "1 answers are nowhere in their passage" in notes[1] and "with 1 questions" in notes[1]


@pytest.mark.parametrize("row", [{"question": "q ?", "context": " "}, {"question": None, "context": "x"}])
def test_rows_that_are_no_questions_are_told(row):
    with pytest.raises(QuestionAnsweringError, match="file, row 0"):
        checked_questions([row], "file")


@pytest.mark.parametrize(
    "answers",
    [[{"text": "x", "answer_start": 0}], {"text": ["x"]}, {"text": ["x", "y"], "answer_start": [0]},
     {"text": [3], "answer_start": [0]}, {"text": ["x"], "answer_start": [None]}],
)  # fmt: skip
def test_answers_of_another_shape_are_told(answers):
    with pytest.raises(QuestionAnsweringError, match="file, row 0: answers must be"):
        checked_questions([{"question": "q ?", "context": "x", "answers": answers}], "file")
    with pytest.raises(QuestionAnsweringError, match="file, row 0: is no object"):
        checked_questions([[answers]], "file")


def hand_logits(length, start, end):
    logits = np.zeros((2, length))
    for place, value in start.items():
        logits[0, place] = value
    for place, value in end.items():
        logits[1, place] = value
    return logits


def test_an_end_before_its_start_is_no_answer(tokenizer):
    question = Question("0", "q ?", "alpha beta gamma")
    (window,) = windows([question], tokenizer, 64, 8)
    places = [i for i, place in enumerate(window.offsets) if place]
    logits = hand_logits(len(window.input_ids), {places[2]: 9, places[0]: 5}, {places[0]: 9, places[1]: 6})
    (options,) = decode([question], [window], [logits])
    assert options[0].text == "alpha" and options[0].score == 14  # not start 9 with the earlier end 9
    assert options[0].probability == max(option.probability for option in options)
    assert sum(option.probability for option in options) == pytest.approx(1)


def test_the_question_itself_is_never_the_answer(tokenizer):
    question = Question("0", "alpha ?", "beta gamma")
    (window,) = windows([question], tokenizer, 64, 8)
    (options,) = decode([question], [window], [hand_logits(len(window.input_ids), {1: 99}, {1: 99})])
    assert all(option.text in ("beta", "gamma", "beta gamma") for option in options)


def test_no_answer_wins_beyond_the_threshold_only(tokenizer):
    question = Question("0", "q ?", "beta gamma")
    (window,) = windows([question], tokenizer, 64, 8)
    first = next(i for i, place in enumerate(window.offsets) if place)
    logits = hand_logits(len(window.input_ids), {0: 6, first: 4}, {0: 6, first: 4})
    best = [decode([question], [window], [logits], no_answer=True, threshold=t)[0][0].text for t in (0, 5)]
    assert best == ["", "beta"] and decode([question], [window], [logits])[0][0].text == "beta"


def test_the_margin_of_no_answer_is_the_one_with_the_best_f1(tokenizer, monkeypatch):
    # Three questions without an answer, whose "" is 5, 6 and 7 ahead; two with one, whose "" is 1 and 2 ahead.
    margins = {"0": 5, "1": 6, "2": 7, "3": 1, "4": 2}
    questions = [Question(i, "q ?", "beta gamma", (("beta", 0),) if i in "34" else ()) for i in margins]

    def logits(model, found, *_):
        made = []
        for window in found:
            first = next(i for i, place in enumerate(window.offsets) if place)
            ahead = margins[questions[window.question].id] / 2
            made.append(hand_logits(len(window.input_ids), {0: 9 + ahead, first: 9}, {0: 9 + ahead, first: 9}))
        return made

    monkeypatch.setattr(question_answering, "span_logits", logits)
    reader = question_answering.Reader(None, tokenizer, 64, 8)
    assert 2 <= reader.fit_threshold(questions) < 5 and reader.no_answer
    right = [options[0].text for options in reader.answer(questions)]
    assert right == ["", "", "", "beta", "beta"]
    reader.fit_threshold(questions[:3])
    assert reader.threshold == 0  # every margin up to 5 is as good: the nearest to 0


def test_a_tiny_model_learns_to_find_the_number_and_answers(tokenizer, tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = BertForQuestionAnswering(config)
    names = ["anna", "paul", "maria", "tom"]
    questions = []
    for i in range(64):
        passage = f"{names[i % 4]} has {i % 9 + 1} {'big ' * (i % 3)}boxes"
        number = str(i % 9 + 1)
        questions.append(Question(str(i), "how many ?", passage, ((number, passage.index(number)),)))
    found = windows(questions, tokenizer, 64, 8)
    batch = collate(features(questions, found), tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss, count = span_loss(model, batch)
        (loss / count).backward()
        optimizer.step()
    reader = Reader(model, tokenizer, 64, 8)
    metrics, predictions = evaluate(reader, questions)
    assert metrics["exact_match"].value == metrics["f1"].value == 1.0
    best = ask(reader, "how many ?", "maria has 7 boxes")[0]
    assert best.text == "7" and "maria has 7 boxes"[best.start : best.end] == "7"
    file = write_predictions(predictions, tmp_path / "predictions.json")
    assert json.loads(file.read_text()) == predictions
    with pytest.raises(QuestionAnsweringError, match="the passage has no words"):
        ask(reader, "how many ?", " ")


def test_padding_never_changes_the_loss(tokenizer):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = BertForQuestionAnswering(config).eval()
    questions = [Question("0", "q ?", "one two", (("two", 4),)), Question("1", "q ?", "one two " * 9, (("one", 0),))]
    rows = features(questions, windows(questions, tokenizer, 64, 8))
    together, count = span_loss(model, collate(rows, tokenizer.pad_token_id))
    alone = sum(span_loss(model, collate([row], tokenizer.pad_token_id))[0] for row in rows)
    assert int(count) == 2 and torch.allclose(together, alone, atol=1e-4)


def test_files_of_questions(tmp_path):
    article = {
        "title": "t",
        "paragraphs": [
            {
                "context": "one two",
                "qas": [
                    {"id": "a", "question": "q ?", "answers": [{"text": "two", "answer_start": 4}]},
                    {"id": "b", "question": "q ?", "answers": [], "is_impossible": True},
                ],
            }
        ],
    }
    (tmp_path / "squad.json").write_text(json.dumps({"version": "v2.0", "data": [article]}))
    questions, notes = read_questions(tmp_path / "squad.json")
    assert [(q.id, q.answers) for q in questions] == [("a", (("two", 4),)), ("b", ())] and not notes
    (tmp_path / "own.jsonl").write_text(json.dumps(squad_row("one two", "two", 4)) + "\n")
    assert read_questions(tmp_path / "own.jsonl")[0][0].answers == (("two", 4),)
    for name, content in (("bad.json", '{"data": 3}'), ("bad.jsonl", "no json"), ("list.json", "[]")):
        (tmp_path / name).write_text(content)
        with pytest.raises(QuestionAnsweringError, match=r"give SQuAD's \.json"):
            read_questions(tmp_path / name)
    with pytest.raises(QuestionAnsweringError, match="no such file"):
        read_questions(tmp_path / "nowhere.json")


def test_questions_are_split_by_article_and_a_reader_is_fine_tuned_saved_and_found_again(
    config, tiny_encoder, monkeypatch
):
    from pangu_lab.tasks import runs

    config = config.model_copy(update={"model": str(tiny_encoder)})
    splits = squad.load_questions(config, "smoke")
    assert splits.source.kind == "bundled" and len(splits.train) == 16 and len(splits.test) == 16
    assert not {q.passage for q in splits.train} & {q.passage for q in splits.test}
    first = squad.fine_tune(config, "smoke", splits=splits, quiet=True)
    assert set(first.metrics) == {"exact_match", "f1"} and set(first.predictions) == {q.id for q in splits.test}
    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("trained again"))
    again = squad.fine_tune(config, "smoke", splits=splits, quiet=True)
    assert again.predictions == first.predictions and again.record == first.record
    assert first.record.task == "squad" and first.record.settings["learning_rate"] == config.train.learning_rate


def test_the_mirrors_articles_are_on_one_side_only(config, real_mirror):
    config = config.model_copy(update={"paths": config.paths.model_copy(update={"mirror": real_mirror})})
    splits = squad.load_questions(config, "full")
    titles = [{question.title for question in part} for part in (splits.train, splits.validation, splits.test)]
    assert not titles[0] & titles[1] and not (titles[0] | titles[1]) & titles[2]
    assert any("hides its test set" in note for note in splits.notes)
    assert any(note.startswith("trained on a part of the development set, split by article") for note in splits.notes)
    assert any("1,509 of the development set's 10,570 questions" in note for note in splits.notes)
