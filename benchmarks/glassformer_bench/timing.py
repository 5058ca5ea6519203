"""Clocks. Every timed call follows fresh input and, where the cache is to be cold, a flush of it.

The functions of the clock are taken when this module is imported, before any plugged-in kernel is:
a kernel that replaces them later is found out, and gains nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch

from glassformer_bench.samples import is_enough

_clock = time.perf_counter
_synchronize = torch.cuda.synchronize
_PATCHABLE = (
    (time, "perf_counter"),
    (time, "perf_counter_ns"),
    (time, "time"),
    (time, "monotonic"),
    (torch.cuda, "synchronize"),
    (torch.cuda, "Event"),
    (torch.cuda.Event, "elapsed_time"),
    (torch.cuda.Event, "record"),
    (torch.cuda, "current_stream"),
)
_ORIGINAL = [getattr(owner, name) for owner, name in _PATCHABLE]


@dataclass(frozen=True)
class Settings:
    """How long to measure, with what, and with the cache in which state."""

    timer: str = "auto"  # auto, event, graph, wall
    l2: str = "hot"  # cold, hot
    warmup_ms: float = 100.0
    rep_ms: float = 500.0
    max_noise: float | None = None


@dataclass
class Step:
    """What a timer calls: `refresh` and `setup` outside the clock, `run` inside.

    `refresh(i)` changes the inputs in place; `setup()` prepares what `run` takes (a forward pass,
    where backward alone is timed); `run(prepared)` is the work.
    """

    refresh: Callable[[int], None]
    setup: Callable[[], Any]
    run: Callable[[Any], Any]


class Timer(Protocol):
    """Returns samples in milliseconds and the result of the last call that was timed."""

    def __call__(self, step: Step, settings: Settings) -> tuple[list[float], Any]: ...  # noqa: D102


def replaced_clocks() -> list[str]:
    """Return the names of timing functions that are no longer the ones of the beginning."""
    return [
        f"{getattr(owner, '__module__', '') or owner.__name__}.{name}".removeprefix(".")
        for (owner, name), original in zip(_PATCHABLE, _ORIGINAL, strict=True)
        if getattr(owner, name) is not original
    ]


def restore_clocks() -> None:
    """Put the timing functions of the beginning back."""
    for (owner, name), original in zip(_PATCHABLE, _ORIGINAL, strict=True):
        setattr(owner, name, original)


def chosen(timer: str, device: str) -> str:
    """Return the timer that `auto` stands for: wall on the CPU, event on a GPU."""
    if timer != "auto":
        return timer
    return "event" if device == "cuda" else "wall"


def timer_faults(timer: str, device: str, mode: str) -> list[str]:
    """Return why a timer can't serve, in words."""
    if device == "cpu" and timer != "wall":
        return [f"the {timer} timer is a GPU's; on the CPU there is wall"]
    if timer == "graph" and mode == "bwd":
        return ["a graph of the backward pass alone can't be captured; use --mode fwd_bwd"]
    return []


def make_timer(timer: str, device: str) -> Timer:
    """Return the timer of that name (not auto)."""
    if timer == "wall":
        return partial(wall, device=device)
    from glassformer_bench import cuda_timing

    return cuda_timing.events if timer == "event" else cuda_timing.graph


def wall(step: Step, settings: Settings, device: str = "cpu") -> tuple[list[float], Any]:
    """Time calls by the wall clock; on a GPU each is waited for."""
    wait = _synchronize if device == "cuda" else None
    flush = flusher(device) if settings.l2 == "cold" else None
    samples: list[float] = []
    last = None
    count = 0
    begin = _clock()
    warm_until = begin + settings.warmup_ms / 1e3
    measuring = 0.0
    while True:
        step.refresh(count)
        prepared = step.setup()
        last = None  # the memory of the last result is free again, as it would be in use
        if flush:
            flush()
        if wait:
            wait()
        start = _clock()
        last = step.run(prepared)
        if wait:
            wait()
        end = _clock()
        count += 1
        if not measuring:
            # the call that ends the warm-up isn't counted either
            measuring = end if end >= warm_until else 0.0
            continue
        samples.append((end - start) * 1e3)
        if is_enough(samples, (end - measuring) * 1e3, settings.rep_ms, settings.max_noise):
            return samples, last


@lru_cache(maxsize=1)
def cpu_cache_bytes() -> int:
    """Return the size of the largest CPU cache, 32 MiB where the system doesn't tell."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        factor = {"K": 1024, "M": 1024**2, "G": 1024**3}.get(text[-1:], 1)
        digits = text.rstrip("KMG")
        sizes.append(int(digits) * factor if digits.isdigit() else 0)
    return max(sizes) or 32 * 1024**2


def cache_bytes(device: str) -> int:
    """Return the size of the last cache before memory: a GPU's L2, a CPU's L3."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    return cpu_cache_bytes()


def flusher(device: str) -> Callable[[], Any]:
    """Return a function that writes twice the size of the last cache."""
    scratch = torch.empty(2 * cache_bytes(device), dtype=torch.uint8, device=device)
    return lambda: scratch.zero_()
