"""The training loop: it learns, resumes bit-exactly after any kill, and computes the same on two processes as on one."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from training_job import make_job, make_model, make_rows, weights_hash

from pangu_lab.config import Train
from pangu_lab.run_folder import RunFolderError, discard, newest_checkpoint, read_log
from pangu_lab.training import Interrupted, TrainingError, fingerprint, learning_rate_factor, set_dropout, train

PROGRAM = str(Path(__file__).parent / "training_job.py")


def losses(folder):
    return [entry["loss"] for entry in read_log(folder) if "loss" in entry]


def run_program(folder, kill_at=-1, settings=None, launcher=()):
    command = [sys.executable, *launcher, PROGRAM, str(folder), str(kill_at), json.dumps(settings or {})]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def test_the_loss_falls(tmp_path):
    job = make_job(epochs=25, learning_rate=3e-3, dropout=0.0, checkpoint_seconds=60)
    result = train(make_model(), job, tmp_path, quiet=True, tensorboard=False)
    assert result.steps == len(losses(tmp_path)) == 25 * 9
    assert sum(losses(tmp_path)[-9:]) < 0.5 * sum(losses(tmp_path)[:9])


def test_a_run_killed_at_any_step_ends_with_the_same_weights(tmp_path):
    """kill -9 in the middle of steps spread over the run, several times in a row, then on to the end."""
    whole = run_program(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "killed"
    for kill_after in (0, 1, 6, 9):  # counted in steps of each process, which starts at the last checkpoint
        killed = run_program(folder, kill_after)
        assert killed.returncode == -signal.SIGKILL
    assert newest_checkpoint(folder) is not None
    last = run_program(folder)
    assert last.returncode == 0, last.stderr
    assert last.stdout == whole.stdout
    assert losses(folder) == losses(tmp_path / "whole")


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    stop_after(tmp_path, 5)
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
    model = make_model()
    train(model, make_job(), tmp_path, quiet=True, tensorboard=False)
    assert weights_hash(model) == uninterrupted()


def uninterrupted():
    from tempfile import TemporaryDirectory

    model = make_model()
    with TemporaryDirectory() as folder:
        train(model, make_job(), Path(folder), quiet=True, tensorboard=False)
    return weights_hash(model)


def stop_after(folder, steps):
    """Run until Ctrl-C arrives during the given step."""
    from pangu_lab.training import cross_entropy_loss

    count = 0

    def loss(model, batch):
        nonlocal count
        count += 1
        if count == steps:
            signal.raise_signal(signal.SIGINT)
        return cross_entropy_loss(model, batch)

    with pytest.raises(Interrupted, match=f"stopped after step {steps} of 27; start the same command again"):
        train(make_model(), make_job(loss=loss), folder, quiet=True, tensorboard=False)


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path):
    stop_after(tmp_path, 4)
    assert len(losses(tmp_path)) == 4
    model = make_model()
    train(model, make_job(), tmp_path, quiet=True, tensorboard=False)
    assert weights_hash(model) == uninterrupted()
    assert len(losses(tmp_path)) == 27


def test_the_time_between_checkpoints_changes_nothing(tmp_path):
    model = make_model()
    train(model, make_job(checkpoint_seconds=1000), tmp_path, quiet=True, tensorboard=False)
    assert weights_hash(model) == uninterrupted()


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
    """torchrun with gloo, the same global batches: 67 rows leave odd ones, so shares are unequal."""
    settings = {"dropout": 0.0, "epochs": 2}
    one = run_program(tmp_path / "one", settings=settings)
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29517")
    two = run_program(tmp_path / "two", settings=settings, launcher=launcher)
    assert one.returncode == 0 and two.returncode == 0, two.stderr[-3000:]
    first, second = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(first) == len(second) == 18
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) < 1e-4


def test_accumulated_batches_compute_what_a_large_one_does(tmp_path):
    """Twice 4 rows in one step give the gradient of the 8 rows: the mean is over rows, not over batches."""
    from pangu_lab.training import _Run

    def step_loss_and_weights(**settings):
        from accelerate import Accelerator

        model = make_model()
        set_dropout(model, 0.0)  # as train() does
        job = make_job(**settings)
        run = _Run(Accelerator(cpu=True), model, job, tmp_path)
        run.plan = [[[0, 1, 2, 3, 4, 5, 6]]] if settings["accumulation"] == 1 else [[[0, 1, 2], [3, 4, 5, 6]]]
        run.epoch_ends, run.steps = [1], 1
        return run.step(0)["loss"], model.classifier.weight.detach().clone()

    whole_loss, whole = step_loss_and_weights(accumulation=1)
    parts_loss, parts = step_loss_and_weights(accumulation=2)
    assert abs(whole_loss - parts_loss) < 1e-5
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)


def test_another_jobs_folder_is_refused(tmp_path):
    train(make_model(), make_job(epochs=1), tmp_path, quiet=True, tensorboard=False)
    with pytest.raises(RunFolderError, match="epochs was 1, is 2 now"):
        train(make_model(), make_job(epochs=2), tmp_path, quiet=True, tensorboard=False)
    discard(tmp_path)
    train(make_model(), make_job(epochs=2), tmp_path, quiet=True, tensorboard=False)


def test_a_damaged_run_description_is_told(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match="cannot be read"):
        train(make_model(), make_job(), tmp_path, quiet=True)


def test_no_rows_are_told(tmp_path):
    job = make_job()
    object.__setattr__(job, "rows", [])
    with pytest.raises(TrainingError, match="no rows to train on"):
        train(make_model(), job, tmp_path, quiet=True)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    def loss(model, batch):
        return model(batch["input_ids"]).logits.sum() * float("nan"), torch.tensor(1)

    with pytest.raises(TrainingError, match=r"step 1: the loss is nan; lower train.learning_rate"):
        train(make_model(), make_job(loss=loss), tmp_path, quiet=True, tensorboard=False)


def test_patience_stops_and_the_best_weights_stay(tmp_path):
    scores = iter([0.5, 0.9, 0.8, 0.7, 0.6, 0.5])
    seen = []

    def evaluate(model):
        seen.append(weights_hash(model))
        return {"score": next(scores)}

    job = make_job(epochs=6, patience=2)
    object.__setattr__(job, "evaluate", evaluate)
    object.__setattr__(job, "better", "score")
    model = make_model()
    result = train(model, job, tmp_path, quiet=True, tensorboard=False)
    assert result.stopped_early and len(result.evaluations) == 4
    assert weights_hash(model) == seen[1]


def test_the_log_and_tensorboard_hold_every_step(tmp_path):
    train(make_model(), make_job(epochs=1), tmp_path, quiet=True)
    entries = read_log(tmp_path)
    assert [entry["step"] for entry in entries] == list(range(1, 10))
    assert {"loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second"} <= set(entries[0])
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_log_line_cut_short_is_passed_over(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert read_log(tmp_path) == [{"step": 1, "loss": 0.5}]


def test_training_works_outside_the_main_thread(tmp_path):
    """Signals cannot be caught there; the run goes on all the same."""
    done = []
    job = make_job(epochs=1)
    work = threading.Thread(
        target=lambda: done.append(train(make_model(), job, tmp_path, quiet=True, tensorboard=False))
    )
    work.start()
    work.join()
    assert done[0].steps == 9


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_warms_up_and_never_leaves_its_range(schedule):
    settings = Train(schedule=schedule, warmup_ratio=0.1)
    factors = [learning_rate_factor(step, 100, settings) for step in range(100)]
    assert factors[:10] == sorted(factors[:10]) and 0 < factors[0] < 0.2
    assert factors[10] == 1.0 and all(0 <= factor <= 1 for factor in factors)
    if schedule != "constant":
        assert factors[10:] == sorted(factors[10:], reverse=True) and factors[-1] < 0.05


def test_the_fingerprint_names_what_decides_the_weights():
    plain = fingerprint(make_job())
    assert plain == fingerprint(make_job(checkpoint_seconds=7))
    assert plain != fingerprint(make_job(seed=1))
    changed = make_job()
    object.__setattr__(changed, "rows", make_rows(66))
    assert plain["rows"] != fingerprint(changed)["rows"]


def test_a_trained_model_computes_as_a_loaded_one_whatever_the_precision_of_training(tmp_path):
    trained = make_model()
    train(trained, make_job(epochs=1, precision="bf16"), tmp_path, quiet=True, tensorboard=False)
    fresh = make_model(seed=1)
    fresh.load_state_dict(trained.state_dict())
    fresh.set_attn_implementation("eager")
    ids = torch.arange(8, 40).view(2, 16)
    with torch.inference_mode():
        assert torch.equal(trained.eval()(ids).logits, fresh.eval()(ids).logits)
