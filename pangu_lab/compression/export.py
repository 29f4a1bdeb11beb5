"""A fine-tuned or quantised model for other runtimes: ONNX, or torch.export's own format. Read ``export`` first.

Both graphs take any number of texts of any length the model has positions for. An int8 model stays one: its file
holds the int8 weights, and its integer products are ``MatMulInteger``, with the scale of each token computed by
ordinary operators as ``quantization.Int8Linear`` does. Neither file needs this package to run.

Before a file is written it is run, on other batch sizes and lengths than it was traced with, against the model.
"""

import copy
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from pangu_lab import __version__
from pangu_lab.compression.affine import QuantizationError
from pangu_lab.compression.quantization import DESCRIPTION, Int8Linear, load_quantized, model_class
from pangu_lab.errors import PanguLabError
from pangu_lab.files import atomic_write
from pangu_lab.model.checkpoints import quiet_transformers

OPSET = 20  # the first in which GELU is one operator; ONNX Runtime knows it since 1.17
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
EXTRA = ("onnx", "onnxscript", "onnxruntime")
MOST_ONNX_BYTES = 2**31 - 2**20  # protobuf's limit, with room for the graph itself
# The head's class says what comes out.
OUTPUTS = {"ForSequenceClassification": ("logits",), "ForQuestionAnswering": ("start_logits", "end_logits")}
# Shapes that the finished file is tried on; it is traced with another. The first row of each is cut in half.
TRIED = ((1, 1), (1, 7), (5, 33), (3, 128))
TRACED = (2, 16)
FLOAT_TOLERANCE = 1e-4  # of the largest output, for each
# Where a value falls between two integers, another order of summation may round it to the other one. That moves
# single outputs of an int8 model by some per cent of the largest; a wrong graph moves most of them by more.
INT8_TOLERANCE = 0.02  # of the largest output, for the median


class ExportError(PanguLabError):
    """A model cannot be exported as asked."""


@dataclass(frozen=True)
class Exported:
    """A written file. ``difference`` is the largest to the model's own outputs, ``agreement`` the share of equal
    predictions, both on random tokens in the shapes of ``TRIED``; ``scale`` is the largest output there."""

    file: Path
    format: str
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_tokens: int
    quantized: bool
    difference: float
    scale: float
    agreement: float


def export(folder: Path, to: Path, format: str | None = None, vnni: bool = False) -> Exported:
    """Write the classifier or question answering model in ``folder`` for another runtime.

    Parameters
    ----------
    folder
        A saved model, float or quantised, transformers' or ours.
    to
        A file ``….onnx`` or ``….pt2``; or a folder, which then gets ``model.onnx`` with configuration and tokenizer.
    format
        ``onnx`` or ``torch``; by default what the name of the file says, ``onnx`` for a folder.
    vnni
        ONNX: unsigned activations times signed weights in the integer products, which only processors with VNNI or
        ARM's dot product compute exactly in ONNX Runtime, and much faster; elsewhere pairs of products saturate.
        Otherwise both are unsigned, which is exact everywhere.

    Raises
    ------
    ExportError
        No such model, one without an encoder's head, a graph that does not say what the model says, or packages
        that are not there.
    """
    format, file = _target(to, format)
    if format == "onnx":
        require_extra()
    model = load_plain(folder)
    quantized = hasattr(model, "quantization_recipe")
    inputs, outputs = _inputs(model, folder), _outputs(model)
    about = _about(model)
    wrapped = Exportable(model, outputs)
    if format == "onnx":
        data = onnx_bytes(wrapped, inputs, vnni, about)
        run: Any = onnx_runner
    else:
        data = torch_bytes(wrapped, inputs, about)
        run = torch_runner
    with _reported("the exported graph cannot be run"):
        differences, scale, agreement = _compared(wrapped, run(data), inputs)
    difference, median = float(differences.max()), float(np.median(differences))
    if not (median <= INT8_TOLERANCE * scale if quantized else difference <= FLOAT_TOLERANCE * max(1.0, scale)):
        raise ExportError(
            f"{folder}: the exported graph's outputs differ from the model's by up to {difference:.2g} where the largest "
            f"is {scale:.2g}, so nothing was written; try the other --format, or another version of the runtime"
        )
    atomic_write(file, data)
    if file.parent == to:
        _write_beside(folder, to, model)
    return Exported(
        file, format, len(data), inputs, outputs, about["max_tokens"], quantized, difference, scale, agreement
    )


