"""SQuAD: its splits, and the whole path from configuration to a saved reader and its record."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForQuestionAnswering

from pangu_lab import hub, run_folder
from pangu_lab.config import Config, Mode, Size, ensure_folder
from pangu_lab.data.batches import collate
from pangu_lab.model import checkpoints
from pangu_lab.results import Record, make_record
from pangu_lab.tasks.metrics import Metric
from pangu_lab.tasks.question_answering import (
    Question,
    QuestionAnsweringError,
    Reader,
    checked_questions,
    evaluate,
    features,
    read_questions,
    span_loss,
    windows,
)
from pangu_lab.tasks.runs import finish, train_or_find
from pangu_lab.training import Job, Result

DATASET = "rajpurkar/squad"
TRAIN_OVERLAP, TEST_OVERLAP = 32, 96  # tokens that neighboring windows share
DEVELOPMENT_QUESTIONS = 10_570  # of the official development set


@dataclass(frozen=True)
class QuestionSplits:
    """Train, validation and test questions, their source, and in words what was done to make them."""

    train: tuple[Question, ...]
    validation: tuple[Question, ...]
    test: tuple[Question, ...]
    source: hub.Source
    notes: tuple[str, ...]
    # Training questions beyond ``train``: what is left of the train split, for uses without the answers.
    unlabelled: tuple[Question, ...] = ()


@dataclass
class FittedReader:
    """What a fine-tuning run gives: the reader, its data, how training went, and the test's figures."""

    reader: Reader
    splits: QuestionSplits
    training: Result
    metrics: dict[str, Metric]
    predictions: dict[str, str]
    record: Record


def load_questions(
    config: Config, mode: Mode | None = None, seed: int = 0, bundled: bool = False, train_on_bundled: bool = False
) -> QuestionSplits:
    """Questions of SQuAD 1.1 in a mode's sizes.

    The official test set is hidden, so its development set is the test here. Validation is made of whole
    articles of train, so that no passage is on both sides; samples are drawn by ``seed``.
    """
    raw, source = hub.load_dataset(DATASET, config, bundled)
    checked: dict[str, list[Question]] = {}
    notes: list[str] = []
    for split, rows in raw.items():
        checked[split], told = checked_questions(list(rows), f"{DATASET} ({source.kind}), {split}")
        notes += told
    train = checked["train"]
    if "test" in checked:
        validation, test = checked["validation"], checked["test"]
    else:
        test = checked["validation"]
        train, validation, told_of = without_articles(train, seed)
        notes.append(f"{DATASET} hides its test set: its development set is the test here; validation is {told_of}")
        notes += _told_of_copy(train, test) if source.kind != "bundled" else []
    splits = _sampled(train, validation, test, config.squad.size(mode or config.mode), source, notes, seed)
    if train_on_bundled and source.kind != "bundled":
        sample = load_questions(config, "full", seed, bundled=True)
        about_test = [note for note in splits.notes if note.startswith("test:")]
        notes = ["trained on the bundled sample", *about_test]
        splits = QuestionSplits(sample.train, sample.validation, splits.test, source, tuple(notes))
    return splits


def questions_of_files(
    train_file: Path, test_file: Path | None, config: Config, mode: Mode | None = None, seed: int = 0
) -> QuestionSplits:
    """Questions of one's own files, SQuAD 1.1's or 2.0's or JSON lines, in a mode's sizes.

    Validation, and the test where no file is given for it, are made of whole articles (passages, where there are no
    titles) of the train file.
    """
    questions, found = read_questions(train_file)
    train, validation, told_of = without_articles(questions, seed)
    notes = [*found, f"validation is {told_of}"]
    if test_file:
        test, found = read_questions(test_file)
        notes += [*found, f"test is {test_file.name}"]
    else:
        train, test, told_of = without_articles(train, seed)
        notes.append(f"test is {told_of}")
    source = hub.Source(train_file.name, "file", train_file.parent, "")
    return _sampled(train, validation, test, config.squad.size(mode or config.mode), source, notes, seed)


