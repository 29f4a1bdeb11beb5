"""Fine-tuning through our encoder and through transformers' class: the same weights, rows, seeds and loop.

Both start from MiniLM; the new classification head is drawn once a seed and copied, so that the runs differ
in the code of the encoder only. Usage: `python benchmarks/encoder_finetuning.py --mirror MIRROR --seeds 0 1 2`
"""

import argparse
import json
import tempfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from pangu_lab import hub
from pangu_lab.config import load_config
from pangu_lab.data.batches import collate
from pangu_lab.data.text_tasks import TASKS, load_splits
from pangu_lab.files import atomic_write
from pangu_lab.machine import hardware, versions
from pangu_lab.model import PanguForSequenceClassification, from_bert
from pangu_lab.tasks.classification import features, new_classifier, predict_features
from pangu_lab.tasks.metrics import wilson_interval
from pangu_lab.training import Job, cross_entropy_loss, train


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sizes = {
        "train_rows": options.rows,
        "validation_rows": 50,
        "test_rows": options.test_rows,
        "max_length": 128,
        "epochs": 2,
    }
    mirror = {"mirror": str(Path(options.mirror).resolve())} if options.mirror else {}
    config = load_config(imdb={"lesson": sizes}, paths=mirror, train={"precision": options.precision})
    size = config.imdb.lesson
    runs = []
    for seed in options.seeds:
        splits = load_splits(TASKS["imdb"], config, "lesson", seed)
        theirs = new_classifier(hub.find_model(config.model, config), TASKS["imdb"], size.max_length, seed)
        ours = from_bert(theirs.model, PanguForSequenceClassification, num_labels=2)
        ours.classifier.load_state_dict(theirs.model.classifier.state_dict())  # the pooler was converted
        pad = theirs.tokenizer.pad_token_id
        rows = features(splits.train, theirs.tokenizer, size.max_length)
        test = features(splits.test, theirs.tokenizer, size.max_length)
        gold = np.asarray(splits.test.labels)
        predicted = {}
        for name, model in (("transformers", theirs.model), ("ours", ours)):
            with tempfile.TemporaryDirectory() as folder:
                settings = config.train.model_copy(update={"seed": seed})
                job = Job(rows, partial(collate, pad_token_id=pad), cross_entropy_loss, size.epochs, settings)
                result = train(model, job, Path(folder), quiet=True, tensorboard=False)
            predicted[name] = predict_features(model, test, pad).argmax(axis=1)
            right = int((predicted[name] == gold).sum())
            runs.append(
                {"seed": seed, "model": name, "right": right, "test": len(gold), "seconds": round(result.seconds, 1)}
            )
            print(runs[-1], flush=True)
        print("agreement", float((predicted["ours"] == predicted["transformers"]).mean()), flush=True)
        runs[-1]["agreement"] = float((predicted["ours"] == predicted["transformers"]).mean())
    summary = {}
    for name in ("transformers", "ours"):
        right = sum(run["right"] for run in runs if run["model"] == name)
        total = sum(run["test"] for run in runs if run["model"] == name)
        low, high = wilson_interval(right, total)
        summary[name] = {"accuracy": round(right / total, 4), "interval": [round(low, 4), round(high, 4)]}
    print(summary)
    if options.out:
        record = {
            "what": "fine-tuning MiniLM on IMDB through two implementations of the encoder, same loop, rows and seeds",
            "data_source": splits.source.kind,
            "sizes": sizes,
            "precision": options.precision,
            "summary": summary,
            "runs": runs,
            "versions": versions(),
            "hardware": hardware(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        atomic_write(options.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
