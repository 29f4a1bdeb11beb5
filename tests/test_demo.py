"""The headless course: one page that needs nothing but itself, failures told, times and memory recorded."""

import json
import re

import nbformat
import pytest

from pangu_lab.demo import DemoError, run_demo, with_mathml


def notebook(folder, name, *cells):
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_markdown_cell(f"# {name} · A title")]
    made.cells += [nbformat.v4.new_code_cell("MODE = 'lesson'", metadata={"tags": ["parameters"]})]
    made.cells += list(cells)
    nbformat.write(made, folder / f"{name}.ipynb")


def test_the_page_holds_every_notebook_and_points_nowhere_else(tmp_path, config):
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    drawing = (
        "import matplotlib\nmatplotlib.use('agg')\nfrom pangu_lab.viz import figure, use_style\nuse_style()\n"
        "f, a = figure()\na.plot([1, 2])\nf"
    )
    notebook(tmp_path, "00_one", code("print('mode is', MODE)"), text("so $x^2$"), code(drawing))
    notebook(tmp_path, "01_two", code("1 / 0"), code("print('never')"))
    notebook(tmp_path, "02_three", code("import os; os._exit(1)"))
    notebook(tmp_path, "03_four", code("print('still here')"))
    record = tmp_path / "labs.json"
    results = run_demo(tmp_path, tmp_path / "report.html", config, record=record)
    assert [bool(result.error) for result in results] == [False, True, True, False]
    assert "ZeroDivisionError" in results[1].error
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "mode is smoke" in page and "still here" in page and "ZeroDivisionError" in page
    assert "data:image/png;base64," in page and "<math" in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page), "the page must need nothing but itself"
    labs = json.loads(record.read_text())
    assert set(labs["labs"]) == {"00_one", "03_four"}
    assert labs["labs"]["00_one"]["smoke"]["peak_bytes"] > 10_000_000 and labs["gflops"] > 0


def test_nothing_to_run_is_told(tmp_path, config):
    with pytest.raises(DemoError, match="has no notebook"):
        run_demo(tmp_path, tmp_path / "report.html", config)


def test_formulas_become_mathml_and_code_does_not():
    assert "<math" in with_mathml("as $\\frac{1}{n}$ says") and "$" not in with_mathml("$$x$$")
    for text in ("`$HOME` and `$PATH`", "```\n$x$\n```", "costs $5 and $6 more"):
        assert with_mathml(text) == text
