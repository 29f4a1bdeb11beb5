"""The PanGu encoder–decoder as Hugging Face classes: ``configuration``, ``attention``, ``layers``, ``modeling``, ``heads``.

Importing this package tells transformers' Auto classes of the model types ``pangu`` and ``bert-pruned`` (a BERT that
lost heads, ``pruned_bert``). The classes themselves are imported when they are first asked for. Read ``attention``
first.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from pangu_lab.model import configuration

if TYPE_CHECKING:
    from pangu_lab.model.configuration import ModelError, PanguConfig, PrunedBertConfig
    from pangu_lab.model.conversion import from_bert
    from pangu_lab.model.heads import (
        PanguForCausalLM,
        PanguForConditionalGeneration,
        PanguForMaskedLM,
        PanguForPreTraining,
        PanguForQuestionAnswering,
        PanguForSequenceClassification,
    )
    from pangu_lab.model.modeling import PanguModel, PanguPreTrainedModel

__all__ = [
    "ModelError",
    "PanguConfig",
    "PanguForCausalLM",
    "PanguForConditionalGeneration",
    "PanguForMaskedLM",
    "PanguForPreTraining",
    "PanguForQuestionAnswering",
    "PanguForSequenceClassification",
    "PanguModel",
    "PanguPreTrainedModel",
    "PrunedBertConfig",
    "from_bert",
]

AutoConfig.register("pangu", configuration.PanguConfig, exist_ok=True)
AutoConfig.register("bert-pruned", configuration.PrunedBertConfig, exist_ok=True)


def __getattr__(name: str) -> Any:
    """Import what is asked for. The models' code, with all that it needs of transformers, takes 100 MB and more.

    Whoever takes a name from here finds the Auto classes ready; so does whoever loads a file (``configuration``).
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("pangu_lab.model.auto")
    homes = (
        importlib.import_module(f"{__name__}.{home}") for home in ("configuration", "modeling", "heads", "conversion")
    )
    return next(vars(home)[name] for home in homes if name in vars(home))
