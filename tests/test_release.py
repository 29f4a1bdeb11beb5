"""From solutions to labs: stubs, metadata, the same bytes every time, and no answer anywhere."""

import base64
import html
import json
import struct
import urllib.parse
import zlib

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from pangu_lab.grading.release import LeakError, ReleaseError, cleared, release, student_notebook

LINE = 'weights = torch.softmax(scores / math.sqrt(d), dim=-1, dtype="float")'
ANSWER = f'''def attention(q, k, v):
    """Given: the docstring."""
    d = q.shape[-1]
    ### BEGIN SOLUTION
    scores = q @ k.transpose(-2, -1)  # (batch, query, key)
    {LINE}
    for head in range(
        heads_of_the_model
    ):
        print(head)
    return weights @ v
    ### END SOLUTION'''
STUBBED = '''def attention(q, k, v):
    """Given: the docstring."""
    d = q.shape[-1]
    # YOUR CODE HERE
    raise NotImplementedError()'''


def answer(source=ANSWER, **metadata):
    return new_code_cell(source, id="sdpa-answer", metadata=metadata, execution_count=3)


def check(source='attention = check("attention.sdpa", attention)'):
    printed = new_output("stream", name="stdout", text="right")
    return new_code_cell(source, id="sdpa-check", outputs=[printed])


def png(*chunks):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in (*chunks, (b"IEND", b"")))
    return base64.b64encode(data).decode()


def image(data, **more):
    return new_output("display_data", data={"image/png": data, "text/plain": "<Figure>", **more})


def student(*cells):
    notebook = {"cells": [answer(), check(), *cells], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return student_notebook(nbformat.from_dict(notebook), "02_demo.ipynb", lambda exercise_id: 3)


def only(cells, cell_id):
    return next(cell for cell in cells if cell.id == cell_id)


def test_a_solution_becomes_the_stub_at_its_indentation():
    assert only(student().cells, "sdpa-answer").source == STUBBED


def test_several_regions_become_several_stubs():
    source = "### BEGIN SOLUTION\na\n### END SOLUTION\nb\n  ### BEGIN SOLUTION\n  c\n  ### END SOLUTION"
    stub = "# YOUR CODE HERE\nraise NotImplementedError()"
    expected = stub + "\nb\n  # YOUR CODE HERE\n  raise NotImplementedError()"
    assert cleared(source, "02_demo.ipynb", "a") == expected


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("### BEGIN SOLUTION\nx", "never closed"),
        ("x\n### END SOLUTION", "without ### BEGIN SOLUTION"),
        ("### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION", "inside a solution"),
        ("## BEGIN SOLUTION\nx\n## END SOLUTION", "is no delimiter"),
        ("### begin\nx = 1  ### BEGIN SOLUTION\n### END SOLUTION", "is no delimiter"),
    ],
)
def test_bad_delimiters_are_named_with_notebook_and_cell(source, sentence):
    with pytest.raises(ReleaseError, match=r"02_demo\.ipynb, cell sdpa-answer") as caught:
        cleared(source, "02_demo.ipynb", "sdpa-answer")
    assert sentence in str(caught.value)


@given(st.lists(st.sampled_from(["### BEGIN SOLUTION", "    ### END SOLUTION", "x = 1", ""]), max_size=10))
def test_clearing_is_total_and_leaves_no_delimiter(lines):
    try:
        result = cleared("\n".join(lines), "02_demo.ipynb", "a")
    except ReleaseError:
        return
    assert "SOLUTION" not in result


def test_an_answer_cell_without_delimiters_is_an_error():
    lost = new_code_cell("x = 1", id="lost", metadata={"nbgrader": {"solution": True}})
    with pytest.raises(ReleaseError, match="cell lost: is an answer cell without"):
        student(lost)


def test_a_check_without_its_answer_cell_is_an_error():
    with pytest.raises(ReleaseError, match="cell second-check: this check has no answer cell"):
        student(new_code_cell('check("a.b", f)', id="second-check"))


def test_a_stub_that_is_not_python_is_an_error():
    bad = new_code_cell("if x:\n### BEGIN SOLUTION\n    y\n### END SOLUTION", id="bad")
    with pytest.raises(ReleaseError, match=r"cell bad: .*not valid Python"):
        student(bad)


