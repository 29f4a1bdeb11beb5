"""The grader's half inside the box, beside the student's code: it starts the kernel and answers probes.

It knows inputs, never an expected value, so whoever tampers with it can only spoil answers or compute them.
"""

import base64
import json
import os
import random
import sys
import types
from typing import Any

import numpy as np

from pangu_lab.exercises.calling import Case, Outcome, _answer, answers
from pangu_lab.grading.wire import NotPlain, pack, unpack

MIME = "application/vnd.pangu-lab.probe+json"
_LONGEST = 2000


def launch(connection: str, folder: str, limits: dict[str, int]) -> None:
    """Set this process's limits for good, then become a kernel whose sockets lie in ``folder``."""
    import resource

    for name, limit in limits.items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (limit, limit))
    path = os.path.join(folder, "connection.json")
    with open(path, "w", encoding="utf-8") as file:
        file.write(connection)
    if sys.platform.startswith("linux"):
        from pangu_lab.grading.forkserver import own_keyring

        own_keyring()
    modules: dict[str, Any] = sys.modules
    modules["debugpy"] = None  # nobody debugs here, and it warns on every start
    from ipykernel.kernelapp import IPKernelApp

    sys.argv = ["kernel"]
    IPKernelApp.launch_instance(argv=["-f", path, "--HistoryManager.enabled=False", "--IPKernelApp.log_level=50"])


class _Given:
    """Arguments that ``calling`` must not copy, because what the call does to them is the question."""

    def __init__(self, args: tuple, kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs

    def __deepcopy__(self, memo: dict) -> "_Given":
        return self


def call_student(student: Any, case: Case) -> Any:
    """The drive of a single call."""
    return student(*case.args[0].args, **case.args[0].kwargs)


class Reply:
    """What a probe hands to the judge: JSON under a MIME type of its own."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {MIME: self.content, "text/plain": ""}


def probe(request: str) -> Reply:
    """Call the student's object on the cases of a request, and pack what came of each."""
    content = json.loads(base64.b64decode(request))
    fn = _student(content["expression"])
    if isinstance(fn, Outcome):
        outcomes = [fn] * len(content["cases"])
    else:
        cases = [Case(*unpack(case)) for case in content["cases"]]
        drive = _module(content["drive"], "pangu_drive").__dict__[content["name"]]
        outcomes = answers(drive, fn, cases, content["seed"])
    return Reply({"nonce": content["nonce"], "outcomes": [_packed(outcome) for outcome in outcomes]})


def call(request: str) -> Reply:
    """One call of the student's function, under the judge's random states; what it changed goes back, too."""
    content = json.loads(base64.b64decode(request))
    fn = _student(content["expression"])
    args, kwargs, before = unpack(content["call"])
    if isinstance(fn, Outcome):
        return Reply({"nonce": content["nonce"], "outcomes": [_packed(fn)]})
    set_states(before)
    outcome = _answer(call_student, fn, Case((_Given(args, kwargs),)))
    after = Outcome(value=(args, kwargs, states("torch" in before)))
    return Reply({"nonce": content["nonce"], "outcomes": [_packed(outcome), _packed(after)]})


def install(source: str, name: str) -> Any:
    """The object that a source defines; used for the reference of an exercise that has been judged."""
    return _module(source, f"pangu_reference_{name}").__dict__[name]


def _student(expression: str) -> Any:
    from IPython.core.getipython import get_ipython

    try:
        return eval(expression, get_ipython().user_ns)
    except NameError as error:
        missing = error.name or expression
        return Outcome(
            error="NameError", message=f"after your cell there is no {missing}; keep the name it has in the lab"
        )
    except Exception as error:
        return Outcome(error=type(error).__name__, message=str(error))


def _module(source: str, name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    sys.modules[name] = module  # classes look their module up
    exec(compile(source, f"<{name}>", "exec"), module.__dict__)
    return module


def _packed(outcome: Outcome) -> dict[str, Any]:
    try:
        value = pack(outcome.value)
    except NotPlain as error:
        return {"error": "TypeError", "message": str(error)[:_LONGEST]}
    return {
        "value": value,
        "error": str(outcome.error)[:100],
        "message": str(outcome.message)[:_LONGEST],
        "where": str(outcome.where)[:300],
        "stub": bool(outcome.stub),
        "changed": str(outcome.changed)[:100],
    }


def states(with_torch: bool) -> dict[str, Any]:
    """The states of the global random generators as plain data."""
    python, array = random.getstate(), np.random.get_state()
    found: dict[str, Any] = {"python": python, "numpy": array}
    if with_torch:
        import torch

        found["torch"] = torch.get_rng_state()
    return found


def set_states(found: dict[str, Any]) -> None:
    """Set the global random generators to ``states``."""
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])
    if "torch" in found:
        import torch

        torch.set_rng_state(found["torch"])
