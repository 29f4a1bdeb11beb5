"""Int8 linear layers on a CPU: int8 weights and activations, int32 sums, and everything after them in one go.

The arithmetic is ``reference_linear``, a dozen lines of plain torch; ``PackedLinear`` does the same in compiled code
(``engine.cpp``), with the best instructions this processor has: AMX tiles, AVX-512 VNNI, AVX-VNNI, AVX2, or plain C++.
The code is compiled once, on first use, with the machine's own compiler, and kept in the user's cache folder. Where
there is none, PyTorch's int8 operator does the products and the reason is printed once. The environment variable
``PANGU_LAB_ENGINE`` asks for a path by name: amx, avx512, avxvnni, avx2, portable, or torch for no compiled code.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pangu_lab.errors import PanguLabError
from pangu_lab.files import atomic_write

SOURCES = tuple(Path(__file__).with_name(name) for name in ("engine.cpp", "engine_dot.h", "engine_vector.h"))
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno")
TINY = 1e-30  # a row without anything larger counts as zero
ACTIVATIONS = {None: 0, "gelu": 1, "relu": 2}


class EngineError(PanguLabError):
    """A layer or a model cannot be computed in int8 as asked."""


class Way(NamedTuple):
    """A way to compute: what the processor must have, as Linux names it, and what the compiler is told."""

    needs: frozenset[str]
    flags: tuple[str, ...]


_AVX2 = frozenset({"avx2", "fma", "bmi2"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512_vnni"}
_V4 = ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512")
# The best first.
PATHS = {
    "amx": Way(_AVX512 | {"amx_tile", "amx_int8"}, (*_V4, "-mamx-tile", "-mamx-int8")),
    "avx512": Way(_AVX512, _V4),
    "avxvnni": Way(_AVX2 | {"avx_vnni"}, ("-march=x86-64-v3", "-mavxvnni")),
    "avx2": Way(_AVX2, ("-march=x86-64-v3",)),
    "portable": Way(frozenset(), ()),
}


# --- the arithmetic in plain torch ------------------------------------------------------------------


def quantize_rows(x: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """x (M, K) as int8 in [-127, 127] and one scale per row, (M,): x ≈ q s with s = max |x| / 127.

    Rounding is half to even, of x times the reciprocal 1 / s, which is what fast kernels do (a division costs sixteen
    multiplications). A row of zeros has scale 1; a row that holds NaN or infinity has scale NaN, and so gives NaN
    wherever it goes. With ``scale`` (static quantization) all rows have that one, and what is larger is clamped.
    """
    most = x.abs().amax(dim=1)  # NaN if there is one
    scales = torch.where(most < TINY, torch.ones_like(most), most / 127)
    if scale is not None:
        scales = torch.full_like(most, scale)
    scales = torch.where(most.isfinite(), scales, torch.nan)
    q = (x * (1 / scales)[:, None]).round().clamp(-127, 127).nan_to_num(0)
    return q.to(torch.int8), scales


def quantize_channels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (N, K) as int8 and one scale per output channel, (N,): max |w| / 127, or 1 for a row of zeros."""
    weight = weight.detach().float()
    if not weight.isfinite().all():
        raise EngineError("the weights hold NaN or infinity, for which there is no scale; look at the training run")
    most = weight.abs().amax(dim=1)
    scale = torch.where(most < TINY, torch.ones_like(most), most / 127)
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def integer_sums(q: Tensor, weight: Tensor) -> Tensor:
    """Σ_k q[m, k] w[n, k] as int32: q (M, K), weight (N, K) to (M, N)."""
    return q.to(torch.int32) @ weight.to(torch.int32).T


def reference_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
    activation_scale: float | None = None,
    sums: Any = integer_sums,
) -> Tensor:
    """y = (Σ q_x q_w) (s_x s_w) + b, then GELU, then the residual: x (…, K) to (…, N) in fp32.

    What ``PackedLinear`` computes, to be read and to be tested against: its integers are the same, and its fp32 result
    differs by rounding only (a multiplication and an addition are one operation there, and GELU is a polynomial with an
    error below 2e-6).
    """
    q, scale = quantize_rows(x.reshape(-1, x.shape[-1]).float(), activation_scale)
    y = sums(q, weight).float() * (scale[:, None] * weight_scale)
    if bias is not None:
        y = y + bias
    if gelu:
        y = functional.gelu(y)
    y = y.view(*x.shape[:-1], -1)
    return y if residual is None else y + residual


# --- compiling and loading --------------------------------------------------------------------------


