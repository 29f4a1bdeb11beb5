"""What a PanGu model is made of: the drawing of lab 03, made from a live module.

``parts_of`` walks the module and watches one pass through it, so that the drawing shows what the module does and not
what somebody remembers of it. What the parts cost is drawn by ``costs.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from pangu_lab.viz import BLACK, BLUE, GRAY, RED, figure, finding
from pangu_lab.viz.costs import number_text

# --- a live module, walked --------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A module that runs: its name there, its class, its size, the shape it hands on, and what stands around it.

    ``norm`` is ``pre``, ``post`` or empty: where the residual sum's LayerNorm stands; ``residual`` whether there is
    such a sum. ``times`` counts equal parts in a row that are drawn once.
    """

    name: str
    kind: str
    parameters: int
    shape: tuple[int, ...] = ()
    weights: str = ""
    norm: str = ""
    norm_parameters: int = 0
    residual: bool = False
    times: int = 1
    parts: tuple["Part", ...] = field(default=())

    def same_as(self, other: "Part") -> bool:
        """Equal but for its name and how often it stands there."""
        return replace(self, name="", times=1) == replace(other, name="", times=1)


STACKS = ("encoder", "decoder")


def parts_of(model: Any, length: int = 10, target: int = 8) -> dict[str, Part]:
    """The encoder and the decoder of a ``PanguModel``, in the order in which their parts run on a text.

    The model may stand on torch's meta device, where even 200 billion parameters take no memory.
    """
    import torch

    ran: list[tuple[str, tuple[int, ...]]] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: ran.append((name, _shape(output))))
        for name, module in model.named_modules()
        if name
    ]
    weight = next(model.parameters())
    text = torch.zeros((1, length), dtype=torch.long, device=weight.device)
    inputs = {"input_ids": text}
    if model.encoder is not None:
        inputs["token_type_ids"] = text
    if model.encoder is not None and model.decoder is not None:
        inputs["decoder_input_ids"] = text[:, :target]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(**inputs, **({"use_cache": False} if model.decoder is not None else {}))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    # A name comes when its module is done, children before parents: children keep their order.
    return {name: _part(model, name, ran) for name in STACKS if getattr(model, name, None) is not None}


def _shape(output: Any) -> tuple[int, ...]:
    first = output[0] if isinstance(output, tuple) or hasattr(output, "last_hidden_state") else output
    return tuple(first.shape)


def _part(model: Any, name: str, ran: Sequence[tuple[str, tuple[int, ...]]]) -> Part:
    module = model.get_submodule(name)
    children = [child for child, _ in ran if _parent(model, child) == name]
    parts = [_part(model, child, ran) for child in children if _is_drawn(model.get_submodule(child))]
    around = getattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2] + "_norm", None)
    return Part(
        name=name.rpartition(".")[2],
        kind=type(module).__name__,
        parameters=_count(module),
        shape=next((shape for child, shape in reversed(ran) if child == name), ()),
        weights=_weights(module),
        norm="" if around is None else "pre" if around.pre else "post",
        norm_parameters=0 if around is None else _count(around),
        residual=around is not None,
        parts=tuple(_grouped(parts)),
    )


def _parent(model: Any, name: str) -> str:
    """The module that holds another one; a list of layers is no module that runs."""
    parent = name.rpartition(".")[0]
    return (
        parent.rpartition(".")[0] if parent and type(model.get_submodule(parent)).__name__ == "ModuleList" else parent
    )


def _is_drawn(module: Any) -> bool:
    return any(True for _ in module.parameters()) and type(module).__name__ != "Linear"


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _weights(module: Any) -> str:
    """The widths of what the module multiplies by, as a reader says them: "384 → 1,536 → 384"."""
    linear = [child for child in module.children() if type(child).__name__ == "Linear"]
    if hasattr(module, "heads") and linear:
        return f"{module.heads} heads of {linear[0].out_features // module.heads}"
    if linear:
        return " → ".join(f"{n:,}" for n in [linear[0].in_features, *(layer.out_features for layer in linear)])
    if type(module).__name__ == "Embedding":
        return f"{module.num_embeddings:,} × {module.embedding_dim:,}"
    return ""


def _grouped(parts: Sequence[Part]) -> list[Part]:
    """Equal neighbors as one part that stands there several times."""
    groups: list[Part] = []
    for part in parts:
        if groups and part.parts and groups[-1].same_as(part):
            groups[-1] = replace(groups[-1], times=groups[-1].times + 1)
        else:
            groups.append(part)
    return groups


# --- the drawing ------------------------------------------------------------------------------------

FILL = {
    "Embeddings": "#FCEBC4",
    "Embedding": "#FCEBC4",
    "MultiHeadAttention": "#CFE3F3",
    "FeedForward": "#CDEBDF",
    "LayerNorm": "#EDEDED",
}
WORDS = {
    "words": "word embeddings",
    "positions": "position embeddings",
    "segments": "segment embeddings",
    "self_attention": "self-attention",
    "cross_attention": "cross-attention",
    "feed_forward": "feed-forward network",
    "norm": "layer norm",
    "query_layer": "query layer",
}
BOX, NORM, GAP = 0.62, 0.36, 0.42


