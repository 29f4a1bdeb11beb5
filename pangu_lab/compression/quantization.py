"""Quantise a whole model by a recipe, save it, load it without the float weights. Read ``quantize`` first.

Numbers: int8 weights symmetric per output channel, int8 activations symmetric per token (dynamic) or per tensor
(static), y = (Σ q_x q_w as int32) (s_x s_w) + b in fp32. An input row with NaN or infinity gives an output row
that is not finite either.
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
import transformers
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn import functional

from pangu_lab import model as pangu_models
from pangu_lab.compression.affine import QuantizationError, Scheme, int_matmul
from pangu_lab.compression.affine import quantize as quantize_tensor
from pangu_lab.compression.gptq import gptq, hessians
from pangu_lab.compression.observers import OBSERVERS, MinMax, watch_inputs
from pangu_lab.compression.smoothquant import SmoothedLinear, smooth
from pangu_lab.files import atomic_write
from pangu_lab.model import pruned_bert

VERSION = 1
INT8_ROWS = Scheme(8, symmetric=True, granularity="channel")
INT8_TENSOR = Scheme(8, symmetric=True, granularity="tensor")
TENSORS, DESCRIPTION = "quantized.safetensors", "quantized.json"


class Recipe(BaseModel):
    """What to do to a model.

    Parameters
    ----------
    activations
        ``dynamic``: int8, one scale a token, found as the token comes. ``static``: int8, one scale a tensor, found
        beforehand by ``observer`` on calibration data. ``float``: weights only.
    bits, group_size, gptq
        Weights: int8 per output channel, or 4 bits in groups of ``group_size`` neighbors, rounded to nearest or by
        GPTQ. 4-bit weights go with float activations.
    smooth
        SmoothQuant's α, or None. All linear layers are smoothed, those behind GELU too, where a few channels carry
        large values: they need an α above the paper's 0.5.
    embedding
        Embedding tables as int8, too, one scale a row.
    skip
        Modules to leave alone, by the end of their name: ``("classifier",)``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    activations: Literal["dynamic", "static", "float"] = "dynamic"
    bits: Literal[4, 8] = 8
    group_size: Annotated[int, Field(ge=2, multiple_of=2)] = 32
    gptq: bool = False
    smooth: Annotated[float, Field(ge=0, le=1)] | None = None
    observer: Literal["min-max", "moving-average", "percentile", "entropy", "mse"] = "mse"
    embedding: bool = True
    skip: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        if self.bits == 4 and self.activations != "float":
            raise ValueError("4-bit weights go with activations: float")
        if self.gptq and self.bits != 4:
            raise ValueError("gptq is for 4-bit weights; at 8 bits rounding to nearest loses nothing")
        if self.smooth is not None and self.activations == "float":
            raise ValueError("smooth makes activations easier to quantise, and activations: float leaves them")
        return self

    @property
    def needs_calibration(self) -> bool:
        return self.activations == "static" or self.smooth is not None or self.gptq


RECIPES = {
    "int8-dynamic": Recipe(),
    "int8-static": Recipe(activations="static"),
    "int8-smooth": Recipe(smooth=0.75),
    "int8-smooth-static": Recipe(activations="static", smooth=0.75),
    "int8-weights": Recipe(activations="float"),
    "int4-weights": Recipe(activations="float", bits=4),
    "int4-gptq": Recipe(activations="float", bits=4, gptq=True),
}


def find_recipe(recipe: Recipe | str | Mapping[str, Any]) -> Recipe:
    """A recipe by its name in ``RECIPES``, or from a mapping as a YAML file holds it."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise QuantizationError(f"there is no recipe {recipe!r}; the recipes are {', '.join(RECIPES)}")
        return RECIPES[recipe]
    try:
        return Recipe.model_validate(dict(recipe))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the recipe"
        raise QuantizationError(f"recipe: {place}: {first['msg']}; see Recipe for what is allowed") from None


# --- modules ----------------------------------------------------------------------------------------


class Int8Linear(nn.Module):
    """A linear layer in int8. ``weight`` is stored (K, N), as the integer product wants it.

    ``activation_scale`` (scalar) makes it static; ``inverse_factors`` (K,) are SmoothQuant's 1/s.
    """

    weight: Tensor  # int8 (K, N)
    weight_scale: Tensor  # (N,)
    bias: Tensor | None
    activation_scale: Tensor | None
    inverse_factors: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        activation_scale: Tensor | None = None,
        inverse_factors: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", bias)
        self.register_buffer("activation_scale", activation_scale)
        self.register_buffer("inverse_factors", inverse_factors)

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) to (…, N), fp32."""
        rows = x.reshape(-1, self.in_features).float()  # (M, K)
        if self.inverse_factors is not None:
            rows = rows * self.inverse_factors
        scale = token_scales(rows) if self.activation_scale is None else self.activation_scale  # (M, 1) or scalar
        q = (rows / scale).round().clamp(-127, 127).to(torch.int8)
        y = int_matmul(q, self.weight) * self.scales(scale)  # (M, N)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def scales(self, tokens: Tensor) -> Tensor:
        """s_x s_w: (M, 1) or a scalar, and the layer's own (N,), to (M, N) or (N,)."""
        return tokens * self.weight_scale

    def extra_repr(self) -> str:
        how = "dynamic" if self.activation_scale is None else "static"
        return f"{self.in_features}, {self.out_features}, {how}{', smoothed' * (self.inverse_factors is not None)}"


