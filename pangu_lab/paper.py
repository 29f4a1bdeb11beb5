"""The paper's Table 1, taken as claims to be tested, beside what was measured here.

``table_1`` puts the records of runs beside the claims, ``remarks`` is the arithmetic of the claims themselves,
``render`` writes both. A figure from a bundled sample or from a part of the data never stands in a real row.
"""

import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pangu_lab.errors import PanguLabError
from pangu_lab.results import Record, ResultsError, Value, load_record

Standing = Literal["real", "part", "bundled", "none"]
FORMATS = ("markdown", "html", "latex", "json")
SPLITS = ("train", "validation", "test")
TITLES = {"imdb": "text classification", "tweets": "sentiment", "squad": "question answering"}

# What the paper prints, in percent: train, validation, test. It names no data set, rows, seeds or intervals.
_PRINTED = {
    "imdb": {
        "accuracy": (95.2, 94.8, 94.5),
        "precision": (95.5, 95.0, 94.7),
        "recall": (95.0, 94.6, 94.3),
        "f1": (95.2, 94.8, 94.5),
    },
    "tweets": {
        "accuracy": (94.5, 94.0, 93.8),
        "precision": (94.8, 94.3, 94.0),
        "recall": (94.2, 93.7, 93.5),
        "f1": (94.5, 94.0, 93.8),
    },
    "squad": {"accuracy": (88.0, 87.5, 87.2), "f1": (88.5, 88.0, 87.7)},
}

# Which metric of a record stands beside a claim. "Accuracy" of extracted answers can only mean exact match.
_OURS = {
    "imdb": {name: name for name in ("accuracy", "precision", "recall", "f1")},
    "tweets": {"accuracy": "accuracy"} | {name: f"macro_{name}" for name in ("precision", "recall", "f1")},
    "squad": {"accuracy": "exact_match", "f1": "f1"},
}

# Rows of the whole test split; SQuAD's is hidden, so its development set stands in.
WHOLE_TEST = {"imdb": 25_000, "tweets": 12_284, "squad": 10_570}


@dataclass(frozen=True)
class Claim:
    """One figure of the paper's Table 1, in percent, in the paper's own words for the metric."""

    task: str
    split: str
    metric: str
    percent: float


@dataclass(frozen=True)
class Published:
    """A figure that was published with its data set, in percent; ``metric`` as records name it."""

    task: str
    metric: str
    model: str
    percent: float
    source: str


CLAIMS = tuple(
    Claim(task, split, metric, percent)
    for task, metrics in _PRINTED.items()
    for metric, percents in metrics.items()
    for split, percent in zip(SPLITS, percents, strict=True)
)

_LEADERBOARD = "TweetEval leaderboard, 12,284 tweets"
PUBLISHED = (
    Published("imdb", "accuracy", "BERT-base, pre-trained further", 95.63, "Sun et al. 2019"),
    *(
        Published("tweets", "macro_recall", model, percent, _LEADERBOARD)
        for model, percent in (
            ("LSTM", 58.3),
            ("linear SVM", 62.9),
            ("RoBERTa-base", 71.3),
            ("BERTweet", 73.4),
            ("TimeLMs-2021", 73.7),
        )
    ),
    *(
        Published("squad", metric, model, percent, "SQuAD 1.1 development set, model card or paper")
        for model, em, f1 in (
            ("DistilBERT (D)", 79.1, 86.9),
            ("BERT-base", 80.4, 88.1),
            ("RoBERTa-base", 84.6, 91.5),
            ("DeBERTa-base", 87.2, 93.1),
            ("DeBERTa-v3-base", 88.4, 93.9),
        )
        for metric, percent in (("exact_match", em), ("f1", f1))
    ),
)


@dataclass(frozen=True)
class Row:
    """A claim with one measurement beside it, or with none. ``label`` says what a part or a sample is."""

    claim: Claim
    standing: Standing
    label: str
    ours: Value | None
    records: tuple[Record, ...]
    verdict: str

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted({seed for record in self.records for seed in record.seeds}))


def claimed(task: str, split: str, metric: str) -> float:
    """The paper's figure, in percent."""
    return _PRINTED[task][metric][SPLITS.index(split)]


def named(metric: str) -> str:
    """A metric's name for readers: ``macro_f1`` is macro F1."""
    return metric.replace("_", " ").replace("f1", "F1")


def our_metric(task: str, metric: str) -> str:
    """What records call the metric that the paper names."""
    return _OURS[task][metric]


def published(task: str, metric: str) -> list[Published]:
    """Published figures of a task, by a record's metric, lowest first."""
    return sorted((p for p in PUBLISHED if (p.task, p.metric) == (task, metric)), key=lambda p: p.percent)


# --- what a record may stand for --------------------------------------------------------------------


