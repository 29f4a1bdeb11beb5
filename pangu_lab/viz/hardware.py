"""What a model costs, and what this machine and three GPUs make of it: the figures of lab 00.

``this_machine`` measures, ``Shape`` computes; everything else is a pure function that draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pangu_lab.viz import BLUE, GRAY, ORANGE, figure, finding, png


@dataclass(frozen=True)
class Machine:
    """Peak FLOP/s in fp32 and in its matrix units, bytes/s, and bytes of memory."""

    name: str
    fp32: float
    matrix: float
    matrix_type: str
    bandwidth: float
    memory: float

    @property
    def ridge(self) -> float:
        """FLOPs a byte above which the matrix units, not the memory, set the speed."""
        return self.matrix / self.bandwidth


# NVIDIA's data sheets: Tesla V100 SXM2 (32 GB), A100 SXM (40 GB), H200 SXM; dense, without sparsity.
DATA_SHEETS = (
    Machine("V100", 15.7e12, 125e12, "fp16", 900e9, 32e9),
    Machine("A100", 19.5e12, 312e12, "bf16", 1555e9, 40e9),
    Machine("H200", 67e12, 989e12, "bf16", 4.8e12, 141e9),
)


def this_machine(seconds: float = 1.0) -> Machine:
    """Measure this machine: its matrix products in fp32 and bf16 and its memory, a third of the time each."""
    # Torch is slow to import, and the figures do not need it.
    import psutil
    import torch

    from pangu_lab.speed import matmul_speed, memory_bandwidth
    from pangu_lab.training import choose_precision

    precision, _ = choose_precision("auto")
    fp32 = matmul_speed(seconds / 3)
    matrix = matmul_speed(seconds / 3, precision) if precision != "fp32" else fp32
    gpu = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory if gpu else psutil.virtual_memory().total
    return Machine("this machine", fp32, matrix, precision, memory_bandwidth(seconds / 3), float(memory))


@dataclass(frozen=True)
class Shape:
    """An encoder's shape; ``d_ff`` is four times ``d_model``."""

    layers: int
    d_model: int
    vocab: int = 30_522
    max_length: int = 512

    @property
    def parameters(self) -> int:
        """Embeddings, layers with biases and norms, and a tied head with its bias."""
        d = self.d_model
        layer = 12 * d * d + 13 * d
        return (self.vocab + self.max_length + 2) * d + self.layers * layer + self.vocab

    def step_flops(self, batch: int, length: int) -> int:
        """FLOPs of one training step of the layers: three times the forward pass's matrix products."""
        tokens = batch * length
        weights = 12 * self.layers * self.d_model**2
        return 3 * (2 * weights * tokens + 4 * self.layers * tokens * length * self.d_model)

    def step_bytes(self, batch: int, length: int) -> int:
        """Bytes of a step: AdamW's 16 a parameter, and about 34 a number of each layer's output.

        The second term is Korthikanti et al. 2022 (arXiv 2205.05198), equation 2, in 2-byte numbers, without
        the length² part, which today's attention kernels do not keep.
        """
        return 16 * self.parameters + 34 * self.layers * batch * length * self.d_model


@dataclass(frozen=True)
class Workload:
    """Training on a data set: its examples, the tokens of each, and the passes over them."""

    name: str
    examples: int
    tokens: int
    epochs: int

    def flops(self, shape: Shape) -> int:
        return self.epochs * shape.step_flops(self.examples, self.tokens)


