"""What compression needs of a task: its rows, its loss, its metrics, and its models' files.

``recipes`` and ``compare`` know no task by name; they ask a ``CompressionTask``. ``load_task`` makes one.
A *subject* is what is compressed: a ``Classifier`` or a ``Reader``, a model with its tokenizer and length.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from pangu_lab import hub
from pangu_lab.compression.distillation import bundled_texts, unlabelled_rows
from pangu_lab.compression.int8_encoder import fastest
from pangu_lab.compression.quantization import DESCRIPTION, load_quantized, save_quantized
from pangu_lab.config import Config
from pangu_lab.data.text_tasks import TASKS, Splits, load_splits
from pangu_lab.errors import PanguLabError
from pangu_lab.tasks import classification, question_answering, squad
from pangu_lab.tasks.classification import Classifier
from pangu_lab.tasks.metrics import Metric
from pangu_lab.tasks.question_answering import Question, Reader
from pangu_lab.tasks.squad import QuestionSplits
from pangu_lab.training import LossFunction, cross_entropy_loss

Subject = Classifier | Reader
Rows = list[dict[str, Any]]
QUESTION_ANSWERING = "ForQuestionAnswering"  # how the classes of such models end
NAMES = (*TASKS, "squad")


class TaskError(PanguLabError):
    """A task cannot be compressed for, or a model is not one of it."""


class CompressionTask(ABC):
    """A task with its data. Test rows are for ``evaluate`` alone; everything else is of the training split."""

    name: str
    source: hub.Source
    test_rows: int
    loss: LossFunction
    metrics: ClassVar[tuple[str, ...]]  # what tables show; the first is what figures rank by
    unlabelled: ClassVar[tuple[str, ...]]  # what there is of texts without labels
    subject: ClassVar[type]

    def load(self, folder: Path) -> Any:
        """A model of this task from ``folder``."""
        found = load_compressed(folder)
        if not isinstance(found, self.subject):
            raise TaskError(
                f"{folder}: holds {type(found.model).__name__}, which is no model of {self.name}; "
                f"train one with `pangu-lab train {self.name}`"
            )
        return found

    @abstractmethod
    def rows(self, subject: Any, count: int | None = None) -> Rows:
        """Features of the first ``count`` training rows (all by default), with the labels that ``loss`` wants."""

    def taught_rows(self, subject: Any) -> Rows:
        """Features of all training rows with the labels that ``distill`` wants."""
        return self.rows(subject)

    @abstractmethod
    def unlabelled_rows(self, subject: Any, kind: str, count: int | None = None) -> Rows:
        """Features without labels: of the training split's other rows (``task``), of ``bundled`` texts, or none."""

    @abstractmethod
    def texts(self, unlabelled: int | None = None) -> list[str]:
        """All texts of the training rows, and of so many of the split's others."""

    @abstractmethod
    def validator(self, subject: Any) -> Callable[[nn.Module], dict[str, float]]:
        """For the training loop: the metrics of a model on the validation rows."""

    @abstractmethod
    def evaluate(self, subject: Any, quiet: bool = True) -> tuple[dict[str, Metric], np.ndarray]:
        """The metrics on the test rows, in fp32, and one prediction a row."""


class TextClassification(CompressionTask):
    """Reviews or tweets: a label a text."""

    metrics = ("accuracy",)
    unlabelled = ("none", "task", "bundled")
    subject = Classifier

    def __init__(self, splits: Splits) -> None:
        self.splits, self.name, self.source = splits, splits.task.name, splits.source
        self.loss, self.test_rows = cross_entropy_loss, len(splits.test)

    def rows(self, subject: Any, count: int | None = None) -> Rows:
        train = self.splits.train
        part = train.take(range(min(count or len(train), len(train))))
        return classification.features(part, subject.tokenizer, subject.max_length)

    def unlabelled_rows(self, subject: Any, kind: str, count: int | None = None) -> Rows:
        texts: Sequence[str] = ()
        if kind != "none":
            texts = self.splits.unlabelled if kind == "task" else bundled_texts()
        return unlabelled_rows(texts[:count], subject.tokenizer, subject.max_length)

    def texts(self, unlabelled: int | None = None) -> list[str]:
        return [*self.splits.train.texts, *self.splits.unlabelled[:unlabelled]]

    def validator(self, subject: Any) -> Callable[[nn.Module], dict[str, float]]:
        rows = classification.features(self.splits.validation, subject.tokenizer, subject.max_length)
        gold, pad = np.asarray(self.splits.validation.labels), subject.tokenizer.pad_token_id

        def validate(model: nn.Module) -> dict[str, float]:
            predicted = classification.predict_features(model, rows, pad).argmax(axis=1)
            return {"validation_accuracy": float((predicted == gold).mean())}

        return validate

    def evaluate(self, subject: Any, quiet: bool = True) -> tuple[dict[str, Metric], np.ndarray]:
        metrics, probabilities = classification.evaluate(
            subject, self.splits.test, self.splits.task, quiet, precision="fp32"
        )
        return metrics, probabilities.argmax(axis=1)


