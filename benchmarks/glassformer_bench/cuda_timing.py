"""Clocks of a GPU: events around each call, or around replays of a captured graph.

Calls are queued without waiting for them. Before each, the GPU is made to wait for half a
millisecond while Python gets ahead: else the first event would pass at once, and the launches that
follow it would be part of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from glassformer_bench.samples import is_enough
from glassformer_bench.timing import Settings, Step, flusher

_clock = time.perf_counter
_Event = torch.cuda.Event
_elapsed = torch.cuda.Event.elapsed_time
_synchronize = torch.cuda.synchronize
_QUEUE = 20  # calls between two waits for the GPU
_HEAD_START = 1_000_000  # cycles, about half a millisecond


def _between(settings: Settings) -> Callable[[], None]:
    """Return what is queued before each call: a flush of L2 where it is to be cold, and a wait."""
    flush = flusher("cuda") if settings.l2 == "cold" else None

    def wait() -> None:
        if flush is not None:
            flush()
        torch.cuda._sleep(_HEAD_START)

    return wait


def events(step: Step, settings: Settings) -> tuple[list[float], Any]:
    """Time each call between two events on the current stream."""
    between = _between(settings)
    _warm_up(step, settings)
    samples: list[float] = []
    last: Any = None
    count = 0
    begin = _clock()
    while True:
        pairs = []
        for _ in range(_QUEUE):
            step.refresh(count)
            prepared = step.setup()
            last = None
            between()
            start, end = _Event(enable_timing=True), _Event(enable_timing=True)
            start.record()
            last = step.run(prepared)
            end.record()
            pairs.append((start, end))
            count += 1
        _synchronize()
        samples.extend(_elapsed(start, end) for start, end in pairs)
        if is_enough(samples, (_clock() - begin) * 1e3, settings.rep_ms, settings.max_noise):
            return samples, last


def graph(step: Step, settings: Settings) -> tuple[list[float], Any]:
    """Time replays of a graph captured once: no launch from Python is in the time."""
    _warm_up(step, settings)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # capture wants its libraries warm on a stream of its own
        for _ in range(3):
            step.run(step.setup())
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        last = step.run(step.setup())
    return events(Step(step.refresh, lambda: None, lambda _: _replay(captured, last)), settings)


def _replay(captured: torch.cuda.CUDAGraph, result: Any) -> Any:
    captured.replay()
    return result


def _warm_up(step: Step, settings: Settings) -> None:
    until = _clock() + settings.warmup_ms / 1e3
    count = 0
    while _clock() < until or count < 3:
        step.refresh(count)
        step.run(step.setup())
        _synchronize()
        count += 1


def stream_faults(
    refill: Callable[[], None], call: Callable[[], torch.Tensor], cycles: int = 50_000_000
) -> list[str]:
    """Return whether a kernel works beside the current stream, in words.

    The current stream is kept busy for a while and only then gets the new inputs: a kernel on
    another stream that doesn't wait reads the old ones. Its result is copied on the current stream
    at once: one that isn't waited for is not there yet. Both differ from what is there in the end.
    """
    _synchronize()
    torch.cuda._sleep(cycles)
    refill()
    out = call()
    early = out.detach().clone()  # queued on the current stream
    _synchronize()
    if not torch.equal(early, out.detach()):
        return ["the result changed after the current stream had finished: it works on another one"]
    again = call().detach()
    _synchronize()
    scale = float(again.abs().max()) + 1e-30
    if float((again - early).abs().max()) > 1e-1 * scale:
        return ["with its inputs still being written it gave another result: it doesn't wait"]
    return []
