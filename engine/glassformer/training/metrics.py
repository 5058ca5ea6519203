"""What training measures of itself: the log file, throughput, memory."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from glassformer.durable import write_file


class LogFile:
    """A JSONL file: one object a line, readable while training goes on.

    Args:
        path: the file.
        resume_step: continue a log: keep its rows up to this step; None starts a new one.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [] if resume_step is None else read_log(path)
        rows = [row for row in kept if row.get("step", 0) <= (resume_step or 0)]
        write_file(path, "".join(_line(row) for row in rows).encode())

    def write(self, row: dict[str, Any]) -> None:
        """Append a row; values that are not finite become null."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log; a line that a kill cut off is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _line(row: dict[str, Any]) -> str:
    return json.dumps(finite(row), allow_nan=False) + "\n"


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row in JSON's types, None in place of numbers that are not finite."""
    plain = {
        n: value.item() if isinstance(value, np.generic) else value for n, value in row.items()
    }
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in plain.items()
    }


class Meter:
    """Time, tokens and loss of the training steps since the last row of the log."""

    def __init__(self) -> None:
        self.loss = 0.0  # summed over the steps that counted
        self.steps = 0
        self._reset_clock()

    def _reset_clock(self) -> None:
        self._seconds = 0.0
        self._tokens = 0
        self._timed_steps = 0
        self._started = 0.0

    def start(self) -> None:
        """A step begins."""
        self._started = time.perf_counter()

    def stop(self, tokens: int, loss: float | None) -> None:
        """A step ended; `loss` is None if it was skipped."""
        self._seconds += time.perf_counter() - self._started
        self._tokens += tokens
        self._timed_steps += 1
        if loss is not None:
            self.loss += loss
            self.steps += 1

    def row(self, steps_left: int) -> dict[str, Any]:
        """Return the measurements and start over."""
        row: dict[str, Any] = {}
        if self.steps:
            row["loss"] = self.loss / self.steps
        if self._timed_steps and self._seconds > 0:
            step = self._seconds / self._timed_steps
            row["tokens_per_second"] = round(self._tokens / self._seconds, 1)
            row["ms_per_step"] = round(1000 * step, 3)
            row["eta_seconds"] = round(steps_left * step, 1)
        memory = peak_memory()
        if memory is not None:
            row["peak_memory_mib"] = round(memory / 2**20, 1)
        self.loss, self.steps = 0.0, 0
        self._reset_clock()
        return row


def peak_memory() -> int | None:
    """Return the most memory this process has had resident, in bytes (None on Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
