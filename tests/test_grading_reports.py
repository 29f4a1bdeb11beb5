"""What a batch leaves behind: gradebook, pages, pictures, marks by hand, and the column of an LMS."""

import csv
import random
import re

import pytest
from grading_files import LAB, A, B, C
from typer.testing import CliRunner

from pangu_lab.cli import app
from pangu_lab.errors import PanguLabError
from pangu_lab.exercises import get
from pangu_lab.grading.batch import Batch, in_shard, parse_shard
from pangu_lab.grading.clock import TimeLeft, shown
from pangu_lab.grading.collect import Student
from pangu_lab.grading.judge import Marked
from pangu_lab.grading.lms import Scored, fill
from pangu_lab.grading.manual import COLUMNS, TEMPLATE, WHOLE
from pangu_lab.grading.overview import mistakes, mistakes_figure, overview_page
from pangu_lab.grading.rebuild import Release, Step
from pangu_lab.grading.reports import page_path, with_manual, write_reports
from pangu_lab.grading.results import Result
from pangu_lab.grading.sheets import bare, cell

POINTS = {A: 2.0, B: 2.0, C: 2.0}
RELEASE = Release(
    LAB, "", tuple(Step("check", name, "", exercise=name, points=most) for name, most in POINTS.items()), ()
)


def result(student, *statuses, **more):
    marks = tuple(
        Marked(name, status, most if status == "OK" else 0, most, seconds=0.1 * number)
        for number, ((name, most), status) in enumerate(zip(POINTS.items(), statuses, strict=False), start=1)
    )
    return Result(student, LAB, more.pop("status", "GRADED"), f"{student}.ipynb", marks=marks, max_score=6, **more)


@pytest.fixture
def batch():
    known = get(A).mistakes[0]
    wrong = result("carol", "WRONG", "OK", "ERROR", seconds=3)
    told = Marked(A, "WRONG", 0, 2, mistake=known.name, sentence=known.sentence)
    wrong = Result(**{**vars(wrong), "marks": (told, *wrong.marks[1:])})
    results = (
        result("-alice", "OK", "OK", "OK", seconds=1),
        result("bob", "OK", "NOT_ATTEMPTED", "OK", seconds=2, flags=("TAMPERED",)),
        wrong,
        result("dave", "OK", "INFRA", "OK"),
        Result("eve", LAB, "MISSING", reason="nothing was handed in", max_score=6),
        Result("zoë", LAB, "INVALID_FILE", "z.ipynb", reason="the file is empty", max_score=6),
    )
    students = {r.student: Student(r.student, "Last", "First", f"{r.student}@x") for r in results}
    return Batch(results, {LAB: RELEASE}, students, True)


def table(path):
    return list(csv.DictReader(path.open(encoding="utf-8", newline="")))


# --- cells ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", " =1", "\t=1", "\r=1", "\n@x", "＝1", "=cmd|'/c calc'!A1"])
def test_formulas_are_neutralized_and_found_again(text):
    assert cell(text).startswith("'") and cell(bare(cell(text))) == cell(text)


@pytest.mark.parametrize("text", ["\tx", "\rx", "a\nb"])
def test_no_cell_begins_or_breaks_with_a_control_sign(text):
    assert cell(text).isprintable()


def test_other_cells_stay():
    assert [cell(value) for value in ("a-b", "", 3, "1=2", "'quoted")] == ["a-b", "", 3, "1=2", "'quoted"]


# --- pages and pictures -----------------------------------------------------------------------------


def test_the_overview_shows_who_needs_a_look_and_four_pictures(batch, tmp_path):
    write_reports(batch, tmp_path)
    page = (tmp_path / "overview.html").read_text(encoding="utf-8")
    assert len(re.findall("<img ", page)) == 4 and "<script" not in page and not re.search("https?:", page)
    assert len(page) < 400_000
    links = re.findall('href="([^"]+)"', page)
    assert len(links) == 3 and all((tmp_path / link).is_file() for link in links)  # bob, dave, zoë
    assert "The median is 4 of 6 points; 1 of 3 reached all" in page
    sentence = get(A).mistakes[0].sentence
    assert mistakes(batch.results) == [(A, sentence, 1)]


def test_strange_names_do_not_break_a_picture(batch):
    _, title = mistakes_figure([("x$\\frac{", "$ \\q 中 <b>", 2)], 3)
    assert "2 of 3" in title
    assert "&lt;b&gt;" in overview_page(Batch((result("<b>$x_{", "OK"),), batch.releases, {}, True), page_path)


