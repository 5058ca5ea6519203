"""The report of the compilations made ahead of time: what is wrong, as a table, as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton

from glassformer_kernels.aot_compile import Outcome
from glassformer_kernels.targets import TARGETS

_TENSOR_MEMORY = 512  # columns that a block can have on Blackwell (PTX ISA, "Tensor Memory")
_FORMAT = 1


@dataclass(frozen=True)
class Row:
    """A row of the report. Memory is in bytes; `problem` is empty where all is well."""

    kernel: str
    sample: str
    dtype: str
    config: str
    target: str
    registers: int | None
    spills: int | None
    shared_memory: int | None
    shared_memory_limit: int
    matrix: str
    serialized: bool
    seconds: float
    problem: str
    error: str = ""


def problem_of(outcome: Outcome, target: str, guarded: bool) -> str:
    """Return in words what is wrong with a compiled kernel, or "" if it may ship."""
    taken = outcome.resources
    if taken is None:
        return "error"
    problems = []
    limit = TARGETS[target].shared_memory
    if outcome.shared_memory > limit:
        problems.append(f"shared memory over {limit}")
    if outcome.tensor_memory > _TENSOR_MEMORY:
        problems.append(f"tensor memory {outcome.tensor_memory} over {_TENSOR_MEMORY} columns")
    if guarded and target == "sm_90":
        if taken.spills:
            problems.append("spills")
        if outcome.has_dot and taken.matrix != "wgmma":
            problems.append("no wgmma")
    return ", ".join(problems)


def describe(row: Row) -> str:
    """Return a row as a line of progress."""
    said = row.problem or "ok"
    return f"{row.target} {row.kernel} · {row.sample} {row.dtype} · {said} {row.seconds:.1f} s"


def report(rows: Sequence[Row], json_file: str | None, seconds: float) -> None:
    """Print the table, what went wrong in full, and the sum; write the JSON if asked to."""
    if json_file:
        text = json.dumps(as_json(rows), indent=1)
        if json_file == "-":
            print(text)
        else:
            with open(json_file, "w") as file:
                file.write(text + "\n")
    if json_file != "-":
        print(table(rows))
    failed: dict[str, list[Row]] = {}
    for row in rows:
        if row.error:
            failed.setdefault(row.error, []).append(row)
    for error, alike in failed.items():
        print("", *map(describe, alike), error, sep="\n", file=sys.stderr)
    wrong = sum(bool(row.problem) for row in rows)
    print(f"{len(rows)} compiled in {seconds:.0f} s, {wrong} with a problem", file=sys.stderr)


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the report as what `--json` writes."""
    return {
        "format": _FORMAT,
        "triton": triton.__version__,
        "torch": torch.__version__,
        "rows": [asdict(row) for row in rows],
    }


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text in aligned columns."""
    lines = [
        ("kernel", "configuration", "target", "registers", "spills (B)", "shared (B)")
        + ("matrix", "compile (s)", "problem")
    ]
    for row in rows:
        counts = (row.registers, row.spills, row.shared_memory)
        lines.append(
            (row.kernel, f"{row.sample} {row.dtype}, {row.config}".rstrip(", "), row.target)
            + tuple("" if count is None else str(count) for count in counts)
            + (row.matrix + ", serialized" * row.serialized, f"{row.seconds:.2f}", row.problem)
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = {3, 4, 5, 7}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
