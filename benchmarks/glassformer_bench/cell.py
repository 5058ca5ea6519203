"""One provider on one problem: checked, timed, checked again, and written down as a row."""

from __future__ import annotations

import warnings
from typing import Any

from glassformer_bench.ceilings import SLACK, Ceilings
from glassformer_bench.checking import Oracle
from glassformer_bench.counting import count
from glassformer_bench.disturbance import Neighbours
from glassformer_bench.inputs import Source
from glassformer_bench.memory import peak_bytes
from glassformer_bench.problem import Problem
from glassformer_bench.providers.base import Bound, Provider
from glassformer_bench.row import Row
from glassformer_bench.samples import summarise
from glassformer_bench.timing import (
    Settings,
    Step,
    chosen,
    make_timer,
    replaced_clocks,
    restore_clocks,
    timer_faults,
)
from glassformer_bench.verification import Verdict, check_after, check_timed, compute, verify

_FIRST, _SECOND, _TIMED = 0, 1, 2  # streams of random numbers, one a phase


def oracles(problem: Problem) -> tuple[Oracle, Oracle]:
    """Return two sets of inputs with their right answers."""
    return (
        Oracle(problem, Source(problem, _FIRST).inputs()),
        Oracle(problem, Source(problem, _SECOND).inputs()),
    )


def measure(
    problem: Problem,
    provider: Provider,
    settings: Settings,
    ceilings: Ceilings | None,
    answers: tuple[Oracle, Oracle] | None,
) -> Row:
    """Check and time; whatever the provider does, a row comes back.

    Without `ceilings` nothing is timed, without `answers` nothing is checked.
    """
    timer = chosen(settings.timer, problem.device)
    row = Row(provider.name, problem.to_dict(), timer, settings.l2)
    reasons = timer_faults(timer, problem.device, problem.mode) + provider.reasons(problem)
    if reasons:
        return row.fail("unsupported", reasons)
    row = _attempted(problem, provider, settings, ceilings, answers, row)
    replaced = replaced_clocks()
    restore_clocks()  # they gained nothing, but what comes next may use them
    if replaced:
        row.reasons.append(f"it replaced {', '.join(replaced)}")
        row.status = "suspicious" if row.status == "ok" else row.status
    return row


def _attempted(
    problem: Problem,
    provider: Provider,
    settings: Settings,
    ceilings: Ceilings | None,
    answers: tuple[Oracle, Oracle] | None,
    row: Row,
) -> Row:
    """Turn what the provider raises into a row."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return _measured(problem, provider, settings, ceilings, answers, row)
    except NotImplementedError as error:
        return row.fail("unsupported", [str(error) or "not implemented"])
    except Exception as error:
        if is_out_of_memory(error):
            return row.fail("oom", [_first_line(error)])
        said = [_first_line(w.message) for w in caught if "sdp" in str(w.filename) + str(w.message)]
        return row.fail("unsupported", [f"it raised {_describe(error)}", *dict.fromkeys(said)])


def _measured(
    problem: Problem,
    provider: Provider,
    settings: Settings,
    ceilings: Ceilings | None,
    answers: tuple[Oracle, Oracle] | None,
    row: Row,
) -> Row:
    verdict = Verdict()
    if answers is not None:
        verdict = verify(problem, provider, *answers)
        row.note_errors(verdict.errors)
        if verdict.faults:
            return row.fail("wrong", verdict.faults)
    if ceilings is None:
        return row
    source = Source(problem, _TIMED)
    inputs = source.inputs()
    bound = provider.bind(problem, inputs)
    step = make_step(problem, bound, lambda i: source.refresh(inputs, i))
    with Neighbours() as neighbours:
        samples, last = make_timer(row.timer, problem.device)(step, settings)
    row.other_cores = neighbours.cores
    row.kernel = bound.kernel()
    if answers is not None:
        check_timed(problem, inputs, bound.results(*last), verdict)
        check_after(problem, bound, inputs, verdict)
        row.note_errors(verdict.errors)
    del last
    row.peak_bytes = peak_bytes(problem.device, lambda: compute(problem, bound))
    if verdict.faults:
        return row.fail("wrong", verdict.faults)
    _write_down(row, problem, samples, ceilings)
    if settings.max_noise is not None and (row.noise or 0.0) > settings.max_noise:
        row.reasons.append(f"noisy: {row.noise:.0%} is more than {settings.max_noise:.0%}")
    if problem.device == "cpu":
        row.reasons += neighbours.faults
    if answers is None:
        row.reasons.append("unchecked")
    return row


def make_step(problem: Problem, bound: Bound, refresh: Any) -> Step:
    """Return what a timer calls in the problem's mode; `run` returns the result and gradients."""
    if problem.mode == "fwd":
        return Step(refresh, lambda: None, lambda _: (bound.forward(), ()))
    if problem.mode == "bwd":
        return Step(refresh, bound.forward, lambda out: (out, bound.backward(out)))

    def both(_: Any) -> tuple[Any, tuple[Any, ...]]:
        out = bound.forward()
        return out, bound.backward(out)

    return Step(refresh, lambda: None, both)


def _write_down(row: Row, problem: Problem, samples: list[float], ceilings: Ceilings) -> None:
    work, summary = count(problem), summarise(samples)
    row.samples_ms = [round(x, 6) for x in samples]
    row.p10, row.p50, row.p90 = summary.p10, summary.p50, summary.p90
    row.n, row.noise = summary.n, summary.noise
    row.tflops = work.flops / summary.p50 / 1e9
    row.gbps = work.bytes / summary.p50 / 1e6
    row.intensity = work.intensity
    is_cold = row.l2 == "cold"
    row.floor_ms = ceilings.floor_ms(work, problem.dtype, is_cold)
    if summary.p50 < SLACK * row.floor_ms:
        ceilings.measure([problem.dtype])  # something may have slowed the first measurement
        row.floor_ms = ceilings.floor_ms(work, problem.dtype, is_cold)
    if summary.p50 < SLACK * row.floor_ms:
        told = (
            f"{summary.p50:.4g} ms is below the {row.floor_ms:.4g} ms that the work takes at the "
        )
        if ceilings.is_disturbed:  # then it is the ceiling that is in doubt
            row.reasons.append(
                told + "rates measured in this run, when other processes had the cores"
            )
        else:
            row.status = "suspicious"
            row.reasons.append(told + "rates measured in this run")
    row.share = ceilings.share(work, problem.dtype, problem.is_attention, summary.p50)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, on the GPU or the host."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Any) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300]
