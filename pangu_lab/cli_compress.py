"""`pangu-lab compress|measure`: make a fine-tuned model smaller and faster by a recipe, and measure what it cost."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pangu_lab.cli_base import (
    AsJson,
    ConfigFile,
    Mirror,
    ModelFolder,
    ModeName,
    app,
    newest_model,
    out,
    plain,
    settings_from,
    shown,
)
from pangu_lab.errors import PanguLabError

TextTaskName = Annotated[str, typer.Argument(help="The task: imdb or tweets.", metavar="TASK")]
Shapes = Annotated[str, typer.Option(help="Batch sizes and lengths to time, as 1x128,8x128.", metavar="SHAPES")]
Repeats = Annotated[int, typer.Option(min=3, help="Timed rounds a shape.")]
TestRows = Annotated[int | None, typer.Option(min=1, help="Test rows; default: the mode's.")]


def _task(name: str) -> Any:
    from pangu_lab.data.text_tasks import TASKS

    if name not in TASKS:
        raise PanguLabError(f"{name!r} cannot be compressed from here; there are {', '.join(TASKS)}")
    return TASKS[name]


def _shapes(text: str) -> list[tuple[int, int]]:
    try:
        shapes = [(int(batch), int(length)) for batch, length in (part.split("x") for part in text.split(","))]
        if min(min(shape) for shape in shapes) < 1:
            raise ValueError
    except ValueError:
        raise PanguLabError(f"--shapes is {text!r}; give batch x length, as 1x128,8x128") from None
    return shapes


def _rows(task: Any, settings: Any, count: int | None) -> tuple[Any, Any]:
    from pangu_lab.data.text_tasks import load_splits

    sizes = getattr(settings, task.name)
    if count is not None:
        size = sizes.size(settings.mode).model_copy(update={"test_rows": count})
        settings = settings.model_copy(update={task.name: sizes.model_copy(update={settings.mode: size})})
    return load_splits(task, settings, seed=settings.train.seed), settings


def _report(measured: Any, splits: Any, what: str, record: Path | None, figure: Path | None, as_json: bool) -> None:
    from pangu_lab.compression import compare
    from pangu_lab.files import atomic_write

    data = compare.record(measured, len(splits.test), str(splits.source.id) + f" ({splits.source.kind})", what)
    if record:
        atomic_write(record, json.dumps(data, indent=1) + "\n")
    if figure:
        from pangu_lab.viz.compression import tradeoff_figure

        figure.parent.mkdir(parents=True, exist_ok=True)
        tradeoff_figure(measured, f"{len(splits.test):,} test rows of {splits.source}").savefig(figure)
    if as_json:
        out.print_json(json.dumps(data))
        return
    out.print(f"{len(splits.test):,} test rows of {plain(str(splits.source))}", soft_wrap=True)
    print(compare.table(measured))


@app.command()
def compress(
    task: TextTaskName,
    recipe: Annotated[Path, typer.Option(help="A YAML file of steps; see benchmarks/recipes.", metavar="FILE")],
    model: ModelFolder = None,
    run: Annotated[str | None, typer.Option(help="Name of the folder below paths.runs.")] = None,
    shapes: Shapes = "1x128,8x128",
    repeats: Repeats = 10,
    test_rows: TestRows = None,
    record: Annotated[Path | None, typer.Option(help="Write the figures there, as JSON.", metavar="FILE")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the trade-off there.", metavar="FILE")] = None,
    mode: ModeName = None,
    mirror: Mirror = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Prune, distil, trim and quantise a fine-tuned model by a recipe; then measure every stage of it.

    Stopped and started again, it goes on at the step where it was.

    Example: pangu-lab compress imdb --recipe benchmarks/recipes/small.yaml
    """
    from pangu_lab.compression import recipes
    from pangu_lab.compression.compare import compare

    spec, settings = _task(task), settings_from(config, mode, mirror)
    steps, wanted = recipes.read_recipe(recipe), _shapes(shapes)
    source = model or newest_model(settings, task)
    splits, settings = _rows(spec, settings, test_rows)
    folder = settings.paths.runs / (run or f"{task}-{steps.name}")
    folders = {"fine-tuned": source}
    teacher = recipes.load_compressed(source)
    done = recipes.compress(teacher, steps, splits, folder, settings.train.seed, quiet=as_json)
    for number, (name, classifier) in enumerate(done, start=1):
        folders[f"{number} {name}"] = folder / f"{number}-{name}" / "model"
        if not as_json:
            out.print(f"{number} {name}: {recipes.describe(classifier.model)}", soft_wrap=True)
    measured = compare(folders, splits.test, spec, wanted, repeats, quiet=as_json)
    _report(measured, splits, f"recipe {steps.name}", record, figure, as_json)
    if not as_json:
        out.print(f"saved in {shown(list(folders.values())[-1])}")


@app.command()
def measure(
    task: TextTaskName,
    models: Annotated[list[Path], typer.Argument(help="Folders of saved models; the first is the baseline.")],
    shapes: Shapes = "1x128,8x128,32x128",
    repeats: Repeats = 20,
    test_rows: TestRows = None,
    record: Annotated[Path | None, typer.Option(help="Write the figures there, as JSON.", metavar="FILE")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the trade-off there.", metavar="FILE")] = None,
    mode: ModeName = None,
    mirror: Mirror = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Size, latency, memory, accuracy and agreement of saved models, float or quantised, side by side."""
    from pangu_lab.compression.compare import compare

    spec, settings = _task(task), settings_from(config, mode, mirror)
    splits, _ = _rows(spec, settings, test_rows)
    folders = {(folder.name if folder.name != "model" else folder.parent.name): folder for folder in models}
    if len(folders) < len(models):
        folders = {str(folder): folder for folder in models}
    measured = compare(folders, splits.test, spec, _shapes(shapes), repeats, quiet=as_json)
    _report(measured, splits, "saved models", record, figure, as_json)