def standing(record: Record) -> tuple[Standing, str]:
    """Whether a record was measured on the real data in full, and if not, what it was measured on."""
    if not record.on_real_data:
        return "bundled", f"bundled sample, {record.rows['test']:,} rows"
    lacks = []
    whole = WHOLE_TEST.get(record.task, 0)
    # Rows without text and questions whose answer is not in the passage are dropped: a few in ten thousand.
    if record.split == "test" and record.rows["test"] < 0.995 * whole:
        lacks.append(f"{record.rows['test']:,} of {whole:,} test rows")
    if any(note.startswith("trained on the bundled sample") for note in record.notes):
        lacks.append(f"trained on {record.rows['train']:,} rows of the bundled sample")
    else:
        parts = (note for note in record.notes if note.startswith("trained on a part"))
        lacks += [note.partition(", as ")[0] for note in parts]
        sizes = (re.match(r"train: ([\d,]+ of [\d,]+)", note) for note in record.notes)
        lacks += [f"trained on {found[1]} rows" for found in sizes if found]
    return ("part", "; ".join(lacks)) if lacks else ("real", "")


def pool(records: Sequence[Record], metric: str) -> Value:
    """One figure of runs that differ in their seed only: the mean, and the widest interval that covers theirs."""
    values = [record.metrics[metric] for record in records]
    if len(values) == 1:
        return values[0]
    return Value(
        value=sum(value.value for value in values) / len(values),
        low=min(value.low for value in values),
        high=max(value.high for value in values),
        method=f"mean of {len(values)} seeds; from the lowest to the highest end of their intervals",
    )


def _same_but_for_seeds(records: Iterable[Record]) -> list[list[Record]]:
    """Records in groups that differ in seed only; of the same seed the newest."""
    groups: dict[tuple, dict[tuple[int, ...], Record]] = {}
    for record in sorted(records, key=lambda one: one.created):
        key = (record.task, record.split, record.mode, record.data, record.data_source, record.model)
        groups.setdefault((*key, standing(record)), {})[record.seeds] = record
    return [list(group.values()) for group in groups.values()]


def records_by_run(runs: Path) -> dict[Path, Record]:
    """The record of each finished run's folder below ``paths.runs``; of an older form or damaged ones are left out."""
    return {file.parent: record for file, record in _readable(runs.glob("*/record.json"))}


def records_of_runs(runs: Path) -> list[Record]:
    """The records of finished runs below ``paths.runs``, by folder; those of train and validation rows, too."""
    return [record for _, record in _readable(runs.glob("*/record*.json"))]


def _readable(files: Iterable[Path]) -> Iterator[tuple[Path, Record]]:
    for file in sorted(files):
        try:
            yield file, load_record(file)
        except ResultsError:
            continue


# --- verdicts ---------------------------------------------------------------------------------------


def compare(percent: float, ours: Value) -> str:
    """Where a claimed percentage lies, seen from our interval."""
    low, high = 100 * ours.low, 100 * ours.high
    # The paper prints one digit: 94.5 may be anything from 94.45 to 94.55.
    if percent + 0.05 < low:
        return f"{low - percent:.1f} points below our interval"
    if percent - 0.05 > high:
        return f"{percent - high:.1f} points above our interval"
    return "within our interval"


def verdict(claim: Claim, kind: Standing, ours: Value | None) -> str:
    """In words, what a measurement and the published figures say of a claim."""
    if kind in ("part", "bundled"):
        what = {"part": "a part of the data", "bundled": "the bundled sample"}[kind]
        return f"{what}: judges nothing" + (f" ({compare(claim.percent, ours)})" if ours else "")
    if (claim.task, claim.metric) == ("squad", "accuracy"):
        em, f1 = (claimed("squad", claim.split, metric) for metric in ("accuracy", "f1"))
        return (
            f"undefined for span extraction; taken as exact match, the other answers overlap by {100 * wrong_overlap(em, f1):.0f} %"
            f" on average ({_published_overlaps()} published)" + (f"; {compare(claim.percent, ours)}" if ours else "")
        )
    told = compare(claim.percent, ours) if ours else "not measured in full"
    return f"{told}; {_beside_published(claim)}"


def _beside_published(claim: Claim) -> str:
    """A claim beside the highest published figure of its metric, or of the metric that has one."""
    if claim.split == "validation" and claim.task == "imdb":
        return "IMDB ships no validation split, and the paper does not say which rows it held back"
    if claim.split == "train":
        return "says how well the training rows were learned, not how well the model does"
    if claim.split == "validation":
        return "the paper does not say which rows it held back"
    wanted = _OURS[claim.task][claim.metric]
    known = published(claim.task, wanted)
    classes = " for three classes" if claim.task == "tweets" else ""
    if known:
        best, name = known[-1], named(wanted)
        where = f"above anything published{classes}" if claim.percent > best.percent else "not above what is published"
        return f"{where} ({name} {best.percent:g}, {best.model})"
    if claim.task == "tweets":
        best, recall = published("tweets", "macro_recall")[-1], claimed("tweets", claim.split, "recall")
        return f"the recall beside it is {recall - best.percent:.1f} points above anything published{classes}"
    return "stands or falls with the accuracy beside it"


