"""Pre-training throughput: our loop and model beside `transformers.Trainer` and `BertForPreTraining`, interleaved.

Same shape (BERT's own: LayerNorm after each sum, GELU), same documents of the synthetic world, same rows in a batch,
learning rate and schedule; one pass, so that all have seen the same tokens. Each run is a process of its own; then
the losses of held-out documents are measured under one set of masks. Peers, so that it is plain what helps:

- `ours`: our loop and model: like lengths together, logits only where a word is asked for, no dropout;
- `ours, BertForPreTraining`: our loop around transformers' model: what the loop alone gives;
- `trainer`: `Trainer` with its defaults, `DataCollatorForLanguageModeling`, dynamic padding, dropout of 0.1;
- `trainer, best`: `Trainer` with `group_by_length`, no dropout and fused AdamW: its best settings here.

A token is a real one: padding does not count. Usage:
`python benchmarks/pretraining_speed.py --repeats 5 --out benchmarks/results/pretraining-speed.json`
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from side_by_side import run_ours, run_trainer, speed_summary, take_turns, write_record

PEERS = ("ours", "ours, BertForPreTraining", "trainer", "trainer, best")
HELD_OUT_SEED, LENGTH = 10_000, 256
SIZES = {  # option -> its default and what it is
    "documents": (8_000, "documents to train on, one pass"),
    "held_out": (500, "held-out documents"),
    "width": (96, "dimensions d; the feed-forward layer has 4 d"),
    "layers": (2, "layers"),
    "heads": (4, "attention heads"),
    "batch": (16, "rows in a batch"),
}


def measure(peer, options):
    """Train on one pass; seconds, steps, real tokens, and the losses of the held-out documents."""
    import torch
    from transformers import BertConfig, BertForPreTraining, DataCollatorForLanguageModeling

    from pangu_lab.config import Train
    from pangu_lab.data.world import World
    from pangu_lab.model import PanguConfig
    from pangu_lab.pretraining import Collate, PretrainingLoss, make_model, make_rows, parse_objectives, world_corpus
    from pangu_lab.training import Job

    names, world = parse_objectives(options.objective), World()
    corpus = world_corpus(world, world.documents(0, 0, options.documents))
    rows = make_rows(corpus, names)  # the same pairs in every repeat; the seed decides weights, masks and order
    test = make_rows(world_corpus(world, world.documents(HELD_OUT_SEED, 0, options.held_out)), names)
    tokens, mask = corpus.tokens, Collate(corpus.tokens, options.seed)
    shape = {
        "hidden_size": options.width,
        "intermediate_size": 4 * options.width,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "max_position_embeddings": LENGTH,
    }
    settings = Train(
        learning_rate=options.learning_rate,
        batch_size=options.batch,
        warmup_ratio=0.05,
        adam_beta2=0.98,
        precision=options.precision,
        seed=options.seed,
        checkpoint_seconds=3600,
    )
    torch.manual_seed(options.seed)
    if peer == "ours":
        model, loss = make_model(PanguConfig(**shape), names, tokens), PretrainingLoss()
    else:
        model, loss = (
            BertForPreTraining(BertConfig(vocab_size=tokens.size, pad_token_id=tokens.pad, **shape)),
            bert_loss,
        )
    with tempfile.TemporaryDirectory() as folder:
        if peer.startswith("ours"):
            job = Job(rows, mask, loss, 1, settings, epoch_collate=mask)
            seconds, steps = run_ours(model, job, folder)
        else:
            special = {tokens.cls, tokens.sep}
            for row in rows:  # as a tokenizer gives them, so that the collator need not look for special tokens
                row["special_tokens_mask"] = [int(id in special) for id in row["input_ids"]]
                del row["number"]
            collator = DataCollatorForLanguageModeling(world.tokenizer(), mlm_probability=mask.rate)
            seconds, steps = run_trainer(model, rows, collator, settings, folder, best="best" in peer)
    return {
        "seconds": seconds,
        "steps": steps,
        **({"masking_share": masking_seconds(rows, mask, options.batch) / seconds} if peer.startswith("ours") else {}),
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "parameters": sum(p.numel() for p in model.parameters()),
        **held_out_losses(model, test, Collate(tokens, HELD_OUT_SEED)),
    }


def masking_seconds(rows, mask, batch):
    """Seconds that one pass of the rows takes to be masked, padding and making tensors of it included."""
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))  # like lengths together, as in training
    began = time.perf_counter()
    for start in range(0, len(ordered), batch):
        mask(ordered[start : start + batch], 0)
    return time.perf_counter() - began


def bert_loss(model, batch):
    """The loss of ``BertForPreTraining``, a mean for words and one for pairs, as the package's loop wants it."""
    from pangu_lab.objectives import IGNORED

    items = (batch["labels"] != IGNORED).sum()
    return model(**batch).loss * items, items


