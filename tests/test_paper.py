"""The paper's claims beside records: parts and samples stay out of the real rows, verdicts follow from intervals."""

import itertools
import json

import pytest
from test_results import record

from pangu_lab.errors import PanguLabError
from pangu_lab.paper import (
    CLAIMS,
    FORMATS,
    WHOLE_TEST,
    claimed,
    compare,
    consistent,
    published_overlaps,
    records_of_runs,
    remarks,
    render,
    standing,
    table_1,
    wrong_overlap,
)
from pangu_lab.results import Value, save_record

NAMES = {
    "imdb": ("accuracy", "precision", "recall", "f1"),
    "tweets": ("accuracy", "macro_precision", "macro_recall", "macro_f1"),
    "squad": ("exact_match", "f1"),
}


def value(center, half=0.003):
    return Value(value=center, low=center - half, high=center + half, method="made up")


def full(task="imdb", center=0.945, kind="mirror", seed=0, **changes):
    rows = {"train": 100, "validation": 10, "test": WHOLE_TEST[task]}
    return record(
        kind, task=task, rows=rows, seeds=(seed,), metrics=dict.fromkeys(NAMES[task], value(center)), **changes
    )


def rows_of(records, task="imdb", metric="accuracy", split="test"):
    return [r for r in table_1(records) if (r.claim.task, r.claim.metric, r.claim.split) == (task, metric, split)]


def test_the_claims_are_the_papers_thirty_figures():
    assert len(CLAIMS) == 30
    assert [claimed("tweets", split, "recall") for split in ("train", "validation", "test")] == [94.2, 93.7, 93.5]


@pytest.mark.parametrize(
    "center, told", [(0.945, "within our"), (0.90, "4.2 points above our"), (0.96, "1.2 points below our")]
)
def test_a_verdict_follows_from_the_interval(center, told):
    (row,) = rows_of([full(center=center)])
    assert row.standing == "real" and row.verdict.startswith(told)


def test_a_claim_is_taken_with_its_rounding():
    assert compare(94.5, Value(value=0.93, low=0.92, high=0.9446, method="")) == "within our interval"
    assert "above" in compare(94.5, Value(value=0.93, low=0.92, high=0.9444, method=""))


def test_a_bundled_number_never_stands_in_the_real_row():
    bundled = full(kind="bundled")
    real, labelled = rows_of([bundled])
    assert real.standing == "none" and real.ours is None and not real.records
    assert labelled.standing == "bundled" and "judges nothing" in labelled.verdict
    assert [row.standing for row in rows_of([bundled, full(center=0.9)])] == ["real", "bundled"]


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"rows": {"train": 100, "validation": 10, "test": 1000}}, "1,000 of 25,000 test rows"),
        ({"notes": ("train: 768 of 22,390 rows, stratified, seed 0",)}, "trained on 768 of 22,390 rows"),
        ({"notes": ("trained on the bundled sample", "train: 5 of 9 rows")}, "100 rows of the bundled sample"),
        ({"notes": ("trained on a part of the development set, as this",)}, "trained on a part of the development set"),
    ],
)
def test_a_part_of_the_data_is_named_and_stays_out_of_the_real_row(changes, told):
    part = full().model_copy(update=changes)
    kind, label = standing(part)
    assert kind == "part" and told in label
    assert [row.standing for row in rows_of([part])] == ["none", "part"]
    assert any(
        f"PART of stanfordnlp/imdb (mirror): {label}" in line
        for line in render(table_1([part]), "markdown").splitlines()
    )


def test_seeds_are_pooled_and_the_newest_of_a_seed_counts():
    runs = [full(center=0.90, seed=0, created="2026-01-01"), full(center=0.94, seed=0, created="2026-01-02")]
    (row,) = rows_of([*reversed(runs), full(center=0.95, seed=1), full(center=0.96, seed=2)])
    assert row.seeds == (0, 1, 2) and row.ours.value == pytest.approx(0.95)
    assert (row.ours.low, row.ours.high) == pytest.approx((0.937, 0.963))
    assert "mean of 3 seeds" in row.ours.method


