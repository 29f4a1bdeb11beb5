"""Optimizers at work: three landscapes to race on, and the figures of lab 04.

A *rule* is ``rule(theta, g, t, *state) -> (theta, *state)``: one step on tensors, its state zeros at first. The
student's own functions race here; ``descend`` walks, everything below it draws.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pangu_lab.viz import BLACK, BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, Repainted, figure, finding

Rule = Callable[..., Any]
NEAR = 0.01  # arrived: this share of the height at the start is left, and it stays so
COLORS = (GRAY, BLACK, ORANGE, GREEN, BLUE, PURPLE, RED)
STYLES = ("-", "--", "-.", ":", "-", "--", ":")


@dataclass(frozen=True)
class Landscape:
    """A function of the plane whose lowest value is 0, its gradient, and where a race begins.

    ``box`` is what a picture shows: left, right, bottom, top. ``lowest`` are the places of the lowest value.
    """

    name: str
    value: Callable[[Any, Any], Any]
    gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    start: tuple[float, float]
    lowest: tuple[tuple[float, float], ...]
    box: tuple[float, float, float, float]


# A ravine 50 times as steep across as along, turned by 30°: no method can treat each coordinate on its own.
_C, _S, _STEEP = math.cos(math.pi / 6), math.sin(math.pi / 6), 50.0


def _ravine(x: Any, y: Any) -> Any:
    return ((_C * x + _S * y) ** 2 + _STEEP * (_C * y - _S * x) ** 2) / 2


def _ravine_gradient(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    along, across = _C * x + _S * y, _STEEP * (_C * y - _S * x)
    return _C * along - _S * across, _S * along + _C * across


LANDSCAPES = (
    Landscape(
        "Rosenbrock",
        lambda x, y: (1 - x) ** 2 + 10 * (y - x**2) ** 2,
        lambda x, y: (2 * (x - 1) - 40 * x * (y - x**2), 20 * (y - x**2)),
        (-1.2, 1.0),
        ((1.0, 1.0),),
        (-1.8, 1.8, -0.7, 1.9),
    ),
    Landscape("ravine", _ravine, _ravine_gradient, (-2.0, -0.85), ((0.0, 0.0),), (-2.5, 1.1, -1.8, 1.1)),
    Landscape(
        "saddle",
        lambda x, y: x**2 / 2 + (y**2 - 1) ** 2 / 4,
        lambda x, y: (x, y**3 - y),
        (-1.5, 1e-3),
        ((0.0, 1.0), (0.0, -1.0)),
        (-2.0, 1.7, -0.9, 1.8),
    ),
)


@dataclass(frozen=True)
class Run:
    """One optimizer on one landscape: its rate, its way (steps + 1, 2), the share of the height left on it.

    ``inside``: it never left the box.
    """

    rate: float
    path: np.ndarray
    left: np.ndarray
    inside: bool

    @property
    def needed(self) -> int | None:
        """Steps until ``NEAR`` of the height is left for good; None where that does not happen."""
        above = np.flatnonzero(~(self.left <= NEAR))
        arrived = int(above[-1]) + 1 if len(above) else 0
        return arrived if arrived < len(self.left) else None


def descend(rule: Rule, steps: int, landscapes: Sequence[Landscape] = LANDSCAPES) -> np.ndarray:
    """The way of ``rule`` on all landscapes at once, (steps + 1, landscapes, 2); nan where it flew away."""
    theta = torch.tensor([landscape.start for landscape in landscapes], dtype=torch.float64)  # (landscapes, 2)
    states: list[Tensor] = [torch.zeros_like(theta) for _ in range(len(inspect.signature(rule).parameters) - 3)]
    way = [theta]
    for t in range(1, steps + 1):
        rows = [torch.stack(landscape.gradient(*theta[i])) for i, landscape in enumerate(landscapes)]
        theta, *states = rule(theta, torch.stack(rows), t, *states)
        way.append(theta)
    path = torch.stack(way).numpy()
    return np.where(np.abs(path) < 1e3, path, np.nan)


def runs(rule: Rule, rate: float, steps: int, landscapes: Sequence[Landscape] = LANDSCAPES) -> list[Run]:
    """``descend`` as one ``Run`` for each landscape."""
    path = descend(rule, steps, landscapes)
    found = []
    for i, landscape in enumerate(landscapes):
        height = landscape.value(path[:, i, 0], path[:, i, 1])
        left, right, bottom, top = landscape.box
        x, y = path[:, i].T
        inside = bool(((x >= left) & (x <= right) & (y >= bottom) & (y <= top)).all())
        found.append(Run(rate, path[:, i], height / landscape.value(*landscape.start), inside))
    return found


def race(make: Callable[[float], Mapping[str, Rule]], rates: Sequence[float], steps: int) -> dict[str, list[Run]]:
    """For each rule and landscape the run at the rate, of the same ``rates`` for all, that arrives first.

    ``make(rate)`` gives the rules by name. Whoever leaves the box is out: a wild leap can land at the goal by
    luck. Among runs that do not arrive, the one that ends lowest is taken.
    """
    best: dict[str, list[Run]] = {}
    for rate in rates:
        for name, rule in make(rate).items():
            found = runs(rule, rate, steps)
            best[name] = [min(pair, key=_merit) for pair in zip(best.get(name, found), found, strict=True)]
    return best


def _merit(run: Run) -> tuple[bool, float, float]:
    last = float(run.left[-1])
    return (not run.inside, math.inf if run.needed is None else run.needed, last if last == last else math.inf)


# --- paths ------------------------------------------------------------------------------------------


def _draw_landscape(axes: Any, landscape: Landscape) -> None:
    left, right, bottom, top = landscape.box
    x, y = np.meshgrid(np.linspace(left, right, 120), np.linspace(bottom, top, 120))
    levels = landscape.value(*landscape.start) * np.array([1e-3, 0.01, 0.05, 0.15, 0.4, 1.0, 2.5, 6.0])
    axes.contour(x, y, landscape.value(x, y), levels=levels, colors="#C9C9C9", linewidths=0.8)
    axes.plot(*landscape.start, "s", color=BLACK, markersize=5)
    for place in landscape.lowest:
        axes.plot(*place, "*", color=BLACK, markersize=10)
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=(), yticks=())
    axes.set_title(landscape.name, fontweight="normal")


def race_figure(found: Mapping[str, Sequence[Run]]) -> Figure:
    """Ways on the contour lines, and below, the height that is left against the number of steps."""
    drawn, axes = figure(2, len(LANDSCAPES), figsize=(8, 6.3), height_ratios=(1.15, 1))
    for column, landscape in enumerate(LANDSCAPES):
        above, below = axes[0, column], axes[1, column]
        _draw_landscape(above, landscape)
        for i, (name, each) in enumerate(found.items()):
            run, look = each[column], {"color": COLORS[i], "linestyle": STYLES[i]}
            above.plot(*run.path.T, linewidth=1.4, **look)
            below.plot(np.clip(run.left, 1e-6, 10), linewidth=1.4, label=name, **look)
        below.axhline(NEAR, color=GRAY, linestyle=":", linewidth=1)
        below.set_yscale("log")
        below.set_ylim(1e-5, 4)
        below.set_xlabel("step")
    axes[0, 0].set_xlabel("square: start, star: lowest place", fontsize=9)
    axes[1, 0].set_ylabel("share of the height left")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    told = []
    for column, landscape in enumerate(LANDSCAPES):
        arrived = {name: each[column].needed for name, each in found.items() if each[column].inside}
        least = min((steps for steps in arrived.values() if steps is not None), default=None)
        first = " and ".join(name for name, steps in arrived.items() if steps == least)
        told.append(f"{landscape.name}: {first} ({least} steps)" if least is not None else f"{landscape.name}: nobody")
    finding(drawn, f"First to have 1 % of the height left. {'; '.join(told)}")
    return drawn


Maker = Callable[[float, float, float, float], Mapping[str, Rule]]


class _DescentDrawing:
    """Three landscapes and one way on each; only the ways and the title change, the rest is kept as pixels."""

    def __init__(self) -> None:
        # A fixed layout: finding one takes longer than all the rest, and a slider waits for it.
        self.drawn, self.axes = figure(1, len(LANDSCAPES), figsize=(8, 3.3), layout="none")
        self.drawn.subplots_adjust(left=0.02, right=0.99, bottom=0.03, top=0.76, wspace=0.06)
        self.lines = []
        for axes, landscape in zip(self.axes, LANDSCAPES, strict=True):
            _draw_landscape(axes, landscape)
            self.lines += axes.plot([], [], ".-", color=BLUE, linewidth=1.1, markersize=3.5)
        self.title = self.drawn.suptitle("")
        self.painted = Repainted(self.drawn, (*self.lines, self.title))

    def show(self, rule: Rule, told_settings: str, steps: int) -> None:
        """Put the ways of ``rule`` into the picture."""
        told = []
        for line, landscape, run in zip(self.lines, LANDSCAPES, runs(rule, 0.0, steps), strict=True):
            line.set_data(*run.path.T)
            last = float(run.left[-1])
            told.append(f"{landscape.name} {f'{last:.1%}' if last < 10 else 'it flies away'}")
        finding(self.drawn, f"{told_settings}: after {steps} steps this height is left: {', '.join(told)}")

    def picture(self) -> bytes:
        """The drawing as a PNG."""
        return self.painted.png()


def descent_figure(
    make: Maker,
    name: str,
    lr: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    steps: int = 100,
) -> Figure:
    """One optimizer's way on each landscape; ``make(lr, beta1, beta2, eps)`` gives the rules by name."""
    drawing = _DescentDrawing()
    drawing.show(make(lr, beta1, beta2, eps)[name], _settings(name, lr, beta1, beta2, eps), steps)
    return drawing.drawn