def test_outputs_go_except_the_images_of_expected_figures():
    outputs = [new_output("stream", name="stdout", text="0.93"), image("aaaa", **{"text/html": "<b>no</b>"})]
    kept = new_code_cell("plot()", id="kept", outputs=outputs, metadata={"tags": ["expected-figure"]})
    gone = new_code_cell("plot()", id="gone", outputs=outputs)
    cells = student(kept, gone).cells
    assert [output.data for output in only(cells, "kept").outputs] == [{"image/png": "aaaa"}]
    assert only(cells, "gone").outputs == [] and only(cells, "sdpa-check").outputs == []
    assert all(cell.get("execution_count") is None for cell in cells)


def test_cells_for_instructors_go():
    note = new_markdown_cell("Talk about this.", id="note", metadata={"tags": ["instructor-only"]})
    assert "note" not in [cell.id for cell in student(note).cells]


def test_metadata_is_what_nbgrader_and_jupyter_need():
    metadata = {"tags": ["leak-ok", "nbval-skip"], "jupyter": {"source_hidden": True}, "x": 1}
    notebook = student(new_code_cell("1", id="folded", metadata=metadata))
    folded, given, checked = (only(notebook.cells, i) for i in ("folded", "sdpa-answer", "sdpa-check"))
    assert folded.metadata == {"tags": ["nbval-skip"], "jupyter": {"source_hidden": True}}
    base = {"schema_version": 3, "task": False}
    assert given.metadata == {
        "deletable": False,
        "nbgrader": {**base, "grade_id": "sdpa-answer", "grade": False, "solution": True, "locked": False},
    }
    graded = {"grade_id": "sdpa-check", "grade": True, "solution": False, "locked": True, "points": 3}
    assert checked.metadata == {"deletable": False, "editable": False, "nbgrader": {**base, **graded}}
    assert notebook.metadata.kernelspec.name == "python3"


B64 = base64.b64encode(f"hidden:\n{LINE}\n".encode()).decode()
LEAKS = {
    "as it is": LINE,
    "spacing": "weights=torch.softmax(scores/math.sqrt( d ),\n  dim = -1,\n  dtype='float')",
    "comments and parentheses": (
        "weights = (torch.softmax(  # over the keys\n  (scores / math.sqrt(d)), dim=(-1), dtype='float'))"
    ),
    "commented out": f"x = 1\n# {LINE}",
    "string": f"source = {LINE!r}",
    "escaped": f"source = {json.dumps('x' + chr(10) + LINE)}",
    "base64": f"exec(b64decode('{B64}'))",
    "shifted base64": f"abc{B64}",
    "compressed base64": base64.b64encode(zlib.compress(LINE.encode())).decode(),
    "base64 twice": base64.b64encode(B64.encode()).decode(),
    "percent": urllib.parse.quote(LINE),
    "invisible signs": LINE.replace("softmax", "soft\u200bmax"),
    "multi-line head": "for head in range(heads_of_the_model):\n    pass",
    "magic": f"%%time\n{LINE}",
}


@pytest.mark.parametrize("hidden", LEAKS.values(), ids=LEAKS.keys())
def test_a_line_of_a_solution_in_code_is_a_leak(hidden):
    with pytest.raises(LeakError, match=r"02_demo\.ipynb, cell given: its source") as caught:
        student(new_code_cell(hidden, id="given"))
    assert ("softmax" in str(caught.value)) or ("for head in range" in str(caught.value))


@pytest.mark.parametrize(
    "hidden",
    [
        LINE,
        f"```python\n{LINE}\n```",
        "text\n\n```python\nweights = (torch.softmax(scores / math.sqrt(d), -1 if 0 else -1))\n" + LINE + "\n```",
        html.escape(LINE),
        "<span>weights</span> = " + LINE.removeprefix("weights = ").replace("torch", "<b>torch</b>"),
        f"![](data:text/plain;base64,{B64})",
    ],
)
def test_a_line_of_a_solution_in_text_is_a_leak(hidden):
    with pytest.raises(LeakError, match="cell text: its source"):
        student(new_markdown_cell(hidden, id="text"))


def test_a_line_in_an_attachment_is_a_leak():
    cell = new_markdown_cell("![](attachment:a.png)", id="text")
    cell.attachments = {"a.png": {"image/png": base64.b64encode(LINE.encode()).decode()}}
    with pytest.raises(LeakError, match="cell text: its attachments"):
        student(cell)


@pytest.mark.parametrize(
    "chunk",
    [
        (b"tEXt", b"Comment\0" + LINE.encode()),
        (b"zTXt", b"Comment\0\0" + zlib.compress(LINE.encode())),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LINE.encode())),
    ],
    ids=["tEXt", "zTXt", "iTXt"],
)
def test_a_line_in_the_texts_of_an_image_is_a_leak(chunk):
    figure = new_code_cell("1", id="figure", outputs=[image(png(chunk))], metadata={"tags": ["expected-figure"]})
    with pytest.raises(LeakError, match="cell figure: its outputs"):
        student(figure)