def test_macro_figures_and_exact_match_stand_beside_the_claims():
    (recall,) = rows_of([full("tweets", 0.70)], "tweets", "recall")
    assert "above anything published for three classes (macro recall 73.7" in recall.verdict
    (accuracy,) = rows_of([full("squad", 0.80)], "squad", "accuracy")
    assert (
        accuracy.verdict.startswith("undefined for span extraction") and "6.8 points above our" not in accuracy.verdict
    )
    assert "6.9 points above our interval" in rows_of([full("squad", 0.80)], "squad", "accuracy")[0].verdict


def test_the_overlap_of_wrong_answers():
    assert wrong_overlap(50, 75) == 0.5 and wrong_overlap(0, 40) == 0.4
    assert wrong_overlap(87.2, 87.7) == pytest.approx(0.5 / 12.8)
    assert all(share > 8 * wrong_overlap(87.2, 87.7) for share in published_overlaps().values())
    for em, f1 in ((80, 70), (100, 100), (-1, 5)):
        with pytest.raises(PanguLabError, match="cannot be"):
            wrong_overlap(em, f1)


def test_consistent_equals_trying_every_table():
    positives, negatives = 11, 14
    printed = set()
    for hits, false in itertools.product(range(1, positives + 1), range(negatives + 1)):
        p, r, f1 = hits / (hits + false), hits / positives, 2 * hits / (hits + false + positives)
        accuracy = (hits + negatives - false) / (positives + negatives)
        printed.add(tuple(round(100 * x, 1) for x in (accuracy, p, r, f1)))
    assert all(consistent(*row, positives, negatives) for row in printed)
    for accuracy, p, r, f1 in printed:
        assert not consistent(accuracy + 1, p, r, f1, positives, negatives)
        assert not consistent(accuracy, p, r, f1 - 0.3, positives, negatives)
        assert p == r or not consistent(accuracy, r, p, f1, positives, negatives)


def test_remarks_are_computed_from_the_claims():
    text = " ".join(remarks())
    for told in ("can all be true at once", "19.8 points above", "3.9 %", "DeBERTa-base has the same"):
        assert told in text
    assert "All 10 figures fall by 0.4 to 0.5 points" in text and "0.2 to 0.3" in text


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_holds_every_row_with_rows_source_seeds_and_interval(form):
    rows = table_1([full(center=0.9, seed=3), full("tweets", 0.7, kind="bundled")])
    text = render(rows, form)
    if form == "json":
        read = json.loads(text)["rows"]
        assert len(read) == len(rows) and read[[r["standing"] for r in read].index("real")]["ours"]["high"] == 0.903
        return
    for told in ("90.0 [89.7, 90.3]", "25,000 rows", "(mirror)", "BUNDLED SAMPLE", "not measured in full"):
        assert told in text, told
    assert text.count("94.5") == 4
    if form == "latex":
        table = text[: text.index(r"\end{longtable}")].splitlines()[3:]
        assert all(line.replace(r"\&", "").count("&") in (0, 8) for line in table) and "37 to 47 \\%" in text


def test_html_is_escaped_and_another_format_is_refused():
    assert "<b>" not in render(table_1([full(model="<b>x")]), "html") and "&lt;b&gt;x" in render(
        table_1([full(model="<b>x")]), "html"
    )
    with pytest.raises(PanguLabError, match="--format is 'pdf'; it must be one of markdown"):
        render([], "pdf")


def test_files_of_ones_own_are_no_row_of_the_papers_table():
    assert [row.standing for row in rows_of([full(kind="file")])] == ["none"]
    assert [row.standing for row in rows_of([full(split="validation")], split="validation")] == ["real"]


def test_records_of_runs_leaves_out_what_cannot_be_read(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    save_record(full(), tmp_path / "a" / "record.json")
    (tmp_path / "b" / "record.json").write_text("{}")
    assert records_of_runs(tmp_path) == [full(created=records_of_runs(tmp_path)[0].created)]
