"""Exercises of lab 00: a configuration that validates, what a model costs from its shape, and seeds.

References come from an independent truth where there is one: pydantic, modules and tensors of torch on the
meta device (shapes without memory), and torch's own counter of floating-point operations.
"""

import functools
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pangu_lab.exercises.calling import preserved_random_state
from pangu_lab.exercises.engine import Case, Exercise, Mistake


def _whole(rng: np.random.Generator, ranges: dict[str, tuple[int, int]]) -> dict[str, int]:
    return {name: int(rng.integers(*limits)) for name, limits in ranges.items()}


# --- a configuration that validates -----------------------------------------------------------------

FOLDER = "a folder you may write to, or one that can be made"
RULES = {
    "data_path": FOLDER,
    "model_path": FOLDER,
    "log_path": FOLDER,
    "learning_rate": "a number above 0 and at most 1",
    "batch_size": "a whole number, 1 or more",
    "epochs": "a whole number, 1 or more",
}


class _Numbers(BaseModel):
    model_config = ConfigDict(strict=True)
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    batch_size: Annotated[int, Field(ge=1)]
    epochs: Annotated[int, Field(ge=1)]


@functools.cache
def _playground(process: int) -> tempfile.TemporaryDirectory:
    """A folder that holds a folder and a file; one a process, because making one takes milliseconds."""
    folder = tempfile.TemporaryDirectory()
    (Path(folder.name) / "work").mkdir()
    (Path(folder.name) / "notes.txt").write_text("a file, not a folder")
    return folder


def in_a_folder(student: Any, case: Case) -> Any:
    """Call the student's function with the configuration and the folder its paths count from."""
    return student(*case.args, Path(_playground(os.getpid()).name))


def _usable(path: Any, base: Path) -> bool:
    if not isinstance(path, str) or not path:
        return False
    folder = base / path
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def validate_config(config: dict, base: Path, usable: Any = _usable) -> list[str]:
    """One sentence for each thing that is wrong with ``config``; pydantic judges the numbers."""
    try:
        _Numbers.model_validate(config)
        wrong = set()
    except ValidationError as error:
        wrong = {item["loc"][0] for item in error.errors()}
    wrong |= {key for key in RULES if key.endswith("_path") and not usable(config.get(key), base)}
    told = {key: f"is {config[key]!r}" if key in config else "is missing" for key in RULES if key in wrong}
    sentences = [f"{key} {what}; it must be {RULES[key]}" for key, what in told.items()]
    return sentences + [f"{key} is not a key" for key in config if key not in RULES]


def _forgiving(forgives: Callable[[str, Any], bool]) -> Any:
    """A validator that says nothing where ``forgives(key, value)`` holds; a missing value is None."""

    def validate(config: dict, base: Path) -> list[str]:
        sentences = validate_config(config, base)
        keys = [sentence.split()[0] for sentence in sentences]
        return [s for key, s in zip(keys, sentences, strict=True) if not forgives(key, config.get(key))]

    return validate


def _stops_early(config: dict, base: Path) -> list[str]:
    return validate_config(config, base)[:1]


def _must_exist(config: dict, base: Path) -> list[str]:
    return validate_config(config, base, lambda path, base: bool(path) and (base / path).is_dir())


def _config_cases(rng: np.random.Generator) -> list[Case]:
    def good() -> dict[str, Any]:
        return {
            "data_path": "work",
            "model_path": f"work/models-{rng.integers(1000)}",
            "log_path": "logs/new",
            "learning_rate": float(10 ** rng.uniform(-6, -2)),
            "batch_size": int(rng.integers(1, 257)),
            "epochs": int(rng.integers(1, 21)),
        }

    def changed(note: str, **values: Any) -> Case:
        return Case((good() | values,), note=note)

    partial = good()
    del partial[str(rng.choice(["batch_size", "epochs", "log_path"]))]
    return [
        changed("nothing is wrong; two of the folders do not exist yet"),
        changed("a learning rate of zero and a negative batch size", learning_rate=0.0, batch_size=-4),
        changed("a learning rate that is not a number (nan)", learning_rate=float("nan")),
        changed(
            "True is an int to Python, but no batch size; a rate of 1 is allowed",
            batch_size=True,
            learning_rate=1,
        ),
        changed("a number written as text", epochs=str(rng.integers(1, 9))),
        changed("half an epoch too many", epochs=int(rng.integers(1, 9)) + 0.5),
        changed("a path that names a file", data_path="notes.txt"),
        changed("a folder below a file", log_path="notes.txt/logs"),
        changed("an empty path, and a learning rate above 1", model_path="", learning_rate=2),
        Case((partial,), note="a key is missing"),
        changed("a key with a typing error", learning_rat=1e-4),
    ]


