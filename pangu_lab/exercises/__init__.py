"""All exercises of the course, one module per lab; a lab's module is imported when it is first asked for.

``LABS`` maps a lab's key, the first part of its exercises' ids, to its notebook. A module that is not
there (a lab yet to be written, or a grading box that must not hold the references) counts as empty.
"""

import ast
import difflib
import functools
import importlib
import importlib.util
from pathlib import Path

from pangu_lab.exercises.engine import Exercise, ExerciseError

LABS = {
    "environment": "00_environment",
    "text": "01_text_and_data",
    "attention": "02_attention",
    "architecture": "03_architecture",
    "optimization": "04_losses_and_optimizers",
    "pretraining": "05_pretraining",
    "classification": "06_classification",
    "sentiment": "07_sentiment",
    "squad": "08_question_answering",
    "pruning": "09_pruning",
    "distillation": "10_distillation",
    "quantization": "11_quantization",
    "results": "12_results",
}


class UnknownExercise(ExerciseError):
    """No exercise has this id."""


def lab_exercises(lab: str) -> tuple[Exercise, ...]:
    """The exercises of one lab, in the order of its notebook; empty while the lab is not written."""
    name = f"{__name__}.{lab}"
    if lab not in LABS or importlib.util.find_spec(name) is None:
        return ()
    return tuple(importlib.import_module(name).EXERCISES)


@functools.cache
def _written_titles(lab: str) -> dict[str, str]:
    spec = importlib.util.find_spec(f"{__name__}.{lab}") if lab in LABS else None
    if spec is None or spec.origin is None:
        return {}
    titles = {}
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
            if isinstance(given.get("id"), str) and isinstance(given.get("title"), str):
                titles[str(given["id"])] = str(given["title"])
    return titles


def title_of(exercise_id: str) -> str:
    """The title of an exercise, or its id where it is not known here.

    It is read from the lab's source: to import a lab imports torch, and who only writes reports need not carry that.
    """
    return _written_titles(exercise_id.partition(".")[0]).get(exercise_id, exercise_id)


def all_exercises() -> tuple[Exercise, ...]:
    """Every exercise of the course, lab by lab."""
    return tuple(exercise for lab in LABS for exercise in lab_exercises(lab))


def get(exercise_id: str) -> Exercise:
    """The exercise of that id; imports its lab only.

    Raises
    ------
    UnknownExercise
        With the nearest ids that exist.
    """
    wanted = str(exercise_id)
    for exercise in lab_exercises(wanted.partition(".")[0]):
        if exercise.id == wanted:
            return exercise
    known = [exercise.id for exercise in all_exercises()]
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4)
    advice = f"did you mean {' or '.join(near)}?" if near else "see progress() for the labs and their exercises"
    raise UnknownExercise(f"there is no exercise {wanted!r}; {advice}")
