"""What this device can do, measured in the same run: a large product, a large copy, a large read.

"% of the ceiling" is of these, not of a data sheet. A time below the floor they make is suspicious;
before anyone is accused the ceilings are measured again, since another process may have slowed the
first measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from glassformer_bench.counting import Work
from glassformer_bench.disturbance import Neighbours
from glassformer_bench.inputs import TORCH_DTYPES
from glassformer_bench.timing import cache_bytes

_clock = time.perf_counter
SLACK = 0.9  # a time under this share of the floor is suspicious: ceilings have noise, too
_PRODUCT_SIZE = {"cpu": 1536, "cuda": 8192}
_COPY_BYTES = {"cpu": 128 * 1024**2, "cuda": 1024**3}
_REPETITIONS = {"cpu": 5, "cuda": 20}


@dataclass
class Ceilings:
    """FLOP/s by dtype, and bytes/s of a copy (read and write counted) and of a read.

    `is_disturbed`: other processes had the cores meanwhile, so that the rates may be too low.
    """

    device: str
    flops: dict[str, float] = field(default_factory=dict)
    copy: float = 0.0
    read: float = 0.0
    is_disturbed: bool = False

    def measure(self, dtypes: list[str]) -> None:
        """Measure, and keep the better of this and what was known."""
        with Neighbours() as neighbours:
            rates = {dtype: _product_rate(self.device, dtype) for dtype in dtypes}
            copy, read = _bandwidth(self.device)
        self.is_disturbed = self.device == "cpu" and bool(neighbours.faults)
        for dtype, rate in rates.items():
            self.flops[dtype] = max(self.flops.get(dtype, 0.0), rate)
        self.copy, self.read = max(self.copy, copy), max(self.read, read)

    @property
    def bandwidth(self) -> float:
        """The better of copy and read."""
        return max(self.copy, self.read)

    def floor_ms(self, work: Work, dtype: str, is_cold: bool) -> float:
        """Return the time below which the work can't be done on this device.

        Bytes count only where they can't have come from the cache: the operands if it is cold,
        everything if it is much more than the cache holds.
        """
        if work.bytes > 2 * cache_bytes(self.device):
            moved = work.bytes
        else:
            moved = work.bytes_read if is_cold else 0.0
        return 1e3 * max(work.least_flops / self.flops[dtype], moved / self.bandwidth)

    def share(self, work: Work, dtype: str, is_product: bool, ms: float) -> float:
        """Return the share of the ceiling that a time reaches: of FLOP/s or of bytes/s, the larger.

        FLOPs that aren't those of products have no ceiling here.
        """
        compute = work.flops / self.flops[dtype] if is_product else 0.0
        return 1e3 * max(compute, work.bytes / self.bandwidth) / ms

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Ceilings:
        """Undo `to_dict`."""
        return cls(**fields)


def _product_rate(device: str, dtype: str) -> float:
    n = _PRODUCT_SIZE[device]
    a, b = (torch.randn(n, n, device=device).to(TORCH_DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(a)
    seconds = [_best(device, lambda: torch.matmul(a, b, out=out))]
    if device == "cpu" and dtype == "fp32":  # NumPy brings a BLAS of its own
        x, y, z = a.numpy(), b.numpy(), out.numpy()
        seconds.append(_best(device, lambda: np.matmul(x, y, out=z)))
    return 2.0 * n**3 / min(seconds)


def _bandwidth(device: str) -> tuple[float, float]:
    size = max(_COPY_BYTES[device], 4 * cache_bytes(device))
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    copy = 2.0 * size / _best(device, lambda: target.copy_(source))
    return copy, size / _best(device, source.sum)


def _best(device: str, call: Callable[[], Any]) -> float:
    call()
    if device == "cuda":
        return _best_event(call)
    times = []
    for _ in range(_REPETITIONS[device]):
        start = _clock()
        call()
        times.append(_clock() - start)
    return min(times)


def _best_event(call: Callable[[], Any]) -> float:
    times: list[float] = []
    for _ in range(_REPETITIONS["cuda"]):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return min(times)
