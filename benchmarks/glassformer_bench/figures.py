"""From records to charts: speed over length, the roofline, error beside speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from glassformer_bench.charts import Chart, Series
from glassformer_bench.tables import problem_text

Row = dict[str, Any]


def figures(record: dict[str, Any]) -> list[Chart]:
    """Return the charts of a record; none of what has no points."""
    rows = [row for row in record["rows"] if row["status"] == "ok"]
    colours = {name: i for i, name in enumerate(dict.fromkeys(r["provider"] for r in rows))}
    found = []
    for group in _grouped(rows, _family):
        found += _over_length(group, colours)
    for op_rows in _grouped(rows, lambda row: (row["problem"]["op"], row["problem"]["dtype"])):
        found += _roofline(op_rows, record["ceilings"], colours)
        found += _error_and_speed(op_rows, colours)
    return found


def _family(row: Row) -> tuple[Any, ...]:
    """Return what rows of one curve share: everything but the lengths."""
    lengths = ("seqlen", "seqlen_k", "seed")
    return (row["l2"], *((k, v) for k, v in row["problem"].items() if k not in lengths))


def _speed(row: Row) -> tuple[str, float]:
    """Return the unit and number that tell speed: FLOP/s of products, else bytes/s."""
    if row["problem"]["op"] == "attention":
        return "TFLOP/s", row["tflops"]
    return "GB/s", row["gbps"]


def _length(row: Row) -> int:
    p = row["problem"]
    return int(p["seqlen_k"] if p["op"] == "decode" else p["seqlen"])


def _over_length(rows: Sequence[Row], colours: dict[str, int]) -> list[Chart]:
    if len({_length(row) for row in rows}) < 2:
        return []
    series = _series(rows, lambda row: (_length(row), _speed(row)[1]))
    words = problem_text(rows[0]).split(" ")
    title = " ".join(w for w in words if not w.startswith(("Tq", "Tk")))
    return [Chart(title, "length", _speed(rows[0])[0], series, True, colours)]


def _roofline(
    rows: Sequence[Row], ceilings: dict[str, Any] | None, colours: dict[str, int]
) -> list[Chart]:
    dtype, op = rows[0]["problem"]["dtype"], rows[0]["problem"]["op"]
    if ceilings is None or op not in ("attention", "decode"):  # other FLOPs have no ceiling here
        return []
    peak = ceilings["flops"][dtype] / 1e12
    bandwidth = max(ceilings["copy"], ceilings["read"]) / 1e12  # TB/s
    series = _series(rows, lambda row: (row["intensity"], row["tflops"]), is_line=False)
    intensities = [row["intensity"] for row in rows]
    ridge = peak / bandwidth
    low, high = min(*intensities, ridge) / 2, max(*intensities, ridge) * 2
    limit = Series(
        "measured ceiling",
        ((low, low * bandwidth), (ridge, peak), (high, peak)),
        is_line=True,
        is_limit=True,
    )
    title = f"{op} {dtype}: roofline"
    return [Chart(title, "FLOPs a byte", "TFLOP/s", (*series, limit), False, colours)]


def _error_and_speed(rows: Sequence[Row], colours: dict[str, int]) -> list[Chart]:
    known = [row for row in rows if row["max_error"]]
    if not known:
        return []
    series = _series(known, lambda row: (_speed(row)[1], row["max_error"]), is_line=False)
    p = rows[0]["problem"]
    title = f"{p['op']} {p['dtype']}: error beside speed (right and low is good)"
    return [Chart(title, _speed(rows[0])[0], "largest error", series, False, colours)]


def _series(
    rows: Iterable[Row], point: Callable[[Row], tuple[float, float]], is_line: bool = True
) -> tuple[Series, ...]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        found.setdefault(row["provider"], []).append(point(row))
    return tuple(Series(name, tuple(points), is_line) for name, points in found.items())


def _grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.values())