def token_scales(x: Tensor) -> Tensor:
    """max|x| / 127 of each row of x (M, K), as (M, 1); a row of zeros gets 1."""
    scale = x.abs().amax(dim=1, keepdim=True) / 127
    return torch.where(scale == 0, 1.0, scale)


class Int4Linear(nn.Module):
    """A linear layer whose weights are 4-bit integers in groups; they become floats again in each forward pass.

    That saves memory, not time. Two neighbors share a byte, the first in its low half, each as q + 8.
    """

    weight: Tensor  # uint8 (N, groups · group_size / 2)
    weight_scale: Tensor  # (N, groups)
    bias: Tensor | None

    def __init__(self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, in_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, weight.size(0)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) to (…, N)."""
        return functional.linear(x, self.dequantized().to(x.dtype), self.bias)

    def dequantized(self) -> Tensor:
        """The weight (N, K) in fp32."""
        halves = torch.stack([self.weight & 15, self.weight >> 4], dim=-1).flatten(1)  # (N, groups · group_size)
        q = halves.unflatten(1, (self.weight_scale.size(1), -1)).float() - 8
        return (q * self.weight_scale[..., None]).flatten(1)[:, : self.in_features]


def pack_int4(values: Tensor, group_size: int) -> Tensor:
    """int8 (N, K) in [-8, 7] to uint8 (N, groups · group_size / 2), K filled up to whole groups with zeros."""
    halves = functional.pad(values, (0, -values.size(1) % group_size)).to(torch.int16) + 8
    return (halves[:, ::2] | halves[:, 1::2] << 4).to(torch.uint8)


class Int8Embedding(nn.Module):
    """An embedding table of int8 rows with one scale each."""

    values: Tensor  # int8 (V, d)
    scale: Tensor  # (V, 1)

    def __init__(self, values: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = values.shape
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        """(…) to (…, d), fp32."""
        return self.values[ids] * self.scale[ids]

    @property
    def weight(self) -> Tensor:
        """The whole table in fp32, for code that reads a row of it."""
        return self.values * self.scale


# --- a model by a recipe ----------------------------------------------------------------------------


def quantize(
    model: nn.Module, recipe: Recipe | str | Mapping[str, Any], calibration: Iterable[Mapping[str, Any]] | None = None
) -> nn.Module:
    """A quantised copy of ``model``, called as the model itself; ``model`` stays as it is.

    Parameters
    ----------
    model
        Any module with linear layers: transformers' BERT classes, ours.
    recipe
        A ``Recipe``, its name in ``RECIPES``, or a mapping.
    calibration
        Batches of model inputs from the *training* data, for static scales, SmoothQuant and GPTQ.

    Raises
    ------
    QuantizationError
        Calibration is needed and missing, or weights or activations are not finite.
    """
    recipe = find_recipe(recipe)
    batches = list(calibration or ())
    if recipe.needs_calibration and not batches:
        raise QuantizationError("this recipe looks at real inputs; give calibration batches from the training data")
    # Parameters are shared, not copied: they are only read. What stays float is made the result's own at the end.
    result: Any = copy.deepcopy(model, {id(p): p for p in model.parameters()}).eval()
    names = [name for name, module in _targets(result, recipe) if type(module) is nn.Linear]
    if recipe.smooth is not None:
        smooth(result, names, batches, recipe.smooth)
    observers: dict[str, MinMax] = {name: OBSERVERS[recipe.observer]() for name in names}
    if recipe.activations == "static":
        inner = [f"{name}.linear" if recipe.smooth is not None else name for name in names]
        watch_inputs(result, inner, batches, lambda name, x: observers[name.removesuffix(".linear")].observe(x))
    h = hessians(result, names, batches) if recipe.gptq else {}

    made: dict[int, nn.Module] = {}  # what stands in two places stays one: a module, or two tables' one weight
    for name, module in _targets(result, recipe):
        key = id(module.weight) if isinstance(module, nn.Embedding) else id(module)
        if key not in made:
            if isinstance(module, nn.Embedding):
                made[key] = _embedding(module)
            elif recipe.bits == 4:
                made[key] = _int4_linear(module, recipe, h.get(name))
            else:
                made[key] = _int8_linear(module, recipe, observers[name])
        result.set_submodule(name, made[key])
    result.quantization_recipe = recipe
    return copy.deepcopy(result)


def _targets(model: nn.Module, recipe: Recipe) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Linear, SmoothedLinear, nn.Embedding) if recipe.embedding else (nn.Linear, SmoothedLinear)
    found = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, kinds) and not name.endswith(recipe.skip or ("\0",))
    ]
    smoothed = {f"{name}.linear" for name, module in found if isinstance(module, SmoothedLinear)}
    return [(name, module) for name, module in found if name not in smoothed]


def _embedding(module: nn.Embedding) -> Int8Embedding:
    table = quantize_tensor(module.weight.detach(), INT8_ROWS)
    return Int8Embedding(table.values, table.scale)


def _int8_linear(module: nn.Module, recipe: Recipe, observer: MinMax) -> nn.Module:
    linear = module.linear if isinstance(module, SmoothedLinear) else module
    assert isinstance(linear, nn.Linear)
    weight = quantize_tensor(linear.weight.detach(), INT8_ROWS)
    scale = None
    if recipe.activations == "static":
        low, high = observer.range(INT8_TENSOR)
        peak = torch.maximum(-low, high) / 127
        scale = torch.where(peak > 0, peak, 1.0).to(weight.scale.device)
    bias = None if linear.bias is None else linear.bias.detach().float().clone()
    inverse = module.inverse_factors if isinstance(module, SmoothedLinear) else None
    quantized = Int8Linear(weight.values.T.contiguous(), weight.scale[:, 0].clone(), bias, scale, inverse)
    return quantized if recipe.activations != "float" else Int8WeightLinear(quantized)


class Int8WeightLinear(nn.Module):
    """A linear layer with int8 weights and float activations: smaller, not faster."""

    def __init__(self, linear: Int8Linear) -> None:
        super().__init__()
        self.int8 = linear

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) to (…, N)."""
        weight = (self.int8.weight * self.int8.weight_scale).T  # (N, K)
        return functional.linear(x, weight.to(x.dtype), self.int8.bias)


