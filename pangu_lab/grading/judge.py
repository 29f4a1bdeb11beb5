"""Judging one notebook from outside its kernel: run it cell by cell, probe each exercise, keep every verdict.

Nothing that a submission prints, writes or claims is a score. An exercise is probed with inputs from a secret seed,
its answers come back as plain data, and the comparison happens here. Read ``Judge.run`` first.
"""

import base64
import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pangu_lab.errors import PanguLabError
from pangu_lab.exercises import UnknownExercise, get
from pangu_lab.exercises.calling import Case, Outcome, answers, preserved_random_state
from pangu_lab.exercises.engine import Exercise, ExerciseError, Status, Verdict, draw_cases, judge
from pangu_lab.exercises.show import report
from pangu_lab.grading import inside
from pangu_lab.grading.box import Box
from pangu_lab.grading.kernel import Ended, InfrastructureError, Kernel, Reply, plain
from pangu_lab.grading.needed import reduced
from pangu_lab.grading.probes import Stranger, forbidden_use, outcome_of, runs_outside, seed_of, unreadable
from pangu_lab.grading.rebuild import KEPT, Rebuilt, Step, same_code
from pangu_lab.grading.slices import drive_source, reference_source
from pangu_lab.grading.wire import NotPlain, pack

_STATUS = {
    Status.RIGHT: "OK",
    Status.WRONG: "WRONG",
    Status.ERROR: "ERROR",
    Status.NOT_ATTEMPTED: "NOT_ATTEMPTED",
}
UNTOUCHED = "The answer cell is as it was handed out."
_AGENT = "__import__('importlib').import_module('pangu_lab.grading.inside')"


@dataclass(frozen=True)
class Marked:
    """The result of one exercise: status, points, and what the student is told. It holds no hidden input."""

    exercise: str
    status: str
    points: float = 0
    max_points: float = 0
    message: str = ""
    mistake: str = ""
    sentence: str = ""  # the mistake's own
    visible: str = ""
    printed: str = ""
    flags: tuple[str, ...] = ()
    seconds: float = 0
    comment: str = ""


@dataclass(frozen=True)
class Judged:
    """All results of one notebook, and remarks on its other cells."""

    marks: tuple[Marked, ...]
    notes: tuple[str, ...] = ()


class _Missed(BaseException):
    """Something looked for what a left-out cell would have made; no ``Exception``, as ``Ended`` is none."""


