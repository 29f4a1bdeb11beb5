"""What a run leaves on disk, so that it can be killed at any moment and lose nothing that matters.

``run.json`` says which job the folder belongs to, ``checkpoint/`` holds the newest whole state,
``log.jsonl`` one entry a step. Everything takes its final name only when it is whole.
"""

import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import Accelerator

from pangu_lab.errors import PanguLabError
from pangu_lab.files import atomic_write

_CHECKPOINTS = ("checkpoint", "checkpoint.new", "checkpoint.old")


class RunFolderError(PanguLabError):
    """The folder belongs to another run, or cannot be written."""


def claim(folder: Path, fingerprint: dict[str, Any], write: bool) -> None:
    """Mark ``folder`` as this job's; refuse it if it is another's, naming the first thing that differs."""
    known = folder / "run.json"
    if not known.is_file():
        if write:
            atomic_write(known, json.dumps(fingerprint, indent=1))
        return
    try:
        before = json.loads(known.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunFolderError(f"{known}: cannot be read; delete the folder, or start afresh with --fresh") from None
    for key, value in fingerprint.items():
        if before.get(key) != value:
            told = "the training rows differ" if key == "rows" else f"{key} was {before.get(key)!r}, is {value!r} now"
            raise RunFolderError(
                f"{folder.name}: this run's folder holds another run ({told}); "
                "give another --run name, or start afresh with --fresh"
            )


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; a kill between two renames can leave it under another name."""
    whole = [folder / name for name in _CHECKPOINTS if (folder / name / "place.json").is_file()]
    return max(whole, key=lambda path: read_place(path)["step"], default=None)


def read_place(checkpoint: Path) -> dict[str, Any]:
    place: dict[str, Any] = json.loads((checkpoint / "place.json").read_text(encoding="utf-8"))
    return place


def save_checkpoint(accelerator: Accelerator, folder: Path, place: dict[str, Any]) -> None:
    """Write the accelerator's state beside the old checkpoint, then take its place: at no moment is there none."""
    fresh = folder / "checkpoint.new"
    if accelerator.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        with _quiet_about_tied_weights():
            accelerator.save_state(str(fresh))
    except (OSError, RuntimeError) as error:  # safetensors and torch wrap a full disk each in its own way
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunFolderError(f"{fresh}: the checkpoint cannot be written ({reason}); free some space") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        # Written last: a folder with a place in it is a whole checkpoint.
        atomic_write(fresh / "place.json", json.dumps(place))
        current, old = folder / "checkpoint", folder / "checkpoint.old"
        shutil.rmtree(old, ignore_errors=True)
        if current.exists():
            os.replace(current, old)
        os.replace(fresh, current)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


@contextmanager
def _quiet_about_tied_weights() -> Iterator[None]:
    """Weights that are one tensor under two names are saved once, as they should be; accelerate warns of it each time."""
    logger = logging.getLogger("accelerate.utils.other")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def drop_checkpoints(folder: Path) -> None:
    """A finished run needs no place to go on from."""
    for name in _CHECKPOINTS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("best.pt", "best.pt.new"):
        (folder / name).unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Forget a run: its checkpoints, weights, log and description."""
    drop_checkpoints(folder)
    for name in ("tensorboard", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("run.json", "log.jsonl", "record.json"):
        (folder / name).unlink(missing_ok=True)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run's log, in order; a line cut short by a kill is passed over."""
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


class Log:
    """``log.jsonl`` and TensorBoard; when a run is resumed, entries after its checkpoint are dropped first."""

    def __init__(self, folder: Path, start_step: int, active: bool, tensorboard: bool):
        self.file = self.board = None
        if not active:
            return
        kept = [entry for entry in read_log(folder) if entry["step"] <= start_step]
        atomic_write(folder / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in kept))
        self.file = open(folder / "log.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # a second to import, and seldom wanted

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def __enter__(self) -> "Log":
        return self

    def write(self, entry: dict[str, Any]) -> None:
        if self.file is None:
            return
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        if self.board is not None:
            for key, value in entry.items():
                if key != "step" and isinstance(value, int | float):
                    self.board.add_scalar(key, value, entry["step"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()
        if self.board is not None:
            self.board.close()


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a wish that the loop honors between two steps."""

    requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        before: dict[signal.Signals, Any] = {}

        def note(*_: Any) -> None:
            self.requested = True

        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                before[number] = signal.signal(number, note)
            except ValueError:
                break  # not the main thread: the default stands
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
