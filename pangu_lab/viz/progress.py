"""The picture of a student's progress: points reached of points available, one bar a lab."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pangu_lab.progress import Record, progress_table

REACHED, OPEN = "#0072B2", "#D9D9D9"  # blue on light gray: apart for the colour-blind and in gray print


def progress_figure(record: Record) -> Figure:
    """Draw ``record``; labs stand in the order of study, from the top."""
    rows = progress_table(record)
    figure = Figure(figsize=(6.4, 1.0 + 0.32 * max(len(rows), 1)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [row["lab"] for row in rows]
    available = [row["available"] for row in rows]
    points = [row["points"] for row in rows]
    axes.barh(names, available, color=OPEN, height=0.7, label="available")
    axes.barh(names, points, color=REACHED, height=0.7, label="reached")
    for position, (reached, most) in enumerate(zip(points, available, strict=True)):
        axes.text(most, position, f" {reached:g} of {most:g}", va="center", fontsize=8)
    axes.set_title(_finding(rows), loc="left", fontsize=10)
    axes.set_xlabel("points")
    axes.set_xlim(0, 1.18 * max(available, default=1))
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def _finding(rows: list[dict]) -> str:
    reached, available = (sum(row[key] for row in rows) for key in ("points", "available"))
    following = next((row["lab"] for row in rows if row["points"] < row["available"]), None)
    if not rows:
        return "No exercises yet"
    return f"{reached:g} of {available:g} points" + (f"; next: {following}" if following else ": all of them")
