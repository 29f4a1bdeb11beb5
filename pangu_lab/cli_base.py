"""What all commands share: the app, its options, where things are, and how they are shown."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pangu_lab.config import MODES, Config, load_config
from pangu_lab.errors import PanguLabError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="An interactive course on large pre-trained language models, and the training, compression and grading "
    "code behind it. Start with [bold]pangu-lab doctor[/bold], then [bold]pangu-lab lab[/bold].",
)
out, err = Console(highlight=False), Console(stderr=True, highlight=False)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A YAML file; default: labs/config.yaml.", metavar="FILE")
]
ModeName = Annotated[
    str | None, typer.Option("--mode", help="smoke (seconds), lesson (a laptop, minutes) or full (a GPU).")
]
Mirror = Annotated[
    Path | None,
    typer.Option("--mirror", help="A folder laid out as the hub: MIRROR/stanfordnlp/imdb/….", metavar="FOLDER"),
]
TaskName = Annotated[str, typer.Argument(help="The task: imdb, tweets or squad.", metavar="TASK")]
ModelFolder = Annotated[
    Path | None, typer.Option("--model", help="A saved model; default: the newest run's.", metavar="FOLDER")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def plain(text: str) -> str:
    return text.replace("[", r"\[")


def settings_from(file: Path | None, mode: str | None = None, mirror: Path | None = None, **train: Any) -> Config:
    if mode is not None and mode not in MODES:
        raise PanguLabError(f"--mode is {mode!r}; it must be one of {', '.join(MODES)}")
    mirrored = {"mirror": str(mirror.resolve())} if mirror else {}
    return load_config(file, mode=mode, train=train, paths=mirrored)


def project(folder: str) -> Path:
    """A top-level folder of the project, from here or from where the package is."""
    for base in (Path.cwd(), Path.cwd().parent, Path(__file__).resolve().parent.parent):
        if (base / folder).is_dir() and (base / "solutions").is_dir():
            return base / folder
    raise PanguLabError(f"there is no folder {folder}/ here; run this in a clone of the project")


def shown(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def newest_model(config: Config, task: str) -> Path:
    """The model of the task's newest finished run: of those named after it, else of any."""
    from pangu_lab.paper import records_by_run

    folders = [
        run / "model"
        for run, record in records_by_run(config.paths.runs).items()
        if record.task == task and (run / "model" / "config.json").is_file()
    ]
    named = [folder for folder in folders if folder.parent.name == task or folder.parent.name.startswith(f"{task}-")]
    saved = sorted(named or folders, key=lambda folder: (folder / "config.json").stat().st_mtime)
    if not saved:
        raise PanguLabError(f"there is no trained model of {task} yet; run `pangu-lab train {task}` or give --model")
    return saved[-1]


def print_metrics(title: str, metrics: dict[str, Any]) -> None:
    table = Table(title=plain(title), title_justify="left", box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("method", style="dim")
    for name, metric in metrics.items():
        table.add_row(name, f"{metric.value:.3f}", f"{metric.low:.3f} – {metric.high:.3f}", metric.method)
    out.print(table)
