"""Fine-tuning throughput: our loop beside `transformers.Trainer`, interleaved, on the same data and model.

Each run is a process of its own (nothing that one sets up helps the other); a run trains one epoch of the
same rows from the same weights with the same batch size, learning rate and schedule, then measures test
accuracy. Three peers, so that it is plain what helps:

- `ours`: the package's defaults (like lengths together, no dropout on a CPU, plain attention);
- `ours, dropout`: the same with the model's own dropout of 0.1;
- `trainer`: `transformers.Trainer` with dynamic padding and its defaults, as most people run it;
- `trainer, best`: `Trainer` with `group_by_length`, no dropout and fused AdamW: its best settings here.

All run in the precision that is asked for (`--precision`). Usage:
`python benchmarks/finetuning.py --mirror MIRROR --task reviews --repeats 5`
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

from side_by_side import run_ours, run_trainer, speed_summary, take_turns, write_record

PEERS = ("ours", "ours, dropout", "trainer", "trainer, best")
LEARNING_RATE, BATCH = 1e-4, 16
TASKS = {"reviews": ("stanfordnlp/imdb", 256, 2), "tweets": ("cardiffnlp/tweet_eval", 128, 3)}


def rows_of(task, mirror, count, test_count, tokenizer):
    """The same training and test features for every peer."""
    from pangu_lab import hub
    from pangu_lab.config import load_config
    from pangu_lab.data.text_tasks import TextTask, checked_rows, stratified
    from pangu_lab.tasks.classification import features

    id, length, labels = TASKS[task]
    config = load_config(None, paths={"mirror": str(Path(mirror).resolve())} if mirror else {})
    data, source = hub.load_dataset(id, config)
    spec = TextTask(task, task, id, tuple(map(str, range(labels))), None)
    splits = []
    for split, wanted in (("train", count), ("test", test_count)):
        rows = checked_rows(data[split]["text"], data[split]["label"], spec, f"{id}, {split}")
        splits.append(features(rows.take(stratified(rows, min(wanted, len(rows)), seed=0)), tokenizer, length))
    return *splits, source.kind


def measure(peer, task, mirror, count, test_count, precision, seed):
    """Train one epoch; seconds of training, test accuracy, and the number of steps."""
    import numpy as np
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from pangu_lab.config import Train
    from pangu_lab.data.batches import collate
    from pangu_lab.hub import bundled_weights
    from pangu_lab.tasks.classification import predict_features
    from pangu_lab.training import Job, cross_entropy_loss

    tokenizer = AutoTokenizer.from_pretrained(bundled_weights())
    train_rows, test_rows, source = rows_of(task, mirror, count, test_count, tokenizer)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(bundled_weights(), num_labels=TASKS[task][2])
    pad = partial(collate, pad_token_id=tokenizer.pad_token_id)
    settings = Train(
        learning_rate=LEARNING_RATE,
        batch_size=BATCH,
        precision=precision,
        seed=seed,
        dropout=0.1 if "dropout" in peer else 0.0,
        checkpoint_seconds=3600,
    )
    with tempfile.TemporaryDirectory() as folder:
        if peer.startswith("ours"):
            seconds, steps = run_ours(model, Job(train_rows, pad, cross_entropy_loss, 1, settings), folder)
        else:
            seconds, steps = run_trainer(model, train_rows, pad, settings, folder, best="best" in peer)
    predicted = predict_features(model, test_rows, tokenizer.pad_token_id).argmax(axis=1)
    right = int((predicted == np.array([row["labels"] for row in test_rows])).sum())
    return {"seconds": seconds, "right": right, "test": len(test_rows), "steps": steps, "source": source}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="reviews")
    parser.add_argument("--mirror")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--test-rows", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--peers", nargs="*", default=PEERS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        result = measure(
            options.one, options.task, options.mirror, options.rows, options.test_rows, options.precision, options.seed
        )
        print(json.dumps(result))
        return

    from pangu_lab.tasks.metrics import wilson_interval

    arguments = ["--task", options.task, "--rows", options.rows, "--test-rows", options.test_rows]
    arguments += ["--precision", options.precision, *(["--mirror", options.mirror] if options.mirror else [])]
    runs = take_turns(__file__, options.peers, options.repeats, arguments)
    summary = speed_summary(runs, options.rows, "examples")
    for peer, results in runs.items():
        right, total = sum(run["right"] for run in results), sum(run["test"] for run in results)
        summary[peer]["accuracy"] = round(right / total, 4)
        summary[peer]["accuracy_interval"] = [round(value, 4) for value in wilson_interval(right, total)]
        print(f"{peer:>14}: {summary[peer]}")
    if options.out:
        record = {
            "what": "fine-tuning throughput, one epoch, each run a process of its own, interleaved",
            "task": options.task,
            "data": TASKS[options.task][0],
            "data_source": runs[options.peers[0]][0]["source"],
            "train_rows": options.rows,
            "test_rows": options.test_rows,
            "max_length": TASKS[options.task][1],
            "batch_size": BATCH,
            "learning_rate": LEARNING_RATE,
            "precision": options.precision,
            "repeats": options.repeats,
            "seeds": list(range(options.repeats)),
            "summary": summary,
            "runs": runs,
        }
        write_record(options.out, record)


if __name__ == "__main__":
    main()
