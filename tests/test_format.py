"""Formatting a notebook: what goes, what stays, what is reported, and that twice is once."""

import base64
import copy
import json

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from pangu_lab.grading.notebook_format import (
    NotebookError,
    check_call,
    findings,
    format_file,
    format_files,
    format_notebook,
    read_notebook,
    write_text,
)

ANSWER = "def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION"


def points(exercise_id):
    return 3


def formatted(*cells, **metadata):
    notebook = {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return format_notebook(nbformat.from_dict(notebook), "06_demo.ipynb", points)


def code(source="", outputs=(), cell_id="a-cell", **metadata):
    return new_code_cell(source, outputs=list(outputs), id=cell_id, metadata=metadata, execution_count=7)


def test_what_changes_without_meaning_is_stripped():
    cell = code(
        "1",
        [
            new_output("execute_result", data={"text/plain": "1"}, execution_count=7, metadata={"x": 1}),
            new_output(
                "display_data",
                data={"application/vnd.jupyter.widget-view+json": {"model_id": "a1"}, "text/plain": "HBox()"},
            ),
        ],
        execution={"iopub.execute_input": "2024-01-01"},
        papermill={"duration": 1.5},
        collapsed=False,
        scrolled=True,
    )
    notebook = formatted(
        cell,
        kernelspec={"name": "pangu-lab", "display_name": "PanGu Lab"},
        language_info={"name": "python", "version": "3.11.7"},
        papermill={"duration": 3},
        widgets={"state": {}},
    )
    assert notebook.metadata == {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    (cell,) = notebook.cells
    assert cell.metadata == {} and cell.execution_count == 1
    (output,) = cell.outputs
    assert output.execution_count == 1 and output.metadata == {} and output.data == {"text/plain": "1"}


def test_figures_tags_and_folding_stay():
    image = new_output("display_data", data={"image/png": "aaaa", "text/plain": "<Figure>"})
    cell = formatted(code("1", [image], tags=["b", "a"], jupyter={"source_hidden": True, "x": 1})).cells[0]
    assert cell.outputs[0].data == {"image/png": "aaaa", "text/plain": "<Figure>"}
    assert cell.metadata == {"tags": ["a", "b"], "jupyter": {"source_hidden": True}}


def test_a_stream_that_arrived_in_pieces_becomes_one():
    pieces = [new_output("stream", name=name, text=text) for name, text in [("stdout", "a"), ("stdout", "b")]]
    pieces.append(new_output("stream", name="stderr", text="c"))
    assert [output.text for output in formatted(code("1", pieces)).cells[0].outputs] == ["ab", "c"]


def test_nbgrader_metadata_follows_from_the_sources():
    answer, check, other = formatted(
        code(ANSWER, cell_id="f-answer"),
        code('f = check("classification.f1", f)', cell_id="f-check"),
        code("f(1)", cell_id="f-use", nbgrader={"grade": True, "points": 500}),
    ).cells
    assert answer.metadata.nbgrader == {
        "grade": False,
        "grade_id": "f-answer",
        "locked": False,
        "schema_version": 3,
        "solution": True,
        "task": False,
    }
    assert check.metadata.nbgrader == {
        "grade": True,
        "grade_id": "f-check",
        "locked": True,
        "points": 3,
        "schema_version": 3,
        "solution": False,
        "task": False,
    }
    assert "nbgrader" not in other.metadata


def test_a_check_is_found_by_its_call_and_not_by_its_name_in_a_text():
    assert check_call('f = lab.check("a.b", f)') == ["a.b"]
    assert check_call('%time\nf = check("a.b", f)') == ["a.b"]
    assert check_call('# check("a.b", f)\nprint("check")') == []
    assert check_call("from pangu_lab.lab import check") == []
    assert check_call("check(") == []


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ([code("1", cell_id="Upper")], "'Upper'"),
        ([code("1", cell_id="under_score")], "'under_score'"),
        ([code("1", cell_id="8f3a91bc")], "'8f3a91bc'"),
        ([code("1", cell_id="two"), code("1", cell_id="two")], "two cells have the id 'two'"),
        ([code('check("a.b", f)\n' + ANSWER)], "put the check in its own cell"),
        ([code('check("a.b", f)\ncheck("a.c", f)')], "checks 2 exercises"),
    ],
)
def test_a_cell_that_breaks_the_rules_is_named(cells, sentence):
    with pytest.raises(NotebookError, match=r"06_demo\.ipynb") as caught:
        formatted(*cells)
    assert sentence in str(caught.value)


