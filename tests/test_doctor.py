"""The doctor: what it says of a machine that lacks something, and how long it may take to say it."""

import json
import os
import socket
import subprocess
import sys
import time
from importlib import metadata

import pytest
from rich.console import Console

from pangu_lab import doctor, hub
from pangu_lab.config import load_config
from pangu_lab.doctor import examine, lab_times, render


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No network, no cache, no mirror: what the tests say does not depend on the machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PANGU_LAB_MIRROR", raising=False)
    monkeypatch.delenv("PANGU_LAB_CONFIG", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def finding(report, name):
    return next(finding for finding in report.findings if finding.name == name)


def test_importing_the_doctor_does_not_import_torch():
    code = "import sys, pangu_lab.doctor; print('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_a_machine_without_hub_can_run_every_lab():
    report = examine(load_config(), labs=["00_environment"])
    assert report.ok and report.gflops > 0
    assert finding(report, "the hub").severity == "note"
    assert finding(report, "stanfordnlp/imdb").value.startswith("bundled")
    assert all(problem.remedy.endswith(".") for problem in report.problems)
    assert all(bool(f.severity) == bool(f.remedy) for f in report.findings)


def test_the_report_survives_json_and_reads_at_80_columns():
    report = examine(load_config(), labs=["00_environment"])
    told = json.loads(json.dumps(report.to_dict()))
    assert told == report.to_dict() and told["ok"] is True
    assert {f["name"] for f in told["findings"]} >= {"Python", "torch", "CPU", "memory", "GPU", "paths.data"}
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(render(report))
    text = console.export_text()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "Every lab can run here." in text and "00_environment" in text


def test_a_folder_that_cannot_be_made_stops_a_lab(tmp_path):
    (tmp_path / "file").write_text("in the way")
    report = examine(load_config(paths={"runs": str(tmp_path / "file" / "runs")}))
    assert not report.ok
    assert report.problems[0].name == "paths.runs" and "paths.runs" in report.problems[0].remedy


def test_a_missing_and_an_old_package_are_named_with_the_command_that_helps(monkeypatch):
    real = metadata.version

    def version(name):
        if name == "papermill":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "transformers" else real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    report = examine(load_config())
    assert not report.ok
    assert finding(report, "papermill").value.startswith("missing")
    assert 'pip install "papermill>=' in finding(report, "papermill").remedy
    assert finding(report, "transformers").severity == "stops a lab"


def test_an_old_python_is_refused(monkeypatch):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.8.20")
    assert finding(examine(load_config()), "Python").severity == "stops a lab"


@pytest.mark.parametrize(("free", "severity"), [(1e8, "stops a lab"), (2e9, "slows"), (5e10, None)])
def test_a_small_disk(monkeypatch, free, severity):
    usage = doctor.shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert finding(examine(load_config()), "paths.data").severity == severity


def test_little_memory_and_one_core(monkeypatch):
    memory = doctor.psutil.virtual_memory()._replace(total=int(1e9), available=int(5e8))
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(doctor, "core_count", lambda: 1)
    report = examine(load_config())
    assert finding(report, "memory").severity == "stops a lab"
    assert finding(report, "CPU").severity == "slows"


def test_a_dead_mirror_is_a_sentence_with_a_remedy(tmp_path):
    report = examine(load_config(paths={"mirror": str(tmp_path / "gone")}))
    assert not report.ok
    assert "not a folder" in finding(report, "rajpurkar/squad").value
    assert "null" in finding(report, "rajpurkar/squad").remedy


def test_a_broken_torch_is_reported_and_the_rest_is_still_looked_at(monkeypatch):
    def broken():
        raise OSError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr(doctor, "_torch", broken)
    report = examine(load_config(), labs=["00_environment"])
    assert not report.ok and report.gflops == 0 and report.labs[0].minutes is None
    assert finding(report, "paths.data").severity is None


def test_a_hub_that_never_answers_costs_three_seconds(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        config = load_config()
        began = time.monotonic()
        found = list(doctor._sources(config))
        seconds = time.monotonic() - began
    assert seconds < 3.5
    assert found[0].severity == "note"
    assert [f.value.split(":")[0] for f in found[1:]] == ["bundled"] * 4


def test_a_hub_that_answers_is_named_and_nothing_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "hub_reachable", lambda config, fresh=False: (True, ""))
    found = list(doctor._sources(load_config()))
    assert found[1].value == "hub: to be downloaded"
    assert not (tmp_path / "cache").exists()


def test_minutes_follow_the_speed_of_the_machine(tmp_path):
    record = tmp_path / "labs.json"
    record.write_text(json.dumps({"gflops": 100, "labs": {"00_environment": {"lesson": {"seconds": 60}}}}))
    assert lab_times("lesson", 50.0, record=record)[0].minutes == 2.0
    assert lab_times("full", 50.0, ["00_environment"], record)[0].minutes is None
    record.write_text('{"gflops": 1, "labs": []}')
    assert lab_times("lesson", 50.0, record=record) == ()
    assert lab_times("lesson", 50.0, ["06_classification"], tmp_path / "none")[0].minutes is None
