"""The figures of lab 11: titles that say what is in the data, and a slider that need not wait."""

import time

import numpy as np

from pangu_lab.tasks.metrics import Metric, wilson_interval
from pangu_lab.viz import png
from pangu_lab.viz.quantization import (
    AtBits,
    Measured,
    bits_explorer,
    bits_figure,
    error_map_figure,
    methods_figure,
    outliers_figure,
    thresholds_figure,
)

TESTED = "100 test reviews, bundled sample"
WEIGHTS = np.random.default_rng(0).normal(0, 0.05, 384)


def metric(right, total=100):
    return Metric(right / total, *wilson_interval(right, total), "Wilson")


TABLE = {bits: AtBits(1 / 2**bits, metric(50 + 4 * bits)) for bits in range(2, 9)}


def title(drawn):
    return drawn.get_suptitle().replace("\n", " ")


def test_bits_say_error_and_accuracy():
    drawn = bits_figure(WEIGHTS, TABLE, 4, 0.83, TESTED)
    assert "off by 6.2%" in title(drawn) and "accuracy is 0.660 (float: 0.830)" in title(drawn)
    assert len(png(drawn)) < 60_000


def test_the_slider_redraws():
    explorer = bits_explorer(WEIGHTS, TABLE, 0.83, TESTED)
    slider, image = explorer.children
    before, began = image.value, time.perf_counter()
    slider.value = 2
    assert image.value != before and time.perf_counter() - began < 2


def test_outliers_thresholds_and_the_map_name_the_extremes():
    peaks = np.ones(100)
    peaks[7] = 12.7
    drawn = outliers_figure(peaks, "layer 1")
    assert "12.7 times the median" in title(drawn) and "10 of 127" in title(drawn)
    values = np.concatenate([np.linspace(0, 1, 990), np.full(10, 8.0)])
    told = title(thresholds_figure(values, {"min-max": 8.0, "percentile": 1.0}, "layer 1"))
    assert "“percentile” clips 1.00%" in told and "8.0 times as fine as “min-max”" in told
    errors = np.full((2, 3), 0.01)
    errors[1, 2] = 0.05
    told = title(error_map_figure(errors, ["layer 1", "layer 2"], ["query", "key", "up"], "int8"))
    assert "up of layer 2 is off most, by 5 %" in told and "median layer by 1 %" in told


def test_methods_say_smallest_fastest_and_the_loss():
    methods = {
        "float": Measured(90.0, 10.0, 12.0, metric(83), 1.0),
        "int8": Measured(22.5, 20.0, 25.0, metric(81), 0.99),
    }
    told = title(methods_figure(methods, TESTED))
    assert "int8, 4.0 times smaller than float" in told and "Fastest here: float" in told and "2.0 points" in told
