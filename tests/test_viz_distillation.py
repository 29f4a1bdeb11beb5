"""The figures of lab 10: what their titles say follows from the numbers, and a slider need not wait."""

import time

import numpy as np
import pytest

from pangu_lab.viz import png
from pangu_lab.viz.distillation import (
    Point,
    compared,
    gradient_figure,
    runs_figure,
    size_figure,
    softened,
    temperature_explorer,
    temperature_figure,
    unlabelled_figure,
)

TEACHER = np.array([[-3.0, 3.0], [2.0, -2.0], [0.5, 0.0]])
STUDENT = np.array([[-1.0, 1.0], [1.0, -1.0], [-0.5, 0.5]])
NAMES = ["one", "two", "three"]


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def test_a_temperature_softens_as_torch_does():
    import torch

    for temperature in (0.5, 1.0, 7.0):
        expected = torch.softmax(torch.tensor(TEACHER) / temperature, dim=-1).numpy()
        np.testing.assert_allclose(softened(TEACHER, temperature), expected)
    assert np.isfinite(softened(np.array([[1e4, 0.0]]), 1.0)).all()


def test_the_bars_are_the_probabilities_and_the_title_their_mean():
    drawn = temperature_figure(TEACHER, STUDENT, 2.0, NAMES, "positive")
    widths = [bar.get_width() for bar in drawn.axes[0].patches]
    expected = [*softened(TEACHER, 2.0)[:, 1], *softened(STUDENT, 2.0)[:, 1]]
    assert widths == pytest.approx(expected)
    left = softened(TEACHER, 2.0).min(axis=1).mean()
    assert f"leaves {left:.3f} on average" in title(drawn) and "at T = 1" in title(drawn)


def test_the_slider_does_not_wait():
    box = temperature_explorer(TEACHER, STUDENT, NAMES, "positive")
    slider, image = box.children
    before, began = image.value, time.perf_counter()
    slider.value = 5.0
    assert image.value != before and time.perf_counter() - began < 2  # 100 ms on a machine at rest


def test_the_gradients_title_names_each_factor():
    sizes = {"with": {1.0: 1.0, 4.0: 0.9}, "without": {1.0: 1.0, 4.0: 0.05}}
    drawn = gradient_figure(sizes, "with", "batch of 8")
    assert "From T = 1 to 4" in title(drawn) and "0.9 (with), 0.05 (without)" in title(drawn)


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (0.90, "“soft” is 10.0 points above “hard”; the intervals do not overlap"),
        (0.79, "“soft” is 1.0 points below “hard”; the intervals overlap"),
        (0.80, "“soft” and “hard” are level; the intervals overlap"),
    ],
)
def test_two_ways_are_compared_by_their_means(second, told):
    runs = {"hard": [0.78, 0.82], "soft": [second]}
    assert compared(runs, 500, ("hard", "soft")) == told
    drawn = runs_figure(runs, 500, {"teacher": 0.9}, "500 texts", ("hard", "soft"))
    assert title(drawn) == told


def test_the_size_figure_compares_the_best_student_with_the_teacher():
    teacher = Point("teacher", 90.0, 20.0, (0.9,))
    students = [Point("2 layers", 60.0, 8.0, (0.8, 0.84)), Point("1 layer", 50.0, 4.0, (0.7,))]
    drawn = size_figure(teacher, students, 400, "400 texts", "batch 1")
    assert title(drawn) == "2 layers: 2.5 times faster, 1.5 times smaller and 8.0 points behind the teacher"
    even = size_figure(teacher, [Point("3 layers", 60.0, 10.0, (0.9,))], 400, "400 texts", "batch 1")
    assert "level with the teacher" in title(even)


def test_the_title_of_unlabelled_texts_says_what_they_add_or_cost():
    level = ("hard labels", 0.72)
    gained = unlabelled_figure({0: [0.7], 500: [0.71], 1500: [0.75]}, level, 200, 128, "200 texts")
    assert "1,500 texts without a label add 5.0 points" in title(gained) and "overlap" in title(gained)
    lost = unlabelled_figure({0: [0.7], 1500: [0.69]}, level, 200, 128, "200 texts")
    assert "cost 1.0 points" in title(lost)
    assert len(png(gained)) < 60_000
