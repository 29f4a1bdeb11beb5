"""Checkpoints as every task uses them: an encoder under a fresh head, a fine-tuned model saved and loaded again.

This stands in the package of the models because importing that package is what tells transformers' Auto classes of
our model types, pruned BERTs among them: no task has to remember it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from pangu_lab.errors import PanguLabError
from pangu_lab.hub import Source


class quiet_transformers:
    """No report that a head is new, and no loading bar: both are as they should be."""

    def __enter__(self) -> None:
        self.level = transformers_logging.get_verbosity()
        self.bar = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self.level)
        if self.bar:
            transformers_logging.enable_progress_bar()


def under_fresh_head(
    auto: Any, source: Source, seed: int, max_length: int, refused: type[PanguLabError], **settings: Any
) -> tuple[Any, Any, int]:
    """A pre-trained encoder under the head of an Auto class, its tokenizer, and the tokens that both can take.

    ``seed`` decides the head's weights, ``settings`` go to the configuration. Raises ``refused`` where the folder
    holds no encoder that transformers can put this head on.
    """
    torch.manual_seed(seed)
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.folder)
            model = auto.from_pretrained(source.folder, **settings)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise refused(
                f"{source.id}: cannot be loaded as an encoder ({reason}); give a BERT-like checkpoint"
            ) from error
    return model, tokenizer, min(max_length, getattr(model.config, "max_position_embeddings", max_length))


def save(model: Any, tokenizer: Any, max_length: int, folder: Path, refused: type[PanguLabError]) -> None:
    """Save model and tokenizer so that transformers can load them; ``max_length`` stands in the configuration."""
    model.config.pangu_lab_max_length = max_length
    try:
        with quiet_transformers():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except OSError as error:
        raise refused(f"{folder}: cannot be written ({error.strerror}); free some space") from error


def load(auto: Any, folder: Path, tasks: str, max_length: int, refused: type[PanguLabError]) -> tuple[Any, Any, int]:
    """Model, tokenizer and tokens of what ``save`` wrote; ``max_length`` where the configuration does not say.

    A model that was saved with another head is refused: transformers would quietly put a random one in its place.
    """
    file, head = folder / "config.json", auto.__name__.removeprefix("AutoModel")
    if not file.is_file():
        raise refused(f"{folder}: holds no model; train one first with `pangu-lab train {tasks}`")
    try:
        saved = json.loads(file.read_text(encoding="utf-8")).get("architectures") or [head]
    except (OSError, ValueError, AttributeError) as error:
        raise refused(f"{file}: cannot be read ({error}); train the model again") from None
    if not any(head in name for name in saved):
        raise refused(f"{folder}: holds a {saved[0]}; give a model that `pangu-lab train {tasks}` saved")
    with quiet_transformers():
        tokenizer, model = AutoTokenizer.from_pretrained(folder), auto.from_pretrained(folder)
    return model.eval(), tokenizer, int(getattr(model.config, "pangu_lab_max_length", max_length))
