"""Every number that is reported, written once by the run that measured it and read by tables.

A ``Record`` says what was measured on which rows, from which source, with which seeds, versions and
machine. README's tables are rendered from the records under ``benchmarks/results``; nobody types one.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pangu_lab import hub
from pangu_lab.errors import PanguLabError
from pangu_lab.files import atomic_write
from pangu_lab.machine import hardware, versions
from pangu_lab.tasks.metrics import Metric

# What README says with a table, and without its record does not.
PRETRAINING_SPEED = """`python benchmarks/pretraining_speed.py` measures pre-training from nothing beside `Trainer` with \
`BertForPreTraining` of the same shape, on the same documents of the synthetic world. Padding is not counted as tokens; \
brackets of a ratio are the smallest and the largest of the interleaved blocks; losses are after the same tokens, on \
held-out documents, means over the seeds:

{rows}"""
PRETRAINING = """`python benchmarks/pretraining.py` measures on the synthetic world whether pre-training pays, and which \
objective. Numbers are accuracy in percent on {test_rows:,} test examples; brackets hold 95 % intervals by Student's t \
over the seeds of fine-tuning, gains are paired by seed. In the second table, the gain is over the first row:

{rows}"""


class ResultsError(PanguLabError):
    """A record or a rendered table is not as it should be."""


class Value(BaseModel):
    """A metric with its 95 % interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: float
    low: float
    high: float
    method: str

    def percent(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class Record(BaseModel):
    """One measured run. ``data_source`` and ``model_source`` are mirror, cache, hub or bundled."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    task: str
    split: str
    mode: str
    data: str
    data_source: hub.Kind
    rows: dict[str, int]
    notes: tuple[str, ...]
    model: str
    model_source: hub.Kind
    parameters: int
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    metrics: dict[str, Value]
    seconds: float
    versions: dict[str, str]
    hardware: dict[str, Any]
    created: str

    @property
    def on_real_data(self) -> bool:
        return self.data_source != "bundled"


def make_record(
    *,
    task: str,
    split: str,
    mode: str,
    data: hub.Source,
    rows: Mapping[str, int],
    notes: Sequence[str],
    model: hub.Source,
    parameters: int,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    metrics: Mapping[str, Metric],
    seconds: float,
) -> Record:
    """A record of a run that has just ended on this machine."""
    return Record(
        task=task,
        split=split,
        mode=mode,
        data=data.id,
        data_source=data.kind,
        rows=dict(rows),
        notes=tuple(notes),
        model=model.id if model.kind != "cache" or "/" not in str(model.folder) else Path(model.id).name,
        model_source=model.kind,
        parameters=parameters,
        seeds=tuple(seeds),
        settings=dict(settings),
        metrics={name: Value(**vars(metric)) for name, metric in metrics.items()},
        seconds=round(seconds, 2),
        versions=versions(),
        hardware=hardware(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def save_record(record: Record, file: Path) -> Path:
    """Write one record as JSON."""
    return atomic_write(file, json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")


def load_record(file: Path) -> Record:
    """Read a record.

    Raises
    ------
    ResultsError
        The file is not there, not JSON, or lacks a field.
    """
    try:
        return Record.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{file}: cannot be read ({error.strerror}); run the measurement again") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ResultsError(
            f"{file}: is not a record ({'.'.join(map(str, first['loc']))}: {first['msg']}); run the measurement again"
        ) from None


def load_records(folder: Path) -> list[Record]:
    """All records of a folder, by file name."""
    return [load_record(file) for file in sorted(folder.glob("run-*.json"))]


def results_table(records: Iterable[Record]) -> str:
    """A Markdown table: one row a record, every number with its rows, source, seeds and 95 % interval."""
    lines = [
        "| task | test data | trained on | model | accuracy | F1 | seed | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        main = record.metrics.get("f1") or record.metrics["macro_f1"]
        accuracy = record.metrics.get("accuracy")  # extracted answers have none, but exact match
        right = accuracy.percent() if accuracy else f"exact match {record.metrics['exact_match'].percent()}"
        sample = "" if record.on_real_data else ", **bundled sample**"
        trained = f"{record.rows['train']:,} rows" + (
            ", " + "; ".join(_training_notes(record)) if _training_notes(record) else ""
        )
        lines.append(
            f"| {record.task} ({record.mode}) | {record.data} ({record.data_source}){sample}, {record.split}, "
            f"{record.rows['test']:,} rows | {trained} | {record.model} ({record.parameters / 1e6:.1f} M) "
            f"| {right} | {main.percent()} | {', '.join(map(str, record.seeds))} "
            f"| {record.seconds:.0f} s, {_machine(record)} |"
        )
    return "\n".join(lines)


def _training_notes(record: Record) -> list[str]:
    return [note for note in record.notes if note.startswith("trained on")]


def _machine(record: Record) -> str:
    where = record.hardware
    number = f"{where['cores']} cores" if "cores" in where else f"{where['count']} GPU"
    return f"{number}, {record.settings.get('precision', 'fp32')}"


def labs_table(labs: Mapping[str, Any]) -> str:
    """A Markdown table of the labs with measured minutes and peak memory."""
    lines = ["| lab | what it builds | exercises | lesson, measured | peak memory |", "|---|---|---|---|---|"]
    for name, lab in labs["labs"].items():
        minutes, memory = lab["lesson"]["seconds"] / 60, lab["lesson"]["peak_bytes"] / 2**30
        lines.append(
            f"| [{name}](labs/{name}.ipynb) | {lab['title']} | {lab['exercises']} "
            f"| {minutes:.1f} min | {memory:.1f} GiB |"
        )
    return "\n".join(lines)


def finetuning_table(records: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table of the fine-tuning benchmark: speed beside ``transformers.Trainer``, accuracy beside it."""
    lines = [
        "| task | rows, steps, precision | settings | rows a second | times Trainer | accuracy after these steps |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        what = f"{record['train_rows']:,} rows, {record['runs']['ours'][0]['steps']} steps, {record['precision']}"
        for name, peer in record["summary"].items():
            low, high = peer["times_trainer_spread"]
            accuracy = (100 * value for value in (peer["accuracy"], *peer["accuracy_interval"]))
            lines.append(
                f"| {record['task']} ({record['data']}, {record['data_source']}) | {what} | {name} "
                f"| {peer['examples_per_second']:.1f} | {peer['times_trainer_median']:.2f} [{low:.2f}, {high:.2f}] "
                "| {:.1f} [{:.1f}, {:.1f}] |".format(*accuracy)
            )
    return "\n".join(lines)


def pretraining_speed_table(records: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table of pre-training: real tokens a second beside ``transformers.Trainer``, and held-out losses."""
    lines = [
        "| model, rows in a batch, precision | trained on | settings | tokens a second | times Trainer "
        "| times Trainer, best | held-out MLM loss | held-out pair loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        what = f"{record['layers']} layers, d = {record['width']}, {record['batch']} rows, {record['precision']}"
        trained = f"{record['tokens']:,} tokens ({record['objective']}), {record['repeats']} seeds"
        for name, peer in record["summary"].items():
            times = " | ".join(
                f"{peer[f'{base}_median']:.2f} [{peer[f'{base}_spread'][0]:.2f}, {peer[f'{base}_spread'][1]:.2f}]"
                if f"{base}_median" in peer
                else "—"
                for base in ("times_trainer", "times_trainer_best")
            )
            lines.append(
                f"| {what} | {trained} | {name} | {peer['tokens_per_second']:,.0f} | {times} "
                f"| {peer['mlm_loss']:.3f} | {peer['pair_loss']:.3f} |"
            )
    return "\n".join(lines)


def pretraining_tables(record: Mapping[str, Any]) -> str:
    """Two Markdown tables: what pre-training pays at each number of examples, and what each objective adds."""
    summary, settings = record["summary"], record["settings"]
    lines = [
        f"| task | labeled examples | random weights | pre-trained ({summary['base']}) | gain, paired | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for task, by_count in summary["payoff"].items():
        for count, found in by_count.items():
            lines.append(
                f"| {task} | {int(count):,} | {_percent(found['random'])} | {_percent(found['accuracy'])} "
                f"| {_percent(found['gain'], '+')} | {len(found['seeds'])} |"
            )
    columns = [(task, count) for task, by_count in summary["ablation"].items() for count in by_count]
    names = list(dict.fromkeys(name for task, count in columns for name in summary["ablation"][task][count]))
    if not names:
        return "\n".join(lines)
    lines += [
        "",
        f"| objectives, {settings['tokens']:,} tokens each | held-out MLM loss, times the floor | "
        + " | ".join(f"{task}, {int(count):,}" for task, count in columns)
        + " |",
        "|" + "---|" * (2 + len(columns)),
    ]
    for name in names:
        cells = [summary["ablation"][task][count].get(name) for task, count in columns]
        loss = record["pretraining"][name]
        shown = " | ".join(_ablated(cell) for cell in cells)
        lines.append(f"| {name} | {loss['mlm_loss']:.3f}, {loss['ratio']:.2f} | {shown} |")
    return "\n".join(lines)


def _ablated(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "—"
    mean = f"{100 * cell['accuracy'][0]:.1f}"
    return f"{mean}; {_percent(cell['gain'], '+')}" if "gain" in cell else mean


def _percent(interval: Sequence[float | None], sign: str = "") -> str:
    """Percent with the interval, which one seed does not have."""
    value, low, high = (None if x is None else format(100 * x, f"{sign}.1f") for x in interval)
    return str(value) if low is None else f"{value} [{low}, {high}]"


def replace_between(text: str, name: str, content: str) -> str:
    """The text with everything between ``<!-- name -->`` and ``<!-- /name -->`` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ResultsError(f"the text has no <!-- {name} --> … <!-- /{name} --> to fill; put both marks in")
    return pattern.sub(lambda found: f"{found.group(1)}{content}\n{found.group(2)}", text)


def render_readme(text: str, results: Path) -> str:
    """README's text with its tables rendered from the records in ``results``."""
    text = replace_between(text, "results", results_table(load_records(results)))
    labs = results / "labs.json"
    if labs.is_file():
        text = replace_between(text, "labs", labs_table(json.loads(labs.read_text(encoding="utf-8"))))
    speeds = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("finetuning-*.json"))]
    if speeds:
        text = replace_between(text, "finetuning", finetuning_table(speeds))
    speeds = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("pretraining-speed*.json"))]
    if speeds:
        told = PRETRAINING_SPEED.format(rows=pretraining_speed_table(speeds))
        text = replace_between(text, "pretraining-speed", told)
    pays = results / "pretraining.json"
    if pays.is_file():
        record = json.loads(pays.read_text(encoding="utf-8"))
        text = replace_between(
            text, "pretraining", PRETRAINING.format(rows=pretraining_tables(record), **record["settings"])
        )
    return text
