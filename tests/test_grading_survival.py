"""Nothing is lost: killed graders, full disks, two graders at once, dead workers of a cluster, and files made of noise.

The small numbers here are for every day; PANGU_LAB_LONG_TESTS=1 kills a batch of 40 twenty-five times and grades
2,000 files of noise.
"""

import contextlib
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import grading_files as files
import psutil
import pytest
from conftest import ROOT
from grading_files import LAB
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pangu_lab.cli import app
from pangu_lab.errors import PanguLabError
from pangu_lab.grading import box as boxes
from pangu_lab.grading import results
from pangu_lab.grading.batch import grade, locked
from pangu_lab.grading.reports import with_manual, write_reports

LONG = bool(os.environ.get("PANGU_LAB_LONG_TESTS"))
needs_box = pytest.mark.skipif(bool(boxes.why_no_box()), reason=f"no box here: {boxes.why_no_box()}")
WRONG = "def training_memory(*a, **k):\n    return {}"
# What each kind of submission earns; the last starts no kernel.
KINDS = [({}, 6), ({"training_memory": WRONG}, 4), (None, 0)]


def submitted(folder, count):
    """A folder with a release and ``count`` submissions, and what each must earn."""
    (folder / "labs").mkdir()
    (folder / "labs" / f"{LAB}.ipynb").write_text(files.release_text(), encoding="utf-8")
    (folder / "in").mkdir()
    truth = {}
    for number in range(count):
        answers, points = KINDS[number % 3]
        data = files.release_text().encode() if answers is None else files.text_of(files.submission(**answers))
        (folder / "in" / f"s{number:02}.ipynb").write_bytes(data + b" " * number)
        truth[f"s{number:02}"] = points
    return truth


def reported(folder, out, **options):
    batch = grade(folder / "in", folder / "labs", out, seed="s", **options)
    merged, _ = with_manual(batch, out)
    write_reports(merged, out)
    return {result.student: result.score for result in merged.results}


