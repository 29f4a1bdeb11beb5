"""Structured pruning: whole heads, neurons, layers and words go, and the matrices really become smaller.

Every function returns a new model and leaves the given one as it was. They work alike on ``PanguModel`` encoders and
on transformers' BERT, whatever head is on top. Read ``remove_neurons`` first, then ``_rebuild``.

A model saved with ``save_pretrained`` loads again with ``from_pretrained``:

- fewer layers or words, or the same number of neurons in every layer, is an ordinary BERT checkpoint that plain
  transformers loads;
- fewer heads, or unlike numbers of neurons, is not: transformers' BERT has no place for them (its ``prune_heads`` is
  gone since version 5). Such a model becomes the ``PrunedBert…`` class of the same task, which any Auto class
  loads where ``pangu_lab.model`` is imported. A PanGu model keeps its class: its configuration holds the numbers.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from pangu_lab.errors import PanguLabError
from pangu_lab.model.configuration import PrunedBertConfig
from pangu_lab.model.modeling import Encoder
from pangu_lab.model.pruned_bert import PRUNED

Model = TypeVar("Model", bound=nn.Module)


class PruningError(PanguLabError, ValueError):
    """A model or a tokenizer cannot be pruned as asked."""


# --- one view of both kinds of models -----------------------------------------------------------------

# The six linear maps of a layer, by their names in transformers' BERT and in PanguModel.
BERT_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
PANGU_NAMES = {
    "query": "self_attention.q",
    "key": "self_attention.k",
    "value": "self_attention.v",
    "attention_output": "self_attention.o",
    "up": "feed_forward.up",
    "down": "feed_forward.down",
}


@dataclass(frozen=True)
class LayerView:
    """The linear maps of one encoder layer, under one set of names, and the size of its heads.

    ``query``, ``key``, ``value`` are (H·d_head, d), ``attention_output`` (d, H·d_head), ``up`` (neurons, d) and
    ``down`` (d, neurons), as torch stores them.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    up: nn.Linear
    down: nn.Linear
    head_size: int

    @property
    def heads(self) -> int:
        """How many heads the layer has."""
        return self.query.out_features // self.head_size

    @property
    def neurons(self) -> int:
        """How many neurons its feed-forward network has."""
        return self.up.out_features


def find_encoder(model: nn.Module) -> tuple[str, dict[str, str]]:
    """The name of the list of encoder layers inside ``model``, and what its linear maps are called."""
    for name, module in model.named_modules():
        for kind, layers, names in ((BertEncoder, "layer", BERT_NAMES), (Encoder, "layers", PANGU_NAMES)):
            if isinstance(module, kind):
                return f"{name}.{layers}".lstrip("."), names
    raise PruningError(f"{type(model).__name__} has no encoder that can be pruned; give a BERT or PanGu model")


def encoder_layers(model: nn.Module) -> list[LayerView]:
    """The encoder's layers, from the first to the last."""
    place, names = find_encoder(model)
    config: Any = model.config
    size = config.hidden_size // config.num_attention_heads
    layers: Any = model.get_submodule(place)
    return [LayerView(**{k: layer.get_submodule(v) for k, v in names.items()}, head_size=size) for layer in layers]


# --- smaller matrices -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kept:
    """What stays of a layer: which one it was, and the positions of its heads and neurons that stay."""

    layer: int
    heads: list[int]
    neurons: list[int]


def remove_heads(model: Model, heads: Mapping[int, Sequence[int]]) -> Model:
    """The model without some attention heads.

    Parameters
    ----------
    heads
        Layer to positions of heads, both as they are *in this model*: after a first removal the heads that stay
        have new positions.

    Raises
    ------
    PruningError
        A layer or head that is not there, a layer that would lose its last head, or heads with relative positions.
    """
    if getattr(model.config, "relative_positions", 0):
        raise PruningError("heads with relative positions cannot be removed; give an encoder with position embeddings")
    return _rebuild(model, [_without(kept, "heads", heads) for kept in _everything(model, heads)])


def remove_neurons(model: Model, neurons: Mapping[int, Sequence[int]]) -> Model:
    """The model without some neurons of its feed-forward networks.

    A neuron is a row of ``up`` with its bias, and the column of ``down`` that reads it.

    Parameters
    ----------
    neurons
        Layer to positions of neurons. The same number in every layer leaves an ordinary checkpoint.

    Raises
    ------
    PruningError
        A layer or neuron that is not there, or a layer that would lose its last neuron.
    """
    return _rebuild(model, [_without(kept, "neurons", neurons) for kept in _everything(model, neurons)])


def keep_layers(model: Model, layers: Sequence[int]) -> Model:
    """The model with only these encoder layers, in this order.

    Raises
    ------
    PruningError
        A layer that is not there or is named twice, or none at all.
    """
    _everything(model, layers)  # are they there?
    if not layers or len(set(layers)) != len(layers):
        raise PruningError(f"layers to keep are {list(layers)}; name at least one, and each once")
    return with_layers(model, layers)


