"""Compile the kernels for GPUs that aren't there, and tell what each takes.

    python -m glassformer_kernels.aot --target sm_90,gfx942 --dtype bf16 --kernel attention

prints a row for each kernel, configuration and target: registers for each thread, bytes spilled for
want of them, shared memory, how matrices are multiplied, seconds to compile. It ends with 1 when a
kernel doesn't compile, needs more memory than the target has, or, where the sample is guarded
(`aot_compile.Sample`), spills or multiplies matrices without Hopper's wgmma.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glassformer_kernels import launch
from glassformer_kernels.aot_compile import (
    DTYPES,
    Outcome,
    Sample,
    Task,
    compile_all,
    load_samples,
    record,
    source_of,
)
from glassformer_kernels.aot_report import Row, describe, problem_of, report
from glassformer_kernels.targets import TARGETS

DEFAULT_TARGETS = "sm_80,sm_90,sm_100,gfx942"


@dataclass(frozen=True)
class Planned:
    """A compilation to come, and what its row will show; `error` if it can't even be tried."""

    task: Task
    kernel: str
    sample: str
    guarded: bool
    config: str = ""
    error: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    if launch.INTERPRETED:
        return _usage(
            "TRITON_INTERPRET is set, so kernels run in Python and can't be compiled; unset it"
        )
    samples = load_samples(options.samples)
    planned = plan(samples, options.target, options.dtype, options.kernel, options.all_configs)
    if not planned:
        return _usage(f"no kernel's name and no sample's matches {options.kernel!r}")
    start = time.perf_counter()
    rows = [row_of(entry, Outcome(error=entry.error)) for entry in planned if entry.error]
    waiting = {entry.task: entry for entry in planned if not entry.error}
    outcomes = compile_all(waiting, options.samples, options.jobs, options.patience)
    for done, (task, outcome) in enumerate(outcomes, 1):
        rows.append(row_of(waiting[task], outcome))
        print(f"[{done}/{len(waiting)}] {describe(rows[-1])}", file=sys.stderr, flush=True)
    order = {name: index for index, name in enumerate(TARGETS)}
    rows.sort(key=lambda row: (row.kernel, order[row.target], row.sample, row.dtype, row.config))
    report(rows, options.json, time.perf_counter() - start)
    return int(any(row.problem for row in rows))


def plan(
    samples: Sequence[Sample],
    targets: Sequence[str],
    dtypes: Sequence[str],
    pattern: str,
    all_configs: bool,
) -> list[Planned]:
    """Return what is to be compiled, each specialisation of a kernel once.

    One that several samples share goes by the first's name, and is guarded if any of them is.
    """
    planned: dict[Any, Planned] = {}
    for index, sample in enumerate(samples):
        for target in targets:
            for dtype in (name for name in dtypes if name in sample.dtypes):
                for key, entry in _plan_sample(index, sample, dtype, target, all_configs):
                    if re.search(pattern, entry.kernel) or re.search(pattern, sample.name):
                        first = planned.setdefault(key, entry)
                        guarded = first.guarded or entry.guarded
                        planned[key] = replace(first, guarded=guarded)
    return list(planned.values())


def _plan_sample(
    index: int, sample: Sample, dtype: str, target: str, all_configs: bool
) -> Iterator[tuple[Any, Planned]]:
    """Yield a sample's compilations, each with what tells it from others.

    The call can fail, and so can the binding of a launch's arguments: problems of the kernels,
    which are planned as such.
    """
    guarded = sample.guarded and dtype != "fp32"
    task = Task(index, dtype, target, -1, -1)
    try:
        launches = record(sample, dtype, target)
    except Exception as error:
        yield task, Planned(task, "the call", sample.name, guarded, error=_words(error))
        return
    for number, made in enumerate(launches):
        kernel = made.kernel.__name__.lstrip("_")
        for choice, (config, _) in enumerate(made.calls if all_configs else made.calls[:1]):
            task = Task(index, dtype, target, number, choice)
            entry = Planned(task, kernel, sample.name, guarded, str(config))
            try:
                source, options = source_of(made, choice, target)
                yield (source.hash(), target, str(options)), entry
            except Exception as error:
                yield task, replace(entry, error=_words(error))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def row_of(planned: Planned, outcome: Outcome) -> Row:
    """Return the row of a finished compilation."""
    taken, task = outcome.resources, planned.task
    return Row(
        kernel=planned.kernel,
        sample=planned.sample,
        dtype=task.dtype,
        config=planned.config,
        target=task.target,
        registers=taken.registers if taken else None,
        spills=taken.spills if taken else None,
        shared_memory=outcome.shared_memory if taken else None,
        shared_memory_limit=TARGETS[task.target].shared_memory,
        matrix=taken.matrix if taken else "",
        serialized=bool(taken and taken.serialized),
        seconds=round(outcome.seconds, 3),
        problem=problem_of(outcome, task.target, planned.guarded),
        error=outcome.error,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m glassformer_kernels.aot",
        description="Compile the kernels for GPUs that aren't there, and tell what each takes.",
    )
    add = parser.add_argument
    add(
        "--target",
        type=_names(TARGETS),
        default=DEFAULT_TARGETS,
        help=f"from {_list(TARGETS)} (default: {DEFAULT_TARGETS})",
    )
    add(
        "--dtype",
        type=_names(DTYPES),
        default="bf16",
        help=f"from {_list(DTYPES)} (default: %(default)s)",
    )
    add(
        "--kernel",
        type=_pattern,
        default="",
        help="a regular expression found in the kernel's or the sample's name (default: all)",
    )
    add(
        "--all-configs",
        action="store_true",
        help="also those that only tuning would take (default: the first of each kernel)",
    )
    add(
        "--json",
        metavar="FILE",
        help="write the report there; - prints it instead of the table (default: the table alone)",
    )
    add(
        "--jobs",
        type=_count,
        default=_cores(),
        help="processes (default: one for each core, here %(default)s)",
    )
    add(
        "--patience",
        type=_count,
        default=600,
        help="seconds until a compilation is given up (default: %(default)s)",
    )
    add(
        "--samples",
        default="glassformer_kernels.aot_samples",
        help="module with SAMPLES (default: %(default)s)",
    )
    return parser


def _names(known: dict[str, Any]) -> Any:
    def names(text: str) -> list[str]:
        given = text.split(",")
        for name in given:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is unknown; known are {_list(known)}")
        return list(dict.fromkeys(given))

    return names


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _list(names: Any) -> str:
    return ", ".join(names)


def _usage(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
