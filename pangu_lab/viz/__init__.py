"""Figures, and the one style they share.

Every figure comes from a pure function that starts with ``figure()``; a widget only calls such a function.
"""

import functools
import io
import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

STYLE = Path(__file__).parent / "pangu.mplstyle"
# Okabe and Ito's palette by name, for the few figures that need a certain color.
BLUE, ORANGE, BLACK, GREEN = "#0072B2", "#E69F00", "#000000", "#009E73"
PURPLE, RED, SKY, GRAY = "#CC79A7", "#D55E00", "#56B4E9", "#9A9A9A"


@functools.cache
def _style() -> Any:
    return matplotlib.rc_params_from_file(STYLE, use_default_template=False)  # read once: a slider waits


def use_style() -> None:
    """Make the course's style the default, and let a notebook show a figure that ends a cell as a picture."""
    matplotlib.rcParams.update(_style())
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(Figure, png)


def figure(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure in the course's style and its axes, as ``plt.subplots`` gives them.

    It is not registered with pyplot: nothing shows it twice, and nothing has to close it.
    """
    use_style()
    drawn = Figure(figsize=options.pop("figsize", None), layout=options.pop("layout", None))
    FigureCanvasAgg(drawn)
    return drawn, drawn.subplots(rows, columns, **options)


def finding(drawn: Figure, text: str) -> None:
    """Write the finding over the figure, from its left edge, in as many lines as it needs."""
    columns = int(10.5 * drawn.get_figwidth())
    drawn.suptitle(textwrap.fill(text, columns), x=0.01, ha="left")


def number_points(axes: Axes, points: Sequence[tuple[float, float]], areas: Sequence[float], first: int = 1) -> None:
    """Write a number beside each point, left and right in turn: points may stand close, their names go to a legend."""
    for number, ((x, y), area) in enumerate(zip(points, areas, strict=True), first):
        side = 1 if number % 2 else -1
        axes.annotate(
            str(number),
            (x, y),
            xytext=(side * (3 + math.sqrt(area / math.pi)), 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            weight="bold",
        )


def png(drawn: Figure) -> bytes:
    """The figure as a PNG image with a palette of 256 colors: a third of the bytes, and it looks the same."""
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    return encoded(canvas)


class Repainted:
    """A drawing of which a few artists change: all else is drawn once and kept as pixels, so that a slider is quick.

    Parameters
    ----------
    drawn
        A figure of ``figure()``.
    changing
        Those of its artists that differ from picture to picture.
    """

    def __init__(self, drawn: Figure, changing: Sequence[Artist]) -> None:
        self.drawn, self.changing = drawn, changing
        self.rest: Any = None

    def png(self) -> bytes:
        """The drawing as it is now, as a PNG image."""
        canvas: Any = self.drawn.canvas
        if self.rest is None:
            for artist in self.changing:
                artist.set_visible(False)
            canvas.draw()
            self.rest = canvas.copy_from_bbox(self.drawn.bbox)
            for artist in self.changing:
                artist.set_visible(True)
        canvas.restore_region(self.rest)
        for artist in self.changing:
            self.drawn.draw_artist(artist)
        return encoded(canvas)


def encoded(canvas: FigureCanvasAgg) -> bytes:
    """What stands on a canvas, as ``png`` writes it; nothing is drawn again."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # The fast method: a slider waits for it.
    palette = image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette.save(buffer, format="png")
    return buffer.getvalue()