@dataclass
class _Row:
    """A box of the drawing, from the bottom up: a part, or the LayerNorm of its residual sum (``is_norm``).

    ``layer`` tells which repeated layer it belongs to.
    """

    part: Part
    text: str
    layer: int = -1
    is_norm: bool = False
    bottom: float = 0.0

    @property
    def height(self) -> float:
        return NORM if self.is_norm else BOX

    @property
    def top(self) -> float:
        return self.bottom + self.height

    @property
    def middle(self) -> float:
        return self.bottom + self.height / 2

    @property
    def aside(self) -> bool:
        """A table inside a layer, which the data do not pass through."""
        return self.layer >= 0 and self.part.kind == "Embedding"


def architecture_figure(model: Any, length: int = 10, target: int = 8) -> Figure:
    """Draw the stacks of a live ``PanguModel`` side by side, data flowing upward."""
    stacks = parts_of(model, length, target)
    rows = {name: _rows(stack) for name, stack in stacks.items()}
    height = max(column[-1].top for column in rows.values()) + 1.3
    tall = 0.62 * height + 0.75  # inches
    drawn, axes = figure(figsize=(8, tall), layout="none")
    drawn.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.6 / tall)
    axes.set_axis_off()
    axes.grid(False)
    width, step = 4.6, 7.0
    axes.set_xlim(-1.2, step * len(rows) - 0.6 if len(rows) > 1 else 8.6)
    axes.set_ylim(-1.05, height)
    tops = {}
    for column, (name, boxes) in enumerate(rows.items()):
        left = step * column + (0 if len(rows) > 1 else 1.2)
        tops[name] = _draw_stack(axes, name, stacks[name], boxes, left, width)
    if len(rows) > 1:
        _draw_memory(axes, tops["encoder"], rows["decoder"], step, width)
    total = sum(p.numel() for p in model.parameters())
    layers = " and ".join(
        f"{sum(part.times for part in stack.parts if part.parts and part.name != 'embeddings')} {name} layers"
        for name, stack in stacks.items()
    )
    heaviest = max(_by_kind(stacks).items(), key=lambda item: item[1])
    finding(
        drawn,
        f"{layers}, d = {model.config.hidden_size:,}: {number_text(total)} parameters, most of them in the "
        f"{heaviest[0]} ({heaviest[1] / sum(_by_kind(stacks).values()):.0%})",
    )
    return drawn


def _rows(stack: Part) -> list[_Row]:
    rows: list[_Row] = []
    waiting: list[_Row] = []
    for number, part in enumerate(stack.parts):
        if part.name == "embeddings":
            rows += [_Row(child, _label(child)) for child in part.parts]
        else:
            for child in part.parts or (part,):
                layer = number if part.parts else -1
                own = _Row(child, _label(child), layer)
                beside = [_Row(child, "layer norm", layer, is_norm=True)] if child.norm else []
                if own.aside:  # a table that asks stands right below the attention that it asks with
                    waiting = [own]
                    continue
                rows += [*beside, *waiting, own] if child.norm == "pre" else [*waiting, own, *beside]
                waiting = []
    top = -GAP
    for i, row in enumerate(rows):
        row.bottom = top + GAP + (0.35 if i and rows[i - 1].layer != row.layer else 0.0)
        top = row.top
    return rows


def _label(part: Part) -> str:
    return WORDS.get(part.name, part.name.replace("_", " "))


def _draw_stack(axes: Any, name: str, stack: Part, rows: list[_Row], left: float, width: float) -> tuple[float, float]:
    center = left + width / 2
    tokens = "tokens" if name == "encoder" else "tokens so far"
    axes.text(center, -0.95, f"{tokens} {_shape_text(stack.shape[:2])}", ha="center", va="bottom", fontsize=9.5)
    _arrow(axes, (center, -0.55), (center, rows[0].bottom))
    for before, row, after in zip([None, *rows], rows, [*rows[1:], None], strict=False):
        if row.aside and before is not None and after is not None:  # x goes past it; it only asks
            _draw_box(axes, row, left + 0.4 * width, 0.6 * width)
            _arrow(axes, (left + 0.7 * width, row.top), (left + 0.7 * width, after.bottom), BLUE)
            axes.text(left + 0.72 * width, after.bottom - 0.16, "query", color=BLUE, va="center", fontsize=8.5)
            _arrow(axes, (left + 0.2 * width, before.top), (left + 0.2 * width, after.bottom))
            continue
        _draw_box(axes, row, left, width)
        if after is None or after.aside:
            continue
        if row.part.kind == after.part.kind == "Embedding":
            axes.text(center, (row.top + after.bottom) / 2, "+", ha="center", va="center", fontsize=12)
        else:
            _arrow(axes, (center, row.top), (center, after.bottom))
    for number in sorted({row.layer for row in rows} - {-1}):
        _draw_layer(axes, stack.parts[number], [row for row in rows if row.layer == number], left, width)
    top = rows[-1].top
    _arrow(axes, (center, top), (center, top + 0.75))
    shape = f"{name}: hidden states {_shape_text(stack.shape)}"
    axes.text(center, top + 0.8, shape, ha="center", va="bottom", fontsize=9.5, fontweight="bold")
    return center, top


