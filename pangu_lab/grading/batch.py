"""Grading a folder: who submitted what, each in a worker process, each result on disk before the next.

A batch that is killed goes on where it was. One submission never touches another: a worker that hangs or dies is
replaced. Read ``grade`` first.
"""

import contextlib
import ctypes
import hashlib
import multiprocessing
import os
import secrets
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pangu_lab.errors import PanguLabError
from pangu_lab.files import atomic_write
from pangu_lab.grading import results
from pangu_lab.grading.box import Box, Limits
from pangu_lab.grading.collect import Found, Student, collect, latest, read_roster
from pangu_lab.grading.judge import Judge
from pangu_lab.grading.kernel import InfrastructureError
from pangu_lab.grading.rebuild import InvalidFile, Release, load_release, parse_submission, rebuild
from pangu_lab.grading.results import Result
from pangu_lab.grading.warm import ENOUGH, modules_of

GRACE = 60.0  # seconds after which a worker that has not kept its own limits is killed


@dataclass(frozen=True)
class Task:
    """One submission to grade, and where its result goes."""

    found: Found
    data: bytes
    release: Release
    path: Path
    flags: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """All results of a batch, one per student of the roster and lab, and one per file of somebody else."""

    results: tuple[Result, ...]
    releases: dict[str, Release]
    students: dict[str, Student]
    boxed: bool
    skipped: int = 0

    @property
    def needs_human(self) -> bool:
        """Whether any result does."""
        return any(result.needs_human for result in self.results)


def grade_bytes(data: bytes, release: Release, box: Box, secret: str) -> Result:
    """Grade one submission's bytes; never raises."""
    started = time.monotonic()
    most = sum(release.exercises.values())
    result = Result(
        "", release.name, "GRADED", digest=hashlib.sha256(data).hexdigest(), boxed=box.boxed, max_score=most
    )
    try:
        rebuilt = rebuild(release, parse_submission(data))
        if not rebuilt.matched:
            raise InvalidFile(f"has none of the answer cells of {release.name}; is it the notebook of another lab?")
        judged = Judge(rebuilt, box, secret).run()
        flags = ["TAMPERED"] * bool(rebuilt.tampered) + sorted({flag for mark in judged.marks for flag in mark.flags})
        result = replace(
            result,
            marks=judged.marks,
            flags=tuple(flags),
            tampered=rebuilt.tampered,
            notes=rebuilt.notes + judged.notes,
        )
    except InvalidFile as error:
        result = replace(result, status="INVALID_FILE", reason=str(error))
    except InfrastructureError as error:
        result = replace(result, status="INFRA", reason=str(error))
    except Exception as error:  # a defect of the grader must not cost a student a mark
        result = replace(result, status="INFRA", reason=f"the grader failed: {type(error).__name__}: {error}")
    return replace(result, seconds=round(time.monotonic() - started, 2))


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
) -> Batch:
    """Grade all submissions and keep each result below ``out``.

    Parameters
    ----------
    only
        Only students or labs whose name contains one of these.
    regrade
        Grade again what has a result already.
    seed
        The secret that draws hidden inputs; by default made once and kept in ``out``.
    warm
        Fork kernels from a parent that has imported the labs' libraries, where there are enough submissions.

    Raises
    ------
    PanguLabError
        No box, no release, no submissions, or another grader at work in ``out``.
    """
    limits = limits or Limits()
    releases = {path.stem: load_release(path) for path in sorted(release_folder.glob("*.ipynb"))}
    releases = {name: release for name, release in releases.items() if release.exercises}
    if not releases:
        raise PanguLabError(f"{release_folder}: has no notebook with exercises; run `pangu-lab release` first")
    students = read_roster(roster) if roster else {}
    with locked(out), Box(limits, boxed, folder=out / ".box") as box:
        secret = seed or _kept_secret(out)
        grader = results.grader_hash(limits, boxed) + hashlib.sha256(secret.encode()).hexdigest()
        found = collect(submissions, releases, students)
        tasks, finished = _sorted_out(found, releases, students, out, grader)
        if only:
            tasks = [t for t in tasks if any(o in t.found.student or o in t.release.name for o in only)]
            finished = [r for r in finished if any(o in r.student or o in r.assignment for o in only)]
        waiting = []
        for task in tasks:
            kept = None if regrade else results.load(task.path)
            if kept is None:
                waiting.append(task)
            else:
                finished.append(kept)
        skipped = len(tasks) - len(waiting)
        if skipped:
            told(f"{skipped} of {len(tasks)} have a result already")
        waiting.sort(key=lambda task: -len(task.data))
        jobs = max(1, jobs)
        if warm and len(waiting) >= ENOUGH * jobs:
            box.modules = modules_of(task.release for task in waiting)
        for number, (task, result) in enumerate(_run(waiting, box, secret, jobs, told), start=1):
            finished.append(result)
            score = f"{result.score:g} of {result.max_score:g}" if result.status == "GRADED" else result.status
            told(f"{number}/{len(waiting)}  {task.found.student}  {task.release.name}  {score}  {result.seconds:.1f} s")
    complete = finished if only else [*finished, *_missing(finished, releases, students)]
    ordered = sorted(complete, key=lambda result: (result.assignment, result.student, result.place))
    return Batch(tuple(ordered), releases, students, boxed, skipped)


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
    groups: dict[tuple[str, str], list[tuple[Found, bytes]]] = defaultdict(list)
    finished = []
    for file in found:
        try:
            data = file.read()
            assignment, remark = _assignment(file, data, releases)
        except InvalidFile as error:
            name = file.assignment or (next(iter(releases)) if len(releases) == 1 else "")
            most = sum(releases[name].exercises.values()) if name else 0
            finished.append(Result(file.student, name, "INVALID_FILE", file.place, reason=str(error), max_score=most))
            continue
        groups[file.student, assignment].append((replace(file, assignment=assignment, problem=remark), data))
    owners: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (student, assignment), files in groups.items():
        for _, data in files:
            owners[assignment, hashlib.sha256(data).hexdigest()].add(student)
    tasks = []
    for (student, assignment), files in groups.items():
        chosen = latest([file for file, _ in files], assignment)
        data = next(data for file, data in files if file is chosen)
        digest = hashlib.sha256(data).hexdigest()
        release = releases[assignment]
        flags = ["SEVERAL_FILES"] * (len(files) > 1) + ["OTHER_LAB"] * bool(chosen.problem)
        flags += ["UNKNOWN_STUDENT"] * bool(students and student not in students)
        flags += ["SAME_FILE"] * (len(owners[assignment, digest]) > 1 and digest != release.digest)
        others = tuple(sorted(owners[assignment, digest] - {student})) if "SAME_FILE" in flags else ()
        key = results.result_key(student, digest, release.digest, grader, *flags, *others)
        path = results.result_path(out, student, assignment, key)
        tasks.append(Task(replace(chosen, problem=""), data, release, path, tuple(flags), others))
    graded = {(task.found.student, task.release.name) for task in tasks}
    return tasks, [result for result in finished if (result.student, result.assignment) not in graded]


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


