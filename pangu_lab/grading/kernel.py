"""One kernel and the judge's line to it: code goes in, replies come out, within limits of time, size and memory.

Whatever goes wrong with it is an ``Ended``: it took too long, died, or used too much. Then it is gone, killed from
outside with everything it had started; no signal that it could catch is sent first. Read ``Kernel.execute`` first.
"""

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import zmq
from jupyter_client.session import Session

from pangu_lab.errors import PanguLabError
from pangu_lab.grading.box import SOCKETS, Box, die_with
from pangu_lab.grading.warm import NotWarm, gone_cold, warm_parent

LARGEST_REPLY, LARGEST_OUTPUT = 100_000_000, 4_000_000
MOST_FILES = 50_000
Keep = Callable[[str, dict[str, Any]], None]
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


class InfrastructureError(PanguLabError):
    """The grader's own means failed; never the student's fault."""


class Ended(BaseException):
    """The kernel is gone; ``status`` is TIMEOUT, MEMORY, KERNEL_DIED, or ERROR where the cell asked for the end itself.

    Not an ``Exception``, because what tries out a student's function must not take it for the function's own.
    """

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Reply:
    """What became of one cell: "ok" or the error, its printed text (cut), and the values of expressions."""

    error: str = ""
    message: str = ""
    traceback: str = ""
    printed: str = ""
    cut: bool = False
    values: Any = None