def _int4_linear(module: nn.Module, recipe: Recipe, hessian: Tensor | None) -> Int4Linear:
    assert isinstance(module, nn.Linear)
    scheme = Scheme(4, symmetric=True, granularity="group", group_size=recipe.group_size)
    weight = module.weight.detach()
    q = quantize_tensor(weight, scheme) if hessian is None else gptq(weight, hessian, scheme)
    bias = None if module.bias is None else module.bias.detach().float().clone()
    return Int4Linear(pack_int4(q.values, recipe.group_size), q.scale[..., 0].clone(), bias, module.in_features)


def layer_errors(model: nn.Module, quantized: nn.Module, batch: Mapping[str, Any]) -> dict[str, float]:
    """How far each quantised linear layer is off by itself: ‖ŷ - y‖ / ‖y‖ on the float model's own inputs."""
    kinds = (Int8Linear, Int8WeightLinear, Int4Linear)
    names = [name for name, module in quantized.named_modules() if isinstance(module, kinds)]
    names = [name for name in names if not name.endswith(".int8")]
    errors: dict[str, float] = {}

    def see(name: str, x: Tensor) -> None:
        y = model.get_submodule(name)(x)
        errors[name] = float((quantized.get_submodule(name)(x) - y).norm() / y.norm().clamp(min=1e-12))

    # Hooks run a module's own hooks again when it is called inside one: the watch is on a copy.
    watch_inputs(copy.deepcopy(model), names, [batch], see)
    return errors


# --- files ------------------------------------------------------------------------------------------


