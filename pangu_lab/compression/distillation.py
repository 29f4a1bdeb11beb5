"""Distillation: a small student learns from what a large teacher says, and from how it gets there.

Read ``student_from`` and ``distill``, which runs on the one training loop; what they minimize stands in
``distillation_losses``.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pangu_lab import hub
from pangu_lab.compression.distillation_losses import (
    DistillationError,
    attention_score_loss,
    distillation_loss,
    hidden_state_loss,
    relation_loss,
    soft_label_loss,
)
from pangu_lab.compression.structured import LayerView, PruningError, encoder_layers, with_layers
from pangu_lab.config import Train
from pangu_lab.data.batches import collate, sorted_batches
from pangu_lab.data.text_tasks import clean
from pangu_lab.files import atomic_write
from pangu_lab.model.attention import minus_infinity_outside, split_heads
from pangu_lab.tasks.classification import EVALUATION_TOKENS, encode
from pangu_lab.training import Job, Result, choose_precision, train

__all__ = [
    "Distillation",
    "DistillationError",
    "Losses",
    "attention_score_loss",
    "bundled_texts",
    "choose_layers",
    "distill",
    "distillation_loss",
    "hidden_state_loss",
    "random_student",
    "relation_loss",
    "soft_label_loss",
    "student_from",
    "unlabelled_rows",
]

UNLABELLED = -1  # a text without a label: the teacher alone speaks. -100 is the loop's filler, which counts nothing
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LABELS = ("labels", "start_positions", "end_positions")
BUNDLED_TEXTS = ("reviews", "tweets", "products")


# --- students ---------------------------------------------------------------------------------------


def choose_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """The last layer of each of ``student_layers`` blocks, counted from 0 (Jiao et al. 2020, g(m) = 3m of 12)."""
    if not 1 <= student_layers <= teacher_layers:
        raise DistillationError(
            f"a student of {student_layers} layers cannot be made from a teacher of {teacher_layers}; "
            f"give 1 to {teacher_layers}"
        )
    return [m * teacher_layers // student_layers - 1 for m in range(1, student_layers + 1)]


def student_from(teacher: Any, layers: Sequence[int]) -> Any:
    """A new model of the teacher's class with copies of the teacher's ``layers``, embeddings and head.

    ``layers`` are counted from 0, in the student's order. The teacher stays as it is; the student is saved and loaded
    as any other checkpoint.
    """
    there = len(_layers_of(teacher))
    if not layers or any(not 0 <= layer < there for layer in layers):
        raise DistillationError(f"layers are {list(layers)}; the teacher has {there}, so give some of 0 to {there - 1}")
    return with_layers(teacher, layers).eval()


def random_student(teacher: Any, **changes: Any) -> Any:
    """A model of the teacher's class with new random weights; ``changes`` are those of its configuration."""
    config = type(teacher.config).from_dict(teacher.config.to_dict() | changes)
    if config.hidden_size % config.num_attention_heads:
        raise DistillationError(
            f"hidden_size {config.hidden_size} cannot be split over {config.num_attention_heads} heads; "
            "change num_attention_heads, too"
        )
    return type(teacher)(config).eval()


def _layers_of(model: nn.Module) -> list[LayerView]:
    try:
        return encoder_layers(model)
    except PruningError:
        raise DistillationError(
            f"{type(model).__name__} has no encoder layers that are known here; give a BERT of transformers or a PanGu "
            "model"
        ) from None


