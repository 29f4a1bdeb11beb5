"""The PanGu encoder–decoder as Hugging Face classes: ``configuration``, ``attention``, ``layers``, ``modeling``, ``heads``.

Importing this package tells transformers' Auto classes of the model types ``pangu`` and ``bert-pruned`` (a BERT that
lost heads, ``pruned_bert``). Read ``attention`` first.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from pangu_lab.model.configuration import ModelError, PanguConfig
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
from pangu_lab.model.pruned_bert import PrunedBertConfig, register_pruned_bert

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

AutoConfig.register("pangu", PanguConfig, exist_ok=True)
for auto, model in (
    (AutoModel, PanguModel),
    (AutoModelForMaskedLM, PanguForMaskedLM),
    (AutoModelForPreTraining, PanguForPreTraining),
    (AutoModelForSequenceClassification, PanguForSequenceClassification),
    (AutoModelForQuestionAnswering, PanguForQuestionAnswering),
    (AutoModelForSeq2SeqLM, PanguForConditionalGeneration),
    (AutoModelForCausalLM, PanguForCausalLM),
):
    auto.register(PanguConfig, model, exist_ok=True)
register_pruned_bert()
