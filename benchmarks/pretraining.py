"""Does pre-training pay, and which objective? Fine-tuning on the synthetic world's two tasks, over five seeds.

1. From random and from pre-trained weights, with 16, 64, 256 and 1,024 labeled examples.
2. From weights that saw equal tokens under other objectives: MLM, with NSP, SOP, POS and NER, correction.

Every fine-tuning of a task, a size and a seed has the same examples, the same number of steps and the same choice of
learning rates; the rate is chosen on validation documents, each start its own. Accuracy is of test documents; intervals
are 95 % by Student's t over the seeds of fine-tuning (examples, order, heads), and gains are paired by seed. Each
objective is pre-trained once.

The record is written after every fine-tuning. Stop at any time (Ctrl-C, `--minutes`): the same command goes on, within
a pre-training, too; with more seeds, sizes or objectives it does what is missing. Usage:
`python benchmarks/pretraining.py --minutes 30 --out benchmarks/results/pretraining.json`
"""

import argparse
import hashlib
import json
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import transformers
from side_by_side import write_record

from pangu_lab.config import Train
from pangu_lab.data.world import World
from pangu_lab.model import PanguConfig, PanguForPreTraining
from pangu_lab.pretraining import (
    encoder_shape,
    held_out,
    make_rows,
    parse_objectives,
    pretrain,
    world_corpus,
)
from pangu_lab.readme import pretraining_tables
from pangu_lab.tasks.comparison import mean_interval
from pangu_lab.tasks.world_tasks import TASKS, accuracy, examples, few_examples, fine_tune, fresh_start
from pangu_lab.training import Interrupted

RANDOM = "random"
OBJECTIVES = ("mlm", "mlm,nsp", "mlm,sop", "mlm,pos,ner", "mlm,hard", "mlm,soft", "mlm,sop,pos,ner,hard")
TEST_SEED, VALIDATION_SEED, HELD_OUT_SEED, LENGTH = 900, 901, 77, 256
# What must be equal for a record to be gone on with: option -> default, and what it is.
SETTINGS = {
    "tokens": (3_000_000, "real tokens that each objective is pre-trained on, one pass"),
    "width": (96, "dimensions d; the feed-forward layer has 4 d"),
    "layers": (2, "layers"),
    "heads": (8, "attention heads"),
    "batch": (16, "documents in a batch of pre-training"),
    "learning_rate": (3e-3, "peak learning rate of pre-training"),
    "mask_rate": (0.3, "share of tokens that are masked in training; held-out documents have 15 %"),
    "pretraining_seed": (0, "seed of pre-training"),
    "steps": (200, "steps of each fine-tuning"),
    "validation_rows": (300, "validation examples, on which the learning rate is chosen"),
    "test_rows": (1000, "test examples"),
    "held_out": (100, "held-out documents with an exact floor"),
}


