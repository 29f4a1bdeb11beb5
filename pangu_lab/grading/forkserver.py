"""The half of a warm start that runs inside bubblewrap: a parent that has imported everything, and forks kernels.

The parent never runs a student's code. Each kernel gets namespaces of its own (users, processes, mounts, network,
IPC), empty folders to write to, and no capability; then it is the same process that a cold start makes. From there
the parent cannot be reached: its process id has no meaning in the kernel's process namespace and is not in its
``/proc``; it is in another session, so that signals to a process group do not reach it; it is not dumpable and has
capabilities in an outer user namespace, either of which forbids ptrace; its memory is copied on write, and it
refuses to serve if it has a writable mapping that a fork would share, a second thread, an open file or CUDA.
What it has in memory is the Python packages and nothing of ours (the references are not in the mirror).

Read ``serve`` first, then ``_settle``. ``warm`` is the judge's half.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import platform
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

NEW_MOUNTS, NEW_CGROUP, NEW_UTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = (
    0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_SET_DUMPABLE, _DROP_BOUND, _NO_NEW_PRIVILEGES, _AMBIENT, _CLEAR_AMBIENT = 4, 24, 38, 47, 4
_CAPABILITIES_V3 = 0x20080522
MOST_FILES = 200_000  # files in each folder that can be written
_TORCH_SEED = 67280421310721  # what torch's generator starts from in every new process

_libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None


def serve(modules: list[str], folders: dict[str, int]) -> None:
    """Import ``modules``, say so on standard input (a socket), and fork a kernel for each request that comes there.

    Parameters
    ----------
    modules
        Names, or "module:name" for what a module loads when the name is asked for. What cannot be imported is
        left out; the cell that imports it will say so.
    folders
        Where a kernel may write, and how many bytes; the first is its home.
    """
    line = socket.socket(fileno=os.dup(0))
    _silence()
    _call("prctl", _SET_DUMPABLE, 0, 0, 0, 0)
    for place in ("sys", "sysrq-trigger", "irq", "bus"):  # bubblewrap's covers; under them no kernel gets its own /proc
        _libc.umount2(f"/proc/{place}".encode(), 0)
    trial, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _fork(lambda: _separate(other, folders, None))
    other.close()
    problem = trial.recv(2000).decode() or "a process in namespaces of its own ended at once"
    trial.close()
    if problem == "ready":
        _import(modules)
        problem = _unfit(line.fileno())
    line.send(problem.encode())
    if problem != "ready":
        return
    gc.collect()
    gc.freeze()  # the collector of a kernel leaves these pages alone, so they stay shared
    while True:
        request, files, _, _ = socket.recv_fds(line, 100_000, 1)
        if not request or not files:
            return
        answering = socket.socket(fileno=files[0])
        _fork(partial(_separate, answering, folders, json.loads(request)))
        answering.close()


def _import(modules: list[str]) -> None:
    for entry in modules:
        module, _, name = entry.partition(":")
        with contextlib.suppress(Exception):
            loaded = importlib.import_module(module)
            if name and not hasattr(loaded, name):
                importlib.import_module(entry.replace(":", "."))


def _unfit(line: int) -> str:
    """Why this process may not be forked from; "ready" if it may."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        return f"an import has started {threads - 1} threads"
    with open("/proc/self/maps", encoding="utf-8") as maps:
        shared = [parts for parts in map(str.split, maps) if parts[1][1] == "w" and parts[1][3] == "s"]
    if shared:
        return f"an import has mapped writable shared memory ({' '.join(shared[0][5:]) or 'without a name'})"
    files = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor that lists them is closed by now
            if int(name) > 2 and int(name) != line:
                files.append(os.readlink(f"/proc/self/fd/{name}"))
    if files:
        return f"an import keeps a file open ({files[0]})"
    zmq, torch = sys.modules.get("zmq"), sys.modules.get("torch")
    if zmq is not None and zmq.Context._instance is not None:
        return "an import has made a context of zmq"
    if torch is not None and torch.cuda.is_initialized():
        return "an import has started CUDA"
    return "ready"


# --- from the parent to a kernel --------------------------------------------------------------------


def _fork(run: Callable[[], None]) -> None:
    """Run something in a child and wait for its end."""
    child = os.fork()
    if child == 0:
        _never_back(run)
    os.waitpid(child, 0)


def _never_back(run: Callable[[], None]) -> NoReturn:
    """No child may ever return into the parent's loop."""
    try:
        run()
    finally:
        os._exit(0)