def test_a_page_names_exercises_and_holds_nothing_active(batch, tmp_path):
    write_reports(batch, tmp_path)
    page = (tmp_path / page_path(batch.results[1])).read_text(encoding="utf-8")
    assert get(B).title in page and "○ not attempted" in page and "4 of 6 points" in page and "First Last (bob)" in page
    assert not re.search("<script|<img|<svg|javascript:|http:", page)


# --- by hand ----------------------------------------------------------------------------------------


def entered(out, *rows):
    lines = [",".join(["student_id", "assignment", "exercise", "manual_points", "comment"])]
    (out / "manual.csv").write_text("\n".join([*lines, *rows]) + "\n", encoding="utf-8")


def test_points_and_comments_by_hand_are_in_every_report(batch, tmp_path):
    entered(
        tmp_path,
        f'bob,{LAB},{B},1.5,"Nearly, =see page 2"',
        f"'-alice,{LAB},{WHOLE},-1,late",
        f"dave,{LAB},{B},2,",
        f"zoë,{LAB},{A},2,read on paper",
        f"carol,{LAB},{A},,look again",
    )
    (tmp_path / "manual.csv").write_bytes((tmp_path / "manual.csv").read_bytes().replace(b",", b";"))
    before = (tmp_path / "manual.csv").read_bytes()
    text = before.decode().replace('"Nearly; =see page 2"', "=Nearly")
    (tmp_path / "manual.csv").write_text("\ufeff" + text, encoding="utf-8")
    before = (tmp_path / "manual.csv").read_bytes()
    merged, remarks = with_manual(batch, tmp_path)
    assert not remarks
    write_reports(merged, tmp_path)
    rows = {row["student_id"]: row for row in table(tmp_path / "grades.csv")}
    assert [rows[name]["score"] for name in ("'-alice", "bob", "carol", "dave", "zoë")] == ["5", "5.5", "2", "6", "2"]
    late = rows["'-alice"]
    assert (late["raw_score"], late["late_submission_penalty"], late["comment"]) == ("6", "1", "late")
    assert rows["bob"]["late_submission_penalty"] == "0"
    pages = {r.student: (tmp_path / page_path(r)).read_text(encoding="utf-8") for r in merged.results if r.marks}
    assert "=Nearly" in pages["bob"] and "look again" in pages["carol"] and "✎ marked by hand" in pages["zoë"]
    assert {r.student for r in merged.results if r.needs_human} == {"bob"}  # nobody has said anything on the tampering
    # The template offers all rows and what has been entered; the file itself is nobody's but the instructor's.
    template = table(tmp_path / TEMPLATE)
    assert list(template[0]) == COLUMNS and len(template) == 6 * 4
    assert {row["comment"] for row in template} == {"", "'=Nearly", "late", "read on paper", "look again"}
    assert (tmp_path / "manual.csv").read_bytes() == before
    (tmp_path / TEMPLATE).rename(tmp_path / "manual.csv")
    again, _ = with_manual(batch, tmp_path)
    assert again.results == merged.results


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (f"bob,{LAB},{B},3,", "0 to 2"),
        (f"bob,{LAB},{B},nan,", "must be a number"),
        (f"bob,{LAB},environment.nothing,1,", "no exercise"),
        (f"bob,99_x,{B},1,", "no lab"),
        (f"bob,{LAB},{B},1,\nbob,{LAB},{B},2,", "twice"),
    ],
)
def test_a_row_that_makes_no_sense_is_told_with_its_line(batch, tmp_path, row, says):
    entered(tmp_path, row)
    with pytest.raises(PanguLabError, match=f"manual.csv, line .*{says}"):
        with_manual(batch, tmp_path)


def test_a_row_about_somebody_unknown_is_remarked(batch, tmp_path):
    entered(tmp_path, f"nobody,{LAB},{B},1,")
    assert "nobody has no result" in with_manual(batch, tmp_path)[1][0]


# --- LMS --------------------------------------------------------------------------------------------

CANVAS = (
    "\ufeffStudent,ID,SIS Login ID,Section,Lab (12),=Odd\r\n"
    "    Points Possible,,,,6.00,(read only)\r\n"
    '"Lovelace, Ada",17,ada,"S ""1""",,=1+1\r\n'
    '"Turing, Alan",18,alan,,"3",\r\n'
    '"Student, Test",19,,,,\r\n'
)
MOODLE = (
    "Identifier;Full name;Email address;Grade;Maximum Grade;Feedback comments\n"
    'Participant 17;Ada Lovelace;ada@x;;6,00;"two\nlines"\n'
    "Participant 18;Zoë T;z@x;2,50;6,00;"
)


