"""The charts of records as a picture: .svg by itself, other formats by Matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from glassformer_bench.charts import (
    COLOURS,
    Chart,
    binary_ticks,
    decimal_ticks,
    length,
    number,
    svg,
)
from glassformer_bench.figures import figures

_GAP = 16
_MARKERS = "osD^"


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw every chart of the records into one picture.

    Raises:
        ValueError: there is nothing to draw, or the format needs Matplotlib and it isn't there.
    """
    charts = [chart for record in records for chart in figures(record)]
    if not charts:
        raise ValueError("no row has a time: there is nothing to draw")
    if path.suffix == ".svg":
        path.write_text(stacked(charts))
    elif path.suffix != ".png":
        raise ValueError(f"a picture is .svg or .png, got {path.name}")
    elif find_spec("matplotlib") is None:
        raise ValueError("a .png needs Matplotlib: pip install 'glassformer[plot]'; .svg doesn't")
    else:
        _draw_with_matplotlib(charts, path)


def stacked(charts: Sequence[Chart]) -> str:
    """Return one SVG with the charts under each other, on white."""
    import re

    drawn = [svg(chart) for chart in charts]
    sizes = [re.search(r'viewBox="0 0 (\d+) (\d+)"', text) for text in drawn]
    widths, heights = zip(*((int(s[1]), int(s[2])) for s in sizes if s), strict=True)
    total = sum(heights) + _GAP * (len(heights) - 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(widths)} {total}" '
        f'width="{max(widths)}" height="{total}">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    top = 0
    for text, height in zip(drawn, heights, strict=True):
        parts.append(text.replace("<svg ", f'<svg y="{top}" ', 1))
        top += height + _GAP
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw_with_matplotlib(charts: Sequence[Chart], path: Path) -> None:
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7, 4.2 * len(charts)), layout="constrained")
    panels = picture.subplots(len(charts), 1, squeeze=False)[:, 0]
    for chart, axes in zip(charts, panels, strict=True):
        for series in chart.series:
            which = chart.colour_of(series.name) if not series.is_limit else 0
            xs, ys = zip(*sorted(series.points), strict=True)
            line = "--" if series.is_limit else "-" if series.is_line else "none"
            colour = "black" if series.is_limit else COLOURS[which % len(COLOURS)]
            marker = "" if series.is_limit else _MARKERS[which % len(_MARKERS)]
            axes.plot(xs, ys, linestyle=line, marker=marker, color=colour, label=series.name)
        axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
        axes.set(xscale="log", yscale="log")
        x_ticks, x_text = (binary_ticks, length) if chart.is_binary_x else (decimal_ticks, number)
        # the ticks of the SVG: Matplotlib's own are powers of ten, in exponents
        axes.set_xticks(x_ticks(*axes.get_xlim()))
        axes.set_yticks(decimal_ticks(*axes.get_ylim()))
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _, text=x_text: text(value))
        axes.yaxis.set_major_formatter(lambda value, _: number(value))
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    picture.savefig(path, dpi=144)
