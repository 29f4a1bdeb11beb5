"""Figures of lab 12: each says the finding in its data, is small, and a slider redraws fast."""

import json
import time

import numpy as np
from test_paper import full

from pangu_lab.landscape import Point, recorded_points, run_points
from pangu_lab.paper import published_overlaps, table_1, wrong_overlap
from pangu_lab.tasks.metrics import Metric, wilson_interval
from pangu_lab.viz import png
from pangu_lab.viz.results import (
    claims_figure,
    difference_figure,
    landscape_figure,
    overlap_figure,
    rows_needed,
    taxonomy_figure,
    width_figure,
)


def told(drawn):
    assert len(png(drawn)) < 60_000
    return " ".join(drawn.get_suptitle().split())


def test_the_claims_figure_counts_what_was_tested_in_full():
    assert "1 of 10 claims lies above every published figure; no run in full" in told(claims_figure(table_1([])))
    both = table_1([full(center=0.945), full("tweets", 0.7)])
    assert "of 8 tested in full, 4 lie within our interval" in told(claims_figure(both))


def test_the_width_is_that_of_wilsons_interval_and_a_slider_redraws_quickly():
    low, high = wilson_interval(189, 200)
    assert f"200 rows: {100 * low:.1f} to {100 * high:.1f} %" in told(width_figure(200))
    needed = rows_needed(0.945, 0.0015)
    ends = wilson_interval(round(0.945 * needed), needed)
    assert 80_000 < needed < 100_000 and abs((ends[1] - ends[0]) / 2 - 0.0015) < 1e-5
    began = time.process_time()
    png(width_figure(500))
    assert time.process_time() - began < 0.5  # processor time: a busy machine does not count


def test_a_difference_says_whether_zero_lies_inside():
    means = np.random.default_rng(0).normal(0.02, 0.005, 500)
    assert "0 lies outside: a is ahead by 2.0 points" in told(difference_figure(means, 0.02, 0.01, 0.03, ("a", "b")))
    assert "0 lies outside: b is ahead" in told(difference_figure(-means, -0.02, -0.03, -0.01, ("a", "b")))
    assert "0 lies inside" in told(difference_figure(means, 0.02, -0.01, 0.03, ("a", "b")))


def test_the_overlap_figure_compares_with_the_lowest_published():
    assert "at least 10 times" in told(overlap_figure(published_overlaps(), wrong_overlap(87.2, 87.7)))


def test_unread_errors_are_told_and_read_ones_counted():
    assert "2 of 3 errors are not read yet" in told(taxonomy_figure(["?", "irony", "?"], 3))
    assert "Most frequent: irony, 2 of 3" in told(taxonomy_figure(["irony", "plot", "irony"], 3))


def point(name, accuracy, milliseconds, tested="rows", megabytes=50.0):
    return Point(name, tested, Metric(accuracy, accuracy - 0.02, accuracy + 0.02, ""), milliseconds, megabytes, "here")


def test_models_are_ranked_on_the_same_rows_only():
    points = [point("slow", 0.9, 40), point("fast", 0.85, 4), point("elsewhere", 0.99, 1, "other rows")]
    assert "On rows: slow is most accurate; fast is 10 times faster and 5.0 points behind" in told(
        landscape_figure(points)
    )
    assert "x is 20 times slower and 10.0 points" in told(
        landscape_figure([point("best", 0.9, 1), point("x", 0.8, 20)])
    )
    assert "only best so far" in told(landscape_figure([point("best", 0.9, 1)]))


def test_points_come_from_recorded_comparisons(tmp_path):
    model = {"name": "m", "bytes": 2_000_000, "accuracy": vars(Metric(0.8, 0.7, 0.9, "Wilson"))}
    timed = {"1x128": {"p50_ms": 3.5}}
    models = [model | {"latency": timed}, model | {"latency": {"8x128": {"p50_ms": 9}}}]
    (tmp_path / "a.json").write_text(json.dumps({"data": "d", "test_rows": 10, "models": models}))
    (tmp_path / "b.json").write_text("[]")
    (found,) = recorded_points(tmp_path)
    assert (found.milliseconds, found.megabytes, found.tested) == (3.5, 2.0, "d, 10 rows")


def test_a_run_is_timed_and_a_damaged_one_left_out(tmp_path, tiny_encoder):
    from pangu_lab import hub
    from pangu_lab.data.text_tasks import TASKS
    from pangu_lab.results import save_record
    from pangu_lab.tasks.classification import new_classifier, save_classifier

    classifier = new_classifier(hub.Source("tiny", "cache", tiny_encoder, ""), TASKS["imdb"], 16, 0)
    for name in ("good", "damaged"):
        (tmp_path / name).mkdir()
        save_record(full(), tmp_path / name / "record.json")
    save_classifier(classifier, tmp_path / "good" / "model")
    (tmp_path / "damaged" / "model").mkdir()
    (found,) = run_points(tmp_path, repeats=2)
    assert found.name == "good" and found.milliseconds > 0 and found.accuracy.value == 0.945
    assert found.tested == "stanfordnlp/imdb (mirror), 25,000 rows"
