"""The shape of a PanGu model: an encoder, an encoder with a decoder, or PanGu-α's decoder alone.

One class says which; the layers read it. ``PanguConfig()`` is the shape of MiniLM-L6-H384, the encoder whose
weights ship with the course. Read ``attention.py`` next.
"""

import importlib
from typing import Any

from transformers import BertConfig, PretrainedConfig

from pangu_lab.errors import PanguLabError

ARCHITECTURES = ("encoder", "encoder-decoder", "decoder")
ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu")

# PanGu-α, table 1 (Zeng et al. 2021): layers, d, heads; d_ff is 4 d, the vocabulary 40,000, the length 1,024.
# The public code counts the query layer as one of the L layers, and so do the totals 2.6 B and 207.0 B. The
# total of 13.1 B does not come out of L = 40 (12.8 B), but of 40 layers below the query layer.
PANGU_ALPHA = {"2.6B": (32, 2560, 32), "13B": (41, 5120, 40), "207B": (64, 16384, 128)}


class ModelError(PanguLabError, ValueError):
    """A model cannot be built, loaded or run as asked."""


class _FromFile:
    """Of a configuration: as soon as one is read from a file, the Auto classes must know its models.

    They load through ``from_dict``, so the models' code, 100 MB and more with all that transformers brings, is
    imported there (``auto``) and not wherever a configuration or a function of ``attention`` is wanted.
    """

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers has it."""
        importlib.import_module("pangu_lab.model.auto")
        transformers_own: Any = super()
        return transformers_own.from_dict(config_dict, **kwargs)


class PanguConfig(_FromFile, PretrainedConfig):
    """Sizes and options of a model.

    Parameters
    ----------
    architecture
        ``encoder``, ``encoder-decoder`` or ``decoder``.
    hidden_size, intermediate_size, num_attention_heads
        d and d_ff of Vaswani et al. 2017, table 3, and the number of heads h; each head has d/h dimensions.
    num_hidden_layers
        Layers of the encoder; of the decoder where it stands alone, its query layer counted.
    decoder_layers
        Layers of the decoder behind an encoder; as many as the encoder's if not given.
    norm_position
        ``post``: LayerNorm after each residual sum, as in Vaswani et al. 2017 and BERT. ``pre``: before each
        sublayer, and once at the end, as in PanGu-α.
    query_layer
        The top layer of a lone decoder asks with the embedding of the position to be predicted (PanGu-α, §3.2).
    position_offset
        0: positions count 0, 1, 2, … RoBERTa's is 2: tokens count from 2, padding (found by its id) stands at 1.
    relative_positions
        0: the encoder adds an embedding of each position to its word. R > 0: in place of that each of its heads learns
        a number for every distance from -R to R, farther ones counting as R (``RelativePositions``). The decoder's
        positions stay as they are.
    heads_per_layer, neurons_per_layer
        How many heads and feed-forward neurons each layer of a lone encoder has left, where pruning took some. Each
        head keeps its d/h dimensions, h being ``num_attention_heads``.
    num_pos_tags, num_ner_tags
        Sizes of the two optional tagging heads of ``PanguForPreTraining``; 0 leaves the head out.
    """

    model_type = "pangu"
    keys_to_ignore_at_inference = ("past_key_values",)

    architecture: str = "encoder"
    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    decoder_layers: int | None = None
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    hidden_act: str = "gelu"
    norm_position: str = "post"
    query_layer: bool = False
    max_position_embeddings: int = 512
    position_offset: int = 0
    relative_positions: int = 0
    type_vocab_size: int = 2
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    classifier_dropout: float | int | None = None
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    heads_per_layer: list[int] | None = None
    neurons_per_layer: list[int] | None = None
    num_pos_tags: int = 0
    num_ner_tags: int = 0
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 101
    eos_token_id: int | list[int] | None = 102
    decoder_start_token_id: int | None = 101

    def __post_init__(self, **kwargs: Any) -> None:
        if self.architecture == "encoder-decoder" and self.decoder_layers is None:
            self.decoder_layers = self.num_hidden_layers
        self.is_encoder_decoder = self.architecture == "encoder-decoder"
        self.is_decoder = self.architecture == "decoder"
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        """Refuse what no layer could be built from."""
        for name, allowed in (
            ("architecture", ARCHITECTURES),
            ("hidden_act", ACTIVATIONS),
            ("norm_position", ("post", "pre")),
        ):
            if getattr(self, name) not in allowed:
                raise ModelError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if self.hidden_size % self.num_attention_heads:
            raise ModelError(
                f"hidden_size {self.hidden_size} cannot be split over {self.num_attention_heads} heads; "
                "make it a multiple of num_attention_heads"
            )
        if self.query_layer and (self.architecture != "decoder" or self.norm_position != "pre"):
            raise ModelError("query_layer belongs to a lone pre-norm decoder; set architecture and norm_position")
        if self.relative_positions < 0 or (self.relative_positions and self.architecture == "decoder"):
            raise ModelError(
                f"relative_positions is {self.relative_positions} in architecture '{self.architecture}'; "
                "it must be 0 or more, and 0 without an encoder"
            )
        if self.decoder_layers is not None and self.architecture != "encoder-decoder":
            raise ModelError("decoder_layers belongs to an encoder-decoder; a lone decoder has num_hidden_layers")

        for name, most in (
            ("heads_per_layer", self.num_attention_heads),
            ("neurons_per_layer", self.intermediate_size),
        ):
            counts = getattr(self, name)
            if counts is None:
                continue
            if self.architecture != "encoder":
                raise ModelError(f"{name} belongs to a lone encoder; the architecture is '{self.architecture}'")
            if len(counts) != self.num_hidden_layers or not all(1 <= count <= most for count in counts):
                raise ModelError(f"{name} is {counts}; give {self.num_hidden_layers} numbers from 1 to {most}")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers does it, but a checkpoint of another architecture is refused: it would load no weight."""
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ModelError(
                f"the checkpoint is of architecture {kind!r}, not {cls.model_type!r}; "
                "from_bert loads the encoders of BERT and RoBERTa"
            )
        return super().from_dict(config_dict, **kwargs)

    def heads_in(self, layer: int) -> int:
        """How many heads a layer has."""
        return self.num_attention_heads if self.heads_per_layer is None else self.heads_per_layer[layer]

    def neurons_in(self, layer: int) -> int:
        """How many neurons a layer's feed-forward network has."""
        return self.intermediate_size if self.neurons_per_layer is None else self.neurons_per_layer[layer]

    @classmethod
    def pangu_alpha(cls, size: str, **changes: Any) -> "PanguConfig":
        """The decoder of PanGu-α in one of its published sizes: 2.6B, 13B or 207B (Zeng et al. 2021, table 1)."""
        if size not in PANGU_ALPHA:
            raise ModelError(f"PanGu-α was not published in size {size!r}; there are {', '.join(PANGU_ALPHA)}")
        layers, d, heads = PANGU_ALPHA[size]
        shape: dict[str, Any] = {
            "architecture": "decoder",
            "query_layer": True,
            "norm_position": "pre",
            "vocab_size": 40_000,
            "max_position_embeddings": 1024,
            "type_vocab_size": 0,
            "hidden_size": d,
            "intermediate_size": 4 * d,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "layer_norm_eps": 1e-5,
        }
        return cls(**(shape | changes))


class PrunedBertConfig(_FromFile, BertConfig):
    """BERT's configuration and the number of heads and neurons that each layer has left.

    ``num_attention_heads`` and ``hidden_size`` stay: their ratio is the size of a head.
    """

    model_type = "bert-pruned"

    heads_per_layer: list[int] | None = None
    neurons_per_layer: list[int] | None = None
