"""Is this machine ready for the course, and how fast will it run?

``examine`` looks and answers with a ``Report``, ``render`` draws it for a terminal or a notebook. Nothing
is downloaded or changed but the configured folders, which are made. Torch is imported inside the functions
that need it, because the doctor must be able to speak where torch is missing.
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil

from pangu_lab import hub
from pangu_lab.config import Config, ensure_folder
from pangu_lab.errors import PanguLabError
from pangu_lab.machine import core_count, cpu_name

Severity = Literal["stops a lab", "slows", "note"]
GB = 1e9
DISK_STOPS, DISK_SLOWS = 0.5 * GB, 5 * GB
MEMORY_STOPS, MEMORY_SLOWS = 2.0 * GB, 2.0 * GB  # installed; free
LAB_TIMES = Path(__file__).parent.parent / "benchmarks" / "results" / "labs.json"


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``severity`` is set when it is a problem; then ``remedy`` says what to do."""

    group: str
    name: str
    value: str
    severity: Severity | None = None
    remedy: str = ""


@dataclass(frozen=True)
class LabTime:
    """Minutes of one lab here in the configured mode; None when it has not been measured."""

    lab: str
    minutes: float | None


@dataclass(frozen=True)
class Report:
    """Everything the doctor saw. ``gflops`` is the measured fp32 matrix product, 0 without torch."""

    mode: str
    findings: tuple[Finding, ...]
    labs: tuple[LabTime, ...]
    gflops: float

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that need attention, the gravest first."""
        order = ["stops a lab", "slows", "note"]
        found = [finding for finding in self.findings if finding.severity]
        return tuple(sorted(found, key=lambda finding: order.index(finding.severity or "")))

    @property
    def ok(self) -> bool:
        """Whether every lab can run."""
        return not any(finding.severity == "stops a lab" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {"ok": self.ok, **json.loads(json.dumps(asdict(self)))}


def examine(config: Config, labs: Sequence[str] = ()) -> Report:
    """Look at machine, packages, folders, sources and tools; at most 3 s of it wait for the hub.

    ``labs`` names the notebooks whose minutes are wanted; without it those that have been measured.
    """
    packages = list(_packages())
    findings = [*packages, *_machine()]
    gflops = 0.0
    try:
        findings += _torch()
        from pangu_lab.speed import matmul_speed

        gflops = matmul_speed(0.3) / 1e9
    except (ImportError, OSError, RuntimeError) as error:
        value, remedy = f"cannot be used ({error})", "Install it again with make setup."
        findings.append(Finding("packages", "torch or accelerate", value, "stops a lab", remedy))
    findings += [*_folders(config), *_sources(config), *_tools()]
    return Report(config.mode, tuple(findings), lab_times(config.mode, gflops, labs), round(gflops, 1))


def _judged(good: bool, group: str, name: str, value: str, severity: Severity, remedy: str) -> Finding:
    return Finding(group, name, value) if good else Finding(group, name, value, severity, remedy)


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        needed = metadata.metadata("pangu-lab")["Requires-Python"]
        requirements = map(Requirement, metadata.requires("pangu-lab") or [])
    except metadata.PackageNotFoundError:
        remedy = "Run make setup, or pip install -e . in the course's folder."
        yield Finding("packages", "pangu-lab", "not installed", "stops a lab", remedy)
        return
    python = platform.python_version()
    good = SpecifierSet(needed).contains(python, prereleases=True)
    value, remedy = f"{python} (needs {needed})", f"Install Python {needed} and run make setup."
    yield _judged(good, "packages", "Python", value, "stops a lab", remedy)
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, wanted = requirement.name, requirement.specifier
        try:
            version = metadata.version(name)
            good = wanted.contains(version, prereleases=True)
        except metadata.PackageNotFoundError:
            version, good = "missing", False
        remedy = f'Run make setup, or pip install "{name}{wanted}".'
        value = f"{version} (needs {wanted})" if wanted else version
        yield _judged(good, "packages", name, value, "stops a lab", remedy)


def _machine() -> Iterator[Finding]:
    yield Finding("machine", "system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    cores, memory = core_count(), psutil.virtual_memory()
    value = f"{cpu_name()}, {cores} core{'s' * (cores > 1)} for us"
    remedy = "Expect twice the minutes; let nothing else run."
    yield _judged(cores > 1, "machine", "CPU", value, "slows", remedy)
    value = f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB free"
    small = memory.total < MEMORY_STOPS
    remedy = "Use a machine with more." if small else "Close other programs and notebooks until 2 GB are free."
    good = memory.available >= MEMORY_SLOWS and not small
    yield _judged(good, "machine", "memory", value, "stops a lab" if small else "slows", remedy)


def _torch() -> Iterator[Finding]:
    import torch

    from pangu_lab.training import choose_precision

    if torch.cuda.is_available():
        gpu = [f"{torch.cuda.get_device_name(i)} (CUDA)" for i in range(torch.cuda.device_count())]
    else:
        gpu = ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []
    yield Finding("machine", "GPU", ", ".join(gpu) or "none; the labs do not need one")
    yield Finding("machine", "matrix products", ": ".join(choose_precision("auto")))
    threads, cores = torch.get_num_threads(), core_count()
    # Torch itself takes one thread a physical core, which may be half of the cores.
    good, remedy = cores / 2 <= threads <= cores, f"Set OMP_NUM_THREADS={cores} before you start Jupyter."
    yield _judged(good, "machine", "threads of torch", f"{threads} on {cores} cores", "slows", remedy)


# --- folders, sources, tools, labs ------------------------------------------------------------------


def _folders(config: Config) -> Iterator[Finding]:
    for name in ("data", "models", "logs", "runs"):
        path: Path = getattr(config.paths, name)
        key, remedy = f"paths.{name}", f"Set paths.{name} in labs/config.yaml to a folder you may write to."
        try:
            ensure_folder(path, key, config.file)
            free = shutil.disk_usage(path).free
        except (PanguLabError, OSError):
            yield Finding("folders", key, f"{_short(path, config)}: cannot be written", "stops a lab", remedy)
            continue
        value, full = f"{_short(path, config)}: writable, {free / GB:.1f} GB free", free < DISK_STOPS
        remedy = f"Free {DISK_SLOWS / GB:g} GB on this disk, or set {key} to a folder on another."
        yield _judged(free >= DISK_SLOWS, "folders", key, value, "stops a lab" if full else "slows", remedy)


def _short(path: Path, config: Config) -> str:
    """As the configuration writes it: from its own folder, where the path is inside."""
    base = config.file.resolve().parent if config.file else Path.cwd()
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def _sources(config: Config) -> Iterator[Finding]:
    reach = hub.hub_reachable(config, fresh=True)
    remedy = "Nothing to do: bundled samples stand in; or set paths.mirror to a copy of the hub."
    yield _judged(reach[0], "sources", "the hub", "answers" if reach[0] else "does not answer", "note", remedy)
    for id in (*hub.DATASETS, config.model):
        try:
            find = hub.find_dataset if id in hub.DATASETS else hub.find_model
            source = find(id, config, reach=reach)
            yield Finding("sources", id, ": ".join(filter(None, (source.kind, source.reason))))
        except ImportError as error:
            yield Finding("sources", id, f"{error}", "stops a lab", "Run make setup.")
        except PanguLabError as error:
            what, _, todo = str(error).rpartition("; ")
            yield Finding("sources", id, what or todo, "stops a lab", f"{todo[:1].upper()}{todo[1:]}.")


def _tools() -> Iterator[Finding]:
    try:
        from jupyter_client.kernelspec import KernelSpecManager

        known = "pangu-lab" in KernelSpecManager().find_kernel_specs()
    except (ImportError, OSError):
        known = False
    remedy = "Run make setup, or python -m ipykernel install --sys-prefix --name pangu-lab."
    value = f"pangu-lab is {'' if known else 'not '}registered"
    yield _judged(known, "tools", "Jupyter kernel", value, "note", remedy)
    box = _runs("bwrap", "--ro-bind", "/", "/", "--unshare-all", "true")
    remedy = "Only for grading: install bubblewrap (Linux), or grade with --no-box."
    yield _judged(box, "tools", "bubblewrap", "works" if box else "missing or not allowed", "note", remedy)
    wanted = (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")
    compiler = next((name for name in wanted if shutil.which(name)), "")
    remedy = "Only for the fast int8 engine: install g++ or clang++."
    yield _judged(bool(compiler), "tools", "C++ compiler", compiler or "missing", "note", remedy)


def _runs(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=3).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def lab_times(mode: str, gflops: float, labs: Sequence[str] = (), record: Path = LAB_TIMES) -> tuple[LabTime, ...]:
    """Minutes of each lab here: the recorded seconds, scaled by the speed of a matrix product there and here.

    The record: ``{"gflops": 150, "labs": {"00_environment": {"lesson": {"seconds": 40}}}}``.
    """
    minutes: dict[str, float] = {}
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        for lab, modes in known["labs"].items():
            if mode in modes:
                seconds = float(modes[mode]["seconds"]) * float(known["gflops"]) / gflops
                minutes[lab] = round(seconds / 60, 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        minutes = {}  # no record, or one that cannot be used: nothing is claimed
    return tuple(LabTime(lab, minutes.get(lab)) for lab in labs or minutes)


def render(report: Report) -> Any:
    """The report as a rich renderable, readable at 80 columns: problems last, so that they stay in sight."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    colors = {"stops a lab": "red", "slows": "yellow", "note": "cyan"}
    table = Table(box=None, pad_edge=False, show_header=False)
    group = ""
    for finding in report.findings:
        plain_package = finding.group == "packages" and not finding.severity
        if plain_package and finding.name not in ("Python", "torch", "transformers"):
            continue  # twenty good versions would hide the rest; --json has them all
        mark = Text("✗" if finding.severity == "stops a lab" else "!" if finding.severity else "✓")
        mark.stylize(colors.get(finding.severity or "", "green"))
        table.add_row("" if finding.group == group else finding.group, mark, finding.name, finding.value)
        group = finding.group
    for lab in report.labs:
        told = "not measured yet" if lab.minutes is None else f"about {lab.minutes:g} min ({report.mode})"
        table.add_row("labs" if group != "labs" else "", "", lab.lab, told)
        group = "labs"
    if not report.labs:
        table.add_row("labs", "", "minutes", "not measured yet")
    parts: list[Any] = [table, Text()]
    for problem in report.problems:
        head = Text(f"{problem.severity}: ", style=colors[problem.severity or ""])
        parts.append(head + Text(f"{problem.name}: {problem.value}. {problem.remedy}", style="default"))
    verdict = "Every lab can run here." if report.ok else "A lab cannot run here; see the lines in red."
    return Group(*parts, Text(verdict, style="bold green" if report.ok else "bold red"))