def save_quantized(model: nn.Module, folder: Path | str) -> Path:
    """Write ``model``, as ``quantize`` returned it, to ``folder``: tensors, a description, the configuration."""
    folder = Path(folder)
    recipe, config = getattr(model, "quantization_recipe", None), getattr(model, "config", None)
    if not isinstance(recipe, Recipe) or config is None:
        raise QuantizationError("this model was not made by quantize; save_quantized writes nothing else")
    tensors, aliases = _state(model)
    data = safetensors.torch.save(tensors)
    described = {
        "version": VERSION,
        "class": type(model).__name__,
        "recipe": recipe.model_dump(),
        "modules": _module_kinds(model),
        "aliases": aliases,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    atomic_write(folder / TENSORS, data)
    atomic_write(folder / "config.json", config.to_json_string(use_diff=False))
    return atomic_write(folder / DESCRIPTION, json.dumps(described, indent=1)).parent


def load_quantized(folder: Path | str) -> nn.Module:
    """The model that ``save_quantized`` wrote; float weights of quantised layers are never made.

    Raises
    ------
    QuantizationError
        The folder holds no quantised model, a damaged one, or one of another version.
    """
    folder = Path(folder)
    described = _read_description(folder)
    try:
        data = (folder / TENSORS).read_bytes()
    except OSError as error:
        raise QuantizationError(
            f"{folder / TENSORS}: cannot be read ({error.strerror}); save the model again"
        ) from None
    if hashlib.sha256(data).hexdigest() != described["sha256"]:
        raise QuantizationError(f"{folder / TENSORS}: is damaged (its checksum differs); save the model again")
    tensors = safetensors.torch.load(data)
    tensors |= {name: tensors[same] for name, same in described["aliases"].items()}
    kind = model_class(folder / DESCRIPTION, described["class"])
    with torch.device("meta"):
        model = kind(kind.config_class.from_json_file(folder / "config.json"))
    shared: dict[str, nn.Module] = {}
    for name, (kind, options) in described["modules"].items():
        first = options.pop("same_as", name)
        if first == name:
            own = {key.rpartition(".")[2]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
            shared[name] = _rebuild(kind, own, options)
        model.set_submodule(name, shared[first])
    for name, tensor in tensors.items():
        _assign(model, name, tensor)
    empty = [name for name, tensor in _all_tensors(model) if tensor.is_meta]
    if empty:
        raise QuantizationError(f"{folder / TENSORS}: lacks {empty[0]}; save the model again")
    model.quantization_recipe = find_recipe(described["recipe"])
    return model.eval()


def _all_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, those included that a state_dict leaves out: position numbers, for instance."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and the other names of those with several."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in _all_tensors(model):
        same = first.setdefault((tensor.data_ptr(), tensor.shape), name)
        if same == name:
            tensors[name] = tensor.detach().cpu().contiguous()
        else:
            aliases[name] = same
    return tensors, aliases


def _module_kinds(model: nn.Module) -> dict[str, tuple[str, dict[str, Any]]]:
    kinds: dict[str, tuple[str, dict[str, Any]]] = {}
    first: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Int8Linear | Int8WeightLinear | Int4Linear | Int8Embedding) and not name.endswith(
            ".int8"
        ):
            options: dict[str, Any] = {"in_features": module.in_features} if isinstance(module, Int4Linear) else {}
            if first.setdefault(id(module), name) != name:
                options = {"same_as": first[id(module)]}
            kinds[name] = (type(module).__name__, options)
    return kinds


def _rebuild(kind: str, tensors: dict[str, Tensor], options: dict[str, Any]) -> nn.Module:
    match kind:
        case "Int8Embedding":
            return Int8Embedding(**tensors)
        case "Int4Linear":
            return Int4Linear(tensors["weight"], tensors["weight_scale"], tensors.get("bias"), **options)
        case "Int8WeightLinear":
            return Int8WeightLinear(Int8Linear(**tensors))
    return Int8Linear(**tensors)


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def _read_description(folder: Path) -> dict[str, Any]:
    file = folder / DESCRIPTION
    if not file.is_file():
        raise QuantizationError(f"{folder}: holds no quantised model; make one with `pangu-lab compress`")
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        version = described["version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise QuantizationError(f"{file}: is damaged; save the model again") from None
    if version != VERSION:
        raise QuantizationError(
            f"{file}: is of version {version}, this package reads {VERSION}; quantise the model again"
        )
    missing = {"class", "recipe", "modules", "aliases", "sha256"} - set(described)
    if missing:
        raise QuantizationError(f"{file}: lacks {sorted(missing)[0]}; save the model again")
    return dict(described)


def model_class(file: Path, name: str) -> Any:
    """The class of that name, ours or transformers'; ``file`` is what named it."""
    modules = (pangu_models, pruned_bert, transformers)
    found = next((getattr(module, name) for module in modules if hasattr(module, name)), None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise QuantizationError(f"{file}: names the model class {name!r}, which is not known here")
    return found
