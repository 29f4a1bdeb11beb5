"""One question, three kinds of text: positive or negative, of reviews, tweets and product reviews.

For measuring how a model trained on one kind does on the others. Neutral texts are left out, as movie
reviews have none.
"""

import json
from dataclasses import dataclass, replace

from pangu_lab import hub
from pangu_lab.config import Config
from pangu_lab.data.text_tasks import TASKS, DataError, Rows, Splits, TextTask, checked_rows, load_splits, stratified

DOMAINS = ("reviews", "tweets", "products")
BINARY = TASKS["imdb"]  # negative and positive: all domains are cast into these two labels
_PRODUCTS = TextTask("products", "product reviews", "products", ("negative", "neutral", "positive"), None)


@dataclass(frozen=True)
class Domain:
    """A kind of text with its binary rows; ``where`` says where they came from."""

    name: str
    splits: Splits
    where: str


def without_neutral(rows: Rows) -> Rows:
    """Three labels to two: neutral rows go, and positive is 1."""
    kept = rows.take([i for i, label in enumerate(rows.labels) if label != 1])
    return Rows(kept.texts, tuple(label // 2 for label in kept.labels))


def load_domain(
    name: str, config: Config, seed: int = 0, train_rows: int | None = None, test_rows: int | None = None
) -> Domain:
    """Binary train, validation and test rows of a domain, at most so many, stratified.

    Products exist as a bundled sample only; the others come from where their tasks' rows come from.
    """
    if name == "products":
        parts = [
            checked_rows(texts, labels, _PRODUCTS, f"bundled products, {split}")
            for split, texts, labels in map(_bundled_products, ("train", "validation", "test"))
        ]
        source = hub.Source("products", "bundled", hub.BUNDLED_DATA / "products", "")
        train, validation, test = map(without_neutral, parts)
        splits = Splits(BINARY, train, validation, test, source, ())
    elif name in DOMAINS:
        splits = load_splits(TASKS["imdb" if name == "reviews" else "tweets"], config, "full", seed)
        if name == "tweets":
            parts = [without_neutral(part) for part in (splits.train, splits.validation, splits.test)]
            splits = replace(splits, task=BINARY, train=parts[0], validation=parts[1], test=parts[2])
    else:
        raise DataError(f"{name!r} is not a domain; they are {', '.join(DOMAINS)}")
    train, test = _at_most(splits.train, train_rows, seed), _at_most(splits.test, test_rows, seed)
    where = "bundled sample" if splits.source.kind == "bundled" else f"{splits.source.id} ({splits.source.kind})"
    return Domain(name, replace(splits, train=train, test=test, unlabelled=()), where)


def _at_most(rows: Rows, count: int | None, seed: int) -> Rows:
    return rows if count is None or count >= len(rows) else rows.take(stratified(rows, count, seed))


def _bundled_products(split: str) -> tuple[str, list[str], list[int]]:
    lines = (hub.BUNDLED_DATA / "products" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return split, [row["text"] for row in rows], [row["label"] for row in rows]
