"""Tasks on top of ``PanguModel``: fill in a word, pre-train, classify, answer questions, generate.

Each class follows Hugging Face's of the same name: labels in, loss and logits out. Labels of -100 do not count.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    ModelOutput,
    QuestionAnsweringModelOutput,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from pangu_lab.model.configuration import ModelError, PanguConfig
from pangu_lab.model.layers import MaskedLMHead
from pangu_lab.model.modeling import PanguModel, PanguPreTrainedModel

ENCODER_WORDS = "model.encoder.embeddings.words.weight"
DECODER_WORDS = "model.decoder.embeddings.words.weight"


def require(config: PanguConfig, architecture: str, head: str) -> None:
    """Refuse a head on an architecture it cannot stand on."""
    if config.architecture != architecture:
        raise ModelError(
            f"{head} needs architecture '{architecture}', and the configuration says '{config.architecture}'"
        )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over labels that are not -100; logits (…, classes), labels (…). Zero if there are none."""
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    total = functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)


class _SaysWords(PanguPreTrainedModel):
    """An encoder with a head for masked words: output and input embeddings are one table."""

    lm_head: MaskedLMHead

    def __init__(self, config: PanguConfig) -> None:
        super().__init__(config)
        self._tied_weights_keys = {"lm_head.decoder.weight": ENCODER_WORDS}

    def get_output_embeddings(self) -> nn.Linear:
        """The layer from d to V."""
        return self.lm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the layer from d to V."""
        self.lm_head.decoder = value


class PanguForMaskedLM(_SaysWords):
    """The word behind each [MASK] (Devlin et al. 2019, §3.1)."""

    def __init__(self, config: PanguConfig) -> None:
        super().__init__(config)
        require(config, "encoder", "PanguForMaskedLM")
        self.model = PanguModel(config, add_pooling_layer=False)
        self.lm_head = MaskedLMHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        predict_at: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """input_ids (B, T) to logits (B, T, V).

        ``predict_at`` (B, T), boolean, asks for the logits of N positions only, (N, V): the vocabulary is large, and
        pre-training masks one token in seven. ``labels`` are (B, T) either way.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, **kwargs)
        logits = self.lm_head(chosen(outputs.last_hidden_state, predict_at))
        return MaskedLMOutput(
            loss=cross_entropy(logits, chosen(labels, predict_at)) if labels is not None else None,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def chosen(x: Tensor, at: Tensor | None) -> Tensor:
    """The N entries of x (B, T, …) that ``at`` (B, T) marks, as (N, …); all of x if nothing is marked."""
    return x if at is None else x[at]


@dataclass
class PanguForPreTrainingOutput(ModelOutput):
    """Sum of the losses asked for, each loss by name, and the logits: words, sentence pair, POS and NER tags."""

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    prediction_logits: Tensor | None = None
    pair_logits: Tensor | None = None
    pos_logits: Tensor | None = None
    ner_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class PanguForPreTraining(_SaysWords):
    """Masked words and a sentence pair's relation (NSP or SOP), and POS and NER tags where the configuration has any."""

    def __init__(self, config: PanguConfig) -> None:
        super().__init__(config)
        require(config, "encoder", "PanguForPreTraining")
        self.model = PanguModel(config)
        self.lm_head = MaskedLMHead(config)
        self.pair_head = nn.Linear(config.hidden_size, 2)
        self.pos_head = nn.Linear(config.hidden_size, config.num_pos_tags) if config.num_pos_tags else None
        self.ner_head = nn.Linear(config.hidden_size, config.num_ner_tags) if config.num_ner_tags else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        pos_labels: Tensor | None = None,
        ner_labels: Tensor | None = None,
        predict_at: Tensor | None = None,
        **kwargs: Any,
    ) -> PanguForPreTrainingOutput:
        """input_ids (B, T) to word logits (B, T, V) or (N, V), pair logits (B, 2), tag logits (B, T, tags).

        ``labels``, ``pos_labels``, ``ner_labels`` are (B, T), ``next_sentence_label`` is (B,); ``predict_at`` is as
        in ``PanguForMaskedLM``. The loss is the plain sum; ``losses`` has the parts, for other weights.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, **kwargs)
        x = outputs.last_hidden_state  # (B, T, d)
        words = self.lm_head(chosen(x, predict_at))
        pair = self.pair_head(outputs.pooler_output)
        pos = self.pos_head(x) if self.pos_head is not None else None
        ner = self.ner_head(x) if self.ner_head is not None else None
        losses = {}
        for name, logits, gold in (
            ("words", words, chosen(labels, predict_at) if labels is not None else None),
            ("pair", pair, next_sentence_label),
            ("pos", pos, pos_labels),
            ("ner", ner, ner_labels),
        ):
            if gold is None:
                continue
            if logits is None:
                raise ModelError(f"there are {name} labels but no head for them; set num_{name}_tags")
            losses[name] = cross_entropy(logits, gold)
        return PanguForPreTrainingOutput(
            loss=torch.stack(list(losses.values())).sum() if losses else None,
            losses=losses or None,
            prediction_logits=words,
            pair_logits=pair,
            pos_logits=pos,
            ner_logits=ner,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class PanguForSequenceClassification(PanguPreTrainedModel):
    """A linear layer over the pooled [CLS] (Devlin et al. 2019, §4.1)."""

    def __init__(self, config: PanguConfig) -> None:
        super().__init__(config)
        require(config, "encoder", "PanguForSequenceClassification")
        self.model = PanguModel(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """input_ids (B, T), labels (B,) to logits (B, classes). With one class, labels are numbers and the loss MSE."""
        outputs = self.model(input_ids, attention_mask, token_type_ids, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))  # (B, classes)
        loss = None
        if labels is not None and self.config.num_labels == 1:
            loss = functional.mse_loss(logits.squeeze(-1).float(), labels.float())
        elif labels is not None:
            loss = cross_entropy(logits, labels)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class PanguForQuestionAnswering(PanguPreTrainedModel):
    """A start and an end score for each token (Devlin et al. 2019, §4.2)."""

    def __init__(self, config: PanguConfig) -> None:
        super().__init__(config)
        require(config, "encoder", "PanguForQuestionAnswering")
        self.model = PanguModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """input_ids (B, T) to start and end logits (B, T); an answer outside the text has positions of T or more."""
        outputs = self.model(input_ids, attention_mask, token_type_ids, **kwargs)
        start, end = self.qa_outputs(outputs.last_hidden_state).unbind(dim=-1)  # (B, T), (B, T)
        loss = None
        if start_positions is not None and end_positions is not None:
            inside = [p.masked_fill(p >= start.size(1), -100) for p in (start_positions, end_positions)]
            loss = (cross_entropy(start, inside[0]) + cross_entropy(end, inside[1])) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start,
            end_logits=end,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class PanguForConditionalGeneration(PanguPreTrainedModel, GenerationMixin):
    """Text out of text: the decoder says the next word of the answer, seeing the encoder's text."""

    def __init__(self, config: PanguConfig) -> None:
        super().__init__(config)
        require(config, "encoder-decoder", "PanguForConditionalGeneration")
        self.model = PanguModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._tied_weights_keys = {"lm_head.weight": ENCODER_WORDS}
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        decoder_position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """input_ids (B, T), labels (B, T_d) to logits (B, T_d, V). Without decoder_input_ids, the decoder gets the
        labels, shifted: each word is predicted from those before it."""
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            decoder_position_ids=decoder_position_ids,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            use_cache=False if labels is not None else use_cache,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state)  # (B, T_d, V)
        others = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return Seq2SeqLMOutput(
            loss=cross_entropy(logits, labels) if labels is not None else None, logits=logits, **others
        )

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """(B, T_d): the start token, then all labels but the last; -100 becomes padding."""
        start = torch.full_like(labels[:, :1], self.config.decoder_start_token_id or 0)  # (B, 1)
        said = labels[:, :-1].masked_fill(labels[:, :-1] == -100, self.config.pad_token_id or 0)
        return torch.cat([start, said], dim=1)


class PanguForCausalLM(PanguPreTrainedModel, GenerationMixin):
    """The next word of a text, by a decoder alone: PanGu-α (Zeng et al. 2021, §3), with its query layer or without."""

    def __init__(self, config: PanguConfig) -> None:
        super().__init__(config)
        require(config, "decoder", "PanguForCausalLM")
        self.model = PanguModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._tied_weights_keys = {"lm_head.weight": DECODER_WORDS}
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, T) to logits (B, T, V), or of the last ``logits_to_keep`` tokens.

        ``labels`` (B, T) are the input_ids themselves; the shift by one is made here.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=False if labels is not None else use_cache,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])  # (B, T, V)
        return CausalLMOutputWithPast(
            loss=cross_entropy(logits[:, :-1], labels[:, 1:]) if labels is not None else None,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
