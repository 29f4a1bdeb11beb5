"""`pangu-lab …`: every capability of the package from the command line.

Each command imports what it needs when it runs, so that ``--help`` answers at once. A foreseeable mistake
is one sentence and exit code 2; Ctrl-C leaves a run that the same command resumes.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pangu_lab import __version__
from pangu_lab.config import MODES, Config, load_config
from pangu_lab.errors import PanguLabError
from pangu_lab.grading.commands import grade, lms
from pangu_lab.terminal import err, out
from pangu_lab.terminal import plain as _plain
from pangu_lab.terminal import shown as _shown

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="An interactive course on large pre-trained language models, and the training, compression and grading "
    "code behind it. Start with [bold]pangu-lab doctor[/bold], then [bold]pangu-lab lab[/bold].",
)
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
TaskName = Annotated[str, typer.Argument(help="The task: imdb.", metavar="TASK")]
ModelFolder = Annotated[
    Path | None, typer.Option("--model", help="A saved model; default: the newest run's.", metavar="FOLDER")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def main() -> None:
    """Entry point: turns our errors into a sentence and an exit code."""
    try:
        # Outside of its standalone mode, typer hands the exit code of typer.Exit back instead of leaving with it.
        code = app(standalone_mode=False)
        if code:
            sys.exit(code)
    except PanguLabError as error:
        err.print(f"[red]pangu-lab:[/red] {_plain(str(error))}", soft_wrap=True)
        sys.exit(130 if type(error).__name__ == "Interrupted" else 2)
    except KeyboardInterrupt:
        err.print("pangu-lab: stopped")
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except BrokenPipeError:  # the reader of our output, head say, has had enough
        sys.exit(0)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # typer's own: a wrong option or argument
            error.show()
            sys.exit(error.exit_code)
        raise


def _config(file: Path | None, mode: str | None = None, mirror: Path | None = None, **train: Any) -> Config:
    if mode is not None and mode not in MODES:
        raise PanguLabError(f"--mode is {mode!r}; it must be one of {', '.join(MODES)}")
    mirrored = {"mirror": str(mirror.resolve())} if mirror else {}
    return load_config(file, mode=mode, train=train, paths=mirrored)


def _task(name: str) -> Any:
    from pangu_lab.data.text_tasks import TASKS

    if name not in TASKS:
        raise PanguLabError(f"{name!r} is not a task; there is {', '.join(TASKS)}")
    return TASKS[name]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


@app.command()
def train(
    task: TaskName,
    mode: ModeName = None,
    run: Annotated[str | None, typer.Option(help="Name of the run's folder below paths.runs.")] = None,
    train_on: Annotated[
        str,
        typer.Option(
            help="task: the data set's own train split; bundled: the course's sample, tested on the task's rows."
        ),
    ] = "task",
    bundled: Annotated[bool, typer.Option("--bundled", help="Train and test on the bundled sample.")] = False,
    model: Annotated[str | None, typer.Option(help="Another encoder: a hub id or a folder.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split, the head and the order.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a batch, at most.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.")] = None,
    rows: Annotated[int | None, typer.Option(help="Training rows.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the run's folder holds and start again.")] = False,
    mirror: Mirror = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a pre-trained encoder on a task, test it, save it and its record.

    A run that was stopped, by Ctrl-C or a crash, goes on when the same command is given again.

    Example: pangu-lab train imdb --mode lesson
    """
    from pangu_lab.tasks.classification import fine_tune, load_splits

    spec = _task(task)
    if train_on not in ("task", "bundled"):
        raise PanguLabError(f"--train-on is {train_on!r}; it must be task or bundled")
    settings = _config(config, mode, mirror, seed=seed, learning_rate=learning_rate, batch_size=batch_size)
    sizes = {name: value for name, value in {"epochs": epochs, "train_rows": rows}.items() if value is not None}
    if sizes:
        settings = load_config(
            config,
            mode=mode,
            train=settings.train.model_dump(),
            **{task: {settings.mode: sizes}},
            paths={"mirror": str(mirror.resolve())} if mirror else {},
        )
    splits = load_splits(
        spec, settings, seed=settings.train.seed, bundled=bundled, train_on_bundled=train_on == "bundled"
    )
    first = os.environ.get("RANK", "0") == "0"  # of several processes under torchrun, one speaks
    if first and not as_json:
        out.print(f"data: {_plain(str(splits.source))}", soft_wrap=True)
        for note in splits.notes:
            out.print(f"  {_plain(note)}", style="dim", soft_wrap=True)
    name = run or "-".join(
        [
            task,
            settings.mode,
            splits.source.kind,
            *(["on-bundled"] if train_on == "bundled" else []),
            str(settings.train.seed),
        ]
    )
    fitted = fine_tune(task, settings, run=name, splits=splits, fresh=fresh, quiet=as_json, model_id=model)
    record = fitted.record
    if as_json and first:
        out.print_json(record.model_dump_json())
    if as_json or not first:
        return
    _print_metrics(f"{task}, {record.split}: {record.rows['test']:,} rows of {splits.source}", fitted.metrics)
    out.print(f"trained in {record.seconds:.0f} s; saved in {_shown(settings.paths.runs / name)}")