class Watch:
    """Keeps q, k and v (B, T, d) of some layers at each forward pass, until ``stop``."""

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        self.seen: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}
        self.heads: dict[int, int] = {}
        self._hooks = []
        views = _layers_of(model)
        for layer in self.seen:
            view = views[layer]
            self.heads[layer] = view.heads
            for name, module in (("q", view.query), ("k", view.key), ("v", view.value)):
                self._hooks.append(module.register_forward_hook(partial(self._keep, layer, name)))

    def _keep(self, layer: int, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.seen[layer][name] = output

    def stop(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()


# --- settings ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Losses:
    """The functions that ``distill`` calls; put your own in their place. Each gives a mean over texts."""

    logits: Callable[[Tensor, Tensor, Tensor, float, float], Tensor] = distillation_loss
    hidden: Callable[[Tensor, Tensor, Tensor], Tensor] = hidden_state_loss
    attention: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] = attention_score_loss


@dataclass(frozen=True)
class Distillation:
    """What the student learns from.

    Parameters
    ----------
    temperature, alpha
        Of ``distillation_loss``: alpha is the weight of the soft labels, 1 − alpha that of the hard ones.
    logits, hidden, attention, relations
        Weights of the four losses, 0 to leave one out; hidden and attention are means over the student's layers.
    teacher_layers
        The teacher's layer for each of the student's, from 0; ``choose_layers`` if left out.
    relation_pairs, relation_heads
        ("qq", "kk", "vv") of MiniLMv2 or ("qk", "vv") of MiniLM, between the last layers; the heads default to the
        teacher's.
    losses
        Other functions in the place of this module's.
    """

    temperature: float = 2.0
    alpha: float = 0.5
    logits: float = 1.0
    hidden: float = 0.0
    attention: float = 0.0
    relations: float = 0.0
    teacher_layers: tuple[int, ...] | None = None
    relation_pairs: tuple[str, ...] = ("qq", "kk", "vv")
    relation_heads: int | None = None
    losses: Losses = field(default=Losses(), repr=False)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise DistillationError(f"temperature is {self.temperature:g}; it must be greater than 0, as 2")
        if not 0 <= self.alpha <= 1:
            raise DistillationError(f"alpha is {self.alpha:g}; it must be from 0 (hard labels) to 1 (soft labels)")
        weights = (self.logits, self.hidden, self.attention, self.relations)
        if min(weights) < 0 or not any(weights):
            raise DistillationError(f"the losses' weights are {weights}; none may be negative, and one must be above 0")
        if not set(self.relation_pairs) <= {a + b for a in "qkv" for b in "qkv"}:
            raise DistillationError(f"relation_pairs are {self.relation_pairs}; give pairs of q, k and v, as 'qq'")

    @property
    def only_labels(self) -> bool:
        """Hard labels alone: the teacher is not asked."""
        return self.alpha == 0 and not (self.hidden or self.attention or self.relations)

    @property
    def only_logits(self) -> bool:
        """Of the teacher only the logits are needed."""
        return bool(self.alpha and self.logits) and not (self.hidden or self.attention or self.relations)


# --- the run ----------------------------------------------------------------------------------------


class Step(NamedTuple):
    """What one forward pass of a model leaves: logits with their labels, hidden states, and q, k, v by layer."""

    scores: list[Tensor]  # each (B, C)
    hidden: list[Tensor]  # of each layer, (B, T, d); empty if nobody asked
    qkv: list[dict[str, Tensor]]


class Distiller(nn.Module):
    """What the loop trains: the student, and one projection for each hidden state whose width differs.

    The teacher is no part of it: it is neither trained nor saved.
    """

    def __init__(self, student: Any, teacher: Any, settings: Distillation) -> None:
        super().__init__()
        self.student, self.settings = student, settings
        depth, high = len(_layers_of(student)), len(_layers_of(teacher))
        self.pairs = settings.teacher_layers or tuple(choose_layers(high, depth))
        if len(self.pairs) != depth or not all(0 <= layer < high for layer in self.pairs):
            raise DistillationError(
                f"teacher_layers are {list(self.pairs)}; give one of 0 to {high - 1} for each of the student's "
                f"{depth} layers"
            )
        width, wide = student.config.hidden_size, teacher.config.hidden_size
        self.projections = nn.ParameterList()
        if settings.hidden and width != wide:
            generator = torch.Generator().manual_seed(0)  # reproducible, and the run's own generator is not touched
            for _ in self.pairs:
                self.projections.append(torch.randn(width, wide, generator=generator) / math.sqrt(width))
        self.watched = (list(range(depth)), list(self.pairs)) if settings.attention else ([], [])
        if settings.relations:
            self.watched = ([*self.watched[0], depth - 1], [*self.watched[1], high - 1])
        self.watch = Watch(student, self.watched[0])

    def set_attn_implementation(self, name: str) -> None:
        """Hand the loop's choice on to the student."""
        if hasattr(self.student, "set_attn_implementation"):
            self.student.set_attn_implementation(name)

    def forward(self, **inputs: Tensor) -> Step:
        """The student's pass over a batch; hidden states projected to the teacher's width where it differs."""
        step = _forward(self.student, self.watch, self.watched[0], bool(self.settings.hidden), inputs)
        if self.projections:
            hidden = [h.float() @ w for h, w in zip(step.hidden, self.projections, strict=True)]
            step = step._replace(hidden=hidden)
        return step


def _forward(model: Any, watch: Watch, layers: Sequence[int], hidden: bool, inputs: Mapping[str, Tensor]) -> Step:
    output = model(**inputs, **({"output_hidden_states": True} if hidden else {}))
    if hasattr(output, "start_logits"):  # question answering: two distributions over the real positions
        outside = minus_infinity_outside(inputs["attention_mask"].bool(), torch.float32)
        scores = [output.start_logits.float() + outside, output.end_logits.float() + outside]
    elif hasattr(output, "logits"):
        scores = [output.logits]
    else:
        scores = []
    states = list(output.hidden_states[1:]) if hidden else []
    return Step(scores, states, [watch.seen[layer] for layer in layers])


def distill(
    teacher: Any,
    student: Any,
    rows: Sequence[Mapping[str, Any]],
    settings: Distillation,
    folder: Path,
    *,
    unlabelled: Sequence[Mapping[str, Any]] = (),
    epochs: int = 1,
    train_settings: Train | None = None,
    pad_token_id: int = 0,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    better: str | None = None,
    name: str = "",
    quiet: bool = False,
) -> Result:
    """Train ``student`` in place on what ``teacher`` says; killed and started again, it ends with the same weights.

    Parameters
    ----------
    teacher, student
        Classifiers or question answering models of transformers' BERT or PanGu kind; without the logits' loss also
        bare encoders. The teacher is only read.
    rows
        Features as ``tasks.classification.features`` makes them; a row without ``labels`` is an unlabelled one.
    unlabelled
        More rows, of which only the teacher's opinion counts (``unlabelled_rows``).
    folder
        Makes the run resumable. Where only the teacher's logits are needed, they are computed once and kept there.
    evaluate, better, name
        As in ``training.Job``; ``evaluate`` is given the student.

    Raises
    ------
    DistillationError
        Teacher and student do not go together.
    """
    train_settings = train_settings or Train()
    _check_pair(teacher, student, settings)
    distiller = Distiller(student, teacher, settings)
    everything = _all_rows(rows, unlabelled)
    digest, was_training = weights_hash(teacher), teacher.training
    teacher.eval()
    loss = _Loss(teacher, distiller)
    try:
        known = None
        if settings.only_logits and everything and "start_positions" not in everything[0]:
            known = _teacher_logits(teacher, everything, pad_token_id, train_settings.precision, folder, digest)
        functions = (settings.losses.logits, settings.losses.hidden, settings.losses.attention)
        used = ", ".join(getattr(f, "__qualname__", type(f).__name__) for f in functions)
        job = Job(
            rows=everything,
            collate=partial(_collate, pad_token_id=pad_token_id, logits=known),
            loss=loss,
            epochs=epochs,
            settings=train_settings,
            evaluate=partial(_evaluate_student, evaluate) if evaluate else None,
            better=better,
            name=f"{name} {settings}, {used}, teacher {digest[:16]}, student {weights_hash(student)[:16]}".strip(),
        )
        return train(distiller, job, folder, quiet=quiet, tensorboard=False)
    finally:
        loss.watch.stop()
        distiller.watch.stop()
        teacher.train(was_training)


def _evaluate_student(evaluate: Callable[[nn.Module], dict[str, float]], model: Any) -> dict[str, float]:
    return evaluate(model.student)


class _Loss:
    """The training loop's loss: all terms of a batch, weighted, times the texts that count, and how many these are."""

    def __init__(self, teacher: Any, distiller: Distiller) -> None:
        self.teacher, self.settings, self.pairs = teacher, distiller.settings, distiller.pairs
        self.layers = distiller.watched[1]
        self.watch, self.student_heads = Watch(teacher, self.layers), distiller.watch.heads

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        inputs = {key: value for key, value in batch.items() if key in INPUTS}
        mine: Step = model(**inputs)
        its = self.ask(inputs, batch.get("teacher_logits"), mine)
        count = (batch["labels"] != -100).sum()
        # Differences of near numbers: the losses are computed in fp32, whatever the models compute in.
        with torch.autocast(count.device.type, enabled=False):
            return self.total(mine, its, batch) * count, count

    def total(self, mine: Step, its: Step, batch: dict[str, Tensor]) -> Tensor:
        """The weighted sum of all losses, a mean over the texts of the batch."""
        settings, losses, mask = self.settings, self.settings.losses, batch["attention_mask"]
        total = torch.zeros((), device=mask.device)
        if settings.logits:
            gold = [batch[key] for key in ("start_positions", "end_positions") if key in batch] or [batch["labels"]]
            for student, teacher, labels in zip(mine.scores, its.scores, gold, strict=True):
                labels = labels.masked_fill((labels < 0) | (labels >= student.size(-1)), -100)
                part = losses.logits(student.float(), teacher.float(), labels, settings.temperature, settings.alpha)
                total = total + settings.logits / len(gold) * part
        if settings.hidden:
            for student, layer in zip(mine.hidden, self.pairs, strict=True):
                part = losses.hidden(student.float(), its.hidden[layer].float(), mask)
                total = total + settings.hidden / len(self.pairs) * part
        if settings.attention:
            for number, layer in enumerate(self.pairs):
                own, other = mine.qkv[number], its.qkv[number]
                q_s, k_s = (split_heads(own[name].float(), self.student_heads[number]) for name in "qk")
                q_t, k_t = (split_heads(other[name].float(), self.watch.heads[layer]) for name in "qk")
                part = losses.attention(q_s, k_s, q_t, k_t, mask)
                total = total + settings.attention / len(self.pairs) * part
        if settings.relations:
            student_last, teacher_last = mine.qkv[-1], its.qkv[-1]
            split = settings.relation_heads or self.watch.heads[self.layers[-1]]
            for x, y in map(tuple, settings.relation_pairs):
                its_pair = (teacher_last[x], teacher_last[y])
                part = relation_loss((student_last[x], student_last[y]), its_pair, mask, split)
                total = total + settings.relations / len(settings.relation_pairs) * part
        return total

    def ask(self, inputs: dict[str, Tensor], known: Tensor | None, mine: Step) -> Step:
        """What the teacher says to a batch: known beforehand, or by a pass without gradients, or not needed."""
        if known is not None:
            return Step([known], [], [])
        if self.settings.only_labels:
            return Step([scores.detach() for scores in mine.scores], [], [])
        if next(self.teacher.parameters()).device != inputs["input_ids"].device:
            self.teacher.to(inputs["input_ids"].device)
        with torch.no_grad():
            return _forward(self.teacher, self.watch, self.layers, bool(self.settings.hidden), inputs)


def _check_pair(teacher: Any, student: Any, settings: Distillation) -> None:
    for key, what in (("vocab_size", "tokens"), *((("num_labels", "labels"),) if settings.logits else ())):
        a, b = getattr(teacher.config, key), getattr(student.config, key)
        if a != b:
            raise DistillationError(
                f"the teacher knows {a:,} {what} and the student {b:,}; give both the same {key} (student_from does)"
            )


def _all_rows(rows: Sequence[Mapping[str, Any]], unlabelled: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every row with its number, by which the teacher's logits are found again; a label that is lacking is -1."""
    used = {"labels", *(key for key in LABELS if rows and key in rows[0])}
    bare = [{key: value for key, value in row.items() if key not in LABELS} for row in unlabelled]
    return [{**dict.fromkeys(used, UNLABELLED), **row, "row": number} for number, row in enumerate([*rows, *bare])]


def _collate(rows: Sequence[Mapping[str, Any]], pad_token_id: int, logits: Tensor | None) -> dict[str, Tensor]:
    batch = collate(rows, pad_token_id)
    numbers = batch.pop("row")
    if logits is not None:
        batch["teacher_logits"] = logits[numbers]  # (B, C)
    return batch


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all weights: which model this is, whatever it is called."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _teacher_logits(
    teacher: Any, rows: Sequence[Mapping[str, Any]], pad_token_id: int, wanted: str, folder: Path, digest: str
) -> Tensor:
    """The teacher's logits (rows, C), from the run's folder if they are those of this teacher on these rows."""
    precision, _ = choose_precision(wanted)
    ids = hashlib.sha256(repr([list(row["input_ids"]) for row in rows]).encode()).hexdigest()
    key = {"teacher": digest, "rows": ids, "precision": precision}
    file = Path(folder) / "teacher.safetensors"
    if file.is_file():
        try:
            with safe_open(file, "pt") as kept:
                if kept.metadata() == key:
                    found: Tensor = kept.get_tensor("logits")
                    return found
        except (OSError, SafetensorError):
            pass  # damaged: computed again
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher.to(device)
    logits: Tensor | None = None
    lengths = [len(row["input_ids"]) for row in rows]
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for numbers in sorted_batches(lengths, EVALUATION_TOKENS):
            batch = collate([{"attention_mask": [1] * lengths[i], **rows[i]} for i in numbers], pad_token_id)
            inputs = {key: value.to(device) for key, value in batch.items() if key in INPUTS}
            scores = teacher(**inputs).logits.float().cpu()  # (batch, C)
            logits = torch.empty(len(rows), scores.size(1)) if logits is None else logits
            logits[numbers] = scores
    assert logits is not None  # there is at least one row
    atomic_write(file, save({"logits": logits}, metadata=key))
    return logits


# --- texts without labels ---------------------------------------------------------------------------


def unlabelled_rows(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Features of texts whose labels nobody knows, or is to use; those of a file by ``classification.read_texts``."""
    kept = [cleaned for cleaned in map(clean, texts) if cleaned]
    encoded = encode(kept, tokenizer, max_length) if kept else []
    return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in encoded]


def bundled_texts(samples: Sequence[str] = BUNDLED_TEXTS) -> list[str]:
    """The texts of the bundled samples' training splits, without their labels."""
    texts = []
    for name in samples:
        if name not in BUNDLED_TEXTS:
            raise DistillationError(
                f"there is no bundled sample of texts {name!r}; there are {', '.join(BUNDLED_TEXTS)}"
            )
        lines = (hub.BUNDLED_DATA / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
        texts += [clean(json.loads(line)["text"]) for line in lines]
    return texts
