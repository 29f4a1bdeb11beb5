"""Text classification with a pre-trained encoder: features, fine-tuning, evaluation, prediction.

``fine_tune`` is the whole path from configuration to a saved model and its record; the functions it
calls stand alone.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification

from pangu_lab import hub, run_folder
from pangu_lab.config import Config, Mode, Size, Train, ensure_folder
from pangu_lab.data.batches import collate, sorted_batches
from pangu_lab.data.text_tasks import TASKS, Rows, Splits, TextTask, clean, load_splits
from pangu_lab.errors import PanguLabError
from pangu_lab.model import checkpoints
from pangu_lab.results import Record, make_record
from pangu_lab.tasks.metrics import Metric, classification_metrics
from pangu_lab.tasks.runs import finish, train_or_find
from pangu_lab.training import Job, Result, choose_precision, cross_entropy_loss

# Reviews open with the plot and close with the verdict: of a long one, the first third and the rest from
# the end are kept (head and tail, Sun et al. 2019, §5.3.1).
HEAD_SHARE = 1 / 3
EVALUATION_TOKENS = 8192


class ClassificationError(PanguLabError):
    """A model or a text cannot be used for classification."""


@dataclass
class Classifier:
    """A model with its tokenizer and the names of its labels."""

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    max_length: int


@dataclass
class Fitted:
    """What a fine-tuning run gives: the classifier, its data, how training went, and the test's figures."""

    classifier: Classifier
    splits: Splits
    training: Result
    metrics: dict[str, Metric]
    gold: tuple[int, ...]
    probabilities: np.ndarray  # (rows, labels)
    record: Record


