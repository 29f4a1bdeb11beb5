"""README's tables, each rendered from the records that it is about; ``pangu-lab results --write README.md``.

A record is a JSON file in benchmarks/results that a benchmark or a run has written. What README says between
``<!-- name -->`` and ``<!-- /name -->`` comes from here alone; without a record the place stays as it is.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pangu_lab.results import ResultsError, load_records, results_table

# What README says with a table, and without its record does not.
PRETRAINING_SPEED = """`python benchmarks/pretraining_speed.py` measures pre-training from nothing beside `Trainer` with \
`BertForPreTraining` of the same shape, on the same documents of the synthetic world. Padding is not counted as tokens; \
brackets of a ratio are the smallest and the largest of the interleaved blocks; losses are after the same tokens, on \
held-out documents, means over the seeds:

"""
PRETRAINING = """`python benchmarks/pretraining.py` measures on the synthetic world whether pre-training pays, and which \
objective. Numbers are accuracy in percent on {test_rows:,} test examples; brackets hold 95 % intervals by Student's t \
over the seeds of fine-tuning, gains are paired by seed. In the second table, the gain is over the first row:

"""


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


def pretraining_speed_table(records: Sequence[Mapping[str, Any]]) -> str:
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
    shares = [
        peer["masking_share_median"]
        for r in records
        for peer in r["summary"].values()
        if "masking_share_median" in peer
    ]
    if shares:
        lines += ["", f"Masking, with padding, takes at most {100 * max(shares):.1f} % of our training time."]
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


def encoder_table(records: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of the encoder's forward pass beside transformers' BERT."""
    lines = [
        "| batch × tokens | transformers, sdpa | ours | transformers' time over ours, quartiles |",
        "|---|---|---|---|",
    ]
    for record in records:
        for batch, found in record["summary"].items():
            low, high = found["ratio_quartiles"]
            theirs, ours = (1000 * found["seconds_median"][name] for name in ("transformers", "ours"))
            lines.append(
                f"| {batch} × {record['length']} | {theirs:.1f} ms | {ours:.1f} ms "
                f"| {found['ratio_median']:.2f} [{low:.2f}, {high:.2f}] |"
            )
    return "\n".join(lines)


def int8_table(records: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of int8 inference: how many times faster our engine is than each peer, shape by shape."""
    lines = []
    for record in records:
        shapes = list(record["shapes"])
        quality = record.get("accuracy") or {}
        lines += [
            f"| {record['model']}, {record['threads']} threads, ours on {record['engine']} | "
            + " | ".join(shape.replace("x", " × ") for shape in shapes)
            + (f" | accuracy, {quality['reviews']:,} reviews | agreement |" if quality else " |"),
            "|" + "---|" * (1 + len(shapes) + 2 * bool(quality)),
        ]
        for name in record["shapes"][shapes[0]]["engines"]:
            cells = []
            for shape in shapes:
                found = record["shapes"][shape]["engines"].get(name)
                times = f"{found['median_ms']:.1f} ms" if found else "—"
                cells.append(times if not found or name == "ours" else f"{times}, {found['ours_is_times_faster']:.2f}")
            if quality:
                right = quality.get(name)
                cells += (
                    [f"{100 * right['accuracy']:.2f} %", f"{100 * right['agreement']:.1f} %"] if right else ["—"] * 2
                )
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines[:-1])


def compression_table(records: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of compressed models: size, speed, quality, agreement with the first of them."""
    lines = []
    for record in records:
        shapes = list(record["models"][0]["latency"])
        metrics = [key for key, value in record["models"][0].items() if isinstance(value, dict) and "value" in value]
        heads = [f"{record['what']}; {record['data']}, {record['test_rows']:,} test rows", "MB"]
        heads += [f"{shape.replace('x', ' × ')}, times faster" for shape in shapes]
        heads += [key.replace("_", " ") for key in metrics] + ["agreement"]
        lines += [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for one in record["models"]:
            cells = [one["name"], f"{one['bytes'] / 1e6:.1f}"]
            cells += [f"{one['latency'][shape]['speedup'][0]:.1f}" for shape in shapes]
            cells += [
                "{value:.1f} [{low:.1f}, {high:.1f}]".format(**{k: 100 * one[key][k] for k in ("value", "low", "high")})
                for key in metrics
            ]
            lines.append(f"| {' | '.join(cells)} | {100 * one['agreement']:.1f} % |")
        lines.append("")
    return "\n".join(lines[:-1])


def grading_table(records: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of grading: seconds for a class beside a plain papermill loop, and for larger ones."""
    lines = [
        "| lab, submissions | `pangu-lab grade` | plain papermill | times as fast | wrong marks |",
        "|" + "---|" * 5,
    ]
    for record in records:
        for block in record["compare"]:
            ours, theirs = block["ours"], block["papermill"]
            lines.append(
                f"| {block['lab']}, {ours['submissions']} | {ours['seconds']:.0f} s | {theirs['seconds']:.0f} s "
                f"| {block['times_as_fast']:.1f} | {len(ours['wrong_marks'])} |"
            )
        for sizes in record["linear"]:
            for size, found in sizes.items():
                if size.isdecimal():
                    lines.append(
                        f"| {sizes['lab']}, {size} | {found['seconds']:.0f} s | — | — | {len(found['wrong_marks'])} |"
                    )
    return "\n".join(lines)


def _pays(record: Mapping[str, Any]) -> str:
    return PRETRAINING.format(**record["settings"]) + pretraining_tables(record)


def _one(render: Callable[[Mapping[str, Any]], str]) -> Callable[[Sequence[Mapping[str, Any]]], str]:
    return lambda records: render(records[0])


# The name of the place, the records that fill it, and how.
TABLES: tuple[tuple[str, str, Callable[[Sequence[Mapping[str, Any]]], str]], ...] = (
    ("labs", "labs.json", _one(labs_table)),
    ("finetuning", "finetuning-*.json", finetuning_table),
    (
        "pretraining-speed",
        "pretraining-speed*.json",
        lambda records: PRETRAINING_SPEED + pretraining_speed_table(records),
    ),
    ("pretraining", "pretraining.json", _one(_pays)),
    ("encoder", "encoder.json", encoder_table),
    ("int8", "int8-inference*.json", int8_table),
    ("compression", "compress-*.json", compression_table),
    ("grading", "grading.json", grading_table),
)


def replace_between(text: str, name: str, content: str) -> str:
    """The text with everything between ``<!-- name -->`` and ``<!-- /name -->`` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ResultsError(f"the text has no <!-- {name} --> … <!-- /{name} --> to fill; put both marks in")
    return pattern.sub(lambda found: f"{found.group(1)}{content}\n{found.group(2)}", text)


def render_readme(text: str, results: Path) -> str:
    """README's text with its tables rendered from the records in ``results``."""
    text = replace_between(text, "results", results_table(load_records(results)))
    for name, files, render in TABLES:
        records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob(files))]
        if records:
            text = replace_between(text, name, render(records))
    return text