def readable(value: float, unit: str = "") -> str:
    """A number with two or three digits and a prefix: 22.7 M, 1.5 GB, 12 k."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def duration(seconds: float) -> str:
    """A time in the unit a person would use."""
    for factor, name in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {name}"
    return f"{seconds * 1e6:.3g} µs"


# --- figures ----------------------------------------------------------------------------------------


def roofline_figure(machines: Sequence[Machine], work: Mapping[str, float]) -> Figure:
    """Rooflines of machines; ``work`` names operations by their intensity in FLOPs a byte."""
    drawn, axes = figure()
    low, high = 0.05, 4000.0
    for machine in machines:
        x = [low, machine.ridge, high]
        y = [min(machine.matrix, value * machine.bandwidth) for value in x]
        (line,) = axes.loglog(x, y)
        label = f"{machine.name}, {readable(machine.matrix, 'FLOP/s')} in {machine.matrix_type}"
        place = {"xytext": (-2, 4), "textcoords": "offset points", "ha": "right", "fontsize": 9}
        axes.annotate(label, (high, machine.matrix), color=line.get_color(), **place)
    here = machines[0]
    ordered = sorted(work.items(), key=lambda item: item[1])
    for number, (_, intensity) in enumerate(ordered, start=1):
        reached = min(here.matrix, intensity * here.bandwidth)
        axes.plot(intensity, reached, "o", color=BLUE)
        axes.annotate(str(number), (intensity, reached), (3, -14), textcoords="offset points", color=BLUE)
    named = "\n".join(f"{number}  {name}" for number, (name, _) in enumerate(ordered, start=1))
    axes.text(0.68, 0.05, named, transform=axes.transAxes, fontsize=9, color=BLUE)
    slow = [name for name, value in work.items() if value < here.ridge]
    finding(drawn, f"Memory, not arithmetic, bounds {len(slow)} of {len(work)} operations on {here.name}")
    axes.set_xlabel("arithmetic intensity (FLOPs a byte moved)")
    axes.set_ylabel("within reach (FLOP/s)")
    axes.set_xlim(low, high)
    axes.set_ylim(min(here.matrix, low * here.bandwidth) / 3, 3 * max(m.matrix for m in machines))
    return drawn


def times_figure(machines: Sequence[Machine], work: Sequence[Workload], shape: Shape) -> Figure:
    """The least time of each workload on each machine, at the peak of its matrix units."""
    drawn, axes = figure()
    height = 0.8 / len(machines)
    for i, machine in enumerate(machines):
        seconds = [workload.flops(shape) / machine.matrix for workload in work]
        places = [row + (i - (len(machines) - 1) / 2) * height for row in range(len(work))]
        bars = axes.barh(places, seconds, 0.92 * height, label=machine.name, log=True)
        axes.bar_label(bars, [duration(value) for value in seconds], padding=3, fontsize=9)
    names = [f"{w.name}\n{w.examples:,} × {w.tokens} tokens,\n{w.epochs} epochs" for w in work]
    axes.set_yticks(range(len(work)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    times = [sum(w.flops(shape) for w in work) / machine.matrix for machine in (machines[0], machines[-1])]
    finding(
        drawn,
        f"All three tasks take at least {duration(times[0])} on {machines[0].name}, "
        f"{duration(times[1])} on {machines[-1].name}",
    )
    axes.set_xlabel("training time with the matrix units at their peak")
    _time_axis(axes)
    seconds = [workload.flops(shape) / machine.matrix for machine in machines for workload in work]
    axes.set_xlim(min(seconds) / 3, 5 * max(seconds))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=len(machines))
    return drawn


def _time_axis(axes: Any) -> None:
    axes.set_xticks([1e-3, 1, 60, 3600, 86_400, 86_400 * 365], ["1 ms", "1 s", "1 min", "1 h", "1 d", "1 year"])
    axes.xaxis.set_minor_locator(NullLocator())


def memory_figure(models: Mapping[str, float], machines: Sequence[Machine]) -> Figure:
    """Bytes to run (2 a parameter) and to train (16 a parameter) each model, and what the machines have."""
    drawn, axes = figure()
    rows = range(len(models))
    for offset, width, color, label in ((-0.2, 2, GRAY, "to run it in bf16"), (0.2, 16, BLUE, "to train it")):
        sizes = [width * parameters for parameters in models.values()]
        bars = axes.barh([row + offset for row in rows], sizes, 0.38, color=color, label=label, log=True)
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.bar_label(bars, [readable(size, "B") for size in sizes], padding=3, fontsize=9, bbox=paper)
    for i, machine in enumerate(sorted(machines, key=lambda machine: machine.memory)):
        axes.axvline(machine.memory, color=ORANGE, linestyle="--", linewidth=1.2, zorder=0)
        place: dict[str, Any] = {"ha": "right" if i < len(machines) / 2 else "left", "fontsize": 9}
        place |= {
            "xytext": (-3 if i < len(machines) / 2 else 3, 2 + 11 * (i % 2)),
            "textcoords": "offset points",
        }
        text = f"{machine.name}, {machine.memory / 1e9:.0f} GB"
        axes.annotate(text, (machine.memory, 1), xycoords=("data", "axes fraction"), **place)
    axes.set_yticks(rows, list(models))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(1e7, 3e13)
    axes.set_xlabel("memory (bytes), activations not counted")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    most = max(machines, key=lambda machine: machine.memory)
    trained = [name for name, parameters in models.items() if 16 * parameters <= most.memory]
    finding(drawn, f"{trained[-1] if trained else 'None'} is the largest of these that one {most.name} can train")
    return drawn


def lengths_figure(lengths: Mapping[str, Sequence[int]], limit: int) -> Figure:
    """How long the texts of each data set are, in tokens, beside the limit of a lab."""
    drawn, all_axes = figure(1, len(lengths), sharey=True, figsize=(8, 3.2))
    share = {name: sum(n > limit for n in values) / len(values) for name, values in lengths.items()}
    most = max(share, key=lambda name: share[name])
    for axes, (name, values) in zip(all_axes, lengths.items(), strict=True):
        weights = [100 / len(values)] * len(values)
        axes.hist(values, bins=20, weights=weights, color=BLUE, linestyle="-")
        axes.axvline(limit, color=ORANGE, linestyle="--")
        axes.set_title(f"{name}: {share[name]:.0%} beyond {limit}", fontsize=10, fontweight="normal")
        axes.set_xlabel("tokens")
        axes.set_xlim(left=0)
    all_axes[0].set_ylabel("texts (%)")
    finding(drawn, f"A limit of {limit} tokens cuts {share[most]:.0%} of the {most}")
    return drawn


def steps_figure(seconds: Sequence[float], least: float) -> Figure:
    """Seconds of each training step beside the least that arithmetic needs."""
    drawn, axes = figure(figsize=(8, 3.2))
    axes.plot(range(1, len(seconds) + 1), seconds, "o-", label="measured")
    axes.axhline(least, color=ORANGE, linestyle="--", label="the least, by arithmetic")
    axes.set_ylim(0, 1.35 * max(*seconds, least))
    axes.set_xlabel("step")
    axes.set_ylabel("time of a step (s)")
    axes.legend(loc="upper right")
    ratio = sorted(seconds)[len(seconds) // 2] / least
    finding(drawn, f"A training step takes {ratio:.1f} times as long as its matrix products at their peak")
    return drawn


def drift_figure(drift: Mapping[str, Sequence[float]]) -> Figure:
    """How far two runs are apart, step by step; a run that stays at 0 is drawn on the lower edge."""
    drawn, axes = figure(figsize=(8, 3.6))
    lowest = min((value for values in drift.values() for value in values if value > 0), default=1e-9) / 10
    most = {name: max(values) for name, values in drift.items()}
    for name, values in drift.items():
        axes.semilogy(range(1, len(values) + 1), [max(value, lowest) for value in values], label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("largest difference of a weight")
    ticks = [10.0**power for power in range(-8, 3, 2) if 10.0**power > 3 * lowest]
    axes.set_yticks([lowest, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(lowest / 1.5, 3 * max(lowest, *most.values()))
    axes.legend(loc="upper left", bbox_to_anchor=(0.55, 0.55))
    same, worst = " and ".join(name for name in most if not most[name]), max(most, key=lambda name: most[name])
    finding(drawn, f"{same or 'No run'}: no difference. {worst}: weights up to {most[worst]:.1g} apart")
    return drawn


def explorer_figure(shape: Shape, batch: int, length: int, machines: Sequence[Machine]) -> Figure:
    """Parameters, memory and least time of a step for one shape: what the explorer shows."""
    # A fixed layout: finding one takes longer than all the rest, and a slider waits for it.
    drawn, (left, right) = figure(1, 2, figsize=(8, 2.8), layout="none")
    drawn.subplots_adjust(left=0.13, right=0.98, bottom=0.18, top=0.86, wspace=0.06)
    need, rows = shape.step_bytes(batch, length), range(len(machines))
    fits = [need <= machine.memory for machine in machines]
    colors = [BLUE if good else GRAY for good in fits]
    left.barh(rows, [need / machine.memory for machine in machines], color=colors, log=True)
    left.axvline(1, color=ORANGE, linestyle="--")
    # Ticks in words: powers of ten are set by a formula renderer, which costs more than the bars.
    left.set_xticks([1e-4, 1e-2, 1, 100], ["0.01 %", "1 %", "all of it", "100 ×"])
    left.set_xlim(1e-5, 1e3)
    left.set_yticks(rows, [machine.name for machine in machines])
    left.set_xlabel("memory needed, of what is there")
    seconds = [shape.step_flops(batch, length) / machine.matrix for machine in machines]
    bars = right.barh(rows, seconds, color=colors, log=True)
    right.bar_label(bars, [duration(value) for value in seconds], padding=3, fontsize=9)
    right.set_yticks([])
    right.set_xlabel("least time of a step")
    _time_axis(right)
    right.set_xlim(1e-6, 1e6)
    for axes in (left, right):
        axes.xaxis.set_minor_locator(NullLocator())
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    where = f"fits {sum(fits)} of {len(fits)} machines" if any(fits) else "fits none of the machines"
    finding(drawn, f"{readable(shape.parameters)} parameters, {readable(need, 'B')}: {where}")
    return drawn


def explorer(machines: Sequence[Machine]) -> Any:
    """Four sliders over ``explorer_figure``."""
    import ipywidgets as widgets

    def slider(name: str, options: Sequence[int], value: int) -> Any:
        return widgets.SelectionSlider(
            description=name, options=options, value=value, continuous_update=False, layout={"width": "380px"}
        )

    layers = slider("layers", (1, 2, 4, 6, 12, 24, 48, 96), 6)
    width = slider("d_model", (128, 256, 384, 768, 1024, 2048, 4096, 8192, 16384), 384)
    length = slider("length", (32, 64, 128, 256, 512, 1024, 2048), 128)
    batch = slider("batch", (1, 2, 4, 8, 16, 32, 64, 128, 256), 16)
    image = widgets.Image(format="png")

    def redraw(_: Any = None) -> None:
        shape = Shape(layers.value, width.value, max_length=max(512, length.value))
        image.value = png(explorer_figure(shape, batch.value, length.value, machines))

    for control in (layers, width, length, batch):
        control.observe(redraw, "value")
    redraw()
    controls = widgets.HBox([widgets.VBox([layers, width]), widgets.VBox([length, batch])])
    return widgets.VBox([controls, image])