def test_canvas_gets_one_column_and_keeps_every_other_byte():
    scores = [Scored("ada", 4.5, 6), Scored("turingalan", 6, 6, email="alan@x"), Scored("bob", 1, 6)]
    filled = fill(CANVAS.encode(), "Lab", [*scores[:1], Scored("ALAN", 6, 6), *scores[2:]])
    expected = CANVAS.replace('"S ""1""",,', '"S ""1""",4.5,').replace('"3"', '"6"')
    assert filled.data == expected.encode() and filled.key == "SIS Login ID"
    assert filled.remarks == ("bob is not in the file",)
    by_name = fill(CANVAS.encode(), "Lab (12)", [Scored("lovelaceada", 1, 6), Scored("turingalan", 2, 6)])
    assert by_name.key == "Student" and by_name.students == ("lovelaceada", "turingalan")


def test_moodle_too_with_decimal_commas_and_participant_numbers():
    scores = [Scored("Ada Lovelace_17", 4.5, 6), Scored("Zoe\u0308 T_18", 3, 6)]
    filled = fill(MOODLE.encode("utf-16"), "Grade", scores)
    expected = MOODLE.replace("ada@x;;", "ada@x;4,5;").replace("2,50", "3")
    assert filled.data == expected.encode("utf-16") and not filled.remarks


def test_what_does_not_fit_is_told_and_left_alone():
    twins = CANVAS.replace(",18,alan", ",18,ada")
    filled = fill(twins.encode(), "Lab", [Scored("ada", 4, 6), Scored("student", 4, 6)], key="SIS Login ID")
    assert filled.data == twins.encode() and "ada fits 2 rows" in filled.remarks
    assert "counts out of 6" in fill(CANVAS.encode(), "Lab", [Scored("ada", 4, 10)]).remarks[-1]
    assert fill(CANVAS.encode(), "Lab", [Scored("ada", 5, 10)], out_of=6).data.count(b",3,") == 1
    for column, key in (("Nothing", ""), ("Student", "Nothing"), ("S", "")):
        with pytest.raises(PanguLabError, match="the file has"):
            fill(CANVAS.encode(), column, [Scored("ada", 4, 6)], key=key)


def test_the_command_fills_from_grades_json(batch, tmp_path):
    write_reports(batch, tmp_path / "grades")
    exported = tmp_path / "canvas.csv"
    exported.write_bytes(
        b"Student,ID,SIS Login ID,Lab\nx,1,bob,\ny,2,carol,\nz,3,dave,9\nw,4,zo\xeb,\nv,5,-alice,\nu,6,eve,\n"
    )
    run = CliRunner().invoke(app, ["lms", str(exported), "--column", "Lab", "--grades", str(tmp_path / "grades")])
    filled = (tmp_path / "canvas-filled.csv").read_bytes()
    assert filled == exported.read_bytes().replace(b"bob,", b"bob,4").replace(b"carol,", b"carol,2").replace(
        b"zo\xeb,", b"zo\xeb,0").replace(b"alice,", b"alice,6").replace(b"eve,", b"eve,0")  # fmt: skip
    assert run.exit_code == 1  # dave has no score, so somebody should look


# --- shards and time --------------------------------------------------------------------------------


def test_each_student_is_in_exactly_one_shard():
    for name in ("alice", "zoë", "\ud800"):
        assert sum(in_shard(name, (part, 5)) for part in range(1, 6)) == 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none(text):
    with pytest.raises(PanguLabError, match="1 <= i <= n"):
        parse_shard(text, "s")


def test_shards_need_a_common_seed():
    assert parse_shard("1/1", None) == (1, 1) and parse_shard("2/4", "s") == (2, 4)
    with pytest.raises(PanguLabError, match="same --seed"):
        parse_shard("2/4", None)


def test_the_time_left_is_in_the_range_that_was_told():
    """Submissions of very different length, one at a time; the range is two deviations, so most must be in it."""
    told = held = 0
    for seed in range(40):
        rng = random.Random(seed)
        durations = [rng.expovariate(0.1) + 1 for _ in range(60)]
        now = 0.0
        clock = TimeLeft(60, 1, lambda: now)  # noqa: B023
        for number, seconds in enumerate(durations[:-1], start=1):
            now += seconds
            clock.after(seconds)
            low, high = clock.range()
            if number >= 10:
                told += 1
                held += low <= sum(durations[number:]) <= high
    assert 0.85 < held / told < 1


def test_too_early_it_says_nothing_and_at_the_end_what_it_took():
    now = 0.0
    clock = TimeLeft(4, 1, lambda: now)
    said = []
    for now in (30.0, 60.0, 90.0, 120.0):  # noqa: B007
        said.append(clock.after(30))
    assert said == ["", "", "about 30 s left", "all in 2 min"]
    assert [shown(s) for s in (0.4, 89, 120, 5400, 36000)] == ["0 s", "89 s", "2 min", "1.5 h", "10 h"]