def test_a_line_in_a_drawing_is_a_leak():
    drawing = new_output("display_data", data={"image/svg+xml": f"<svg><text>{html.escape(LINE)}</text></svg>"})
    with pytest.raises(LeakError, match="cell figure: its outputs"):
        student(new_code_cell("1", id="figure", outputs=[drawing], metadata={"tags": ["expected-figure"]}))


def test_a_line_in_the_tags_is_a_leak():
    with pytest.raises(LeakError, match="its metadata"):
        student(new_code_cell("1", id="tagged", metadata={"tags": ["return  weights@v"]}))


def test_given_code_may_say_the_same_where_the_cell_allows_it():
    student(new_code_cell(LINE, id="given", metadata={"tags": ["leak-ok"]}))
    with pytest.raises(LeakError, match="cell other"):
        student(new_code_cell(LINE, id="given", metadata={"tags": ["leak-ok"]}), new_code_cell(LINE, id="other"))


@pytest.mark.parametrize("harmless", ["return weights @ values", "print(head)", "x = scores", STUBBED])
def test_lines_that_only_resemble_a_solution_are_no_leak(harmless):
    student(new_markdown_cell(harmless, id="text"))


def names():
    return st.from_regex(r"[a-z]{3,8}", fullmatch=True)


@settings(max_examples=50, deadline=None)
@given(names(), names(), st.integers(100, 9999), st.sampled_from(["code", "markdown"]), st.integers(0, 3))
def test_no_statement_of_any_solution_passes(name, function, number, kind, spaces):
    line = f"{name}_result = {function}_value({number}, scale=0.5)"
    source = f"def f():\n    ### BEGIN SOLUTION\n    {line}\n    ### END SOLUTION"
    spaced = line.replace(" ", " " * spaces + " ").replace("(", "( ")
    new = new_code_cell if kind == "code" else new_markdown_cell
    cells = [new_code_cell(source, id="answer"), new(f"if True:\n    {spaced}", id="shown")]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    with pytest.raises(LeakError):
        student_notebook(nbformat.from_dict(notebook), "02_demo.ipynb", lambda exercise_id: 1)


@pytest.fixture
def folders(tmp_path):
    solutions, labs = tmp_path / "solutions", tmp_path / "labs"
    solutions.mkdir()
    for name in ("02_demo.ipynb", "03_other.ipynb"):
        notebook = {"cells": [answer(), check()], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        (solutions / name).write_text(nbformat.writes(nbformat.from_dict(notebook)))
    return solutions, labs


def run(folders, **options):
    return [released.status for released in release(*folders, points=lambda exercise_id: 3, **options)]


def test_releasing_twice_gives_the_same_bytes_and_writes_nothing(folders):
    assert run(folders) == ["written", "written"]
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folders[1].iterdir()}
    assert run(folders) == ["unchanged", "unchanged"]
    assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folders[1].iterdir()}


def test_checking_reports_differences_and_writes_nothing(folders):
    _, labs = folders
    assert run(folders, check=True) == ["missing", "missing"] and not labs.exists()
    run(folders)
    edited = labs / "02_demo.ipynb"
    edited.write_text(edited.read_text() + " ")
    (labs / "04_gone.ipynb").write_text("{}")
    before = {path.name: path.read_bytes() for path in labs.iterdir()}
    assert run(folders, check=True) == ["different", "unchanged", "stale"]
    assert before == {path.name: path.read_bytes() for path in labs.iterdir()}


def test_a_leak_in_one_notebook_writes_none(folders):
    solutions, labs = folders
    leaking = {
        "cells": [answer(), new_markdown_cell(LINE, id="text")],
        "metadata": {},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (solutions / "03_other.ipynb").write_text(nbformat.writes(nbformat.from_dict(leaking)))
    with pytest.raises(LeakError, match=r"03_other\.ipynb, cell text"):
        run(folders)
    assert not labs.exists()


def test_a_folder_without_solutions_gets_one_sentence(tmp_path):
    with pytest.raises(ReleaseError, match="has no notebook named NN_topic"):
        release(tmp_path, tmp_path / "labs")


def test_nbgrader_accepts_the_metadata():
    nbgrader = pytest.importorskip("nbgrader.nbgraderformat")
    nbgrader.MetadataValidator().validate_nb(student())
