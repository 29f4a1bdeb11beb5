"""One validated configuration for everything: paths, hyper-parameters and mode, from one YAML file.

Read ``Config`` first; ``labs/config.yaml`` is its written-out form. A wrong value, an unknown key or a
folder that cannot be written is one sentence: file, key, value, what is allowed.
"""

import difflib
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from pangu_lab.errors import PanguLabError

Mode = Literal["smoke", "lesson", "full"]
MODES: tuple[Mode, ...] = ("smoke", "lesson", "full")
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


class ConfigError(PanguLabError):
    """The configuration says something that cannot be."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Paths(_Section):
    """Folders; relative ones count from the folder of the configuration file."""

    data: Path = Path("work/data")
    models: Path = Path("work/models")
    logs: Path = Path("work/logs")
    runs: Path = Path("work/runs")
    mirror: Path | None = None


class Train(_Section):
    """Hyper-parameters of the training loop (``pangu_lab.training``)."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    batch_size: Annotated[int, Field(ge=1)] = 16
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    accumulation: Annotated[int, Field(ge=1)] = 1
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.01
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    patience: Annotated[int, Field(ge=1)] | None = None
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Size(_Section):
    """How much data a task takes in one mode; ``null`` means all there is."""

    train_rows: Annotated[int, Field(ge=4)] | None
    validation_rows: Annotated[int, Field(ge=4)] | None
    test_rows: Annotated[int, Field(ge=4)] | None
    max_length: Annotated[int, Field(ge=8, le=512)]
    epochs: Annotated[int, Field(ge=1, le=1000)]
    # Where a task needs others than ``train`` has: short texts take larger batches, few steps larger rates.
    batch_size: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    # A small training set takes more passes than ``epochs``, until the optimizer has made so many steps.
    least_steps: Annotated[int, Field(ge=1)] | None = None

    def passes(self, rows: int, batch_size: int) -> int:
        """How many epochs over ``rows`` training rows: ``epochs``, or more for ``least_steps``."""
        return max(self.epochs, math.ceil((self.least_steps or 0) / math.ceil(rows / batch_size)))

    def adjust(self, train: "Train") -> "Train":
        """The hyper-parameters with this size's own in place."""
        own = {"batch_size": self.batch_size, "learning_rate": self.learning_rate}
        return train.model_copy(update={key: value for key, value in own.items() if value is not None})


class Task(_Section):
    """A task's sizes in each mode."""

    smoke: Size
    lesson: Size
    full: Size

    def size(self, mode: Mode) -> Size:
        size: Size = getattr(self, mode)
        return size


def _size(
    train: int | None,
    validation: int | None,
    test: int | None,
    length: int,
    epochs: int,
    batch: int | None = None,
    rate: float | None = None,
    steps: int | None = None,
) -> Size:
    return Size(
        train_rows=train,
        validation_rows=validation,
        test_rows=test,
        max_length=length,
        epochs=epochs,
        batch_size=batch,
        learning_rate=rate,
        least_steps=steps,
    )


class Config(_Section):
    """Everything a run can be told. ``Config()`` is the course's default."""

    mode: Mode = "lesson"
    model: str = DEFAULT_MODEL
    paths: Paths = Paths()
    train: Train = Train()
    imdb: Task = Task(
        smoke=_size(32, 16, 32, 48, 1), lesson=_size(768, 200, 1000, 128, 3), full=_size(None, None, None, 512, 3)
    )
    tweets: Task = Task(
        smoke=_size(32, 16, 32, 32, 1),
        lesson=_size(3000, 500, 2000, 96, 2, batch=32, steps=75),
        full=_size(None, None, None, 128, 3, batch=32),
    )
    squad: Task = Task(
        smoke=_size(16, 8, 16, 128, 1),
        lesson=_size(1800, 100, 400, 256, 1, rate=2e-4),
        full=_size(None, None, None, 384, 2),
    )
    # The file this came from, None for the defaults; private, so that no file can set it.
    _file: Path | None = PrivateAttr(default=None)

    @property
    def file(self) -> Path | None:
        return self._file


