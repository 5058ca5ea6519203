"""Records of runs, as JSON with a schema version."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from glassformer_bench.counting import CONVENTION
from glassformer_bench.row import STATUSES

SCHEMA = 1
_KEYS = ("schema", "environment", "ceilings", "rows")


def make_record(
    rows: list[dict[str, Any]],
    environment: dict[str, Any],
    ceilings: dict[str, Any] | None,
    **more: Any,
) -> dict[str, Any]:
    """Return a record: what was run, where, against which ceilings, with every sample."""
    return {
        "schema": SCHEMA,
        "convention": CONVENTION,
        "environment": environment,
        "ceilings": ceilings,
        **more,
        "rows": rows,
    }


def save(record: dict[str, Any], path: Path) -> None:
    """Write a record. JSON has no NaN: an error that isn't a number is written as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_without_nan(record), indent=1, allow_nan=False)
    path.write_text(text + "\n")


def load(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        ValueError: it is no record, or of a schema that this version doesn't know.
    """
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(record, dict) or any(key not in record for key in _KEYS):
        raise ValueError(f"{path} is no record of attnbench")
    if record["schema"] != SCHEMA:
        raise ValueError(
            f"{path} has schema {record['schema']}, this version reads {SCHEMA}; "
            "run the benchmark again"
        )
    for row in record["rows"]:
        if row["status"] not in STATUSES:
            raise ValueError(f"{path} has a row of unknown status {row['status']!r}")
    found: dict[str, Any] = _with_nan(record)
    return found


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return value


def _with_nan(value: Any) -> Any:
    if value in ("nan", "inf", "-inf") and isinstance(value, str):
        return float(value)
    if isinstance(value, dict):
        return {k: _with_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_nan(v) for v in value]
    return value