def require_extra() -> None:
    """Refuse where the packages of the extra ``export`` are not installed."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"{missing[0]} is not installed; run pip install 'pangu-lab[export]', or give --format torch")


def _target(to: Path, format: str | None) -> tuple[str, Path]:
    if format is not None and format not in SUFFIXES:
        raise ExportError(f"--format is {format!r}; it must be one of {', '.join(SUFFIXES)}")
    if to.is_dir() or not to.suffix:
        chosen = format or "onnx"
        return chosen, to / f"model{SUFFIXES[chosen]}"
    named = next((name for name, suffix in SUFFIXES.items() if suffix == to.suffix), None)
    if named is None or format not in (None, named):
        wanted = SUFFIXES[format] if format else " or …".join(SUFFIXES.values())
        raise ExportError(f"{to}: ends in {to.suffix!r}; name the file …{wanted}, or give a folder")
    return named, to


# --- the model ----------------------------------------------------------------------------------------


def load_plain(folder: Path) -> Any:
    """The model in ``folder`` on torch's own modules, float or quantised; never on the compiled engine.

    Raises
    ------
    ExportError
        The folder holds no model with a head that is exported, or one with weights missing.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ExportError(f"{folder}: holds no model; give a folder that pangu-lab train or compress saved")
    quantized = (folder / DESCRIPTION).is_file()
    try:
        if quantized:
            name = str(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")).get("class"))
        else:
            name = str((AutoConfig.from_pretrained(folder).architectures or ["a model of no named class"])[0])
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(f"{folder}: its description cannot be read ({reason}); save the model again") from None
    if not name.endswith(tuple(OUTPUTS)):
        raise ExportError(
            f"{folder}: holds {name}; exported are encoders with a head for classification or question answering"
        )
    try:
        if quantized:
            model: Any = load_quantized(folder)
        else:
            with quiet_transformers():
                kind = model_class(folder / "config.json", name)
                model, told = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
            if told["missing_keys"]:
                raise ExportError(f"{folder}: lacks {min(told['missing_keys'])}; save the whole model again")
    except QuantizationError as error:
        raise ExportError(str(error)) from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(f"{folder}: cannot be loaded ({reason}); save the model again") from None
    if getattr(model.config, "is_decoder", False) or getattr(model.config, "is_encoder_decoder", False):
        raise ExportError(f"{folder}: is a decoder, which answers token by token; only encoders are exported")
    return model.eval()


def _inputs(model: Any, folder: Path) -> tuple[str, ...]:
    """What the graph asks for: what the tokenizer gives and the model reads."""
    reads_types = int(getattr(model.config, "type_vocab_size", 0) or 0) > 1
    if (folder / "tokenizer_config.json").is_file():
        with quiet_transformers():
            reads_types &= "token_type_ids" in AutoTokenizer.from_pretrained(folder).model_input_names
    return ("input_ids", "attention_mask", *(["token_type_ids"] if reads_types else []))


def _outputs(model: Any) -> tuple[str, ...]:
    return next(names for head, names in OUTPUTS.items() if type(model).__name__.endswith(head))


def _about(model: Any) -> dict[str, Any]:
    """What a reader of the file may want to know of it, plain data."""
    config = model.config
    recipe = getattr(model, "quantization_recipe", None)
    return {
        "producer": f"pangu-lab {__version__}",
        "model": type(model).__name__,
        "labels": [config.id2label[i] for i in range(config.num_labels)] if _outputs(model) == ("logits",) else [],
        "max_tokens": int(config.max_position_embeddings) - int(getattr(config, "position_offset", 0)),
        "quantization": None if recipe is None else recipe.model_dump(mode="json"),
    }


class OuterInt8Linear(Int8Linear):
    """The same layer with the product of its scales as a matrix product of one term, which is as exact.

    ONNX Runtime (1.32) fuses integer product, product of scales and sum with the bias into one operator of its own
    that takes one scale for all tokens; given one a token it loses the bias. It does not see through this.
    """

    def scales(self, tokens: Tensor) -> Tensor:
        """(M, 1) and the layer's own (N,) to (M, N)."""
        return tokens @ self.weight_scale[None, :]


class Exportable(nn.Module):
    """A model that takes tensors in a fixed order and gives a tuple of tensors: what the exporters trace."""

    def __init__(self, model: Any, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.outputs = model, tuple(outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        """(B, T) each to logits (B, C), or start and end (B, T)."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return tuple(output[name] for name in self.outputs)


# --- the two formats ------------------------------------------------------------------------------------


def _example(model: nn.Module, inputs: Sequence[str], shape: tuple[int, int], seed: int = 0) -> dict[str, Tensor]:
    """Random tokens in a batch of ``shape``; of the first text only the first half is real."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(min(999, config.vocab_size // 2), config.vocab_size, shape, generator=generator)
    mask = torch.ones_like(ids)
    mask[0, (shape[1] + 1) // 2 :] = 0
    ids = ids.masked_fill(mask == 0, config.pad_token_id or 0)
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: made[name] for name in inputs}


def _traced(wrapped: Exportable, inputs: Sequence[str]) -> dict[str, Any]:
    """The arguments of both exporters: example inputs, and which of their axes may be of any size."""
    longest = _about(wrapped.model)["max_tokens"]
    shape = (TRACED[0], min(TRACED[1], longest))
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=longest)}
    example = _example(wrapped.model, inputs, shape)
    return {"kwargs": example, "dynamic_shapes": {name: axes for name in inputs}}


@contextmanager
def _exporting(what: str) -> Iterator[None]:
    """No gradients, none of the exporters' chatter, and their errors as one sentence."""
    loud = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loud]
    for logger in loud:
        logger.setLevel(logging.ERROR)
    try:
        with _reported(f"{what} cannot follow this model"), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Exporters and runtimes raise whatever they meet; that becomes one sentence."""
    try:
        yield
    except PanguLabError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"{what} ({reason[:200]}); try the other --format, or the float model") from error


def torch_bytes(wrapped: Exportable, inputs: Sequence[str], about: Mapping[str, Any]) -> bytes:
    """The file that ``torch.export.load`` reads."""
    buffer = io.BytesIO()
    with _exporting("torch.export"):
        program = torch.export.export(wrapped, (), **_traced(wrapped, inputs))
        torch.export.save(program, buffer, extra_files={"pangu_lab.json": json.dumps(about)})
    return buffer.getvalue()


def torch_runner(data: bytes) -> Callable[[Mapping[str, Tensor]], list[np.ndarray]]:
    """The outputs of such a file for inputs by name."""
    program = torch.export.load(io.BytesIO(data)).module()

    def run(inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in program(**inputs)]

    return run


def onnx_bytes(wrapped: Exportable, inputs: Sequence[str], vnni: bool, about: Mapping[str, Any]) -> bytes:
    """The ONNX file, ``OPSET``, axes ``batch`` and ``tokens``, weights inside."""
    tensors = {t.data_ptr(): t.numel() * t.element_size() for t in wrapped.state_dict().values()}
    if sum(tensors.values()) > MOST_ONNX_BYTES:
        raise ExportError("an ONNX file holds at most 2 GB of weights; give --format torch, or quantise the model")
    graph = Exportable(_for_onnx(wrapped.model), wrapped.outputs)
    aten = torch.ops.aten
    table: dict[Any, Any] = {aten._int_mm.default: _integer_product(vnni), aten.__rshift__.Scalar: _shifted_right}
    with _exporting("torch.onnx"):
        program = torch.onnx.export(
            graph,
            (),
            **_traced(graph, inputs),
            input_names=list(inputs),
            output_names=list(wrapped.outputs),
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=table,
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
    _tidy(proto)
    for key, value in about.items():
        proto.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    return bytes(proto.SerializeToString())


def _for_onnx(model: Any) -> Any:
    """The model with ``OuterInt8Linear`` where a layer has one scale a token."""
    memory: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    result = copy.deepcopy(model, memory)
    for name, module in list(result.named_modules(remove_duplicate=False)):
        if type(module) is Int8Linear and module.activation_scale is None:
            outer = OuterInt8Linear(module.weight, module.weight_scale, module.bias, None, module.inverse_factors)
            result.set_submodule(name, outer)
    return result


def _integer_product(vnni: bool) -> Any:
    """int8 (M, K) times int8 (K, N) to int32 as ONNX operators.

    Signed times signed is a plain loop in ONNX Runtime on x86, sixteen times slower, so both become unsigned, with
    128 as their zero point: Σ (a + 128 − 128)(b + 128 − 128). A runtime shifts the weights once, when it loads them.
    """
    from onnx import TensorProto
    from onnxscript import opset20 as op

    def constant(type: int) -> Any:
        return op.Cast(op.Constant(value_int=128), to=type)

    def unsigned(x: Any) -> Any:
        wide = op.Add(op.Cast(x, to=TensorProto.INT32), constant(TensorProto.INT32))
        return op.Cast(wide, to=TensorProto.UINT8)

    def product(a: Any, b: Any) -> Any:
        zero = constant(TensorProto.UINT8)
        return (
            op.MatMulInteger(unsigned(a), b, zero) if vnni else op.MatMulInteger(unsigned(a), unsigned(b), zero, zero)
        )

    return product


def _shifted_right(x: Any, by: int) -> Any:
    """uint8 >> by, for 4-bit weights; the exporter's own takes every integer for a signed one."""
    from onnx import TensorProto
    from onnxscript import opset20 as op

    return op.BitShift(x, op.Cast(op.Constant(value_int=by), to=TensorProto.UINT8), direction="RIGHT")


