"""Prune, distil, trim, quantise, in any order, by a recipe: a YAML file that says what is done to a model.

::

    name: small
    steps:
      - distill: {layers: [0, 2, 5], epochs: 3}
      - prune: {neurons: 0.5, epochs: 1}
      - trim_vocabulary: {}
      - quantize: {activations: dynamic}

Each step is a plain function of the modules beside this one; what a step trained is kept in the run's folder,
so that a recipe that was stopped goes on where it was.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from pangu_lab.compression.distillation import Distillation, bundled_texts, distill, student_from, unlabelled_rows
from pangu_lab.compression.int8_encoder import fastest
from pangu_lab.compression.measure import parameters
from pangu_lab.compression.pruning import head_importance, neuron_importance, prune_and_tune, weakest
from pangu_lab.compression.quantization import Recipe as Quantization
from pangu_lab.compression.quantization import load_quantized, quantize, save_quantized
from pangu_lab.compression.structured import keep_layers, remove_heads, remove_neurons, trim_vocabulary
from pangu_lab.config import Train
from pangu_lab.data.batches import collate, sorted_batches
from pangu_lab.data.text_tasks import Splits
from pangu_lab.errors import PanguLabError
from pangu_lab.files import atomic_write
from pangu_lab.tasks.classification import Classifier, features, load_classifier, predict_features, save_classifier
from pangu_lab.training import Job, cross_entropy_loss, train


class RecipeError(PanguLabError):
    """A recipe says something that cannot be done."""


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Distill(_Step):
    """A student with some of the teacher's layers learns from its logits (and hidden states).

    ``unlabelled`` adds texts whose labels are not used: ``task`` the task's other training texts, ``bundled``
    the course's samples. ``unlabelled_rows`` limits them.
    """

    layers: tuple[Annotated[int, Field(ge=0)], ...]
    epochs: Annotated[int, Field(ge=1)] = 3
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    batch_size: Annotated[int, Field(ge=1)] = 32
    temperature: Annotated[float, Field(gt=0)] = 2.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
    hidden: Annotated[float, Field(ge=0)] = 0.0
    unlabelled: Literal["none", "task", "bundled"] = "task"
    unlabelled_rows: Annotated[int, Field(ge=0)] | None = None


class Prune(_Step):
    """Shares of heads, neurons and layers that go for good, the least important first; then tuning.

    ``sparsity`` instead sets single weights to zero while tuning (no faster, but smaller once packed).
    """

    heads: Annotated[float, Field(ge=0, lt=1)] = 0.0
    neurons: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.0
    epochs: Annotated[int, Field(ge=0)] = 1
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    batch_size: Annotated[int, Field(ge=1)] = 16
    importance_rows: Annotated[int, Field(ge=8)] = 256
    teach: bool = True  # tune on the logits of the recipe's teacher, on unlabelled texts of the task too
    unlabelled_rows: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _something(self) -> "Prune":
        if not (self.heads or self.neurons or self.layers or self.sparsity):
            raise ValueError("prune takes nothing away; give heads, neurons, layers or sparsity")
        return self


class TrimVocabulary(_Step):
    """Only the word pieces that the training texts need, and so many unlabelled ones (all by default)."""

    unlabelled_rows: Annotated[int, Field(ge=0)] | None = None


STEPS: dict[str, type[BaseModel]] = {
    "distill": Distill,
    "prune": Prune,
    "trim_vocabulary": TrimVocabulary,
    "quantize": Quantization,
}


@dataclass(frozen=True)
class CompressionRecipe:
    """A name and steps, each a name of ``STEPS`` with its settings."""

    name: str
    steps: tuple[tuple[str, BaseModel], ...]


def read_recipe(source: Path | Mapping[str, Any]) -> CompressionRecipe:
    """A recipe from a YAML file, or from a mapping like one.

    Raises
    ------
    RecipeError
        Not such a file, an unknown step, a wrong value, or a step after ``quantize``.
    """
    if isinstance(source, Path):
        where = str(source)
        try:
            content = yaml.safe_load(source.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"{where}: cannot be read as YAML ({reason})") from None
    else:
        where, content = "recipe", source
    if not isinstance(content, Mapping) or not isinstance(content.get("steps"), list) or not content["steps"]:
        raise RecipeError(f"{where}: must be a mapping with a list 'steps'; see benchmarks/recipes for examples")
    unknown = set(content) - {"name", "steps"}
    if unknown:
        raise RecipeError(f"{where}: unknown key {sorted(map(str, unknown))[0]!r}; allowed are name and steps")
    steps = []
    for number, step in enumerate(content["steps"], start=1):
        if isinstance(step, str):
            step = {step: {}}
        if not isinstance(step, Mapping) or len(step) != 1 or next(iter(step)) not in STEPS:
            raise RecipeError(
                f"{where}, step {number}: must be one of {', '.join(STEPS)} with its settings; got {step!r}"
            )
        ((name, settings),) = step.items()
        try:
            steps.append((str(name), STEPS[name].model_validate(settings or {})))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or name
            raise RecipeError(f"{where}, step {number} ({name}): {place}: {first['msg']}") from None
    if any(name == "quantize" for name, _ in steps[:-1]):
        raise RecipeError(f"{where}: quantize must be the last step; integers cannot be trained on")
    default = source.stem if isinstance(source, Path) else "recipe"
    return CompressionRecipe(str(content.get("name") or default), tuple(steps))


def compress(
    teacher: Classifier, recipe: CompressionRecipe, splits: Splits, folder: Path, seed: int = 0, quiet: bool = False
) -> Iterator[tuple[str, Classifier]]:
    """Do a recipe's steps; after each, its name and the classifier so far.

    Parameters
    ----------
    teacher
        The fine-tuned model; it stays as it is.
    splits
        Training rows for tuning, importance, vocabulary and calibration. The test rows are not looked at.
    folder
        Where each step keeps its training run, and its result, by number and name.
    """
    classifier = teacher
    for number, (name, settings) in enumerate(recipe.steps, start=1):
        place = folder / f"{number}-{name}"
        saved = place / "model"
        described = json.dumps([(n, s.model_dump(mode="json")) for n, s in recipe.steps[:number]])
        if (place / "done.json").is_file() and (place / "done.json").read_text(encoding="utf-8") == described:
            classifier = load_compressed(saved)
        else:
            shutil.rmtree(saved, ignore_errors=True)
            work = _Work(teacher, splits, place, seed, quiet)
            match settings:
                case Distill():
                    classifier = _distill(classifier, settings, work)
                case Prune():
                    classifier = _prune(classifier, settings, work)
                case TrimVocabulary():
                    classifier = _trim(classifier, settings, work)
                case Quantization():
                    classifier = _quantize(classifier, settings, work)
            save_compressed(classifier, saved)
            atomic_write(place / "done.json", described)
        yield name, classifier


@dataclass(frozen=True)
class _Work:
    """What every step needs besides the model."""

    teacher: Classifier
    splits: Splits
    folder: Path
    seed: int
    quiet: bool

    def rows(self, classifier: Classifier, count: int | None = None) -> list[dict[str, Any]]:
        train = self.splits.train
        return features(
            train.take(range(min(count or len(train), len(train)))), classifier.tokenizer, classifier.max_length
        )

    def batches(self, classifier: Classifier, count: int) -> list[dict[str, Tensor]]:
        rows = self.rows(classifier, count)
        lengths = [len(row["input_ids"]) for row in rows]
        pad = classifier.tokenizer.pad_token_id
        return [collate([rows[i] for i in batch], pad) for batch in sorted_batches(lengths, 4096)]

    def train_settings(self, settings: Distill | Prune) -> Train:
        return Train(learning_rate=settings.learning_rate, batch_size=settings.batch_size, seed=self.seed)

    def accuracy(self, classifier: Classifier) -> Any:
        """For the loop: accuracy on the validation rows, after each epoch."""
        rows = features(self.splits.validation, classifier.tokenizer, classifier.max_length)
        gold = np.asarray(self.splits.validation.labels)
        pad = classifier.tokenizer.pad_token_id

        def evaluate(model: nn.Module) -> dict[str, float]:
            return {"validation_accuracy": float((predict_features(model, rows, pad).argmax(axis=1) == gold).mean())}

        return evaluate


def _distill(classifier: Classifier, settings: Distill, work: _Work) -> Classifier:
    """The student starts from layers of the model so far, and learns from the teacher of the whole recipe."""
    student = replace(classifier, model=student_from(classifier.model, settings.layers))
    texts: Sequence[str] = ()
    if settings.unlabelled == "task":
        texts = work.splits.unlabelled
    elif settings.unlabelled == "bundled":
        texts = bundled_texts()
    if settings.unlabelled_rows is not None:
        texts = texts[: settings.unlabelled_rows]
    distill(
        work.teacher.model,
        student.model,
        work.rows(student),
        Distillation(settings.temperature, settings.alpha, hidden=settings.hidden, teacher_layers=None),
        work.folder,
        unlabelled=unlabelled_rows(texts, student.tokenizer, student.max_length),
        epochs=settings.epochs,
        train_settings=work.train_settings(settings),
        pad_token_id=student.tokenizer.pad_token_id,
        evaluate=work.accuracy(student),
        name=f"{len(texts)} unlabelled texts",
        quiet=work.quiet,
    )
    return student


def _prune(classifier: Classifier, settings: Prune, work: _Work) -> Classifier:
    model = classifier.model
    if settings.layers:
        model = keep_layers(model, settings.layers)
    if settings.heads:
        batches = work.batches(classifier, settings.importance_rows)
        model = remove_heads(model, weakest(head_importance(model, batches), settings.heads))
    if settings.neurons:
        batches = work.batches(classifier, settings.importance_rows)
        model = remove_neurons(model, weakest(neuron_importance(model, batches), settings.neurons))
    pruned = replace(classifier, model=model)
    if not settings.epochs and not settings.sparsity:
        return pruned
    pad = classifier.tokenizer.pad_token_id
    if settings.sparsity or not settings.teach:
        job = Job(
            work.rows(pruned),
            partial(collate, pad_token_id=pad),
            cross_entropy_loss,
            max(1, settings.epochs),
            work.train_settings(settings),
            evaluate=work.accuracy(pruned),
            name=f"prune {settings}",
        )
        if settings.sparsity:
            prune_and_tune(model, job, work.folder, settings.sparsity, quiet=work.quiet)
        else:
            train(model, job, work.folder, quiet=work.quiet, tensorboard=False)
        return pruned
    distill(
        work.teacher.model,
        model,
        work.rows(pruned),
        Distillation(2.0, 0.9),
        work.folder,
        unlabelled=unlabelled_rows(
            work.splits.unlabelled[: settings.unlabelled_rows], pruned.tokenizer, pruned.max_length
        ),
        epochs=settings.epochs,
        train_settings=work.train_settings(settings),
        pad_token_id=pad,
        evaluate=work.accuracy(pruned),
        name=f"prune {settings}",
        quiet=work.quiet,
    )
    return pruned


def _trim(classifier: Classifier, settings: TrimVocabulary, work: _Work) -> Classifier:
    texts = [*work.splits.train.texts, *work.splits.unlabelled[: settings.unlabelled_rows]]
    model, tokenizer = trim_vocabulary(classifier.model, classifier.tokenizer, texts)
    return replace(classifier, model=model, tokenizer=tokenizer)


def _quantize(classifier: Classifier, settings: Quantization, work: _Work) -> Classifier:
    batches = []
    if settings.needs_calibration:
        batches = [{k: v for k, v in b.items() if k != "labels"} for b in work.batches(classifier, 128)]
    return replace(classifier, model=quantize(classifier.model, settings, batches))


def save_compressed(classifier: Classifier, folder: Path) -> None:
    """Save a classifier, float or quantised, with its tokenizer."""
    if hasattr(classifier.model, "quantization_recipe"):
        classifier.model.config.pangu_lab_max_length = classifier.max_length
        save_quantized(classifier.model, folder)
        classifier.tokenizer.save_pretrained(folder)
    else:
        save_classifier(classifier, folder)


def load_compressed(folder: Path) -> Classifier:
    """A classifier that ``save_compressed``, or ``fine_tune``, saved; an int8 encoder runs on the compiled engine."""
    if not (folder / "quantized.json").is_file():
        return load_classifier(folder)
    from transformers import AutoTokenizer

    model = load_quantized(folder)
    config: Any = model.config
    labels = tuple(config.id2label[i] for i in range(config.num_labels))
    return Classifier(fastest(model), AutoTokenizer.from_pretrained(folder), labels, int(config.pangu_lab_max_length))


def describe(model: nn.Module) -> str:
    """Layers, heads, neurons, words and parameters of a compressed encoder, in one line."""
    config: Any = model.config
    return (
        f"{config.num_hidden_layers} layers, {config.num_attention_heads} heads, {config.intermediate_size} neurons, "
        f"{config.vocab_size:,} words, {parameters(model) / 1e6:.1f} M parameters"
    )
