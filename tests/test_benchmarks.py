"""The training benchmarks at their smallest: what they measure, record, resume and render."""

import importlib
import json
import signal
import sys

import pytest
from conftest import ROOT

from pangu_lab.pretraining import PretrainingLoss
from pangu_lab.readme import pretraining_speed_table, pretraining_tables, render_readme


@pytest.fixture
def script(monkeypatch, tmp_path):
    """A script of the benchmarks as a module, and a way to call it with arguments."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(tmp_path)

    def load(name):
        module = importlib.import_module(name)

        def call(*arguments):
            monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
            module.main()

        return module, call

    return load


def test_peers_take_turns_and_each_block_begins_with_another(script, tmp_path):
    module, _ = script("side_by_side")
    program = tmp_path / "one.py"
    program.write_text(
        "import json, sys\nprint('noise')\nprint(json.dumps({'seconds': 1 + int(sys.argv[4]), 'a': sys.argv[1:]}))"
    )
    runs = module.take_turns(program, ("x", "trainer"), 2, ["--rows", 3])
    assert runs["x"][1] == {"seconds": 2, "a": ["--one", "x", "--seed", "1", "--rows", "3"]}
    runs["x"][1]["seconds"] = 4
    summary = module.speed_summary(runs, 100, "rows")
    assert summary["x"]["rows_per_second"] == 40 and summary["x"]["seconds_spread"] == [1, 4]
    assert summary["x"]["times_trainer_median"] == 0.75 and summary["x"]["times_trainer_spread"] == [0.5, 1.0]
    assert "times_trainer_best_median" not in summary["x"]
    program.write_text("raise SystemExit('it broke')")
    with pytest.raises(SystemExit, match="it broke"):
        module.take_turns(program, ("x",), 1, [])


def test_pretraining_speed_records_equal_tokens_and_equal_losses(script, tmp_path, monkeypatch, capsys):
    module, call = script("pretraining_speed")

    def here(_, peers, repeats, arguments):
        """``take_turns`` in this process: importing everything anew for each peer is what takes time."""
        runs = {peer: [] for peer in peers}
        for peer in peers:
            for seed in range(repeats):
                call("--one", peer, "--seed", seed, *arguments)
                runs[peer].append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        return runs

    monkeypatch.setattr(module, "take_turns", here)
    sizes = ["--documents", 48, "--held-out", 16, "--width", 16, "--layers", 1, "--heads", 2]
    call(*sizes, "--repeats", 2, "--out", tmp_path / "pretraining-speed.json")
    record = json.loads((tmp_path / "pretraining-speed.json").read_text())
    runs = [run for peer in module.PEERS for run in record["runs"][peer]]
    assert {run["tokens"] for run in runs} == {record["tokens"]} and record["tokens"] > 48 * 10
    assert len({run["parameters"] for run in runs}) == 1 and len({run["steps"] for run in runs}) == 1
    ours, bert = record["runs"]["ours"], record["runs"]["ours, BertForPreTraining"]
    for one, other in zip(ours, bert, strict=True):  # the same weights, batches and masks: the same arithmetic
        assert one["mlm_loss"] == pytest.approx(other["mlm_loss"], rel=1e-4)
        assert one["pair_loss"] == pytest.approx(other["pair_loss"], rel=1e-4)
    assert record["summary"]["ours"]["mlm_loss_more"][1] < record["summary"]["ours"]["mlm_loss_more"][2]
    table = pretraining_speed_table([record]).splitlines()
    assert len(table) == 4 + len(module.PEERS) and "| 1.00 [1.00, 1.00] |" in table[4]
    share = record["summary"]["ours"]["masking_share_median"]
    assert 0 < share < 1 and table[-1].startswith("Masking, with padding, takes at most ")
    assert f"{record['tokens']:,} tokens (mlm,sop), 2 seeds" in table[2]
    marks = "<!-- results -->\n<!-- /results -->\n<!-- pretraining-speed -->\n<!-- /pretraining-speed -->\n"
    assert table[2] in render_readme(marks, tmp_path)


SMALL = ["--tokens", 4000, "--width", 16, "--layers", 1, "--heads", 2, "--steps", 2, "--batch", 32]
SMALL += ["--validation-rows", 16, "--test-rows", 40, "--held-out", 4, "--sizes", 8, 16, "--ablation-sizes", 16]
SMALL += ["--objectives", "mlm", "mlm,nsp", "mlm,pos,ner"]


def test_pretraining_pays_goes_on_where_it_was_stopped(script, tmp_path, monkeypatch, capsys):
    module, call = script("pretraining")
    arguments = [*SMALL, "--out", tmp_path / "pretraining.json", "--runs", tmp_path / "runs", "--seeds", 2]
    call(*arguments, "--estimate")
    assert "3 pre-trainings and 24 fine-tunings, about" in capsys.readouterr().out
    assert not (tmp_path / "pretraining.json").exists()
    plain, calls = PretrainingLoss.__call__, []

    def stopped(self, model, batch):
        calls.append(1)
        if len(calls) == 5:  # the second objective, within its steps
            signal.raise_signal(signal.SIGINT)
        return plain(self, model, batch)

    monkeypatch.setattr(PretrainingLoss, "__call__", stopped)
    monkeypatch.setattr(module.Bench, "estimate", lambda self: 0.0)  # its trial would count as steps
    call(*arguments)
    assert "stopped; the same command goes on" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "pretraining.json").read_text())["pretraining"]) == ["mlm"]
    call(*arguments, "--seeds", 1)
    half = json.loads((tmp_path / "pretraining.json").read_text())
    steps = sum(one["steps"] for one in half["pretraining"].values())
    assert len(half["cells"]) == 12 and len(calls) == steps  # no step was done twice
    call(*arguments, "--figure", tmp_path / "payoff.png")
    record = json.loads((tmp_path / "pretraining.json").read_text())
    assert record["cells"].items() >= half["cells"].items() and len(record["cells"]) == 24 and len(calls) == steps
    assert (tmp_path / "payoff.png").read_bytes()[1:4] == b"PNG"
    tokens = [one["tokens"] for one in record["pretraining"].values()]
    assert min(tokens) >= 4000 and max(tokens) < 4300

    found = record["summary"]["payoff"]["opinion"]["16"]
    gains = [
        record["cells"][f"mlm|opinion|16|{seed}"]["accuracy"] - record["cells"][f"random|opinion|16|{seed}"]["accuracy"]
        for seed in (0, 1)
    ]
    assert found["gain"][0] == pytest.approx(sum(gains) / 2, abs=1e-4) and found["seeds"] == [0, 1]
    assert set(record["summary"]["ablation"]["question"]) == {"16"}
    table = pretraining_tables(record)
    assert table.count("\n| opinion |") == 2 and "\n| mlm,pos,ner |" in table
    marks = "<!-- results -->\n<!-- /results -->\n<!-- pretraining -->\n<!-- /pretraining -->\n"
    assert "on 40 test examples" in render_readme(marks, tmp_path) and "python" not in render_readme(
        marks, tmp_path / "no"
    )
    with pytest.raises(SystemExit, match="steps was 2, is 3 now"):
        call(*arguments, "--steps", 3)


def test_the_clock_stops_a_run(script):
    module, _ = script("pretraining")
    with pytest.raises(KeyboardInterrupt), module.minutes(0.001):
        while True:
            pass
    with module.minutes(None):
        pass