@functools.cache
def cpu_features() -> frozenset[str]:
    """What the processor says it can do, in Linux' words; elsewhere as much as PyTorch knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return frozenset(next(line.split(":", 1)[1] for line in lines if line.startswith("flags")).split())
    except (OSError, StopIteration):
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        return _AVX2 if x86 and torch.backends.cpu.get_cpu_capability().startswith("AVX") else frozenset()


def supported_paths() -> list[str]:
    """The paths that this processor can take, the best first."""
    return [name for name, path in PATHS.items() if path.needs <= cpu_features()]


def find_compiler() -> str | None:
    """``$CXX``, or a C++ compiler by its usual names."""
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where compiled code is kept: ``$XDG_CACHE_HOME/pangu_lab``, or ``~/.cache/pangu_lab``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pangu_lab"


def build(path: str, folder: Path | None = None) -> Path:
    """The compiled library for ``path``: the kept one, or a new one (1 to 3 seconds).

    Its name carries a hash of the sources, the compiler and its options, so that a change of any makes a new one.

    Raises
    ------
    EngineError
        There is no compiler, or it fails; the first line it complains about is in the sentence.
    """
    compiler = find_compiler()
    if compiler is None:
        raise EngineError("there is no C++ compiler; install g++ or clang++ (or name one in CXX) for the fast path")
    stamp = f"{compiler} {os.stat(compiler).st_mtime_ns} {FLAGS} {PATHS[path].flags} {platform.machine()}".encode()
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in SOURCES) + stamp).hexdigest()[:16]
    target = (folder or cache_folder()) / f"engine-{path}-{digest}.so"
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "engine.so"
        command = [compiler, *FLAGS, *PATHS[path].flags, str(SOURCES[0]), "-o", str(output)]
        # Apple's compiler has no OpenMP of its own: without it one thread computes.
        for openmp in (["-fopenmp"], []):
            done = subprocess.run([*command, *openmp], capture_output=True, text=True)
            if done.returncode == 0:
                return atomic_write(target, output.read_bytes())
    complaint = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
    raise EngineError(f"{compiler} cannot compile the int8 engine ({complaint}); a compiler of the last years can")


class LinearStruct(ctypes.Structure):
    """``Linear`` of engine.cpp."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("start", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_int),
        ("k", ctypes.c_int),
        ("static_scale", ctypes.c_float),
    )


@functools.cache
def load(path: str) -> ctypes.CDLL:
    """The library for ``path``, compiled if need be. Its calls release Python's lock by themselves."""
    if path not in supported_paths():
        raise EngineError(f"this processor has no {path}; it can do {', '.join(supported_paths())}, and torch")
    try:
        file = build(path)
    except PanguLabError as error:
        if isinstance(error, EngineError):
            raise
        file = build(path, Path(tempfile.mkdtemp(prefix="pangu_lab-")))  # the cache folder cannot be written
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise EngineError(f"{file}: cannot be loaded ({error}); delete it and try again") from None
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.pangu_init.restype = integer
    numbers, outputs = [integer] * 3, [pointer] * 3
    library.pangu_linear.argtypes = (ctypes.POINTER(LinearStruct), pointer, *numbers, *outputs, integer)
    library.pangu_linear.restype = None
    library.pangu_encode.argtypes = [pointer] * 5 + [integer, integer, pointer, integer]
    library.pangu_encode.restype = None
    if not library.pangu_init():
        raise EngineError(f"the system does not let this process use {path}")
    return library


@functools.cache
def _choose(wanted: str) -> tuple[str, str]:
    """The path for ``$PANGU_LAB_ENGINE``, and the reason if it is torch."""
    if wanted == "torch":
        return "torch", "PANGU_LAB_ENGINE says torch"
    if wanted and wanted not in PATHS:
        raise EngineError(f"PANGU_LAB_ENGINE is {wanted!r}; it must be one of {', '.join(PATHS)}, torch")
    if wanted:
        load(wanted)
        return wanted, ""
    reason = ""
    for path in supported_paths():
        try:
            load(path)
            return path, ""
        except EngineError as error:
            reason = str(error)
    print(f"int8: PyTorch's own operator instead of the compiled engine: {reason}", file=sys.stderr)
    return "torch", reason


def engine_path() -> str:
    """The path in use: one of ``PATHS``, or ``torch``."""
    return _choose(os.environ.get("PANGU_LAB_ENGINE", ""))[0]


def available() -> tuple[bool, str]:
    """Whether compiled code is used here, and if not, why."""
    path, reason = _choose(os.environ.get("PANGU_LAB_ENGINE", ""))
    return path != "torch", reason


# --- a layer ----------------------------------------------------------------------------------------


def pad_to(x: Tensor, multiple: int) -> Tensor:
    """x (…, n) with zeros behind it, so that n becomes a multiple of ``multiple``."""
    return functional.pad(x, (0, -x.shape[-1] % multiple)) if x.shape[-1] % multiple else x


