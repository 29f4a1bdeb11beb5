"""A BERT-like encoder computed in int8 from the first layer to the last, without its padding.

``describe`` turns a model (transformers' ``BertModel``, our ``PanguModel``, or either with a head) into quantized
tensors, an ``EncoderTensors``; ``Int8Encoder`` computes with nothing else, so a saved description needs no float weights.
``reference_states`` is the same computation in plain torch: the path without a compiler, and what the tests compare with.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPooling

from pangu_lab.compression.engine import (
    ACTIVATIONS,
    EngineError,
    LinearStruct,
    PackedLinear,
    available,
    engine_path,
    load,
    pad_to,
    quantize_channels,
)
from pangu_lab.compression.measure import parameters
from pangu_lab.compression.quantization import Int8Embedding, Int8Linear, Recipe


@dataclass(frozen=True)
class LinearTensors:
    """A quantized linear layer: weight (N, K) int8, scale (N,), bias (N,); one scale of its inputs if it is static."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    activation_scale: float | None = None


@dataclass(frozen=True)
class NormTensors:
    """Weight and bias (d,) of a LayerNorm."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class LayerTensors:
    """One encoder layer. ``qkv`` is the three projections in one, (3 · heads · d_k, d).

    ``norm1`` stands between attention and feed-forward network, ``norm2`` after it: with norms after each sublayer
    (BERT) these are the layer's two; with norms before (PanGu-α) the second is that of the next layer, or the last one.
    """

    qkv: LinearTensors
    out: LinearTensors
    up: LinearTensors
    down: LinearTensors
    norm1: NormTensors
    norm2: NormTensors
    heads: int


@dataclass(frozen=True)
class EncoderTensors:
    """All that an encoder needs. ``words`` (V, d) is fp32, or int8 with ``word_scale`` (V,)."""

    words: Tensor
    word_scale: Tensor | None
    positions: Tensor
    segments: Tensor | None
    norm: NormTensors  # after the embeddings; with norms before each sublayer, that of the first
    layers: tuple[LayerTensors, ...]
    activation: str
    eps: float
    pre_norm: bool = False
    position_offset: int = 0
    pad: int = 0
    pooler: LinearTensors | None = None


# --- from a model -----------------------------------------------------------------------------------


def linear_tensors(modules: Sequence[Any]) -> LinearTensors:
    """One layer, or several side by side, quantized; a module that holds an int8 weight with its scale is taken as is."""
    parts = []
    for module in modules:
        if isinstance(module, Int8Linear):
            if module.inverse_factors is not None:
                raise EngineError("a smoothed layer scales its input first, which the int8 engine does not do")
            weight, scale = module.weight.T, module.weight_scale
        elif isinstance(module, nn.Linear):
            weight, scale = quantize_channels(module.weight)
        else:
            raise EngineError(f"{type(module).__name__} is neither nn.Linear nor Int8Linear; quantize to int8")
        bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach().float()
        parts.append((weight.detach(), scale.detach().flatten(), bias))
    static = {_static_scale(module) for module in modules}
    if len(static) > 1:
        raise EngineError(
            "q, k and v have different activation scales; calibrate them together, they share their input"
        )
    weight, scale, bias = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return LinearTensors(weight, scale, bias, static.pop())


def _static_scale(module: Any) -> float | None:
    scale = getattr(module, "activation_scale", None)
    return None if scale is None or float(scale) == 0 else float(scale)


def _norm(module: Any) -> NormTensors:
    return NormTensors(module.weight.detach().float(), module.bias.detach().float())


def _words(table: nn.Module) -> dict[str, Any]:
    """The word embeddings as they are stored: fp32, or int8 with one scale a row."""
    if isinstance(table, Int8Embedding):
        return {"words": table.values, "word_scale": table.scale}
    weight: Any = table.weight
    return {"words": weight.detach(), "word_scale": None}


def encoder_of(model: nn.Module) -> nn.Module:
    """The BertModel or PanguModel in ``model``, which may be one of them with a head on it."""
    for module in model.modules():
        if hasattr(module, "encoder") and (hasattr(module, "embeddings") or hasattr(module.encoder, "embeddings")):
            return module
    raise EngineError(
        f"{type(model).__name__} has no encoder like BERT's; the int8 engine computes BertModel and PanguModel"
    )


def describe(model: nn.Module) -> EncoderTensors:
    """The quantized tensors of the encoder in ``model``; int8 per output channel, fp32 for embeddings and norms.

    Raises
    ------
    EngineError
        The model has no encoder like BERT's, is a decoder, or uses an activation other than GELU and ReLU.
    """
    encoder = encoder_of(model)
    config: Any = encoder.config
    if config.hidden_act not in ACTIVATIONS:
        raise EngineError(f"hidden_act is {config.hidden_act!r}; the int8 engine has gelu and relu")
    if getattr(config, "is_decoder", False):
        raise EngineError("the model is a decoder; the int8 engine computes encoders, where each token sees all others")
    with torch.no_grad():
        return _describe_bert(encoder, config) if hasattr(encoder, "embeddings") else _describe_pangu(encoder, config)


def _describe_bert(model: Any, config: Any) -> EncoderTensors:
    layers = []
    for layer in model.encoder.layer:
        own = layer.attention.self
        layers.append(
            LayerTensors(
                qkv=linear_tensors([own.query, own.key, own.value]),
                out=linear_tensors([layer.attention.output.dense]),
                up=linear_tensors([layer.intermediate.dense]),
                down=linear_tensors([layer.output.dense]),
                norm1=_norm(layer.attention.output.LayerNorm),
                norm2=_norm(layer.output.LayerNorm),
                heads=own.num_attention_heads,
            )
        )
    embeddings = model.embeddings
    return EncoderTensors(
        **_words(embeddings.word_embeddings),
        positions=embeddings.position_embeddings.weight.detach().float(),
        segments=embeddings.token_type_embeddings.weight.detach().float(),
        norm=_norm(embeddings.LayerNorm),
        layers=tuple(layers),
        activation=config.hidden_act,
        eps=config.layer_norm_eps,
        pooler=linear_tensors([model.pooler.dense]) if model.pooler is not None else None,
    )


def _describe_pangu(model: Any, config: Any) -> EncoderTensors:
    if config.architecture != "encoder":
        raise EngineError(f"the architecture is {config.architecture!r}; the int8 engine computes encoders alone")
    stack, pre = model.encoder, config.norm_position == "pre"
    firsts = [_norm(layer.self_attention_norm) for layer in stack.layers]
    seconds = [_norm(layer.feed_forward_norm) for layer in stack.layers]
    # Under pre-norm a norm belongs to the sublayer after it: all move one place towards the front.
    if pre:
        first, between, after = firsts[0], seconds, [*firsts[1:], _norm(stack.norm)]
    else:
        first, between, after = _norm(stack.embeddings.norm), firsts, seconds
    layers = tuple(
        LayerTensors(
            qkv=linear_tensors([layer.self_attention.q, layer.self_attention.k, layer.self_attention.v]),
            out=linear_tensors([layer.self_attention.o]),
            up=linear_tensors([layer.feed_forward.up]),
            down=linear_tensors([layer.feed_forward.down]),
            norm1=norm1,
            norm2=norm2,
            heads=layer.self_attention.heads,
        )
        for layer, norm1, norm2 in zip(stack.layers, between, after, strict=True)
    )
    embeddings = stack.embeddings
    if embeddings.positions is None:
        raise EngineError("an encoder with relative positions has no int8 form; give one with position embeddings")
    return EncoderTensors(
        **_words(embeddings.words),
        positions=embeddings.positions.weight.detach().float(),
        segments=None if embeddings.segments is None else embeddings.segments.weight.detach().float(),
        norm=first,
        layers=layers,
        activation=config.hidden_act,
        eps=config.layer_norm_eps,
        pre_norm=pre,
        position_offset=config.position_offset,
        pad=config.pad_token_id or 0,
        pooler=linear_tensors([model.pooler.dense]) if model.pooler is not None else None,
    )


# --- the same in plain torch ------------------------------------------------------------------------


def embed(tensors: EncoderTensors, ids: Tensor, positions: Tensor, segments: Tensor | None) -> Tensor:
    """Sum of the embeddings, (B, T, d), before any norm."""
    x = tensors.words[ids].float()
    if tensors.word_scale is not None:
        x = x * tensors.word_scale.flatten()[ids].unsqueeze(-1)
    x = x + tensors.positions[positions]
    return (
        x if tensors.segments is None else x + tensors.segments[torch.zeros_like(ids) if segments is None else segments]
    )


def reference_states(
    tensors: EncoderTensors, ids: Tensor, mask: Tensor, positions: Tensor, segments: Tensor | None, path: str = "torch"
) -> Tensor:
    """Hidden states (B, T, d), zero at padding: linear layers in int8, attention in fp32, all texts padded."""

    def linear(part: LinearTensors, x: Tensor) -> Tensor:
        return PackedLinear(part.weight, part.scale, part.bias, part.activation_scale, path=path)(x)

    def norm(part: NormTensors, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (x.shape[-1],), part.weight, part.bias, tensors.eps)

    x = embed(tensors, ids, positions, segments)
    h = norm(tensors.norm, x)
    x = x if tensors.pre_norm else h
    activation = getattr(functional, tensors.activation)
    seen = mask.bool()[:, None, None, :]  # (B, 1, 1, T)
    for layer in tensors.layers:
        q, k, v = (
            part.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in linear(layer.qkv, h).chunk(3, dim=-1)
        )  # (B, H, T, d_k)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(-2)
        x = x + linear(layer.out, attended)
        h = norm(layer.norm1, x)
        x = (x if tensors.pre_norm else h) + linear(layer.down, activation(linear(layer.up, h)))
        h = norm(layer.norm2, x)
        x = x if tensors.pre_norm else h
    return h.masked_fill(~mask.bool().unsqueeze(-1), 0)


# --- the compiled encoder ---------------------------------------------------------------------------


class _Layer(ctypes.Structure):
    _fields_ = (
        ("qkv", LinearStruct),
        ("out", LinearStruct),
        ("up", LinearStruct),
        ("down", LinearStruct),
        ("norm1_weight", ctypes.c_void_p),
        ("norm1_bias", ctypes.c_void_p),
        ("norm2_weight", ctypes.c_void_p),
        ("norm2_bias", ctypes.c_void_p),
        ("heads", ctypes.c_int),
        ("head_size", ctypes.c_int),
    )


class _Encoder(ctypes.Structure):
    _fields_ = (
        ("words", ctypes.c_void_p),
        ("word_bytes", ctypes.c_void_p),
        ("word_scale", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("segments", ctypes.c_void_p),
        ("norm_weight", ctypes.c_void_p),
        ("norm_bias", ctypes.c_void_p),
        ("layers", ctypes.c_void_p),
        ("layer_count", ctypes.c_int),
        ("d", ctypes.c_int),
        ("pre_norm", ctypes.c_int),
        ("activation", ctypes.c_int),
        ("eps", ctypes.c_float),
    )


class Int8Encoder(nn.Module):
    """An encoder on packed int8 weights, called as the model it was made from.

    ``Int8Encoder(describe(model))`` takes the place of ``model.bert`` (or of our ``model.model``) in a model with a
    head. It computes only; it has no parameters to train. On the path ``torch`` it is ``reference_states``.
    """

    def __init__(self, tensors: EncoderTensors, config: Any = None, path: str | None = None) -> None:
        super().__init__()
        self.config, self.tensors, self.path = config, tensors, path or engine_path()
        self.parameter_count = 0  # of the encoder it was made from: packed weights are no parameters of torch
        self.pooler_dense = self._linear(tensors.pooler) if tensors.pooler is not None else None
        self._kept: list[Any] = []  # what the structs point at must live as long as they do
        self._struct = None if self.path == "torch" else self._build()

    @classmethod
    def from_model(cls, model: nn.Module, path: str | None = None) -> "Int8Encoder":
        """The encoder in ``model``, quantized."""
        encoder = encoder_of(model)
        made = cls(describe(model), encoder.config, path)
        made.parameter_count = parameters(encoder)
        return made

    def _linear(self, part: LinearTensors) -> PackedLinear:
        return PackedLinear(part.weight, part.scale, part.bias, part.activation_scale, path=self.path)

    def _keep(self, tensor: Tensor | None) -> int | None:
        """The address of a copy whose rows are padded to a multiple of 32."""
        if tensor is None:
            return None
        self._kept.append(pad_to(tensor.detach().cpu(), 32).contiguous())
        return self._kept[-1].data_ptr()

    def _packed(self, part: LinearTensors) -> LinearStruct:
        self._kept.append(self._linear(part))
        return self._kept[-1].struct()

    def _build(self) -> _Encoder:
        tensors, layers = self.tensors, (_Layer * len(self.tensors.layers))()
        d = tensors.positions.shape[1]
        for struct, layer in zip(layers, tensors.layers, strict=True):
            struct.qkv, struct.out = self._packed(layer.qkv), self._packed(layer.out)
            struct.up, struct.down = self._packed(layer.up), self._packed(layer.down)
            struct.norm1_weight, struct.norm1_bias = self._keep(layer.norm1.weight), self._keep(layer.norm1.bias)
            struct.norm2_weight, struct.norm2_bias = self._keep(layer.norm2.weight), self._keep(layer.norm2.bias)
            struct.heads, struct.head_size = layer.heads, layer.out.weight.shape[1] // layer.heads
            if struct.head_size > 512 or d > 8192:
                raise EngineError(f"the model is {d} wide, with {layer.heads} heads; at most 8192, and 512 per head")
        self._kept.append(layers)
        quantized = tensors.words.dtype == torch.int8
        words = self._keep(tensors.words if quantized else tensors.words.float())
        scale = (
            tensors.word_scale.detach().cpu().float().flatten().contiguous() if tensors.word_scale is not None else None
        )
        self._kept.append(scale)
        return _Encoder(
            None if quantized else words,
            words if quantized else None,
            None if scale is None else scale.data_ptr(),
            self._keep(tensors.positions),
            self._keep(tensors.segments),
            self._keep(tensors.norm.weight),
            self._keep(tensors.norm.bias),
            ctypes.addressof(layers),
            len(layers),
            d,
            tensors.pre_norm,
            ACTIVATIONS[tensors.activation],
            tensors.eps,
        )

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """input_ids (B, T) to hidden states (B, T, d) in fp32; those of padding are zero and cost nothing.

        Raises
        ------
        EngineError
            A token, position or segment is not in its table, or the mask is not (B, T).
        """
        tensors = self.tensors
        ids = input_ids.long().contiguous()
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.long().contiguous()
        if ids.dim() != 2 or mask.shape != ids.shape:
            raise EngineError(
                f"input_ids have shape {tuple(ids.shape)} and attention_mask {tuple(mask.shape)}; both must be (texts, tokens)"
            )
        positions = self._positions(ids, position_ids)
        segments = None if token_type_ids is None else token_type_ids.long().contiguous()
        tables = (
            ("input_ids", ids, tensors.words),
            ("position_ids", positions, tensors.positions),
            ("token_type_ids", segments, tensors.segments),
        )
        for name, values, table in tables:
            if values is not None and table is not None and values.numel():
                low, high = values.aminmax()
                if low < 0 or high >= len(table):
                    raise EngineError(f"{name} go from {int(low)} to {int(high)}; the model has 0 to {len(table) - 1}")
        if self._struct is None:
            return reference_states(tensors, ids, mask, positions, segments)
        out = torch.empty(*ids.shape, tensors.positions.shape[1])
        load(self.path).pangu_encode(
            ctypes.addressof(self._struct),
            ids.data_ptr(),
            mask.data_ptr(),
            positions.data_ptr(),
            None if segments is None or tensors.segments is None else segments.data_ptr(),
            *ids.shape,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def _positions(self, ids: Tensor, given: Tensor | None) -> Tensor:
        """(B, T): 0, 1, 2, … or, with an offset, counted over what is not padding, as the model itself does."""
        if given is not None:
            return given.long().expand(ids.shape).contiguous()
        if self.tensors.position_offset:
            real = ids.ne(self.tensors.pad)
            return (real.cumsum(dim=-1) * real + self.tensors.position_offset - 1).contiguous()
        return torch.arange(ids.shape[1]).expand(ids.shape).contiguous()

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        **ignored: Any,
    ) -> BaseModelOutputWithPooling:
        """As the encoder it was made from: hidden states, and the pooled first token where there is a pooler."""
        states = self.hidden_states(input_ids, attention_mask, token_type_ids, position_ids)
        pooled = None if self.pooler_dense is None else torch.tanh(self.pooler_dense(states[:, 0]))
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)


def with_int8_encoder(model: nn.Module, path: str | None = None) -> nn.Module:
    """A copy of ``model`` (an encoder with a head, or without) whose encoder is computed in int8; heads stay fp32."""
    encoder = encoder_of(model)
    replaced = Int8Encoder.from_model(model, path)
    if encoder is model:
        return replaced
    name = next(name for name, child in model.named_children() if child is encoder)
    copied = object.__new__(type(model))
    copied.__dict__.update(model.__dict__)
    copied._modules = dict(model._modules) | {name: replaced}
    return copied.eval()


def fastest(model: nn.Module) -> nn.Module:
    """A quantized model as fast as this machine computes it: its encoder on the engine, where engine and recipe fit.

    Otherwise, for a float model, a smoothed or weights-only recipe, another architecture, or a machine without a
    compiler, it is ``model`` itself.
    """
    recipe = getattr(model, "quantization_recipe", None)
    fits = isinstance(recipe, Recipe) and recipe.bits == 8 and recipe.activations != "float" and recipe.smooth is None
    if not fits or not available()[0]:
        return model
    try:
        return with_int8_encoder(model)
    except EngineError:
        return model