def test_a_check_of_an_unknown_exercise_is_named_with_its_cell():
    notebook = new_notebook(cells=[code('check("nowhere.nothing", f)', cell_id="x-check")])
    with pytest.raises(NotebookError, match=r"06_demo\.ipynb, cell x-check: .*nowhere\.nothing"):
        format_notebook(notebook, "06_demo.ipynb")


def test_large_images_machine_paths_addresses_and_errors_are_reported():
    big = base64.b64encode(bytes(70_000)).decode()
    notebook = formatted(
        code("1", [new_output("display_data", data={"image/png": big})], cell_id="big"),
        code("1", [new_output("stream", name="stdout", text="read /home/ada/x.txt")], cell_id="path"),
        code("1", [new_output("stream", name="stdout", text="see https://x.org/home/ada")], cell_id="url"),
        code("1", [new_output("display_data", data={"text/plain": "<f at 0x7f001122>"})], cell_id="address"),
        code("1", [new_output("error", ename="E", evalue="", traceback=["E"])], cell_id="error"),
    )
    found = findings(notebook)
    assert [sentence.split(":")[0] for sentence in found] == [f"cell {i}" for i in ["big", "path", "address", "error"]]
    assert "70 kB" in found[0] and "/home/ada/x.txt" in found[1]


outputs = st.one_of(
    st.builds(lambda text: new_output("stream", name="stdout", text=text), st.text(max_size=20)),
    st.builds(lambda text: new_output("display_data", data={"text/plain": text}), st.text(max_size=20)),
    st.builds(lambda n: new_output("execute_result", data={"text/plain": "1"}, execution_count=n), st.integers(0, 9)),
)
metadata = st.dictionaries(
    st.sampled_from(["papermill", "ExecuteTime", "x"]), st.integers() | st.booleans(), max_size=3
)
tags = st.lists(st.sampled_from(["expected-figure", "nbval-skip", "b"]), unique=True)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=40), st.lists(outputs, max_size=4), metadata, tags), min_size=1, max_size=4))
def test_formatting_twice_is_formatting_once_and_survives_the_disk(parts):
    cells = [
        new_code_cell(source, outputs=copy.deepcopy(out), id=f"cell-{i}", metadata={**meta, "tags": list(tag)})
        for i, (source, out, meta, tag) in enumerate(parts)
    ]
    once = formatted(*cells, new_markdown_cell("text", id="text"))
    text = write_text(once)
    again = format_notebook(nbformat.reads(text, as_version=4), "06_demo.ipynb", points)
    assert write_text(again) == text and text.endswith("}\n")
    assert [cell.source for cell in once.cells[:-1]] == [part[0] for part in parts]


def test_a_file_is_written_only_when_it_changes(tmp_path):
    path = tmp_path / "06_demo.ipynb"
    notebook = new_notebook(cells=[code("print(1)")])
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    before = path.read_text()
    assert format_file(path, check=True).changed and path.read_text() == before
    (report,) = format_files([tmp_path])
    assert report.changed and path.read_text() != before
    assert not format_file(path).changed


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"nbformat": 99, "nbformat_minor": 0, "metadata": {}, "cells": []}',
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}',
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [1]}',
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code", "id": "a"}]}',
        json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [{"cell_type": "raw"}]}).encode(),
    ],
)
def test_what_is_not_a_notebook_gets_one_sentence(tmp_path, content):
    path = tmp_path / "06_demo.ipynb"
    path.write_bytes(content)
    with pytest.raises(NotebookError, match=r"06_demo\.ipynb") as caught:
        format_file(path)
    assert "\n" not in str(caught.value) and path.read_bytes() == content


def test_a_missing_file_gets_one_sentence(tmp_path):
    with pytest.raises(NotebookError, match="cannot be read"):
        read_notebook(tmp_path / "none.ipynb")


def test_a_missing_cell_id_is_not_invented(tmp_path):
    path = tmp_path / "06_demo.ipynb"
    cell = {"cell_type": "markdown", "metadata": {}, "source": "x"}
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]}))
    with pytest.raises(NotebookError, match="cell 1"):
        format_file(path)
