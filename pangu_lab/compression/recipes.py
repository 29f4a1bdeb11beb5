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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from pangu_lab.compression.distillation import Distillation, distill, student_from
from pangu_lab.compression.measure import parameters
from pangu_lab.compression.pruning import head_importance, neuron_importance, prune_and_tune, weakest
from pangu_lab.compression.quantization import Recipe as Quantization
from pangu_lab.compression.quantization import quantize
from pangu_lab.compression.structured import keep_layers, remove_heads, remove_neurons, trim_vocabulary
from pangu_lab.compression.tasks import CompressionTask, load_compressed, save_compressed
from pangu_lab.config import Train
from pangu_lab.data.batches import collate, sorted_batches
from pangu_lab.errors import PanguLabError
from pangu_lab.files import atomic_write
from pangu_lab.training import Job, train

CALIBRATION_ROWS = 128


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


def check_recipe(recipe: CompressionRecipe, task: CompressionTask) -> None:
    """Refuse, before anything is trained, a step that makes no sense for a task.

    Raises
    ------
    RecipeError
        A distillation on texts that the task does not have.
    """
    for number, (name, settings) in enumerate(recipe.steps, start=1):
        if isinstance(settings, Distill) and settings.unlabelled not in task.unlabelled:
            raise RecipeError(
                f"{recipe.name}, step {number} ({name}): unlabelled: {settings.unlabelled} makes no sense for "
                f"{task.name}, whose model reads a question with a passage; give {' or '.join(task.unlabelled)}"
            )


def compress(
    teacher: Any, recipe: CompressionRecipe, task: CompressionTask, folder: Path, seed: int = 0, quiet: bool = False
) -> Iterator[tuple[str, Any]]:
    """Do a recipe's steps; after each, its name and the model so far.

    Parameters
    ----------
    teacher
        The fine-tuned ``Classifier`` or ``Reader``; it stays as it is, and what comes out is of its kind.
    task
        Training rows for tuning, importance, vocabulary and calibration. The test rows are not looked at.
    folder
        Where each step keeps its training run, and its result, by number and name.
    """
    check_recipe(recipe, task)
    subject = teacher
    for number, (name, settings) in enumerate(recipe.steps, start=1):
        place = folder / f"{number}-{name}"
        saved = place / "model"
        described = json.dumps([(n, s.model_dump(mode="json")) for n, s in recipe.steps[:number]])
        if (place / "done.json").is_file() and (place / "done.json").read_text(encoding="utf-8") == described:
            subject = load_compressed(saved)
        else:
            shutil.rmtree(saved, ignore_errors=True)
            work = _Work(teacher, task, place, seed, quiet)
            match settings:
                case Distill():
                    subject = _distill(subject, settings, work)
                case Prune():
                    subject = _prune(subject, settings, work)
                case TrimVocabulary():
                    texts = task.texts(settings.unlabelled_rows)
                    model, tokenizer = trim_vocabulary(subject.model, subject.tokenizer, texts)
                    subject = replace(subject, model=model, tokenizer=tokenizer)
                case Quantization():
                    batches = work.batches(subject, CALIBRATION_ROWS) if settings.needs_calibration else []
                    inputs = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
                    subject = replace(subject, model=quantize(subject.model, settings, inputs))
            save_compressed(subject, saved)
            atomic_write(place / "done.json", described)
        yield name, subject


@dataclass(frozen=True)
class _Work:
    """What every step needs besides the model."""

    teacher: Any
    task: CompressionTask
    folder: Path
    seed: int
    quiet: bool

    def batches(self, subject: Any, count: int) -> list[dict[str, Tensor]]:
        rows = self.task.rows(subject, count)
        lengths = [len(row["input_ids"]) for row in rows]
        pad = subject.tokenizer.pad_token_id
        return [collate([rows[i] for i in batch], pad) for batch in sorted_batches(lengths, 4096)]

    def train_settings(self, settings: Distill | Prune) -> Train:
        return Train(learning_rate=settings.learning_rate, batch_size=settings.batch_size, seed=self.seed)

    def learn(
        self, subject: Any, settings: Distill | Prune, how: Distillation, kind: str, name: str | None = None
    ) -> None:
        """Train the model so far, in place, on what the teacher of the whole recipe says."""
        unlabelled = self.task.unlabelled_rows(subject, kind, settings.unlabelled_rows)
        distill(
            self.teacher.model,
            subject.model,
            self.task.taught_rows(subject),
            how,
            self.folder,
            unlabelled=unlabelled,
            epochs=settings.epochs,
            train_settings=self.train_settings(settings),
            pad_token_id=subject.tokenizer.pad_token_id,
            evaluate=self.task.validator(subject),
            name=name or f"{len(unlabelled)} unlabelled texts",
            quiet=self.quiet,
        )


def _distill(subject: Any, settings: Distill, work: _Work) -> Any:
    """The student starts from layers of the model so far."""
    student = replace(subject, model=student_from(subject.model, settings.layers))
    how = Distillation(settings.temperature, settings.alpha, hidden=settings.hidden, teacher_layers=None)
    work.learn(student, settings, how, settings.unlabelled)
    return student


def _prune(subject: Any, settings: Prune, work: _Work) -> Any:
    model, loss = subject.model, work.task.loss
    if settings.layers:
        model = keep_layers(model, settings.layers)
    if settings.heads or settings.neurons:
        batches = work.batches(subject, settings.importance_rows)
    if settings.heads:
        model = remove_heads(model, weakest(head_importance(model, batches, loss), settings.heads))
    if settings.neurons:
        model = remove_neurons(model, weakest(neuron_importance(model, batches, loss), settings.neurons))
    pruned = replace(subject, model=model)
    if not settings.epochs and not settings.sparsity:
        return pruned
    if settings.teach and not settings.sparsity:
        work.learn(pruned, settings, Distillation(2.0, 0.9), "task", f"prune {settings}")
        return pruned
    job = Job(
        work.task.rows(pruned),
        partial(collate, pad_token_id=subject.tokenizer.pad_token_id),
        loss,
        max(1, settings.epochs),
        work.train_settings(settings),
        evaluate=work.task.validator(pruned),
        name=f"prune {settings}",
    )
    if settings.sparsity:
        prune_and_tune(model, job, work.folder, settings.sparsity, quiet=work.quiet)
    else:
        train(model, job, work.folder, quiet=work.quiet, tensorboard=False)
    return pruned


def describe(model: nn.Module) -> str:
    """Layers, heads, neurons, words and parameters of a compressed encoder, in one line."""
    config: Any = model.config
    return (
        f"{config.num_hidden_layers} layers, {config.num_attention_heads} heads, {config.intermediate_size} neurons, "
        f"{config.vocab_size:,} words, {parameters(model) / 1e6:.1f} M parameters"
    )