def table_1(records: Iterable[Record]) -> list[Row]:
    """The paper's Table 1, claim by claim: the real row first, and labelled rows after it.

    A claim that no run in full has tested keeps its real row, empty; a part never fills it. What was measured on
    files of one's own says nothing of the paper's data.
    """
    groups = _same_but_for_seeds(record for record in records if record.data_source != "file")
    rows = []
    for claim in CLAIMS:
        metric = _OURS[claim.task][claim.metric]
        mine = [
            group
            for group in groups
            if (group[0].task, group[0].split) == (claim.task, claim.split) and metric in group[0].metrics
        ]
        made = []
        for group in mine:
            kind, label = standing(group[0])
            ours = pool(group, metric)
            made.append(Row(claim, kind, label, ours, tuple(group), verdict(claim, kind, ours)))
        if not any(row.standing == "real" for row in made):
            made.append(Row(claim, "none", "", None, (), verdict(claim, "none", None)))
        rows += sorted(made, key=lambda row: ("real", "none", "part", "bundled").index(row.standing))
    return rows


# --- arithmetic of the claims -----------------------------------------------------------------------


def wrong_overlap(exact_match: float, f1: float) -> float:
    """Mean F1 of the answers that are not exact, as a share, from EM and F1 in percent.

    An exact answer has F1 1, so F1 = EM + (1 - EM) · overlap.

    >>> round(wrong_overlap(80.4, 88.1), 3)
    0.393
    """
    if not 0 <= exact_match < 100 or not exact_match <= f1 <= 100:
        raise PanguLabError(f"EM {exact_match:g} and F1 {f1:g} cannot be: F1 lies between EM and 100, EM below 100")
    return (f1 - exact_match) / (100 - exact_match)


def consistent(
    accuracy: float, precision: float, recall: float, f1: float, positives: int, negatives: int, digits: int = 1
) -> bool:
    """Whether any confusion matrix of so many rows gives all four percentages, each rounded to ``digits``.

    Every pair of hits and false alarms is tried that the printed recall and precision leave open.
    """
    half = 0.5 * 10**-digits + 1e-9

    def printed(value: float, percent: float) -> bool:
        return abs(100 * value - percent) <= half

    lowest = max(0, int((recall - half) / 100 * positives) - 1)
    highest = min(positives, int((recall + half) / 100 * positives) + 1)
    for hits in range(lowest, highest + 1):
        if not printed(hits / positives, recall):
            continue
        # precision = hits / (hits + false alarms), solved for the false alarms at both ends of its rounding
        most = hits / max((precision - half) / 100, 1e-9) - hits
        least = hits / ((precision + half) / 100) - hits
        for false_alarms in range(max(0, int(least)), min(negatives, int(most) + 1) + 1):
            called = hits + false_alarms
            if (
                called
                and printed(hits / called, precision)
                and printed(2 * hits / (called + positives), f1)
                and printed((hits + negatives - false_alarms) / (positives + negatives), accuracy)
            ):
                return True
    return False


def published_overlaps() -> dict[str, float]:
    """``wrong_overlap`` of each model with a published pair of EM and F1."""
    em = {p.model: p.percent for p in published("squad", "exact_match")}
    return {p.model: wrong_overlap(em[p.model], p.percent) for p in published("squad", "f1")}


def _published_overlaps() -> str:
    shares = sorted(100 * share for share in published_overlaps().values())
    return f"{shares[0]:.0f} to {shares[-1]:.0f} %"


def remarks() -> list[str]:
    """What the claims say of themselves, by computation: one sentence each."""
    accuracy, precision, recall, f1 = (claimed("imdb", "test", metric) for metric in _PRINTED["imdb"])
    can = "can" if consistent(accuracy, precision, recall, f1, 12_500, 12_500) else "cannot"
    best = published("tweets", "macro_recall")[-1]
    recall = claimed("tweets", "test", "recall")
    em, f1 = (claimed("squad", "test", metric) for metric in ("accuracy", "f1"))
    falls = [[round(a - b, 1) for a, b in pairwise(values)] for m in _PRINTED.values() for values in m.values()]
    first, second = zip(*falls, strict=True)
    twin = next(p for p in published("squad", "f1") if {em} & {q.percent for q in PUBLISHED if q.model == p.model})
    return [
        f"Text classification, test: accuracy, precision, recall and F1 {can} all be true at once on IMDB's 25,000 rows.",
        f"Sentiment, test: a recall of {recall:g} lies {recall - best.percent:.1f} points above the best published "
        f"macro recall for three classes ({best.percent:g}, {best.model}).",
        f"Question answering, test: if accuracy means exact match, the other answers overlap by "
        f"{100 * wrong_overlap(em, f1):.1f} %; in published models by {_published_overlaps()}. "
        f"{twin.model} has the same exact match of {em:g}, and an F1 of {twin.percent:g}.",
        f"All {len(falls)} figures fall by {min(first):g} to {max(first):g} points from train to validation, and by "
        f"{min(second):g} to {max(second):g} from validation to test.",
    ]


