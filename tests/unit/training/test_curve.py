import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.training.curve import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, loss_curve, ticks

SVG = "{http://www.w3.org/2000/svg}"


def elements(svg, tag, css_class=None):
    found = ElementTree.fromstring(svg).iter(SVG + tag)
    return [e for e in found if css_class is None or e.get("class") == css_class]


def points(svg, css_class):
    (line,) = elements(svg, "polyline", css_class)
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


def texts(svg):
    return ["".join(e.itertext()) for e in elements(svg, "text")]


losses = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, None])
rows = st.lists(
    st.fixed_dictionaries({"step": st.integers(0, 10**6)}, optional={"loss": losses}), max_size=30
)


@given(rows)
def test_any_log_gives_well_formed_svg_within_its_frame(log):
    svg = loss_curve(log, "a < b & c")
    ElementTree.fromstring(svg)
    finite = {r["step"] for r in log if r.get("loss") is not None and math.isfinite(r["loss"])}
    if not finite:
        assert "no loss was logged" in texts(svg)
        return
    drawn = points(svg, "train")
    assert len(drawn) == len(finite)
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in drawn)


def test_lines_have_the_shape_of_the_numbers():
    log = [{"step": s, "loss": 4 - s / 100} for s in range(0, 101, 25)]
    log += [{"step": 50, "eval_loss": 3.5}, {"step": 100, "eval_loss": 3.25}]
    svg = loss_curve(log)
    xs, ys = zip(*points(svg, "train"), strict=True)
    assert xs[0] == LEFT and xs[-1] == WIDTH - RIGHT
    assert [round(b - a, 1) for a, b in zip(xs, xs[1:], strict=False)] == [(xs[-1] - xs[0]) / 4] * 4
    assert all(b > a for a, b in zip(ys, ys[1:], strict=False))  # down the page as the loss falls
    assert points(svg, "eval")[0] == (xs[2], ys[2])  # 3.5 at step 50 on both lines
    assert len(elements(svg, "circle", "dot")) == 3  # two evaluations and the legend's
    shown = texts(svg)
    assert {"training", "evaluation", "step", "loss (nats per token)", "3.000", "3.250"} <= set(
        shown
    )


def test_it_says_in_words_what_it_shows():
    svg = loss_curve([{"step": 1, "loss": 4.0}, {"step": 9, "loss": 2.0}], "Loss")
    root = ElementTree.fromstring(svg)
    assert root.find(SVG + "title").text == "Loss"
    assert root.find(SVG + "desc").text == "train loss 4.000 at step 1, 2.000 at step 9"


def test_the_axis_names_the_unit():
    svg = loss_curve([{"step": 1, "loss": 4.0}], unit="squared error < 1")
    assert "loss (squared error < 1)" in texts(svg)


def test_it_stands_alone():
    svg = loss_curve([{"step": 1, "loss": 1.0}])
    assert not re.search(r"<script|<image|@import|url\(|href", svg)
    assert set(re.findall(r"https?://[^\"\s]+", svg)) == {"http://www.w3.org/2000/svg"}


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_and_lines_stand_out_in_both_colour_schemes():
    style = elements(loss_curve([{"step": 1, "loss": 1.0}]), "style")[0].text
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for scheme in (light, dark):
        ground = luminance(re.search(r"\.ground { fill: (#\w{6})", scheme)[1])
        strokes = re.findall(r"\.(?:train|eval|title|dot)[^}]*?(?:fill|stroke): (#\w{6})", scheme)
        body = re.search(r"  text {[^}]*fill: (#\w{6})", scheme)[1]
        for colour in [*strokes, body]:
            bright, dim = sorted((luminance(colour), ground), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, colour  # WCAG 2.1, 1.4.3


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 10))
def test_ticks_are_round_evenly_spaced_and_inside(low, span, count):
    high = low + span
    if not high > low:
        return
    found = ticks(low, high, count)
    if span < 1e-9 * abs(low):
        return  # below the resolution of the labels
    assert len(found) <= count + 1
    step = 10 ** math.ceil(math.log10(span))  # inside up to rounding
    assert all(low - 1e-9 * step <= tick <= high + 1e-9 * step for tick in found)


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 2000, 6, [0, 500, 1000, 1500, 2000]),
        (1.37, 4.61, 6, [2, 3, 4]),
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3, 3, 5, [3]),
    ],
)
def test_ticks_by_example(low, high, count, expected):
    assert ticks(low, high, count) == expected
