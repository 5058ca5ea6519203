"""Two records row by row: what became slower, beyond a limit and beyond noise.

A row regressed if the ratio of its medians is above 1 + limit and the 95% interval of that ratio,
from resampled samples, is above 1; or if it was ok and now has no speed. Records of different
machines aren't compared unless told to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glassformer_bench.environment import same_machine
from glassformer_bench.problem import Problem
from glassformer_bench.tables import is_disturbed, problem_text

SAME, REGRESSION, USAGE, OTHER_MACHINE = 0, 1, 2, 3
_RESAMPLES = 2000


@dataclass(frozen=True)
class Change:
    """One row in both records.

    Attributes:
        ratio: of the medians, the second over the first; None where one has no speed.
        low, high: the 95% interval of the ratio.
        verdict: same, faster, slower, or how the status changed.
    """

    provider: str
    problem: str
    before_ms: float | None
    after_ms: float | None
    ratio: float | None
    low: float | None
    high: float | None
    verdict: str
    is_regression: bool


def parse_limit(text: str) -> float:
    """Return the fraction that "5%" or "0.05" stands for.

    Raises:
        ValueError: it is neither, or negative.
    """
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"--fail-on takes a share such as 5%, got {text!r}")
    return value


def machine_differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return how the machines of two records differ, or their threads, in words."""
    one, other = before["environment"], after["environment"]
    found = same_machine(one, other)
    if one.get("device") == other.get("device") == "cpu" and one["threads"] != other["threads"]:
        found.append(f"threads: {one['threads']} and {other['threads']}")
    return found


def compare(before: dict[str, Any], after: dict[str, Any], limit: float) -> list[Change]:
    """Return the change of every row that is in both records.

    Raises:
        ValueError: none is.
    """
    first = {_key(row): row for row in before["rows"]}
    pairs = [(first[_key(row)], row) for row in after["rows"] if _key(row) in first]
    if not pairs:
        raise ValueError("the two records have no row in common: nothing can be compared")
    return [_change(old, new, limit) for old, new in pairs]


def only_in_one(before: dict[str, Any], after: dict[str, Any]) -> tuple[int, int]:
    """Return how many rows are in the first record alone, and in the second alone."""
    first, second = ({_key(row) for row in record["rows"]} for record in (before, after))
    return len(first - second), len(second - first)


def table(changes: Sequence[Change]) -> str:
    """Return the changes as text, one a line."""
    lines = [f"{'before ms':>10} {'after ms':>10} {'ratio':>6} {'95% interval':>15}  verdict  row"]
    for c in changes:
        ratio = "" if c.ratio is None else f"{c.ratio:.3f}"
        interval = "" if c.low is None or c.high is None else f"{c.low:.3f} - {c.high:.3f}"
        times = ["" if ms is None else f"{ms:.4g}" for ms in (c.before_ms, c.after_ms)]
        lines.append(
            f"{times[0]:>10} {times[1]:>10} {ratio:>6} {interval:>15}  {c.verdict}  "
            f"{c.provider}, {c.problem}"
        )
    return "\n".join(lines)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    problem = Problem.from_dict(row["problem"])
    return (row["provider"], *problem.key(), row["timer"], row["l2"])


def _change(old: dict[str, Any], new: dict[str, Any], limit: float) -> Change:
    named = (new["provider"], problem_text(new), old["p50"], new["p50"])
    if old["status"] != "ok" or new["status"] != "ok":
        if old["status"] == new["status"]:
            verdict = f"still {new['status']}"
        else:
            verdict = f"{old['status']} -> {new['status']}"
        is_worse = old["status"] == "ok" and new["status"] != "ok"
        return Change(*named, None, None, None, verdict, is_worse)
    ratio = new["p50"] / old["p50"]
    low, high = ratio_interval(old["samples_ms"], new["samples_ms"])
    is_slower = ratio > 1 + limit and low > 1
    is_faster = ratio < 1 / (1 + limit) and high < 1
    verdict = "slower" if is_slower else "faster" if is_faster else "same"
    if is_disturbed(old) or is_disturbed(new):
        verdict += " (disturbed by other processes)"
    return Change(*named, ratio, low, high, verdict, is_slower)


def ratio_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of the ratio of medians, from samples drawn with replacement."""
    random = np.random.default_rng(0)
    medians = [
        np.median(random.choice(np.asarray(x), (_RESAMPLES, min(len(x), 1000))), axis=1)
        for x in (before, after)
    ]
    low, high = np.quantile(medians[1] / medians[0], [0.025, 0.975])
    return float(low), float(high)
