"""The instructor's overview of a batch: one HTML file with its pictures inside.

What needs a look stands first; then, lab by lab, the marks, the exercises most failed, the mistakes most made and
the time it took. Titles of pictures are computed from what they show. Read ``overview_page`` first.
"""

import base64
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pangu_lab.exercises import title_of
from pangu_lab.grading.batch import Batch
from pangu_lab.grading.judge import Marked
from pangu_lab.grading.pages import FLAG_WORDS, NO_BOX, POLICY, shell, text
from pangu_lab.grading.results import Result
from pangu_lab.viz import BLUE, GRAY, ORANGE, PURPLE, RED, figure, finding, png

# What became of an exercise, in the order of the bars, with the statuses that count as it.
OUTCOMES = {
    "right": (BLUE, ("OK",)),
    "not right yet": (ORANGE, ("WRONG",)),
    "error, time, memory or crash": (RED, ("ERROR", "TIMEOUT", "MEMORY", "KERNEL_DIED")),
    "not attempted": (GRAY, ("NOT_ATTEMPTED",)),
    "by hand or open": (PURPLE, ("MANUAL", "INFRA")),
}
MOST_MISTAKES = 8


def overview_page(batch: Batch, page_path: Callable[[Result], Path]) -> str:
    """The whole page; ``page_path`` tells where a result's own page lies, from this one."""
    look = [result for result in batch.results if result.needs_human]
    parts = ["<h1>Grading overview</h1>"]
    if not batch.boxed:
        parts.append(f'<p class="warn">{text(NO_BOX)}</p>')
    parts.append(f"<p>{_people(len(batch.results))}; {len(look) or 'none'} for a person to look at.</p>")
    if look:
        rows = "".join(
            f'<tr><td><a href="{text(page_path(r).as_posix())}">{text(r.student)}</a></td><td class="k">{text(r.assignment)}</td>'
            f"<td>{text(why(r))}</td></tr>"
            for r in look
        )
        parts.append(f"<h2>To look at</h2><table><tr><th>student</th><th>lab</th><th>why</th></tr>{rows}</table>")
    for lab in sorted({result.assignment for result in batch.results if result.assignment}):
        parts += _lab(lab, [result for result in batch.results if result.assignment == lab])
    return shell("Grading overview", "\n".join(parts), POLICY + "; img-src data:")


def why(result: Result) -> str:
    """Why somebody should look at a result, in words."""
    said = [result.reason] if result.reason else []
    for flag in result.flags:
        names = f" ({', '.join(result.others)})" if flag == "SAME_FILE" and result.others else ""
        said.append(FLAG_WORDS.get(flag, flag) + names)
    return "; ".join(said) or "an exercise could not be judged"


def _lab(lab: str, results: list[Result]) -> list[str]:
    graded = [result for result in results if result.marks and not result.open]
    counts = Counter(
        "could not be judged"
        if r.open
        else {"MISSING": "missing", "INVALID_FILE": "no notebook"}.get(r.status, "graded")
        for r in results
    )
    said = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    parts = [f"<h2>{text(lab)}</h2><p>{_people(len(results))}: {text(said)}.</p>"]
    if not graded:
        return parts
    parts += [_picture(*marks_figure(graded)), _picture(*exercises_figure(graded))]
    parts.append(_exercise_table(graded))
    made = mistakes(graded)
    parts.append(_picture(*mistakes_figure(made, len(graded))) if made else "<p>No known mistake was made.</p>")
    parts.append(_picture(*time_figure(graded)))
    slowest = sorted(graded, key=lambda result: -result.seconds)[:3]
    named = ", ".join(f"{result.student} ({result.seconds:.3g} s)" for result in slowest)
    return [*parts, f"<p>Slowest: {text(named)}</p>"]


def _people(count: int) -> str:
    return f"{count} submission{'' if count == 1 else 's'}"


def _picture(drawn: Figure, title: str) -> str:
    return f'<img alt="{text(title.replace(chr(92), ""))}" src="data:image/png;base64,{base64.b64encode(png(drawn)).decode()}">'


