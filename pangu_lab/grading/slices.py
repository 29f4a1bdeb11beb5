"""Single functions of a lab's exercises, cut out with what they need, so that the rest can stay outside the box.

The rule: a drive enters the box as the source of its function and of the top-level names that it uses. It may
use no name that an ``Exercise(...)`` gives as reference, also_right or mistake. A reference enters the same way,
after its exercise has been judged, and may use no reference of another exercise.
"""

import ast
import sys
from typing import Any

from pangu_lab.exercises import LABS
from pangu_lab.exercises.engine import Exercise, ExerciseError

_ANSWERS = ("reference", "also_right", "mistakes")


def drive_source(exercise: Exercise) -> tuple[str, str]:
    """The source of an exercise's drive and its name there.

    Raises
    ------
    ExerciseError
        The drive is no module-level function, or uses an answer.
    """
    return _cut(exercise.drive, exercise.id, "drive", _answer_names(exercise.drive.__module__))


def reference_source(exercise: Exercise) -> tuple[str, str]:
    """The source of an exercise's reference and its name there; it shows no other exercise's reference.

    Raises
    ------
    ExerciseError
        The reference is no module-level function or class, or uses that of another exercise.
    """
    module = getattr(exercise.reference, "__module__", "")
    own = getattr(exercise.reference, "__name__", "")
    others = _answer_names(module, ("reference",), other_than=exercise.id) - {own}
    return _cut(exercise.reference, exercise.id, "reference", others)


def _cut(wanted: Any, exercise_id: str, what: str, forbidden: set[str]) -> tuple[str, str]:
    module, name = getattr(wanted, "__module__", None), getattr(wanted, "__qualname__", "")
    if not module or getattr(sys.modules.get(module), name, None) is not wanted:
        raise ExerciseError(f"{exercise_id}: its {what} must be a function or class at the top level of a module")
    if not module.startswith("pangu_lab.exercises.") or module.rpartition(".")[2] not in LABS:
        return f"from {module} import {name}\n", name
    tree = _tree(module)
    owners = _owners(tree)
    used, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        if current in used or current not in owners:
            continue
        used.add(current)
        waiting += _names(owners[current])
    shown = sorted(used & forbidden)
    if shown:
        raise ExerciseError(f"{exercise_id}: its {what} uses {', '.join(shown)}, which would show an answer")
    nodes = {id(owners[n]): owners[n] for n in used}
    kept = [_only(node, used) for node in tree.body if id(node) in nodes]
    return "\n\n".join(ast.unparse(node) for node in kept) + "\n", name


def _only(node: ast.stmt, used: set[str]) -> ast.stmt:
    """An import statement without the names that are not used."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) in used]
        kept = ast.ImportFrom(node.module, names, node.level) if isinstance(node, ast.ImportFrom) else ast.Import(names)
        return ast.fix_missing_locations(ast.copy_location(kept, node))
    return node


def _tree(module: str) -> ast.Module:
    file = sys.modules[module].__file__
    assert file is not None
    with open(file, encoding="utf-8") as source:
        return ast.parse(source.read())


def _owners(tree: ast.Module) -> dict[str, ast.stmt]:
    """The statement that defines each top-level name."""
    owners: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            owners[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                owners[alias.asname or alias.name.split(".")[0]] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        owners[name.id] = node
    return owners


def _names(node: ast.AST) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


def _answer_names(module: str, keywords: tuple[str, ...] = _ANSWERS, other_than: str = "") -> set[str]:
    """The top-level functions and classes that the exercises of a module give as answers, right or wrong."""
    if not module.startswith("pangu_lab.exercises.") or module not in sys.modules:
        return set()
    tree = _tree(module)
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Exercise":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            name = given.get("id")
            if isinstance(name, ast.Constant) and name.value == other_than:
                continue
            for keyword in keywords:
                found |= _names(given[keyword]) if keyword in given else set()
    return found & defined
