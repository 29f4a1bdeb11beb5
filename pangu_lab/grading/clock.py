"""How much longer a batch takes, said only as exactly as it can be known."""

import math
import statistics
import time
from collections.abc import Callable


class TimeLeft:
    """Time left, from the pace so far and from how much submissions have differed.

    The pace is wall time per finished submission, so parallel jobs and starts of workers are in it. The range is two
    standard deviations of a sum of ``left`` further submissions whose mean is itself known from ``done`` only:
    s · √(left + left² / done). It presumes that what is to come is like what has been.
    """

    def __init__(self, total: int, jobs: int = 1, now: Callable[[], float] = time.monotonic) -> None:
        self._total, self._jobs, self._now = total, jobs, now
        self._started = now()
        self._seconds: list[float] = []

    def after(self, seconds: float) -> str:
        """A submission took ``seconds``: what to tell of the time left; nothing while it is too early to say."""
        self._seconds.append(seconds)
        low, high = self.range()
        if high == 0:
            return f"all in {shown(self._now() - self._started)}"
        if math.isinf(high):
            return ""
        one, other = shown(low), shown(high)
        if one == other:
            return f"about {one} left"
        short = one.split()[0] if one.split()[1] == other.split()[1] else one
        return f"{short}–{other} left"

    def range(self) -> tuple[float, float]:
        """The least and the most seconds that are left, or (0, inf) while nobody can know."""
        done = len(self._seconds)
        left = self._total - done
        if left <= 0:
            return 0.0, 0.0
        if done < max(3, self._jobs + 1):
            return 0.0, math.inf
        pace = (self._now() - self._started) / done
        mean = statistics.fmean(self._seconds)
        spread = pace * (statistics.stdev(self._seconds) / mean if mean else 0.0)
        half = 2 * spread * math.sqrt(left + left**2 / done)
        return max(left * pace - half, 0.0), left * pace + half


def shown(seconds: float) -> str:
    """Seconds, minutes or hours, in two digits at most."""
    for unit, size in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 90 * size or unit == "h":
            count = seconds / size
            return f"{round(count, 1) if unit == 'h' and count < 10 else round(count)} {unit}"
    raise AssertionError("hours are the last unit")