def marks_figure(results: Sequence[Result]) -> tuple[Figure, str]:
    """How many submissions reached how many points, and the finding."""
    scores, most = [result.score for result in results], max(result.max_score for result in results)
    middle, full = statistics.median(scores), sum(score >= most for score in scores)
    title = f"The median is {middle:g} of {most:g} points; {full} of {len(scores)} reached all"
    drawn, axes = figure(figsize=(8, 3.2))
    count = 10 if most > 20 else max(1, round(most))
    # Bins are centered on whole points where there are few; the last holds the full mark in any case.
    edges = [most * (i - 0.5) / count for i in range(count + 2)]
    axes.hist(scores, bins=edges, color=BLUE, rwidth=0.9)
    axes.axvline(middle, color=ORANGE, linestyle="--", label=f"median {middle:g}")
    axes.set(xlabel="points", ylabel="submissions", xlim=(edges[0], edges[-1]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left")
    finding(drawn, title)
    return drawn, title


def _drawable(words: str) -> str:
    """Words as matplotlib draws them; a dollar would begin a formula."""
    return words.replace("$", r"\$")


def _by_exercise(results: Sequence[Result]) -> dict[str, list[Marked]]:
    found: dict[str, list[Marked]] = {}
    for result in results:
        for mark in result.marks:
            found.setdefault(mark.exercise, []).append(mark)
    return found


def missed(marks: Sequence[Marked]) -> int:
    """How many of the marks have less than all points."""
    return sum(mark.points < mark.max_points for mark in marks)


def exercises_figure(results: Sequence[Result]) -> tuple[Figure, str]:
    """What became of each exercise, the one most missed on top, and the finding."""
    ordered = sorted(_by_exercise(results).items(), key=lambda item: missed(item[1]))
    worst, marks = ordered[-1]
    title = f"Missed most: {_drawable(title_of(worst))}, {missed(marks)} of {len(marks)}"
    title = title if missed(marks) else f"Nobody missed an exercise ({len(marks)} submissions)"
    drawn, axes = figure(figsize=(8, 1.4 + 0.42 * len(ordered)))
    names = [textwrap.shorten(_drawable(title_of(name)), 38, placeholder="…") for name, _ in ordered]
    left = [0] * len(ordered)
    for outcome, (color, statuses) in OUTCOMES.items():
        counts = [sum(mark.status in statuses for mark in marks) for _, marks in ordered]
        if any(counts):
            axes.barh(range(len(ordered)), counts, left=left, color=color, label=outcome, height=0.7, edgecolor="white")
        left = [a + b for a, b in zip(left, counts, strict=True)]
    axes.set_yticks(range(len(ordered)), names)
    axes.set_xlabel("submissions")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", visible=False)
    drawn.legend(loc="outside lower center", ncols=3)
    finding(drawn, title)
    return drawn, title


def mistakes(results: Sequence[Result]) -> list[tuple[str, str, int]]:
    """The known mistakes made, most often first: exercise, sentence, how many made it."""
    made = (mark for r in results for mark in r.marks if mark.mistake)
    counts = Counter((mark.exercise, mark.sentence or mark.mistake) for mark in made)
    return [(exercise, sentence, count) for (exercise, sentence), count in counts.most_common()]


def mistakes_figure(made: Sequence[tuple[str, str, int]], total: int) -> tuple[Figure, str]:
    """The mistakes made most often under their sentences, and the finding."""
    shown = list(reversed(made[:MOST_MISTAKES]))
    exercise, _, most = made[0]
    title = f"The mistake made most is in {_drawable(title_of(exercise))}: {most} of {total} made it"
    labels = [
        "\n".join(textwrap.wrap(_drawable(f"{title_of(name)}: {sentence}"), 60, max_lines=3, placeholder=" …"))
        for name, sentence, _ in shown
    ]
    lines = sum(label.count("\n") + 1 for label in labels)
    drawn, axes = figure(figsize=(8, 1.0 + 0.19 * lines + 0.14 * len(shown)))
    bars = axes.barh(range(len(shown)), [count for *_, count in shown], color=ORANGE, height=0.6)
    axes.bar_label(bars, padding=3, fontsize=9.5)
    axes.set_yticks(range(len(shown)), labels, fontsize=8.5)
    axes.set_xlabel("submissions")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", visible=False)
    finding(drawn, title)
    return drawn, title


def time_figure(results: Sequence[Result]) -> tuple[Figure, str]:
    """How long submissions and single exercises took, and the finding."""
    seconds = [result.seconds for result in results]
    title = f"Half took less than {statistics.median(seconds):.3g} s, the slowest {max(seconds):.3g} s"
    drawn, (left, right) = figure(1, 2, figsize=(8, 3.2))
    left.hist(seconds, bins=min(12, max(3, len(seconds) // 3)), color=BLUE, rwidth=0.9)
    left.set(xlabel="seconds a submission", ylabel="submissions")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    left.grid(axis="x", visible=False)
    by_exercise = _by_exercise(results)
    for row, marks in enumerate(reversed(list(by_exercise.values()))):
        times = sorted(mark.seconds for mark in marks)
        right.plot([times[0], times[-1]], [row, row], color=GRAY, linestyle="-")
        right.plot(times[-1], row, "o", color=ORANGE, label="longest" if not row else "")
        right.plot(statistics.median(times), row, "s", color=BLUE, label="median" if not row else "")
    names = [textwrap.shorten(_drawable(title_of(name)), 24, placeholder="…") for name in reversed(list(by_exercise))]
    right.set_yticks(range(len(names)), names, fontsize=8.5)
    right.set(xlabel="seconds an exercise", ylim=(-0.6, len(names) - 0.4))
    drawn.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    finding(drawn, title)
    return drawn, title


def _exercise_table(results: Sequence[Result]) -> str:
    rows = ""
    for name, marks in _by_exercise(results).items():
        points, most = statistics.fmean(mark.points for mark in marks), max(mark.max_points for mark in marks)
        right = len(marks) - missed(marks)
        rows += (
            f'<tr><td>{text(title_of(name))}<br><span class="quiet">{text(name)}</span></td>'
            f'<td class="n">{right} of {len(marks)}</td><td class="n">{points:.3g} of {most:g}</td></tr>'
        )
    return f'<table><tr><th>exercise</th><th class="n">all points</th><th class="n">points on average</th></tr>{rows}</table>'