def _settings(name: str, lr: float, beta1: float, beta2: float, eps: float) -> str:
    return f"{name} (rate {lr:.2g}, β₁ {beta1:g}, β₂ {beta2:g}, ε {eps:.2g})"


class DescentExplorer:
    """A menu of optimizers and sliders for learning rate, β₁, β₂, ε over ``descent_figure``."""

    def __init__(self, make: Maker, name: str = "Adam", steps: int = 100) -> None:
        import ipywidgets as widgets

        self._make, self._steps, self._drawing = make, steps, _DescentDrawing()
        wide = {"width": "480px"}
        self.name = widgets.Dropdown(description="optimizer", options=list(make(0.1, 0.9, 0.999, 1e-8)), value=name)
        self.lr = widgets.FloatLogSlider(description="rate", min=-4, max=0.5, step=0.05, value=0.1, layout=wide)
        self.beta1 = widgets.FloatSlider(description="β₁", min=0, max=0.99, step=0.01, value=0.9, layout=wide)
        self.beta2 = widgets.FloatSlider(
            description="β₂", min=0, max=0.999, step=0.001, value=0.999, readout_format=".3f", layout=wide
        )
        self.eps = widgets.FloatLogSlider(description="ε", min=-10, max=1, step=0.5, value=1e-8, layout=wide)
        self.image = widgets.Image(format="png")
        controls = (self.name, self.lr, self.beta1, self.beta2, self.eps)
        self.box = widgets.VBox([*controls, self.image])
        for control in controls:
            control.observe(self.redraw, "value")
        self.redraw()

    def redraw(self, _: Any = None) -> None:
        """Walk and draw with the settings of the sliders."""
        name, settings = self.name.value, (self.lr.value, self.beta1.value, self.beta2.value, self.eps.value)
        self._drawing.show(self._make(*settings)[name], _settings(name, *settings), self._steps)
        self.image.value = self._drawing.picture()


