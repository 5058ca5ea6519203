"""Rows as a table for the terminal, as Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

LEGEND = (
    "p10, p50, p90 of n calls; noise = (p90 - p10) / p50; peak %: of the ceiling measured in "
    "this run; mem: peak beyond the operands; errors against float64, of result and gradients"
)
# heading, decimal digits, how to get it
_SIZES = ("batch", "heads", "kv_heads", "seqlen", "seqlen_k", "head_dim", "vocab")
_SHORT = {"kv_heads": "kv", "seqlen": "Tq", "seqlen_k": "Tk", "head_dim": "D", "heads": "H",
          "batch": "B", "vocab": "V"}  # fmt: skip
_HAS = {
    "attention": ("batch", "heads", "kv_heads", "seqlen", "seqlen_k", "head_dim"),
    "decode": ("batch", "heads", "kv_heads", "seqlen_k", "head_dim"),
    "softmax": ("batch", "heads", "seqlen", "seqlen_k"),
    "layer_norm": ("batch", "seqlen", "heads", "head_dim"),
    "cross_entropy": ("batch", "seqlen", "vocab"),
}
COLUMNS = (
    *(
        "problem",
        "provider",
        "status",
        "p10 ms",
        "p50 ms",
        "p90 ms",
        "n",
        "noise",
        "TFLOP/s",
        "peak %",
    ),
    *("GB/s", "FLOP/B", "mem MiB", "max err", "mean err", "speed-up"),
)


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row as text, one a column; empty where there is nothing to show."""
    peak = row["peak_bytes"]
    return [
        problem_text(row),
        row["provider"],
        row["status"],
        *(_number(row[name], "4g") for name in ("p10", "p50", "p90")),
        str(row["n"]) if row["n"] else "",
        _number(row["noise"], ".0%"),
        _number(row["tflops"], ".3g"),
        _number(row["share"], ".0%"),
        _number(row["gbps"], ".3g"),
        _number(row["intensity"], ".3g"),
        _number(None if peak is None else peak / 2**20, ".1f"),
        _number(row["max_error"], ".1e"),
        _number(row["mean_error"], ".1e"),
        _number(row["speedup"], ".2f") + ("x" if row["speedup"] is not None else ""),
    ]


def problem_text(row: dict[str, Any]) -> str:
    """Describe a row's problem in a few words; sizes that follow from others are left out."""
    p = row["problem"]
    sizes = [
        f"{_SHORT[name]}{p[name]}"
        for name in _HAS[p["op"]]
        if not (name == "kv_heads" and p[name] == p["heads"])
        and not (name == "seqlen_k" and p["op"] != "decode" and p[name] == p["seqlen"])
    ]
    causal = {None: [], "top_left": ["causal"], "bottom_right": ["causal-br"]}[p["causal"]]
    window = [f"win{p['window']}"] if p["window"] else []
    return " ".join([p["op"], *sizes, *causal, *window, p["dtype"], p["mode"], row["l2"]])


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table with the problem as a heading over its rows, and reasons under it."""
    body = [cells(row)[1:] for row in rows]
    widths = [max(map(len, column)) for column in zip(COLUMNS[1:], *body, strict=True)]
    lines = [
        "  ".join(_pad(c, w, i) for i, (c, w) in enumerate(zip(COLUMNS[1:], widths, strict=True)))
    ]
    last = None
    for row, texts in zip(rows, body, strict=True):
        if problem_text(row) != last:
            last = problem_text(row)
            lines += ["", last]
        lines.append(
            "  ".join(
                _pad(c, w, i) for i, (c, w) in enumerate(zip(texts, widths, strict=True))
            ).rstrip()
        )
        lines += [f"    {reason}" for reason in row["reasons"]]
    return "\n".join(lines)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table; reasons follow it."""
    lines = ["| " + " | ".join(COLUMNS) + " |"]
    lines.append("|" + "|".join("---" if i < 3 else "---:" for i in range(len(COLUMNS))) + "|")
    lines += ["| " + " | ".join(c.replace("|", "\\|") for c in cells(row)) + " |" for row in rows]
    notes = [
        f"- {row['provider']}, {problem_text(row)}: {row['status']}: {reason}"
        for row in rows
        for reason in row["reasons"]
    ]
    return "\n".join([*lines, *([""] + notes if notes else [])])


def brief_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table with a line for each problem and a column for each provider.

    A cell holds the median in milliseconds with the speed-up, or the status that has no time.
    """
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        found.setdefault(problem_text(row), {})[row["provider"]] = _brief(row)
    lines = ["| " + " | ".join(["problem", *(f"{name}, ms" for name in providers)]) + " |"]
    lines.append("|---|" + "---:|" * len(providers))
    for problem, by_provider in found.items():
        texts = [by_provider.get(name, "") for name in providers]
        lines.append("| " + " | ".join([problem, *texts]) + " |")
    if any(map(is_disturbed, rows)):
        lines += ["", "\\* other processes had the cores meanwhile"]
    return "\n".join(lines)


def _brief(row: dict[str, Any]) -> str:
    if row["p50"] is None:
        return str(row["status"])
    speedup = "" if row["speedup"] is None else f" ({row['speedup']:.2f}x)"
    mark = " \\*" if is_disturbed(row) else ""
    status = "" if row["status"] == "ok" else f" {row['status']}"
    return _number(row["p50"], "4g") + speedup + status + mark


def is_disturbed(row: dict[str, Any]) -> bool:
    """Tell whether other processes had the cores while a row was timed."""
    return any(reason.startswith("disturbed") for reason in row["reasons"])


def doubt(rows: Sequence[dict[str, Any]]) -> str | None:
    """Return a warning that counts the disturbed rows; None if there are none."""
    count = sum(map(is_disturbed, rows))
    if not count:
        return None
    return (
        f"{count} of {len(rows)} rows were timed while other processes had the cores: "
        "their times, and speed-ups over them, say little"
    )


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as CSV, numbers in full, times in milliseconds, memory in bytes."""
    fields = (
        *("provider", "kernel", "status", "timer", "l2", "p10", "p50", "p90", "n", "noise"),
        *("tflops", "share", "gbps", "intensity", "floor_ms", "peak_bytes"),
        *("max_error", "mean_error", "speedup"),
    )
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    problem = list(rows[0]["problem"]) if rows else []
    writer.writerow([*problem, *fields, "reasons", "command"])
    for row in rows:
        values = [row["problem"][name] for name in problem] + [row[name] for name in fields]
        writer.writerow([*values, "; ".join(row["reasons"]), row["command"]])
    return out.getvalue()


def _number(value: float | None, form: str) -> str:
    if value is None:
        return ""
    if form == "4g":  # four digits, never an exponent where one can do without
        return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"
    return format(value, form)


def _pad(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column < 2 else text.rjust(width)
