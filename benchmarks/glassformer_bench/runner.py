"""Every provider on every problem, with progress, and with the finished rows kept on Ctrl-C."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import glassformer as gf
from glassformer_bench.ceilings import Ceilings
from glassformer_bench.cell import is_out_of_memory, measure, oracles
from glassformer_bench.checking import Oracle
from glassformer_bench.isolation import measure_apart
from glassformer_bench.problem import Problem
from glassformer_bench.providers import Provider
from glassformer_bench.row import Row
from glassformer_bench.timing import Settings, chosen

_clock = time.monotonic


@dataclass
class Plan:
    """What to run.

    Attributes:
        l2: states of the cache, each of which makes rows of its own.
        is_timed: False to check alone.
        is_checked: False to time alone.
        is_isolated: every row in a process of its own; so it is where there is a timeout.
        kernels: the `--kernel` arguments, for processes of their own.
        command: (row) -> the command that reproduces it.
    """

    problems: Sequence[Problem]
    providers: Sequence[Provider]
    settings: Settings
    l2: Sequence[str]
    device: str
    threads: int
    baseline: str | None = None
    is_timed: bool = True
    is_checked: bool = True
    is_isolated: bool = False
    timeout: float | None = None
    kernels: Sequence[str] = ()
    command: Callable[[Row], str] = field(default=lambda row: "")
    is_quiet: bool = False


@dataclass
class Outcome:
    """The rows, the ceilings they were held against, and whether all of the plan was done."""

    rows: list[Row]
    ceilings: Ceilings | None
    is_interrupted: bool = False


def run(plan: Plan) -> Outcome:
    """Run the plan. Ctrl-C ends it early, with the rows that are finished."""
    set_threads(plan.threads)
    outcome = Outcome([], Ceilings(plan.device) if plan.is_timed else None)
    cells = [
        (p, l2, provider) for p in plan.problems for l2 in plan.l2 for provider in plan.providers
    ]
    progress = Progress(len(cells), plan.is_quiet)
    try:
        if outcome.ceilings is not None:
            progress.say("measuring the ceilings: a large product, a large copy")
            outcome.ceilings.measure(sorted({p.dtype for p in plan.problems}))
        answers: _Answers = _Answers()
        for problem, l2, provider in cells:
            progress.begin(f"{provider.name}: {problem.label()}")
            row = _row(plan, problem, l2, provider, outcome.ceilings, answers)
            row.command = plan.command(row)
            outcome.rows.append(row)
            progress.end(row)
    except KeyboardInterrupt:
        outcome.is_interrupted = True
        progress.say(f"interrupted: {len(outcome.rows)} of {len(cells)} rows are finished")
    if plan.baseline is not None:
        compare_with(outcome.rows, plan.baseline)
    return outcome


def _row(
    plan: Plan,
    problem: Problem,
    l2: str,
    provider: Provider,
    ceilings: Ceilings | None,
    answers: _Answers,
) -> Row:
    settings = replace(plan.settings, l2=l2)
    reasons = provider.reasons(problem)
    if reasons:  # known without any work
        timer = chosen(settings.timer, problem.device)
        return Row(provider.name, problem.to_dict(), timer, l2).fail("unsupported", reasons)
    if plan.is_isolated or plan.timeout is not None:
        return measure_apart(
            problem,
            provider.name,
            plan.kernels,
            settings,
            ceilings,
            plan.is_checked,
            plan.threads,
            plan.timeout,
        )
    try:
        found = answers.of(problem) if plan.is_checked else None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        timer = chosen(settings.timer, problem.device)
        row = Row(provider.name, problem.to_dict(), timer, l2)
        return row.fail("oom", [f"no memory for the float64 answer: {error}"])
    row = measure(problem, provider, settings, ceilings, found)
    if problem.device == "cuda":
        torch.cuda.empty_cache()  # what one provider keeps isn't the next one's shortage
    return row


class _Answers:
    """The right answers to the problem at hand, computed once for all providers."""

    def __init__(self) -> None:
        self.problem: Problem | None = None
        self.found: tuple[Oracle, Oracle] | None = None

    def of(self, problem: Problem) -> tuple[Oracle, Oracle]:
        if self.found is None or self.problem != problem:
            self.found = None  # before the next are made: both may not fit
            self.found, self.problem = oracles(problem), problem
        return self.found


def compare_with(rows: Sequence[Row], baseline: str) -> None:
    """Set every row's speed-up over the baseline's row of the same problem."""
    base = {_cell(row): row.p50 for row in rows if row.provider == baseline and row.status == "ok"}
    for row in rows:
        reference = base.get(_cell(row))
        if reference is not None and row.status == "ok" and row.p50:
            row.speedup = reference / row.p50


def _cell(row: Row) -> tuple[Any, ...]:
    return (*Problem.from_dict(row.problem).key(), row.timer, row.l2)


def set_threads(threads: int) -> None:
    """Fix how many threads PyTorch and the engine compute on."""
    torch.set_num_threads(threads)
    gf.set_num_threads(threads)


class Progress:
    """Which cell of how many, and how long the rest may take, on stderr."""

    def __init__(self, total: int, is_quiet: bool) -> None:
        self.total = total
        self.is_quiet = is_quiet
        self.done = 0
        self.start = _clock()

    def say(self, text: str) -> None:
        """Write a line."""
        if not self.is_quiet:
            print(text, file=sys.stderr, flush=True)

    def begin(self, label: str) -> None:
        """Tell what is measured now."""
        left = ""
        if self.done:
            seconds = (_clock() - self.start) / self.done * (self.total - self.done)
            left = f", about {_duration(seconds)} left"
        self.say(f"[{self.done + 1} of {self.total}{left}] {label}")

    def end(self, row: Row) -> None:
        """Count a row, and tell what went wrong."""
        self.done += 1
        if row.status != "ok":
            self.say(f"    {row.status}: {'; '.join(row.reasons)}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