def pack(weight: Tensor) -> Tensor:
    """weight (N, K) in the order of engine_dot.h: [N/16][K/4][16][4], N padded to 32 and K to 64."""
    padded = pad_to(pad_to(weight, 64).T.contiguous(), 32).T
    n, k = padded.shape
    return padded.reshape(n // 16, 16, k // 4, 4).transpose(1, 2).contiguous()


def _torch_sums(q: Tensor, weight: Tensor) -> Tensor:
    """The same integers by PyTorch's own int8 operator."""
    return torch._int_mm(q.contiguous(), weight.T)


class PackedLinear:
    """A linear layer with int8 weights, ready to be called.

    Parameters
    ----------
    weight_int8, weight_scale, bias
        (N, K) int8 in [-127, 127], (N,) and (N,) fp32; no bias if None.
    activation_scale
        One scale for all activations (static quantization); each row its own if None.
    path
        One of ``PATHS`` or ``torch``; the best there is if None.
    """

    def __init__(
        self,
        weight_int8: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        activation_scale: float | None = None,
        path: str | None = None,
    ) -> None:
        if weight_int8.dtype != torch.int8 or weight_int8.dim() != 2:
            raise EngineError(
                f"the weight is {weight_int8.dtype} of shape {tuple(weight_int8.shape)}; give int8 of (outputs, inputs)"
            )
        self.path = path or engine_path()
        self.n, self.k = weight_int8.shape
        if self.k > 65_536:
            raise EngineError(f"{self.k} inputs can overflow a sum in int32; split the layer")
        weight_int8 = weight_int8.detach().cpu()
        self.scale = pad_to(weight_scale.detach().cpu().float(), 32).contiguous()
        self.bias = pad_to(bias.detach().cpu().float() if bias is not None else torch.zeros(self.n), 32).contiguous()
        self.activation_scale = activation_scale
        if self.path == "torch":
            self.weight = weight_int8.contiguous()
            return
        self.weight = pack(weight_int8)
        self.start = pad_to(-128 * weight_int8.sum(dim=1, dtype=torch.int32), 32).contiguous()

    def struct(self, activation_scale: float | None = None) -> LinearStruct:
        """What engine.cpp calls a ``Linear``; valid as long as this object lives."""
        static = self.activation_scale if activation_scale is None else activation_scale
        pointers = (tensor.data_ptr() for tensor in (self.weight, self.start, self.scale, self.bias))
        return LinearStruct(*pointers, self.n, self.k, static or 0.0)

    def __call__(
        self,
        x: Tensor,
        *,
        gelu: bool = False,
        residual: Tensor | None = None,
        activation_scale: float | None = None,
    ) -> Tensor:
        """x (…, K) and residual (…, N) to (…, N) in fp32. A row of x that is not finite gives a row of NaN."""
        return self.run(x, gelu, residual, activation_scale)[0]

    def run(
        self, x: Tensor, gelu: bool, residual: Tensor | None, activation_scale: float | None, want_sums: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """``__call__``, and the int32 sums (…, N) if they are wanted."""
        if x.shape[-1] != self.k:
            raise EngineError(f"the input has {x.shape[-1]} columns and the layer {self.k} inputs; they must be equal")
        shape = (*x.shape[:-1], self.n)
        if residual is not None and residual.shape != shape:
            raise EngineError(f"the residual has shape {tuple(residual.shape)}; the output has {shape}")
        if self.path == "torch":
            static = self.activation_scale if activation_scale is None else activation_scale
            weights = (self.weight, self.scale[: self.n], self.bias[: self.n])
            y = reference_linear(x, *weights, gelu=gelu, residual=residual, activation_scale=static, sums=_torch_sums)
            return y, None
        rows = pad_to(x.detach().reshape(-1, self.k).float(), 16).contiguous()
        y = torch.empty(len(rows), len(self.scale))
        sums = torch.empty(y.shape, dtype=torch.int32) if want_sums else None
        extra = None if residual is None else pad_to(residual.detach().reshape(-1, self.n).float(), 32).contiguous()
        load(self.path).pangu_linear(
            ctypes.byref(self.struct(activation_scale)),
            rows.data_ptr(),
            rows.shape[1],
            len(rows),
            ACTIVATIONS["gelu" if gelu else None],
            None if extra is None else extra.data_ptr(),
            y.data_ptr(),
            None if sums is None else sums.data_ptr(),
            torch.get_num_threads(),
        )
        cut = [None if t is None else t[:, : self.n].reshape(shape) for t in (y, sums)]
        assert cut[0] is not None
        return cut[0], cut[1]