class Judge:
    """Runs one rebuilt notebook, without the lab's own cells that no answer needs (``needed``).

    If anything then looks for what such a cell would have made, all that was found counts for nothing, and the
    whole notebook runs in a fresh kernel: a verdict never depends on what was left out.

    Parameters
    ----------
    box
        Where its kernels live.
    secret
        Draws the hidden cases: the same for all submissions of a batch, known to nobody in a box.
    """

    def __init__(self, rebuilt: Rebuilt, box: Box, secret: str) -> None:
        self.all_steps, self.box, self.secret = rebuilt.steps, box, secret
        self._begin(self.all_steps, None)

    def _begin(self, steps: tuple[Step, ...], left_out: frozenset[str] | None) -> None:
        """Nothing is known yet; ``left_out`` are the names that missing cells would have bound, None: none is missing."""
        self.steps, self.left_out = steps, left_out
        self.marks: dict[str, Marked] = {}
        self.notes: list[str] = []
        self.printed: dict[str, str] = {}
        self.bad: set[str] = set()
        self.number = self.last = 0
        self.started = time.monotonic()
        self.spent: dict[str, float] = {}
        self.kernel: Kernel | None = None
        self.used = 0.0  # seconds that kernels have worked; the judge's own time is not the student's
        self.checks = {step.answer: step for step in self.steps if step.kind == "check" and step.answer}

    def run(self) -> Judged:
        """Judge every exercise.

        Raises
        ------
        InfrastructureError
            No kernel could be had; nothing may be concluded about the submission.
        """
        if all(same_code(step.source, step.stub) for step in self.steps if step.kind == "answer"):
            for step in self.steps:
                if step.kind == "check":
                    self._mark(step, "NOT_ATTEMPTED", UNTOUCHED)
            return Judged(tuple(self.marks.values()))
        fewer = None if self.box.limits.all_cells else reduced(self.all_steps)
        if fewer is not None:
            self._begin(fewer.steps, fewer.left_out)
            try:
                return self._judged()
            except _Missed:
                self._begin(self.all_steps, None)
        return self._judged()

    def _judged(self) -> Judged:
        self.last = max((i for i, step in enumerate(self.steps) if step.kind == "check"), default=-1)
        try:
            for number, step in enumerate(self.steps[: self.last + 1]):
                try:
                    self.number = number
                    self._ensure_kernel(number)
                    self.started = time.monotonic()
                    getattr(self, f"_{step.kind}")(step)
                except Ended as end:
                    self.kernel = None
                    self._ended(step, end)
                self.spent[step.cell] = time.monotonic() - self.started
        finally:
            if self.kernel is not None:
                self.kernel.close()
                self.kernel = None
        ordered = [step for step in self.steps if step.kind == "check"]
        marks = (replace(self.marks[s.exercise], printed=self.printed.get(s.answer, "")) for s in ordered)
        return Judged(tuple(marks), tuple(self.notes))

    # --- kernels ------------------------------------------------------------------------------------

    def _left(self) -> float:
        return self.box.limits.notebook_seconds - self.used

    def _execute(self, code: str, expression: str = "") -> Reply:
        left, limit = self._left(), self.box.limits.cell_seconds
        if left <= 0:
            if self.kernel is not None:
                self.kernel.close()
            raise Ended("TIMEOUT", self._used_up())
        assert self.kernel is not None
        started = time.monotonic()
        try:
            reply = self.kernel.execute(code, min(left, limit), expression)
        finally:
            self.used += time.monotonic() - started
        self._look_for_missed(reply.error, reply.message)
        return reply

    def _look_for_missed(self, error: str, message: str) -> None:
        """Give up what left cells out, where an error may come of that."""
        if self.left_out is not None and missed(error, message, self.left_out):
            raise _Missed

    def _used_up(self) -> str:
        return f"the notebook's {self.box.limits.notebook_seconds:g} s were used up before this"

    def _ensure_kernel(self, number: int) -> None:
        """A kernel in the state that the first ``number`` steps leave behind."""
        while self.kernel is None:
            if self._left() <= 0:
                raise Ended("TIMEOUT", self._used_up())
            started = time.monotonic()
            self.kernel = self._started()
            self.used += time.monotonic() - started if number else 0  # the first start is on the house
            for step in self.steps[:number]:
                try:
                    self._replay(step)
                except Ended:
                    self.kernel = None
                    if self._left() <= 0:
                        raise
                    self.bad.add(step.cell)  # next time without it, so this ends
                    break

    def _started(self) -> Kernel:
        try:
            return Kernel(self.box)
        except InfrastructureError:
            return Kernel(self.box)  # a busy machine deserves a second chance, a broken one gets no third

    def _replay(self, step: Step) -> None:
        if step.kind == "given":
            if step.cell not in self.bad:
                self._execute(step.source)
        elif step.kind == "answer":
            check = self.checks.get(step.cell)
            mark = self.marks.get(check.exercise) if check else None
            kept = step.cell not in self.bad and (mark is None or mark.status == "OK")
            self._execute(step.source if kept else step.stub)
        else:
            self._after(step)

    def _ended(self, step: Step, end: Ended) -> None:
        """The kernel is gone: whose fault is it?"""
        check = step if step.kind == "check" else self.checks.get(step.cell)
        if check is None or check.exercise in self.marks:
            self.bad.add(step.cell)
            if self._left() > 0:
                self.notes.append(f"cell {step.cell}: {end.reason}; it was left out")
            return
        self.bad.add(check.answer)
        answer = next((s for s in self.steps if s.cell == check.answer), None)
        if answer is not None and same_code(answer.source, answer.stub):
            self._mark(check, "NOT_ATTEMPTED", UNTOUCHED)
        else:
            self._mark(check, end.status, f"{end.reason[:1].upper()}{end.reason[1:]}.")

    # --- steps --------------------------------------------------------------------------------------

    def _given(self, step: Step) -> None:
        reply = self._execute(step.source)
        if reply.error and self.left_out is not None:
            raise _Missed
        if reply.error:
            self.notes.append(f"the lab's own cell {step.cell} raised {reply.error}: {reply.message[:200]}")

    def _answer(self, step: Step) -> None:
        check = self.checks.get(step.cell)
        untouched = same_code(step.source, step.stub)
        if check and untouched:
            self._mark(check, "NOT_ATTEMPTED", UNTOUCHED)
        reply = self._execute(step.source)
        self.printed[step.cell] = reply.printed + ("\n… (cut)" if reply.cut else "")
        if not reply.error:
            return
        if check is None or check.exercise in self.marks:
            return
        if reply.error == "NotImplementedError" and not reply.message:
            self._mark(check, "NOT_ATTEMPTED", "The answer cell still raises NotImplementedError.")
        else:
            status = "MEMORY" if reply.error == "MemoryError" else "ERROR"
            message = f"Your cell raised {reply.error}: {reply.message}".rstrip(": ") + no_network(reply.error)
            self._mark(check, status, message, visible=reply.traceback)

    def _check(self, step: Step) -> None:
        if step.exercise not in self.marks:
            self._probe(step)
        if self.number < self.last:
            self._ensure_kernel(self.number)
            self._after(step)

    def _after(self, step: Step) -> None:
        """What follows a check, with the student's answer if it was right and the reference if not."""
        mark = self.marks[step.exercise]
        if step.cell in self.bad:
            return
        if mark.status == "OK" and step.answer not in self.bad:
            kept = step.expression
        else:
            try:
                source, name = reference_source(get(step.exercise))
            except PanguLabError:
                return
            kept = f"{_AGENT}.install({source!r}, {name!r})"
            # The cell as it was handed out brings the imports and constants that later cells count on.
            self._execute(next((s.stub for s in self.steps if s.cell == step.answer and s.stub), ""))
        self._execute(f"{KEPT} = {kept}\n{step.source}")

    def _mark(self, step: Step, status: str, message: str = "", share: float = 0, **more: Any) -> None:
        points = step.points * (1.0 if status == "OK" else share)
        seconds = round(time.monotonic() - self.started + self.spent.get(step.answer, 0), 2)
        mark = Marked(step.exercise, status, points, step.points, plain(message), seconds=seconds, **more)
        self.marks[step.exercise] = mark

    # --- probing ------------------------------------------------------------------------------------

    def _probe(self, step: Step) -> None:
        answer = next((s for s in self.steps if s.kind == "answer" and s.cell == step.answer), None)
        try:
            exercise = get(step.exercise)
            forbidden = forbidden_use(answer.source if answer else "", exercise)
            if forbidden:
                message = f"Your answer uses {forbidden}, which this exercise does not allow."
                self._mark(step, "WRONG", message, flags=("FORBIDDEN",))
                return
            verdict = self._verdict(exercise, step.expression, seed_of(self.secret, step.exercise))
        except (ExerciseError, UnknownExercise) as error:
            self._mark(step, "INFRA", f"The exercise itself failed, which is not your fault: {error}")
            return
        if verdict.status is Status.RIGHT:
            self._mark(step, "OK")
        elif verdict.status is Status.NOT_ATTEMPTED:
            self._mark(step, "NOT_ATTEMPTED", "Your function still raises NotImplementedError.")
        else:
            share = verdict.passed / verdict.total if exercise.partial and verdict.total else 0.0
            self._mark(
                step,
                _STATUS[verdict.status],
                told(verdict),
                share=share,
                mistake=verdict.mistake,
                sentence=verdict.sentence,
            )
            self._show(step, exercise)

    def _show(self, step: Step, exercise: Exercise) -> None:
        """Add what the student may see: the same answer on the inputs that the lab itself shows."""
        mark = self.marks[step.exercise]
        try:
            verdict = self._verdict(exercise, step.expression, 0)
            failed = verdict.status in (Status.WRONG, Status.ERROR)
            visible = report(exercise, verdict) if failed else "On the inputs that the lab shows, your answer is right."
        except (Ended, PanguLabError) as error:
            if isinstance(error, Ended):
                self.kernel = None
                self.bad.add(step.answer)
            return
        if step.exercise in self.marks:
            visible = visible.replace(f'hint("{exercise.id}") opens a hint.', "").strip()
            self.marks[step.exercise] = replace(mark, visible=plain(visible))

    def _verdict(self, exercise: Exercise, expression: str, seed: int) -> Verdict:
        cases = draw_cases(exercise, seed)
        if runs_outside(exercise):
            outcomes = self._outcomes_outside(exercise, expression, cases, seed)
        else:
            outcomes = self._outcomes_inside(exercise, expression, cases, seed)
        try:
            with preserved_random_state():
                return judge(exercise, cases, outcomes, seed)
        except ExerciseError:
            raise
        except Exception as error:  # whatever a stranger's data can make a comparison do
            outcome = Outcome(error="TypeError", message=f"the result cannot be compared ({type(error).__name__})")
            return judge(exercise, cases, [outcome] * len(cases), seed)

    def _outcomes_inside(
        self, exercise: Exercise, expression: str, cases: Sequence[Case], seed: int
    ) -> Sequence[Outcome]:
        """The drive runs in the box, beside the student's function."""
        source, name = drive_source(exercise)
        try:
            packed = [pack((case.args, case.kwargs)) for case in cases]
        except NotPlain as error:
            raise ExerciseError(f"{exercise.id}: its cases are not plain data: {error}") from error
        request = {"expression": expression, "drive": source, "name": name, "cases": packed, "seed": seed}
        outcomes = self._ask("probe", request)
        return outcomes if len(outcomes) == len(cases) else [unreadable(outcomes)] * len(cases)

    def _outcomes_outside(
        self, exercise: Exercise, expression: str, cases: Sequence[Case], seed: int
    ) -> Sequence[Outcome]:
        """The drive runs here; only single calls of the student's function cross the wall."""
        until = time.monotonic() + self.box.limits.cell_seconds
        student = Stranger(self._ask, expression, until)
        return answers(exercise.drive, student, cases, seed, quiet=True)

    def _ask(self, what: str, request: dict[str, Any]) -> list[Outcome]:
        """One question to the half inside; an answer without its nonce is no answer."""
        nonce = secrets.token_hex(16)
        text = base64.b64encode(json.dumps(request | {"nonce": nonce}).encode()).decode()
        reply = self._execute("", f"{_AGENT}.{what}('{text}')")
        try:
            content = reply.values["value"]["data"][inside.MIME]
            assert content["nonce"] == nonce
            outcomes = [outcome_of(item) for item in content["outcomes"]]
        except Exception:
            return []
        for outcome in outcomes:
            self._look_for_missed(outcome.error, outcome.message)
        return outcomes


