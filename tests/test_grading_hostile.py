"""What the grader must survive: real notebook files through the real pipeline, in the box, one batch of them all."""

import csv
import html
import json
import os
import socket
import zipfile

import grading_files as files
import psutil
import pytest
from grading_files import LAB, A, B, C

from pangu_lab.exercises import get
from pangu_lab.exercises.engine import draw_cases
from pangu_lab.grading.batch import grade
from pangu_lab.grading.box import Limits, why_no_box
from pangu_lab.grading.reports import write_reports

pytestmark = pytest.mark.skipif(bool(why_no_box()), reason=f"no box here: {why_no_box()}")
LIMITS = Limits(cell_seconds=6, notebook_seconds=45, memory=1_000_000_000, processes=100)


def hard_coded():
    """The right answers to the inputs that the lab itself shows."""
    exercise = get(B)
    known = {
        (case.args[0], case.kwargs["moments"], case.kwargs["mixed"]): exercise.reference(*case.args, **case.kwargs)
        for case in draw_cases(exercise, 0)
    }
    return files.submission(training_memory=f"KNOWN = {known!r}\n{files.VISIBLE}")


@pytest.fixture(scope="session")
def release_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labs")
    (folder / f"{LAB}.ipynb").write_text(files.release_text(), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def batch(tmp_path_factory, release_folder):
    """All hostile files, a folder of nbgrader's shape, graded once."""
    place, out = tmp_path_factory.mktemp("submitted"), tmp_path_factory.mktemp("grades")
    server = socket.create_server(("127.0.0.1", 0))
    given = [*files.FILES, files.File("hard-coded", 35, files.text_of(hard_coded()))]
    for file in given:
        folder = place / file.name / LAB
        folder.mkdir(parents=True)
        data = file.content.replace(b"PORT", str(server.getsockname()[1]).encode())
        data = data.replace(b"(OUT, ", f"({str(out)!r}, ".encode())
        (folder / f"{LAB}.ipynb").write_bytes(data)
    # Kernels are forked here, unless the environment asks for cold ones; both have to hold.
    remarks = []
    cold = os.environ.get("PANGU_LAB_TEST_COLD") == "1"
    graded = grade(place, release_folder, out, seed="secret", limits=LIMITS, jobs=2, warm=not cold, told=remarks.append)
    if files.CAN_FORK:  # no parent was reached and ended
        assert not [remark for remark in remarks if "starts by itself" in remark]
    write_reports(graded, out)
    server.close()
    return graded, out


@pytest.fixture(scope="session")
def by_name(batch):
    return {result.student: result for result in batch[0].results}


def statuses(result):
    return tuple(mark.status for mark in result.marks)


@pytest.mark.slow
@pytest.mark.parametrize("file", files.FILES, ids=lambda file: f"{file.row}-{file.name}")
def test_hostile_file(file, by_name):
    result = by_name[file.name]
    told = json.dumps([result.reason, result.notes, result.tampered, [(m.message, m.visible) for m in result.marks]])
    if file.expected == "INVALID_FILE":
        assert result.status == "INVALID_FILE" and result.score == 0
    else:
        assert result.status == "GRADED", result
        for mark, wanted in zip(result.marks, file.expected, strict=True):
            assert mark.status == wanted, mark
            assert mark.points == (mark.max_points if mark.status == "OK" else 0)
        assert result.max_score == 6
    assert set(file.flags) <= set(result.flags)
    assert file.says in html.unescape(told)
    assert result.seconds < LIMITS.notebook_seconds + 5


def test_hard_coded_answers_to_the_visible_inputs_earn_nothing(by_name):
    mark = by_name["hard-coded"].marks[1]
    assert mark.status == "ERROR" and mark.points == 0 and "On the inputs that the lab shows" in mark.visible


def test_a_dead_kernel_is_noticed_at_once(by_name):
    assert by_name["os-exit"].marks[1].seconds < 2


def test_no_child_of_a_submission_survives(batch):
    assert not [p for p in psutil.process_iter(["cmdline"]) if "time.sleep(4321)" in " ".join(p.info["cmdline"] or [])]


def test_every_submission_has_one_row_and_one_page(batch):
    graded, out = batch
    rows = list(csv.DictReader((out / "grades.csv").open(encoding="utf-8")))
    assert sorted(row["student_id"] for row in rows) == sorted(r.student for r in graded.results)
    assert len(list((out / "feedback").rglob("*.html"))) == len(rows) == len(files.FILES) + 1
    for path in (out / "gradescope").rglob("results.json"):
        result = json.loads(path.read_text())
        assert result["score"] == sum(test["score"] for test in result["tests"])


def test_pages_hold_text_only(batch):
    for path in (batch[1] / "feedback").rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert "<script" not in page and "<svg" not in page and "Content-Security-Policy" in page
    (page,) = (batch[1] / "feedback").rglob("markup-*.html")
    assert "&lt;script&gt;alert(1)" in page.read_text(encoding="utf-8")


def test_no_report_shows_a_hidden_input_or_the_secret(batch):
    out = batch[1]
    hidden = set()
    for exercise_id in (A, B, C):
        from pangu_lab.grading.probes import seed_of

        cases = draw_cases(get(exercise_id), seed_of("secret", exercise_id))
        hidden |= {repr(value) for case in cases for value in case.args if isinstance(value, float | int)}
    hidden = {text for text in hidden if len(text) > 5}
    assert hidden
    for path in out.rglob("*"):
        if path.suffix in (".json", ".html", ".csv"):
            text = path.read_text(encoding="utf-8")
            assert not [value for value in hidden if value in text], path


def test_output_is_cut(batch, by_name):
    endless, long = (by_name[name].marks[1].printed for name in ("endless-print", "one-large-print"))
    assert endless.startswith("xxx") or endless == ""  # of a kernel that is killed, what had come by then
    assert len(long) < 25_000 and not set(long) - set("x\n… (cut)")
    assert all(len(mark.printed) < 25_000 for result in batch[0].results for mark in result.marks)
    assert all(path.stat().st_size < 120_000 for path in (batch[1] / "results").rglob("*.json"))


def test_graded_again_nothing_is_run(batch, release_folder, tmp_path):
    graded, out = batch
    place = tmp_path / "submitted"
    for name in ("honest", "empty", "endless"):
        file = next(file for file in files.FILES if file.name == name)
        (place / name / LAB).mkdir(parents=True)
        (place / name / LAB / f"{LAB}.ipynb").write_bytes(file.content)
    again = grade(place, release_folder, out, seed="secret", limits=LIMITS)
    assert again.skipped >= 2
    before = {result.student: result for result in graded.results}
    assert [statuses(r) for r in again.results] == [statuses(before[r.student]) for r in again.results]


@pytest.mark.slow
def test_the_whole_notebook_has_a_budget(release_folder, tmp_path):
    # Each cell keeps its own limit; together they would sleep for 18 s, and a busy machine needs some to start.
    sleepy = "import time; time.sleep(6)\n"
    notebook = files.submission(**{name: sleepy + source for name, source in files.RIGHT.items()})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "alice.ipynb").write_bytes(files.text_of(notebook))
    limits = Limits(cell_seconds=8, notebook_seconds=10)
    (result,) = grade(tmp_path / "in", release_folder, tmp_path / "out", limits=limits).results
    assert statuses(result)[0] == "OK" and statuses(result)[2] == "TIMEOUT" and result.seconds < 18


