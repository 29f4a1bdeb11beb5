"""Recipes: read, refused with a sentence, done step by step, stopped and gone on with, saved and loaded."""

import json

import numpy as np
import pytest
import torch

from pangu_lab.compression import recipes
from pangu_lab.compression.compare import CompareError, compare, peak_of, record, table
from pangu_lab.compression.engine import available
from pangu_lab.compression.int8_encoder import Int8Encoder
from pangu_lab.compression.measure import size_on_disk
from pangu_lab.compression.recipes import RecipeError, compress, read_recipe
from pangu_lab.compression.tasks import (
    QuestionAnswering,
    TaskError,
    TextClassification,
    load_compressed,
    save_compressed,
)
from pangu_lab.data.text_tasks import TASKS, Rows, Splits
from pangu_lab.hub import BUNDLED_DATA, Source
from pangu_lab.tasks.classification import new_classifier, predict
from pangu_lab.tasks.question_answering import Question, span_logits, windows
from pangu_lab.tasks.squad import QuestionSplits, new_reader
from pangu_lab.viz.compression import tradeoff_figure

TASK = TASKS["imdb"]
CITIES = ("Rome", "Paris", "Oslo", "Cairo", "Lima")
STEPS = [
    {"distill": {"layers": [1], "epochs": 2, "batch_size": 8}},
    {"prune": {"neurons": 0.5, "heads": 0.5, "importance_rows": 16, "batch_size": 8}},
    {"trim_vocabulary": {}},
    {"quantize": {"activations": "dynamic"}},
]


@pytest.fixture
def task():
    texts = [f"number {i} was {'wonderful' if i % 2 else 'terrible'}" for i in range(60)]
    rows = Rows(tuple(texts), tuple(i % 2 for i in range(60)))
    source = Source("made/up", "mirror", BUNDLED_DATA, "")
    parts = rows.take(range(40)), rows.take(range(40, 50)), rows.take(range(50, 60))
    return TextClassification(Splits(TASK, *parts, source, (), ("nobody says what this was", "a wonderful number")))


@pytest.fixture
def teacher(tiny_encoder):
    return new_classifier(Source("tiny", "cache", tiny_encoder, ""), TASK, 16, seed=0)


def test_each_step_makes_the_model_smaller_and_the_last_one_loads(teacher, task, tmp_path):
    recipe = read_recipe({"name": "all", "steps": STEPS})
    before = {name: p.clone() for name, p in teacher.model.named_parameters()}
    done = list(compress(teacher, recipe, task, tmp_path, quiet=True))
    assert [name for name, _ in done] == ["distill", "prune", "trim_vocabulary", "quantize"]
    models = [teacher.model, *(classifier.model for _, classifier in done)]
    assert [m.config.num_hidden_layers for m in models] == [2, 1, 1, 1, 1]
    assert models[2].config.intermediate_size * 2 == models[1].config.intermediate_size
    assert models[3].config.vocab_size < models[2].config.vocab_size
    sizes = [size_on_disk(tmp_path / f"{i}-{name}" / "model") for i, (name, _) in enumerate(done, start=1)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.5 * sizes[-2]
    assert all((before[name] == p).all() for name, p in teacher.model.named_parameters()), "the teacher changed"
    loaded = load_compressed(tmp_path / "4-quantize" / "model")
    texts = list(task.splits.test.texts)
    assert loaded.labels == teacher.labels
    assert np.allclose(predict(loaded, texts), predict(done[-1][1], texts), atol=1e-6)


def test_a_stopped_recipe_goes_on_where_it_was(teacher, task, tmp_path, monkeypatch):
    recipe = read_recipe({"steps": STEPS})
    whole = [classifier for _, classifier in compress(teacher, recipe, task, tmp_path / "whole", quiet=True)]
    run = compress(teacher, recipe, task, tmp_path / "stopped", quiet=True)
    next(run)
    next(run)
    monkeypatch.setattr(recipes, "distill", lambda *_, **__: pytest.fail("a finished step was done again"))
    again = [classifier for _, classifier in compress(teacher, recipe, task, tmp_path / "stopped", quiet=True)]
    texts = list(task.splits.test.texts)
    assert np.allclose(predict(again[-1], texts), predict(whole[-1], texts), atol=1e-4)


def test_a_changed_step_is_done_again(teacher, task, tmp_path):
    first = read_recipe({"steps": [{"quantize": {"activations": "dynamic"}}]})
    second = read_recipe({"steps": [{"quantize": {"activations": "float"}}]})
    for recipe, expected in ((first, "dynamic"), (second, "float"), (second, "float")):
        ((_, classifier),) = compress(teacher, recipe, task, tmp_path, quiet=True)
        assert classifier.model.quantization_recipe.activations == expected


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"steps": []}, "must be a mapping with a list 'steps'"),
        ([1], "must be a mapping with a list 'steps'"),
        ({"steps": [{"melt": {}}]}, "step 1: must be one of distill, prune, trim_vocabulary, quantize"),
        ({"steps": [{"distill": {"layers": [0]}, "prune": {}}]}, "step 1: must be one of"),
        ({"steps": [{"prune": {}}]}, r"step 1 \(prune\): .*takes nothing away"),
        ({"steps": [{"prune": {"neurons": 1.0}}]}, r"step 1 \(prune\): neurons: .*less than 1"),
        ({"steps": [{"distill": {"layers": [0], "epoch": 3}}]}, r"\(distill\): epoch: "),
        ({"steps": [{"quantize": {}}, {"trim_vocabulary": {}}]}, "quantize must be the last step"),
        ({"steps": ["trim_vocabulary"], "seed": 3}, "unknown key 'seed'"),
    ],
)
def test_recipes_that_cannot_be_are_told(content, told):
    with pytest.raises(RecipeError, match=told):
        read_recipe(content)


