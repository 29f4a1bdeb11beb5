"""Batches with little padding: rows of like length go together, within a budget of tokens.

A batch costs its longest row times its number of rows. ``plan_batches`` is a pure function of the
lengths, the seed and the epoch, so that a run that was killed finds the same batches again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

# Rows are sorted only within a pool of so many batches, so that batches still differ from epoch to epoch.
POOL_BATCHES = 64


def plan_batches(
    lengths: Sequence[int], batch_size: int, batch_tokens: int | None, seed: int, epoch: int
) -> list[list[int]]:
    """Row numbers of each batch of one epoch: every row once, like lengths together, batches in random order.

    Parameters
    ----------
    lengths
        Tokens of each row.
    batch_size, batch_tokens
        At most so many rows, and at most so many tokens with padding (a single longer row stands alone).
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    pool = POOL_BATCHES * batch_size
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        rows = sorted((int(row) for row in order[start : start + pool]), key=lambda row: lengths[row])
        batches += _cut(rows, lengths, batch_size, batch_tokens)
    return [batches[i] for i in generator.permutation(len(batches))]


def sorted_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Batches for evaluation: sorted by length, the longest first, so that memory runs out at once if at all."""
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches = _cut(rows[::-1], lengths, batch_size=max(1, len(rows)), batch_tokens=batch_tokens)
    return batches[::-1]


def _cut(rows: list[int], lengths: Sequence[int], batch_size: int, batch_tokens: int | None) -> list[list[int]]:
    """Cut rows, sorted by ascending length, into batches within both limits."""
    batches: list[list[int]] = [[]]
    for row in rows:
        longest = lengths[row]  # ascending, so the newest is the longest
        too_many = len(batches[-1]) == batch_size
        too_long = batch_tokens is not None and (len(batches[-1]) + 1) * longest > batch_tokens
        if batches[-1] and (too_many or too_long):
            batches.append([])
        batches[-1].append(row)
    return [batch for batch in batches if batch]


PADDING = {"labels": -100, "attention_mask": 0, "token_type_ids": 0}


def collate(rows: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Stack rows of plain lists and numbers into tensors, lists padded on the right to the longest.

    Lists become ``(batch, length)``, numbers ``(batch,)``. Labels are padded with -100, which no loss counts.
    """
    batch = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        if isinstance(values[0], int | float):
            batch[key] = torch.tensor(values)
            continue
        longest = max(map(len, values))
        pad = PADDING.get(key, pad_token_id)
        stacked = np.full((len(rows), longest), pad, dtype=np.int64)
        for i, value in enumerate(values):
            stacked[i, : len(value)] = value
        batch[key] = torch.from_numpy(stacked)
    return batch
