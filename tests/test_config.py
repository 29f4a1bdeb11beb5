"""The configuration: right values pass, every wrong one is one sentence with file, key, value and what is allowed."""

import pytest
import yaml
from conftest import ROOT

from pangu_lab.config import Config, ConfigError, ensure_folder, load_config


def refused(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    sentence = str(caught.value)
    assert "\n" not in sentence and "config.yaml" in sentence
    return sentence


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train: {batch_size: -4}", "train.batch_size is -4; it must be 1 or more"),
        ("train: {learning_rate: 0}", "train.learning_rate is 0; it must be greater than 0"),
        ("train: {learning_rate: fast}", "train.learning_rate is 'fast'; it must be a number"),
        ("train: {batchsize: 4}", "train.batchsize is not a key; did you mean batch_size?"),
        ("mode: quick", "mode is 'quick'; it must be one of 'smoke', 'lesson' or 'full'"),
        ("imdb: {lesson: {epochs: 1.5}}", "imdb.lesson.epochs is 1.5; it must be a whole number"),
        ("imdb: {lessons: {epochs: 1}}", "imdb.lessons is not a key; did you mean lesson?"),
        ("train: 3", "train is 3; it must be a block of keys"),
        ("colour: red", "colour is not a key; the keys here are mode, model, paths, train, imdb"),
        ("- a\n- b", "holds a list at the top"),
        ("just words", "holds a str at the top"),
        ("1: 2", "must hold keys such as mode"),
        ("mode: lesson\ntrain: {a: [", "line 2"),
        ("\ttrain: 1", "line 1"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(tmp_path, text, told):
    assert told in refused(tmp_path, text)


def test_bytes_that_are_not_text_are_refused(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_bytes(b"\xff\xfe\x00mode")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(file)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match="there is no such file"):
        load_config("nowhere.yaml")


def test_an_empty_file_is_the_default(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("")
    assert load_config(file).train == Config().train


def test_the_shipped_file_writes_out_the_defaults():
    written = yaml.safe_load((ROOT / "labs" / "config.yaml").read_text(encoding="utf-8"))
    defaults = Config().model_dump(mode="json")
    for task in ("imdb", "tweets", "squad"):  # of a size, only what it changes needs to be written
        for size in defaults[task].values():
            for own in ("batch_size", "learning_rate", "least_steps"):
                if size[own] is None:
                    del size[own]
    assert written == defaults


def test_a_block_may_name_only_what_it_changes(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("imdb: {lesson: {epochs: 7}}")
    size = load_config(file).imdb.lesson
    assert size.epochs == 7 and size.max_length == Config().imdb.lesson.max_length


def test_relative_paths_count_from_the_file(tmp_path):
    file = tmp_path / "here" / "config.yaml"
    file.parent.mkdir()
    file.write_text("paths: {runs: ../runs}")
    assert load_config(file).paths.runs == tmp_path / "runs"


def test_overrides_win_and_none_is_ignored(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("train: {seed: 3, batch_size: 8}")
    settings = load_config(file, train={"seed": 5, "batch_size": None}, mode=None)
    assert settings.train.seed == 5 and settings.train.batch_size == 8


def test_the_mirror_can_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PANGU_LAB_MIRROR", str(tmp_path))
    assert load_config(None).paths.mirror == tmp_path


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"paths\.runs is .*, which cannot be written"):
        ensure_folder(tmp_path / "file" / "runs", "paths.runs")