# --- workers ----------------------------------------------------------------------------------------


def _run(
    tasks: list[Task], box: Box, secret: str, jobs: int, told: Callable[[str], None]
) -> Iterator[tuple[Task, Result]]:
    """Grade tasks in worker processes; each result is on disk before it is yielded."""
    waiting = list(tasks)
    workers: dict[Connection, _Worker] = {}
    try:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                worker = _Worker(box, secret)
                worker.give(waiting.pop(0))
                workers[worker.line] = worker
            ready = wait(list(workers), timeout=0.5)
            for line, worker in list(workers.items()):
                result = worker.result(line in ready)
                if isinstance(result, str):
                    told(result)
                if not isinstance(result, Result):
                    continue
                task = worker.task
                assert task is not None
                more: dict[str, Any] = {"student": task.found.student, "place": task.found.place, "others": task.others}
                result = replace(result, **more, flags=(*task.flags, *result.flags))
                results.save(task.path, result)
                yield task, result
                if worker.alive and waiting:
                    worker.give(waiting.pop(0))
                else:
                    worker.stop()
                    del workers[line]
    finally:
        for worker in workers.values():
            worker.stop()


class _Worker:
    """A process that grades one submission after the other, and dies with the grader."""

    def __init__(self, box: Box, secret: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, other = context.Pipe()
        self.limits, self.boxed = box.limits, box.boxed
        self._process = context.Process(
            target=_work, args=(other, box.limits, box.boxed, box.folder, box.modules, secret), daemon=True
        )
        self._process.start()
        other.close()
        self.task: Task | None = None
        self.alive = True
        self._until = 0.0

    def give(self, task: Task) -> None:
        """Start grading a task."""
        self.task = task
        self._until = time.monotonic() + self.limits.notebook_seconds + 2 * self.limits.start_seconds + GRACE
        self.line.send((task.data, task.release))

    def result(self, ready: bool) -> Result | str | None:
        """The result or a remark, if there is one by now; a worker that hangs or died gives INFRA."""
        reason = ""
        if ready:
            try:
                answer: Result | str = self.line.recv()
                return answer
            except (EOFError, OSError):
                reason = "the grader's worker died"
        elif time.monotonic() > self._until:
            reason = "the grader's worker did not end in time"
        if not reason:
            return None
        self.alive = False
        assert self.task is not None
        most = sum(self.task.release.exercises.values())
        return Result("", self.task.release.name, "INFRA", reason=reason, boxed=self.boxed, max_score=most)

    def stop(self) -> None:
        """End the process, and with it the box it may have open."""
        self.alive = False
        self._process.kill()
        self._process.join()
        self.line.close()


def _work(line: Connection, limits: Limits, boxed: bool, folder: Path, modules: tuple[str, ...], secret: str) -> None:
    if sys.platform.startswith("linux"):  # a grader that is killed leaves no worker, and a worker no box
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
        if os.getppid() == 1:
            return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the grader's to handle
    box = Box(limits, boxed, folder=folder, ready=True, modules=modules)
    said = False
    while True:
        try:
            request: Any = line.recv()
        except (EOFError, OSError):
            return
        data, release = request
        result = grade_bytes(data, release, box, secret)
        if box.cold_because and not said:
            said = True
            line.send(f"every kernel starts by itself, which takes longer: {box.cold_because}")
        line.send(result)
