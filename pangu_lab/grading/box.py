"""A kernel in a box: bubblewrap with no network, a read-only system, its own processes, and nothing of ours to find.

``Box`` is made once a batch: what the inside may see, with the references and known mistakes left out.
``Kernel`` (in ``kernel``) is one process in it: started by itself, or forked from a parent that has imported
everything (``warm``, ``forkserver``). Where bubblewrap is missing, ``Box(boxed=False)`` keeps the limits on time,
output and memory, and nothing else.

What the box does not do. It shares the host's kernel: a hole in Linux itself is a hole in it (no seccomp filter).
All exercises of a notebook share one process, so an answer can spoil a later answer of the same student, not raise
it. Memory of all processes together is held by a control group where the grader may make one (as root, cgroup v1);
elsewhere each process has a limit of its own and a watchdog adds them up five times a second. The number of files in
the scratch folders is limited by their size only. What data the package bundles, and what other libraries know, an
answer may use, unless its exercise forbids the name, which is a check of the source and can be evaded.

A grader that is run by root needs more care, because without any capability a process of root still owns root's
files: so /proc is read-only (/proc/sys has switches of the whole machine) and the devices are nodes of our own.
"""

import contextlib
import ctypes
import functools
import json
import os
import shutil
import signal
import site
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_lab.errors import PanguLabError

PACKAGE = Path(__file__).resolve().parent.parent
KEPT_EXERCISES = ("__init__.py", "calling.py", "compare.py", "engine.py", "show.py")
KEPT_GRADING = ("__init__.py", "forkserver.py", "inside.py", "wire.py")
HOME, SOCKETS, CODE = "/home/student", "/run/pangu", "/run/pangu-code"
SCRATCH = 256_000_000  # bytes of each folder that can be written
WRITABLE = {HOME: SCRATCH, "/tmp": SCRATCH, "/dev/shm": SCRATCH, SOCKETS: 1_000_000}
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}

# In the box nobody has an exercise's answers, so a check there says only that the grader will look.
_SILENT_LAB = """

def check(exercise_id: str, fn: Any, seed: int = 0) -> Any:
    print(f"○ {exercise_id}: judged by the grader")
    return fn


def hint(exercise_id: str) -> None:
    print(f"{exercise_id}: no hints while grading")


def progress(lab: str | None = None) -> None:
    pass
"""


class NoBox(PanguLabError):
    """This machine cannot box a kernel."""


@dataclass(frozen=True)
class Limits:
    """What one submission may use: seconds by the grader's clock, bytes, processes.

    ``all_cells`` runs the lab's own cells that no answer needs, too.
    """

    cell_seconds: float = 60
    notebook_seconds: float = 600
    start_seconds: float = 60
    memory: int = 4_000_000_000
    processes: int = 200
    file_size: int = 200_000_000
    cell_output: int = 20_000
    notebook_output: int = 2_000_000
    all_cells: bool = False


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None
_PARENT_DEATH_SIGNAL = 1


