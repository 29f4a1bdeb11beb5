"""Every model of the course in one picture: accuracy, latency, size; from records, and from runs on this machine."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pangu_lab.compression.measure import latency, size_on_disk
from pangu_lab.compression.tasks import load_compressed
from pangu_lab.errors import PanguLabError
from pangu_lab.results import Record, load_record
from pangu_lab.tasks.metrics import Metric

SHAPE = (1, 128)  # (batch, length): one text, as a service meets it


@dataclass(frozen=True)
class Point:
    """One model. ``tested`` says on what: accuracies on different rows must not be ranked."""

    name: str
    tested: str
    accuracy: Metric
    milliseconds: float
    megabytes: float
    machine: str


def recorded_points(folder: Path) -> list[Point]:
    """The classifiers of all comparisons recorded in ``folder`` (``pangu-lab measure --record``)."""
    points = []
    for file in sorted(folder.glob("*.json")):
        data = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or not data.get("models"):
            continue
        machine = str(data.get("hardware", {}).get("device", "another machine"))
        for model in data["models"]:
            time = model["latency"].get("{}x{}".format(*SHAPE))
            if time and "accuracy" in model:
                tested = f"{data['data']}, {data['test_rows']:,} rows"
                point = Point(
                    model["name"], tested, Metric(**model["accuracy"]), time["p50_ms"], model["bytes"] / 1e6, machine
                )
                points.append(point)
    return points


def run_points(runs: Path, repeats: int = 10, most: int = 6) -> list[Point]:
    """The newest ``most`` finished classification runs below ``runs``, timed here in turns on one text.

    A run that cannot be loaded is left out: half of one may be there while another notebook trains it.
    """
    found: dict[str, tuple[Record, Path]] = {}
    files = sorted(runs.glob("*/record.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        if len(found) == most:
            break
        try:
            record = load_record(file)
        except PanguLabError:
            continue
        if "accuracy" in record.metrics and (file.parent / "model").is_dir():
            found[file.parent.name] = record, file.parent / "model"
    loaded = {}
    for name, (_, folder) in found.items():
        try:
            loaded[name] = load_compressed(folder).model
        except (PanguLabError, OSError, ValueError, KeyError):
            continue
    if not loaded:
        return []
    times = latency({name: _reading(model) for name, model in loaded.items()}, repeats)
    return [
        Point(
            name,
            _tested(found[name][0]),
            Metric(**found[name][0].metrics["accuracy"].model_dump()),
            times[name].p50,
            size_on_disk(found[name][1]) / 1e6,
            "this machine",
        )
        for name in loaded
    ]


def _reading(model: Any) -> Callable[[], Any]:
    words, longest = int(model.config.vocab_size), int(model.config.max_position_embeddings)
    ids = torch.randint(
        words // 2, words, (SHAPE[0], min(SHAPE[1], longest)), generator=torch.Generator().manual_seed(0)
    )
    return lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids))


def _tested(record: Record) -> str:
    where = "bundled sample" if not record.on_real_data else f"{record.data} ({record.data_source})"
    return f"{where}, {record.rows['test']:,} rows"
