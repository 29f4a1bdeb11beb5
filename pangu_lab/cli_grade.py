"""`pangu-lab grade` and `pangu-lab lms`; they import what they need when they run, so that ``--help`` answers at once."""

from pathlib import Path
from typing import Annotated

import typer

from pangu_lab.cli_base import app, err, out, plain, shown
from pangu_lab.errors import PanguLabError


@app.command()
def grade(
    submissions: Annotated[Path, typer.Argument(help="A folder or a zip of notebooks.", metavar="SUBMISSIONS")],
    release: Annotated[Path, typer.Option(help="The notebooks that students were given.")] = Path("labs"),
    out_folder: Annotated[Path, typer.Option("--out", help="Where results and reports go.")] = Path("grades"),
    roster: Annotated[
        Path | None, typer.Option(help="A CSV with student_id, last_name, first_name, email.", metavar="CSV")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only students or labs whose name contains this.")] = None,
    regrade: Annotated[bool, typer.Option("--regrade", help="Grade again what has a result.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Submissions at a time.")] = 1,
    seed: Annotated[str | None, typer.Option(help="The secret that draws hidden inputs; default: made once.")] = None,
    no_box: Annotated[
        bool, typer.Option("--no-box", help="Run submissions unprotected where bubblewrap cannot.")
    ] = False,
    cold: Annotated[
        bool, typer.Option("--cold", help="Start every kernel by itself, not as a fork of one that has the libraries.")
    ] = False,
    cell_seconds: Annotated[float, typer.Option(min=0.1, help="Time for each cell.")] = 60,
    notebook_seconds: Annotated[float, typer.Option(min=1, help="Time for each submission.")] = 600,
    memory: Annotated[float, typer.Option(min=0.2, help="Memory for each submission, in GB.")] = 4,
    manual: Annotated[
        Path | None, typer.Option(help="Points and comments by hand; default: manual.csv in --out.", metavar="CSV")
    ] = None,
    shard: Annotated[str, typer.Option(help="Only the i-th of n parts of the students.", metavar="I/N")] = "1/1",
    merge: Annotated[
        list[Path] | None, typer.Option(help="Take results over from the --out of another shard.", metavar="FOLDER")
    ] = None,
    dask: Annotated[
        str | None, typer.Option(help="Grade on a dask.distributed cluster.", metavar="tcp://HOST:PORT")
    ] = None,
) -> None:
    """Grade submissions: each in a box, judged from outside with hidden inputs; killed, it goes on where it was.

    Exit code 0: all graded; 1: somebody should look at a submission; 2: the grader could not work.
    """
    from pangu_lab.grading.batch import grade as grade_all
    from pangu_lab.grading.batch import parse_shard
    from pangu_lab.grading.box import Limits
    from pangu_lab.grading.overview import why
    from pangu_lab.grading.reports import NO_BOX, with_manual, write_reports

    if no_box:
        err.print(f"[bold red]WARNING.[/bold red] {NO_BOX.replace('Graded', 'Grading').replace('could', 'can')}")
    limits = Limits(cell_seconds=cell_seconds, notebook_seconds=notebook_seconds, memory=int(memory * 1e9))
    batch = grade_all(
        submissions,
        release,
        out_folder,
        roster=roster,
        only=only,
        regrade=regrade,
        jobs=jobs,
        seed=seed,
        limits=limits,
        boxed=not no_box,
        warm=not cold,
        told=lambda line: out.print(plain(line), soft_wrap=True),
        shard=parse_shard(shard, seed),
        merge=merge or [],
        dask=dask,
    )
    if batch.merged:
        out.print(f"{batch.merged} results taken over")
    batch, remarks = with_manual(batch, out_folder, manual)
    write_reports(batch, out_folder)
    for remark in remarks:
        err.print(plain(remark), soft_wrap=True)
    for result in batch.results:
        if result.needs_human:
            err.print(f"look at {plain(f'{result.student} ({result.place}): {why(result)}')}", soft_wrap=True)
    out.print(
        f"{len(batch.results)} results in {shown(out_folder / 'grades.csv')}, pictures in overview.html beside it"
    )
    raise typer.Exit(1 if batch.needs_human or remarks else 0)


@app.command()
def lms(
    exported: Annotated[Path, typer.Argument(help="The CSV that Canvas or Moodle exported.", metavar="CSV")],
    column: Annotated[str, typer.Option(help="The column to fill: its name, or a part that only it has.")],
    grades: Annotated[Path, typer.Option(help="The --out folder of a grading.", metavar="FOLDER")] = Path("grades"),
    lab: Annotated[str, typer.Option(help="Which lab, where there are several.")] = "",
    key: Annotated[str, typer.Option(help="The column with the students' ids; default: found.")] = "",
    out_of: Annotated[float | None, typer.Option(help="Convert the points to a mark out of this many.")] = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="Default: CSV's name with -filled.", metavar="CSV")
    ] = None,
) -> None:
    """Fill one column of the CSV that Canvas or Moodle exported, and leave every other byte as it is.

    Exit code 0: every score has found its row; 1: somebody should look; 2: nothing was written.
    """
    from pangu_lab.files import atomic_write
    from pangu_lab.grading.lms import export

    source = grades / "grades.json"
    if not source.is_file():
        raise PanguLabError(f"{source}: there is none; run `pangu-lab grade` first, or say where with --grades")
    filled = export(exported, source.read_text(encoding="utf-8"), column, lab, key, out_of)
    target = output or exported.with_name(f"{exported.stem}-filled{exported.suffix}")
    atomic_write(target, filled.data)
    for remark in filled.remarks:
        err.print(plain(remark), soft_wrap=True)
    out.print(f"{len(filled.students)} scores, found by {plain(filled.key)}, in {shown(target)}", soft_wrap=True)
    raise typer.Exit(1 if filled.remarks else 0)
