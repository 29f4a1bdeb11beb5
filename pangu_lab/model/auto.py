"""Tells transformers' Auto classes which model each of our configurations stands for; importing it does that."""

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from pangu_lab.model import heads, pruned_bert
from pangu_lab.model.configuration import PanguConfig, PrunedBertConfig
from pangu_lab.model.modeling import PanguModel

for auto, model in (
    (AutoModel, PanguModel),
    (AutoModelForMaskedLM, heads.PanguForMaskedLM),
    (AutoModelForPreTraining, heads.PanguForPreTraining),
    (AutoModelForSequenceClassification, heads.PanguForSequenceClassification),
    (AutoModelForQuestionAnswering, heads.PanguForQuestionAnswering),
    (AutoModelForSeq2SeqLM, heads.PanguForConditionalGeneration),
    (AutoModelForCausalLM, heads.PanguForCausalLM),
):
    auto.register(PanguConfig, model, exist_ok=True)
for auto, model in (
    (AutoModel, pruned_bert.PrunedBertModel),
    (AutoModelForMaskedLM, pruned_bert.PrunedBertForMaskedLM),
    (AutoModelForSequenceClassification, pruned_bert.PrunedBertForSequenceClassification),
    (AutoModelForTokenClassification, pruned_bert.PrunedBertForTokenClassification),
    (AutoModelForQuestionAnswering, pruned_bert.PrunedBertForQuestionAnswering),
):
    auto.register(PrunedBertConfig, model, exist_ok=True)