def without_articles(questions: Sequence[Question], seed: int) -> tuple[list[Question], list[Question], str]:
    """The questions without a tenth of their articles, those of that tenth, and in words which they are.

    Raises
    ------
    QuestionAnsweringError
        There is one article only.
    """
    titles = sorted({question.title or question.passage for question in questions})
    if len(titles) < 2:
        raise QuestionAnsweringError(
            "all questions are on one article, and none can be held back for validation and test; give more articles"
        )
    chosen = set(random.Random(seed).sample(titles, max(1, len(titles) // 10)))
    kept = [question for question in questions if (question.title or question.passage) not in chosen]
    held_out = [question for question in questions if (question.title or question.passage) in chosen]
    return kept, held_out, f"{len(chosen)} of {len(titles)} train articles, seed {seed}"


def _sampled(
    train: Sequence[Question],
    validation: Sequence[Question],
    test: Sequence[Question],
    size: Size,
    source: hub.Source,
    notes: Sequence[str],
    seed: int,
) -> QuestionSplits:
    """The splits in their sizes, drawn by ``seed``."""
    notes = list(notes)
    parts: dict[str, tuple[Question, ...]] = {}
    unlabelled: tuple[Question, ...] = ()
    for name, part, wanted in (
        ("train", train, size.train_rows),
        ("validation", validation, size.validation_rows),
        ("test", test, size.test_rows),
    ):
        if wanted is not None and wanted < len(part):
            notes.append(f"{name}: {wanted:,} of {len(part):,} questions, seed {seed}")
            chosen = random.Random(seed).sample(part, wanted)
            if name == "train":
                kept = {question.id for question in chosen}
                unlabelled = tuple(question for question in part if question.id not in kept)
            part = chosen
        parts[name] = tuple(part)
    return QuestionSplits(**parts, source=source, notes=tuple(notes), unlabelled=unlabelled)


def _told_of_copy(train: Sequence[Question], test: Sequence[Question]) -> list[str]:
    """What a copy of SQuAD lacks, in words: its figures cannot stand beside published ones."""
    notes = []
    # Several people answered each question of the development set, one person each question of train.
    if any(len(question.answers) > 1 for question in train):
        notes.append(
            "trained on a part of the development set, split by article, as this copy lacks the official train split"
        )
    if len(test) < 0.995 * DEVELOPMENT_QUESTIONS:
        notes.append(f"this copy tests on {len(test):,} of the development set's {DEVELOPMENT_QUESTIONS:,} questions")
    return notes


def new_reader(source: hub.Source, max_length: int, seed: int) -> Reader:
    """A pre-trained encoder under a fresh head for start and end, whose weights ``seed`` decides."""
    model, tokenizer, length = checkpoints.under_fresh_head(
        AutoModelForQuestionAnswering, source, seed, max_length, QuestionAnsweringError
    )
    return Reader(model, tokenizer, length, test_overlap(length))


def test_overlap(max_length: int) -> int:
    """Tokens that neighboring windows of ``max_length`` share when a reader answers."""
    return min(TEST_OVERLAP, max_length // 4)


def load_reader(folder: Path) -> Reader:
    """A reader that ``fine_tune`` saved."""
    model, tokenizer, length = checkpoints.load(
        AutoModelForQuestionAnswering, folder, "squad", 256, QuestionAnsweringError
    )
    no_answer = bool(getattr(model.config, "pangu_lab_no_answer", False))
    threshold = float(getattr(model.config, "pangu_lab_threshold", 0.0))
    return Reader(model, tokenizer, length, test_overlap(length), no_answer, threshold)


def save_reader(reader: Reader, folder: Path) -> None:
    """Save model and tokenizer so that transformers, and ``load_reader``, can load them."""
    if reader.no_answer:
        reader.model.config.pangu_lab_no_answer = True
        reader.model.config.pangu_lab_threshold = reader.threshold
    checkpoints.save(reader.model, reader.tokenizer, reader.max_length, folder, QuestionAnsweringError)


def training_rows(reader: Reader, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Features of all windows; of one question's windows without an answer only the first is kept.

    A long passage has many windows without the answer, and all of them teach the same: nothing is here.
    """
    found = windows(questions, reader.tokenizer, reader.max_length, min(TRAIN_OVERLAP, reader.max_length // 4))
    rows, empty = [], set()
    for window, row in zip(found, features(questions, found, reader.token_types), strict=True):
        if row["labels"] == [0, 0]:
            if window.question in empty:
                continue
            empty.add(window.question)
        rows.append(row)
    return rows


def fine_tune(
    config: Config,
    mode: Mode | None = None,
    run: str | None = None,
    bundled: bool = False,
    splits: QuestionSplits | None = None,
    fresh: bool = False,
    quiet: bool = False,
    model_id: str | None = None,
) -> FittedReader:
    """Fine-tune a pre-trained encoder on questions, test it once, save it and its record.

    Where train has questions without an answer, the reader may answer "", by a margin fitted on validation.
    Parameters are those of ``tasks.classification.fine_tune``.
    """
    mode, seed = mode or config.mode, config.train.seed
    size = config.squad.size(mode)
    settings = size.adjust(config.train)
    splits = splits or load_questions(config, mode, seed, bundled)
    source = hub.find_model(model_id or config.model, config, fallback=model_id is None)
    folder = ensure_folder(config.paths.runs / (run or f"squad-{mode}-{splits.source.kind}-{seed}"), "paths.runs")
    if fresh and int(os.environ.get("RANK", "0")) == 0:
        run_folder.discard(folder)
    reader = new_reader(source, size.max_length, seed)
    reader.no_answer = any(not question.answers for question in splits.train)

    def validate(model: nn.Module) -> dict[str, float]:
        metrics, _ = evaluate(reader, splits.validation)
        return {f"validation_{name}": metric.value for name, metric in metrics.items()}

    job = Job(
        rows=training_rows(reader, splits.train),
        collate=partial(collate, pad_token_id=reader.tokenizer.pad_token_id),
        loss=span_loss,
        epochs=size.epochs,
        settings=settings,
        evaluate=validate,
        better="validation_f1" if settings.patience else None,
        name=f"squad, {source.id} ({source.kind}), {splits.source.id} ({splits.source.kind})",
    )
    record, training = train_or_find(reader.model, job, folder, quiet)
    if record:
        reader = load_reader(folder / "model")
    elif reader.no_answer:
        reader.fit_threshold(splits.validation, quiet)
    metrics, predictions = evaluate(reader, splits.test, quiet)
    if record is None:
        record = make_record(
            task="squad",
            split="test",
            mode=mode,
            data=splits.source,
            rows={"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
            notes=splits.notes,
            model=source,
            seeds=(seed,),
            settings=size.model_dump()
            | settings.model_dump()
            | {"precision": training.precision}
            | ({"no_answer_margin": round(reader.threshold, 4)} if reader.no_answer else {}),
            metrics=metrics,
            seconds=training.seconds,
            parameters=sum(p.numel() for p in reader.model.parameters()),
        )
        finish(folder, record, partial(save_reader, reader))
    return FittedReader(reader, splits, training, metrics, predictions, record)
