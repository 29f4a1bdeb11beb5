"""What ``lab.start`` sets up for a notebook: mode, seed, configuration, device, sources; told in one line."""

import os
import random
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from pangu_lab import hub
from pangu_lab.config import MODES, Config, Mode, load_config
from pangu_lab.errors import PanguLabError
from pangu_lab.viz import use_style

T = TypeVar("T")


@dataclass(frozen=True)
class Lab:
    """What a notebook asks for: ``mode``, ``seed``, ``config``, and values by mode through ``pick``."""

    name: str
    mode: Mode
    seed: int
    config: Config

    def pick(self, *, smoke: T, lesson: T, full: T) -> T:
        """The value for this notebook's mode."""
        values: dict[str, Any] = {"smoke": smoke, "lesson": lesson, "full": full}
        chosen: T = values[self.mode]
        return chosen


def start(name: str, mode: str = "lesson", seed: int = 0) -> Lab:
    """Set the seeds, the figures' style and the mode, and print one line: device, threads, data, model.

    The environment variable ``PANGU_LAB_MODE`` wins over ``mode``: tests run every notebook in ``smoke``.

    Raises
    ------
    PanguLabError
        The mode is not one of smoke, lesson and full, or the configuration is wrong.
    """
    import torch

    wanted = os.environ.get("PANGU_LAB_MODE") or mode
    if wanted not in MODES:
        raise PanguLabError(f"{name}: MODE is {wanted!r}; it must be one of {', '.join(MODES)}")
    config = load_config(mode=wanted, train={"seed": seed})
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns after every fork otherwise
    use_style()
    threads = torch.get_num_threads()
    on_cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else on_cpu
    print(f"{name} · {wanted} · seed {seed} · {device} · {_sources(config)}")
    return Lab(name, config.mode, seed, config)


def _sources(config: Config) -> str:
    data = sorted({hub.find_dataset(id, config).kind for id in hub.DATASETS})
    model = hub.find_model(config.model, config)
    return f"data: {' and '.join(data)} · model: {model.id.split('/')[-1]} ({model.kind})"
