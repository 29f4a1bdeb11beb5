"""Grading a folder: who submitted what, each in a worker process, each result on disk before the next.

A batch that is killed goes on where it was. One submission never touches another: a worker that hangs or dies is
replaced. Read ``grade`` first.
"""

import contextlib
import hashlib
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pangu_lab.errors import PanguLabError
from pangu_lab.files import atomic_write
from pangu_lab.grading import results
from pangu_lab.grading.box import Box, Limits
from pangu_lab.grading.clock import TimeLeft
from pangu_lab.grading.collect import Found, Student, collect, latest, read_roster
from pangu_lab.grading.rebuild import InvalidFile, Release, load_release, parse_submission, rebuild
from pangu_lab.grading.results import Result
from pangu_lab.grading.warm import ENOUGH, modules_of
from pangu_lab.grading.workers import Task, run, run_there


@dataclass(frozen=True)
class Batch:
    """All results of a batch, one per student of the roster and lab, and one per file of somebody else."""

    results: tuple[Result, ...]
    releases: dict[str, Release]
    students: dict[str, Student]
    boxed: bool
    skipped: int = 0
    merged: int = 0

    @property
    def needs_human(self) -> bool:
        """Whether any result does."""
        return any(result.needs_human for result in self.results)


def grade(
    submissions: Path,
    release_folder: Path,
    out: Path,
    roster: Path | None = None,
    only: list[str] | None = None,
    regrade: bool = False,
    jobs: int = 1,
    seed: str | None = None,
    limits: Limits | None = None,
    boxed: bool = True,
    warm: bool = True,
    told: Callable[[str], None] = lambda line: None,
    shard: tuple[int, int] = (1, 1),
    merge: Sequence[Path] = (),
    dask: str | None = None,
) -> Batch:
    """Grade all submissions and keep each result below ``out``.

    Parameters
    ----------
    only
        Run only students or labs whose name contains one of these; of all others, what has a result is reported.
    regrade
        Grade again what has a result already.
    seed
        The secret that draws hidden inputs; by default made once and kept in ``out``.
    shard
        (i, n): only the students of the i-th of n parts, which together are all.
    merge
        Output folders of other graders, of shards say, whose results are taken over where they hold here.
    dask
        The address of a dask.distributed scheduler whose workers grade; by default processes of this machine.
    warm
        Fork kernels from a parent that has imported the labs' libraries, where there are enough submissions.

    Raises
    ------
    PanguLabError
        No box, no release, no submissions, no space, or another grader at work in ``out``.
    """
    try:
        return _grade(submissions, release_folder, out, roster, only, regrade, jobs, seed, limits or Limits(), boxed,
                      warm, told, shard, merge, dask)  # fmt: skip
    except OSError as error:  # whatever is written outside of atomic_write: the lock, the box's mirror
        raise PanguLabError(f"{out}: the grader could not go on ({error.strerror or error})") from error


def _grade(
    submissions: Path,
    release_folder: Path,
    out: Path,
    roster: Path | None,
    only: list[str] | None,
    regrade: bool,
    jobs: int,
    seed: str | None,
    limits: Limits,
    boxed: bool,
    warm: bool,
    told: Callable[[str], None],
    shard: tuple[int, int],
    merge: Sequence[Path],
    dask: str | None,
) -> Batch:
    releases = {path.stem: load_release(path) for path in sorted(release_folder.glob("*.ipynb"))}
    releases = {name: release for name, release in releases.items() if release.exercises}
    if not releases:
        raise PanguLabError(f"{release_folder}: has no notebook with exercises; run `pangu-lab release` first")
    students = read_roster(roster) if roster else {}
    with locked(out), contextlib.ExitStack() as stack:
        _sweep(out)
        # On a cluster each worker has a box of its own, and this machine needs none.
        box = None if dask else stack.enter_context(Box(limits, boxed, folder=out / ".box"))
        secret = seed or _kept_secret(out)
        grader = results.grader_hash(limits, boxed) + hashlib.sha256(secret.encode()).hexdigest()
        # All files are read for each shard, because the same file may come from students of two.
        tasks, finished = _sorted_out(collect(submissions, releases, students), releases, students, out, grader)
        tasks = [task for task in tasks if in_shard(task.found.student, shard)]
        finished = [result for result in finished if in_shard(result.student, shard)]
        everybody = {name: student for name, student in students.items() if in_shard(name, shard)}
        merged = _taken_over(merge, out, tasks)
        waiting, skipped = [], 0
        for task in tasks:
            chosen = not only or any(o in task.found.student or o in task.release.name for o in only)
            kept = None if regrade and chosen else results.load(task.path)
            if kept is not None:
                finished.append(kept)
                skipped += chosen
            elif chosen:
                waiting.append(task)
        if skipped:
            told(f"{skipped} of {len(waiting) + skipped} have a result already")
        waiting.sort(key=lambda task: (-task.size, task.path))
        jobs = max(1, jobs)
        if box and warm and len(waiting) >= ENOUGH * jobs:
            box.modules = modules_of(task.release for task in waiting)
        graded = run(waiting, box, secret, jobs, told) if box else run_there(waiting, dask or "", limits, boxed, secret)
        clock = TimeLeft(len(waiting), jobs)
        for number, (task, result) in enumerate(graded, start=1):
            finished.append(result)
            score = f"{result.score:g} of {result.max_score:g}" if result.status == "GRADED" else result.status
            line = (
                f"{number}/{len(waiting)}  {task.found.student}  {task.release.name}  {score}  {result.seconds:.1f} s"
            )
            told(f"{line}  {clock.after(result.seconds)}".rstrip())
    complete = finished if only else [*finished, *_missing(finished, releases, everybody)]
    ordered = sorted(complete, key=lambda result: (result.assignment, result.student, result.place))
    return Batch(tuple(ordered), releases, students, boxed, skipped, merged)