def _tidy(proto: Any) -> None:
    """Leave out what the exporter notes of the code that was traced: paths of this machine, a tenth of a small file."""
    graph = proto.graph
    named = (graph.node, graph.input, graph.output, graph.value_info, graph.initializer)
    for part in (graph, *(item for items in named for item in items)):
        del part.metadata_props[:]
    for function in proto.functions:
        for part in (function, *function.node):
            del part.metadata_props[:]
    proto.producer_name = "pangu-lab"
    proto.producer_version = __version__


def onnx_runner(data: bytes | str) -> Callable[[Mapping[str, Tensor]], list[np.ndarray]]:
    """The outputs of an ONNX file, or its path, by ONNX Runtime on the CPU, for inputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        return list(session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()}))

    return run


# --- is it the same model? --------------------------------------------------------------------------------


def _compared(wrapped: Exportable, run: Any, inputs: Sequence[str]) -> tuple[np.ndarray, float, float]:
    """All differences, the largest output and the share of equal predictions, over the shapes of ``TRIED``."""
    longest = _about(wrapped.model)["max_tokens"]
    differences, scale, equal = [], 0.0, []
    for seed, (batch, tokens) in enumerate(TRIED, start=1):
        example = _example(wrapped.model, inputs, (batch, min(tokens, longest)), seed)
        with torch.no_grad():
            expected = [output.numpy() for output in wrapped(**example)]
        real = example["attention_mask"].numpy().astype(bool)
        for a, b in zip(expected, run(example), strict=True):
            if a.shape != b.shape:
                raise ExportError(f"the exported graph gives {b.shape} for {batch} × {tokens} tokens, not {a.shape}")
            counts = real if len(wrapped.outputs) == 2 else np.ones_like(a, dtype=bool)  # no answer is in padding
            differences.append(np.abs(a - b)[counts])
            scale = max(scale, float(np.abs(a[counts]).max()))
            best = [np.where(counts, x, -np.inf).argmax(axis=1) for x in (a, b)]
            equal += (best[0] == best[1]).tolist()
    return np.concatenate(differences), scale, float(np.mean(equal))


def _write_beside(folder: Path, to: Path, model: Any) -> None:
    """Configuration and tokenizer, so that the folder is complete."""
    atomic_write(to / "config.json", model.config.to_json_string())
    if (folder / "tokenizer_config.json").is_file():
        with quiet_transformers():
            AutoTokenizer.from_pretrained(folder).save_pretrained(to)