def everything(out):
    """All that stands in an output folder but times, as text by path."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name not in (".lock", ".secret"):
            text = path.read_text(encoding="utf-8")
            text = re.sub(r'"(seconds|execution_time)": [\d.]+', "", text)
            text = re.sub(r'<img alt="Half took[^>]+>|<p>Slowest:.*?</p>', "", text)
            found[str(path.relative_to(out))] = text
    return found


def started(folder):
    command = [sys.executable, "-m", "pangu_lab.cli", "grade", "in", "--release", "labs", "--seed", "s", "--out", "out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill(process):
    """``kill -9`` of the grader alone; whatever it had started must go by itself."""
    children = []
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended by itself
        children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(children, timeout=10)[1]


@needs_box
@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(tmp_path):
    count, kills, late = (40, 20, 5) if LONG else (3, 2, 0)
    truth = submitted(tmp_path, count)
    rng, out = random.Random(7), tmp_path / "out"
    assert reported(tmp_path, tmp_path / "whole") == truth
    process, since = started(tmp_path), time.monotonic()
    while not list(out.rglob("s*.json")) and process.poll() is None:
        time.sleep(0.02)
    first = time.monotonic() - since  # how long a start takes on this machine, now
    with pytest.raises(PanguLabError, match="another grader"):
        grade(tmp_path / "in", tmp_path / "labs", out, seed="s")
    kill(process)
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("s*.json")}
    assert kept and not (out / "grades.csv").exists()
    moments = [rng.uniform(0.4, 1.7) for _ in range(kills - 1)]
    for moment in moments:
        process = started(tmp_path)
        time.sleep(moment * first)
        kill(process)
    done = len(list(out.rglob("s*.json")))
    assert started(tmp_path).wait() == 0
    for _ in range(late):  # nothing is left to grade: these fall on the reports
        process = started(tmp_path)
        time.sleep(rng.uniform(2, 5))
        kill(process)
    if late:
        assert started(tmp_path).wait() == 0
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    assert everything(out) == everything(tmp_path / "whole")
    print(f"{count} submissions, {kills + late} kills; {len(kept)} and {done} results stood after the first and last")


@needs_box
def test_shards_together_are_the_whole(tmp_path):
    truth = submitted(tmp_path, 6)
    (tmp_path / "in" / "s09.ipynb").write_bytes((tmp_path / "in" / "s05.ipynb").read_bytes())
    (tmp_path / "in" / "s08.ipynb").write_bytes(b"{")
    for path in list((tmp_path / "in").glob("s0[0134].ipynb")):
        path.unlink()  # those that start a kernel
    for part in (1, 2):
        reported(tmp_path, tmp_path / f"part{part}", shard=(part, 2))
    parts, out = [tmp_path / "part1", tmp_path / "part2"], tmp_path / "out"
    command = ["grade", str(tmp_path / "in"), "--release", str(tmp_path / "labs"), "--seed", "s", "--out", str(out)]
    merged = CliRunner().invoke(app, [*command, "--merge", str(parts[0]), "--merge", str(parts[1])])
    assert merged.exit_code == 1 and "4 results taken over" in merged.output and "4 of 4 have a result" in merged.output
    assert len(list((out / "feedback").rglob("*.html"))) == 4 and truth["s02"] == 0
    reported(tmp_path, tmp_path / "whole")
    assert everything(out) == everything(tmp_path / "whole")
    # Somebody has looked at the broken file and at the two that are the same, and says so.
    rows = [f"{name},{LAB},(submission),,seen" for name in ("s05", "s08", "s09")]
    (out / "manual.csv").write_text("student_id,assignment,exercise,manual_points,comment\n" + "\n".join(rows))
    assert CliRunner().invoke(app, command).exit_code == 0
    with pytest.raises(PanguLabError, match="same --seed"):
        grade(tmp_path / "in", tmp_path / "labs", tmp_path / "other", seed="t", merge=parts)


def test_one_grader_in_a_folder(tmp_path):
    with locked(tmp_path), pytest.raises(PanguLabError, match="another grader"), locked(tmp_path):
        pass


@pytest.mark.slow
def test_no_box_grades_too_and_says_so(tmp_path):
    submitted(tmp_path, 2)
    batch = grade(tmp_path / "in", tmp_path / "labs", tmp_path / "out", only=["s01"], boxed=False)
    assert [result.score for result in batch.results] == [4] and not batch.boxed


FULL = """import json, pathlib, sys
from pangu_lab.errors import PanguLabError
from pangu_lab.grading.batch import grade
from pangu_lab.grading.results import load
if __name__ == "__main__":
    out, kept = pathlib.Path("out"), pathlib.Path("out/results")
    graded = lambda **more: grade(pathlib.Path("in"), pathlib.Path("labs"), out, seed="s", **more)
    first = graded(only=["s02"]).results[0]
    with open(kept / "filler", "wb", buffering=0) as file:
        try:
            while True: file.write(bytes(1024))
        except OSError: pass
    (path,) = kept.rglob("s02*.json")
    try: said = str(graded() and "")
    except PanguLabError as error: said = str(error)
    intact, left = load(path) == first, [str(p) for p in kept.rglob(".*")]
    (kept / "filler").unlink()
    scores = {result.student: result.score for result in graded().results}
    print(json.dumps([said, intact, left, scores]))
