"""`pangu-lab …`: every capability of the package from the command line.

Each command imports what it needs when it runs, so that ``--help`` answers at once. A foreseeable mistake
is one sentence and exit code 2; Ctrl-C leaves a run that the same command resumes.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pangu_lab import __version__, cli_compress, cli_grade, cli_pretrain, cli_tasks
from pangu_lab.cli_base import AsJson, ConfigFile, Mirror, ModeName, app, err, out, plain, project, settings_from, shown
from pangu_lab.errors import PanguLabError

__all__ = [
    "app",
    "cli_compress",
    "cli_grade",
    "cli_pretrain",
    "cli_tasks",
    "main",
]  # a module of commands registers them when it is imported


def main() -> None:
    """Entry point: turns our errors into a sentence and an exit code."""
    try:
        # Outside of its standalone mode, typer hands the exit code of typer.Exit back instead of leaving with it.
        code = app(standalone_mode=False)
        if code:
            sys.exit(code)
    except PanguLabError as error:
        err.print(f"[red]pangu-lab:[/red] {plain(str(error))}", soft_wrap=True)
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


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


@app.command()
def doctor(config: ConfigFile = None, mirror: Mirror = None, as_json: AsJson = False) -> None:
    """Is this machine ready? Versions, cores, memory, disk, hub, data, weights, minutes a lab; remedies."""
    from pangu_lab.doctor import examine, render
    from pangu_lab.exercises import LABS

    report = examine(settings_from(config, mirror=mirror), labs=list(LABS.values()))
    if as_json:
        out.print_json(json.dumps(report.to_dict()))
    else:
        out.print(render(report))
    raise typer.Exit(0 if report.ok else 1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context, config: ConfigFile = None) -> None:
    """Open JupyterLab on the labs; further options go to JupyterLab, such as --no-browser or --port 8890."""
    import importlib.util

    labs = project("labs")
    if importlib.util.find_spec("jupyterlab") is None:
        raise PanguLabError("JupyterLab is not installed; run pip install jupyterlab, or make setup")
    settings_from(config)  # a mistake in labs/config.yaml is told here, not in the first cell
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

    settings = settings_from(config, mode)
    results = run_demo(project("solutions"), output, settings, only or [], record)
    failed = [result.name for result in results if result.error]
    out.print(f"{len(results) - len(failed)} of {len(results)} notebooks ran; the report is {shown(output)}")
    for result in results:
        if result.error:
            err.print(f"[red]{result.name}:[/red] {plain(result.error)}")
    raise typer.Exit(1 if failed else 0)


@app.command()
def release(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if labs/ is not up to date.")] = False,
) -> None:
    """Make the students' notebooks in labs/ from solutions/, and prove that no answer is in them."""
    from pangu_lab.grading.release import release as make_release

    bad = False
    for released in make_release(project("solutions"), project("labs"), check=check):
        bad |= check and released.status != "unchanged"
        out.print(f"{released.status:>10}  {shown(released.path)}")
    raise typer.Exit(1 if bad else 0)


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
    paths = notebooks or sorted(project("solutions").glob("*.ipynb"))
    if run and not check:
        from pangu_lab.demo import execute_in_place

        for path in paths:
            out.print(f"{execute_in_place(path):8.0f} s  {shown(path)} executed")
    for report in format_files(paths, check=check):
        bad |= (check and report.changed) or bool(report.findings)
        out.print(f"{'changed' if report.changed else 'unchanged':>10}  {shown(report.path)}")
        for finding in report.findings:
            out.print(f"            {plain(finding)}")
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
    form: Annotated[
        str, typer.Option("--format", help="The paper's Table 1 beside ours: markdown, html, latex or json.")
    ] = "",
    figure: Annotated[Path | None, typer.Option(help="Draw both into this PNG file.", metavar="FILE")] = None,
) -> None:
    """Render the tables of measured results from the records in benchmarks/results."""
    from pangu_lab import results as tables
    from pangu_lab.files import atomic_write

    folder = project("benchmarks") / "results"
    if add:
        record = tables.load_record(add)
        stem = name or "-".join([record.task, record.mode, record.data_source, *map(str, record.seeds)])
        tables.save_record(record, folder / f"run-{stem}.json")
    if write:
        from pangu_lab.readme import render_readme

        atomic_write(write, render_readme(write.read_text(encoding="utf-8"), folder))
    if form or figure:
        from pangu_lab import paper

        rows = paper.table_1(tables.load_records(folder))
        if form:
            print(paper.render(rows, form))
        if figure:
            from pangu_lab.viz import png
            from pangu_lab.viz.results import claims_figure

            atomic_write(figure, png(claims_figure(rows)))
    elif not write and not add:
        print(tables.results_table(tables.load_records(folder)))


if __name__ == "__main__":
    main()
