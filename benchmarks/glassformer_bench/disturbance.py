"""Whether other processes took the cores while a row was timed.

They distort more than they scatter: threads that wait for each other are then timed in whole time
slices of the scheduler, several milliseconds each, with hardly any noise.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

_clock = time.monotonic
_STAT = Path("/proc/stat")
_IDLE_FIELDS = (3, 4)  # idle, waiting for a disk
_FIELDS = 8  # user, nice, system, idle, iowait, irq, softirq, stolen by other virtual machines
SHORTEST = 0.2  # seconds: the system counts in hundredths
_OTHERS, _LEFT = 0.1, 0.5  # cores


class Neighbours:
    """Measures the cores that other processes use: `with Neighbours() as neighbours:`.

    Attributes:
        cores: how many others used on average; None where the system doesn't tell, or where it took
            too short to be told.
        idle: how many nobody used.
    """

    def __init__(self) -> None:
        self.cores: float | None = None
        self.idle = 0.0

    def __enter__(self) -> Neighbours:
        self._before, self._own, self._start = busy_seconds(), own_seconds(), _clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        elapsed, after = _clock() - self._start, busy_seconds()
        if after is None or self._before is None or elapsed < SHORTEST:
            return
        busy = (after - self._before) / elapsed
        self.cores = max(0.0, busy - (own_seconds() - self._own) / elapsed)
        self.idle = max(0.0, (os.cpu_count() or 1) - busy)

    @property
    def faults(self) -> list[str]:
        """Return, in words, that the times were disturbed: others ran, and no core was left."""
        if self.cores is None or self.cores < _OTHERS or self.idle > _LEFT:
            return []
        return [f"disturbed: other processes used {self.cores:.1f} cores and left none idle"]


def busy_seconds() -> float | None:
    """Return the seconds that all cores together were busy so far; None where it can't be told."""
    try:
        line = _STAT.read_text().partition("\n")[0]
    except OSError:
        return None
    ticks = [int(x) for x in line.split()[1 : 1 + _FIELDS]]
    busy = sum(n for i, n in enumerate(ticks) if i not in _IDLE_FIELDS)
    return busy / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Return the seconds that this process computed so far, and its children that have ended."""
    return sum(os.times()[:4])


def load() -> float | None:
    """Return the load average of the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
