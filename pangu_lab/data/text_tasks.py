"""The text-classification tasks: which data set, which labels, and how its rows are split.

``load_splits`` answers with cleaned train, validation and test rows, the source they came from, and
notes that say in words what was done to them.
"""

import html
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pangu_lab import hub
from pangu_lab.config import Config, Mode, Size
from pangu_lab.errors import PanguLabError


class DataError(PanguLabError):
    """The rows cannot be used as they are."""


@dataclass(frozen=True)
class TextTask:
    """A classification task. ``labels[i]`` is the name of label ``i``; ``positive`` is set for two classes."""

    name: str
    title: str
    dataset: str
    labels: tuple[str, ...]
    positive: int | None


TASKS = {
    "imdb": TextTask("imdb", "IMDB movie reviews", "stanfordnlp/imdb", ("negative", "positive"), 1),
    "tweets": TextTask(
        "tweets", "sentiment of tweets", "cardiffnlp/tweet_eval", ("negative", "neutral", "positive"), None
    ),
}


@dataclass(frozen=True)
class Rows:
    """Texts and their labels, in one order."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> "Rows":
        return Rows(tuple(self.texts[i] for i in indices), tuple(self.labels[i] for i in indices))


@dataclass(frozen=True)
class Splits:
    """The three splits, their source, and in words what was done to make them."""

    task: TextTask
    train: Rows
    validation: Rows
    test: Rows
    source: hub.Source
    notes: tuple[str, ...]
    # Training texts beyond ``train``: what is left of the train split, without its labels.
    unlabelled: tuple[str, ...] = ()


def clean(text: str) -> str:
    """Undo what the web did to a text: entities, line-break tags, control characters, runs of spaces."""
    text = html.unescape(text)
    text = re.sub(r"<br\s*/?>", " ", text, flags=re.IGNORECASE)
    text = "".join(c if c.isprintable() or c in "\u200d\ufe0f" else " " for c in text)
    return re.sub(r"\s+", " ", text).strip()


def checked_rows(texts: Sequence[Any], labels: Sequence[Any], task: TextTask, where: str) -> Rows:
    """Clean the texts and prove the labels.

    Raises
    ------
    DataError
        A text is not a string or a label is out of range; the sentence names the row.
    """
    good = range(len(task.labels))
    kept: list[tuple[str, int]] = []
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        if not isinstance(text, str):
            raise DataError(f"{where}, row {row}: the text is {type(text).__name__}; it must be a string")
        if isinstance(label, bool) or label not in good:
            raise DataError(
                f"{where}, row {row}: the label is {label!r}; it must be a whole number from 0 to {good[-1]}"
            )
        text = clean(text)
        if text:  # a row without words teaches and tests nothing
            kept.append((text, int(label)))
    if not kept:
        raise DataError(f"{where}: has no row with a text; give a file with at least one")
    return Rows(tuple(text for text, _ in kept), tuple(label for _, label in kept))


def load_splits(
    task: TextTask,
    config: Config,
    mode: Mode | None = None,
    seed: int = 0,
    bundled: bool = False,
    train_on_bundled: bool = False,
) -> Splits:
    """Train, validation and test rows of a task in a mode's sizes.

    A train text that stands in the test split too is dropped (IMDB has 123 of them). Where the data set
    has no validation split, a tenth of train is taken for it, stratified by label, by ``seed``. Samples
    are stratified and drawn by ``seed`` too. ``train_on_bundled`` takes all of the bundled sample's train and
    validation rows, but the task's own test rows: how good the sample is.
    """
    size: Size = getattr(config, task.name).size(mode or config.mode)
    raw, source = hub.load_dataset(task.dataset, config, bundled)
    rows = {
        split: checked_rows(data["text"], data["label"], task, f"{task.dataset} ({source.kind}), {split}")
        for split, data in raw.items()
    }
    notes = []
    test = rows["test"]
    tested = set(test.texts) | set(rows["validation"].texts if "validation" in rows else ())
    train = rows["train"].take([i for i, text in enumerate(rows["train"].texts) if text not in tested])
    if len(train) < len(rows["train"]):
        notes.append(f"{len(rows['train']) - len(train)} train texts that stand in the test split were dropped")
    if "validation" in rows:
        validation = rows["validation"]
    else:
        validation_rows = stratified(train, max(1, len(train) // 10), seed)
        held_out = set(validation_rows)
        validation = train.take(validation_rows)
        train = train.take([i for i in range(len(train)) if i not in held_out])
        notes.append(f"{task.dataset} ships no validation split: a tenth of train, stratified, seed {seed}")
    parts: dict[str, Rows] = {}
    unlabelled: tuple[str, ...] = ()
    for name, part, wanted in (
        ("train", train, size.train_rows),
        ("validation", validation, size.validation_rows),
        ("test", test, size.test_rows),
    ):
        if wanted is not None and wanted < len(part):
            chosen = stratified(part, wanted, seed)
            parts[name] = part.take(chosen)
            if name == "train":
                kept = set(chosen)
                unlabelled = tuple(text for i, text in enumerate(part.texts) if i not in kept)
            notes.append(f"{name}: {wanted:,} of {len(part):,} rows, stratified, seed {seed}")
        else:
            parts[name] = part
    splits = Splits(task, parts["train"], parts["validation"], parts["test"], source, tuple(notes), unlabelled)
    if train_on_bundled and source.kind != "bundled":
        sample = load_splits(task, config, "full", seed, bundled=True)
        about_test = [note for note in notes if note.startswith("test:")]
        notes = ["trained on the bundled sample", *about_test]
        splits = replace(splits, train=sample.train, validation=sample.validation, notes=tuple(notes), unlabelled=())
    return splits


def stratified(rows: Rows, count: int, seed: int) -> list[int]:
    """``count`` row numbers, each label in its share, in ascending order; the same for the same seed."""
    generator = random.Random(seed)
    by_label: dict[int, list[int]] = {}
    for index, label in enumerate(rows.labels):
        by_label.setdefault(label, []).append(index)
    chosen: list[int] = []
    taken, seen = 0, 0
    for label in sorted(by_label):
        members = by_label[label]
        seen += len(members)
        share = round(count * seen / len(rows)) - taken  # shares of cumulated counts add up exactly
        taken += share
        chosen += generator.sample(members, min(share, len(members)))
    return sorted(chosen)