class QuestionAnswering(CompressionTask):
    """Questions on passages; a prediction is the text of the best answer, so agreement is the share of equal ones."""

    metrics = ("f1", "exact_match")
    unlabelled = ("none", "task")
    subject = Reader

    def __init__(self, splits: QuestionSplits) -> None:
        self.splits, self.name, self.source = splits, "squad", splits.source
        self.loss, self.test_rows = question_answering.span_loss, len(splits.test)

    def rows(self, subject: Any, count: int | None = None) -> Rows:
        return squad.training_rows(subject, self.splits.train[:count])

    def taught_rows(self, subject: Any) -> Rows:
        taught = []
        for row in self.rows(subject):
            start, end = row.pop("labels")
            taught.append(row | {"start_positions": start, "end_positions": end})
        return taught

    def unlabelled_rows(self, subject: Any, kind: str, count: int | None = None) -> Rows:
        if kind == "none":
            return []
        asked = [replace(question, answers=()) for question in self.splits.unlabelled[:count]]
        rows = squad.training_rows(subject, asked)  # nobody knows where the answer is: each one's first window
        return [{key: value for key, value in row.items() if key != "labels"} for row in rows]

    def texts(self, unlabelled: int | None = None) -> list[str]:
        questions: list[Question] = [*self.splits.train, *self.splits.unlabelled[:unlabelled]]
        return list(dict.fromkeys(text for one in questions for text in (one.question, one.passage)))

    def validator(self, subject: Any) -> Callable[[nn.Module], dict[str, float]]:
        def validate(model: nn.Module) -> dict[str, float]:
            metrics, _ = question_answering.evaluate(replace(subject, model=model), self.splits.validation)
            return {f"validation_{name}": metric.value for name, metric in metrics.items()}

        return validate

    def evaluate(self, subject: Any, quiet: bool = True) -> tuple[dict[str, Metric], np.ndarray]:
        metrics, answers = question_answering.evaluate(subject, self.splits.test, quiet, precision="fp32")
        return metrics, np.array([answers[question.id] for question in self.splits.test])


def load_task(name: str, config: Config, test_rows: int | None = None) -> CompressionTask:
    """The task of that name with the configuration's data; ``test_rows`` instead of the mode's."""
    if name not in NAMES:
        raise TaskError(f"{name!r} cannot be compressed from here; there are {', '.join(NAMES)}")
    if test_rows is not None:
        sizes = getattr(config, name)
        size = sizes.size(config.mode).model_copy(update={"test_rows": test_rows})
        config = config.model_copy(update={name: sizes.model_copy(update={config.mode: size})})
    seed = config.train.seed
    if name in TASKS:
        return TextClassification(load_splits(TASKS[name], config, seed=seed))
    return QuestionAnswering(squad.load_questions(config, seed=seed))


# --- files ------------------------------------------------------------------------------------------


def save_compressed(subject: Subject, folder: Path) -> None:
    """Save a model, float or quantised, with its tokenizer."""
    if hasattr(subject.model, "quantization_recipe"):
        subject.model.config.pangu_lab_max_length = subject.max_length
        save_quantized(subject.model, folder)
        subject.tokenizer.save_pretrained(folder)
    elif isinstance(subject, Reader):
        squad.save_reader(subject, folder)
    else:
        classification.save_classifier(subject, folder)


def load_compressed(folder: Path) -> Subject:
    """A model that ``save_compressed``, or ``fine_tune``, saved; an int8 encoder runs on the compiled engine."""
    if not (folder / DESCRIPTION).is_file():
        return squad.load_reader(folder) if _reads(folder / "config.json") else classification.load_classifier(folder)
    from transformers import AutoTokenizer

    model = load_quantized(folder)
    config: Any = model.config
    tokenizer, length = AutoTokenizer.from_pretrained(folder), int(config.pangu_lab_max_length)
    if type(model).__name__.endswith(QUESTION_ANSWERING):
        return Reader(fastest(model), tokenizer, length, squad.test_overlap(length))
    labels = tuple(config.id2label[i] for i in range(config.num_labels))
    return Classifier(fastest(model), tokenizer, labels, length)


def _reads(config: Path) -> bool:
    """Whether a configuration is that of a question answering model."""
    try:
        names = json.loads(config.read_text(encoding="utf-8")).get("architectures") or [""]
    except (OSError, ValueError, AttributeError):
        return False  # the loader says what is wrong
    return str(names[0]).endswith(QUESTION_ANSWERING)
