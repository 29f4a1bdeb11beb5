"""The command line: help to work from, right exit codes, one sentence for a mistake, nothing lost on Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

COMMANDS = (
    "train",
    "pretrain",
    "evaluate",
    "predict",
    "compress",
    "measure",
    "export",
    "doctor",
    "lab",
    "demo",
    "release",
    "format",
    "progress",
    "results",
)


def pangu_lab(*arguments, cwd=ROOT, **environment):
    env = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "pangu_lab.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        timeout=180,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tiny_encoder):
    """A configuration that trains the tiny encoder on a made-up mirror, in seconds."""
    import datasets

    folder = tmp_path_factory.mktemp("cli")
    data = folder / "mirror" / "stanfordnlp" / "imdb" / "plain_text"
    data.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [{"text": f"{split} {i} is {'superb' if i % 2 else 'dire'}", "label": i % 2} for i in range(80)]
        datasets.Dataset.from_list(rows).to_parquet(str(data / f"{split}-00000-of-00001.parquet"))
    (folder / "config.yaml").write_text(
        f"mode: smoke\nmodel: {tiny_encoder}\npaths: {{mirror: mirror, runs: runs, data: data}}\n"
        "train: {learning_rate: 5.0e-3, precision: fp32, batch_size: 8}\n"
        "imdb: {smoke: {train_rows: null, test_rows: null, max_length: 16, epochs: 4}}\n"
    )
    return folder


def test_help_names_every_command_and_answers_quickly():
    began = time.perf_counter()
    shown = pangu_lab("--help")
    seconds = time.perf_counter() - began
    assert shown.returncode == 0 and all(command in shown.stdout for command in COMMANDS)
    assert seconds < 3  # half a second on an idle machine, see test_project for the imports


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    shown = pangu_lab(command, "--help")
    assert (
        shown.returncode == 0 and "Usage: pangu-lab" in shown.stdout.replace("python -m pangu_lab.cli", "pangu-lab")
    ) or command in shown.stdout


def test_train_evaluate_and_predict(workspace):
    options = ("--config", workspace / "config.yaml")
    trained = pangu_lab("train", "imdb", *options)
    assert trained.returncode == 0, trained.stderr
    assert re.search(r"accuracy\s+1\.000", trained.stdout) and "stanfordnlp/imdb (mirror)" in trained.stdout
    again = pangu_lab("train", "imdb", *options, "--json")
    assert json.loads(again.stdout)["metrics"]["accuracy"]["value"] == 1.0
    measured = pangu_lab("evaluate", "imdb", *options, "--json")
    assert json.loads(measured.stdout)["rows"] == 80
    told = pangu_lab("predict", "imdb", "test 3 is superb", *options)
    assert told.returncode == 0 and told.stdout.split()[0] == "positive"
    answers = json.loads(pangu_lab("predict", "imdb", "5 is dire", "😀 superb", *options, "--json").stdout)
    assert [answer["label"] for answer in answers] == ["negative", "positive"]
    (workspace / "own.csv").write_text("text,label\ntest 1 is superb,1\ntest 2 is dire,0\n")
    own = pangu_lab("evaluate", "imdb", *options, "--file", workspace / "own.csv")
    assert own.returncode == 0 and re.search(r"accuracy\s+1\.000", own.stdout)
    changed = pangu_lab("train", "imdb", *options, "--learning-rate", "0.001")
    assert changed.returncode == 2 and "--fresh" in changed.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("train", "poetry"), "'poetry' is not a task"),
        (("train", "imdb", "--mode", "quick"), "--mode is 'quick'; it must be one of smoke, lesson, full"),
        (("train", "imdb", "--train-on", "moon"), "--train-on is 'moon'"),
        (("train", "imdb", "--config", "nowhere.yaml"), "there is no such file"),
        (("train", "imdb", "--learning-rate", "-1"), "train.learning_rate is -1.0; it must be greater than 0"),
        (("train", "imdb", "--mirror", "/nowhere"), "is not a folder"),
        (("train", "imdb", "--model", "no/such-model"), "not in the mirror"),
        (("predict", "imdb"), "there is nothing to classify"),
        (("predict", "imdb", "--file", "nowhere.txt"), "there is no such file"),
        (("evaluate", "imdb", "--model", "/nowhere"), "holds no model"),
        (("compress", "poetry", "--recipe", "benchmarks/recipes/int8.yaml"), "'poetry' cannot be compressed from here"),
        (("measure", "squad", "/nowhere", "--shapes", "8"), "--shapes is '8'; give batch x length"),
        (("export", "/nowhere", "--to", "model.pt2"), "holds no model"),
        (("demo", "--only", "nothing"), "has no notebook that matches nothing"),
        (("format", "nowhere.ipynb"), "nowhere.ipynb"),
        (("results", "--add", "nowhere.json"), "cannot be read"),
        (("trian",), "No such command 'trian'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_two(workspace, arguments, told):
    environment = {} if "--config" in arguments else {"PANGU_LAB_CONFIG": str(workspace / "config.yaml")}
    shown = pangu_lab(*arguments, **environment)
    assert shown.returncode == 2 and told in shown.stderr and "Traceback" not in shown.stderr


def test_ctrl_c_leaves_a_run_that_the_same_command_resumes(workspace):
    options = ("train", "imdb", "--config", workspace / "config.yaml", "--run", "stopped", "--epochs", "400")
    command = [sys.executable, "-m", "pangu_lab.cli", *map(str, options)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = workspace / "runs" / "stopped" / "log.jsonl"
    until = time.monotonic() + 90
    while time.monotonic() < until and not (log.is_file() and log.read_text().count("\n") > 5):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130 and "start the same command again to go on from there" in shown
    assert (workspace / "runs" / "stopped" / "checkpoint" / "place.json").is_file()


@pytest.mark.slow
def test_torchrun_trains_once_and_one_process_speaks(workspace):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29519"]
    options = [
        "-m",
        "pangu_lab.cli",
        "train",
        "imdb",
        "--config",
        str(workspace / "config.yaml"),
        "--seed",  # not --run: torchrun takes that for an option of its own
        "7",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    shown = subprocess.run(
        [*launcher, *options], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=240
    )
    assert shown.returncode == 0, shown.stderr[-3000:]
    assert len(re.findall(r"accuracy +1\.000", shown.stdout)) == 1


def test_doctor_speaks_json(workspace):
    shown = pangu_lab("doctor", "--json", "--config", workspace / "config.yaml")
    assert shown.returncode in (0, 1) and json.loads(shown.stdout)


def test_release_and_format_are_up_to_date():
    for command in ("format", "release"):
        shown = pangu_lab(command, "--check")
        assert shown.returncode == 0, shown.stdout + shown.stderr
