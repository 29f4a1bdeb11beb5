"""The one training loop, for pre-training, fine-tuning and distillation, on one device or many.

Read ``train`` first, then ``_Run.step``. A run lives in a folder (``run_folder``); killed at any moment
and started again with the same configuration it ends with the same weights, because its batches are a
pure function of seed and epoch, and a checkpoint holds everything else.
"""

import ctypes
import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn
from tqdm.auto import tqdm

from pangu_lab.config import Train
from pangu_lab.data.batches import plan_batches
from pangu_lab.errors import PanguLabError
from pangu_lab.run_folder import Log, StopRequest, claim, newest_checkpoint, read_log, read_place, save_checkpoint

# A batch in; out come the loss *summed* over its items, and how many items there were.
LossFunction = Callable[[nn.Module, dict[str, Tensor]], tuple[Tensor, Tensor]]
Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]
EpochCollate = Callable[[Sequence[Mapping[str, Any]], int], dict[str, Tensor]]
Evaluate = Callable[[nn.Module], dict[str, float]]


class AfterStep(Protocol):
    """What else happens to the weights after every update; pruning is one.

    Called with the bare model, the number of updates done and the number of all. What it remembers between two
    calls goes through ``state_dict`` into every checkpoint; ``repr`` tells its settings, by which a run is known.
    """

    def __call__(self, model: nn.Module, step: int, steps: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class TrainingError(PanguLabError):
    """The run cannot start or go on."""


class Interrupted(PanguLabError):
    """The user stopped the run; what was done is saved."""


@dataclass(frozen=True)
class Job:
    """What to train on, and how: everything, besides the model, that decides the final weights.

    Parameters
    ----------
    rows
        Features: mappings of lists and numbers; the length of ``input_ids`` is the row's.
    collate, loss
        Rows to a batch; model and batch to the summed loss and the number of items.
    evaluate, better
        Called after each epoch; ``better`` names the figure to keep the best weights by: higher is better.
    after_step
        Called after each update, on every process alike.
    name
        Whatever else decides the result (model id, data source): a run is resumed only under the same name.
    epoch_collate
        In place of ``collate`` where the batch depends on the epoch, too, as with dynamic masking. Its draws must
        be a function of rows and epoch alone.
    evaluate_every
        Steps between evaluations, beside those at the ends of epochs.
    seconds_per_token
        What a padded token takes at the peak of this machine's matrix products; with it, the log tells the share
        of that peak that a step reaches.
    """

    rows: Sequence[Mapping[str, Any]]
    collate: Collate
    loss: LossFunction
    epochs: int
    settings: Train
    evaluate: Evaluate | None = None
    better: str | None = None
    after_step: AfterStep | None = None
    name: str = ""
    epoch_collate: EpochCollate | None = None
    evaluate_every: int | None = None
    seconds_per_token: float | None = None


@dataclass
class Result:
    """How a run ended. ``log`` holds one entry a step and one an evaluation, as in ``log.jsonl``."""

    steps: int
    seconds: float = 0.0
    precision: str = "fp32"
    stopped_early: bool = False
    evaluations: list[dict[str, float]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)


def fingerprint(job: Job) -> dict[str, Any]:
    """What must be equal for a run to be resumed, key by key."""
    digest = hashlib.sha256()
    for row in job.rows:
        digest.update(repr(sorted(row.items())).encode())
    settings = job.settings.model_dump(exclude={"checkpoint_seconds"})
    settings["precision"], _ = choose_precision(job.settings.precision)
    also = {} if job.after_step is None else {"after_step": repr(job.after_step)}
    return {"name": job.name, "epochs": job.epochs, "rows": digest.hexdigest(), **settings, **also}


def cross_entropy_loss(
    model: nn.Module, batch: dict[str, Tensor], class_weights: Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the labels that are not -100, and their number.

    ``labels`` is ``(batch,)`` for classification, ``(batch, length)`` for one label a token. With
    ``class_weights`` ``(classes,)`` each label counts as much as its class weighs, in the sum and in the number.
    """
    labels = batch["labels"]
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    weights = None if class_weights is None else torch.tensor(class_weights, device=logits.device)
    loss = nn.functional.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), weights, ignore_index=-100, reduction="sum"
    )
    counted = labels != -100
    return loss, counted.sum() if weights is None else weights[labels[counted]].sum()


def choose_precision(wanted: str) -> tuple[str, str]:
    """The arithmetic of the matrix products, ``fp32`` or ``bf16``, and the reason as a text.

    ``auto`` takes bf16 where the device multiplies it several times faster than fp32.
    """
    if torch.cuda.is_available():
        able, where = torch.cuda.is_bf16_supported(), "this GPU"
    else:
        able, where = torch.cpu._is_amx_tile_supported(), "this CPU"
    if wanted == "auto":
        return ("bf16" if able else "fp32"), f"{where} has {'' if able else 'no '}matrix units for bf16"
    return wanted, "asked for"


def keep_freed_memory() -> None:
    """Have the C library reuse large blocks instead of returning them to the system after every step.

    A training step on a CPU frees and takes the same few hundred megabytes again; each time the system
    must clear the pages. Measured on two cores: a fifth of a step. Only glibc has the two switches.
    """
    if sys.platform == "linux" and not torch.cuda.is_available():
        try:
            libc = ctypes.CDLL("libc.so.6")
            mmap_threshold, trim_threshold = -3, -1
            libc.mallopt(mmap_threshold, 2**30)
            libc.mallopt(trim_threshold, 2**31 - 1)
        except (OSError, AttributeError):
            pass  # another C library: slower, not wrong


def prefer_fast_attention(model: nn.Module) -> None:
    """On a CPU, attention by plain matrix products: its backward pass is faster there than sdpa's kernel."""
    choose = getattr(model, "set_attn_implementation", None)
    if choose and not torch.cuda.is_available():
        choose("eager")


def set_dropout(model: nn.Module, probability: float | None) -> None:
    """Set every dropout of the model; ``None`` leaves the model as it is."""
    if probability is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability


def learning_rate_factor(step: int, steps: int, settings: Train) -> float:
    """The learning rate of ``step`` (from 0) as a part of its peak: linear warm-up, then the schedule."""
    warmup = round(settings.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    match settings.schedule:
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0


def make_optimizer(model: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """AdamW; biases and normalization weights, which have one dimension, are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.adam_beta2), fused=True)


def train(model: nn.Module, job: Job, folder: Path, quiet: bool = False, tensorboard: bool = True) -> Result:
    """Train ``model`` in place; ``folder`` makes the run resumable.

    A folder that holds an unfinished run of the same job is resumed; one of another job is refused.
    Under ``torchrun`` or ``accelerate launch`` each batch is shared among the processes.

    Raises
    ------
    TrainingError
        No rows, or a loss that is not finite.
    RunFolderError
        The folder holds another job's run, or cannot be written.
    Interrupted
        Ctrl-C or SIGTERM; the checkpoint is written first.
    """
    if len(job.rows) == 0:
        raise TrainingError("there are no rows to train on; give a data set with at least one")
    precision, reason = choose_precision(job.settings.precision)
    keep_freed_memory()
    prefer_fast_attention(model)
    set_seed(job.settings.seed)
    set_dropout(model, job.settings.dropout)
    mixed = "bf16" if precision == "bf16" else "no"
    AcceleratorState._reset_state()  # it remembers the first run's precision, and a notebook trains more than once
    accelerator = Accelerator(mixed_precision=mixed, cpu=not torch.cuda.is_available())
    run = _Run(accelerator, model, job, folder)
    claim(folder, fingerprint(job), write=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    start, stop = run.resume(), StopRequest()
    result = Result(run.steps, precision=precision)
    bar = tqdm(
        # Padded tokens, not steps: they are what costs, so the time left is honest.
        total=run.tokens_before(run.steps),
        initial=run.tokens_before(start),
        unit="tok",
        unit_scale=True,
        desc=f"{precision} ({reason})",
        disable=quiet or not accelerator.is_main_process,
    )
    with bar, stop.listening(), Log(folder, start, accelerator.is_main_process, tensorboard) as log:
        saved_at = time.monotonic()
        for step in range(start, run.steps):
            began = time.monotonic()
            entry = run.step(step)
            took = time.monotonic() - began
            run.seconds += took
            speed = {"tokens_per_second": round(entry["tokens"] / took)}
            if job.seconds_per_token is not None:
                speed["flops_utilization"] = round(entry["tokens"] * job.seconds_per_token / took, 4)
            log.write(entry | speed)
            bar.update(entry["tokens"])
            bar.set_postfix(loss=f"{entry['loss']:.3f}", refresh=False)
            if run.evaluates(step) and job.evaluate is not None:
                log.write({"step": step + 1, "epoch": entry["epoch"], **run.evaluate(step)})
                if run.patience_is_over():
                    result.stopped_early, result.steps = True, step + 1
                    break
            due = time.monotonic() - saved_at >= job.settings.checkpoint_seconds
            if (stop.requested or due) and step + 1 < run.steps:
                save_checkpoint(accelerator, folder, run.place(step + 1))
                saved_at = time.monotonic()
            if stop.requested:
                told = f"stopped after step {step + 1} of {run.steps}"
                raise Interrupted(f"{told}; start the same command again to go on from there")
    run.take_best()
    result.seconds, result.evaluations, result.log = run.seconds, run.evaluations, read_log(folder)
    return result


class _Run:
    """The state of one run: model, optimizer, the plan of all batches, and what was measured so far."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, job: Job, folder: Path):
        self.accelerator, self.job, self.folder = accelerator, job, folder
        optimizer = make_optimizer(model, job.settings)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        if job.after_step is not None:
            accelerator.register_for_checkpointing(job.after_step)
        self.lengths = [len(row["input_ids"]) for row in job.rows]
        # One entry a step: the batches of row numbers whose gradients are added up for it.
        self.plan: list[list[list[int]]] = []
        self.epoch_ends: list[int] = []
        settings = job.settings
        for epoch in range(job.epochs):
            batches = plan_batches(self.lengths, settings.batch_size, settings.batch_tokens, settings.seed, epoch)
            size = settings.accumulation
            self.plan += [batches[i : i + size] for i in range(0, len(batches), size)]
            self.epoch_ends.append(len(self.plan))
        self.steps = len(self.plan)
        self.seconds = 0.0
        self.evaluations: list[dict[str, float]] = []

    def ends_epoch(self, step: int) -> bool:
        return step + 1 in self.epoch_ends

    def evaluates(self, step: int) -> bool:
        every = self.job.evaluate_every
        return self.ends_epoch(step) or (every is not None and (step + 1) % every == 0)

    def tokens_before(self, step: int) -> int:
        """Tokens with padding of all steps before ``step``."""
        return sum(map(self._tokens, self.plan[:step]))

    def _tokens(self, batches: list[list[int]]) -> int:
        return sum(len(rows) * max(self.lengths[row] for row in rows) for rows in batches)

    def step(self, step: int) -> dict[str, Any]:
        """Forward, backward and one update; the figures for the log."""
        accelerator, settings = self.accelerator, self.job.settings
        rate = settings.learning_rate * learning_rate_factor(step, self.steps, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        epoch = sum(step >= end for end in self.epoch_ends)
        local = [self._local_batch(rows, epoch) for rows in self.plan[step]]
        # Gradients of the *summed* loss are added up and divided by the number of items at the end, so that
        # neither accumulation nor the number of processes changes what is computed.
        total = torch.zeros(2, device=accelerator.device)  # loss, items
        for i, batch in enumerate(local):
            last = i == len(local) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    loss, items = self.job.loss(self.model, batch)
                accelerator.backward(loss)
            total += torch.stack([loss.detach().float(), items.float()])
        total = accelerator.reduce(total, "sum")
        items = total[1].clamp(min=1)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        # The processes' gradients were averaged; their sum is wanted.
        torch._foreach_mul_(gradients, float(accelerator.num_processes / items))
        norm = accelerator.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        mean_loss = float(total[0] / items)
        if not math.isfinite(mean_loss):
            raise TrainingError(
                f"step {step + 1}: the loss is {mean_loss}; lower train.learning_rate "
                f"(now {settings.learning_rate:g}) or set train.precision to fp32"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.job.after_step is not None:
            self.job.after_step(accelerator.unwrap_model(self.model), step + 1, self.steps)
        return {
            "step": step + 1,
            "epoch": round(self._epochs_done(step + 1), 4),
            "loss": mean_loss,
            "learning_rate": rate,
            "grad_norm": float(norm),
            "tokens": self._tokens(self.plan[step]),
        }

    def _epochs_done(self, steps: int) -> float:
        begins = [0, *self.epoch_ends]
        epoch = next(i for i, end in enumerate(self.epoch_ends) if steps <= end)
        return epoch + (steps - begins[epoch]) / (begins[epoch + 1] - begins[epoch])

    def _local_batch(self, rows: list[int], epoch: int) -> dict[str, Tensor]:
        """This process's share of a batch. One left without a row computes a row that counts for nothing."""
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        chosen = [self.job.rows[row] for row in mine or rows[:1]]
        batch = self.job.epoch_collate(chosen, epoch) if self.job.epoch_collate else self.job.collate(chosen)
        if not mine:
            batch |= {key: torch.full_like(value, -100) for key, value in batch.items() if "label" in key}
        return {key: value.to(self.accelerator.device) for key, value in batch.items()}

    def evaluate(self, step: int) -> dict[str, float]:
        assert self.job.evaluate is not None
        self.model.eval()
        figures = self.job.evaluate(self.accelerator.unwrap_model(self.model))
        self.evaluations.append({"step": step + 1, **figures})
        if self.job.better is not None and self._best() == len(self.evaluations) - 1:
            self._keep_weights()
        return figures

    def _best(self) -> int:
        watched = [entry[str(self.job.better)] for entry in self.evaluations]
        return watched.index(max(watched))

    def patience_is_over(self) -> bool:
        patience = self.job.settings.patience
        if patience is None or self.job.better is None:
            return False
        return len(self.evaluations) - 1 - self._best() >= patience

    def _keep_weights(self) -> None:
        if self.accelerator.is_main_process:
            fresh = self.folder / "best.pt.new"
            torch.save(self.accelerator.unwrap_model(self.model).state_dict(), fresh)
            os.replace(fresh, self.folder / "best.pt")

    def take_best(self) -> None:
        """Leave the best weights in the model, where a figure to judge them by was named."""
        self.accelerator.wait_for_everyone()
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        # Accelerate leaves a forward of its own on the model, under mixed precision one that goes on computing in
        # bf16; a model that was trained must compute as one that was loaded.
        vars(model).pop("forward", None)
        if self.job.better is not None and self.evaluations:
            best = torch.load(self.folder / "best.pt", map_location=self.accelerator.device, weights_only=True)
            model.load_state_dict(best)
        model.eval()

    def place(self, step: int) -> dict[str, Any]:
        return {"step": step, "seconds": self.seconds, "evaluations": self.evaluations}

    def resume(self) -> int:
        """The step to go on from: 0 for a new run, else that of the newest checkpoint, its state loaded."""
        checkpoint = newest_checkpoint(self.folder)
        if checkpoint is None:
            return 0
        self.accelerator.load_state(str(checkpoint))
        place = read_place(checkpoint)
        self.seconds, self.evaluations = place["seconds"], place["evaluations"]
        return int(place["step"])
