"""Warm kernels, the judge's half: a parent in bubblewrap that has imported what labs import, and is forked.

A cold kernel spends seconds on importing torch and transformers; a fork has them. One parent serves one worker.
What keeps a kernel from its parent stands in ``forkserver``. Read ``Parent.kernel`` first.
"""

import ast
import contextlib
import functools
import json
import os
import select
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from pangu_lab.grading.box import WRITABLE, Box, die_with, shown
from pangu_lab.grading.notebook_format import without_magics
from pangu_lab.grading.rebuild import Release

BASE = (
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "matplotlib.pyplot",
    "numpy",
    "pandas",
    "pangu_lab.grading.inside",
    "pangu_lab.lab",
    "safetensors.numpy",
    "safetensors.torch",
    "sklearn",
    "torch",
    "transformers",
    "transformers.models.bert.modeling_bert",
)
ENOUGH = 4  # submissions per worker from which the parent's own start pays


class NotWarm(Exception):
    """No kernel can be forked here; the reason in words."""


def modules_of(releases: Iterable[Release]) -> tuple[str, ...]:
    """What a parent should import: what every lab needs, and what the instructors' own cells import."""
    found = set(BASE)
    for release in releases:
        for step in release.steps:
            with contextlib.suppress(SyntaxError):
                tree = ast.parse(without_magics(step.stub if step.kind == "answer" else step.source))
                for node in ast.walk(tree):
                    if isinstance(node, ast.Import):
                        found |= {alias.name for alias in node.names}
                    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                        found |= {f"{node.module}:{alias.name}" for alias in node.names}
    return tuple(sorted(found))


class Forked:
    """Process 1 of a kernel's namespaces, by a handle that means no other process later; when it ends, all of it has.

    It has what the judge uses of ``subprocess.Popen``.
    """

    stderr: IO[bytes] | None = None
    returncode = 0

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """None while it runs."""
        return 0 if self._handle < 0 or select.select([self._handle], [], [], 0)[0] else None

    def kill(self) -> None:
        """End it and all processes in its namespace."""
        if self._handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end."""
        if self._handle >= 0:
            select.select([self._handle], [], [], 30)
            os.close(self._handle)
            self._handle = -1
        return 0


class Parent:
    """The process that warm kernels are forked from.

    Raises
    ------
    NotWarm
        This machine does not allow it, or an import makes forking unsafe.
    """

    def __init__(self, box: Box) -> None:
        self.limits = box.limits
        below = [path for path in shown(box) for place in WRITABLE if Path(path).is_relative_to(place)]
        if below:
            raise NotWarm(f"{below[0]} stands where every kernel gets an empty folder of its own")
        self._line, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the parent
        self._process = subprocess.Popen(
            box.parent_command(),
            stdin=other.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=self._words,
            start_new_session=True,
            preexec_fn=functools.partial(die_with, os.getpid()),
        )
        other.close()
        answer = self._hear(self._line, 2 * self.limits.start_seconds)
        if answer != "ready":
            self.close()
            raise NotWarm(answer)

    def kernel(
        self, connection: dict[str, Any], folder: str, limits: dict[str, int], join: Callable[[int], None]
    ) -> Forked:
        """Fork a kernel; ``join`` is given its process id before anything of the student's runs in it.

        Raises
        ------
        NotWarm
            No kernel came of it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # the system says who answers, as we number it
            request = {"connection": json.dumps(connection), "folder": folder, "limits": limits}
            try:
                with theirs:
                    socket.send_fds(self._line, [json.dumps(request).encode()], [theirs.fileno()])
                ours.settimeout(self.limits.start_seconds)
                text, extra, _, _ = ours.recvmsg(2000, socket.CMSG_SPACE(12))
                if text != b"ready":
                    raise NotWarm(text.decode(errors="replace") or "the fork ended at once")
                ((_, _, credentials),) = extra
                pid, _, _ = struct.unpack("3i", credentials)
                process = Forked(pid)  # it waits for our word, so this number is still its own
                join(pid)
                ours.send(b"go")
                return process
            except (OSError, ValueError) as error:
                raise NotWarm(f"the parent of warm kernels does not answer ({error})") from error

    def _hear(self, line: socket.socket, seconds: float) -> str:
        line.settimeout(seconds)
        try:
            text = line.recv(2000).decode(errors="replace")
        except TimeoutError:
            return f"nothing was ready after {seconds:.0f} s"
        except OSError as error:
            return str(error)
        if text:
            return text
        self._words.seek(0)
        last = self._words.read(20_000).decode(errors="replace").strip().splitlines()[-1:]
        return last[0] if last else "it ended at once"

    def close(self) -> None:
        """End the parent and every kernel that it has forked."""
        self._line.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._words.close()


def warm_parent(box: Box) -> Parent | None:
    """The parent of a box's kernels, started when first asked for; None where kernels start cold."""
    if not box.boxed or not box.modules or box.cold_because:
        return None
    if box.parent is None:
        try:
            box.parent = Parent(box)
        except (NotWarm, OSError) as error:
            box.cold_because = str(error)
    parent: Parent | None = box.parent
    return parent


def gone_cold(box: Box, reason: str) -> None:
    """From now on kernels of this box start by themselves."""
    box.cold_because = reason or "for no known reason"
    if box.parent is not None:
        box.parent.close()
        box.parent = None
