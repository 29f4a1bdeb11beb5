"""A task's run from end to end: trained once, found again, recorded."""

from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import PartialState
from torch import nn

from pangu_lab import run_folder
from pangu_lab.results import Record, Value, load_record, save_record
from pangu_lab.tasks.metrics import Metric
from pangu_lab.training import Job, Result, fingerprint, train

RECORD, MODEL = "record.json", "model"


def train_or_find(model: nn.Module, job: Job, folder: Path, quiet: bool) -> tuple[Record | None, Result]:
    """Train ``model``; or, if this very job was finished in ``folder`` before, its record and how it went.

    With a record, the weights are those saved in ``folder/model``: ``model`` was not touched.
    """
    if not (folder / RECORD).is_file():
        return None, train(model, job, folder, quiet=quiet)
    run_folder.claim(folder, fingerprint(job), write=False)
    log = run_folder.read_log(folder)
    return load_record(folder / RECORD), Result(steps=sum("loss" in entry for entry in log), log=log)


def finish(folder: Path, record: Record, save: Callable[[Path], None]) -> None:
    """Save the model, then the record that says the run is finished; checkpoints are not needed any more."""
    if PartialState().is_main_process:
        save(folder / MODEL)
        save_record(record, folder / RECORD)
        run_folder.drop_checkpoints(folder)
    PartialState().wait_for_everyone()


def record_split(folder: Path, tested: Record, split: str, metrics: Mapping[str, Metric]) -> Record:
    """Record what the run that ``tested`` tells of reaches on its train or validation rows, beside its own record."""
    values = {name: Value(**vars(metric)) for name, metric in metrics.items()}
    record = tested.model_copy(update={"split": split, "metrics": values})
    if PartialState().is_main_process:
        save_record(record, folder / f"record-{split}.json")
    return record
