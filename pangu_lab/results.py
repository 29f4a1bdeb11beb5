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
    """One measured run. ``data_source`` and ``model_source`` are mirror, cache, hub or bundled; or file, one's own data."""

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
        if "f1" not in record.metrics:  # several classes, and macro recall is what tweets are scored by
            right += f"; macro recall {record.metrics['macro_recall'].percent()}"
        sample = "" if record.on_real_data else ", **bundled sample**"
        trained = "; ".join([_rows(record, "train"), *_notes(record, "trained on")])
        tested = "; ".join([_rows(record, "test"), *_notes(record, "this copy tests on")])
        lines.append(
            f"| {record.task} ({record.mode}) | {record.data} ({record.data_source}){sample}, {record.split}, "
            f"{tested} | {trained} | {record.model} ({record.parameters / 1e6:.1f} M) "
            f"| {right} | {'' if 'f1' in record.metrics else 'macro '}{main.percent()} | {', '.join(map(str, record.seeds))} "
            f"| {record.seconds:.0f} s, {_machine(record)} |"
        )
    return "\n".join(lines)


def _notes(record: Record, beginning: str) -> list[str]:
    return [note for note in record.notes if note.startswith(beginning)]


def _rows(record: Record, part: str) -> str:
    """How many rows, and of how many they were drawn."""
    drawn = [re.match(rf"{part}: {record.rows[part]:,}( of [\d,]+)", note) for note in record.notes]
    return f"{record.rows[part]:,}" + "".join(found[1] for found in drawn if found) + " rows"


def _machine(record: Record) -> str:
    where = record.hardware
    number = f"{where['cores']} cores" if "cores" in where else f"{where['count']} GPU"
    return f"{number}, {record.settings.get('precision', 'fp32')}"
