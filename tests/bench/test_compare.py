"""Comparing two records: what counts as a regression, and when nothing is compared."""

import copy
import json

import numpy as np
import pytest

from glassformer_bench.cli import main
from glassformer_bench.compare import parse_limit, ratio_interval
from glassformer_bench.problem import Problem
from glassformer_bench.record import load, make_record, save
from glassformer_bench.row import Row

ENVIRONMENT = {"system": "Linux x86_64", "cpu": "a CPU", "cores": 2, "gpu": None, "threads": 2,
               "device": "cpu"}  # fmt: skip


def row(provider, factor=1.0, spread=0.01, seqlen=128, **changes):
    samples = list(np.random.default_rng(0).normal(10, 10 * spread, 50) * factor)
    made = Row(provider, Problem(seqlen=seqlen).to_dict(), "wall", "hot", samples_ms=samples)
    made.p50 = float(np.median(samples))
    return {**made.to_dict(), **changes}


def record(*rows, **environment):
    return make_record(list(rows), {**ENVIRONMENT, **environment}, None)


@pytest.fixture
def compare(tmp_path, capsys):
    def run(before, after, *arguments):
        save(before, tmp_path / "a.json")
        save(after, tmp_path / "b.json")
        code = main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *arguments])
        told = capsys.readouterr()
        return code, told.out + told.err

    return run


@pytest.mark.parametrize(
    ("factor", "limit", "code"),
    [(1.0, "5%", 0), (1.03, "5%", 0), (1.2, "5%", 1), (1.2, "0.25", 0), (0.5, "5%", 0)],
)
def test_a_regression_is_beyond_the_limit(compare, factor, limit, code):
    found, told = compare(record(row("k")), record(row("k", factor)), "--fail-on", limit)
    assert found == code, told
    assert ("slower" in told) == (code == 1)


def test_what_noise_explains_is_no_regression(compare):
    noisy = record(row("k", spread=0.8))
    again = copy.deepcopy(noisy)
    samples = np.random.default_rng(1).permutation(again["rows"][0]["samples_ms"])[:12]
    again["rows"][0]["samples_ms"] = list(samples)
    again["rows"][0]["p50"] = noisy["rows"][0]["p50"] * 1.06
    assert compare(noisy, again)[0] == 0


def test_a_disturbed_row_says_so(compare):
    busy = record(row("k", 1.2, reasons=["disturbed: other processes used 1.0 cores"]))
    code, told = compare(record(row("k")), busy)
    assert code == 1
    assert "slower (disturbed by other processes)" in told


def test_a_row_that_lost_its_speed_is_a_regression(compare):
    wrong = row("k", status="wrong", p50=None, samples_ms=[])
    code, told = compare(record(row("k")), record(wrong))
    assert code == 1
    assert "ok -> wrong" in told
    assert compare(record(wrong), record(row("k")))[0] == 0
    assert compare(record(wrong), record(wrong))[0] == 0


def test_other_machines_are_refused_unless_told(compare):
    here, there = record(row("k")), record(row("k"), cpu="another CPU")
    code, told = compare(here, there)
    assert code == 3
    assert "cpu: a CPU and another CPU" in told
    assert compare(here, there, "--across-machines")[0] == 0
    code, told = compare(here, record(row("k"), threads=4))
    assert code == 3
    assert "threads: 2 and 4" in told


def test_rows_of_one_record_alone_are_counted(compare):
    both = record(row("k"), row("k", seqlen=256))
    code, told = compare(both, record(row("k")))
    assert code == 0
    assert "1 rows of the first record alone, 0 of the second" in told


def test_usage(compare, tmp_path, capsys):
    code, told = compare(record(row("k")), record(row("other")))
    assert code == 2
    assert "no row in common" in told
    assert compare(record(row("k")), record(row("k")), "--fail-on", "much")[0] == 2
    assert main(["compare", "nowhere.json", "nowhere.json"]) == 2
    (tmp_path / "c.json").write_text("{}")
    assert main(["compare", str(tmp_path / "c.json"), str(tmp_path / "c.json")]) == 2
    assert "no record of attnbench" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "a.json"])
    assert stopped.value.code == 2


def test_another_schema_is_refused(tmp_path):
    future = {**record(row("k")), "schema": 2}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(future))
    with pytest.raises(ValueError, match="schema 2, this version reads 1"):
        load(path)


def test_a_record_comes_back_whole(tmp_path):
    bad = row("k", status="wrong", max_error=float("nan"))
    save(record(row("k"), bad), tmp_path / "new" / "a.json")
    text = (tmp_path / "new" / "a.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    again = load(tmp_path / "new" / "a.json")
    assert np.isnan(again["rows"][1]["max_error"])
    assert again["rows"][0] == record(row("k"))["rows"][0]


def test_limits():
    assert parse_limit("5%") == pytest.approx(0.05)
    assert parse_limit("0.1") == 0.1
    for text in ("", "%", "-1%", "nan", "inf"):
        with pytest.raises(ValueError, match="takes a share"):
            parse_limit(text)


def test_the_interval_holds_the_ratio():
    random = np.random.default_rng(0)
    low, high = ratio_interval(random.normal(10, 1, 200), random.normal(11, 1, 200))
    assert 1.05 < low < 1.1 < high < 1.15