def descent_explorer(make: Maker, name: str = "Adam", steps: int = 100) -> Any:
    """The box of a ``DescentExplorer``, to show at the end of a cell."""
    return DescentExplorer(make, name, steps).box


# --- steps ------------------------------------------------------------------------------------------


def step_size_figure(sizes: Sequence[float], moved: Mapping[str, Sequence[float]], at: float) -> Figure:
    """How far one step goes, in learning rates, against the size of the gradient; ``at`` is pointed out.

    The first two of ``moved`` are compared in the title.
    """
    drawn, axes = figure(figsize=(8, 3.9))
    for i, (name, steps) in enumerate(moved.items()):
        axes.plot(sizes, steps, color=(BLUE, ORANGE, GRAY, GREEN)[i], linestyle=("-", "--", ":", "-.")[i], label=name)
    axes.axvline(at, color=GRAY, linewidth=1, linestyle=":")
    place = int(np.argmin(np.abs(np.log(np.asarray(sizes) / at))))
    first, second = list(moved)[:2]
    for name, color in ((first, BLUE), (second, ORANGE)):
        axes.plot(sizes[place], moved[name][place], "o", color=color, markersize=7)
        axes.annotate(f"{moved[name][place]:.2g} rates", (sizes[place], moved[name][place]), (8, -12),
                      textcoords="offset points", fontsize=9.5)  # fmt: skip
    axes.set(xscale="log", yscale="log", ylim=(min(min(moved[first]), 1e-6), 10))
    axes.set_xlabel("size of the gradient |g|")
    axes.set_ylabel("step (learning rates)")
    axes.legend(loc="lower right")
    ratio = moved[first][place] / moved[second][place]
    finding(
        drawn, f"With gradients of {at:.0e} the step is {ratio:.0f} times as long with “{first}” as with “{second}”"
    )
    return drawn


