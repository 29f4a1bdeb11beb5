"""What the training benchmarks share: our loop and `transformers.Trainer` timed alike, in turns, into a record."""

import json
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

BASES = {"trainer": "times_trainer", "trainer, best": "times_trainer_best"}


def run_ours(model, job, folder):
    """Train with the package's loop; seconds and steps."""
    from pangu_lab.training import train

    began = time.perf_counter()
    steps = train(model, job, Path(folder), quiet=True, tensorboard=False).steps
    return time.perf_counter() - began, steps


def run_trainer(model, rows, collator, settings, folder, best):
    """Train one epoch with `Trainer` under the same `Train` settings; seconds and steps.

    ``best`` groups rows by length, leaves dropout out and takes fused AdamW.
    """
    import torch
    from transformers import Trainer, TrainingArguments

    from pangu_lab.training import set_dropout

    if best:
        set_dropout(model, 0.0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=1,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        warmup_steps=settings.warmup_ratio,  # below 1 it is a share of all steps
        seed=settings.seed,
        bf16=settings.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="group_by_length" if best else "random",
        optim="adamw_torch_fused" if best else "adamw_torch",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
    began = time.perf_counter()
    steps = trainer.train().global_step
    return time.perf_counter() - began, steps


def take_turns(script, peers, repeats, arguments):
    """``script --one PEER --seed BLOCK`` for every peer in each block, each a process of its own; runs by peer.

    Whatever slows the machine slows each of them; and each block begins with another peer.
    """
    peers = list(peers)
    runs = {peer: [] for peer in peers}
    for block in range(repeats):
        first = block % len(peers)
        for peer in peers[first:] + peers[:first]:
            command = [sys.executable, str(script), "--one", peer, "--seed", str(block), *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            runs[peer].append(json.loads(done.stdout.splitlines()[-1]))
            print(block, peer, runs[peer][-1], flush=True)
    return runs


def speed_summary(runs, amount, unit):
    """For each peer the median ``unit`` a second, its seconds, and how many times as fast as either `Trainer` it is.

    A ratio is formed within a block; the spread is the smallest and the largest of the blocks.
    """
    summary = {}
    for peer, results in runs.items():
        seconds = [run["seconds"] for run in results]
        summary[peer] = {
            f"{unit}_per_second": round(amount / statistics.median(seconds), 2),
            "seconds_median": round(statistics.median(seconds), 2),
            "seconds_spread": [round(min(seconds), 2), round(max(seconds), 2)],
        }
        for base, name in BASES.items():
            if base in runs:
                ratios = sorted(b["seconds"] / s for b, s in zip(runs[base], seconds, strict=True))
                summary[peer][f"{name}_median"] = round(statistics.median(ratios), 2)
                summary[peer][f"{name}_spread"] = [round(ratios[0], 2), round(ratios[-1], 2)]
    return summary


def write_record(file, record):
    """The record with versions, machine and time, written in one piece."""
    from pangu_lab.compression.engine import cpu_features
    from pangu_lab.files import atomic_write
    from pangu_lab.machine import hardware, versions

    vectors = ("avx", "amx", "asimd", "sve")
    machine = hardware() | {"features": sorted(name for name in cpu_features() if name.startswith(vectors))}
    stamp = {"versions": versions(), "hardware": machine, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    atomic_write(file, json.dumps(record | stamp, indent=1) + "\n")
