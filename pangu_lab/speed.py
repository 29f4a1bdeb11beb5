"""How fast this machine multiplies matrices and moves memory: the two limits of the roofline.

Both functions report the fastest of many repetitions, because whatever else runs on the machine can only
slow one down. They take a GPU where there is one, else all threads of torch.
"""

import math
import time
from collections.abc import Callable

import torch


def matmul_speed(seconds: float, precision: str = "fp32", size: int = 1024) -> float:
    """FLOP/s of a square matrix product on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8 * size if device == "cuda" else size
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(size, size, dtype=kind, device=device)
    return 2 * size**3 / _fastest(lambda: torch.mm(a, a), seconds)


def memory_bandwidth(seconds: float, size: int = 2**25) -> float:
    """Bytes/s between memory and processor: two arrays read, one written, too large for most caches."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b, out = (torch.ones(size, device=device) for _ in range(3))
    return 3 * a.nbytes / _fastest(lambda: torch.add(a, b, out=out), seconds)


def _fastest(work: Callable[[], object], seconds: float) -> float:
    wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    work()  # the first call prepares threads and kernels
    wait()
    until, best = time.perf_counter() + seconds, math.inf
    while time.perf_counter() < until or best == math.inf:
        began = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - began)
    return best