def correction_figure(moved: Mapping[str, Sequence[float]]) -> Figure:
    """The steps under a constant gradient, in learning rates; the first of ``moved`` lacks the correction."""
    drawn, axes = figure(figsize=(8, 3.5))
    for i, (name, steps) in enumerate(moved.items()):
        axes.plot(range(1, len(steps) + 1), steps, color=(ORANGE, BLUE)[i], linestyle=("--", "-")[i], label=name)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("step (learning rates)")
    axes.legend()
    name, steps = next(iter(moved.items()))
    most = int(np.argmax(steps))
    told = f"The first step is {steps[0]:.1f} learning rates long {name}, step {most + 1} is {steps[most]:.1f}"
    finding(drawn, told)
    return drawn


# --- the small model --------------------------------------------------------------------------------


def scalar_figure(history: Mapping[str, Mapping[int, Sequence[float]]], where: str) -> Figure:
    """The mean probability of class 1 on rows of class 0 and of class 1, step by step, for each loss."""
    drawn, all_axes = figure(1, len(history), figsize=(8, 3.4), sharey=True)
    for axes, (name, classes) in zip(all_axes, history.items(), strict=True):
        for label, color, style in ((1, BLUE, "-"), (0, ORANGE, "--")):
            axes.plot(classes[label], color=color, linestyle=style, label=f"reviews of class {label}")
        axes.set(ylim=(0, 1.02), xlabel="step")
        axes.set_title(name, fontweight="normal", fontsize=10)
    all_axes[0].set_ylabel("mean probability\nof class 1")
    all_axes[0].legend(loc="lower right")
    told = ", ".join(f"{classes[0][-1]:.2f} ({name})" for name, classes in history.items())
    finding(drawn, f"On reviews of class 0 the probability of class 1 ends at {told}; {where}")
    return drawn