def find_config_file() -> Path | None:
    """``$PANGU_LAB_CONFIG``, or ``config.yaml`` of the labs as seen from here, or none."""
    named = os.environ.get("PANGU_LAB_CONFIG")
    if named:
        return Path(named)
    here = Path.cwd()
    candidates = [here / "labs" / "config.yaml", here / "config.yaml", here.parent / "labs" / "config.yaml"]
    return next((path for path in candidates if path.is_file()), None)


def load_config(path: Path | str | None = None, **overrides: Any) -> Config:
    """Read and validate the configuration.

    Parameters
    ----------
    path
        A YAML file; without it the one ``find_config_file`` names, and without one the defaults.
    overrides
        Values that win over the file, as ``mode="smoke"`` or ``paths={"mirror": "…"}``; ``None`` is ignored.

    Raises
    ------
    ConfigError
        One sentence: file, key, value, what is allowed.
    """
    file = Path(path) if path else find_config_file()
    content: dict[str, Any] = _read(file) if file else {}
    for key, value in overrides.items():
        if isinstance(value, dict):
            content[key] = {**(content.get(key) or {}), **{k: v for k, v in value.items() if v is not None}}
        elif value is not None:
            content[key] = value
    mirror = os.environ.get("PANGU_LAB_MIRROR")
    if mirror:
        content["paths"] = {**(content.get("paths") or {}), "mirror": mirror}
    content = {key: value for key, value in content.items() if value is not None}
    content = _completed_sizes(content)
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_sentence(error, file)) from None
    base = file.resolve().parent if file else Path.cwd() / "labs" if (Path.cwd() / "labs").is_dir() else Path.cwd()
    paths: dict[str, Any] = {
        name: None if value is None else Path(os.path.abspath(base / Path(value).expanduser()))
        for name, value in config.paths
    }
    config = config.model_copy(update={"paths": Paths(**paths)})
    config._file = file
    return config


def ensure_folder(path: Path, key: str, file: Path | None = None) -> Path:
    """Make ``path`` and prove that it can be written; ``key`` names it in the sentence if it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{_name(file)}: {key} is {path}, which cannot be written ({error.strerror}); "
            "it must be a folder you may write to"
        ) from None
    return path


def _name(file: Path | None) -> str:
    return "configuration" if file is None else os.path.relpath(file)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{_name(file)}: there is no such file; copy labs/config.yaml or leave it out") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_name(file)}: cannot be read ({error}); it must be a YAML file in UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "it is not valid YAML"
        raise ConfigError(f"{_name(file)}{where}: {reason}; compare with labs/config.yaml") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        kind = type(content).__name__
        raise ConfigError(f"{_name(file)}: holds a {kind} at the top; it must hold keys such as mode, paths and train")
    return content


def _completed_sizes(content: dict[str, Any]) -> dict[str, Any]:
    """A task's block may name only the numbers it changes; the defaults fill the rest."""
    default = Config()
    for name, field in Config.model_fields.items():
        given = content.get(name)
        if field.annotation is not Task or not isinstance(given, dict):
            continue
        full = getattr(default, name).model_dump()
        for mode, size in given.items():
            full[mode] = {**full.get(mode, {}), **size} if isinstance(size, dict) else size
        content = {**content, name: full}
    return content


def _sentence(error: ValidationError, file: Path | None) -> str:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    key = ".".join(place)
    if first["type"] == "extra_forbidden":
        known = _known_keys(place[:-1])
        near = difflib.get_close_matches(place[-1], known, n=1)
        advice = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(known)}"
        return f"{_name(file)}: {key} is not a key; {advice}"
    return f"{_name(file)}: {key} is {first['input']!r}; it must be {_allowed(first)}"


def _allowed(error: Any) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "greater_than":
            return f"greater than {context['gt']:g}"
        case "greater_than_equal":
            return f"{context['ge']:g} or more"
        case "less_than":
            return f"less than {context['lt']:g}"
        case "less_than_equal":
            return f"{context['le']:g} or less"
        case "literal_error":
            return f"one of {context['expected']}"
        case "int_parsing" | "int_type" | "int_from_float":
            return "a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            return "a number"
        case "path_type":
            return "a path"
        case "string_type":
            return "a text"
        case "model_type" | "model_attributes_type":
            return "a block of keys, each on its own line with a colon"
    return str(error["msg"]).lower()


def _known_keys(place: list[str]) -> list[str]:
    section: Any = Config
    for part in place:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
