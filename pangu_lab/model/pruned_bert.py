"""BERT whose layers have fewer heads, or unlike numbers of neurons: what transformers' own classes cannot hold.

transformers' ``BertSelfOutput`` is always d × d and ``BertConfig`` has one number of neurons for all layers, so a
checkpoint without some heads would not fit. These classes are transformers' own, narrowed to the numbers in the
configuration (``configuration.PrunedBertConfig``); ``from_pretrained``, ``save_pretrained`` and the Auto classes work
once this package is imported.
The model type is ``bert-pruned``: transformers alone refuses the folder in one sentence instead of guessing.
"""

from torch import nn
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
)
from transformers.models.bert.modeling_bert import BertEncoder

from pangu_lab.model.configuration import ModelError, PrunedBertConfig


def narrow(model: nn.Module, config: PrunedBertConfig) -> None:
    """Give the layers of a freshly built BERT the shapes that the configuration says; weights are new."""
    encoder = next(module for module in model.modules() if isinstance(module, BertEncoder))
    d, layers = config.hidden_size, len(encoder.layer)
    heads = config.heads_per_layer or [config.num_attention_heads] * layers
    neurons = config.neurons_per_layer or [config.intermediate_size] * layers
    if len(heads) != layers or len(neurons) != layers or min(heads + neurons) < 1:
        raise ModelError(
            f"heads_per_layer {heads} and neurons_per_layer {neurons} must each be {layers} numbers, 1 or more"
        )
    for layer, h, n in zip(encoder.layer, heads, neurons, strict=True):
        attention, inner = layer.attention, h * (d // config.num_attention_heads)
        attention.self.num_attention_heads, attention.self.all_head_size = h, inner
        for name in ("query", "key", "value"):
            setattr(attention.self, name, nn.Linear(d, inner))
        attention.output.dense = nn.Linear(inner, d)
        layer.intermediate.dense, layer.output.dense = nn.Linear(d, n), nn.Linear(n, d)


class _Narrow(PreTrainedModel):
    """Narrows what the class beside it has built."""

    config_class = PrunedBertConfig

    def __init__(self, config: PrunedBertConfig, *args: object, **kwargs: object) -> None:
        super().__init__(config, *args, **kwargs)
        narrow(self, config)


class PrunedBertModel(_Narrow, BertModel):
    """``BertModel`` with layers of their own widths."""


class PrunedBertForMaskedLM(_Narrow, BertForMaskedLM):
    """``BertForMaskedLM`` with layers of their own widths."""


class PrunedBertForSequenceClassification(_Narrow, BertForSequenceClassification):
    """``BertForSequenceClassification`` with layers of their own widths."""


class PrunedBertForTokenClassification(_Narrow, BertForTokenClassification):
    """``BertForTokenClassification`` with layers of their own widths."""


class PrunedBertForQuestionAnswering(_Narrow, BertForQuestionAnswering):
    """``BertForQuestionAnswering`` with layers of their own widths."""


PRUNED = {
    BertModel: PrunedBertModel,
    BertForMaskedLM: PrunedBertForMaskedLM,
    BertForSequenceClassification: PrunedBertForSequenceClassification,
    BertForTokenClassification: PrunedBertForTokenClassification,
    BertForQuestionAnswering: PrunedBertForQuestionAnswering,
}