# --- rendering --------------------------------------------------------------------------------------

_HEADS = ("task", "split", "metric", "paper", "ours [95 %]", "measured on", "model", "seeds", "verdict")


def _cells(row: Row) -> tuple[str, ...]:
    claim, first = row.claim, row.records[0] if row.records else None
    own = our_metric(claim.task, claim.metric)
    metric = named(claim.metric) if own == claim.metric else f"{named(claim.metric)} (ours: {named(own)})"
    where = "not measured in full" if row.standing == "none" else ""
    if first:
        source = f"{first.data} ({first.data_source})"
        where = {
            "real": f"{source}, {first.rows['test']:,} rows",
            "part": f"PART of {source}: {row.label}",
            "bundled": f"BUNDLED SAMPLE in place of {first.data}, {first.rows['test']:,} rows",
        }[row.standing]
    return (
        TITLES[claim.task],
        claim.split,
        metric,
        f"{claim.percent:.1f}",
        row.ours.percent() if row.ours else "–",
        where,
        f"{first.model}, {first.mode}" if first else "–",
        ", ".join(map(str, row.seeds)) or "–",
        row.verdict,
    )


def render(rows: Sequence[Row], form: str) -> str:
    """The table and the remarks as Markdown, HTML, LaTeX or JSON.

    Raises
    ------
    PanguLabError
        Another format is asked for.
    """
    makers = {"markdown": _markdown, "html": _html, "latex": _latex, "json": _json}
    if form not in makers:
        raise PanguLabError(f"--format is {form!r}; it must be one of {', '.join(FORMATS)}")
    return makers[form](rows)


def _markdown(rows: Sequence[Row]) -> str:
    lines = [f"| {' | '.join(_HEADS)} |", "|" + "---|" * len(_HEADS)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row)) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks())])


def _html(rows: Sequence[Row]) -> str:
    def line(tag: str, cells: Iterable[str], kind: str = "") -> str:
        return f"<tr{kind}>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = [line("td", _cells(row), f' class="{row.standing}"') for row in rows]
    style = (
        ".claims{border-collapse:collapse;font:14px sans-serif}.claims td,.claims th{border-bottom:1px solid #ccc;"
        "padding:4px 8px;text-align:left;vertical-align:top}.claims .part td,.claims .bundled td{color:#666}"
    )
    listed = "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks())
    return "\n".join(
        [
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Claims and measurements</title>'
            f"<style>{style}</style></head><body>",
            f'<table class="claims"><thead>{line("th", _HEADS)}</thead><tbody>',
            *body,
            f"</tbody></table>\n<ul>{listed}</ul></body></html>",
        ]
    )


_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\~{}", "^": r"\^{}", "–": "--"}
)


def _latex(rows: Sequence[Row]) -> str:
    def line(cells: Iterable[str]) -> str:
        return " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"

    return "\n".join(
        [
            r"% Needs \usepackage{longtable}; wide: set it on a landscape page.",
            r"\begin{longtable}{lllrlp{3.5cm}p{3cm}lp{5cm}}",
            r"\hline",
            line(_HEADS),
            r"\hline\endhead",
            *(line(_cells(row)) for row in rows),
            r"\hline",
            r"\end{longtable}",
            r"\begin{itemize}",
            *(rf"\item {remark.translate(_LATEX)}" for remark in remarks()),
            r"\end{itemize}",
        ]
    )


def _json(rows: Sequence[Row]) -> str:
    plain = [
        asdict(row.claim)
        | {
            "standing": row.standing,
            "label": row.label,
            "ours": row.ours.model_dump() if row.ours else None,
            "metric_of_ours": _OURS[row.claim.task][row.claim.metric],
            "data": row.records[0].data if row.records else None,
            "data_source": row.records[0].data_source if row.records else None,
            "rows": row.records[0].rows if row.records else None,
            "model": row.records[0].model if row.records else None,
            "seeds": row.seeds,
            "verdict": row.verdict,
        }
        for row in rows
    ]
    return json.dumps({"rows": plain, "remarks": remarks()}, indent=1, ensure_ascii=False)