@app.command()
def evaluate(
    task: TaskName,
    model: ModelFolder = None,
    file: Annotated[
        Path | None, typer.Option(help="A .csv, .tsv, .jsonl or .parquet with columns text and label.", metavar="FILE")
    ] = None,
    bundled: Annotated[bool, typer.Option("--bundled", help="Test on the bundled sample.")] = False,
    mode: ModeName = None,
    mirror: Mirror = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Measure a saved model on a task's test rows, or on a file of your own."""
    from pangu_lab.data.text_tasks import checked_rows, load_splits
    from pangu_lab.tasks.classification import evaluate as measure
    from pangu_lab.tasks.classification import load_classifier, read_texts

    spec, settings = _task(task), _config(config, mode, mirror)
    classifier = load_classifier(model or _newest_model(settings, task))
    if file:
        texts, labels = read_texts(file)
        if labels is None:
            raise PanguLabError(
                f"{file}: has no column 'label'; add one with the right answers, or use `predict --file`"
            )
        rows, told = checked_rows(texts, labels, spec, str(file)), str(file)
    else:
        splits = load_splits(spec, settings, seed=settings.train.seed, bundled=bundled)
        rows, told = splits.test, str(splits.source)
    metrics, _ = measure(classifier, rows, spec, quiet=as_json)
    if as_json:
        out.print_json(
            json.dumps({"rows": len(rows), "data": told, "metrics": {k: vars(v) for k, v in metrics.items()}})
        )
    else:
        _print_metrics(f"{task}: {len(rows):,} rows of {told}", metrics)


@app.command()
def predict(
    task: TaskName,
    texts: Annotated[
        list[str] | None, typer.Argument(help="One text or more, each in quotes.", metavar="[TEXT]...")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Texts from a file: .txt (one a line), .csv, .tsv, .jsonl, .parquet.", metavar="FILE"),
    ] = None,
    model: ModelFolder = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Label a text: pangu-lab predict imdb "this film was a waste of an evening"."""
    from pangu_lab.tasks.classification import load_classifier, read_texts
    from pangu_lab.tasks.classification import predict as classify

    _task(task)
    settings = _config(config)
    wanted = list(texts or []) + (read_texts(file)[0] if file else [])
    if not wanted:
        raise PanguLabError("there is nothing to classify; give a text in quotes or --file")
    classifier = load_classifier(model or _newest_model(settings, task))
    probabilities = classify(classifier, wanted)
    answers: list[dict[str, Any]] = [
        {"text": text, "label": classifier.labels[int(row.argmax())], "probability": round(float(row.max()), 4)}
        for text, row in zip(wanted, probabilities, strict=True)
    ]
    if as_json:
        out.print_json(json.dumps(answers, ensure_ascii=False))
        return
    for answer in answers:
        shown = answer["text"] if len(answer["text"]) <= 70 else answer["text"][:67] + "…"
        out.print(f"{answer['label']:>9}  {answer['probability']:.3f}  {_plain(shown)}", soft_wrap=True)


@app.command()
def doctor(config: ConfigFile = None, mirror: Mirror = None, as_json: AsJson = False) -> None:
    """Is this machine ready? Versions, cores, memory, disk, hub, data, weights, minutes a lab; remedies."""
    from pangu_lab.doctor import examine, render
    from pangu_lab.exercises import LABS

    report = examine(_config(config, mirror=mirror), labs=list(LABS.values()))
    if as_json:
        out.print_json(json.dumps(report.to_dict()))
    else:
        out.print(render(report))
    raise typer.Exit(0 if report.ok else 1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context, config: ConfigFile = None) -> None:
    """Open JupyterLab on the labs; further options go to JupyterLab, such as --no-browser or --port 8890."""
    import importlib.util

    labs = _project("labs")
    if importlib.util.find_spec("jupyterlab") is None:
        raise PanguLabError("JupyterLab is not installed; run pip install jupyterlab, or make setup")
    _config(config)  # a mistake in labs/config.yaml is told here, not in the first cell
    never = "jupyterlab.handlers.announcements.NeverCheckForUpdate"  # a laptop without a network waits for it
    quiet = [f"--LabApp.check_for_updates_class={never}", "--LabApp.news_url=None"]
    arguments = [sys.executable, "-m", "jupyterlab", *quiet, *context.args]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # in a container one is root, and JupyterLab asks for this
        arguments.append("--allow-root")
    os.chdir(labs)
    os.execv(sys.executable, arguments)


@app.command()
def demo(
    mode: ModeName = None,
    output: Annotated[Path, typer.Option(help="The report.", metavar="FILE")] = Path("report.html"),
    only: Annotated[list[str] | None, typer.Option(help="Only notebooks whose name contains this.")] = None,
    record: Annotated[
        Path | None, typer.Option(help="Also write the measured times and memory there, as JSON.", metavar="FILE")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Run the whole course headless and write one self-contained HTML page with every figure and table."""
    from pangu_lab.demo import run_demo

    settings = _config(config, mode)
    results = run_demo(_project("solutions"), output, settings, only or [], record)
    failed = [result.name for result in results if result.error]
    out.print(f"{len(results) - len(failed)} of {len(results)} notebooks ran; the report is {_shown(output)}")
    for result in results:
        if result.error:
            err.print(f"[red]{result.name}:[/red] {_plain(result.error)}")
    raise typer.Exit(1 if failed else 0)


@app.command()
def release(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if labs/ is not up to date.")] = False,
) -> None:
    """Make the students' notebooks in labs/ from solutions/, and prove that no answer is in them."""
    from pangu_lab.grading.release import release as make_release

    bad = False
    for released in make_release(_project("solutions"), _project("labs"), check=check):
        bad |= check and released.status != "unchanged"
        out.print(f"{released.status:>10}  {_shown(released.path)}")
    raise typer.Exit(1 if bad else 0)


app.command()(grade)
app.command()(lms)


@app.command("format")
def format_command(
    notebooks: Annotated[list[Path] | None, typer.Argument(help="Default: all of solutions/.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if a notebook would change.")] = False,
    run: Annotated[
        bool, typer.Option("--execute", help="Run them first, top to bottom, and save the outputs.")
    ] = False,
) -> None:
    """Strip from notebooks what changes without meaning, set the graders' metadata, report what is too large."""
    from pangu_lab.grading.notebook_format import format_files

    bad = False
    paths = notebooks or sorted(_project("solutions").glob("*.ipynb"))
    if run and not check:
        from pangu_lab.demo import execute_in_place

        for path in paths:
            out.print(f"{execute_in_place(path):8.0f} s  {_shown(path)} executed")
    for report in format_files(paths, check=check):
        bad |= (check and report.changed) or bool(report.findings)
        out.print(f"{'changed' if report.changed else 'unchanged':>10}  {_shown(report.path)}")
        for finding in report.findings:
            out.print(f"            {_plain(finding)}")
    raise typer.Exit(1 if bad else 0)


@app.command()
def progress(as_json: AsJson = False) -> None:
    """Labs, exercises, tries and hints so far, as a table."""
    from pangu_lab.lab import progress_record
    from pangu_lab.progress import progress_table

    rows = progress_table(progress_record())
    if as_json:
        out.print_json(json.dumps(rows))
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0] if rows else ["nothing yet"]:
        table.add_column(str(name), justify="left" if name in ("lab", "exercise", "state") else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    out.print(table)


@app.command()
def results(
    write: Annotated[Path | None, typer.Option(help="Fill the tables of this Markdown file.", metavar="FILE")] = None,
    add: Annotated[Path | None, typer.Option(help="Take a run's record.json into the results.", metavar="FILE")] = None,
    name: Annotated[str, typer.Option(help="With --add: the record's name there.")] = "",
) -> None:
    """Render the table of measured results from the records in benchmarks/results."""
    from pangu_lab import results as tables
    from pangu_lab.files import atomic_write

    folder = _project("benchmarks") / "results"
    if add:
        record = tables.load_record(add)
        stem = name or "-".join([record.task, record.mode, record.data_source, *map(str, record.seeds)])
        tables.save_record(record, folder / f"run-{stem}.json")
    if write:
        atomic_write(write, tables.render_readme(write.read_text(encoding="utf-8"), folder))
    if not write and not add:
        print(tables.results_table(tables.load_records(folder)))


def _project(folder: str) -> Path:
    """A top-level folder of the project, from here or from where the package is."""
    for base in (Path.cwd(), Path.cwd().parent, Path(__file__).resolve().parent.parent):
        if (base / folder).is_dir() and (base / "solutions").is_dir():
            return base / folder
    raise PanguLabError(f"there is no folder {folder}/ here; run this in a clone of the project")


def _newest_model(config: Config, task: str) -> Path:
    saved = sorted(config.paths.runs.glob(f"{task}-*/model/config.json"), key=lambda path: path.stat().st_mtime)
    if not saved:
        raise PanguLabError(f"there is no trained model of {task} yet; run `pangu-lab train {task}` or give --model")
    return saved[-1].parent


def _print_metrics(title: str, metrics: dict[str, Any]) -> None:
    table = Table(title=_plain(title), title_justify="left", box=None, pad_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("method", style="dim")
    for name, metric in metrics.items():
        table.add_row(name, f"{metric.value:.3f}", f"{metric.low:.3f} – {metric.high:.3f}", metric.method)
    out.print(table)


if __name__ == "__main__":
    main()