def die_with(parent: int) -> None:
    """Have this process killed when its parent ends, or end it now if the parent has ended already.

    For ``Popen(preexec_fn=…)`` of a box: bubblewrap asks for the same (--die-with-parent), but only when it runs, and
    without a look at whether somebody is still there.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def why_no_box() -> str:
    """The empty string where bubblewrap works; otherwise why it does not."""
    if not sys.platform.startswith("linux"):
        return f"bubblewrap exists for Linux only, and this is {sys.platform}"
    program = shutil.which("bwrap")
    if program is None:
        return "bubblewrap is not installed (the package is called bubblewrap)"
    tried = subprocess.run(
        [program, "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"],
        capture_output=True,
        text=True,
    )
    last = tried.stderr.strip().splitlines()[-1:] or [f"it ended with {tried.returncode}"]
    return "" if tried.returncode == 0 else f"bubblewrap is there but may not make namespaces ({last[0]})"


class Box:
    """What every kernel of a batch sees: a mirror of the package without references, and the limits.

    Parameters
    ----------
    limits
        What each kernel may use.
    boxed
        False only where someone has said so: no namespaces, the references are on the same disk.
    readable
        Further folders to show, read-only: a mirror of data sets, say.
    folder
        Where the mirror is made; a temporary folder by default. With ``ready`` it is there already.
    modules
        What a parent has imported from which this box's kernels are forked; none: every kernel starts by itself.
        Where forking cannot be had, kernels start by themselves, and ``cold_because`` says why.

    Raises
    ------
    NoBox
        Bubblewrap does not work here, and ``boxed`` asks for it.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        boxed: bool = True,
        readable: tuple[Path, ...] = (),
        folder: Path | None = None,
        ready: bool = False,
        modules: tuple[str, ...] = (),
    ) -> None:
        self.limits, self.boxed, self.readable, self.modules = limits or Limits(), boxed, readable, modules
        self.parent: Any = None  # a warm.Parent, from the first kernel on
        self.cold_because = ""
        reason = why_no_box() if boxed and not ready else ""
        if reason:
            raise NoBox(
                f"no box for submissions: {reason}; install or allow bubblewrap, or give --no-box, which lets "
                "submissions read this machine's files, solutions included, and use its network"
            )
        self.folder = (folder or Path(tempfile.mkdtemp(prefix="pangu-lab-box-"))).resolve()
        self._own = not ready
        self.code, self.etc = self.folder / "code", self.folder / "etc"
        if ready:
            return
        _remove_dead_groups()
        for part in (self.code, self.etc):
            shutil.rmtree(part, ignore_errors=True)
        mirror(self.code)
        self.etc.mkdir()
        (self.etc / "passwd").write_text(f"student:x:1000:1000::{HOME}:/bin/sh\n")
        (self.etc / "group").write_text("student:x:1000:\n")
        self._make_devices()

    def _make_devices(self) -> None:
        """Where root grades: device nodes that a process of root in the box does not own, so cannot change."""
        folder = self.folder / "dev"
        shutil.rmtree(folder, ignore_errors=True)
        if not self.boxed or not sys.platform.startswith("linux") or os.geteuid() != 0:
            return
        folder.mkdir()
        try:
            for name, numbers in _DEVICES.items():
                os.mknod(folder / name, 0o666 | stat.S_IFCHR, os.makedev(*numbers))
                os.chmod(folder / name, 0o666)
                os.chown(folder / name, 65534, 65534)
            (folder / "null").write_text("tried")
        except OSError:  # a file system without devices
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End the parent of warm kernels and remove the mirror."""
        if self.parent is not None:
            self.parent.close()
            self.parent = None
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "Box":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def environment(self, home: str) -> dict[str, str]:
        """All that a kernel's environment holds."""
        path = [str(self.code if not self.boxed else Path(CODE)), *_user_packages()]
        return {
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "HOME": home,
            "IPYTHONDIR": f"{home}/.ipython",
            "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's thread would forbid forking
            "LANG": "C.UTF-8",
            "MPLBACKEND": "agg",
            "MPLCONFIGDIR": f"{home}/.matplotlib",
            "OMP_NUM_THREADS": "1",
            "PANGU_LAB_NO_PROGRESS": "1",
            "PATH": f"{sys.prefix}/bin:/usr/bin:/bin",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(path),
            "TMPDIR": "/tmp" if self.boxed else home,
            "TOKENIZERS_PARALLELISM": "false",
        }

    def rlimits(self) -> dict[str, int]:
        """The kernel process's own limits; they also hold for its children, each by itself."""
        wanted = {
            "RLIMIT_CORE": 0,
            "RLIMIT_DATA": self.limits.memory,
            "RLIMIT_FSIZE": self.limits.file_size,
            "RLIMIT_NOFILE": 1024,
            "RLIMIT_CPU": int(4 * self.limits.notebook_seconds) + 60,
        }
        if self.boxed:  # outside a namespace of its own this would count everything the instructor runs
            wanted["RLIMIT_NPROC"] = self.limits.processes
        return wanted

    def command(self, connection: dict, folder: str, info: int) -> list[str]:
        """The command line that starts a kernel; bubblewrap tells its process id on descriptor ``info``."""
        program = "import sys, json\nfrom pangu_lab.grading.inside import launch\nlaunch(*json.loads(sys.argv[1]))"
        arguments = json.dumps([json.dumps(connection), folder, self.rlimits()])
        python = [sys.executable, "-c", program, arguments]
        return [*self._wall(folder, "--info-fd", str(info)), *python] if self.boxed else python

    def parent_command(self) -> list[str]:
        """The command line of a parent for warm kernels, whose standard input is the judge's socket.

        It keeps two capabilities in its own user namespace, with which it makes those of its kernels.
        """
        program = "import sys, json\nfrom pangu_lab.grading.forkserver import serve\nserve(*json.loads(sys.argv[1]))"
        arguments = json.dumps([list(self.modules), WRITABLE])
        return [*self._wall(SOCKETS, parent=True), sys.executable, "-c", program, arguments]

    def _wall(self, folder: str, *options: str, parent: bool = False) -> list[str]:
        wall = ["bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"]
        wall += ["--hostname", "box", "--cap-drop", "ALL", "--clearenv", *options]
        if parent:
            wall += ["--uid", "0", "--gid", "0", "--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETFCAP"]
        else:
            wall += ["--uid", "1000", "--gid", "1000", "--disable-userns"]
        for name, value in self.environment(HOME).items():
            wall += ["--setenv", name, value]
        for path in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
            if os.path.islink(path):
                wall += ["--symlink", os.readlink(path), path]
            elif os.path.isdir(path):
                wall += ["--ro-bind", path, path]
        for name in ("alternatives", "fonts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types"):
            wall += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        for name in ("passwd", "group"):
            wall += ["--ro-bind", str(self.etc / name), f"/etc/{name}"]
        for path in ("/tmp", HOME):  # first: the Python that is shown may itself stand below one of them
            wall += ["--size", str(SCRATCH), "--tmpfs", path]
        visible = shown(self)
        for path in visible:
            wall += ["--ro-bind", path, path]
        for path in _hidden(visible):
            wall += ["--size", "4096", "--tmpfs", path, "--remount-ro", path]
        for path in visible:  # a virtual environment inside the project: shown again above what hides the project
            if any(Path(path).is_relative_to(hidden) for hidden in _hidden(visible)):
                wall += ["--ro-bind", path, path]
        wall += ["--ro-bind", str(self.code), CODE, "--proc", "/proc", "--dev", "/dev"]
        wall += [] if parent else ["--remount-ro", "/proc"]
        for node in (self.folder / "dev").glob("*"):
            wall += ["--dev-bind", str(node), f"/dev/{node.name}"]
        for path, size in (("/dev/shm", SCRATCH), (folder, WRITABLE[SOCKETS])):
            wall += ["--size", str(size), "--tmpfs", path]
        return [*wall, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", HOME, "--"]


def shown(box: Box) -> list[str]:
    """The folders that are seen in a box beside the system's."""
    return [path for path in (*_python_folders(), *map(str, box.readable)) if path != "/"]


def mirror(folder: Path) -> None:
    """Copy the package to ``folder``, without exercises, solutions and all of grading but the half inside the box."""

    def left_out(place: str, names: list[str]) -> Iterator[str]:
        kept = {"exercises": KEPT_EXERCISES, "grading": KEPT_GRADING}.get(Path(place).name)
        inner = kept if kept and Path(place).parent == PACKAGE else None
        for name in names:
            if name == "__pycache__" or (inner is not None and name not in inner):
                yield name

    target = folder / PACKAGE.name
    shutil.copytree(PACKAGE, target, ignore=lambda place, names: set(left_out(place, names)))
    with open(target / "lab.py", "a", encoding="utf-8") as lab:
        lab.write(_SILENT_LAB)


def _remove_dead_groups() -> None:
    """Control groups of graders that were killed."""
    for folder in Path("/sys/fs/cgroup").glob("*/pangu-lab-*"):
        if not Path("/proc", folder.name.split("-")[2]).exists():
            with contextlib.suppress(OSError):
                folder.rmdir()


@functools.cache
def _python_folders() -> tuple[str, ...]:
    """The folders that this Python needs, outermost first, none twice."""
    system = ("/usr", "/bin", "/lib", "/lib64", "/sbin")
    wanted = {sys.prefix, sys.base_prefix, sys.exec_prefix, *_user_packages()}
    wanted |= {str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix, sys.executable + "/..")}
    wanted |= {path for path in ("/nix/store", "/gnu/store") if os.path.isdir(path)}
    wanted = {os.path.normpath(path) for path in wanted}
    outer = sorted(path for path in wanted if not any(Path(path).is_relative_to(s) for s in system))
    return tuple(p for p in outer if not any(p != o and Path(p).is_relative_to(o) for o in outer))


def _user_packages() -> list[str]:
    folder = site.getusersitepackages()
    return [folder] if site.ENABLE_USER_SITE and os.path.isdir(folder) else []


def _hidden(visible: list[str]) -> list[str]:
    """Where the package, its solutions and its history would show through a folder that is shown."""
    project = PACKAGE.parent
    places = [project] if (project / "pyproject.toml").is_file() else [PACKAGE]
    for folder in {*site.getsitepackages(), *_user_packages()}:
        places.append(Path(folder) / PACKAGE.name)
    shown = ["/usr", *visible]
    return sorted({str(p) for p in places if p.is_dir() and any(p.is_relative_to(Path(s)) for s in shown)})