def with_layers(model: Model, layers: Sequence[int]) -> Model:
    """The model with copies of these encoder layers, in this order; a layer may stand in it twice."""
    everything = _everything(model, layers)
    return _rebuild(model, [everything[layer] for layer in layers])


def _everything(model: nn.Module, named: Iterable[int]) -> list[_Kept]:
    views = encoder_layers(model)
    for layer in named:
        if not 0 <= layer < len(views):
            raise PruningError(f"there is no layer {layer}; the model's layers are 0 to {len(views) - 1}")
    return [_Kept(i, list(range(view.heads)), list(range(view.neurons))) for i, view in enumerate(views)]


def _without(kept: _Kept, what: str, removed: Mapping[int, Sequence[int]]) -> _Kept:
    there, gone = getattr(kept, what), set(removed.get(kept.layer, ()))
    unknown = sorted(gone - set(there))
    if unknown:
        raise PruningError(f"layer {kept.layer} has no {what} {unknown}; it has 0 to {len(there) - 1}")
    if len(gone) == len(there):
        raise PruningError(f"layer {kept.layer} would lose all its {what}; leave one, or drop the layer")
    stay = [i for i in there if i not in gone]
    return _Kept(kept.layer, stay if what == "heads" else kept.heads, stay if what == "neurons" else kept.neurons)


def _rebuild(model: Model, kept: list[_Kept]) -> Model:
    """A model of the kept shapes with the kept rows and columns of every matrix."""
    place, names = find_encoder(model)
    short = {path: name for name, path in names.items()}
    size = encoder_layers(model)[0].head_size
    old = model.state_dict()
    state = {name: tensor for name, tensor in old.items() if not name.startswith(place + ".")}
    for new, part in enumerate(kept):
        of_layer = f"{place}.{part.layer}."
        # The rows of q, k and v that belong to the kept heads: d_head rows each.
        rows = torch.tensor([head * size + i for head in part.heads for i in range(size)])
        neurons = torch.tensor(part.neurons)
        for name in (name for name in old if name.startswith(of_layer)):
            inner = name.removeprefix(of_layer)
            matrix, kind = short.get(inner.rpartition(".")[0], ""), inner.rpartition(".")[2]
            tensor = old[name]
            if matrix in ("query", "key", "value"):
                tensor = tensor[rows]  # weight and bias
            elif matrix == "up":
                tensor = tensor[neurons]  # weight and bias
            elif matrix == "attention_output" and kind == "weight":
                tensor = tensor[:, rows]  # the bias is an output's, it stays
            elif matrix == "down" and kind == "weight":
                tensor = tensor[:, neurons]
            state[f"{place}.{new}.{inner}"] = tensor
    counts = {"heads": [len(part.heads) for part in kept], "neurons": [len(part.neurons) for part in kept]}
    return _with_weights(model, state, *_shape(model, **counts))


def _shape(model: Any, heads: list[int], neurons: list[int]) -> tuple[type, dict[str, Any]]:
    """The class that can hold such layers, and what changes in the configuration."""
    all_heads = all(count == model.config.num_attention_heads for count in heads)
    alike = len(set(neurons)) == 1
    changes: dict[str, Any] = {
        "num_hidden_layers": len(heads),
        "intermediate_size": max(neurons),
        "heads_per_layer": None if all_heads else heads,
        "neurons_per_layer": None if alike else neurons,
    }
    if not isinstance(model.config, BertConfig):
        return type(model), changes
    plain = next((kind for kind, pruned in PRUNED.items() if type(model) in (kind, pruned)), None)
    if all_heads and alike:
        del changes["heads_per_layer"], changes["neurons_per_layer"]
        return plain or type(model), changes
    if plain is None:
        names = ", ".join(kind.__name__ for kind in PRUNED)
        raise PruningError(f"{type(model).__name__} cannot hold layers of unlike widths; it can be one of {names}")
    return PRUNED[plain], changes


def _with_weights(model: Any, state: dict[str, Tensor], kind: type, changes: dict[str, Any]) -> Any:
    """A model of class ``kind`` whose configuration is the given model's with ``changes``; its weights are copies."""
    if isinstance(model.config, BertConfig):
        config_class: Any = PrunedBertConfig if kind in PRUNED.values() else BertConfig
        lists = ("heads_per_layer", "neurons_per_layer")
        before = {k: v for k, v in model.config.to_dict().items() if config_class is PrunedBertConfig or k not in lists}
        config = config_class.from_dict(before | {"model_type": config_class.model_type} | changes)
    else:
        config = type(model.config).from_dict(model.config.to_dict() | changes)
    config._attn_implementation = model.config._attn_implementation
    config.architectures = [kind.__name__]
    # Building draws random weights that are overwritten; nobody else's random numbers may depend on that.
    with torch.random.fork_rng(devices=[]):
        smaller = kind(config)
    first = next(model.parameters())
    smaller = smaller.to(device=first.device, dtype=first.dtype)
    smaller.load_state_dict(state)
    return smaller.train(model.training)


