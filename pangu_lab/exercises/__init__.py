"""All exercises of the course, one module per lab; a lab's module is imported when it is first asked for.

``LABS`` maps a lab's key, the first part of its exercises' ids, to its notebook. A module that is not
there (a lab yet to be written, or a grading box that must not hold the references) counts as empty.
"""

import difflib
import importlib
import importlib.util

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