def _shape_text(shape: Sequence[int]) -> str:
    return "(" + ", ".join(f"{n:,}" for n in shape) + ")"


def _draw_box(axes: Any, row: _Row, left: float, width: float) -> None:
    box = FancyBboxPatch(
        (left, row.bottom), width, row.height, boxstyle="round,pad=0,rounding_size=0.12", linewidth=1,
        edgecolor=BLACK, facecolor=FILL["LayerNorm"] if row.is_norm else FILL.get(row.part.kind, "white"), zorder=3,
    )  # fmt: skip
    axes.add_patch(box)
    size = f"{number_text(row.part.norm_parameters if row.is_norm else row.part.parameters)} parameters"
    middle = left + width / 2
    if row.is_norm:
        axes.text(middle, row.middle, f"{row.text}  ·  {size}", ha="center", va="center", fontsize=8, zorder=4)
        return
    axes.text(middle, row.middle + 0.13, row.text, ha="center", va="center", fontsize=9.5, zorder=4)
    small = "  ·  ".join(text for text in (row.part.weights, size) if text)
    axes.text(middle, row.middle - 0.15, small, ha="center", va="center", fontsize=8, zorder=4)


def _draw_layer(axes: Any, part: Part, rows: list[_Row], left: float, width: float) -> None:
    bottom, top = rows[0].bottom - 0.26, rows[-1].top + 0.27
    frame = FancyBboxPatch(
        (left - 0.75, bottom), width + 1.05, top - bottom, boxstyle="round,pad=0,rounding_size=0.15",
        linewidth=1.2, edgecolor=GRAY, facecolor="#FAFAFA", zorder=0,
    )  # fmt: skip
    axes.add_patch(frame)
    text = f"{part.times} ×" if part.times > 1 else "1 ×"
    if part.kind == "QueryLayer":
        text = "query layer"
    rotation = 90 if part.kind == "QueryLayer" else 0
    axes.text(left + width + 0.4, (bottom + top) / 2, text, va="center", fontsize=10, fontweight="bold",
              rotation=rotation)  # fmt: skip
    middle, lane = left + width / 2, left - 0.4
    for i, row in enumerate(rows):
        if row.part.residual and not row.is_norm:  # from below its first box to the sum above the sublayer
            first = rows[i - 1] if row.part.norm == "pre" else row
            first = rows[i - 2] if first.aside else first
            start, end = first.bottom - 0.11, row.top + 0.16
            axes.plot([middle, lane, lane], [start, start, end], color=RED, linestyle="-", linewidth=1.3, zorder=2)
            _arrow(axes, (lane, end), (middle - 0.1, end), RED)
            axes.text(middle, end, "+", ha="center", va="center", fontsize=8, fontweight="bold", zorder=8,
                      bbox={"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": RED})  # fmt: skip


def _draw_memory(axes: Any, start: tuple[float, float], rows: list[_Row], step: float, width: float) -> None:
    """From the encoder's top into each cross-attention of the decoder."""
    x, lane = start[0], step - 1.35
    for row in rows:
        if row.part.name == "cross_attention" and not row.is_norm:
            height = start[1] + 0.45
            axes.plot([x, lane, lane], [height, height, row.middle], color=BLUE, linestyle="-", linewidth=1.6, zorder=5)
            _arrow(axes, (lane, row.middle), (step, row.middle), BLUE)
            axes.text((x + lane) / 2, height + 0.06, "memory", color=BLUE, ha="center", va="bottom", fontsize=9)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], color: str = BLACK) -> None:
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style, zorder=6)


def _by_kind(stacks: Mapping[str, Part]) -> dict[str, int]:
    """Parameters by what they belong to; the word table, which encoder and decoder share, counts once."""
    sums = {"embeddings": 0, "attention": 0, "feed-forward networks": 0, "rest": 0}
    seen_words = False
    for stack in stacks.values():
        for part in stack.parts:
            for child in part.parts or (part,):
                kind = {"Embedding": "embeddings", "MultiHeadAttention": "attention"}.get(child.kind, "rest")
                kind = "feed-forward networks" if child.kind == "FeedForward" else kind
                if child.name == "words" and seen_words:
                    continue
                seen_words |= child.name == "words"
                sums[kind] += part.times * child.parameters
                sums["rest"] += part.times * child.norm_parameters
    return sums
