"""Figures of lab 05: the words they show are the draws', the titles say what the numbers say."""

import numpy as np

from pangu_lab.viz.pretraining import (
    explore_masking,
    guesses_figure,
    loss_figure,
    masked_sentence,
    masking_figure,
    payoff_figure,
    shortcut_figure,
)

WORDS = [f"word{i}" for i in range(40)]
OTHERS = [f"other{i}" for i in range(9)]


def title(drawn):
    return " ".join(drawn.get_suptitle().split())


def test_a_sentence_shows_what_became_of_each_word():
    shown = masked_sentence(WORDS, OTHERS, 0.5, epoch=0)
    assert sum(kind != "left alone" for _, kind in shown) == 20
    for word, (seen, kind) in zip(WORDS, shown, strict=True):
        right = {"left alone": [word], "kept": [word], "[MASK]": ["[MASK]"], "replaced": OTHERS}[kind]
        assert seen in right
    assert masked_sentence(WORDS, OTHERS, 0.5, epoch=1) != shown


def test_masking_figure_counts_and_the_slider_redraws():
    assert "asked about 6 of 40" in title(masking_figure(WORDS, OTHERS, 0.15))
    box = explore_masking(WORDS, OTHERS)
    rate, _, image = box.children
    before = image.value
    rate.value = 0.6
    assert image.value != before


def test_titles_say_the_numbers():
    drawn = shortcut_figure({"nsp": (95, 100), "sop": (51, 100)}, {"nsp": (0.9, 0.98), "sop": (0.41, 0.6)})
    assert title(drawn) == "A bag of words gets 95% of NSP, 51% of SOP"
    evaluations = [{"step": s, "mlm_loss": 4 / s, "floor": 0.5} for s in (1, 2, 4)]
    assert "from 6.0 to 1.00; that is 2.00 times the floor of 0.50" in title(loss_figure(evaluations, 0.4, 0.6, 6.0))
    assert title(guesses_figure([1, 2], [{"a": 0.1}, {"a": 0.9}], {"a": 0.8, "b": 0.2}, "told")) == "told"
    runs = [{"random": 0.5, "pretrained": 0.75 + x} for x in (-0.05, 0.05)]
    drawn = payoff_figure({"opinion": {16: runs, 64: runs}})
    assert title(drawn) == "At 64 examples, pre-trained weights are worth +25 points on opinions"
    lines = [line.get_ydata() for line in drawn.axes[0].lines if line.get_label() == "pretrained"]
    assert np.allclose(lines[0], 0.75)
