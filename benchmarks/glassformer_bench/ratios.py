"""Our time over PyTorch's, from timings made in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

OURS, THEIRS = "ours", "torch"


@dataclass(frozen=True)
class Timed:
    """What one contender took in one turn.

    Attributes:
        group: the work, the same for both.
        contender: `OURS` or `THEIRS`.
        seconds: the median of the turn's calls.
        error: the largest relative difference of the two answers, None where work has no answer.
        is_disturbed: other processes had the cores meanwhile.
    """

    group: str
    contender: str
    turn: int
    seconds: float
    error: float | None = None
    is_disturbed: bool = False


@dataclass(frozen=True)
class Ratio:
    """Both contenders on the same work.

    Attributes:
        ours, theirs: seconds, the median of the turns.
        ratio: the median of the turns' ratios, of which `low` and `high` are the extremes.
    """

    group: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    error: float | None
    is_disturbed: bool


def ratios(timed: Sequence[Timed]) -> list[Ratio]:
    """Return the ratio of each group, in their order; turns that only one took are left out."""
    found = []
    for group in dict.fromkeys(x.group for x in timed):
        turns = {(x.contender, x.turn): x for x in timed if x.group == group}
        pairs = [
            (x, turns[THEIRS, turn])
            for (contender, turn), x in turns.items()
            if contender == OURS and (THEIRS, turn) in turns
        ]
        if not pairs:
            continue
        each = [ours.seconds / theirs.seconds for ours, theirs in pairs]
        found.append(
            Ratio(
                group,
                median(ours.seconds for ours, _ in pairs),
                median(theirs.seconds for _, theirs in pairs),
                median(each),
                min(each),
                max(each),
                pairs[0][0].error,
                any(x.is_disturbed for pair in pairs for x in pair),
            )
        )
    return found


def table(found: Sequence[Ratio]) -> str:
    """Return the ratios as text, one a line."""
    width = max((len(x.group) for x in found), default=0)
    head = f"{'ours':>9} {'torch':>9} {'ours/torch':>11} {'turns':>13} {'difference':>11}"
    lines = [f"{'':{width}} {head}"]
    for x in found:
        error = "" if x.error is None else f"{x.error:.1e}"
        note = "  disturbed by other processes" if x.is_disturbed else ""
        lines.append(
            f"{x.group:{width}} {duration(x.ours):>9} {duration(x.theirs):>9} {x.ratio:11.2f} "
            f"{f'{x.low:.2f} - {x.high:.2f}':>13} {error:>11}{note}".rstrip()
        )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return a time with three digits in the unit that fits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
