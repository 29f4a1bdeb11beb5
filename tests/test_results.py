"""Records and the tables made from them: nothing typed, nothing drifted."""

import json

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from pangu_lab import hub
from pangu_lab.cli import app
from pangu_lab.grading.notebook_format import MACHINE_FOLDERS
from pangu_lab.readme import render_readme, replace_between
from pangu_lab.results import (
    Record,
    ResultsError,
    Value,
    load_record,
    load_records,
    make_record,
    results_table,
    save_record,
)
from pangu_lab.tasks.metrics import Metric

RESULTS = ROOT / "benchmarks" / "results"


def record(kind="mirror", **changes):
    made = make_record(
        task="imdb",
        split="test",
        mode="lesson",
        data=hub.Source("stanfordnlp/imdb", kind, ROOT, ""),
        rows={"train": 10, "validation": 2, "test": 1000},
        notes=(),
        model=hub.Source("some/model", "bundled", ROOT, ""),
        parameters=22_700_000,
        seeds=(0, 1),
        settings={"precision": "fp32"},
        metrics={name: Metric(0.83, 0.80, 0.85, "Wilson") for name in ("accuracy", "f1")},
        seconds=61.234,
    )
    return made.model_copy(update=changes)


def test_a_record_comes_back_as_it_was_written(tmp_path):
    saved = record()
    assert load_record(save_record(saved, tmp_path / "run-x.json")) == saved
    assert load_records(tmp_path) == [saved]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"task": 3}'])
def test_a_file_that_is_no_record_is_told(tmp_path, text):
    (tmp_path / "run-x.json").write_text(text)
    with pytest.raises(ResultsError, match="is not a record"):
        load_records(tmp_path)


def test_the_table_puts_rows_source_seeds_and_interval_beside_every_number():
    row = results_table([record()]).splitlines()[-1]
    for told in ("1,000 rows", "stanfordnlp/imdb (mirror)", "0, 1", "83.0 [80.0, 85.0]", "61 s"):
        assert told in row
    assert "bundled sample" not in row
    notes = (
        "test: 1,000 of 1,509 questions, seed 0",
        "trained on a part",
        "this copy tests on 1,509 of 10,570 questions",
    )
    row = results_table([record(notes=notes)]).splitlines()[-1]
    assert (
        "test, 1,000 of 1,509 rows; this copy tests on 1,509 of 10,570 questions | 10 rows; trained on a part |" in row
    )


def test_a_number_from_a_bundled_sample_is_labelled_so():
    assert "**bundled sample**" in results_table([record("bundled")]).splitlines()[-1]


def test_text_between_marks_is_replaced_and_nothing_else():
    text = "a\n<!-- t -->\nold\n<!-- /t -->\nb\n"
    assert replace_between(text, "t", "new\\1") == "a\n<!-- t -->\nnew\\1\n<!-- /t -->\nb\n"
    with pytest.raises(ResultsError, match="put both marks in"):
        replace_between("nothing", "t", "new")


def test_the_readme_says_what_the_records_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert render_readme(text, RESULTS) == text, "run `pangu-lab results --write README.md`"


def test_there_are_records_and_no_folder_of_a_machine_stands_in_them():
    files = sorted(RESULTS.glob("*.json"))
    assert load_records(RESULTS)
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not [name for name in MACHINE_FOLDERS if f"/{name}" in text] and str(ROOT) not in text, file


def test_every_record_is_of_the_present_form():
    for file in RESULTS.glob("run-*.json"):
        assert set(json.loads(file.read_text())) == set(Record.model_fields)


def test_extracted_answers_have_exact_match_in_place_of_accuracy():
    metrics = {name: Metric(0.5, 0.4, 0.6, "Wilson") for name in ("exact_match", "f1")}
    squad = record(task="squad", metrics={name: Value(**vars(metric)) for name, metric in metrics.items()})
    assert "| exact match 50.0 [40.0, 60.0] | 50.0 [40.0, 60.0] |" in results_table([squad])


def test_the_command_renders_the_papers_table_and_a_figure(tmp_path):
    done = CliRunner().invoke(app, ["results", "--format", "json", "--figure", str(tmp_path / "claims.png")])
    assert done.exit_code == 0 and len(json.loads(done.stdout)["rows"]) >= 30
    assert (tmp_path / "claims.png").read_bytes()[1:4] == b"PNG"