def test_files_of_recipes(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text("steps:\n  - trim_vocabulary\n  - quantize: {activations: static}\n")
    recipe = read_recipe(file)
    assert recipe.name == "small" and [name for name, _ in recipe.steps] == ["trim_vocabulary", "quantize"]
    file.write_text("steps: [")
    with pytest.raises(RecipeError, match="cannot be read as YAML"):
        read_recipe(file)
    with pytest.raises(RecipeError, match="cannot be read as YAML"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_stages_are_compared_on_the_same_rows_and_inputs(teacher, task, tmp_path):
    recipe = read_recipe({"steps": STEPS})
    save_compressed(teacher, tmp_path / "teacher")
    list(compress(teacher, recipe, task, tmp_path, quiet=True))
    folders = {"fine-tuned": tmp_path / "teacher", "small": tmp_path / "4-quantize" / "model"}
    measured = compare(folders, task, shapes=[(1, 8), (2, 16)], repeats=3, memory=False)
    first, last = measured
    assert last.bytes < first.bytes and first.agreement == 1.0 and 0 <= last.agreement <= 1
    assert first.speedup[1, 8] == (1, 1, 1) and len(last.latency[2, 16].times) == 3
    assert peak_of(folders["small"], (1, 8)) > 2**20 and 0 < last.parameters < first.parameters
    lines = table(measured).splitlines()
    assert len(lines) == 4 and lines[3].startswith("| small |") and f"{last.bytes / 1e6:.1f}" in lines[3]
    data = record(measured, 10, "made/up", "a test")
    assert json.loads(json.dumps(data))["models"][1]["latency"]["1x8"]["p50_ms"] > 0
    tradeoff_figure(measured, "10 made-up rows").savefig(tmp_path / "figure.png")
    with pytest.raises(CompareError, match="reads at most"):
        compare(folders, task, shapes=[(1, 4096)], repeats=3, memory=False)


# --- question answering -------------------------------------------------------------------------------


def question(number):
    city = CITIES[number % len(CITIES)]
    passage = f"In the year {number} the old king of the hills went to {city} by boat."
    return Question(str(number), "Where did the king go?", passage, ((city, passage.index(city)),), f"article {number}")


@pytest.fixture
def reading():
    made = [question(number) for number in range(48)]
    source = Source("made/up", "mirror", BUNDLED_DATA, "")
    parts = (tuple(made[:24]), tuple(made[24:28]), tuple(made[28:36]), source, (), tuple(made[36:]))
    return QuestionAnswering(QuestionSplits(*parts))


@pytest.fixture
def reader(tiny_encoder):
    return new_reader(Source("tiny", "cache", tiny_encoder, ""), 48, seed=0)


def test_a_reader_goes_through_the_same_recipe(reader, reading, tmp_path):
    recipe = read_recipe({"name": "all", "steps": STEPS})
    before = {name: p.clone() for name, p in reader.model.named_parameters()}
    save_compressed(reader, tmp_path / "teacher")
    done = list(compress(reader, recipe, reading, tmp_path, quiet=True))
    assert [name for name, _ in done] == ["distill", "prune", "trim_vocabulary", "quantize"]
    sizes = [size_on_disk(tmp_path / f"{i}-{name}" / "model") for i, (name, _) in enumerate(done, start=1)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.5 * sizes[-2]
    assert all((before[name] == p).all() for name, p in reader.model.named_parameters()), "the teacher changed"
    folders = {"fine-tuned": tmp_path / "teacher", "small": tmp_path / "4-quantize" / "model"}
    loaded = reading.load(folders["small"])
    assert loaded.max_length == 48 and loaded.stride == reader.stride and loaded.token_types
    questions = list(reading.splits.test)
    answers = [
        [[a.text for a in each] for each in one.answer(questions, precision="fp32")] for one in (loaded, done[-1][1])
    ]
    assert (
        np.mean([a[0] == b[0] for a, b in zip(*answers, strict=True)]) >= 0.75
    )  # the engine rounds a value or two else
    first, last = compare(folders, reading, shapes=[(1, 8)], repeats=3, memory=False)
    assert list(last.metrics) == ["f1", "exact_match"] and last.score is last.metrics["f1"]
    assert first.agreement == 1.0 and 0 <= last.agreement <= 1 and last.bytes < first.bytes
    head = table([first, last]).splitlines()[0]
    assert "| F1 [95 %] | exact match [95 %] | agreement |" in head
    data = json.loads(json.dumps(record([first, last], reading.test_rows, "made/up", "a test")))
    assert {"f1", "exact_match"} <= set(data["models"][1]) and "accuracy" not in data["models"][1]
    drawn = tradeoff_figure([first, last], "8 made-up questions")
    assert drawn.axes[0].get_ylabel().startswith("F1")


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_an_int8_reader_on_the_engine_is_the_plain_one(activations, reader, reading, tmp_path):
    with torch.no_grad():
        for name, weight in reader.model.named_parameters():
            weight.mul_(3 if weight.dim() == 2 and "embeddings" not in name else 1)
    recipe = read_recipe({"steps": [{"quantize": {"activations": activations}}]})
    ((_, made),) = compress(reader, recipe, reading, tmp_path, quiet=True)
    fast = reading.load(tmp_path / "1-quantize" / "model")
    if available()[0]:
        assert any(isinstance(module, Int8Encoder) for module in fast.model.modules())
    found = windows(reading.splits.test, made.tokenizer, 48, 8)
    plain, engine, exact = (span_logits(one.model, found, 0, precision="fp32") for one in (made, fast, reader))
    apart = np.median([np.abs(a - b).max() for a, b in zip(plain, engine, strict=True)])
    lost = np.median([np.abs(a - b).max() for a, b in zip(plain, exact, strict=True)])
    assert apart < max(lost, 1e-5), "the engine is farther from the plain int8 model than that is from fp32"


def test_rows_for_distillation_say_where_answers_are_and_others_say_nothing(reader, reading):
    rows, taught = reading.rows(reader), reading.taught_rows(reader)
    assert [row["labels"] for row in rows] == [[row["start_positions"], row["end_positions"]] for row in taught]
    assert all(row["labels"] != [0, 0] for row in rows) and not any("labels" in row for row in taught)
    bare = reading.unlabelled_rows(reader, "task", 5)
    assert len(bare) == 5 and set(bare[0]) == {"input_ids", "attention_mask", "token_type_ids"}
    assert reading.unlabelled_rows(reader, "none") == []
    assert len(reading.texts(0)) == 25 and len(reading.texts()) == 37  # passages, and one question


def test_what_makes_no_sense_for_questions_is_told_before_anything_is_trained(reader, teacher, reading, task, tmp_path):
    recipe = read_recipe({"name": "odd", "steps": [{"distill": {"layers": [0], "unlabelled": "bundled"}}]})
    with pytest.raises(RecipeError, match=r"odd, step 1 \(distill\): unlabelled: bundled makes no sense for squad"):
        next(compress(reader, recipe, reading, tmp_path, quiet=True))
    save_compressed(teacher, tmp_path / "classifier")
    save_compressed(reader, tmp_path / "reader")
    with pytest.raises(TaskError, match="holds BertForSequenceClassification, which is no model of squad"):
        reading.load(tmp_path / "classifier")
    with pytest.raises(TaskError, match="holds BertForQuestionAnswering, which is no model of imdb"):
        task.load(tmp_path / "reader")