class Bench:
    """The record so far, and what it is measured with."""

    def __init__(self, options):
        self.options, self.world = options, World()
        first = "\n".join(document.text for document in self.world.documents(0, 0, 64))
        self.settings = {name: getattr(options, name) for name in SETTINGS} | {
            "rates": options.rates,
            "world": hashlib.sha256(first.encode()).hexdigest()[:16],
        }
        self.record = {"settings": self.settings, "pretraining": {}, "cells": {}}
        if options.out.is_file():
            self.record = json.loads(options.out.read_text(encoding="utf-8"))
            for name, value in self.settings.items():
                if self.record["settings"].get(name) != value:
                    before = self.record["settings"].get(name)
                    sys.exit(f"{options.out}: {name} was {before!r}, is {value!r} now; give another --out")
        self.models = {}
        sizes = {"test": (TEST_SEED, options.test_rows), "validation": (VALIDATION_SEED, options.validation_rows)}
        self.rows = {
            (split, task): examples(self.world, task, seed, 0, count)
            for split, (seed, count) in sizes.items()
            for task in TASKS
        }

    @cached_property
    def held_out(self):
        """Masked documents with their exact floor, the same for every objective."""
        return held_out(self.world, HELD_OUT_SEED, self.options.held_out)

    # --- pre-training -------------------------------------------------------------------------------

    def corpus(self, names, tokens):
        """As many documents as make up ``tokens`` real tokens in the rows of these objectives."""
        seed = self.options.pretraining_seed
        few = world_corpus(self.world, self.world.documents(seed, 0, 256))
        each = sum(len(row["input_ids"]) for row in make_rows(few, names, seed)) / 256
        # A few more than the estimate says, then cut where the budget is reached.
        corpus = world_corpus(self.world, self.world.documents(seed, 0, int(1.1 * tokens / each) + 16))
        total = 0
        for row in make_rows(corpus, names, seed):
            total += len(row["input_ids"])
            if total >= tokens:
                break
        end = row["number"] + 1
        parts = {name: getattr(corpus, name)[:end] for name in ("documents", "pos", "ner")}
        return replace(corpus, **parts)

    def pretrain(self, objective, folder, tokens):
        """A model after ``tokens`` tokens, and how it went; a folder with an unfinished run is gone on with."""
        options, names = self.options, parse_objectives(objective)
        corpus = self.corpus(names, tokens)
        settings = Train(
            learning_rate=options.learning_rate,
            batch_size=options.batch,
            warmup_ratio=0.05,
            adam_beta2=0.98,
            precision="fp32",
            seed=options.pretraining_seed,
        )
        model, result = pretrain(corpus, names, self.shape(), settings, folder, rate=options.mask_rate, quiet=True)
        seen = sum(len(row["input_ids"]) for row in make_rows(corpus, names, settings.seed))
        return model, {
            "tokens": seen,
            "documents": len(corpus.documents),
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "tokens_per_second": round(seen / result.seconds),
        }

    def shape(self):
        """The encoder's: LayerNorm first and distances for positions, as the course's own small models have it."""
        return PanguConfig(
            hidden_size=self.options.width,
            intermediate_size=4 * self.options.width,
            num_hidden_layers=self.options.layers,
            num_attention_heads=self.options.heads,
            norm_position="pre",
            relative_positions=8,
            max_position_embeddings=LENGTH,
            initializer_range=0.1,
        )

    def pretrained(self, objective):
        """The model of an objective: pre-trained now, or found in the folder of an earlier run."""
        if objective not in self.models:
            digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
            folder = self.options.runs / f"{objective.replace(',', '-')}-{digest}"
            if objective in self.record["pretraining"] and (folder / "model").is_dir():
                self.models[objective] = PanguForPreTraining.from_pretrained(folder / "model")
            else:
                model, figures = self.pretrain(objective, folder, self.options.tokens)
                figures |= {name: round(float(x), 4) for name, x in self.held_out.evaluate(model).items()}
                model.save_pretrained(folder / "model")
                self.models[objective] = model
                self.record["pretraining"][objective] = figures
                self.save()
                print(f"{objective}: {figures}", flush=True)
        return self.models[objective]

    # --- fine-tuning --------------------------------------------------------------------------------

    def cell(self, weights, task, count, seed):
        """One fine-tuning: test accuracy at the learning rate that was best on the validation examples."""
        began = time.perf_counter()
        fresh = fresh_start(self.shape(), self.world, seed)
        start = fresh if weights == RANDOM else self.pretrained(weights)
        shape, rows = encoder_shape(fresh, num_labels=2), few_examples(self.world, task, count, seed)
        models = {
            rate: fine_tune(shape, start, task, rows, seed, self.options.steps, rate) for rate in self.options.rates
        }
        validation = {rate: accuracy(model, self.rows["validation", task]) for rate, model in models.items()}
        best = max(validation, key=lambda rate: validation[rate])
        return {
            "accuracy": accuracy(models[best], self.rows["test", task]),
            "rate": best,
            "validation": {f"{rate:g}": round(value, 4) for rate, value in validation.items()},
            "seconds": round(time.perf_counter() - began, 2),
        }

    def plan(self):
        """(weights, task, examples, seed) of all fine-tunings, seed by seed, so that a part is a fair one."""
        options = self.options
        base, *others = options.objectives
        return [
            (weights, task, count, seed)
            for seed in range(options.seeds)
            for count in sorted({*options.sizes, *options.ablation_sizes})
            for task in TASKS
            for weights in (RANDOM, base, *(others if count in options.ablation_sizes else ()))
        ]

    def missing(self):
        """What the record does not have yet: objectives, and fine-tunings."""
        objectives = [name for name in self.options.objectives if name not in self.record["pretraining"]]
        return objectives, [one for one in self.plan() if key(*one) not in self.record["cells"]]

    def work(self):
        """Do what is missing; the record is written after every piece."""
        for objective in self.options.objectives:
            self.pretrained(objective)
        _, cells = self.missing()
        for done, one in enumerate(cells):
            self.record["cells"][key(*one)] = found = self.cell(*one)
            self.save()
            left = (len(cells) - done - 1) * self.seconds_of_cell() / 60
            print(f"{key(*one):>40} {found['accuracy']:.3f}  {left:.1f} minutes left", flush=True)

    def save(self):
        """Write the record with what its cells say so far."""
        self.record["summary"] = summarize(self.record["cells"], self.options.objectives[0])
        what = "fine-tuning on the synthetic world's tasks, from random and from pre-trained weights"
        write_record(self.options.out, {"what": what, "data": "the synthetic world"} | self.record)

    # --- how long it takes --------------------------------------------------------------------------

    def seconds_of_cell(self):
        """Mean seconds of a fine-tuning so far; where there is none, a tenth of one is timed."""
        known = [cell["seconds"] for cell in self.record["cells"].values()]
        if known:
            return sum(known) / len(known)
        fresh = fresh_start(self.shape(), self.world, 0)
        shape = encoder_shape(fresh, num_labels=2)
        rows, part = few_examples(self.world, TASKS[-1], 256, 0), max(16, self.options.steps // 10)
        began = time.perf_counter()
        model = fine_tune(shape, fresh, TASKS[-1], rows, 0, part)
        trained = time.perf_counter() - began
        accuracy(model, self.rows["test", TASKS[-1]])
        tested = time.perf_counter() - began - trained
        share = self.options.validation_rows / self.options.test_rows
        tries = len(self.options.rates)
        return tries * trained * self.options.steps / part + (1 + tries * share) * tested

    def estimate(self):
        """Minutes that what is missing will take, from earlier pieces or from a short trial."""
        objectives, cells = self.missing()
        seconds = len(cells) * self.seconds_of_cell() if cells else 0.0
        if objectives:
            known = [one["tokens_per_second"] for one in self.record["pretraining"].values()]
            if not known:
                with tempfile.TemporaryDirectory() as folder:
                    known = [self.pretrain(objectives[-1], Path(folder), 40_000)[1]["tokens_per_second"]]
            seconds += len(objectives) * self.options.tokens / (sum(known) / len(known))
        return seconds / 60


def key(weights, task, count, seed):
    """The name of a fine-tuning in the record."""
    return f"{weights}|{task}|{count}|{seed}"


def summarize(cells, base):
    """From the fine-tunings: what pre-training pays by task and size, and each objective beside ``base``."""
    by = {}  # (task, count) -> weights -> seed -> accuracy
    for name, cell in cells.items():
        weights, task, count, seed = name.split("|")
        by.setdefault((task, int(count)), {}).setdefault(weights, {})[int(seed)] = cell["accuracy"]
    payoff, ablation = {task: {} for task in TASKS}, {task: {} for task in TASKS}
    for (task, count), starts in sorted(by.items(), key=lambda item: item[0][1]):
        if {RANDOM, base} <= set(starts):
            payoff[task][str(count)] = compared(starts, base, RANDOM) | {RANDOM: interval([*starts[RANDOM].values()])}
        others = [weights for weights in starts if weights not in (RANDOM, base)]
        if base in starts and others:
            rows = {weights: compared(starts, weights, base) for weights in others}
            ablation[task][str(count)] = {base: compared(starts, base, base)} | rows
    return {"base": base, "payoff": payoff, "ablation": ablation}


def compared(starts, weights, other):
    """Accuracy from these weights, and the gain over others on the seeds that both have."""
    ours, theirs = starts[weights], starts[other]
    both = sorted(set(ours) & set(theirs))
    found = {"accuracy": interval([*ours.values()]), "seeds": both}
    if weights != other:
        found["gain"] = interval([ours[seed] - theirs[seed] for seed in both])
    return found


def interval(values):
    """Mean, and the ends of its 95 % interval; null where there is only one seed."""
    if len(values) < 2:
        return [round(value, 4) for value in values] + [None, None]
    found = mean_interval(values)
    return [round(found.value, 4), round(found.low, 4), round(found.high, 4)]


@contextmanager
def minutes(limit):
    """Press Ctrl-C after so many minutes; ``None`` never does. For systems with alarms: not Windows."""

    def ring(*_):
        pressed = signal.getsignal(signal.SIGINT)
        if not callable(pressed):  # a job in the background is started with Ctrl-C ignored
            raise KeyboardInterrupt
        pressed(signal.SIGINT, None)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 60 * (limit or 0))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def draw(record, file):
    """The figure of the gain: accuracy by number of examples, every seed a dot."""
    from pangu_lab.viz.pretraining import payoff_figure

    base, cells, results = record["summary"]["base"], record["cells"], {}
    for task, by_count in record["summary"]["payoff"].items():
        for count, found in by_count.items():
            results.setdefault(task, {})[int(count)] = [
                {
                    name: cells[key(weights, task, count, seed)]["accuracy"]
                    for name, weights in (("random", RANDOM), ("pretrained", base))
                }
                for seed in found["seeds"]
            ]
    payoff_figure(results).savefig(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, told) in SETTINGS.items():
        kind = type(default)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=default, help=f"{told} ({default:g})".replace("%", "%%")
        )
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[3e-4, 1e-3, 3e-3], help="fine-tuning rates to choose from"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[16, 64, 256, 1024], help="labeled examples, part 1")
    parser.add_argument("--ablation-sizes", nargs="*", type=int, default=[64, 256], help="labeled examples, part 2")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of fine-tuning, from 0")
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES, help="the first is part 1's")
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on")
    parser.add_argument("--estimate", action="store_true", help="only say how long it will take")
    parser.add_argument("--runs", type=Path, default=Path("runs/pretraining-benchmark"), help="folder of the models")
    parser.add_argument("--figure", type=Path, help="draw part 1 into this file")
    parser.add_argument("--out", type=Path, required=True, help="the record, JSON; gone on with if it is there")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    bench = Bench(options)
    objectives, cells = bench.missing()
    if objectives or cells:
        told = f"{len(objectives)} pre-trainings and {len(cells)} fine-tunings"
        print(f"to do: {told}, about {bench.estimate():.1f} minutes", flush=True)
    if options.estimate:
        return
    try:
        with minutes(options.minutes):
            bench.work()
    except (Interrupted, KeyboardInterrupt):
        print("stopped; the same command goes on from here", flush=True)
    bench.save()
    print(pretraining_tables(bench.record))
    if options.figure and any(bench.record["summary"]["payoff"].values()):
        draw(bench.record, options.figure)


if __name__ == "__main__":
    main()