VALIDATE = Exercise(
    id="environment.validate_config",
    points=3,
    title="A configuration that validates",
    cases=_config_cases,
    reference=validate_config,
    drive=in_a_folder,
    mistakes=(
        Mistake("first", "You stop at the first mistake; report all of them.", _stops_early),
        Mistake("zero", "A learning rate of 0 passes: the model would never change.",
                _forgiving(lambda key, value: value == 0)),
        Mistake("nan", "nan passes: comparisons with nan are False, so ask whether the value lies inside "
                "(0 < x <= 1), not whether it lies outside.", _forgiving(lambda key, value: value != value)),
        Mistake("bool", "True passes as a number: bool is a subclass of int in Python.",
                _forgiving(lambda key, value: value is True)),
        Mistake("text", "A number written as text passes; refuse it, do not guess.",
                _forgiving(lambda key, value: isinstance(value, str) and not key.endswith("_path"))),
        Mistake("half", "Half an epoch passes; epochs are whole numbers.",
                _forgiving(lambda key, value: key == "epochs" and isinstance(value, float))),
        Mistake("no-paths", "You never look at the paths.",
                _forgiving(lambda key, value: key.endswith("_path") and value is not None)),
        Mistake("any-file", "A path that is a file, or lies below one, passes: no folder can be made there.",
                _forgiving(lambda key, value: key.endswith("_path") and bool(value))),
        Mistake("must-exist", "You refuse a folder that is not there yet but can be made; look at the "
                "nearest parent that exists.", _must_exist),
        Mistake("missing", "A missing key passes; go through the rules, not through the given keys.",
                _forgiving(lambda key, value: value is None)),
        Mistake("unknown", "A key nobody knows passes: learning_rat would be ignored, the default used.",
                _forgiving(lambda key, value: key not in RULES)),
    ),
    hints=(
        "Go through RULES in order; for each key decide: missing, good, or wrong.",
        "type(value) is int refuses True, which isinstance(value, int) does not. For a path, walk up with "
        ".parent until .exists(), then ask .is_dir() and os.access(folder, os.W_OK).",
        "for key, rule in RULES.items():\n    if key not in config: ... missing\n"
        "    elif not good(key, config[key]): ... is {value!r}\n"
        "then one more sentence for each key of config that is not in RULES.",
    ),
)  # fmt: skip


# --- parameters -------------------------------------------------------------------------------------


def count_parameters(vocab: int, length: int, layers: int, d_model: int, d_ff: int, tied: bool = True) -> int:
    """Count the parameters of a real module that has shapes but no memory."""
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(d_model, 1, d_ff)
        model = nn.ModuleList(
            [
                nn.Embedding(vocab, d_model),
                nn.Embedding(length, d_model),
                nn.LayerNorm(d_model),
                nn.TransformerEncoder(layer, layers, enable_nested_tensor=False),
                nn.Linear(d_model, vocab),
            ]
        )
    if tied:
        model[4].weight = model[0].weight
    return sum(parameter.numel() for parameter in model.parameters())  # each shared one once


def _counting(maps: int = 4, bias: bool = True, norms: int = 2, matrices: int = 2, **options: Any) -> Any:
    def count(vocab: int, length: int, layers: int, d_model: int, d_ff: int, tied: bool = True) -> int:
        attention = maps * (d_model**2 + d_model * bias)
        feed_forward = matrices * d_model * d_ff + (d_ff + d_model) * bias
        embedding = vocab * d_model + length * d_model * options.get("positions", True) + 2 * d_model
        head = vocab * options.get("head_bias", True)
        if options.get("tied", not tied):
            head += vocab * d_model
        return embedding + layers * (attention + feed_forward + norms * 2 * d_model) + head

    return count


def _shape_cases(rng: np.random.Generator) -> list[Case]:
    ranges = {"vocab": (50, 500), "length": (16, 64), "layers": (2, 5), "d_model": (5, 40), "d_ff": (41, 160)}
    return [Case(kwargs=_whole(rng, ranges) | {"tied": tied}) for tied in (True, False, True)]


