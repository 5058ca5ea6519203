"""A row measured in a process of its own: what crashes or hangs there costs that row alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glassformer_bench.ceilings import Ceilings
from glassformer_bench.cell import measure, oracles
from glassformer_bench.problem import Problem
from glassformer_bench.row import Row
from glassformer_bench.timing import Settings, chosen

_WORKER = "from glassformer_bench.isolation import worker; worker()"


def measure_apart(
    problem: Problem,
    provider: str,
    kernels: Sequence[str],
    settings: Settings,
    ceilings: Ceilings | None,
    is_checked: bool,
    threads: int,
    timeout: float | None,
) -> Row:
    """Measure a provider, by name, in a new process; `timeout` in seconds, None for no limit."""
    task = {
        "problem": problem.to_dict(),
        "provider": provider,
        "kernels": list(kernels),
        "settings": asdict(settings),
        "ceilings": None if ceilings is None else ceilings.to_dict(),
        "is_checked": is_checked,
        "threads": threads,
    }
    empty = Row(provider, problem.to_dict(), chosen(settings.timer, problem.device), settings.l2)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "row.json")
        # What a kernel prints goes to stderr, beside the progress, and not into the table.
        child = subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(answer)],
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno() if _has_file(sys.stderr) else subprocess.DEVNULL,
            start_new_session=True,  # so that its own children end with it
            text=True,
        )
        try:
            child.communicate(json.dumps(task), timeout=timeout)
        except subprocess.TimeoutExpired:
            return empty.fail("timeout", [f"no result after {timeout:g} s"])
        except BrokenPipeError:  # it died before it read its task
            child.wait()
        finally:
            _end(child)
        if child.returncode != 0 or not answer.exists():
            return empty.fail("wrong", [_how_it_died(child.returncode)])
        return Row(**json.loads(answer.read_text()))


def worker() -> None:
    """Measure the task on stdin; write the row to the file that is the only argument."""
    task = json.load(sys.stdin)
    row = _row_of(task)
    Path(sys.argv[1]).write_text(json.dumps(row.to_dict()))


def _row_of(task: dict[str, Any]) -> Row:
    from glassformer_bench.providers import resolve
    from glassformer_bench.runner import set_threads

    set_threads(task["threads"])
    problem = Problem.from_dict(task["problem"])
    wanted = task["provider"]
    plugged = [spec for spec in task["kernels"] if spec.partition("=")[0] == wanted]
    (provider,) = resolve([] if plugged else [wanted], plugged)
    return measure(
        problem,
        provider,
        Settings(**task["settings"]),
        None if task["ceilings"] is None else Ceilings.from_dict(task["ceilings"]),
        oracles(problem) if task["is_checked"] else None,
    )


def _end(child: subprocess.Popen[str]) -> None:
    """End the child with everything it started, if it is still there."""
    if child.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
        child.wait()


def _how_it_died(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        return f"its process died of {signal.Signals(-code).name}"
    except ValueError:
        return f"its process died of signal {-code}"


def _has_file(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True
