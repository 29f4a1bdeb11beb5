"""Encoder forward pass: our `PanguModel` beside transformers' `BertModel`, both with sdpa, on the same MiniLM weights.

One process; the two models take turns, and change who goes first every round, so that whatever slows the machine
slows both. For each batch size it records the median seconds of each and the median of the rounds' ratios
(transformers' seconds over ours: more than 1 means that ours is quicker), in fp32, without gradients, with the mask
of ones that a tokenizer gives. Before measuring, the hidden states of both are compared. Usage:
`python benchmarks/encoder.py --out benchmarks/results/encoder.json`
"""

import argparse
import json
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

BATCHES = (1, 8, 32)
LENGTH = 128
LARGEST_DIFFERENCE = 1e-5


def measure(models, batch, seconds, rounds):
    """Seconds of each round by model, and the largest difference of the hidden states."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = torch.randint(1000, 30_000, (batch, LENGTH), generator=torch.Generator().manual_seed(batch)).to(device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    times = {name: [] for name in models}
    with torch.inference_mode():
        states = [model(**inputs).last_hidden_state for model in models.values()]
        difference = (states[0] - states[1]).abs().max().item()
        for model in models.values():
            model(**inputs)  # the first calls prepare threads and memory
        until, order = time.perf_counter() + seconds, list(models)
        while len(times[order[0]]) < rounds or time.perf_counter() < until:
            order.reverse()
            for name in order:
                wait()
                began = time.perf_counter()
                models[name](**inputs)
                wait()
                times[name].append(time.perf_counter() - began)
    return times, difference


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="*", type=int, default=BATCHES)
    parser.add_argument("--seconds", type=float, default=30.0, help="measure each batch size for so long")
    parser.add_argument("--rounds", type=int, default=11, help="and for so many rounds at least")
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice if not given")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    import torch
    from transformers import AutoModel

    from pangu_lab.files import atomic_write
    from pangu_lab.hub import bundled_weights
    from pangu_lab.model import from_bert
    from pangu_lab.results import hardware, versions

    if options.threads:
        torch.set_num_threads(options.threads)
    folder, device = bundled_weights(), "cuda" if torch.cuda.is_available() else "cpu"
    models = {
        "transformers": AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval().to(device),
        "ours": from_bert(folder, attn_implementation="sdpa").to(device),
    }
    summary = {}
    for batch in options.batches:
        times, difference = measure(models, batch, options.seconds, options.rounds)
        if difference > LARGEST_DIFFERENCE:
            sys.exit(f"batch {batch}: hidden states differ by {difference:.1e}; nothing to compare")
        ratios = sorted(a / b for a, b in zip(times["transformers"], times["ours"], strict=True))
        quarter = len(ratios) // 4
        summary[str(batch)] = {
            "seconds_median": {name: round(statistics.median(values), 6) for name, values in times.items()},
            "seconds_fastest": {name: round(min(values), 6) for name, values in times.items()},
            "ratio_median": round(statistics.median(ratios), 3),
            "ratio_quartiles": [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)],
            "rounds": len(ratios),
            "largest_difference": difference,
        }
        print(f"batch {batch:>2} x {LENGTH}: {summary[str(batch)]}", flush=True)
    if options.out:
        record = {
            "what": "encoder forward pass, ours beside transformers' BertModel, same weights, sdpa, interleaved",
            "model": "MiniLM-L6-H384 (bundled)",
            "length": LENGTH,
            "precision": "fp32",
            "ratio": "transformers' seconds over ours",
            "summary": summary,
            "versions": versions(),
            "hardware": hardware(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        atomic_write(options.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
