"""Objectives: proportions, whole words, pairs, spans and correction are what their papers say."""

import numpy as np
import pytest
import torch

from pangu_lab import objectives
from pangu_lab.objectives import (
    IGNORED,
    Draws,
    ObjectiveError,
    bert_masks,
    hard_correction,
    noise_spans,
    nsp_pair,
    pair_input,
    select,
    select_words,
    soft_correction,
    sop_pair,
    span_corruption,
    synonym_table,
)

MASK, PAD, FIRST, SIZE = 4, 0, 10, 400


def texts(rows=300, length=40, seed=0):
    """Random texts in [CLS] and [SEP], padded, and which tokens may be masked."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(FIRST, SIZE, (rows, length))
    ends = rng.integers(6, length, rows)
    ids[:, 0] = 2
    ids[np.arange(rows), ends] = 3
    ids[np.arange(length) > ends[:, None]] = PAD
    return ids, ids >= FIRST


def masked(ids, maskable, seed=0, epoch=0, rows=None):
    draws = Draws(seed, epoch, np.arange(len(ids)) if rows is None else rows)
    selected = select(draws.uniform(objectives.SELECT, ids.shape[1]), maskable)
    return selected, bert_masks(ids, selected, draws, MASK, np.arange(FIRST, SIZE))


# --- random numbers -----------------------------------------------------------------------------------------


def test_draws_are_uniform_and_independent_of_company():
    whole = Draws(3, 1, np.arange(2000)).uniform(0, 50)
    assert whole.min() >= 0 and whole.max() < 1
    counts = np.bincount((whole * 10).astype(int).ravel(), minlength=10)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 27.9  # chi-squared with 9 degrees of freedom, 0.1 %
    assert abs(np.corrcoef(whole[:, 0], whole[:, 1])[0, 1]) < 0.08
    part = Draws(3, 1, np.array([7, 1999])).uniform(0, 30)
    assert (part == whole[[7, 1999], :30]).all()
    for other in (Draws(4, 1, np.arange(9)), Draws(3, 2, np.arange(9)), Draws(3, 1, np.arange(9, 18))):
        assert not np.isclose(other.uniform(0, 50), whole[:9]).any()
    assert not np.isclose(Draws(3, 1, np.arange(9)).uniform(1, 50), whole[:9]).any()


# --- masked words -------------------------------------------------------------------------------------------


def test_fifteen_of_a_hundred_tokens_are_selected_in_each_row():
    ids, maskable = texts()
    selected, _ = masked(ids, maskable)
    count = maskable.sum(axis=1)
    assert (selected.sum(axis=1) == np.maximum(1, np.rint(0.15 * count))).all()
    assert not (selected & ~maskable).any()
    nothing = select(np.zeros((2, 5)), np.zeros((2, 5), dtype=bool))
    assert not nothing.any()


def test_mlm_masks_eighty_ten_ten():
    ids, maskable = texts(6000)
    selected, (inputs, labels) = masked(ids, maskable)
    n = selected.sum()
    is_mask, kept = (inputs == MASK) & selected, (inputs == ids) & selected
    for share, wanted in ((is_mask.sum() / n, 0.8), (kept.sum() / n, 0.1 + 0.1 / (SIZE - FIRST))):
        assert abs(share - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / n)
    assert (inputs[~selected] == ids[~selected]).all() and (inputs[maskable] >= MASK).all()
    assert (labels[selected] == ids[selected]).all() and (labels[~selected] == IGNORED).all()
    assert not np.isin(inputs, (1, 5, 6, 7, 8, 9)).any()  # special tokens never replace a word


def test_each_epoch_masks_anew_and_a_row_is_masked_alike_in_any_batch():
    ids, maskable = texts(40)
    before = ids.copy()
    first, second = masked(ids, maskable, epoch=0)[1], masked(ids, maskable, epoch=1)[1]
    assert (ids == before).all() and (first.inputs != second.inputs).any()
    rows = np.array([31, 2, 17])
    again = masked(ids[rows], maskable[rows], rows=rows)[1]
    assert (again.inputs == first.inputs[rows]).all() and (again.labels == first.labels[rows]).all()


def test_whole_words_are_masked_whole():
    rng = np.random.default_rng(0)
    rows, length = 200, 40
    words = np.cumsum(rng.random((rows, length)) < 0.6, axis=1)
    words[:, 0] = words[:, -1] = -1
    words[:50, 30:] = -1
    scores = Draws(0, 0, np.arange(rows)).uniform(objectives.SELECT, length)
    chosen = select_words(scores, words)
    assert not chosen[words < 0].any()
    for row in range(rows):
        for word in set(words[row].tolist()) - {-1}:
            assert len(set(chosen[row, words[row] == word].tolist())) == 1, "a word is masked in part"
    count, budget = chosen.sum(axis=1), np.maximum(1, np.rint(0.15 * (words >= 0).sum(axis=1)))
    assert (count >= 1).all() and (count <= np.maximum(budget, 8)).all()
    assert 0.10 < chosen.sum() / (words >= 0).sum() < 0.15
    # Words of one token each are masked as tokens are.
    single = np.broadcast_to(np.arange(length), (rows, length))
    assert (select_words(scores, single) == select(scores, np.ones((rows, length), dtype=bool))).all()


# --- pairs --------------------------------------------------------------------------------------------------

DOCUMENTS = [[[100 * d + 10 * s, 100 * d + 10 * s + 1] for s in range(4)] for d in range(1, 6)]


def test_nsp_negatives_come_from_another_document_and_are_half():
    rng = np.random.default_rng(0)
    pairs = [nsp_pair(DOCUMENTS, i % 5, rng) for i in range(2000)]
    for pair in pairs:
        ours = {i // 100 for i in pair.first}
        assert ({i // 100 for i in pair.second} == ours) == (pair.label == 0)
        if pair.label == 0:
            assert pair.first + pair.second == [i for s in DOCUMENTS[min(ours) - 1] for i in s]
    assert abs(np.mean([pair.label for pair in pairs]) - 0.5) < 0.045
    assert {pair.second[0] // 100 for pair in pairs if pair.label} == {1, 2, 3, 4, 5}
    with pytest.raises(ObjectiveError, match="only one"):
        [nsp_pair(DOCUMENTS[:1], 0, rng) for _ in range(20)]


def test_sop_swaps_two_neighboring_segments_of_one_document():
    rng = np.random.default_rng(0)
    pairs = [sop_pair(DOCUMENTS[0], rng) for _ in range(500)]
    whole = [i for s in DOCUMENTS[0] for i in s]
    assert all((p.second + p.first if p.label else p.first + p.second) == whole for p in pairs)
    assert abs(np.mean([p.label for p in pairs]) - 0.5) < 0.09
    with pytest.raises(ObjectiveError, match="one sentence"):
        sop_pair([[1, 2, 3]], rng)


def test_segment_ids_change_after_the_first_separator():
    assert pair_input([7, 8], [9], 2, 3) == ([2, 7, 8, 3, 9, 3], [0, 0, 0, 0, 1, 1])


# --- spans --------------------------------------------------------------------------------------------------


def test_noise_has_the_density_and_the_span_length_of_the_paper():
    lengths = np.random.default_rng(0).integers(2, 120, 3000)
    noise = noise_spans(lengths, Draws(0, 0, np.arange(3000)))
    count = noise.sum(axis=1)
    assert (count == np.clip(np.rint(0.15 * lengths), 1, lengths - 1)).all()
    assert not noise[np.arange(noise.shape[1]) >= lengths[:, None]].any() and not noise[:, 0].any()
    starts = noise & ~np.pad(noise, ((0, 0), (1, 0)))[:, :-1]
    assert (starts.sum(axis=1) == np.clip(np.rint(count / 3), 1, np.minimum(count, lengths - count))).all()
    assert noise[np.arange(3000), lengths - 1].all()
    with pytest.raises(ObjectiveError, match="at least 2"):
        noise_spans(np.array([1, 5]), Draws(0, 0, np.arange(2)))


def test_spans_are_cut_evenly():
    """Of 4 noise tokens in 2 spans the first span has 1, 2 or 3 tokens, each as often."""
    noise = noise_spans(np.full(9000, 27), Draws(1, 0, np.arange(9000)), mean_span=2.0)
    assert (noise.sum(axis=1) == 4).all()
    first = [len(next(run for run in "".join("x" if n else " " for n in row).split())) for row in noise]
    assert all(abs(first.count(size) - 3000) < 200 for size in (1, 2, 3))


def test_input_and_target_together_are_the_text():
    ids, _ = texts(100)
    lengths = (ids != PAD).sum(axis=1)
    sentinels = np.arange(1000, 1020)
    noise = noise_spans(lengths, Draws(0, 0, np.arange(100)))
    inputs, target = span_corruption(ids, noise, sentinels, PAD)
    for row in range(100):
        spans, current = {}, None
        for token in target[row][target[row] != IGNORED].tolist():
            if token >= 1000:
                current = token
                spans[current] = []
            else:
                spans[current].append(token)
        assert list(spans) == list(range(1000, 1000 + len(spans))) and spans.pop(current) == [], "sentinels in order"
        text = [t for token in inputs[row][inputs[row] != PAD].tolist() for t in spans.pop(token, [token])]
        assert text == ids[row, : lengths[row]].tolist() and not spans
    with pytest.raises(ObjectiveError, match="shorten the texts"):
        span_corruption(ids, noise, sentinels[:1], PAD)


# --- correction ---------------------------------------------------------------------------------------------


def test_hard_correction_shields_synonyms_only():
    table = synonym_table([(1, 2), (2, 5)], size=6)
    logits = torch.full((5, 6), 0.0)
    for row, guess in enumerate((2, 1, 3, 5, 2)):
        logits[row, guess] = 2.0
    logits.requires_grad_()
    labels = torch.tensor([1, 1, 1, 2, IGNORED])
    loss = hard_correction(logits, labels, table)
    loss.backward()
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert loss.item() == pytest.approx(float((plain[1] + plain[2]).detach() / 4))
    assert [bool(row.any()) for row in logits.grad] == [False, True, True, False, False]


def test_soft_correction_is_zero_for_the_right_word_and_pulls_towards_it():
    embeddings = torch.eye(4)
    sure = torch.full((1, 4), -30.0)
    sure[0, 2] = 30.0
    assert soft_correction(sure, torch.tensor([2]), embeddings).item() == pytest.approx(0.0, abs=1e-6)
    assert soft_correction(sure, torch.tensor([1]), embeddings).item() == pytest.approx(1.0, abs=1e-6)
    logits = torch.zeros(2, 4, requires_grad=True)
    soft_correction(logits, torch.tensor([2, IGNORED]), embeddings).backward()
    assert logits.grad[0].argmin() == 2 and not logits.grad[1].any()