"""


@needs_box
@pytest.mark.slow
def test_a_full_disk_is_told_and_costs_nothing(tmp_path):
    """A file system of 64 kB under the results, really full."""
    truth = submitted(tmp_path, 3)
    (tmp_path / "in" / "s00.ipynb").unlink()
    (tmp_path / "full.py").write_text(FULL)
    (tmp_path / "out" / "results").mkdir(parents=True)
    wall = ["bwrap", "--dev-bind", "/", "/", "--size", "65536", "--tmpfs", str(tmp_path / "out" / "results")]
    run = subprocess.run(
        [*wall, "--chdir", str(tmp_path), sys.executable, "full.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    said, intact, left, scores = json.loads(run.stdout.splitlines()[-1])
    assert "No space left on device" in said and "free some space" in said
    assert intact and not left and scores == {name: truth[name] for name in ("s01", "s02")}


# --- noise ------------------------------------------------------------------------------------------

UNTOUCHED = files.release_text().encode()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def noise(draw):
    """The bytes of a notebook with one thing wrong: bytes, or a value somewhere in its JSON."""
    if draw(st.integers(0, 3)) == 0:
        start = draw(st.integers(0, len(UNTOUCHED)))
        return UNTOUCHED[:start] + draw(st.binary(max_size=20)) + UNTOUCHED[start + draw(st.integers(0, 200)) :]
    notebook = json.loads(UNTOUCHED)
    place = notebook
    for _ in range(draw(st.integers(0, 5))):
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key]:
            break
        place = place[key]
    key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
    place[key] = draw(json_values)
    return json.dumps(notebook).encode("utf-8", "surrogatepass")


@needs_box
@pytest.mark.slow
def test_no_noise_stops_a_batch(tmp_path):
    count, made = 2000 if LONG else 40, []

    @settings(max_examples=count, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    @given(noise())
    def draw(data):
        made.append(data)

    draw()
    submitted(tmp_path, 1)
    for number, data in enumerate(made):
        (tmp_path / "in" / f"n{number:04}.ipynb").write_bytes(data)
    started_at = time.monotonic()
    limits = boxes.Limits(cell_seconds=5, notebook_seconds=30)
    batch = grade(tmp_path / "in", tmp_path / "labs", tmp_path / "out", seed="s", limits=limits, jobs=2 if LONG else 1)
    seconds = time.monotonic() - started_at
    write_reports(batch, tmp_path / "out")
    assert len(batch.results) == len(made) + 1 and len(made) >= 0.9 * count
    statuses = [result.status for result in batch.results]
    assert set(statuses) <= {"GRADED", "INVALID_FILE"}, [r for r in batch.results if r.open]
    assert all(result.reason for result in batch.results if result.status == "INVALID_FILE")
    assert {r.student: r.score for r in batch.results}["s00"] == 6
    assert not [r for r in batch.results if r.student != "s00" and r.score]
    print(f"{len(made)} files in {seconds:.0f} s, {statuses.count('INVALID_FILE')} of them no notebook")


# --- a cluster --------------------------------------------------------------------------------------


@needs_box
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="dask.distributed is not installed")
def test_a_cluster_whose_worker_is_killed_gives_the_same_marks(tmp_path):
    from distributed import LocalCluster

    truth = submitted(tmp_path, 6)
    killed = []

    def told(line):
        """After the first result, kill a worker process that is at work."""
        if not killed:
            states = cluster.scheduler.workers.values()
            address = next(state.address for state in states if state.processing)
            pid = next(worker.pid for worker in cluster.workers.values() if worker.worker_address == address)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        local_directory=str(tmp_path / "dask"),
    ) as cluster:
        batch = grade(
            tmp_path / "in", tmp_path / "labs", tmp_path / "out", seed="s", told=told, dask=cluster.scheduler_address
        )
    assert killed and {result.student: result.score for result in batch.results} == truth
    assert len(list((tmp_path / "out").rglob("s*.json"))) == 6
    assert all(results.load(path) for path in (tmp_path / "out").rglob("s*.json"))


def test_a_cluster_that_is_not_there_is_told(tmp_path):
    match = "pip install" if importlib.util.find_spec("distributed") is None else "no dask scheduler answers"
    submitted(tmp_path, 1)
    with pytest.raises(PanguLabError, match=match):
        grade(tmp_path / "in", tmp_path / "labs", tmp_path / "out", dask="nonsense://x")
