"""The project as a whole: quick imports, one direction of arrows, equal pins, nothing that does not belong."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from pangu_lab.grading.notebook_format import MACHINE_FOLDERS

PACKAGE = ROOT / "pangu_lab"
TEACHING = {"exercises", "lab", "runtime", "viz", "progress"}
ABOVE = {"grading", "demo", "doctor"} | {path.stem for path in PACKAGE.glob("cli*.py")}


def tracked_files():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def module_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pangu_lab"):
            parts = node.module.split(".")
            yield from ([parts[1]] if len(parts) > 1 else [alias.name for alias in node.names])


def test_the_core_knows_nothing_of_teaching_and_teaching_nothing_of_grading():
    for path in PACKAGE.rglob("*.py"):
        module, imported = module_of(path), set(imports_of(path))
        if module in TEACHING:
            assert not imported & ABOVE - {"doctor"}, path
        elif module not in ABOVE:
            assert not imported & (TEACHING | ABOVE), path


def test_importing_the_package_is_quick_and_imports_nothing_heavy():
    program = (
        "import sys, time; t = time.perf_counter(); import pangu_lab; print(time.perf_counter() - t, *sys.modules)"
    )
    fastest, modules = min(
        (float(words[0]), words[1:])
        for words in (
            subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.split()
            for _ in range(3)
        )
    )
    assert fastest < 0.2 and "torch" not in modules


def test_the_command_line_imports_nothing_heavy():
    program = "import sys, pangu_lab.cli; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.split()
    assert "pangu_lab.cli" in modules
    assert not {"torch", "transformers", "datasets", "sklearn", "matplotlib", "pandas"} & set(modules)


def pins(lines):
    return sorted(line.strip() for line in lines if re.match(r"^[A-Za-z0-9_.-]+==", line.strip()))


def test_conda_and_pip_have_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pins(pip) == pins((ROOT / "requirements.txt").read_text().splitlines())


def test_every_dependency_is_pinned_and_every_pin_is_allowed_by_the_metadata():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]
    pinned = {
        pin.split("==")[0].lower().replace("_", "-"): pin.split("==")[1]
        for pin in pins((ROOT / "requirements.txt").read_text().splitlines())
    }
    for requirement in wanted:
        version = pinned.pop(requirement.name.lower().replace("_", "-"))
        assert requirement.specifier.contains(version), requirement
    assert not pinned, "pinned, but not a dependency"


def test_a_newer_torch_is_allowed():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = [Requirement(text) for text in project["dependencies"] if text.startswith("torch>")]
    assert torch.specifier.contains("2.19.0") and torch.specifier.contains("2.13.0+cu130")


@pytest.mark.skipif(not tracked_files(), reason="not a git checkout")
def test_no_file_names_a_machine_or_is_too_large():
    places = [f"/{name}/" for name in MACHINE_FOLDERS] + [f"{folder}/" for folder in (ROOT, sys.prefix)]
    home = re.compile("|".join(map(re.escape, places)))
    for path in tracked_files():
        assert path.stat().st_size < 1_500_000, path
        if path.suffix in (".ipynb", ".md", ".json", ".yaml", ".yml", ".toml") or path.parent == PACKAGE:
            found = home.search(path.read_text(encoding="utf-8", errors="ignore"))
            assert not found, (path, found and found.group())


def test_every_module_says_what_it_is_for():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if tree.body:
            assert ast.get_docstring(tree), path


def test_files_fit_in_the_head():
    for path in PACKAGE.rglob("*.py"):
        # A lab's exercises are data, read one at a time; code is read whole.
        limit = 900 if path.parent.name == "exercises" else 500
        assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, path


def test_public_functions_are_documented():
    """Every public function and class of the core says what it does; one line may be enough."""
    for path in PACKAGE.rglob("*.py"):
        if "exercises" in Path(path).parts:
            continue  # references and mistakes are explained by their sentences
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                lines = (node.end_lineno or 0) - node.lineno
                assert ast.get_docstring(node) or lines <= 12, f"{path.name}: {node.name}"
