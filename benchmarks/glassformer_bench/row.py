"""A row of the table: what one provider did on one problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glassformer_bench.checking import Error

STATUSES = ("ok", "wrong", "oom", "unsupported", "suspicious", "timeout")


@dataclass
class Row:
    """What one provider did on one problem. Times are in milliseconds; None is unknown.

    Attributes:
        status: one of `STATUSES`; a row that isn't ok or suspicious has no times.
        reasons: why, in words.
        share: of the ceiling measured in the same run.
        other_cores: how many cores other processes used while the row was timed.
        errors: largest and mean error of each result against float64, with what is allowed.
    """

    provider: str
    problem: dict[str, Any]
    timer: str
    l2: str
    status: str = "ok"
    reasons: list[str] = field(default_factory=list)
    kernel: str | None = None
    samples_ms: list[float] = field(default_factory=list)
    p10: float | None = None
    p50: float | None = None
    p90: float | None = None
    n: int = 0
    noise: float | None = None
    other_cores: float | None = None
    tflops: float | None = None
    share: float | None = None
    gbps: float | None = None
    intensity: float | None = None
    floor_ms: float | None = None
    peak_bytes: int | None = None
    max_error: float | None = None
    mean_error: float | None = None
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    speedup: float | None = None
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)

    def note_errors(self, errors: Mapping[str, Error]) -> None:
        """Write down errors, of which the largest is shown."""
        self.errors = {name: error.to_dict() for name, error in errors.items()}
        if errors:
            # NaN is worse than any number
            self.max_error = max((e.max for e in errors.values()), key=_badness)
            self.mean_error = max((e.mean for e in errors.values()), key=_badness)

    def fail(self, status: str, reasons: list[str]) -> Row:
        """Give it a status that has no speed, and return it."""
        self.status, self.reasons = status, reasons
        self.samples_ms, self.n, self.speedup = [], 0, None
        self.p10 = self.p50 = self.p90 = self.noise = None
        self.tflops = self.share = self.gbps = None
        return self


def _badness(x: float) -> float:
    return float("inf") if x != x else x
