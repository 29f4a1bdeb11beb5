"""The weights of BERT-architecture checkpoints, loaded into the PanGu encoder: ``from_bert``.

BERT (MiniLM, Mengzi-BERT, RoBERTa-wwm-ext are BERT by their architecture) and RoBERTa name the same arrays
differently; ``NAMES`` translates. Nothing is loaded by halves: a checkpoint that does not fit is refused.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from pangu_lab.model.configuration import ACTIVATIONS, ModelError, PanguConfig
from pangu_lab.model.modeling import PanguModel, PanguPreTrainedModel

Model = TypeVar("Model", bound=PanguPreTrainedModel)

# RoBERTa's positions are counted from behind its padding token's id, 1.
ROBERTA = ("roberta", "xlm-roberta", "camembert")
BERT_LIKE = ("bert", *ROBERTA)

NAMES = (
    (r"^embeddings\.word_embeddings", "model.encoder.embeddings.words"),
    (r"^embeddings\.position_embeddings", "model.encoder.embeddings.positions"),
    (r"^embeddings\.token_type_embeddings", "model.encoder.embeddings.segments"),
    (r"^embeddings\.LayerNorm", "model.encoder.embeddings.norm"),
    (r"^encoder\.layer\.(\d+)\.attention\.self\.query", r"model.encoder.layers.\1.self_attention.q"),
    (r"^encoder\.layer\.(\d+)\.attention\.self\.key", r"model.encoder.layers.\1.self_attention.k"),
    (r"^encoder\.layer\.(\d+)\.attention\.self\.value", r"model.encoder.layers.\1.self_attention.v"),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense", r"model.encoder.layers.\1.self_attention.o"),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.LayerNorm", r"model.encoder.layers.\1.self_attention_norm"),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense", r"model.encoder.layers.\1.feed_forward.up"),
    (r"^encoder\.layer\.(\d+)\.output\.dense", r"model.encoder.layers.\1.feed_forward.down"),
    (r"^encoder\.layer\.(\d+)\.output\.LayerNorm", r"model.encoder.layers.\1.feed_forward_norm"),
    (r"^pooler\.dense", "model.pooler.dense"),
    # Heads for masked words: BERT's, RoBERTa's; and BERT's for sentence pairs.
    (r"^cls\.predictions\.transform\.dense", "lm_head.dense"),
    (r"^cls\.predictions\.transform\.LayerNorm", "lm_head.norm"),
    (r"^cls\.predictions\.(decoder\.)?bias", "lm_head.decoder.bias"),
    (r"^cls\.predictions\.decoder\.weight", "lm_head.decoder.weight"),
    (r"^lm_head\.layer_norm", "lm_head.norm"),
    (r"^lm_head\.bias", "lm_head.decoder.bias"),
    (r"^cls\.seq_relationship", "pair_head"),
)


def from_bert(source: Any, head: type[Model] = PanguModel, **changes: Any) -> Model:
    """A PanGu model with the encoder weights of a BERT or RoBERTa checkpoint, ready for use (``eval``).

    Parameters
    ----------
    source
        A folder with ``config.json`` and weights, as ``hub.find_model(id, config).folder`` gives it; a
        ``hub.Source``; or a transformers model.
    head
        The class to build. Heads for masked words and sentence pairs are loaded if the checkpoint has them; what it
        does not have is initialized anew.
    changes
        Settings of the configuration to change, such as ``num_labels=2``, ``attn_implementation="eager"``, or
        ``architecture="encoder-decoder"`` for a fresh decoder behind the loaded encoder.

    Raises
    ------
    ModelError
        The checkpoint is of another architecture, or its weights are not all there.
    """
    settings, weights, name = _read(source)
    config = _configuration(settings, name, changes)
    loaded = {
        _translate(key): value for key, value in weights.items() if not key.endswith(("position_ids", "token_type_ids"))
    }
    loaded = {key: value for key, value in loaded.items() if key.startswith(("model.", "lm_head.", "pair_head."))}
    model = head(config)
    if head is PanguModel:
        loaded = {key.removeprefix("model."): value for key, value in loaded.items()}
    own = model.state_dict()
    for key, value in own.items():
        if key in loaded and loaded[key].shape != value.shape:
            raise ModelError(
                f"{name}: {key} has shape {tuple(loaded[key].shape)} where its configuration says "
                f"{tuple(value.shape)}; config.json and weights are not of one model"
            )
    encoder = "encoder." if head is PanguModel else "model.encoder."
    missing = [key for key in own if key.startswith(encoder) and key not in loaded]
    if missing:
        raise ModelError(f"{name}: lacks {len(missing)} weights of the encoder, first {missing[0]}; fetch it again")
    unknown = [key for key in loaded if key.startswith(encoder) and key not in own]
    if unknown:
        raise ModelError(f"{name}: has weights that BERT's encoder does not have, first {unknown[0]}")
    model.load_state_dict({key: value for key, value in loaded.items() if key in own}, strict=False)
    model.tie_weights()
    return model.eval()


def _read(source: Any) -> tuple[dict[str, Any], Mapping[str, Tensor], str]:
    """Configuration, weights and a name for messages."""
    if isinstance(source, nn.Module):
        if not isinstance(source, PreTrainedModel):
            raise ModelError(f"{type(source).__name__} has no configuration; give a transformers model or a folder")
        return source.config.to_dict(), source.state_dict(), type(source).__name__
    folder = Path(getattr(source, "folder", source)).expanduser()
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError:
        raise ModelError(
            f"{folder}: is not a folder with a config.json; give one, for instance hub.find_model(id, config).folder"
        ) from None
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'}: is not JSON ({error}); fetch it again") from None
    _refuse_others(settings, str(folder))  # before a large file is read
    files = sorted(folder.glob("*.safetensors"))
    try:
        if files:
            weights = {key: value for file in files for key, value in load_file(file).items()}
        else:
            weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many kinds; each means: no weights
        raise ModelError(f"{folder}: its weights cannot be read ({type(error).__name__}); fetch them again") from error
    return settings, weights, str(folder)


def _refuse_others(settings: Mapping[str, Any], name: str) -> None:
    """One sentence for each way not to be a BERT encoder."""
    kind = settings.get("model_type")
    if kind not in BERT_LIKE:
        raise ModelError(f"{name}: is of architecture {kind!r}; from_bert takes {', '.join(BERT_LIKE)}")
    if settings.get("is_decoder") or settings.get("add_cross_attention"):
        raise ModelError(f"{name}: is a {kind} decoder; from_bert takes encoders")
    if settings.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(f"{name}: has {settings['position_embedding_type']} positions; from_bert takes absolute ones")
    if settings.get("hidden_act", "gelu") not in ACTIVATIONS:
        raise ModelError(f"{name}: has activation {settings['hidden_act']!r}; the encoder has {', '.join(ACTIVATIONS)}")


def _configuration(settings: Mapping[str, Any], name: str, changes: Mapping[str, Any]) -> PanguConfig:
    """The PanGu configuration of a BERT or RoBERTa one."""
    _refuse_others(settings, name)
    shared = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "max_position_embeddings",
        "type_vocab_size",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "initializer_range",
        "layer_norm_eps",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "id2label",
        "label2id",
    )
    taken = {key: settings[key] for key in shared if settings.get(key) is not None}
    if "num_labels" in changes:
        taken.pop("id2label", None)
        taken.pop("label2id", None)
    if settings["model_type"] in ROBERTA:
        taken["position_offset"] = taken.get("pad_token_id", 1) + 1
    return PanguConfig(**(taken | dict(changes)))


def _translate(key: str) -> str:
    """Our name of an array that BERT or RoBERTa calls ``key``."""
    key = re.sub(r"^(bert|roberta)\.", "", key)
    key = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key))
    for pattern, ours in NAMES:
        if re.match(pattern, key):
            return re.sub(pattern, ours, key)
    return key