def missed(error: str, message: str, left_out: frozenset[str]) -> bool:
    """Whether an error may come of a cell that was left out: a name, an attribute of a module, a file it would make."""
    if error in ("NameError", "UnboundLocalError", "KeyError"):
        return not message or bool(left_out & set(re.findall(r"\w+", message)))
    if error == "AttributeError":
        return not message or "module" in message
    return error in ("FileNotFoundError", "ModuleNotFoundError")


_OF_NETWORKS = ("URLError", "HTTPError", "gaierror", "ConnectionError", "ConnectionRefusedError", "ConnectError",
                "MaxRetryError", "OfflineModeIsEnabled", "LocalEntryNotFoundError")  # fmt: skip


def no_network(error: str) -> str:
    """A remark where an error is that of somebody who looks for the network."""
    return " There is no network while grading; use what the lab gives you." if error in _OF_NETWORKS else ""


def told(verdict: Verdict) -> str:
    """Why an answer is wrong, without a value of a hidden input or of what was expected there."""
    sentences = [verdict.sentence] if verdict.sentence else []
    if verdict.status is Status.ERROR and verdict.yours is not None:
        where = f" ({verdict.yours.where[:200]})" if verdict.yours.where else ""
        sentences.insert(0, f"Your code raised {verdict.yours.error}{where}.{no_network(verdict.yours.error)}")
        if verdict.yours.error in ("NameError", "TypeError") and not verdict.yours.where:
            sentences.insert(1, f"{verdict.yours.message[:300]}.")
    note = f"; the first that fails: {verdict.case.note}" if verdict.case is not None and verdict.case.note else ""
    return " ".join([*sentences, f"{verdict.passed} of {verdict.total} hidden inputs pass{note}."])
