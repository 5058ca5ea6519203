"""From raw samples to p10, p50, p90, and how noisy they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SETTLED = 0.005  # relative standard error of the mean at which sampling may stop early
EARLIEST = 0.2  # ... of its time: dozens of short calls fit between two slices of the scheduler
MIN_SAMPLES, ENOUGH_SAMPLES = 5, 30
EXTENSION = 3.0  # a row noisier than wanted may take this many times its time
PATIENCE = 10.0  # ... and one with too few samples this many


@dataclass(frozen=True)
class Summary:
    """Quantiles of the samples in milliseconds, and noise = (p90 - p10) / p50."""

    p10: float
    p50: float
    p90: float
    n: int
    noise: float


def summarise(samples: Sequence[float]) -> Summary:
    """Return the quantiles of samples in milliseconds."""
    p10, p50, p90 = (float(x) for x in np.quantile(samples, [0.1, 0.5, 0.9]))
    return Summary(p10, p50, p90, len(samples), (p90 - p10) / p50 if p50 > 0 else 0.0)


def is_enough(
    samples: Sequence[float], elapsed_ms: float, rep_ms: float, max_noise: float | None
) -> bool:
    """Tell whether to stop sampling.

    Stop when the mean is settled, though not in the first fifth of the time; or when the time is up
    and the noise no larger than wanted; at three times the time in any case, but for calls so slow
    that there are fewer than five samples.
    """
    if len(samples) < MIN_SAMPLES:
        return elapsed_ms > PATIENCE * rep_ms and len(samples) > 0
    if len(samples) >= ENOUGH_SAMPLES and len(samples) % 10 == 0:
        relative = np.std(samples, ddof=1) / np.sqrt(len(samples)) / np.mean(samples)
        settled = relative < SETTLED
        settled = settled and elapsed_ms >= EARLIEST * rep_ms
        if settled and (max_noise is None or summarise(samples).noise <= max_noise):
            return True
    if elapsed_ms < rep_ms:
        return False
    if max_noise is None or elapsed_ms > EXTENSION * rep_ms:
        return True
    return len(samples) % 5 == 0 and summarise(samples).noise <= max_noise