# --- who submitted what -----------------------------------------------------------------------------


@pytest.fixture
def classroom(tmp_path, release_folder):
    """A function that grades a folder after ``fill`` has been called on it; answers need no kernel."""

    def graded(fill, **options):
        place = tmp_path / "submitted"
        place.mkdir()
        fill(place)
        return grade(place, release_folder, tmp_path / "out", limits=LIMITS, **options), tmp_path / "out"

    return graded


UNTOUCHED = files.release_text().encode()


def test_zips_that_could_harm_are_refused(classroom):
    def fill(place):
        with zipfile.ZipFile(place / "moodle.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("../../evil/x.ipynb", UNTOUCHED)
            archive.writestr("bomb/x.ipynb", b" " * 15_000_000)
            archive.writestr("large/x.ipynb", b"0" * 25_000_000)
            link = zipfile.ZipInfo("link/x.ipynb")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
            archive.writestr("Ada Lovelace_17_assignsubmission_file_/x.ipynb", UNTOUCHED)
        (place / "broken.zip").write_bytes(b"PK\x03\x04 not really")
        (place / "linked.ipynb").symlink_to("/etc/passwd")
        (place / "device.ipynb").symlink_to("/dev/zero")
        os.mkfifo(place / "pipe.ipynb")
        (place / "folder.ipynb").mkdir()
        with open(place / "ten-gigabytes.ipynb", "wb") as file:
            file.truncate(10**10)
        (place / "heavy.ipynb").write_bytes(b" " * 20_500_000)

    graded, out = classroom(fill)
    reasons = {result.place: result.reason for result in graded.results if result.status == "INVALID_FILE"}
    said = {
        "evil/x.ipynb": "leads out of the zip",
        "bomb/x.ipynb": "zip bomb",
        "large/x.ipynb": "25 MB",
        "link/x.ipynb": "link, not a file",
        "broken": "zip cannot be read",
        "linked.ipynb": "link, not a file",
        "heavy.ipynb": "has 20 MB",
        "device.ipynb": "link, not a file",
        "pipe.ipynb": "not a regular file",
        "folder.ipynb": "not a regular file",
        "ten-gigabytes.ipynb": "has 10000 MB",
    }
    assert reasons.keys() == said.keys()
    assert not [place for place, words in said.items() if words not in reasons[place]]
    assert [(r.place[-13:], r.status) for r in graded.results if r.place not in said] == [("file_/x.ipynb", "GRADED")]
    assert "root:" not in "".join(p.read_text() for p in out.rglob("*.json"))


def test_files_are_attributed_and_oddities_flagged(classroom, tmp_path):
    roster = tmp_path / "roster.csv"
    roster.write_text(
        "student_id,last_name,first_name,email\nalice,=HYPERLINK(1),Alice,a@x\nbob,B,Bob,\nzoë,Z,Zoë,\nnobody,N,,\n",
        encoding="utf-8",
    )
    right = files.text_of(files.submission())

    def fill(place):
        (place / f"alice_{LAB}.ipynb").write_bytes(UNTOUCHED)
        (place / f"alice_{LAB} (2).ipynb").write_bytes(UNTOUCHED + b" ")
        (place / "bob" / LAB).mkdir(parents=True)
        (place / "bob" / LAB / "my work.ipynb").write_bytes(right)
        (place / f"zoe\u0308_123_456_{LAB}.ipynb").write_bytes(right)
        (place / "stranger.ipynb").write_bytes(UNTOUCHED)
        other = json.loads(UNTOUCHED)
        other["cells"] = other["cells"][:1]
        (place / "wrong-lab.ipynb").write_text(json.dumps(other), encoding="utf-8")

    graded, out = classroom(fill, roster=roster)
    write_reports(graded, out)
    found = {result.student: result for result in graded.results}
    assert found["alice"].flags == ("SEVERAL_FILES",) and "(2)" in found["alice"].place
    assert found["bob"].flags == found["zoë"].flags == ("SAME_FILE",) and found["bob"].others == ("zoë",)
    assert found["bob"].score == found["zoë"].score == 6
    assert "UNKNOWN_STUDENT" in found["stranger"].flags
    assert found["wrong-lab"].status == "INVALID_FILE" and "another lab" in found["wrong-lab"].reason
    assert found["nobody"].status == "MISSING" and graded.needs_human
    rows = {row["student_id"]: row for row in csv.DictReader((out / "grades.csv").open(encoding="utf-8"))}
    assert rows["alice"]["last_name"] == "'=HYPERLINK(1)"
    assert rows["bob"]["score"] == "6" and rows["nobody"]["score"] == "0"
