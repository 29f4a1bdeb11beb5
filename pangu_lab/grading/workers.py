"""Who grades: worker processes of this machine, or workers of a cluster, one submission after the other.

A worker that hangs or dies is replaced, and each result is on disk before the next. Read ``run`` first.
"""

import atexit
import contextlib
import functools
import hashlib
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pangu_lab.grading import results
from pangu_lab.grading.box import Box, Limits, die_with
from pangu_lab.grading.cluster import on_cluster
from pangu_lab.grading.collect import Found
from pangu_lab.grading.judge import Judge
from pangu_lab.grading.kernel import InfrastructureError
from pangu_lab.grading.rebuild import InvalidFile, Release, parse_submission, rebuild
from pangu_lab.grading.results import Result

GRACE = 60.0  # seconds after which a worker that has not kept its own limits is killed


@dataclass(frozen=True)
class Task:
    """One submission to grade, and where its result goes. Its bytes are read when its turn comes, and let go."""

    found: Found
    digest: str
    size: int
    release: Release
    path: Path
    flags: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def data(self) -> bytes | None:
        """The submission's bytes, or None where it is no longer the file whose hash the result is kept under."""
        with contextlib.suppress(InvalidFile):
            data = self.found.read()
            if hashlib.sha256(data).hexdigest() == self.digest:
                return data
        return None

    def failed(self, reason: str, boxed: bool) -> Result:
        """The result where the grader's own means failed."""
        most = sum(self.release.exercises.values())
        return Result("", self.release.name, "INFRA", reason=reason, boxed=boxed, max_score=most, digest=self.digest)

    def completed(self, result: Result) -> Result:
        """A result with what is known of the submission from outside."""
        more: dict[str, Any] = {"student": self.found.student, "place": self.found.place, "others": self.others}
        return replace(result, **more, flags=(*self.flags, *result.flags))


CHANGED = "the file was changed or taken away while the batch ran; grade again"


def grade_bytes(data: bytes | None, release: Release, box: Box, secret: str) -> Result:
    """Grade one submission's bytes (None: they could not be read again); never raises."""
    started = time.monotonic()
    most = sum(release.exercises.values())
    if data is None:
        return Result("", release.name, "INFRA", reason=CHANGED, boxed=box.boxed, max_score=most)
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


# --- workers ----------------------------------------------------------------------------------------


def run(
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
                result = task.completed(result)
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
        """Start grading a task; the judge may run a notebook twice, with fewer and with all cells."""
        self.task = task
        self._until = time.monotonic() + 2 * self.limits.notebook_seconds + 4 * self.limits.start_seconds + GRACE
        self.line.send((task.data(), task.release))

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
        return self.task.failed(reason, self.boxed)

    def stop(self) -> None:
        """End the process, and with it the box it may have open."""
        self.alive = False
        self._process.kill()
        self._process.join()
        self.line.close()


def _work(line: Connection, limits: Limits, boxed: bool, folder: Path, modules: tuple[str, ...], secret: str) -> None:
    grader = multiprocessing.parent_process()
    if grader is not None and grader.pid:
        die_with(grader.pid)  # a grader that is killed leaves no worker, and a worker no box
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


# --- workers of a cluster ---------------------------------------------------------------------------


def run_there(
    tasks: list[Task], address: str, limits: Limits, boxed: bool, secret: str
) -> Iterator[tuple[Task, Result]]:
    """Grade tasks on a cluster; each result is on this machine's disk before it is yielded."""
    version = results.grader_hash(limits, boxed)
    graded = on_cluster(address, _graded_there, tasks, lambda t: (t.data(), t.release, limits, boxed, secret, version))
    for task, outcome in graded:
        if isinstance(outcome, BaseException):
            outcome = task.failed(f"the cluster failed: {type(outcome).__name__}: {str(outcome)[:300]}", boxed)
        result = task.completed(outcome)
        results.save(task.path, result)
        yield task, result


_ONE_AT_A_TIME = threading.Lock()  # a judge sets the random generators of its whole process


def _graded_there(
    data: bytes | None, release: Release, limits: Limits, boxed: bool, secret: str, version: str
) -> Result:
    if results.grader_hash(limits, boxed) != version:
        raise InfrastructureError("a worker of the cluster has another version of pangu_lab")
    with _ONE_AT_A_TIME:
        return grade_bytes(data, release, _box_there(limits, boxed), secret)


@functools.cache
def _box_there(limits: Limits, boxed: bool) -> Box:
    box = Box(limits, boxed)
    atexit.register(box.close)
    return box