def held_out_losses(model, rows, mask):
    """Mean loss of the words that are asked for, mean loss and accuracy of the pairs; the same masks for each model."""
    import torch
    from torch.nn.functional import cross_entropy

    from pangu_lab.objectives import IGNORED

    model.eval().cpu()
    words, pairs, right = [], [], []
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            batch = mask(rows[start : start + 64])
            labels, order = batch.pop("labels"), batch.pop("next_sentence_label")
            output = model(**batch)
            asked = labels != IGNORED
            pair = output.pair_logits if "pair_logits" in output else output.seq_relationship_logits
            words.append(cross_entropy(output.prediction_logits[asked].float(), labels[asked], reduction="none"))
            pairs.append(cross_entropy(pair.float(), order, reduction="none"))
            right.append(pair.argmax(dim=-1) == order)
    found = {"mlm_loss": torch.cat(words), "pair_loss": torch.cat(pairs), "pair_accuracy": torch.cat(right).float()}
    return {name: float(values.mean()) for name, values in found.items()}


def losses_summary(runs, base):
    """For each peer the mean losses over the blocks, and the paired difference from ``base`` with its interval."""
    from pangu_lab.tasks.comparison import mean_interval

    summary = {}
    for peer, results in runs.items():
        summary[peer] = found = {}
        for name in ("mlm_loss", "pair_loss", "pair_accuracy"):
            values = [run[name] for run in results]
            found[name] = round(sum(values) / len(values), 4)
            if base in runs and len(values) > 1:
                more = mean_interval([a - b[name] for a, b in zip(values, runs[base], strict=True)])
                found[f"{name}_more"] = [round(value, 4) for value in (more.value, more.low, more.high)]
    return summary


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, told) in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"{told} ({default})")
    parser.add_argument("--objective", default="mlm,sop", choices=("mlm,sop", "mlm,nsp"))
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return

    settings = {name: getattr(options, name) for name in (*SIZES, "objective", "learning_rate", "precision")}
    arguments = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", value)]
    runs = take_turns(__file__, options.peers, options.repeats, arguments)
    tokens = runs[options.peers[0]][0]["tokens"]
    summary, losses = speed_summary(runs, tokens, "tokens"), losses_summary(runs, "trainer, best")
    for peer in summary:
        summary[peer] |= losses[peer]
        shares = [run["masking_share"] for run in runs[peer] if "masking_share" in run]
        if shares:
            summary[peer]["masking_share_median"] = round(statistics.median(shares), 4)
        print(f"{peer:>24}: {summary[peer]}")
    if options.out:
        record = {
            "what": "pre-training throughput in real tokens, one pass, each run a process of its own, interleaved",
            "data": "the synthetic world",
            **settings,
            "tokens": tokens,
            "repeats": options.repeats,
            "seeds": list(range(options.repeats)),
            "summary": summary,
            "runs": runs,
        }
        write_record(options.out, record)


if __name__ == "__main__":
    main()