PARAMETERS = Exercise(
    id="environment.count_parameters",
    points=2,
    title="Parameters of an encoder from its shape",
    cases=_shape_cases,
    reference=count_parameters,
    also_right=(_counting(),),
    mistakes=(
        Mistake("three", "Attention has four projections: query, key, value and output.", _counting(3)),
        Mistake("no-bias", "Every linear map of a layer has a bias; count those too.", _counting(bias=False)),
        Mistake("norms", "A layer has two layer norms of weight and bias.", _counting(norms=0)),
        Mistake("one-matrix", "The feed-forward part has two matrices, up and down.", _counting(matrices=1)),
        Mistake("positions", "The table of positions is missing.", _counting(positions=False)),
        Mistake("tied", "A tied head shares the embedding's matrix, counted once.", _counting(tied=True)),
        Mistake("head-bias", "The head has a bias for each word, tied or not.", _counting(head_bias=False)),
    ),
    hints=(
        "Write down one line each: embeddings, attention, feed-forward, layer norms, head.",
        "A linear map from n to m has n·m + m parameters; a layer norm has 2·d_model.",
        "per layer: 4·(d² + d) + (2·d·d_ff + d_ff + d) + 2·2·d\n"
        "around them: vocab·d + length·d + 2·d + the head",
    ),
)  # fmt: skip


# --- memory -----------------------------------------------------------------------------------------


def training_memory(parameters: int, moments: int = 2, mixed: bool = False) -> dict[str, int]:
    """Bytes of weights, gradients, optimizer moments and master copy, asked of tensors without memory."""
    with torch.device("meta"):
        low = torch.empty(parameters, dtype=torch.bfloat16 if mixed else torch.float32)
        full = torch.empty(parameters, dtype=torch.float32)
    return {
        "weights": low.nbytes,
        "gradients": torch.empty_like(low).nbytes,
        "moments": moments * full.nbytes,
        "master": full.nbytes if mixed else 0,
    }


def _remembering(low: int = 2, full: int = 4, **options: Any) -> Any:
    def memory(parameters: int, moments: int = 2, mixed: bool = False) -> dict[str, int]:
        width = low if mixed else full
        return {
            "weights": width * parameters,
            "gradients": options.get("gradients", width) * parameters,
            "moments": options.get("moments", moments) * options.get("wide", full) * parameters,
            "master": full * parameters * options.get("master", mixed),
        }

    return memory


def _memory_cases(rng: np.random.Generator) -> list[Case]:
    return [
        Case((int(10 ** rng.uniform(3, 10)),), {"moments": moments, "mixed": mixed}, name)
        for moments, name in ((2, "AdamW"), (1, "SGD with momentum"), (0, "plain SGD"))
        for mixed in (False, True)
    ]


MEMORY = Exercise(
    id="environment.training_memory",
    points=2,
    title="Memory of training",
    cases=_memory_cases,
    reference=training_memory,
    mistakes=(
        Mistake("master", "Mixed precision keeps a master copy in fp32.", _remembering(master=False)),
        Mistake("always-master", "In fp32 the weights are their own master copy.", _remembering(master=True)),
        Mistake("low-moments", "The moments stay in fp32, 4 bytes each.", _remembering(wide=2)),
        Mistake("gradients", "Each weight has a gradient, of its own type.", _remembering(gradients=0)),
        Mistake("adam", "The number of moments is an argument: SGD has none.", _remembering(moments=2)),
        Mistake("bits", "These are bits; a byte has eight.", _remembering(16, 32)),
    ),
    hints=(
        "fp32 takes 4 bytes a number, bf16 and fp16 take 2.",
        "Weights and gradients have the low precision, moments and master copy the full one.",
        'return {"weights": width * parameters, "gradients": ..., "moments": ..., "master": ...}\n'
        "with width = 2 if mixed else 4",
    ),
)  # fmt: skip


# --- floating-point operations ----------------------------------------------------------------------


def encoder_flops(layers: int, d_model: int, d_ff: int, batch: int, length: int, training: bool = False) -> int:
    """Run the matrix products of an encoder on the meta device and let torch count."""
    with torch.device("meta"):
        x = torch.empty(batch, length, d_model, requires_grad=True)
        square = [nn.Parameter(torch.empty(d_model, d_model)) for _ in range(4)]
        up, down = nn.Parameter(torch.empty(d_model, d_ff)), nn.Parameter(torch.empty(d_ff, d_model))
    with FlopCounterMode(display=False) as counter:
        for _ in range(layers):
            q, k, v = (x @ matrix for matrix in square[:3])  # (batch, length, d_model)
            weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)  # (batch, length, length)
            x = torch.bmm(weights, v) @ square[3] @ up @ down
        if training:
            x.sum().backward()
    return counter.get_total_flops()


def _operating(two: int = 2, pairs: int = 2, factor: int = 3, **options: bool) -> Any:
    def flops(layers: int, d_model: int, d_ff: int, batch: int, length: int, training: bool = False) -> int:
        weights = layers * (4 * d_model**2 + 2 * d_model * d_ff)
        sequences = 1 if options.get("one_sequence") else batch
        square = length if options.get("linear") else length**2
        forward = two * (weights * batch * length + pairs * layers * sequences * square * d_model)
        return factor * forward if training else forward

    return flops


def _flops_cases(rng: np.random.Generator) -> list[Case]:
    ranges = {"layers": (1, 4), "d_model": (32, 144), "d_ff": (150, 512), "batch": (2, 9), "length": (9, 200)}
    return [Case(kwargs=_whole(rng, ranges) | {"training": training}) for training in (False, True)]


FLOPS = Exercise(
    id="environment.encoder_flops",
    points=3,
    title="Floating-point operations of a step",
    cases=_flops_cases,
    reference=encoder_flops,
    also_right=(_operating(),),
    mistakes=(
        Mistake("two", "A multiplication and an addition are two operations.", _operating(1)),
        Mistake("no-pairs", "The attention scores are missing: they grow with length².", _operating(pairs=0)),
        Mistake("one-pair", "Attention has two such products: q·kᵀ, and weights·v.", _operating(pairs=1)),
        Mistake("twice", "A backward pass costs two forward passes, gradients for inputs and for weights; "
                "that makes three in all.", _operating(factor=2)),
        Mistake("one-sequence", "The attention term is that of one sequence; the batch holds several.",
                _operating(one_sequence=True)),
        Mistake("linear", "Every token looks at every token: length², not length.", _operating(linear=True)),
    ),
    hints=(
        "A product of (n, k) and (k, m) costs 2·n·k·m.",
        "Each weight of a matrix is used once a token: 2·N·tokens. Add q·kᵀ and weights·v of each layer.",
        "forward = 2·N·batch·length + 4·layers·batch·length²·d_model, and three times that in training",
    ),
)  # fmt: skip


# --- roofline ---------------------------------------------------------------------------------------


def roofline(flops: float, nbytes: float, peak: float, bandwidth: float) -> tuple[float, float]:
    """FLOP/s within reach and seconds, from the two times that the work needs at least."""
    seconds = max(flops / peak, nbytes / bandwidth)
    return flops / seconds, seconds


def _roof(attainable: Callable[[float, float, float, float], float]) -> Any:
    def mistaken(flops: float, nbytes: float, peak: float, bandwidth: float) -> tuple[float, float]:
        reached = attainable(flops, nbytes, peak, bandwidth)
        return reached, flops / reached

    return mistaken


def _time_at_peak(flops: float, nbytes: float, peak: float, bandwidth: float) -> tuple[float, float]:
    return min(peak, flops / nbytes * bandwidth), flops / peak


def _roofline_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for bound in ("memory", "arithmetic", "memory"):
        peak, bandwidth = float(10 ** rng.uniform(11, 15)), float(10 ** rng.uniform(10, 12.7))
        ridge = peak / bandwidth
        intensity = ridge * rng.uniform(1.5, 20) ** (1 if bound == "arithmetic" else -1)
        flops = float(10 ** rng.uniform(8, 14))
        cases.append(Case((flops, flops / float(intensity), peak, bandwidth), note=f"bound by {bound}"))
    return cases


ROOFLINE = Exercise(
    id="environment.roofline",
    points=2,
    title="The roofline",
    cases=_roofline_cases,
    reference=roofline,
    mistakes=(
        Mistake("max", "The lower of the two limits binds: min, not max.",
                _roof(lambda f, n, p, b: max(p, f / n * b))),
        Mistake("inverted", "Arithmetic intensity is flops per byte, not bytes per flop.",
                _roof(lambda f, n, p, b: min(p, n / f * b))),
        Mistake("sum", "Computing and moving data overlap: the slower one counts, not their sum.",
                _roof(lambda f, n, p, b: f / (f / p + n / b))),
        Mistake("peak", "Work with few operations a byte waits for memory and never sees the peak.",
                _roof(lambda f, n, p, b: p)),
        Mistake("seconds", "Your FLOP/s are right; the time must follow from them, not from the peak.",
                _time_at_peak),
    ),
    hints=(
        "Two things take time: computing at the peak, and moving bytes at the bandwidth.",
        "intensity = flops / nbytes; memory can feed intensity · bandwidth FLOP/s.",
        "attainable = min(peak, ...)\nreturn attainable, flops / attainable",
    ),
)  # fmt: skip


# --- seeds ------------------------------------------------------------------------------------------

ROWS, SHAPE = 50, (64, 64)


def what_holds(student: Any, case: Case) -> dict[str, bool]:
    """Call the student's function several times between other users of chance; say what holds."""
    seed, other = case.args

    def states() -> list[Any]:
        return [
            random.getstate(),
            np.random.get_state(legacy=False)["state"]["key"].tolist(),
            torch.get_rng_state().tolist(),
        ]

    def result(number: int) -> tuple[list[int], torch.Tensor]:
        order, weights = student(list(range(ROWS)), SHAPE, number)
        return list(order), torch.as_tensor(weights)

    before, rows = states(), list(range(ROWS))
    student(rows, SHAPE, seed)
    untouched = states() == before
    first = result(seed)
    random.random(), np.random.rand(), torch.rand(1)  # someone else draws
    again, third = result(seed), result(other)
    return {
        "the same seed gives the same order": first[0] == again[0],
        "the same seed gives the same weights": torch.equal(first[1], again[1]),
        "another seed gives another order": first[0] != third[0],
        "another seed gives other weights": not torch.equal(first[1], third[1]),
        "every row is there once": sorted(first[0]) == list(range(ROWS)),
        "the rows passed in keep their order": rows == list(range(ROWS)),
        "weights have the shape asked for": first[1].shape == SHAPE,
        "weights spread by 0.02 around 0": bool(
            abs(first[1].float().std() / 0.02 - 1) < 0.1 and abs(first[1].float().mean()) < 0.002
        ),
        "the global generators are untouched": untouched,
    }


def shuffle_and_init(rows: list[int], shape: tuple[int, ...], seed: int) -> tuple[list[int], torch.Tensor]:
    """Rows in random order and normal weights, from one generator of our own."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator).tolist()
    return [rows[i] for i in order], 0.02 * torch.randn(shape, generator=generator)


def _global_seed(rows: list[int], shape: tuple[int, ...], seed: int) -> Any:
    torch.manual_seed(seed)
    return [rows[i] for i in torch.randperm(len(rows)).tolist()], 0.02 * torch.randn(shape)


def _no_seed(rows: list[int], shape: tuple[int, ...], seed: int) -> Any:
    return [rows[i] for i in torch.randperm(len(rows)).tolist()], 0.02 * torch.randn(shape)


def _unseeded_generator(rows: list[int], shape: tuple[int, ...], seed: int) -> Any:
    return shuffle_and_init(rows, shape, torch.Generator().initial_seed())


def _half_seeded(rows: list[int], shape: tuple[int, ...], seed: int) -> Any:
    return shuffle_and_init(rows, shape, seed)[0], 0.02 * torch.randn(shape)


def _in_place(rows: list[int], shape: tuple[int, ...], seed: int) -> Any:
    random.Random(seed).shuffle(rows)
    return rows, shuffle_and_init(rows, shape, seed)[1]


def _with_replacement(rows: list[int], shape: tuple[int, ...], seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(rows), (len(rows),), generator=generator).tolist()
    return [rows[i] for i in chosen], shuffle_and_init(rows, shape, seed)[1]


def _restored(rows: list[int], shape: tuple[int, ...], seed: int) -> Any:
    with preserved_random_state():
        return _global_seed(rows, shape, seed)


def _seed_cases(rng: np.random.Generator) -> list[Case]:
    seeds = rng.choice(2**31, size=4, replace=False).tolist()
    return [Case(tuple(seeds[:2])), Case(tuple(seeds[2:]))]


SEED = Exercise(
    id="environment.shuffle_and_init",
    points=3,
    title="A seed that makes two runs equal",
    cases=_seed_cases,
    reference=shuffle_and_init,
    drive=what_holds,
    also_right=(_restored,),
    mistakes=(
        Mistake("global", "torch.manual_seed changes the generator that everyone shares: whoever draws next "
                "gets your numbers.", _global_seed),
        Mistake("no-seed", "You never use the seed.", _no_seed),
        Mistake("unseeded", "A new torch.Generator always starts from the same number; give it the seed with "
                "manual_seed.", _unseeded_generator),
        Mistake("half", "The order is seeded, the weights are not: pass generator= to randn.", _half_seeded),
        Mistake("in-place", "You shuffle the caller's list in place; return a new one.", _in_place),
        Mistake("replacement", "You draw with replacement: some rows come twice, others never. Take a "
                "permutation.", _with_replacement),
    ),
    hints=(
        "A function that must not disturb others needs a generator of its own.",
        "torch.Generator().manual_seed(seed), then generator=... in torch.randperm and torch.randn.",
        "order = torch.randperm(len(rows), generator=g).tolist()\n"
        "weights = 0.02 * torch.randn(shape, generator=g)",
    ),
)  # fmt: skip

EXERCISES = (VALIDATE, PARAMETERS, MEMORY, FLOPS, ROOFLINE, SEED)
