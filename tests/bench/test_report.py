"""The page and the pictures: they show the record's numbers, and need nothing from elsewhere."""

import copy
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from glassformer_bench import tables
from glassformer_bench.charts import binary_ticks, decimal_ticks, length, limits, number
from glassformer_bench.cli import main
from glassformer_bench.figures import figures
from glassformer_bench.problem import Problem
from glassformer_bench.record import make_record, save
from glassformer_bench.report import page
from glassformer_bench.row import Row

ENVIRONMENT = {
    "system": "Linux", "cpu": "a <CPU>", "cores": 2, "threads": 2, "device": "cpu", "gpu": None,
    "versions": {"torch": "2.13.0", "numpy": "2.4", "triton": None}, "blas": "openblas",
    "variables": {"OMP_NUM_THREADS": "2"}, "git_commit": "abc", "driver": None,
}  # fmt: skip
CEILINGS = {"device": "cpu", "flops": {"fp32": 2e11}, "copy": 3e10, "read": 2e10}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def timed(provider, seqlen, tflops):
    row = Row(provider, Problem(seqlen=seqlen, seqlen_k=seqlen).to_dict(), "wall", "hot")
    row.samples_ms, row.n = [1.0, 2.0, 3.0], 3
    row.p10, row.p50, row.p90, row.noise = 1.2, 1234.5 / seqlen, 2.8, 0.8
    row.tflops, row.share, row.gbps, row.intensity = tflops, 0.61, 4.56, seqlen / 4
    row.max_error, row.mean_error, row.speedup = 7.7e-7, 1.1e-8, 1.37
    row.command = f"attnbench run --provider {provider} --seqlen {seqlen}"
    return row.to_dict()


@pytest.fixture
def record():
    rows = [timed(p, n, 0.01 * n**0.3) for n in (256, 512, 1024) for p in ("ours", "sdpa")]
    wrong = Row("mine<script>", Problem(seqlen=1024, seqlen_k=1024).to_dict(), "wall", "hot")
    rows.append(wrong.fail("wrong", ["out: max error 1e-1 & more"]).to_dict())
    return make_record(
        rows, ENVIRONMENT, CEILINGS, command="attnbench run", baseline="sdpa", tag="a tag"
    )


