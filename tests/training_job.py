"""A small job that tests run in processes of their own: `python training_job.py FOLDER KILL_AT_STEP`.

The process kills itself as `kill -9` would, in the middle of the given step (-1: never). It prints the
hash of the final weights.
"""

import hashlib
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from pangu_lab.config import Train
from pangu_lab.data.batches import collate
from pangu_lab.training import Job, cross_entropy_loss, train


def make_model(seed=0):
    torch.manual_seed(seed)
    shape = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=2
    )
    return BertForSequenceClassification(shape)


def make_rows(count=67):
    """Texts of 4 to 23 tokens whose label says whether token 7 is among them."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number in range(count):
        length = 4 + number % 20
        ids = torch.randint(8, 100, (length,), generator=generator).tolist()
        if number % 2:
            ids[number % length] = 7
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": number % 2})
    return rows


def make_job(**settings):
    defaults = dict(learning_rate=1e-3, batch_size=8, dropout=0.1, precision="fp32", checkpoint_seconds=0.0)
    epochs = settings.pop("epochs", 3)
    return Job(
        rows=make_rows(),
        collate=partial(collate, pad_token_id=0),
        loss=settings.pop("loss", cross_entropy_loss),
        epochs=epochs,
        settings=Train(**(defaults | settings)),
        name="test",
    )


def weights_hash(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def main():
    folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
    settings = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    calls = 0

    def loss(model, batch):
        nonlocal calls
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return cross_entropy_loss(model, batch)

    model = make_model()
    train(model, make_job(loss=loss, **settings), folder, quiet=True, tensorboard=False)
    if int(os.environ.get("RANK", 0)) == 0:
        print(weights_hash(model), flush=True)


if __name__ == "__main__":
    main()