# --- fewer words ------------------------------------------------------------------------------------------


def trim_vocabulary(model: Model, tokenizer: Any, texts: Sequence[str]) -> tuple[Model, Any]:
    """Model and WordPiece tokenizer with only the word pieces that ``texts`` need.

    The new tokenizer cuts these texts into the same pieces as before; the model's logits on them stay equal. A word of
    another text falls into smaller pieces: all letters that occur in ``texts`` stay, alone and as continuation.

    Parameters
    ----------
    tokenizer
        A fast tokenizer of transformers with a WordPiece model, as BERT's.
    texts
        Training texts, not test texts: whoever trims by the test set tests another tokenizer than will be used.

    Raises
    ------
    PruningError
        The tokenizer is not WordPiece, or its vocabulary is not the model's.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    if described["model"]["type"] != "WordPiece":
        raise PruningError(f"the tokenizer is {described['model']['type']}; only WordPiece vocabularies can be trimmed")
    vocabulary: dict[str, int] = described["model"]["vocab"]
    words = _tables(model)[0]
    if max(vocabulary.values()) >= words.num_embeddings:
        raise PruningError(
            f"the tokenizer has ids up to {max(vocabulary.values())}, the model {words.num_embeddings} words; "
            "give the model's own tokenizer"
        )
    kept = _needed(tokenizer, described, vocabulary, texts)
    ids = [vocabulary[piece] for piece in kept]
    renumbered = {old: new for new, old in enumerate(ids)}
    state = dict(model.state_dict())
    for name in _vocabulary_tensors(model):
        state[name] = state[name][ids]
    changes: dict[str, Any] = {"vocab_size": len(ids)}
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        old = getattr(model.config, key, None)
        if isinstance(old, int) and old in renumbered:
            changes[key] = renumbered[old]
    return _with_weights(model, state, type(model), changes), _smaller_tokenizer(tokenizer, kept)


def _needed(tokenizer: Any, described: dict[str, Any], vocabulary: dict[str, int], texts: Sequence[str]) -> list[str]:
    """The pieces that must stay, in the order of their old ids."""
    backend = tokenizer.backend_tokenizer
    prefix, unknown = described["model"]["continuing_subword_prefix"], described["model"]["unk_token"]
    names = {number: piece for piece, number in vocabulary.items()}
    needed = {str(token) for token in tokenizer.all_special_tokens} | {unknown}
    encodings = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    needed |= {names[number] for row in encodings for number in row}
    seen: set[str] = set()
    for text in texts:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        seen.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    for letter in {letter for word in seen for letter in word}:
        needed |= {piece for piece in (letter, prefix + letter) if piece in vocabulary}
    # A word becomes [UNK] where the greedy search gets stuck. Its pieces up to there stay, too: without a long one
    # the search would take a shorter way and might get through.
    for word in seen:
        start = 0
        pieces: list[str] = []
        while start < len(word):
            ends = range(len(word), start, -1)
            piece = next((p for e in ends if (p := prefix * (start > 0) + word[start:e]) in vocabulary), None)
            if piece is None:
                needed |= set(pieces)
                break
            pieces.append(piece)
            start += len(piece) - len(prefix) * (start > 0)
    return sorted((piece for piece in needed if piece in vocabulary), key=lambda piece: vocabulary[piece])


def _tables(model: Any) -> list[Any]:
    """The modules with a row for each word: the embedding and, of a language model, the output layer (or None)."""
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def _vocabulary_tensors(model: Any) -> list[str]:
    """The names of all tensors with a row for each word: embeddings, and output layers of language models."""
    tables = _tables(model)
    names = [
        f"{name}.{inner}"
        for name, module in model.named_modules(remove_duplicate=False)
        if any(module is table for table in tables if table is not None)
        for inner, _ in module.named_parameters()
    ]
    return names + [name for name in model.state_dict() if name.endswith("cls.predictions.bias")]


def _smaller_tokenizer(tokenizer: Any, kept: list[str]) -> Any:
    """The same tokenizer with the kept pieces, numbered in their order, by way of its own file."""
    numbers = {piece: number for number, piece in enumerate(kept)}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        file = Path(folder) / "tokenizer.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        content["model"]["vocab"] = numbers
        for token in content["added_tokens"]:
            token["id"] = numbers[token["content"]]
        processor = content.get("post_processor") or {}
        for special in processor.get("special_tokens", {}).values():
            special["ids"] = [numbers[token] for token in special["tokens"]]
        for name in ("sep", "cls"):  # BERT's own processor holds pairs of token and id
            if isinstance(processor.get(name), list):
                processor[name] = [processor[name][0], numbers[processor[name][0]]]
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        settings = Path(folder) / "tokenizer_config.json"
        options = json.loads(settings.read_text(encoding="utf-8"))
        options.pop("added_tokens_decoder", None)  # ids of old
        settings.write_text(json.dumps(options), encoding="utf-8")
        (Path(folder) / "vocab.txt").unlink(missing_ok=True)
        return type(tokenizer).from_pretrained(folder)
