"""An encoder–decoder that pre-trains on both sides: the encoder fills in masked words, the decoder missing spans.

No paper says how the encoder–decoder of PanGu NLP was trained. This is the course's own reading of "encoder and
decoder, understanding and generation": BERT's loss at the encoder plus T5's loss at the decoder.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput, ModelOutput
from transformers.utils.generic import can_return_tuple

from pangu_lab.model.configuration import PanguConfig
from pangu_lab.model.heads import ENCODER_WORDS, PanguForConditionalGeneration, chosen, cross_entropy
from pangu_lab.model.layers import MaskedLMHead


@dataclass
class DenoisingOutput(ModelOutput):
    """The sum of both losses, each by name, and the logits of masked words and of the decoder's."""

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    prediction_logits: Tensor | None = None
    span_logits: Tensor | None = None


class PanguForDenoising(PanguForConditionalGeneration):
    """``PanguForConditionalGeneration`` with a head for masked words on its encoder; it generates as its parent does."""

    def __init__(self, config: PanguConfig) -> None:
        super().__init__(config)
        self.mlm_head = MaskedLMHead(config)
        self._tied_weights_keys = {"lm_head.weight": ENCODER_WORDS, "mlm_head.decoder.weight": ENCODER_WORDS}
        self.post_init()

    def masked_words(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, predict_at: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """input_ids (B, T) to the logits of every word (B, T, V), or of the N at ``predict_at`` (N, V)."""
        assert self.model.encoder is not None  # the parent's constructor refuses other architectures
        states = self.model.encoder(input_ids, attention_mask, **kwargs).last_hidden_state
        return self.mlm_head(chosen(states, predict_at))

    @can_return_tuple
    def denoise(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        span_labels: Tensor | None = None,
    ) -> DenoisingOutput:
        """Both losses in one pass of the encoder.

        The first rows of ``input_ids`` (B, T) are masked texts with ``labels`` (M, T); the other B - M are texts
        with sentinels, and ``span_labels`` (B - M, T_d) is what their sentinels stand for.
        """
        assert self.model.encoder is not None
        masked = labels.size(0)
        states = self.model.encoder(input_ids, attention_mask).last_hidden_state  # (B, T, d)
        at = labels != -100
        words = self.mlm_head(states[:masked][at])  # (N, V)
        losses = {"words": cross_entropy(words, labels[at])}
        spans = None
        if span_labels is not None and span_labels.size(0):
            output = self(
                attention_mask=attention_mask[masked:],
                encoder_outputs=BaseModelOutput(last_hidden_state=states[masked:]),
                labels=span_labels,
            )
            losses["spans"], spans = output.loss, output.logits
        return DenoisingOutput(
            loss=torch.stack(list(losses.values())).sum(), losses=losses, prediction_logits=words, span_logits=spans
        )
