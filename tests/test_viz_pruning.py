"""Figures of lab 09: each says the finding in its data, is small, and a slider redraws fast."""

import time

import numpy as np
import torch

from pangu_lab.compression.measure import Latency
from pangu_lab.tasks.metrics import Metric
from pangu_lab.viz import png
from pangu_lab.viz.pruning import (
    curves_figure,
    heads_figure,
    histogram_figure,
    latency_figure,
    sample_magnitudes,
    schedule_figure,
)


def told(drawn):
    return " ".join(drawn.get_suptitle().split())


def magnitudes():
    generator = torch.Generator().manual_seed(0)
    return sample_magnitudes([scale * torch.randn(40, 50, generator=generator) for scale in [0.1] * 6 + [1.0] * 6])


def test_the_histogram_tells_how_unevenly_one_threshold_takes():
    drawn = histogram_figure(magnitudes(), 0.5)
    words = told(drawn).split()
    low, high = (int(words[i]) for i, word in enumerate(words[:-1]) if words[i + 1] == "%" and i > 5)
    assert low < 15 and high > 85 and "50 %" in told(drawn)
    assert "Nothing is pruned" in told(histogram_figure(magnitudes(), 0.0))
    assert len(png(drawn)) < 60_000


def test_a_slider_redraws_quickly():
    sampled = magnitudes()
    histogram_figure(sampled, 0.1)
    times = []
    for sparsity in (0.3, 0.6, 0.9):
        began = time.process_time()
        png(histogram_figure(sampled, sparsity))
        times.append(time.process_time() - began)
    assert min(times) < 0.5, times  # processor time: a busy machine does not count


def test_heads_are_counted_and_crossed_out():
    importance = np.array([[0.9, 0.1, 0.3], [0.2, 0.2, 0.8]])
    assert "3 of 6 heads hold 20 %" in told(heads_figure(importance, {0: [1], 1: [0, 1]}))
    assert "head 0 of layer 0" in told(heads_figure(importance, {}))


def test_a_latency_is_compared_with_the_first():
    times = {"dense": Latency((10.0, 12.0, 11.0)), "small": Latency((5.0, 6.0, 5.5))}
    drawn = latency_figure(times, "a batch", "half the time")
    assert any("2.00×" in text.get_text() for text in drawn.axes[0].texts)
    assert len(png(drawn)) < 60_000


def test_curves_and_schedule_draw_what_they_are_given():
    points = {0.5: Metric(0.8, 0.75, 0.85, "Wilson"), 0.9: Metric(0.6, 0.55, 0.65, "Wilson")}
    drawn = curves_figure({"a": points, "b": points}, Metric(0.82, 0.78, 0.86, "Wilson"), "9 rows", "zeros (%)", "told")
    assert told(drawn) == "told" and len(drawn.axes[0].get_legend().get_texts()) == 2
    drawn = schedule_figure(lambda step, begin, end, final, initial: min(final, final * step / end), 20, 0.8)
    assert "Halfway, 40 of the final 80 %" in told(drawn)