def parse_shard(text: str, seed: str | None) -> tuple[int, int]:
    """The (i, n) of "i/n".

    Raises
    ------
    PanguLabError
        It is none, or several parts are to be graded without a common seed.
    """
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise PanguLabError(f"--shard is {text!r}; it must be i/n with 1 <= i <= n, as 2/4")
    if int(parts) > 1 and not seed:
        raise PanguLabError("--shard needs the same --seed for all parts, or each would draw other hidden inputs")
    return int(part), int(parts)


def in_shard(student: str, shard: tuple[int, int]) -> bool:
    """Whether a student belongs to part i of n; all of a student's files do."""
    part, parts = shard
    return int(hashlib.sha256(student.encode("utf-8", "surrogatepass")).hexdigest(), 16) % parts == part - 1


def _taken_over(folders: Sequence[Path], out: Path, tasks: list[Task]) -> int:
    """Copy the results of other graders that hold here; their names tell whether they do."""
    taken = 0
    for folder in folders:
        there = set((folder / "results").rglob("*.json"))
        if not there:
            raise PanguLabError(f"{folder}: holds no results to merge; give the --out folder of another grader")
        mine = {folder / task.path.relative_to(out): task for task in tasks}
        fitting = [path for path in there & mine.keys() if results.load(path) is not None]
        if not fitting:
            raise PanguLabError(
                f"{folder}: none of its {len(there)} results holds here; all parts need the same --seed, submissions, "
                "release, limits and version of the grader"
            )
        for path in sorted(fitting):
            atomic_write(mine[path].path, path.read_bytes())
        taken += len(fitting)
    return taken


def _sweep(out: Path) -> None:
    """Remove what a grader that was killed had not finished writing."""
    for path in out.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Only one grader at a time works in a folder; the lock goes with the process, however it ends."""
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PanguLabError(f"{out}: another grader is at work here; wait for it, or use another --out") from error
        yield


def _kept_secret(out: Path) -> str:
    path = out / ".secret"
    if not path.is_file():
        atomic_write(path, secrets.token_hex(32))
        path.chmod(0o600)
    return path.read_text(encoding="utf-8").strip()


def _sorted_out(
    found: list[Found], releases: dict[str, Release], students: dict[str, Student], out: Path, grader: str
) -> tuple[list[Task], list[Result]]:
    """What to grade, and the results of what cannot be: one file for each student and lab."""
    groups: dict[tuple[str, str], list[tuple[Found, str, int]]] = defaultdict(list)
    refused: dict[tuple[str, str], Result] = {}
    for file in found:
        try:
            data = file.read()
            assignment, remark = _assignment(file, data, releases)
        except InvalidFile as error:
            name = file.assignment or (next(iter(releases)) if len(releases) == 1 else "")
            most = sum(releases[name].exercises.values()) if name else 0
            whose = file.student, name
            flags: tuple[str, ...] = ("SEVERAL_FILES",) if whose in refused else ()
            refused[whose] = Result(
                file.student, name, "INVALID_FILE", file.place, reason=str(error), max_score=most, flags=flags
            )
            continue
        known = replace(file, assignment=assignment, problem=remark)
        groups[file.student, assignment].append((known, hashlib.sha256(data).hexdigest(), len(data)))
    owners: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (student, assignment), files in groups.items():
        for _, digest, _ in files:
            owners[assignment, digest].add(student)
    tasks = []
    for (student, assignment), files in groups.items():
        chosen = latest([file for file, _, _ in files], assignment)
        digest, size = next((digest, size) for file, digest, size in files if file is chosen)
        release = releases[assignment]
        flags = ("SEVERAL_FILES",) if len(files) > 1 or (student, assignment) in refused else ()
        flags += ("OTHER_LAB",) if chosen.problem else ()
        flags += ("UNKNOWN_STUDENT",) if students and student not in students else ()
        shared = len(owners[assignment, digest]) > 1 and digest != release.digest
        others = tuple(sorted(owners[assignment, digest] - {student})) if shared else ()
        flags += ("SAME_FILE",) if shared else ()
        key = results.result_key(student, digest, release.digest, grader, *flags, *others)
        path = results.result_path(out, student, assignment, key)
        tasks.append(Task(replace(chosen, problem=""), digest, size, release, path, flags, others))
    return tasks, [result for whose, result in refused.items() if whose not in groups]


def _assignment(file: Found, data: bytes, releases: dict[str, Release]) -> tuple[str, str]:
    """The lab whose answer cells a file has, and a remark where its name says another."""
    if file.assignment and len(releases) == 1:
        return file.assignment, ""
    try:
        submission = parse_submission(data)
    except InvalidFile:
        if file.assignment or len(releases) == 1:
            return file.assignment or next(iter(releases)), ""
        raise
    fits = {name: rebuild(release, submission).matched for name, release in releases.items()}
    best = max(fits, key=lambda name: (fits[name], name == file.assignment))
    if not fits[best]:
        if file.assignment or len(releases) == 1:
            return file.assignment or best, ""
        raise InvalidFile("has answer cells of no lab here")
    return best, "another lab" if file.assignment and best != file.assignment else ""


def _missing(finished: list[Result], releases: dict[str, Release], students: dict[str, Student]) -> list[Result]:
    """A row for everybody on the roster who handed in nothing for a lab that others handed in."""
    labs = sorted({result.assignment for result in finished if result.assignment})
    there = {(result.student, result.assignment) for result in finished}
    return [
        Result(student, lab, "MISSING", reason="nothing was handed in", max_score=sum(releases[lab].exercises.values()))
        for lab in labs
        for student in students
        if (student, lab) not in there
    ]
