"""The sentiment task: weighted loss, passes over a small sample, domains; and the figures of lab 07."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from pangu_lab.config import Size
from pangu_lab.data.domains import DOMAINS, load_domain, without_neutral
from pangu_lab.data.text_tasks import TASKS, DataError, Rows, load_splits
from pangu_lab.tasks.calibration import with_temperature
from pangu_lab.tasks.classification import ClassificationError, balanced_weights, fine_tune
from pangu_lab.tasks.metrics import Metric, wilson_interval
from pangu_lab.tasks.published import TWEETS_MACRO_RECALL, TWEETS_TEST_ROWS
from pangu_lab.training import cross_entropy_loss
from pangu_lab.viz import png
from pangu_lab.viz.sentiment import (
    averages_figure,
    claim_figure,
    domains_figure,
    flips_figure,
    labels_figure,
    reliability_figure,
    resamples_figure,
    temperature_explorer,
    temperature_figure,
)

TESTED = "100 test tweets, bundled sample"


def metric(right, total=100):
    return Metric(right / total, *wilson_interval(right, total), "Wilson")


def title(drawn):
    assert len(png(drawn)) < 60_000
    return drawn.get_suptitle().replace("\n", " ")


def test_the_weighted_loss_is_torchs_weighted_mean():
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 3), torch.tensor([0, 1, 1, 2, 1, 1, 0, 1, -100])
    weights = [2.0, 0.5, 3.0]
    loss, items = cross_entropy_loss(lambda **_: SimpleNamespace(logits=logits), {"labels": labels}, weights)
    expected = torch.nn.functional.cross_entropy(logits, labels, torch.tensor(weights))
    assert float(loss / items) == pytest.approx(float(expected), rel=1e-6)
    plain, count = cross_entropy_loss(lambda **_: SimpleNamespace(logits=logits), {"labels": labels})
    assert int(count) == 8
    assert float(plain / count) == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-6)


def test_balanced_weights_are_scikit_learns():
    labels = [0] * 5 + [1] * 40 + [2] * 15
    assert balanced_weights(labels, 3) == pytest.approx(
        compute_class_weight("balanced", classes=np.arange(3), y=labels).tolist()
    )
    assert balanced_weights([0, 2, 2], 3) == pytest.approx([1.0, 0.0, 0.5])


def test_weights_change_the_run_and_stand_in_its_record(config, tiny_encoder):
    splits = load_splits(TASKS["tweets"], config, "smoke")
    options = {"splits": splits, "model_id": str(tiny_encoder), "quiet": True}
    plain = fine_tune("tweets", config, run="plain", **options)
    weighted = fine_tune("tweets", config, run="weighted", class_weights=[5.0, 0.1, 0.1], **options)
    assert weighted.record.settings["class_weights"] == [5.0, 0.1, 0.1]
    assert weighted.probabilities[:, 0].mean() > plain.probabilities[:, 0].mean()
    with pytest.raises(ClassificationError, match="2 class weights for 3 labels"):
        fine_tune("tweets", config, run="wrong", class_weights=[1.0, 1.0], **options)


def test_a_small_sample_takes_more_passes():
    size = Size(train_rows=3000, validation_rows=500, test_rows=None, max_length=96, epochs=2, least_steps=75)
    assert size.passes(462, 32) == 5 and size.passes(3000, 32) == 2
    assert size.model_copy(update={"least_steps": None}).passes(462, 32) == 2


def test_domains_are_binary_and_say_where_they_come_from(config):
    for name in DOMAINS:
        domain = load_domain(name, config, train_rows=30, test_rows=20)
        assert len(domain.splits.train) == 30 and len(domain.splits.test) == 20
        assert set(domain.splits.train.labels) == {0, 1} and domain.where == "bundled sample"
        assert not set(domain.splits.train.texts) & set(domain.splits.test.texts)
    with pytest.raises(DataError, match="'letters' is not a domain"):
        load_domain("letters", config)
    assert without_neutral(Rows(("a", "b", "c"), (0, 1, 2))) == Rows(("a", "c"), (0, 1))


def overconfident(rows=120, seed=0):
    """Probabilities three times as sharp as they should be, and labels."""
    rng = np.random.default_rng(seed)
    honest = rng.dirichlet(np.ones(3), rows)
    labels = (honest.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    return with_temperature(honest, 1 / 3), labels.tolist()


def test_reliability_and_temperature_say_what_they_mend():
    sharp, labels = overconfident()
    told = title(reliability_figure({"before": sharp, "after": with_temperature(sharp, 3)}, labels, TESTED))
    right = float((sharp.argmax(axis=1) == labels).mean())
    assert f"{sharp.max(axis=1).mean():.0%} sure on average and {right:.0%} right" in told
    told = title(temperature_figure(sharp, labels, *overconfident(seed=1), 3.0))
    assert told.startswith("T = 3.00") and "on validation" in told


def test_the_slider_redraws_quickly():
    explorer = temperature_explorer(*overconfident(), *overconfident(seed=1))
    slider, image = explorer.children
    before, began = image.value, time.process_time()
    slider.value = 2
    assert image.value != before and time.process_time() - began < 1


def test_the_other_figures_name_the_extremes():
    scores = {"a": {"accuracy": 0.7, "macro recall": 0.5}, "b": {"accuracy": 0.6, "macro recall": 0.6}}
    assert "a, whose accuracy is 20 points more" in title(averages_figure(scores, TESTED))
    drawn = resamples_figure(np.linspace(0.4, 0.6, 200), (0.405, 0.595), 0.5, TESTED)
    assert "Macro recall 0.500" in title(drawn) and "19 points apart" in title(drawn)
    curves = {"encoder": {50: metric(50), 400: metric(80)}, "SVM": {50: metric(40), 400: metric(60)}}
    assert "With 50 labels: encoder 0.50, SVM 0.40; with 400: encoder 0.80" in title(labels_figure(curves, 3, TESTED))
    flips = {"deletion": {"marked": metric(30), "rest": metric(10)}, "swap": {"marked": metric(6), "rest": metric(2)}}
    assert "deletion changes the model's mind most, 20%" in title(flips_figure(flips, TESTED))
    table = {(a, b): metric(90 if a == b else 60) for a in DOMAINS for b in DOMAINS}
    assert "SVM: 0.90 at home, 0.60 abroad" in title(domains_figure({"SVM": table}, DOMAINS, TESTED))
    drawn = claim_figure(TWEETS_MACRO_RECALL, 0.938, TWEETS_TEST_ROWS, {"yours": metric(60)}, TESTED)
    assert "20 points above the best result listed" in title(drawn) and "within 15 points" in title(drawn)