class Kernel:
    """A fresh kernel in a box.

    Raises
    ------
    InfrastructureError
        It did not start within ``start_seconds``.
    """

    def __init__(self, box: Box) -> None:
        self.box, self.limits = box, box.limits
        self.printed_total = 0
        self._next_look = 0.0
        self._scratch = "" if box.boxed else tempfile.mkdtemp(prefix="pangu-lab-run-")
        self._cgroups: list[Path] = []
        self._context = zmq.Context()
        self._shell: Any = None
        self._iopub: Any = None
        self._session = Session(key=secrets.token_hex(16).encode())
        self._process: Any = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        folder = SOCKETS if self.box.boxed else self._scratch
        names = ("shell", "iopub", "stdin", "control", "hb")
        ports = {f"{name}_port": number for number, name in enumerate(names, start=1)}
        connection = {
            "transport": "ipc",
            "ip": f"{folder}/k",
            "key": self._session.key.decode(),
            "signature_scheme": "hmac-sha256",
            **ports,
        }
        deadline = time.monotonic() + self.limits.start_seconds
        self._make_cgroups()
        inner = self._start_warm(connection, folder) or self._start_cold(connection, folder)
        # Its own sockets lie in the box's own scratch, seen from here through /proc: nothing is shared to write.
        place = f"/proc/{inner}/root{folder}" if self.box.boxed else folder
        while not self._answers(place, min(deadline, time.monotonic() + 10)):
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise InfrastructureError(f"a kernel did not start: {self._last_words()}")

    def _start_warm(self, connection: dict[str, Any], folder: str) -> int:
        """Fork the kernel from a parent that has imported everything; 0 where it has to start by itself."""
        parent = warm_parent(self.box)
        if parent is None:
            return 0

        def join(pid: int) -> None:
            for group in self._cgroups:
                (group / "cgroup.procs").write_text(str(pid))

        try:
            self._process = parent.kernel(connection, folder, self.box.rlimits(), join)
        except NotWarm as error:
            gone_cold(self.box, str(error))
            return 0
        return int(self._process.pid)

    def _start_cold(self, connection: dict[str, Any], folder: str) -> int:
        """Start a Python that becomes the kernel; its process id, seen from here."""
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*self._joining_cgroups(), *self.box.command(connection, folder, writing)],
                pass_fds=[writing],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE if os.environ.get("PANGU_LAB_DEBUG_BOX") is None else None,
                env=None if self.box.boxed else self.box.environment(self._scratch),
                cwd=None if self.box.boxed else self._scratch,
                start_new_session=True,
                preexec_fn=functools.partial(die_with, os.getpid()),
            )
        finally:
            os.close(writing)
        with os.fdopen(reading, "rb") as told:
            return self._inner_process(told) if self.box.boxed else 0

    def _inner_process(self, told: Any) -> int:
        text = b""
        while b"}" not in text:
            piece = os.read(told.fileno(), 4096)
            if not piece:
                raise InfrastructureError(f"the box did not start: {self._last_words()}")
            text += piece
        return int(json.loads(text)["child-pid"])

    def _last_words(self) -> str:
        if self._process.poll() is None or self._process.stderr is None:
            return f"no answer in {self.limits.start_seconds:.0f} s"
        lines = self._process.stderr.read(20_000).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with {self._process.returncode}"

    def _answers(self, place: str, until: float) -> bool:
        """Connect once all five sockets are there; whether the kernel answers."""
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError):
                if sum(name.startswith("k-") for name in os.listdir(place)) >= 5:
                    break
            time.sleep(0.02)
        else:
            return False
        self._disconnect()
        self._shell = self._socket(zmq.DEALER, f"{place}/k-1", LARGEST_REPLY, 100)
        self._iopub = self._socket(zmq.SUB, f"{place}/k-2", LARGEST_OUTPUT, 2)  # more waits on the other side
        self._iopub.subscribe(b"")
        self._session.send(self._shell, "kernel_info_request", {})
        return bool(self._shell.poll(2000)) and self._session.recv(self._shell)[1] is not None

    def _socket(self, kind: int, path: str, largest: int, queue: int) -> Any:
        """A socket that never connects again (whoever sits at that path later is not our kernel)."""
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDTIMEO, 1000)  # without a peer, sending would wait forever
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        socket.setsockopt(zmq.MAXMSGSIZE, largest)
        socket.setsockopt(zmq.RCVHWM, queue)
        socket.connect(f"ipc://{path}")
        return socket

    # --- use ----------------------------------------------------------------------------------------

    def execute(self, code: str, seconds: float, expression: str = "", keep: Keep | None = None) -> Reply:
        """Run code, then evaluate an expression; whatever happens it is over after ``seconds``.

        ``keep`` is given the kind and content of each message of output, as far as the limits go.

        Raises
        ------
        Ended
            It took longer, the kernel died, or it used too much; the kernel is gone then.
        """
        content = {
            "code": code,
            "silent": not code,
            "store_history": False,
            "user_expressions": {"value": expression} if expression else {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        try:
            try:
                request: Any = self._session.send(self._shell, "execute_request", content)
            except zmq.ZMQError as unsent:
                raise self._death() from unsent
            number = str(request["header"]["msg_id"])
            reply, printed, cut = self._wait(number, time.monotonic() + seconds, seconds, keep)
        except Ended:
            self.close()
            raise
        error = str(reply.get("ename", "Error"))[:100] if reply.get("status") != "ok" else ""
        payload = reply.get("payload")
        if isinstance(payload, list) and any(isinstance(p, dict) and p.get("source") == "ask_exit" for p in payload):
            self.close()  # it is about to go; better now than in the middle of the next exercise
            raise Ended("ERROR", "exit() or quit() in your cell ended the notebook")
        lines = reply.get("traceback")
        text = "\n".join(str(line)[:2000] for line in lines[-30:]) if isinstance(lines, list) else ""
        return Reply(
            error=error,
            message=plain(str(reply.get("evalue", "")))[:2000] if error else "",
            traceback=plain(text)[-4000:] if error else "",
            printed=plain(printed),
            cut=cut,
            values=reply.get("user_expressions"),
        )

    def _wait(
        self, request: str, deadline: float, seconds: float, keep: Keep | None
    ) -> tuple[dict[str, Any], str, bool]:
        printed, cut = "", False
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Ended("TIMEOUT", f"it was still running after {seconds:.3g} s")
            ready = self._poll(min(left, 0.1))
            if self._iopub in ready:
                text = self._read_output(keep)
                room = min(self.limits.cell_output - len(printed), self.limits.notebook_output - self.printed_total)
                cut |= len(text) > room
                printed += text[: max(room, 0)]
                self.printed_total += len(text)
            if self._shell in ready:
                content = self._read_reply(request)
                if content is not None:
                    while self._iopub is not None and self._iopub.poll(5) and len(printed) < self.limits.cell_output:
                        printed += self._read_output(keep)[: self.limits.cell_output - len(printed)]
                    return content, printed, cut
            self._look()

    def _poll(self, seconds: float) -> list[Any]:
        poller = zmq.Poller()
        for socket in (self._shell, self._iopub):
            if socket is not None:
                poller.register(socket, zmq.POLLIN)
        return [socket for socket, _ in poller.poll(int(1000 * seconds) + 1)]

    def _read_reply(self, request: str) -> dict[str, Any] | None:
        try:
            message: Any = self._session.recv(self._shell)[1]
            right = message["parent_header"].get("msg_id") == request and message["msg_type"] == "execute_reply"
            return dict(message["content"]) if right else None
        except Exception:  # the student's side may send anything
            return None

    def _read_output(self, keep: Keep | None = None) -> str:
        """The text of one message of output; pictures and other media are for ``keep`` only."""
        if self.printed_total > self.limits.notebook_output:
            self._iopub.close()  # cut for good: what nobody reads takes no memory here
            self._iopub = None
            return ""
        try:
            parts = self._iopub.recv_multipart()
            message: Any = self._session.feed_identities(parts)[1]
            kind = json.loads(bytes(message[1]))["msg_type"]
            content = json.loads(bytes(message[4])) if keep or kind == "stream" else {}
            if keep:
                keep(str(kind), content)
            if kind != "stream":
                self.printed_total += sum(map(len, message)) // 20
                return ""
            return str(content["text"])
        except Exception:
            return ""

    def _look(self) -> None:
        """Is it alive, and within its limits? Seen from outside."""
        if self._process.poll() is not None:
            raise self._death()
        if self._out_of_memory():  # the system may have ended a child, and not the kernel itself
            raise self._death()
        now = time.monotonic()
        if now < self._next_look:
            return
        memory = count = 0
        family = self._family()
        for process in family:
            with contextlib.suppress(psutil.Error):
                memory += process.memory_info().rss
                count += process.num_threads()
        if memory > self.limits.memory:  # forks share most of it, so look closer
            memory = sum(map(_own_memory, family))
        self._next_look = time.monotonic() + max(0.2, 4 * (time.monotonic() - now))
        if memory > self.limits.memory:
            raise Ended("MEMORY", f"it used more than {self.limits.memory / 1e9:.3g} GB")
        if count > self.limits.processes + 20:
            raise Ended("KERNEL_DIED", f"it started more than {self.limits.processes} processes and threads")

    def _family(self) -> list[Any]:
        try:
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.Error:
            return []

    def _death(self) -> Ended:
        if self._out_of_memory():
            return Ended("MEMORY", f"it used more than {self.limits.memory / 1e9:.3g} GB")
        return Ended("KERNEL_DIED", "the Python process ended while your code ran")

    def _out_of_memory(self) -> bool:
        """Whether the system has ended a process of the box because all together used too much."""
        for folder in self._cgroups:
            with contextlib.suppress(OSError, ValueError):
                killed = (folder / "memory.oom_control").read_text().split("oom_kill ")
                if len(killed) == 2 and int(killed[1].split()[0]):
                    return True
        return False

    # --- the end ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Kill the kernel and all that it started, and forget it."""
        if self._process is not None:
            family = [] if self.box.boxed else self._family()
            if isinstance(self._process, subprocess.Popen):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            for process in family:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self._process.kill()
            self._process.wait()
            if self._process.stderr:
                self._process.stderr.close()
            self._process = None
        self._disconnect()
        self._context.destroy(linger=0)
        for folder in self._cgroups:
            for _ in range(150):
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.02)
        self._cgroups = []
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _disconnect(self) -> None:
        for socket in (self._shell, self._iopub):
            if socket is not None:
                socket.close()
        self._shell = self._iopub = None

    def _joining_cgroups(self) -> list[str]:
        if not self._cgroups:
            return []
        joins = "; ".join(f"echo $$ > {folder}/cgroup.procs" for folder in self._cgroups)
        return ["/bin/sh", "-c", f'{joins}; exec "$@"', "sh"]

    def _make_cgroups(self) -> None:
        """Where the grader may make control groups: limits that hold for all processes of the box together."""
        if not self.box.boxed or not sys.platform.startswith("linux"):
            return
        name = f"pangu-lab-{os.getpid()}-{secrets.token_hex(4)}"
        wanted = {"pids": {"pids.max": self.limits.processes}, "memory": {"memory.limit_in_bytes": self.limits.memory}}
        for controller, settings in wanted.items():
            folder = Path("/sys/fs/cgroup") / controller / name
            try:
                folder.mkdir()
                self._cgroups.append(folder)
                for file, limit in settings.items():
                    (folder / file).write_text(str(limit))
            except OSError:
                continue


def _own_memory(process: Any) -> int:
    """A process's bytes of memory, where several share a page each its part of it."""
    with contextlib.suppress(psutil.Error, OSError):
        info = process.memory_full_info()
        return int(getattr(info, "pss", 0) or info.rss)
    return 0


def plain(text: str) -> str:
    """Text without the signs that a terminal would obey."""
    return _ANSI.sub("", text.replace("\r\n", "\n"))
