"""The model without a head: an encoder, an encoder with a decoder, or a decoder alone.

``PanguModel.forward`` shows the three paths; ``heads.py`` puts tasks on top. The classes are Hugging Face's own
kind, so saving, loading, pipelines, generation, checkpointing and devices are theirs.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPooling,
    ModelOutput,
    Seq2SeqModelOutput,
)
from transformers.utils.generic import can_return_tuple

from pangu_lab.model.attention import causal_mask, padding_mask
from pangu_lab.model.configuration import ModelError, PanguConfig
from pangu_lab.model.layers import DecoderLayer, Embeddings, EncoderLayer, Pooler, QueryLayer


class PanguPreTrainedModel(PreTrainedModel):
    """What every PanGu model shares: its configuration's class and what Hugging Face may do with it."""

    config_class = PanguConfig
    config: PanguConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # our losses are means of their own; Trainer must not hand in a count
    _supports_sdpa = True
    _no_split_modules = ("EncoderLayer", "DecoderLayer", "QueryLayer")
    _skip_keys_device_placement = ("past_key_values",)


class Encoder(nn.Module):
    """Embeddings and a stack of encoder layers: each token sees the whole text (Devlin et al. 2019)."""

    def __init__(self, config: PanguConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = final_norm(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """input_ids (B, T) to hidden states (B, T, d)."""
        trace = Trace(self.config, output_attentions, output_hidden_states)
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (B, T, d)
        mask = padding_mask(attention_mask)  # (B, 1, 1, T), or None if nothing is padded
        for layer in self.layers:
            trace.states.append(x)
            x, weights = layer(x, mask, trace.need_weights)
            trace.weights.append(weights)
        if self.norm is not None:
            x = self.norm(x)
        trace.states.append(x)
        return BaseModelOutput(last_hidden_state=x, hidden_states=trace.hidden_states, attentions=trace.attentions)


class Decoder(nn.Module):
    """Embeddings and a stack of decoder layers: each token sees itself, what came before it, and the encoder's text.

    With ``query_layer`` the top layer is PanGu-α's, over the normalized states of the layers below it; nothing
    normalizes its output, as in the public code.
    """

    def __init__(self, config: PanguConfig) -> None:
        super().__init__()
        self.config = config
        cross = config.is_encoder_decoder
        layers = (config.decoder_layers or 0) if cross else config.num_hidden_layers - config.query_layer
        self.embeddings = Embeddings(config, decoder=True)
        self.layers = nn.ModuleList(DecoderLayer(config, i, cross) for i in range(layers))
        self.norm = final_norm(config)
        self.query_layer = QueryLayer(config, layers) if config.query_layer else None

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """input_ids (B, T), and memory (B, T_m, d) from an encoder, to hidden states (B, T, d).

        ``attention_mask`` is over the cached tokens too; whatever it says, no token sees what comes after it.
        """
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
            if memory is not None:
                past_key_values = EncoderDecoderCache(past_key_values, DynamicCache())
        if past_key_values is not None and past_key_values.is_compileable:
            raise ModelError("the decoder's cache grows with the text; leave cache_implementation out")
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        trace = Trace(self.config, output_attentions, output_hidden_states)
        x = self.embeddings(input_ids, None, position_ids, inputs_embeds, past)  # (B, T, d)
        memory_mask = padding_mask(memory_attention_mask)  # (B, 1, 1, T_m) or None
        mask = padding_mask(attention_mask)  # (B, 1, 1, past + T) or None
        if mask is not None:
            mask = mask & causal_mask(x.size(1), past + x.size(1), x.device)  # (B, 1, T, past + T)
        for layer in self.layers:
            trace.states.append(x)
            x, weights, cross_weights = layer(
                x, mask, memory, memory_mask, trace.need_weights, past_key_values=past_key_values
            )
            trace.weights.append(weights)
            trace.cross_weights.append(cross_weights)
        if self.norm is not None:
            x = self.norm(x)
        trace.states.append(x)
        if self.query_layer is not None:
            if position_ids is None:
                position_ids = torch.arange(past, past + x.size(1), device=x.device)
            x, weights = self.query_layer(x, position_ids, mask, trace.need_weights, past_key_values=past_key_values)
            trace.weights.append(weights)
            trace.states.append(x)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=trace.hidden_states,
            attentions=trace.attentions,
            cross_attentions=trace.cross_attentions if memory is not None else None,
        )


def final_norm(config: PanguConfig) -> nn.LayerNorm | None:
    """Under pre-norm the sum of all residuals leaves the stack as it is; one LayerNorm more normalizes it."""
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.norm_position == "pre" else None


class Trace:
    """What a pass through a stack leaves behind, if it was asked for: hidden states and attention weights."""

    def __init__(self, config: PanguConfig, attentions: bool | None, states: bool | None) -> None:
        self.need_weights = bool(config.output_attentions if attentions is None else attentions)
        self.need_states = bool(config.output_hidden_states if states is None else states)
        self.states: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.cross_weights: list[Tensor] = []

    @property
    def hidden_states(self) -> tuple[Tensor, ...] | None:
        """Input of each layer and output of the last, each (B, T, d)."""
        return tuple(self.states) if self.need_states else None

    @property
    def attentions(self) -> tuple[Tensor, ...] | None:
        """Weights of each layer, each (B, H, T_q, T_k)."""
        return tuple(self.weights) if self.need_weights else None

    @property
    def cross_attentions(self) -> tuple[Tensor, ...] | None:
        """Weights of each layer over the encoder's text, each (B, H, T_q, T_m)."""
        return tuple(self.cross_weights) if self.need_weights else None


class PanguModel(PanguPreTrainedModel):
    """Hidden states of a text, by the architecture that the configuration names.

    Encoder and decoder share their word embeddings (Vaswani et al. 2017, §3.4). ``pooler`` turns an encoder's [CLS]
    into one vector; heads without use for it leave it out.
    """

    def __init__(self, config: PanguConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.encoder = Encoder(config) if config.architecture != "decoder" else None
        self.decoder = Decoder(config) if config.architecture != "encoder" else None
        self.pooler = Pooler(config) if config.architecture == "encoder" and add_pooling_layer else None
        if config.is_encoder_decoder:
            self._tied_weights_keys = {"decoder.embeddings.words.weight": "encoder.embeddings.words.weight"}
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of word embeddings (V, d)."""
        return next(stack.embeddings.words for stack in (self.encoder, self.decoder) if stack is not None)

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the table of word embeddings, in encoder and decoder."""
        for stack in (self.encoder, self.decoder):
            if stack is not None:
                stack.embeddings.words = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ModelOutput:
        """input_ids (B, T), and decoder_input_ids (B, T_d) of an encoder-decoder, to hidden states (B, T or T_d, d).

        ``attention_mask`` is 1 for tokens and 0 for padding, (B, T); ``token_type_ids`` tells segments apart.
        """
        wanted = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        if self.encoder is None:
            assert self.decoder is not None  # every architecture has one of the two
            return self.decoder(
                input_ids,
                attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **wanted,
            )
        if encoder_outputs is None:
            encoded = self.encoder(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **wanted)
        else:
            encoded = encoder_outputs if isinstance(encoder_outputs, ModelOutput) else BaseModelOutput(*encoder_outputs)
        memory = encoded.last_hidden_state  # (B, T, d)
        if self.decoder is None:
            return BaseModelOutputWithPooling(
                last_hidden_state=memory,
                pooler_output=self.pooler(memory) if self.pooler is not None else None,
                hidden_states=encoded.hidden_states,
                attentions=encoded.attentions,
            )
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ModelError("an encoder-decoder needs decoder_input_ids: what the decoder has said so far")
        decoded = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            memory,
            attention_mask,
            decoder_position_ids,
            decoder_inputs_embeds,
            past_key_values,
            use_cache,
            **wanted,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=memory,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )
