"""Exercises of lab 11: from a range to integers and back, an int8 matrix product, calibration, SmoothQuant, 4-bit groups.

References are the course's own arithmetic (``pangu_lab.compression``), which is tested against brute force.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pangu_lab.compression import affine
from pangu_lab.compression.smoothquant import smoothing_factors
from pangu_lab.exercises.engine import Case, Compare, Exercise, Mistake

CLOSE = Compare(rtol=1e-4, atol=1e-6)


def _tensor(rng: np.random.Generator, *shape: int, size: float = 1.0) -> Tensor:
    return torch.tensor(size * rng.normal(size=shape), dtype=torch.float32)


# --- scale and zero point ---------------------------------------------------------------------------


def scale_and_zero_point(low: float, high: float, bits: int) -> tuple[float, int]:
    """Scale and zero point of an asymmetric quantiser, by the package."""
    scheme = affine.Scheme(bits, symmetric=False, granularity="tensor")
    scale, zero_point = affine.scale_and_zero_point(torch.tensor(low), torch.tensor(high), scheme)
    return float(scale), int(zero_point)


def _mapped(
    scale: Callable[[float, float, int], float] = lambda low, high, bits: (high - low) / (2**bits - 1),
    zero: Callable[[float, float, int], Any] = lambda low, scale, bits: round(-(2 ** (bits - 1)) - low / scale),
    widen: Callable[[float, float], tuple[float, float]] = lambda low, high: (min(low, 0.0), max(high, 0.0)),
    empty: float = 1.0,
) -> Any:
    def answer(low: float, high: float, bits: int) -> tuple[float, Any]:
        low, high = widen(low, high)
        s = scale(low, high, bits)
        if s == 0 and empty:
            s = empty
        return s, zero(low, s, bits)

    return answer


def _range_cases(rng: np.random.Generator) -> list[Case]:
    def draw(low: float, high: float) -> float:
        return round(float(rng.uniform(low, high)), 3)

    return [
        Case((draw(-2, -0.6), draw(3, 5), 8), note="a range around 0"),
        Case((draw(-5, -3.6), draw(0.6, 2), 8), note="mostly negative"),
        Case((draw(-2, -0.6), draw(3, 5), 4), note="4 bits"),
        Case((draw(1.1, 2), draw(3, 4), 8), note="all values are positive"),
        Case((draw(-4, -3), draw(-2, -1.1), 8), note="all values are negative"),
        Case((0.0, 0.0, 8), note="nothing but zeros"),
    ]


SCALE = Exercise(
    id="quantization.scale_and_zero_point",
    points=2,
    title="Scale and zero point",
    cases=_range_cases,
    reference=scale_and_zero_point,
    also_right=(_mapped(),),
    compare=CLOSE,
    mistakes=(
        Mistake("max-only", "Your scale comes from max alone; the integers must span max - min.",
                _mapped(scale=lambda low, high, bits: high / (2**bits - 1))),
        Mistake("abs-max", "That is the symmetric scale, from max|x|; here it is (max - min) / (2^b - 1).",
                _mapped(scale=lambda low, high, bits: max(-low, high) / (2 ** (bits - 1) - 1))),
        Mistake("levels", "2^b integers have 2^b - 1 steps between them; divide by 2^b - 1.",
                _mapped(scale=lambda low, high, bits: (high - low) / 2**bits)),
        Mistake("bits-ignored", "You divide by 255 whatever bits says.",
                _mapped(scale=lambda low, high, bits: (high - low) / 255)),
        Mistake("zero-not-representable", "Zero lies outside of the range, so no integer stands for it, and the zero "
                "point leaves the integers; widen the range first: low = min(low, 0), high = max(high, 0).",
                _mapped(widen=lambda low, high: (low, high))),
        Mistake("out-of-range", "Your zero point counts from 0, but the smallest integer is -2^(b-1): it leaves the "
                "range.", _mapped(zero=lambda low, scale, bits: round(-low / scale))),
        Mistake("sign", "The sign of low / s is wrong: low must land on the smallest integer.",
                _mapped(zero=lambda low, scale, bits: round(-(2 ** (bits - 1)) + low / scale))),
        Mistake("not-rounded", "The zero point is an integer; round it, or 0 has no integer of its own.",
                _mapped(zero=lambda low, scale, bits: -(2 ** (bits - 1)) - low / scale)),
        Mistake("no-zero-point", "The zero point is 0 in a symmetric scheme only.",
                _mapped(zero=lambda low, scale, bits: 0)),
        Mistake("no-width", "A range without width gives scale 0, and x / 0; use 1 there.",
                _mapped(empty=0.0)),
    ),
    hints=(
        "Draw the two rulers: low … high above, -2^(b-1) … 2^(b-1) - 1 below. How long is one step of the lower one?",
        "Widen the range to hold 0, then s = (high - low) / (2^b - 1); z is what 0 becomes when low becomes q_min.",
        "low, high = min(low, 0.0), max(high, 0.0)\nscale = (high - low) / (...) or 1.0\n"
        "return scale, round(q_min - ...)",
    ),
)  # fmt: skip


# --- there and back ---------------------------------------------------------------------------------


def fake_quantize(x: Tensor, scale: float, zero_point: int, bits: int) -> Tensor:
    """x as b-bit integers show it, by torch's own operator."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)


def _there_and_back(
    integers: Callable[[Tensor, float, int], Tensor] = lambda x, s, z: (x / s).round() + z,
    clamp: Callable[[Tensor, int, int], Tensor] = lambda q, bits, z: q.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
    back: Callable[[Tensor, float, int], Tensor] = lambda q, s, z: (q - z) * s,
) -> Any:
    def answer(x: Tensor, scale: float, zero_point: int, bits: int) -> Tensor:
        return back(clamp(integers(x, scale, zero_point), bits, zero_point), scale, zero_point)

    return answer


def _wrapped(q: Tensor, bits: int, z: int) -> Tensor:
    half = 2 ** (bits - 1)
    return (q + half) % (2 * half) - half


def _there_and_back_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for bits, note in ((8, "8 bits"), (4, "4 bits"), (3, "3 bits, many values out of the range")):
        x = _tensor(rng, 3, 6)
        x[0, 0], x[1, 2], x[2, 4] = 0.0, 4.0, -5.0  # zero, and values that must be clipped
        half = 2 ** (bits - 1)
        z = int(rng.integers(half // 4 + 1, half // 2 + 1)) * int(rng.choice([-1, 1]))
        cases.append(Case((x, round(float(rng.uniform(2.2, 2.6)) / half, 4), z, bits), note=note))
    return cases


FAKE = Exercise(
    id="quantization.fake_quantize",
    points=2,
    title="To integers and back",
    cases=_there_and_back_cases,
    reference=fake_quantize,
    also_right=(_there_and_back(),),
    compare=CLOSE,
    mistakes=(
        Mistake("no-clamp", "A value beyond the range gets an integer that b bits cannot hold: the clamp is missing.",
                _there_and_back(clamp=lambda q, bits, z: q)),
        Mistake("wrapped", "Too large a value wraps around to the other end; clamp before you convert to int8.",
                _there_and_back(clamp=_wrapped)),
        Mistake("zero-point-kept", "You multiply by the scale without subtracting the zero point first.",
                _there_and_back(back=lambda q, s, z: q * s)),
        Mistake("zero-point-added", "The zero point is added on the way in and subtracted on the way back.",
                _there_and_back(back=lambda q, s, z: (q + z) * s)),
        Mistake("zero-point-late", "Scale times q, less z: the zero point is an integer; subtract it before you "
                "multiply.", _there_and_back(back=lambda q, s, z: q * s - z)),
        Mistake("zero-point-forgotten", "The zero point is not part of q when you clamp, because it is forgotten or added too late; "
                "the clip range then sits in the wrong place.",
                _there_and_back(integers=lambda x, s, z: (x / s).round(), back=lambda q, s, z: q * s)),
        Mistake("round-first", "You round x before dividing by the scale: almost everything becomes 0 or 1.",
                _there_and_back(integers=lambda x, s, z: (x.round() / s).round() + z)),
        Mistake("truncated", "You cut the fraction off instead of rounding to nearest; the error doubles and leans "
                "towards 0.", _there_and_back(integers=lambda x, s, z: (x / s).trunc() + z)),
        Mistake("floor", "You round down instead of to nearest; everything drifts to the left.",
                _there_and_back(integers=lambda x, s, z: (x / s).floor() + z)),
        Mistake("not-rounded", "Nothing is rounded; that is x, clipped.",
                _there_and_back(integers=lambda x, s, z: x / s + z)),
        Mistake("multiplied", "To get integers you divide by the scale.",
                _there_and_back(integers=lambda x, s, z: (x * s).round() + z)),
        Mistake("integers", "These are the integers; bring them back with s (q - z).",
                _there_and_back(back=lambda q, s, z: q)),
        Mistake("eight-bits", "You clamp to -128 … 127 whatever bits says.",
                _there_and_back(clamp=lambda q, bits, z: q.clamp(-128, 127))),
        Mistake("unsigned", "Your integers start at 0; here they run from -2^(b-1) to 2^(b-1) - 1.",
                _there_and_back(clamp=lambda q, bits, z: q.clamp(0, 2**bits - 1))),
    ),
    hints=(
        "Two formulas, one after the other: into integers, then back.",
        "q = clip(round(x / s) + z, q_min, q_max), then s (q - z). tensor.round() and tensor.clamp() do most of it.",
        "q = (x / scale).round() + zero_point\nq = q.clamp(..., ...)\nreturn scale * (...)",
    ),
)  # fmt: skip


# --- a scale for each row: channels, tokens ---------------------------------------------------------


def quantize_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (N, K) and one scale for each row, (N,), by the package."""
    q = affine.quantize(weight, affine.Scheme(8, symmetric=True, granularity="channel"))
    return q.values, q.scale[:, 0]


def _symmetric(
    peak: Callable[[Tensor], Tensor] = lambda w: w.abs().amax(dim=1, keepdim=True),
    top: int = 127,
    bottom: int = -127,
    zero: bool = True,
    integers: Callable[[Tensor, Tensor], Tensor] = lambda w, s: (w / s).round(),
    flat: bool = True,
    kind: torch.dtype = torch.int8,
) -> Any:
    def answer(weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = peak(weight) / top
        if zero:
            scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        q = integers(weight, scale).clamp(bottom, top if bottom == -127 else 127).to(kind)
        return q, scale.flatten() if flat else scale

    return answer


def _column_peaks(w: Tensor) -> Tensor:
    return w.abs().amax(dim=0, keepdim=True)


def _all_peak(w: Tensor) -> Tensor:
    return w.abs().amax().expand(len(w), 1)


def _channel_cases(rng: np.random.Generator) -> list[Case]:
    def rows(n: int, k: int) -> Tensor:
        w = _tensor(rng, n, k) * torch.tensor(rng.uniform(0.02, 3, (n, 1)), dtype=torch.float32)
        w[0, 1] = -1.5 * w[0].abs().max()  # the farthest value of this row is negative, of that one positive
        w[1, 0] = 1.5 * w[1].abs().max()
        return w

    square, empty = rows(5, 5), rows(4, 6)
    empty[2] = 0
    return [
        Case((square,), note="as many rows as columns"),
        Case((rows(3, 7),), note="more columns than rows"),
        Case((empty,), note="row 2 holds only zeros: its scale is 1"),
    ]


CHANNELS = Exercise(
    id="quantization.quantize_channels",
    points=2,
    title="One scale for each output channel",
    cases=_channel_cases,
    reference=quantize_channels,
    also_right=(_symmetric(),),
    compare=CLOSE,
    mistakes=(
        Mistake("wrong-axis", "Your scales belong to columns, the inputs. An output channel is a row: take the maximum "
                "over dim=1.", _symmetric(_column_peaks)),
        Mistake("one-scale", "That is one scale for the whole matrix; a row of small weights gets few integers or none.",
                _symmetric(_all_peak)),
        Mistake("signed-max", "You take the largest value, not the largest |value|: a row with a far negative end is "
                "clipped.", _symmetric(lambda w: w.amax(dim=1, keepdim=True))),
        Mistake("max-minus-min", "max - min over 255 is the asymmetric scale; without a zero point it clips the longer "
                "side.", _symmetric(lambda w: (w.amax(1, keepdim=True) - w.amin(1, keepdim=True)) * 127 / 255)),
        Mistake("minus-128", "With a scale of max|w| / 128 the farthest negative weight becomes -128, which has no "
                "positive counterpart: symmetric integers run from -127 to 127.", _symmetric(top=128, bottom=-128)),
        Mistake("zero-row", "A row of zeros has scale 0, and 0 / 0 is nan; give it scale 1.", _symmetric(zero=False)),
        Mistake("round-first", "You round before dividing by the scale.",
                _symmetric(integers=lambda w, s: (w.round() / s).round())),
        Mistake("truncated", "Converting to int8 cuts the fraction off; round first.",
                _symmetric(integers=lambda w, s: w / s)),
        Mistake("not-integers", "The first result must be integers: convert with .to(torch.int8).",
                _symmetric(kind=torch.float32)),
        Mistake("keepdim", "The scales have shape (N, 1); drop the last dimension: (N,).", _symmetric(flat=False)),
    ),
    hints=(
        "How large is the largest |weight| of each row? 127 must stand for it.",
        "weight.abs().amax(dim=1) gives one number a row. torch.where puts 1 where it is 0. Divide row by row: "
        "scale[:, None].",
        "scale = weight.abs().amax(dim=...) / 127\nscale = torch.where(scale == 0, 1.0, scale)\n"
        "q = (weight / scale[:, None]).round()...",
    ),
)  # fmt: skip


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (batch, length, K) and one scale for each token, (batch, length, 1), by the package."""
    q = affine.quantize(x, affine.Scheme(8, symmetric=True, granularity="token"))
    return q.values, q.scale


def _tokens(peak: Callable[[Tensor], Tensor], **options: Any) -> Any:
    return _symmetric(peak, flat=False, **options)


def _token_peak(x: Tensor) -> Tensor:
    return x.abs().amax(dim=-1, keepdim=True)


def _token_cases(rng: np.random.Generator) -> list[Case]:
    def tokens(batch: int, length: int, k: int) -> Tensor:
        x = _tensor(rng, batch, length, k) * torch.tensor(rng.uniform(0.1, 4, (batch, length, 1)), dtype=torch.float32)
        x[0, 0, 1] = -2 * x[0, 0].abs().max()
        return x

    padded = tokens(2, 3, 4)
    padded[1, 2] = 0
    return [
        Case((tokens(3, 3, 3),), note="three texts of three tokens in three dimensions"),
        Case((tokens(1, 4, 6),), note="one text"),
        Case((padded,), note="the last token holds only zeros: its scale is 1"),
    ]


TOKENS = Exercise(
    id="quantization.quantize_tokens",
    points=2,
    title="One scale for each token",
    cases=_token_cases,
    reference=quantize_tokens,
    also_right=(_tokens(_token_peak),),
    compare=CLOSE,
    mistakes=(
        Mistake("whole-tensor", "One scale for the whole batch: a text's numbers then depend on the texts beside it.",
                _tokens(lambda x: x.abs().amax().expand(*x.shape[:-1], 1))),
        Mistake("per-text", "One scale a text; each token has its own: take the maximum over the last dimension only.",
                _tokens(lambda x: x.abs().amax(dim=(1, 2), keepdim=True).expand(*x.shape[:-1], 1))),
        Mistake("per-channel", "Your scales belong to the features. The integer sum runs over the features, so a scale "
                "that changes inside it cannot be taken out of the sum; use one a token, over dim=-1.",
                _tokens(lambda x: x.abs().amax(dim=1, keepdim=True))),
        Mistake("across-texts", "You take the maximum over the texts; take it over the features, dim=-1.",
                _tokens(lambda x: x.abs().amax(dim=0, keepdim=True))),
        Mistake("signed-max", "You take the largest value, not the largest |value|.",
                _tokens(lambda x: x.amax(dim=-1, keepdim=True))),
        Mistake("minus-128", "Divide by 127, not by 128: symmetric integers run from -127 to 127.",
                _tokens(_token_peak, top=128, bottom=-128)),
        Mistake("zero-token", "A token of zeros has scale 0, and 0 / 0 is nan; give it scale 1.",
                _tokens(_token_peak, zero=False)),
        Mistake("truncated", "Converting to int8 cuts the fraction off; round first.",
                _tokens(_token_peak, integers=lambda x, s: x / s)),
        Mistake("flat", "The scales need shape (batch, length, 1), so that they broadcast; keepdim=True keeps the 1.",
                lambda x: (quantize_tokens(x)[0], quantize_tokens(x)[1][..., 0])),
    ),
    hints=(
        "It is the same as for channels, with another dimension: what belongs to one token?",
        "x.abs().amax(dim=-1, keepdim=True) is (batch, length, 1) and broadcasts against x.",
        "scale = x.abs().amax(dim=-1, keepdim=True) / 127\nscale = torch.where(...)\nreturn (...).to(torch.int8), scale",
    ),
)  # fmt: skip


# --- the integer matrix product ---------------------------------------------------------------------


def int8_matmul(q_x: Tensor, s_x: Tensor, q_w: Tensor, s_w: Tensor) -> Tensor:
    """(M, N) in fp32: exact integer sums by numpy, then the scales."""
    sums = q_x.numpy().astype(np.int64) @ q_w.numpy().astype(np.int64).T
    return torch.from_numpy(sums).to(torch.int32) * (s_x * s_w)


def _product(
    sums: Callable[[Tensor, Tensor], Tensor] = lambda a, b: a.int() @ b.int().T,
    scaled: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda y, s_x, s_w: y * (s_x * s_w),
) -> Any:
    def answer(q_x: Tensor, s_x: Tensor, q_w: Tensor, s_w: Tensor) -> Tensor:
        return scaled(sums(q_x, q_w), s_x, s_w)

    return answer


def _int8_sums(a: Tensor, b: Tensor) -> Tensor:
    return (a.int() @ b.int().T).to(torch.int8)  # what wraps in each step has wrapped in the end


def _int16_sums(a: Tensor, b: Tensor) -> Tensor:
    return (a.int() @ b.int().T).to(torch.int16)


def _saturated(a: Tensor, b: Tensor) -> Tensor:
    return (a.int() @ b.int().T).clamp(-128, 127)


def _product_cases(rng: np.random.Generator) -> list[Case]:
    def case(m: int, n: int, k: int, note: str, full: bool = False) -> Case:
        a, b = (rng.integers(-127, 128, shape) for shape in ((m, k), (n, k)))
        if full:
            a, b = 120 + np.abs(a) % 8, 120 + np.abs(b) % 8
        s_x, s_w = (torch.tensor(rng.uniform(0.005, 0.05, shape), dtype=torch.float32) for shape in ((m, 1), (n,)))
        q_x, q_w = (torch.tensor(x, dtype=torch.int8) for x in (a, b))
        return Case((q_x, s_x, q_w, s_w), note=note)

    return [
        case(4, 4, 4, "as many tokens as channels"),
        case(2, 3, 8, "2 tokens, 3 channels"),
        case(3, 2, 40, "all integers near 127: large sums", full=True),
    ]


PRODUCT = Exercise(
    id="quantization.int8_matmul",
    points=3,
    title="A matrix product of integers",
    cases=_product_cases,
    reference=int8_matmul,
    also_right=(_product(),),
    compare=CLOSE,
    mistakes=(
        Mistake("int8-overflow", "The sums wrap around: you add int8 in int8, which holds 127 at most. Convert both to "
                "int32 before you multiply.", _product(_int8_sums)),
        Mistake("int16-overflow", "The sums wrap around in int16; three products of 127 · 127 fill it. Use int32.",
                _product(_int16_sums)),
        Mistake("saturated", "You clip the sums to int8; they are sums of many products and need int32.",
                _product(_saturated)),
        Mistake("no-activation-scale", "The activations' scale is missing.",
                _product(scaled=lambda y, s_x, s_w: y * s_w)),
        Mistake("no-weight-scale", "The weights' scale is missing.", _product(scaled=lambda y, s_x, s_w: y * s_x)),
        Mistake("no-scales", "These are the integer sums; multiply them by both scales.",
                _product(scaled=lambda y, s_x, s_w: y)),
        Mistake("swapped-scales", "The scales are on the wrong axes: a token's belongs to a row of the result, a "
                "channel's to a column.", _product(scaled=lambda y, s_x, s_w: y * (s_x.T * s_w[:, None]))),
        Mistake("divided", "To come back from integers you multiply by the scales.",
                _product(scaled=lambda y, s_x, s_w: y / (s_x * s_w))),
        Mistake("added", "The scales are multiplied, not added: (s_x q_x)(s_w q_w) = s_x s_w q_x q_w.",
                _product(scaled=lambda y, s_x, s_w: y * (s_x + s_w))),
        Mistake("not-transposed", "q_w is stored as (N, K): multiply by its transpose, q_w.T.",
                _product(lambda a, b: a.int() @ b.int())),
        Mistake("bf16-sums", "The sums are rounded: bf16 keeps 8 bits of them. Integers are exact.",
                _product(lambda a, b: (a.bfloat16() @ b.bfloat16().T).float())),
    ),
    hints=(
        "Scales do not depend on the summation index k, so they come out of the sum. What is left inside?",
        "q_x.int() @ q_w.int().T adds in int32. Row m of it belongs to s_x[m], column n to s_w[n].",
        "sums = q_x.int() @ ...  # (M, N) int32\nreturn sums * (...)",
    ),
)  # fmt: skip


# --- calibration ------------------------------------------------------------------------------------


def calibrate(activations: dict[str, list[Tensor]], percent: float) -> float:
    """The scale for which the given share of all |training activation| is inside; numpy's percentile."""
    values = np.concatenate([batch.abs().numpy().ravel() for batch in activations["train"]])
    return float(np.percentile(values, percent)) / 127


def _calibrated(
    batches: Callable[[dict[str, list[Tensor]]], list[Tensor]] = lambda a: a["train"],
    values: Callable[[Tensor], Tensor] = lambda x: x.abs(),
    at: Callable[[Tensor, float], float] = lambda x, percent: float(torch.quantile(x, percent / 100)),
    steps: int = 127,
) -> Any:
    def answer(activations: dict[str, list[Tensor]], percent: float) -> float:
        return at(torch.cat([values(batch).flatten() for batch in batches(activations)]), percent) / steps

    return answer


def _mean_of_batches(activations: dict[str, list[Tensor]], percent: float) -> float:
    return float(np.mean([calibrate({"train": [batch]}, percent) for batch in activations["train"]]))


def _calibration_cases(rng: np.random.Generator) -> list[Case]:
    def case(percent: float, note: str) -> Case:
        train = [_tensor(rng, 6, 10, size=size) - 0.3 for size in (0.8, 1.0, 1.6)]
        train[1][2, 3] = 60.0
        train[2][0, 0] = -45.0
        test = [_tensor(rng, 6, 10, size=4.0) for _ in range(2)]
        return Case(({"train": train, "test": test}, percent), note=note)

    return [case(99.0, "99 % inside"), case(95.0, "95 % inside"), case(90.0, "90 % inside")]


CALIBRATE = Exercise(
    id="quantization.calibrate",
    points=2,
    title="A static scale from calibration data",
    cases=_calibration_cases,
    reference=calibrate,
    also_right=(_calibrated(),),
    compare=CLOSE,
    mistakes=(
        Mistake("test-data", "You calibrate on test data: the model is fitted to what it will be judged by. Use the "
                "training batches.", _calibrated(lambda a: a["test"])),
        Mistake("all-data", "Test batches are among your calibration data; use the training batches only.",
                _calibrated(lambda a: a["train"] + a["test"])),
        Mistake("maximum", "That is the maximum; one outlier decides the scale of everything. Use the percentile.",
                _calibrated(at=lambda x, percent: float(x.max()))),
        Mistake("signed", "You take the percentile of x; a symmetric range needs that of |x|.",
                _calibrated(values=lambda x: x)),
        Mistake("first-batch", "Only the first batch counts; look at all of them.", _calibrated(lambda a: a["train"][:1])),
        Mistake("last-batch", "Only the last batch counts; look at all of them.", _calibrated(lambda a: a["train"][-1:])),
        Mistake("mean-of-batches", "You average over batches; the percentile of all values together is something else.",
                _mean_of_batches),
        Mistake("threshold", "That is the threshold; the scale is the threshold over 127.", _calibrated(steps=1)),
        Mistake("128", "127 is the largest integer: divide by 127.", _calibrated(steps=128)),
        Mistake("255", "A symmetric scheme has 127 steps on each side of 0: divide by 127.", _calibrated(steps=255)),
        Mistake("share-not-percent", "percent is 99.0, not 0.99; torch.quantile wants percent / 100, numpy.percentile "
                "takes it as it is.", _calibrated(at=lambda x, p: float(np.percentile(x.numpy(), p / 100)))),
        Mistake("tail", "You clip from the wrong end: percent of the values must be inside, not outside.",
                _calibrated(at=lambda x, p: float(torch.quantile(x, 1 - p / 100)))),
    ),
    hints=(
        "Which data may decide a setting of the model, and which may not?",
        "Put all |x| of the training batches into one long vector; torch.quantile(values, percent / 100) is the "
        "threshold that 127 stands for.",
        'values = torch.cat([batch.abs().flatten() for batch in activations[...]])\nreturn float(...) / 127',
    ),
)  # fmt: skip


# --- SmoothQuant ------------------------------------------------------------------------------------


def smooth(x: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """x (rows, K) and weight (N, K), smoothed, by the package's factors."""
    s = smoothing_factors(x.abs().amax(dim=0), weight.abs().amax(dim=0), alpha)
    return x / s, weight * s


def _smoothed(
    factors: Callable[[Tensor, Tensor, float], Tensor] = lambda x, w, a: x**a / w ** (1 - a),
    x_max: Callable[[Tensor], Tensor] = lambda x: x.abs().amax(dim=0),
    w_max: Callable[[Tensor], Tensor] = lambda w: w.abs().amax(dim=0),
    apply: Callable[[Tensor, Tensor, Tensor], Any] = lambda x, w, s: (x / s, w * s),
) -> Any:
    def answer(x: Tensor, weight: Tensor, alpha: float) -> Any:
        return apply(x, weight, factors(x_max(x), w_max(weight), alpha))

    return answer


def _smooth_cases(rng: np.random.Generator) -> list[Case]:
    def case(rows: int, n: int, k: int, alpha: float, note: str) -> Case:
        x = _tensor(rng, rows, k) + 0.1
        x[:, 1] = 20 * x[:, 1] - 5  # an outlier channel
        x[0, 1] = -90.0
        w = _tensor(rng, n, k, size=0.3)
        w[0, :2] = torch.tensor([-1.1, -1.3])
        return Case((x, w, alpha), note=note)

    return [
        case(4, 4, 4, 0.6, "alpha = 0.6"),
        case(5, 3, 6, 0.75, "alpha = 0.75"),
        case(3, 5, 4, 0.3, "alpha = 0.3"),
    ]


SMOOTH = Exercise(
    id="quantization.smooth",
    points=2,
    title="Smoothing outlier channels",
    cases=_smooth_cases,
    reference=smooth,
    also_right=(_smoothed(),),
    compare=CLOSE,
    mistakes=(
        Mistake("wrong-side", "You smooth the wrong side: activations are divided by s, and weights multiplied by it.",
                _smoothed(apply=lambda x, w, s: (x * s, w / s))),
        Mistake("one-side", "Only the activations change, so the product changes, too; multiply the weights by s.",
                _smoothed(apply=lambda x, w, s: (x / s, w))),
        Mistake("both-divided", "Both are divided by s; what one loses the other must gain.",
                _smoothed(apply=lambda x, w, s: (x / s, w / s))),
        Mistake("alpha-swapped", "The exponents are swapped: alpha belongs to the activations, 1 - alpha to the weights.",
                _smoothed(lambda x, w, a: x ** (1 - a) / w**a)),
        Mistake("no-weights", "s takes the weights into account: divide by max|W_j| to the power 1 - alpha.",
                _smoothed(lambda x, w, a: x**a)),
        Mistake("multiplied", "The two powers are divided, not multiplied.",
                _smoothed(lambda x, w, a: x**a * w ** (1 - a))),
        Mistake("wrong-axis", "s has one entry for each input channel, (K,): the maxima run over tokens, dim=0, and over "
                "output channels, dim=0.",
                _smoothed(x_max=lambda x: x.abs().amax(dim=1, keepdim=True), w_max=lambda w: w.abs().amax(),
                          apply=lambda x, w, s: (x / s, w * s.mean()))),
        Mistake("weight-axis", "The weights' maximum is for each input channel: over the rows of W, dim=0, not within "
                "them.", _smoothed(w_max=lambda w: w.abs().amax(dim=1))),
        Mistake("weight-tensor", "You take one maximum of the whole weight matrix; each input channel has its own.",
                _smoothed(w_max=lambda w: w.abs().amax())),
        Mistake("signed", "You take max X, not max|X|: the outlier here is negative.",
                _smoothed(x_max=lambda x: x.amax(dim=0).clamp(min=1e-6))),
        Mistake("signed-weights", "You take max W, not max|W|.",
                _smoothed(w_max=lambda w: w.amax(dim=0).clamp(min=1e-6))),
        Mistake("means", "s comes from the largest |X_j|, not from the mean.",
                _smoothed(x_max=lambda x: x.abs().mean(dim=0))),
    ),
    hints=(
        "x @ W.T is a sum over input channels j. If x_j is divided by s_j, what must happen to W_j?",
        "x.abs().amax(dim=0) and weight.abs().amax(dim=0) are both (K,); s broadcasts over rows of x and of weight.",
        "s = x.abs().amax(dim=0) ** alpha / ...\nreturn x / s, ...",
    ),
)  # fmt: skip


# --- 4-bit groups -----------------------------------------------------------------------------------


def quantize_groups(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """4-bit integers (N, K) and one scale for each group of neighbors in a row, (N, K / group), by the package."""
    q = affine.quantize(weight, affine.Scheme(4, symmetric=True, granularity="group", group_size=group))
    return q.values, q.scale[..., 0]


def _grouped(
    split: Callable[[Tensor, int], Tensor] = lambda w, g: w.unflatten(1, (-1, g)),
    join: Callable[[Tensor], Tensor] = lambda q: q.flatten(1),
    peak: Callable[[Tensor], Tensor] = lambda b: b.abs().amax(dim=2, keepdim=True),
    top: int = 7,
    bottom: int = -7,
    integers: Callable[[Tensor, Tensor], Tensor] = lambda b, s: (b / s).round(),
) -> Any:
    def answer(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
        b = split(weight, group)
        scale = peak(b) / top
        q = integers(b, scale).clamp(bottom, top if bottom == -top else 7)
        return join(q).to(torch.int8), scale.expand(*b.shape[:2], 1)[..., 0]

    return answer


def _group_cases(rng: np.random.Generator) -> list[Case]:
    def case(n: int, k: int, group: int) -> Case:
        sizes = torch.tensor(rng.uniform(0.1, 3, (n, k // group)), dtype=torch.float32)
        w = _tensor(rng, n, k) * sizes.repeat_interleave(group, dim=1)
        w[0, 0] = -2 * w[0].abs().max()
        w[:, 0] += 0.2
        w[n - 1, k - 1] = 3.1
        return Case((w, group), note=f"groups of {group}")

    return [case(4, 8, 4), case(3, 12, 3), case(2, 16, 8)]


GROUPS = Exercise(
    id="quantization.quantize_groups",
    points=2,
    title="4 bits in groups",
    cases=_group_cases,
    reference=quantize_groups,
    also_right=(_grouped(),),
    compare=CLOSE,
    mistakes=(
        Mistake("one-scale-a-row", "One scale for a whole row: with 15 integers that is too coarse. Each group has its "
                "own.", _grouped(peak=lambda b: b.abs().amax(dim=(1, 2), keepdim=True).expand(*b.shape[:2], 1))),
        Mistake("one-scale", "One scale for the whole matrix; each group has its own.",
                _grouped(peak=lambda b: b.abs().amax().expand(*b.shape[:2], 1))),
        Mistake("strided", "Your groups take every second, third, … weight; a group is neighbors: reshape to "
                "(N, K // group, group).",
                _grouped(lambda w, g: w.unflatten(1, (g, -1)).transpose(1, 2), lambda q: q.transpose(1, 2).flatten(1))),
        Mistake("columns", "Your groups run across rows; a group lies within one row.",
                _grouped(peak=lambda b: b.abs().amax(dim=0, keepdim=True).amax(dim=2, keepdim=True)
                         .expand(*b.shape[:2], 1))),
        Mistake("minus-8", "With max|w| / 8 the farthest negative weight becomes -8, which has no positive counterpart: "
                "the integers run from -7 to 7.", _grouped(top=8, bottom=-8)),
        Mistake("eight-bits", "These are 8-bit integers; 4 bits reach from -7 to 7.", _grouped(top=127, bottom=-127)),
        Mistake("fifteen", "15 is the number of steps of an unsigned scheme; the largest integer here is 7.",
                _grouped(top=15, bottom=-15)),
        Mistake("signed-max", "You take the largest value, not the largest |value|.",
                _grouped(peak=lambda b: b.amax(dim=2, keepdim=True))),
        Mistake("truncated", "Converting to int8 cuts the fraction off; round first.",
                _grouped(integers=lambda b, s: b / s)),
        Mistake("wrong-shape", "The integers keep the shape of the weight, (N, K): flatten the groups again.",
                _grouped(join=lambda q: q)),
    ),
    hints=(
        "If each group were a row of its own, you would have solved this already.",
        "weight.reshape(N, K // group, group) puts each group into the last dimension; take the maximum over it.",
        "blocks = weight.reshape(len(weight), -1, group)\nscale = blocks.abs().amax(dim=2) / 7\n"
        "q = (blocks / scale[..., None])...\nreturn q.reshape(...), scale",
    ),
)  # fmt: skip


EXERCISES = (SCALE, FAKE, CHANNELS, TOKENS, PRODUCT, CALIBRATE, SMOOTH, GROUPS)
