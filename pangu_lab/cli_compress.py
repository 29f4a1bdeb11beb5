"""`pangu-lab compress|measure|export`: make a fine-tuned model smaller and faster, measure what it cost, hand it on."""

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
    TaskName,
    app,
    newest_model,
    out,
    plain,
    settings_from,
    shown,
)
from pangu_lab.errors import PanguLabError

Shapes = Annotated[str, typer.Option(help="Batch sizes and lengths to time, as 1x128,8x128.", metavar="SHAPES")]
Repeats = Annotated[int, typer.Option(min=3, help="Timed rounds a shape.")]
TestRows = Annotated[int | None, typer.Option(min=1, help="Test rows; default: the mode's.")]


def _shapes(text: str) -> list[tuple[int, int]]:
    try:
        shapes = [(int(batch), int(length)) for batch, length in (part.split("x") for part in text.split(","))]
        if min(min(shape) for shape in shapes) < 1:
            raise ValueError
    except ValueError:
        raise PanguLabError(f"--shapes is {text!r}; give batch x length, as 1x128,8x128") from None
    return shapes


def _report(measured: Any, data: Any, what: str, record: Path | None, figure: Path | None, as_json: bool) -> None:
    from pangu_lab.compression import compare
    from pangu_lab.files import atomic_write

    tested = f"{data.test_rows:,} test rows of {data.source}"
    measures = compare.record(measured, data.test_rows, f"{data.source.id} ({data.source.kind})", what)
    if record:
        atomic_write(record, json.dumps(measures, indent=1) + "\n")
    if figure:
        from pangu_lab.viz.compression import tradeoff_figure

        figure.parent.mkdir(parents=True, exist_ok=True)
        tradeoff_figure(measured, tested).savefig(figure)
    if as_json:
        out.print_json(json.dumps(measures))
        return
    out.print(plain(tested), soft_wrap=True)
    print(compare.table(measured))


@app.command()
def compress(
    task: TaskName,
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

    For squad the figures are F1 and exact match, and agreement is the share of equal answers.

    Stopped and started again, it goes on at the step where it was.

    Example: pangu-lab compress imdb --recipe benchmarks/recipes/small.yaml
    """
    from pangu_lab.compression import recipes
    from pangu_lab.compression.compare import compare
    from pangu_lab.compression.tasks import load_task

    settings = settings_from(config, mode, mirror)
    steps, wanted = recipes.read_recipe(recipe), _shapes(shapes)
    data = load_task(task, settings, test_rows)
    recipes.check_recipe(steps, data)
    source = model or newest_model(settings, task)
    folder = settings.paths.runs / (run or f"{task}-{steps.name}")
    folders = {"fine-tuned": source}
    teacher = data.load(source)
    done = recipes.compress(teacher, steps, data, folder, settings.train.seed, quiet=as_json)
    for number, (name, subject) in enumerate(done, start=1):
        folders[f"{number} {name}"] = folder / f"{number}-{name}" / "model"
        if not as_json:
            out.print(f"{number} {name}: {recipes.describe(subject.model)}", soft_wrap=True)
    measured = compare(folders, data, wanted, repeats, quiet=as_json)
    _report(measured, data, f"recipe {steps.name}", record, figure, as_json)
    if not as_json:
        out.print(f"saved in {shown(list(folders.values())[-1])}")


@app.command()
def measure(
    task: TaskName,
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
    """Size, latency, memory, accuracy (squad: F1, exact match) and agreement of saved models, side by side.

    Example: pangu-lab measure squad RUN/model SQUAD-INT8/1-quantize/model --record benchmarks/results/squad-int8.json
    """
    from pangu_lab.compression.compare import compare
    from pangu_lab.compression.tasks import load_task

    wanted = _shapes(shapes)
    data = load_task(task, settings_from(config, mode, mirror), test_rows)
    folders = {(folder.name if folder.name != "model" else folder.parent.name): folder for folder in models}
    if len(folders) < len(models):
        folders = {str(folder): folder for folder in models}
    measured = compare(folders, data, wanted, repeats, quiet=as_json)
    _report(measured, data, "saved models", record, figure, as_json)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A saved model, float or quantised.", metavar="MODEL_FOLDER")],
    to: Annotated[Path, typer.Option(help="A file .onnx or .pt2, or a folder, which gets the tokenizer too.")],
    format: Annotated[
        str | None, typer.Option(help="onnx or torch (torch.export); default: by the name of the file.")
    ] = None,
    vnni: Annotated[
        bool,
        typer.Option(
            "--vnni", help="int8 in ONNX: faster, but exact only on processors with VNNI or ARM's dot product."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a classifier or question answering model as ONNX or by torch.export, any batch size and length.

    An int8 model stays int8. What is written was run first, on shapes it was not traced with, against the model.
    ONNX needs pip install 'pangu-lab\\[export]'.

    Example: pangu-lab export runs/imdb-small/4-quantize/model --to reviews.onnx
    """
    from pangu_lab.compression.export import export as write

    done = write(model, to, format, vnni)
    if as_json:
        out.print_json(json.dumps(vars(done) | {"file": str(done.file)}))
        return
    kind = "int8 or int4" if done.quantized else "float"
    out.print(f"{shown(done.file)}: {kind}, {done.bytes / 1e6:.1f} MB, any batch, up to {done.max_tokens} tokens")
    out.print(f"  in: {', '.join(done.inputs)}; out: {', '.join(done.outputs)}")
    out.print(
        f"  against the model, on random tokens: outputs differ by at most {done.difference:.2g} (the largest is "
        f"{done.scale:.2g}), {done.agreement:.1%} equal predictions",
        soft_wrap=True,
    )
