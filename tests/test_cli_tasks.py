"""`train`, `evaluate` and `predict` for tweets and questions, from one command to the next."""

import json

import pytest
from typer.testing import CliRunner

from pangu_lab.cli import app
from pangu_lab.errors import PanguLabError


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tiny_encoder):
    """A configuration of tiny sizes, and a finished run of tweets and of squad."""
    folder = tmp_path_factory.mktemp("workspace")
    paths = {name: str(folder / name) for name in ("data", "models", "logs", "runs")}
    settings = {"mode": "smoke", "model": str(tiny_encoder), "paths": paths, "train": {"precision": "fp32"}}
    (folder / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    for task in ("tweets", "squad"):
        trained = run("train", task, "--bundled", "--run", f"my-{task}", "--config", folder / "config.yaml")
        assert trained.exit_code == 0, trained.output
    return folder


def test_a_question_is_answered_with_its_probability_in_its_passage(workspace):
    asked = ("predict", "squad", "--question", "Who ran?", "--config", workspace / "config.yaml")
    passage = "After school Anna ran home 🙂."
    told = run(*asked, "--passage", passage)
    assert told.exit_code == 0 and passage in told.output.replace("\n", "")
    answers = json.loads(run(*asked, "--passage", passage, "--json").output)
    assert all(passage[a["start"] : a["end"]] == a["text"] and 0 <= a["probability"] <= 1 for a in answers)
    (workspace / "passage.txt").write_text("word " * 3000 + "end")
    assert run(*asked, "--passage", f"@{workspace / 'passage.txt'}").exit_code == 0


def test_questions_are_scored_and_their_answers_written(workspace):
    file, config = workspace / "predictions.json", ("--config", workspace / "config.yaml")
    scored = run("evaluate", "squad", "--bundled", "--predictions", file, "--json", *config)
    assert set(json.loads(scored.output)["metrics"]) == {"exact_match", "f1"}
    assert all(isinstance(text, str) for text in json.loads(file.read_text()).values())
    rows = [
        {"id": "1", "question": "Who?", "context": "Anna ran.", "answers": {"text": ["Anna"], "answer_start": [0]}},
        {"id": "2", "question": "When?", "context": "Anna ran.", "answers": {"text": [], "answer_start": []}},
    ]
    (workspace / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = run("evaluate", "squad", "--file", workspace / "own.jsonl", "--predictions", file, *config)
    assert own.exit_code == 0 and set(json.loads(file.read_text())) == {"1", "2"}


def test_a_tweet_gets_one_of_three_labels(workspace):
    labels = {"negative", "neutral", "positive"}
    config = ("--config", workspace / "config.yaml")
    answers = json.loads(run("predict", "tweets", "so happy", "late again", "--json", *config).output)
    assert len(answers) == 2 and {answer["label"] for answer in answers} <= labels
    scored = json.loads(run("evaluate", "tweets", "--bundled", "--json", *config).output)
    assert {"macro_precision", "macro_recall", "macro_f1", "accuracy"} <= set(scored["metrics"])


def test_questions_of_ones_own_without_answers_train_a_reader_that_may_say_nothing(workspace):
    rows = []
    for number in range(24):
        passage = f"Anna counted {number} boats ."
        known = {"text": [str(number)], "answer_start": [passage.index(str(number))]}
        nothing = {"text": [], "answer_start": []}
        rows.append({"id": f"a{number}", "question": "How many boats ?", "context": passage, "answers": known})
        rows.append({"id": f"b{number}", "question": "Who sang ?", "context": passage, "answers": nothing})
    (workspace / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = ("--config", workspace / "config.yaml")
    asked = ("train", "squad", "--file", workspace / "train.jsonl", "--run", "own", "--all-splits")
    trained = run(*asked, *config)
    assert trained.exit_code == 0, trained.output
    assert "2 of 24 train articles" in trained.output and "squad, validation" in trained.output
    saved = json.loads((workspace / "runs" / "own" / "model" / "config.json").read_text())
    assert saved["pangu_lab_no_answer"] is True and isinstance(saved["pangu_lab_threshold"], float)
    records = [json.loads(file.read_text()) for file in sorted((workspace / "runs" / "own").glob("record*.json"))]
    assert {record["split"] for record in records} == {"test", "train", "validation"}
    assert {record["data_source"] for record in records} == {"file"}
    answers = json.loads(
        run(
            "predict",
            "squad",
            "--question",
            "Who sang ?",
            "--passage",
            "Anna ran home .",
            "--model",
            workspace / "runs" / "own" / "model",
            "--json",
            *config,
        ).output
    )
    assert "" in [answer["text"] for answer in answers]
    again = run(*asked, *config)
    assert again.exit_code == 0 and "squad, validation" in again.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("predict", "squad", "--passage", "Anna ran."), "squad needs a question and a passage"),
        (("predict", "squad", "--question", " ", "--passage", "Anna ran."), "the question has no words"),
        (("predict", "squad", "--question", "Who?", "--passage", "@/nowhere"), "/nowhere: cannot be read"),
        (("predict", "tweets", "x", "--question", "Who?"), "--question and --passage are for squad"),
        (("predict", "squad", "x", "--question", "Who?", "--passage", "Anna."), "squad takes no text or --file"),
        (("predict", "squad", "--question", "Who?", "--passage", "Anna.", "--model", "tweets"), "train squad` saved"),
        (("predict", "tweets", "x", "--model", "squad"), "holds a BertForQuestionAnswering"),
        (("evaluate", "imdb", "--bundled", "--model", "tweets"), "the model knows negative, neutral, positive"),
        (("predict", "imdb", "x"), "there is no trained model of imdb yet"),
        (("train", "tweets", "--file", "x.json"), "--file is squad's"),
        (("train", "squad", "--file", "x.json", "--bundled"), "--file is squad's"),
        (("train", "squad", "--file", "nowhere.json"), "nowhere.json: there is no such file"),
    ],
)
def test_a_mistake_is_told(workspace, arguments, told):
    models = {task: str(workspace / "runs" / f"my-{task}" / "model") for task in ("tweets", "squad")}
    given = [*arguments[:2], *(models.get(argument, argument) for argument in arguments[2:])]
    done = run(*given, "--config", workspace / "config.yaml")
    assert isinstance(done.exception, PanguLabError) and told in str(done.exception)