class Page(HTMLParser):
    """Collects the text, and every attribute that could fetch something."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.tags, self.links, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "td" in self.open:
            self.cells.append(data)


def test_the_page_shows_the_numbers_of_the_record(record):
    found = Page(page([record]))
    for row in record["rows"]:
        for text in filter(None, tables.cells(row)):
            assert text in found.cells
        for reason in row["reasons"]:
            assert reason in found.cells


def test_disturbed_rows_are_counted_and_marked(record, tmp_path):
    assert "other processes" not in page([record])
    record["rows"][0]["reasons"] = ["disturbed: other processes used 1.0 cores"]
    text = page([record])
    assert "1 of 7 rows were timed while other processes had the cores" in text
    assert text.count("class='doubtful'") == 1


def test_a_brief_table_of_a_record(record, tmp_path):
    record["rows"][1]["reasons"] = ["disturbed: other processes used 1.0 cores"]
    save(record, tmp_path / "a.json")
    assert main(["report", str(tmp_path / "a.json"), "-o", str(tmp_path / "a.md")]) == 0
    lines = [x for x in (tmp_path / "a.md").read_text().splitlines() if x.startswith("|")]
    assert lines[0] == "| problem | ours, ms | sdpa, ms | mine<script>, ms |"
    assert {line.count("|") for line in lines} == {5}
    first = record["rows"][0]
    assert lines[2].endswith(f"| {first['p50']:.4g} (1.37x) | {first['p50']:.4g} (1.37x) \\* |  |")
    assert lines[4].endswith("| wrong |")


def test_the_page_fetches_nothing(record):
    text = page([record])
    found = Page(text)
    assert found.links == ["data:,"]
    assert "script" not in found.tags
    assert "mine&lt;script&gt;" in text
    assert "a &lt;CPU&gt;: a tag" in text
    assert not re.search(r"url\(|@import", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_charts(record):
    titles = [chart.title for chart in figures(record)]
    assert titles == [
        "attention B1 H8 D64 fp32 fwd hot",
        "attention fp32: roofline",
        "attention fp32: error beside speed (right and low is good)",
    ]
    curve, roof, _ = figures(record)
    assert {s.name for s in curve.series} == {"ours", "sdpa"}  # a wrong row is no point
    assert [x for x, _ in curve.series[0].points] == [256, 512, 1024]
    limit = roof.series[-1]
    assert limit.is_limit
    # up to the ridge the ceiling is bytes times intensity, from there the product's rate
    (low, at_low), (ridge, at_ridge), (_, at_high) = limit.points
    assert at_low == pytest.approx(low * 0.03)
    assert (ridge, at_ridge, at_high) == pytest.approx((0.2 / 0.03, 0.2, 0.2))


def test_a_record_without_times_has_no_charts_but_a_page(record, tmp_path, capsys):
    record["rows"] = record["rows"][-1:]
    assert figures(record) == []
    assert "<svg" not in page([record])
    save(record, tmp_path / "a.json")
    assert main(["plot", str(tmp_path / "a.json"), "-o", str(tmp_path / "a.svg")]) == 2
    assert "nothing to draw" in capsys.readouterr().err


def test_a_picture_is_svg(record, tmp_path):
    save(record, tmp_path / "a.json")
    assert main(["plot", str(tmp_path / "a.json"), "-o", str(tmp_path / "a.svg")]) == 0
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    name = "{http://www.w3.org/2000/svg}"
    assert [child.tag for child in root] == [name + "rect"] + [name + "svg"] * 3
    texts = {element.text for element in root.iter(name + "text")}
    assert {"256", "512", "1k", "ours", "sdpa", "measured ceiling"} <= texts
    # every point lies inside the picture
    for circle in root.iter(name + "circle"):
        assert 0 <= float(circle.get("cx")) <= 560
        assert 0 <= float(circle.get("cy")) <= 420


def test_other_formats(record, tmp_path, capsys):
    save(record, tmp_path / "a.json")
    arguments = ["plot", str(tmp_path / "a.json"), "-o"]
    assert main([*arguments, str(tmp_path / "a.gif")]) == 2
    assert ".svg or .png" in capsys.readouterr().err
    code = main([*arguments, str(tmp_path / "a.png")])
    if code == 2:
        assert "pip install 'glassformer[plot]'" in capsys.readouterr().err
    else:
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_report_command(record, tmp_path):
    save(record, tmp_path / "a.json")
    target = tmp_path / "a.html"
    assert main(["report", str(tmp_path / "a.json"), "-o", str(target)]) == 0
    assert target.read_text() == page([record])


def test_more_providers_than_colours_are_told_apart(record):
    record["rows"] = [timed(f"p{i}", n, 0.1 + i) for i in range(12) for n in (64, 128)]
    text = page([record])
    curve = text[text.index("<svg") : text.index("</svg>")]
    looks = set()
    for i in range(12):
        (mark,) = set(re.findall(rf"<title>p{i}: 64, .*?</title><(.*?)/>", curve))
        colour = re.search(r'fill="(#\w+)"', mark)[1]
        corners = [list(map(float, x.split(","))) for x in re.findall(r"[\d.]+,[\d.]+", mark)]
        # the shape without its place
        looks.add((colour, *(round(a - corners[0][0]) for a, _ in corners)))
    assert len(looks) == 12


def browse(text, folder):
    """Return the page as the browser has it, what it says on stderr, and the addresses asked."""
    target, log = folder / "a.html", folder / "net.json"
    target.write_text(text)
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions"),
            *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
            *(f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"),
            *(f"--log-net-log={log}", "--dump-dom", target.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    asked = set(re.findall(r'"url":"(https?://[^"]*)"', log.read_text()))
    # the browser itself calls home
    return done.stdout, done.stderr, {u for u in asked if "google" not in u and "gvt1" not in u}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser(record, tmp_path):
    """No request leaves the page, the console stays empty, and the numbers are there."""
    shown, said, asked = browse(page([record]), tmp_path)
    assert "CONSOLE" not in said
    assert asked == set()
    cells = Page(shown).cells
    for row in record["rows"]:
        for text in filter(None, tables.cells(row)):
            assert text in cells


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_browser_would_tell(tmp_path):
    bad = "<img src='http://nowhere.invalid/x.png'><script>console.error('oh')</script>"
    _, said, asked = browse(bad, tmp_path)
    assert "CONSOLE" in said
    assert asked == {"http://nowhere.invalid/x.png"}


def test_axes():
    assert limits([1, 100])[0] < 1 < 100 < limits([1, 100])[1]
    low, high = limits([5.0])
    assert low < 5 < high
    assert binary_ticks(200, 3000) == [256, 512, 1024, 2048]
    assert decimal_ticks(0.04, 1.5) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1])
    assert decimal_ticks(0.031, 0.062) == pytest.approx([0.04, 0.05, 0.06])
    assert decimal_ticks(0.02, 300) == pytest.approx([0.1, 1, 10, 100])
    assert len(decimal_ticks(1e-9, 1e9)) < 12
    assert [length(x) for x in (512, 1024, 1536, 1 << 20)] == ["512", "1k", "1536", "1m"]
    assert [number(x) for x in (0.05, 2e-6, 1000, 1e7)] == ["0.05", "2e-6", "1000", "1e7"]


def test_the_record_is_not_changed(record):
    before = copy.deepcopy(record)
    page([record])
    assert record == before
