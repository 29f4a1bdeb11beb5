"""Batches: every row once, within both limits, little padding, the same for the same seed."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pangu_lab.data.batches import collate, plan_batches, sorted_batches

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=400)


@given(LENGTHS, st.integers(1, 32), st.none() | st.integers(1, 2000), st.integers(0, 9), st.integers(0, 3))
def test_an_epoch_holds_every_row_once_within_both_limits(lengths, batch_size, batch_tokens, seed, epoch):
    batches = plan_batches(lengths, batch_size, batch_tokens, seed, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= batch_size
        padded = len(batch) * max(lengths[row] for row in batch)
        assert batch_tokens is None or padded <= batch_tokens or len(batch) == 1


@given(LENGTHS, st.integers(1, 4000))
def test_evaluation_takes_every_row_once_the_longest_first(lengths, batch_tokens):
    batches = sorted_batches(lengths, batch_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_the_plan_depends_on_seed_and_epoch_only():
    lengths = list(range(1, 200))
    assert plan_batches(lengths, 8, None, 1, 2) == plan_batches(lengths, 8, None, 1, 2)
    assert plan_batches(lengths, 8, None, 1, 2) != plan_batches(lengths, 8, None, 1, 3)
    assert plan_batches(lengths, 8, None, 1, 2) != plan_batches(lengths, 8, None, 2, 2)


def test_like_lengths_together_save_half_of_the_padding():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 128, (1000,), generator=generator).tolist()

    def padded(batches):
        return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)

    grouped = padded(plan_batches(lengths, 16, None, 0, 0))
    in_order = padded([list(range(i, min(i + 16, 1000))) for i in range(0, 1000, 16)])
    assert grouped - sum(lengths) < 0.5 * (in_order - sum(lengths))


def test_collate_pads_each_key_with_its_own_value():
    rows = [
        {"input_ids": [5, 6], "attention_mask": [1, 1], "labels": 1},
        {"input_ids": [7], "attention_mask": [1], "labels": 0},
    ]
    batch = collate(rows, pad_token_id=9)
    assert batch["input_ids"].tolist() == [[5, 6], [7, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    tokens = collate([{"labels": [1, 2]}, {"labels": [3]}], pad_token_id=0)
    assert tokens["labels"].tolist() == [[1, 2], [3, -100]]