def encode(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[list[int]]:
    """Token ids with [CLS] and [SEP]; of a text longer than ``max_length`` tokens, head and tail are kept."""
    room = max_length - 2
    head = int(room * HEAD_SHARE)
    encoded = []
    # Only so many characters can matter: a text of a megabyte costs no more than a page.
    shortened = [text if len(text) <= 40 * room else text[: 20 * room] + " " + text[-20 * room :] for text in texts]
    for ids in tokenizer(shortened, add_special_tokens=False, verbose=False)["input_ids"]:
        if len(ids) > room:
            ids = ids[:head] + ids[len(ids) - (room - head) :]
        encoded.append([tokenizer.cls_token_id, *ids, tokenizer.sep_token_id])
    return encoded


def features(rows: Rows, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Model inputs of all rows, unpadded."""
    encoded = encode(rows.texts, tokenizer, max_length)
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label}
        for ids, label in zip(encoded, rows.labels, strict=True)
    ]


def new_classifier(source: hub.Source, task: TextTask, max_length: int, seed: int) -> Classifier:
    """A pre-trained encoder under a fresh classification head, whose weights ``seed`` decides.

    Raises
    ------
    ClassificationError
        The folder holds no encoder that transformers can put a classification head on.
    """
    names = dict(enumerate(task.labels))
    settings = {"num_labels": len(names), "id2label": names, "label2id": {v: k for k, v in names.items()}}
    model, tokenizer, length = checkpoints.under_fresh_head(
        AutoModelForSequenceClassification, source, seed, max_length, ClassificationError, **settings
    )
    return Classifier(model, tokenizer, task.labels, length)


def load_classifier(folder: Path) -> Classifier:
    """A classifier that ``fine_tune`` saved."""
    model, tokenizer, length = checkpoints.load(
        AutoModelForSequenceClassification, folder, "imdb|tweets", 128, ClassificationError
    )
    labels = tuple(model.config.id2label[i] for i in range(model.config.num_labels))
    return Classifier(model, tokenizer, labels, length)


def predict_features(
    model: nn.Module, rows: Sequence[dict[str, Any]], pad: int, quiet: bool = True, precision: str = "auto"
) -> np.ndarray:
    """Probabilities ``(rows, labels)``, in the order of ``rows``; batches are sorted by length inside."""
    # A quantized model may have no parameters left, only buffers, and a compiled one neither.
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    precision, _ = choose_precision(precision)
    probabilities = None
    model.eval()
    lengths = [len(row["input_ids"]) for row in rows]
    bar = tqdm(total=sum(lengths), unit="tok", unit_scale=True, desc="predicting", disable=quiet)
    with bar, torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for indices in sorted_batches(lengths, EVALUATION_TOKENS):
            batch = collate([rows[i] for i in indices], pad)
            inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
            scores = model(**inputs).logits.float().softmax(dim=-1).cpu().numpy()  # (batch, labels)
            if probabilities is None:
                probabilities = np.empty((len(rows), scores.shape[1]), dtype=np.float32)
            probabilities[indices] = scores
            bar.update(sum(lengths[i] for i in indices))
    if probabilities is None:
        raise ClassificationError("there are no texts to classify; give at least one")
    return probabilities


def predict(classifier: Classifier, texts: Sequence[str]) -> np.ndarray:
    """Probabilities ``(texts, labels)`` of raw texts.

    Raises
    ------
    ClassificationError
        A text is not a string or has no words in it.
    """
    cleaned = []
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not clean(text):
            raise ClassificationError(f"text {number + 1} has no words in it; give at least one word")
        cleaned.append(clean(text))
    encoded = encode(cleaned, classifier.tokenizer, classifier.max_length)
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in encoded]
    return predict_features(classifier.model, rows, classifier.tokenizer.pad_token_id)


def evaluate(
    classifier: Classifier, rows: Rows, task: TextTask, quiet: bool = True, precision: str = "auto"
) -> tuple[dict[str, Metric], np.ndarray]:
    """The metrics of a classifier on rows, and its probabilities ``(rows, labels)``."""
    encoded = features(rows, classifier.tokenizer, classifier.max_length)
    probabilities = predict_features(classifier.model, encoded, classifier.tokenizer.pad_token_id, quiet, precision)
    predicted = probabilities.argmax(axis=1)
    return classification_metrics(rows.labels, predicted.tolist(), len(task.labels), task.positive), probabilities


def balanced_weights(labels: Sequence[int], classes: int) -> list[float]:
    """A weight for each class, rows / (classes * count): all classes then weigh the same, and a row 1 on average.

    A class without a row gets 0. Source: King and Zeng 2001; scikit-learn's ``class_weight="balanced"``.
    """
    counts = np.bincount(labels, minlength=classes)
    return [len(labels) / (classes * count) if count else 0.0 for count in counts.tolist()]


def fine_tune(
    task_name: str,
    config: Config,
    mode: Mode | None = None,
    run: str | None = None,
    bundled: bool = False,
    splits: Splits | None = None,
    fresh: bool = False,
    quiet: bool = False,
    model_id: str | None = None,
    class_weights: Sequence[float] | None = None,
) -> Fitted:
    """Fine-tune a pre-trained encoder on a task, test it once, save it and its record.

    Parameters
    ----------
    mode, run
        ``smoke``, ``lesson`` or ``full``; the run's folder name below ``paths.runs``.
    bundled
        Train and test on the bundled sample.
    splits
        Other rows than the task's own, for learning curves and for training on one source, testing on another.
    fresh
        Forget what the run's folder holds; otherwise an unfinished run goes on and a finished one is done again
        only if something changed.
    class_weights
        One a label; the loss then counts each row as much as its class weighs (see ``balanced_weights``).
    """
    task, mode = TASKS[task_name], mode or config.mode
    seed = config.train.seed
    size = getattr(config, task_name).size(mode)
    settings = size.adjust(config.train)
    splits = splits or load_splits(task, config, mode, seed, bundled)
    epochs = size.passes(len(splits.train), settings.batch_size)
    # A model that was asked for by name must be that model; the course's default may be stood in for.
    source = hub.find_model(model_id or config.model, config, fallback=model_id is None)
    folder = ensure_folder(config.paths.runs / (run or f"{task_name}-{mode}-{splits.source.kind}-{seed}"), "paths.runs")
    if fresh and int(os.environ.get("RANK", "0")) == 0:
        run_folder.discard(folder)
    classifier = new_classifier(source, task, size.max_length, seed)
    encode_rows = partial(features, tokenizer=classifier.tokenizer, max_length=classifier.max_length)
    pad = classifier.tokenizer.pad_token_id
    validation = encode_rows(splits.validation)
    weights = None if class_weights is None else [float(weight) for weight in class_weights]
    if weights is not None and len(weights) != len(task.labels):
        raise ClassificationError(f"{len(weights)} class weights for {len(task.labels)} labels; give one a label")

    def validate(model: nn.Module) -> dict[str, float]:
        predicted = predict_features(model, validation, pad).argmax(axis=1)
        return {"validation_accuracy": float((predicted == np.asarray(splits.validation.labels)).mean())}

    job = Job(
        rows=encode_rows(splits.train),
        collate=partial(collate, pad_token_id=pad),
        loss=cross_entropy_loss if weights is None else partial(cross_entropy_loss, class_weights=weights),
        epochs=epochs,
        settings=settings,
        evaluate=validate,
        better="validation_accuracy" if settings.patience else None,
        name=f"{task_name}, {source.id} ({source.kind}), {splits.source.id} ({splits.source.kind})"
        + (f", class weights {weights}" if weights else ""),
    )
    record, training = train_or_find(classifier.model, job, folder, quiet)
    if record:
        classifier = load_classifier(folder / "model")
    metrics, probabilities = evaluate(classifier, splits.test, task, quiet)
    if record is None:
        record = make_record(
            task=task_name,
            split="test",
            mode=mode,
            data=splits.source,
            rows={"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
            notes=splits.notes,
            model=source,
            seeds=(seed,),
            settings=size.model_dump()
            | {"epochs": epochs}
            | settings.model_dump()
            | {"precision": training.precision}
            | ({"class_weights": weights} if weights else {}),
            metrics=metrics,
            seconds=training.seconds,
            parameters=sum(p.numel() for p in classifier.model.parameters()),
        )
        finish(folder, record, partial(save_classifier, classifier))
    return Fitted(classifier, splits, training, metrics, splits.test.labels, probabilities, record)


def course_classifier(config: Config, mode: Mode, seed: int = 0) -> Fitted:
    """The fine-tuned review classifier that the compression labs start from.

    Trained at its first use (about a minute on two cores in lesson mode) and found in ``paths.runs``
    afterwards. It has settings of its own, so that a changed configuration does not change the teacher.
    """
    size = Size(train_rows=512, validation_rows=100, test_rows=400, max_length=96, epochs=2)
    lesson = config.imdb.model_copy(update={"lesson": size})
    config = config.model_copy(update={"train": Train(seed=seed), "imdb": lesson})
    splits = load_splits(TASKS["imdb"], config, mode, seed)
    return fine_tune("imdb", config, mode, run=f"course-{mode}-{splits.source.kind}-{seed}", splits=splits)


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Save model and tokenizer so that transformers, and ``load_classifier``, can load them."""
    checkpoints.save(classifier.model, classifier.tokenizer, classifier.max_length, folder, ClassificationError)


def read_texts(file: Path, text: str = "text", label: str = "label") -> tuple[list[str], list[Any] | None]:
    """Texts, and labels if there are any, from a .csv, .tsv, .jsonl or plain .txt file (one text a line).

    Raises
    ------
    ClassificationError
        No such file, no such column, or no rows.
    """
    import pandas as pd

    try:
        match file.suffix.lower():
            case ".csv" | ".tsv":
                frame = pd.read_csv(file, sep="\t" if file.suffix.lower() == ".tsv" else ",", encoding="utf-8")
            case ".jsonl":
                lines = file.read_text(encoding="utf-8").splitlines()
                frame = pd.DataFrame([json.loads(line) for line in lines if line.strip()])
            case ".parquet":
                frame = pd.read_parquet(file)
            case _:
                lines = file.read_text(encoding="utf-8").splitlines()
                frame = pd.DataFrame({text: [line for line in lines if line.strip()]})
    except FileNotFoundError:
        raise ClassificationError(f"{file}: there is no such file; check the path") from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ClassificationError(
            f"{file}: cannot be read ({reason}); give .csv, .tsv, .jsonl, .parquet or .txt"
        ) from None
    if text not in frame:
        named = ", ".join(map(str, frame.columns)) or "nothing"
        raise ClassificationError(f"{file}: has no column '{text}', only {named}; rename the column of the texts")
    if frame.empty:
        raise ClassificationError(f"{file}: holds no rows; give a file with at least one text")
    return [str(value) for value in frame[text]], frame[label].tolist() if label in frame else None
