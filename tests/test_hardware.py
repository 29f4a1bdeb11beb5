"""The figures of lab 00 and the arithmetic under them."""

import time

import pytest
import torch
from torch import nn

from pangu_lab.exercises.environment import count_parameters, encoder_flops
from pangu_lab.viz import png
from pangu_lab.viz.hardware import (
    DATA_SHEETS,
    Machine,
    Shape,
    Workload,
    drift_figure,
    duration,
    explorer,
    explorer_figure,
    lengths_figure,
    memory_figure,
    readable,
    roofline_figure,
    steps_figure,
    this_machine,
    times_figure,
)

HERE = Machine("this machine", 1e11, 1e12, "bf16", 1.3e10, 16e9)
MACHINES = (HERE, *DATA_SHEETS)
MINILM = Shape(6, 384)


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def test_the_shape_counts_what_a_real_module_has():
    assert MINILM.parameters == count_parameters(30_522, 512, 6, 384, 1536)


def test_the_shape_counts_the_operations_that_torch_counts():
    assert MINILM.step_flops(4, 32) == encoder_flops(6, 384, 1536, 4, 32, training=True)


def test_adamw_keeps_two_moments_of_four_bytes():
    layer = nn.Linear(100, 100)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    assert sum(t.nbytes for t in moments) == 8 * sum(p.numel() for p in layer.parameters())


def test_this_machine_is_measured_in_about_a_second():
    began = time.monotonic()
    machine = this_machine(0.3)
    assert time.monotonic() - began < 15  # torch is imported, and the first product prepares its kernels
    assert machine.fp32 > 1e8 and machine.matrix > 1e8 and machine.bandwidth > 1e8
    assert machine.memory > 1e9


@pytest.mark.parametrize(("value", "text"), [(22.7e6, "22.7 M"), (999, "999"), (1e12, "1 T"), (0.5, "0.5"), (16, "16")])
def test_readable_numbers(value, text):
    assert readable(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0005, "500 µs"), (0.25, "250 ms"), (90, "1.5 min"), (7200, "2 h"), (2e5, "2.31 d")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


WORK = (Workload("IMDB", 25_000, 200, 3), Workload("tweets", 45_615, 25, 3))


@pytest.mark.parametrize(
    ("figure", "finding"),
    [
        (roofline_figure(MACHINES, {"add": 0.1, "norm": 1, "product": 500}), "bounds 2 of 3 operations"),
        (times_figure(MACHINES, WORK, MINILM), "on this machine, "),
        (memory_figure({"small": 2e7, "PanGu-α 2.6B": 2.6e9}, MACHINES), "2.6B is the largest"),
        (lengths_figure({"reviews": [100, 200], "tweets": [20, 30]}, 128), "cuts 50% of the reviews"),
        (explorer_figure(MINILM, 16, 128, MACHINES), "fits 4 of 4 machines"),
        (explorer_figure(Shape(96, 16384), 256, 2048, MACHINES), "fits none"),
        (steps_figure([2.0, 2.2, 2.1], 1.0), "2.1 times as long"),
        (drift_figure({"same": [0, 0], "other order": [1e-8, 1e-3]}), "other order: weights up to 0.001 apart"),
    ],
)  # fmt: skip
def test_a_figure_states_its_finding_and_is_small(figure, finding):
    assert finding in title(figure)
    assert len(png(figure)) < 60_000


def test_the_explorer_redraws_while_a_slider_moves():
    box = explorer(MACHINES)
    image = box.children[1]
    before, slider = image.value, box.children[0].children[0].children[0]
    slider.value = 12
    assert image.value != before
    times = []  # of the processor, not of the wall: other programs must not decide
    for layers in (1, 24, 2, 48, 4):
        began = time.process_time()
        slider.value = layers
        times.append(time.process_time() - began)
    assert min(times) < 0.1