def _separate(answering: socket.socket, folders: dict[str, int], request: dict[str, Any] | None) -> None:
    """In a child of the parent: leave all its namespaces; a child of this child is the first process in the new ones."""
    try:
        _keep_only(answering.fileno())
        _call("unshare", NEW_USER)
        _call("prctl", _SET_DUMPABLE, 1, 0, 0, 0)  # else its own /proc/self could not be written
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", "1000 0 1")
        _write("/proc/self/gid_map", "1000 0 1")
        _call("unshare", NEW_PIDS | NEW_MOUNTS | NEW_NETWORK | NEW_IPC | NEW_UTS | NEW_CGROUP)
        if os.fork() == 0:
            _never_back(lambda: _first(answering, folders, request))
    except OSError as error:
        answering.send(str(error).encode()[:1000])


def _first(answering: socket.socket, folders: dict[str, int], request: dict[str, Any] | None) -> None:
    """Process 1 of a kernel's namespaces: it starts the kernel when the judge says so, and ends with it."""
    try:
        _settle(folders)
        _give_up_rights()
    except OSError as error:
        answering.send(str(error).encode()[:1000])
        return
    answering.send(b"ready")  # the socket tells the judge who sends this
    if request is None or answering.recv(10) != b"go":
        return
    answering.close()
    kernel = os.fork()
    if kernel == 0:
        _never_back(lambda: _become_kernel(**request))
    while os.wait()[0] != kernel:
        pass  # whatever else ended was left behind by its parent


def _settle(folders: dict[str, int]) -> None:
    """Mount what this kernel alone may see and write."""
    import fcntl

    os.setsid()
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)
    _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    _write("/proc/sys/user/max_user_namespaces", "0")
    _write("/proc/self/oom_score_adj", "500")
    _mount("none", "/proc", "", _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | _NOEXEC)
    _mount("devpts", "/dev/pts", "devpts", _NOSUID | _NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    for place, size in folders.items():
        _mount("tmpfs", place, "tmpfs", _NOSUID | _NODEV, f"size={size},nr_inodes={MOST_FILES},mode=0755")
    os.chdir(next(iter(folders)))  # the folder of this name that was mounted last
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name_and_flags = struct.pack("16sh", b"lo", 1)  # up, as it is where bubblewrap makes a network
        fcntl.ioctl(any_socket, 0x8914, name_and_flags)


def _give_up_rights() -> None:
    """Drop every capability for good, and see that it worked.

    Raises
    ------
    OSError
        It did not.
    """
    for capability in range(64):
        if _libc.prctl(_DROP_BOUND, capability, 0, 0, 0) != 0:
            break
    _call("prctl", _AMBIENT, _CLEAR_AMBIENT, 0, 0, 0)
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    header, nothing = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0), (ctypes.c_uint32 * 6)()
    _call("capset", header, nothing)
    with open("/proc/self/status", encoding="utf-8") as file:
        state = dict(row.split(":\t", 1) for row in file.read().splitlines() if ":\t" in row)
    kept = [name for name, value in state.items() if name.startswith("Cap") and int(value, 16)]
    if kept or state["NoNewPrivs"] != "1" or _libc.unshare(NEW_USER) == 0 or os.getppid() != 0 or os.getpid() != 1:
        raise OSError(f"a kernel would keep rights that it must not have ({' '.join(kept) or 'namespaces'})")


def _become_kernel(connection: str, folder: str, limits: dict[str, int]) -> None:
    from pangu_lab.grading.inside import launch

    _call("prctl", _SET_DUMPABLE, 1, 0, 0, 0)  # as any program is; the reaper above stays as it is
    _reseed()
    launch(connection, folder, limits)


def _reseed() -> None:
    """Every generator as in a new process: what the parent drew, and what another kernel starts from, is unknown."""
    import random

    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(_TORCH_SEED)


# --- the system -------------------------------------------------------------------------------------


def own_keyring() -> None:
    """A session keyring that nobody else has: the kernel's keyrings outlive a process."""
    number = {"x86_64": 250, "aarch64": 219}.get(platform.machine())
    if number is not None:
        _libc.syscall(number, 1, None)


def _silence() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)
    os.close(nothing)


def _keep_only(kept: int) -> None:
    """Close all open files but one; the standard ones lead nowhere."""
    _silence()
    os.dup2(0, 2)
    os.closerange(3, kept)
    os.closerange(kept + 1, 1 << 16)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _mount(what: str, place: str, kind: str, flags: int, options: str = "") -> None:
    _call("mount", what.encode(), place.encode(), kind.encode() or None, flags, options.encode() or None, told=place)


def _call(name: str, *arguments: Any, told: str = "") -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name} {told}: {os.strerror(code)}".replace(" :", ":"))