def rates_figure(
    losses: Mapping[str, Mapping[float, float]],
    curves: Mapping[str, Sequence[float]],
    ends: Mapping[str, Sequence[float]],
    where: str,
) -> Figure:
    """Left: loss after training by learning rate. Right: the way there at each optimizer's best rate.

    ``ends`` are the final losses of several seeds at the best rate; the title compares them.
    """
    drawn, (left, right) = figure(1, 2, figsize=(8, 4.3))
    best = {name: min((_finite(loss), rate) for rate, loss in by_rate.items())[1] for name, by_rate in losses.items()}
    for i, (name, by_rate) in enumerate(losses.items()):
        look: dict[str, Any] = {"color": COLORS[i], "linestyle": STYLES[i]}
        rates = sorted(by_rate)
        left.plot(rates, [min(by_rate[rate], 2.0) for rate in rates], **look, linewidth=1.5)
        left.plot(best[name], by_rate[best[name]], "o", color=COLORS[i], markersize=7)
        right.plot(range(1, len(curves[name]) + 1), curves[name], label=name, linewidth=1.5, **look)
    for axes in (left, right):
        axes.axhline(math.log(2), color=GRAY, linewidth=1, linestyle=":")
        axes.set_ylim(0, 1.05)
    left.annotate("guessing, ln 2", (0.02, math.log(2)), (0, 12), xycoords=("axes fraction", "data"),
                  textcoords="offset points", fontsize=8.5)  # fmt: skip
    left.set_xscale("log")
    left.set_xlabel("learning rate (dot: the best)")
    left.set_ylabel("training loss at the end")
    right.set_xlabel("step")
    right.set_ylabel("loss of the batch, mean of 10")
    drawn.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=len(losses))
    means = {name: _finite(float(np.mean(values))) for name, values in ends.items()}
    first, *rest = sorted(means, key=lambda name: means[name])
    close = [name for name in rest if min(ends[name]) <= max(ends[first])]
    told = f"{first} ends lowest, at {means[first]:.3f} (mean of {len(ends[first])} seeds)"
    told += f"; the seeds of {', '.join(close)} overlap with its" if close else "; no other comes into its range"
    if rest and rest[-1] not in close:
        told += f"; {rest[-1]} ends at {means[rest[-1]]:.3f}"
    finding(drawn, f"{told}. {where}")
    return drawn


def _finite(loss: float) -> float:
    return loss if loss == loss else math.inf


def warmup_figure(
    schedules: Mapping[str, Sequence[float]],
    losses: Mapping[str, Mapping[float, Sequence[float]]],
    where: str,
    level: float = 0.05,
) -> Figure:
    """Left: the schedules. Right: the loss after training by learning rate, each seed a dot, the mean a line.

    The title says up to which rate each way of training ends below ``level``.
    """
    drawn, (left, right) = figure(1, 2, figsize=(8, 4.3), width_ratios=(1, 1.5))
    for i, (name, factors) in enumerate(schedules.items()):
        left.plot(range(1, len(factors) + 1), factors, color=(GRAY, BLUE)[i], linestyle=("--", "-")[i], label=name)
    left.set_xlabel("step")
    left.set_ylabel("learning rate, share of its peak")
    left.set_ylim(0, 1.05)
    left.legend(loc="lower center")
    told = []
    for i, (name, by_rate) in enumerate(losses.items()):
        rates = sorted(by_rate)
        color, style, marker = (BLUE, ORANGE, BLACK, GREEN)[i], STYLES[i], "osD^"[i]
        values = {rate: np.clip([_finite(v) for v in by_rate[rate]], 1e-4, 10) for rate in rates}
        for rate in rates:
            spot = rate * 1.07 ** (i - 1.5)
            right.plot([spot] * len(values[rate]), values[rate], marker, color=color, markersize=4, linestyle="")
        means = [float(np.mean(values[rate])) for rate in rates]
        right.plot([rate * 1.07 ** (i - 1.5) for rate in rates], means, color=color, linestyle=style, label=name,
                   linewidth=1.4)  # fmt: skip
        good = [rate for rate, mean in zip(rates, means, strict=True) if mean < level]
        told.append(f"{name} {f'{max(good):g}' if good else 'none'}")
    right.axhline(math.log(2), color=GRAY, linewidth=1, linestyle=":")
    right.axhline(level, color=GRAY, linewidth=1, linestyle=":")
    right.set(xscale="log", yscale="log")
    right.set_xlabel("peak learning rate")
    right.set_ylabel("training loss at the end")
    drawn.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    finding(drawn, f"Highest rate that ends below a loss of {level:g}: {'; '.join(told)} ({where})")
    return drawn
