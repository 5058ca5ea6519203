"""A chart as data, and its drawing as SVG: logarithmic axes, lines and points, a legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

# Told apart by people who see colours differently, and by the shape of the mark besides.
COLOURS = (
    *("#2a78d6", "#1baf7a", "#eda100", "#4a3aa7", "#e34948", "#e87ba4", "#008300", "#eb6834"),
)
MARKS = ("circle", "square", "diamond", "triangle")
_WIDTH, _HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 40, 48
_LEGEND_ROW, _LEGEND_COLUMNS = 20, 3


@dataclass(frozen=True)
class Series:
    """Points of one provider, joined by a line or not. `is_limit`: a ceiling, drawn dashed."""

    name: str
    points: tuple[tuple[float, float], ...]
    is_line: bool = True
    is_limit: bool = False


@dataclass(frozen=True)
class Chart:
    """What is drawn. Both axes are logarithmic; `is_binary_x` marks powers of two."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    is_binary_x: bool = False
    colours: dict[str, int] = field(default_factory=dict)  # the same for a name in every chart

    def colour_of(self, name: str) -> int:
        """Return the number of a name's colour and mark."""
        if name in self.colours:
            return self.colours[name]
        return [s.name for s in self.series].index(name)


@dataclass(frozen=True)
class Scale:
    """A logarithmic scale from `low` … `high` to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Return what the axis spans: the values with some room, at least a factor of two."""
    low, high = min(values), max(values)
    if high / low < 2:
        low, high = low / 1.5, high * 1.5
    room = (high / low) ** 0.06
    return low / room, high * room


def decimal_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten in between; where they are fewer than three, multiples of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, (last - first) // 7)
    found: list[float] = []
    for multiples in ((1,), (1, 2, 5), range(1, 10)):
        every_one = [m * 10.0**e for e in range(first, last + 1, every) for m in multiples]
        found = [x for x in every_one if low <= x <= high]
        if len(found) >= 3:
            break
    return found


def binary_ticks(low: float, high: float) -> list[float]:
    """Return the powers of two in between."""
    return [2.0**e for e in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]


def number(value: float) -> str:
    """Return a tick's label."""
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def length(value: float) -> str:
    """Return a length's label: 512, 2k, 1m."""
    for factor, letter in ((1 << 20, "m"), (1024, "k")):
        if value >= factor and value % factor == 0:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


def svg(chart: Chart) -> str:
    """Return the drawing as an SVG element, with colours from the page's text where it has one."""
    shown = [s for s in chart.series if s.points]
    rows = -(-len(shown) // _LEGEND_COLUMNS)
    height = _HEIGHT + rows * _LEGEND_ROW
    xs = [x for s in shown for x, _ in s.points]
    ys = [y for s in shown for _, y in s.points]
    x = Scale(*limits(xs), _LEFT, _WIDTH - _RIGHT)
    y = Scale(*limits(ys), _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'width="{_WIDTH}" height="{height}" font-family="system-ui, sans-serif" font-size="12" '
        f'fill="currentColor" color="#222" aria-label="{escape(chart.title)}">',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="600">{escape(chart.title)}</text>',
    ]
    x_ticks = (binary_ticks if chart.is_binary_x else decimal_ticks)(x.low, x.high)
    parts += _axes(chart, x, y, x_ticks, length if chart.is_binary_x else number)
    for series in shown:
        parts += _drawn(series, chart.colour_of(series.name), x, y)
    for i, series in enumerate(shown):
        column, row = i % _LEGEND_COLUMNS, i // _LEGEND_COLUMNS
        left = _LEFT + column * (_WIDTH - _LEFT) / _LEGEND_COLUMNS
        parts += _legend(series, chart.colour_of(series.name), left, _HEIGHT + row * _LEGEND_ROW)
    return "\n".join([*parts, "</svg>"])


def _axes(
    chart: Chart, x: Scale, y: Scale, x_ticks: Sequence[float], x_text: Callable[[float], str]
) -> list[str]:
    parts = []
    for tick in decimal_ticks(y.low, y.high):
        at = y(tick)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" '
            'stroke="currentColor" stroke-opacity="0.15"/>'
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for tick in x_ticks:
        at = x(tick)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_HEIGHT - _BOTTOM}" '
            f'y2="{_HEIGHT - _BOTTOM + 4}" stroke="currentColor"/>'
            f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
            f"{x_text(tick)}</text>"
        )
    parts.append(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_HEIGHT - _BOTTOM}" '
        f'y2="{_HEIGHT - _BOTTOM}" stroke="currentColor"/>'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 12}" text-anchor="end">'
        f"{escape(chart.x_label)}</text>"
        f'<text x="{_LEFT}" y="{_TOP - 6}" fill-opacity="0.75">{escape(chart.y_label)}</text>'
    )
    return parts


def _drawn(series: Series, which: int, x: Scale, y: Scale) -> list[str]:
    places = [(x(a), y(b)) for a, b in sorted(series.points)]
    colour = "currentColor" if series.is_limit else COLOURS[which % len(COLOURS)]
    parts = []
    if series.is_line or series.is_limit:
        dashes = ' stroke-dasharray="6 4"' if series.is_limit else ""
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
        )
    if not series.is_limit:
        for (a, b), (value_x, value_y) in zip(places, sorted(series.points), strict=True):
            tip = escape(f"{series.name}: {number(value_x)}, {value_y:.4g}")
            parts.append(f"<g><title>{tip}</title>{_mark(a, b, which, colour)}</g>")
    return parts


def _legend(series: Series, which: int, left: float, top: float) -> list[str]:
    colour = "currentColor" if series.is_limit else COLOURS[which % len(COLOURS)]
    if series.is_limit:
        sign = (
            f'<line x1="{left - 8:.0f}" x2="{left + 8:.0f}" y1="{top}" y2="{top}" '
            f'stroke="{colour}" stroke-width="2" stroke-dasharray="6 4"/>'
        )
    else:
        sign = _mark(left, top, which, colour)
    return [sign, f'<text x="{left + 12:.0f}" y="{top + 4}">{escape(series.name)}</text>']


def _mark(x: float, y: float, which: int, colour: str) -> str:
    # colours repeat after all of them were used, then with the next shape
    shape = MARKS[(which + which // len(COLOURS)) % len(MARKS)]
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'
    corners = {
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "diamond": ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
        "triangle": ((0, -5.5), (5, 4), (-5, 4)),
    }[shape]
    points = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)
    return f'<polygon points="{points}" fill="{colour}"/>'
