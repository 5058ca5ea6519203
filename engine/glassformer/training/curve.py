"""The loss curve as an SVG file: no plotting library, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

Point = tuple[float, float]

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 68, 84, 46, 56  # room for labels; the right one holds final values

# Contrast at least 4.5:1 against the background in both schemes; blue and orange stay apart for
# every common colour vision, and the two lines differ in weight and markers as well.
_STYLE = """
  .ground { fill: #ffffff } .grid { stroke: #e4e6ea; stroke-width: 1 }
  .axis { stroke: #6b7280; stroke-width: 1 }
  text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #374151 }
  .title { font-size: 15px; font-weight: 600; fill: #111827 }
  .train { stroke: #1d64b0; fill: none; stroke-width: 1.5 }
  .eval { stroke: #b4500c; fill: none; stroke-width: 2.5 } .dot { fill: #b4500c }
  text.train { fill: #1d64b0; stroke: none } text.eval { fill: #b4500c; stroke: none }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #14171c } .grid { stroke: #2b3038 } .axis { stroke: #9ca3af }
    text { fill: #d1d5db } .title { fill: #f3f4f6 }
    .train { stroke: #6cb0f5 } .eval { stroke: #f59a52 } .dot { fill: #f59a52 }
    text.train { fill: #6cb0f5 } text.eval { fill: #f59a52 }
  }
"""


def loss_curve(
    rows: Iterable[Mapping[str, Any]], title: str = "Loss", unit: str = "nats per token"
) -> str:
    """Return an SVG of the training and evaluation loss in the rows of a log, over the steps.

    Rows count that have a `step` and a finite `loss` or `eval_loss`; `unit` is that of the loss.
    """
    rows = list(rows)
    series = {
        "train": _points(rows, "loss"),
        "eval": _points(rows, "eval_loss"),
    }
    everything = [point for points in series.values() for point in points]
    body = _plot(series, everything, unit) if everything else _nothing()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img">\n'
        f"<title>{escape(title)}</title>\n<desc>{escape(_summary(series))}</desc>\n"
        f"<style>{_STYLE}</style>\n"
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>\n'
        f'<text class="title" x="{LEFT}" y="26">{escape(title)}</text>\n{body}\n</svg>\n'
    )


def _points(rows: list[Mapping[str, Any]], name: str) -> list[Point]:
    found = {}
    for row in rows:
        step, value = row.get("step"), row.get(name)
        if isinstance(step, int) and isinstance(value, (int, float)) and math.isfinite(value):
            found[step] = float(value)  # an evaluation repeated at a step counts once
    return sorted(found.items())


def _summary(series: dict[str, list[Point]]) -> str:
    parts = [
        f"{name} loss {points[0][1]:.3f} at step {points[0][0]:.0f}, "
        f"{points[-1][1]:.3f} at step {points[-1][0]:.0f}"
        for name, points in series.items()
        if points
    ]
    return "; ".join(parts) or "no loss was logged"


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers (1, 2 or 5 times a power of ten apart) in [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _plot(series: dict[str, list[Point]], everything: list[Point], unit: str) -> str:
    last_step = max(step for step, _ in everything)
    low, high = min(v for _, v in everything), max(v for _, v in everything)
    margin = 0.06 * (high - low) or 0.5
    low, high = low - margin, high + margin

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(last_step, 1)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [*_axes(x, y, last_step, low, high, unit)]
    for name, points in series.items():
        if points:
            line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
            parts.append(f'<polyline class="{name}" points="{line}"/>')
    if len(series["eval"]) <= 60:  # markers would merge
        parts += [
            f'<circle class="dot" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3"/>'
            for step, value in series["eval"]
        ]
    return "\n".join([*parts, *_final_values(series, x, y), *_legend(series)])


def _axes(x: Any, y: Any, last_step: float, low: float, high: float, unit: str) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in ticks(low, high, 6):
        parts.append(
            f'<line class="grid" x1="{LEFT}" y1="{y(value):.1f}" x2="{right}" y2="{y(value):.1f}"/>'
            f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for step in ticks(0, max(last_step, 1), 6):
        if step != int(step):
            continue
        parts.append(
            f'<line class="axis" x1="{x(step):.1f}" y1="{bottom}" x2="{x(step):.1f}" '
            f'y2="{bottom + 5}"/><text x="{x(step):.1f}" y="{bottom + 20}" text-anchor="middle">'
            f"{step:,.0f}</text>"
        )
    middle = (TOP + bottom) / 2
    return [
        *parts,
        f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>',
        f'<line class="axis" x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{bottom}"/>',
        f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 14}" text-anchor="middle">step</text>',
        f'<text x="18" y="{middle:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 18 {middle:.0f})">loss ({escape(unit)})</text>',
    ]


def _final_values(series: dict[str, list[Point]], x: Any, y: Any) -> list[str]:
    """The last value of each line at its right end, moved apart where they would overlap."""
    labels = sorted(
        [y(points[-1][1]), x(points[-1][0]), name, points[-1][1]]
        for name, points in series.items()
        if points
    )
    if len(labels) == 2 and labels[1][0] - labels[0][0] < 14:
        shift = (14 - (labels[1][0] - labels[0][0])) / 2
        labels[0][0] -= shift
        labels[1][0] += shift
    return [
        f'<text class="{name}" x="{right + 8:.1f}" y="{height + 4:.1f}">{value:.3f}</text>'
        for height, right, name, value in labels
    ]


def _legend(series: dict[str, list[Point]]) -> list[str]:
    parts = []
    names = {"train": "training", "eval": "evaluation"}
    start = WIDTH - RIGHT - 110 * sum(bool(points) for points in series.values())
    for name in (name for name, points in series.items() if points):
        parts.append(f'<line class="{name}" x1="{start}" y1="22" x2="{start + 24}" y2="22"/>')
        if name == "eval":
            parts.append(f'<circle class="dot" cx="{start + 12}" cy="22" r="3"/>')
        parts.append(f'<text x="{start + 30}" y="26">{names[name]}</text>')
        start += 110
    return parts


def _nothing() -> str:
    return (
        f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT / 2:.0f}" text-anchor="middle">'
        "no loss was logged</text>"
    )
