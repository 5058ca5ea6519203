"""Runs: rows of every status, isolation, timeouts, interruption, baselines."""

import sys
import time

import pytest
import torch

from glassformer_bench import runner
from glassformer_bench.ceilings import Ceilings
from glassformer_bench.isolation import measure_apart
from glassformer_bench.problem import Problem, normalised
from glassformer_bench.providers import resolve
from glassformer_bench.providers.plugged import Plugged
from glassformer_bench.row import Row
from glassformer_bench.runner import Plan, compare_with, run
from glassformer_bench.timing import Settings
from tests.bench import cheats

SIZES = {"batch": 1, "heads": 2, "kv_heads": 2, "seqlen": 32, "seqlen_k": 32, "head_dim": 16}
QUICK = Settings(warmup_ms=1, rep_ms=10)


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    def measure(self, dtypes):
        self.flops = dict.fromkeys(dtypes, 1e15)
        self.copy = self.read = 1e15

    monkeypatch.setattr(Ceilings, "measure", measure)


def problem(**changes):
    return normalised(Problem(**{**SIZES, **changes}))


def plan(providers, problems=None, **changes):
    options = {"settings": QUICK, "l2": ["hot"], "device": "cpu", "threads": 1, **changes}
    return Plan(problems=problems or [problem()], providers=providers, **options)


def cheat(name):
    return Plugged(name, getattr(cheats, name), name)


def test_each_provider_costs_its_own_rows_only(capsys):
    names = ("raises", "out_of_memory", "zeros", "honest")
    outcome = run(plan([*map(cheat, names), *resolve(["sdpa", "flash_attn"], [])]))
    assert [row.status for row in outcome.rows] == [
        *("unsupported", "oom", "wrong", "ok", "ok", "unsupported")
    ]
    told = capsys.readouterr().err
    assert "[1 of 6] raises: attention 1x2x32x16 fp32 fwd" in told
    assert "[4 of 6, about 0 s left] honest" in told
    assert "wrong: out: max error" in told


def test_quiet_is_quiet(capsys):
    run(plan([cheat("zeros")], is_quiet=True))
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_keeps_the_finished_rows(capsys):
    def interrupted(query, key, value):
        raise KeyboardInterrupt

    late = Plugged("late", interrupted, "late")
    outcome = run(plan([cheat("honest"), late, cheat("zeros")], baseline="honest"))
    assert outcome.is_interrupted
    assert [(row.provider, row.status) for row in outcome.rows] == [("honest", "ok")]
    assert outcome.rows[0].speedup == 1
    assert "interrupted: 1 of 3 rows are finished" in capsys.readouterr().err


def test_speed_up_is_over_the_same_problem():
    def row(provider, p50, seqlen=32, status="ok"):
        return Row(provider, problem(seqlen=seqlen).to_dict(), "wall", "hot", status, p50=p50)

    rows = [
        row("a", 4.0), row("b", 2.0), row("b", 3.0, 64), row("a", 9.0, 64),
        row("b", None, status="wrong"), row("b", 1.0, status="suspicious"), row("b", 1.0, 128),
    ]  # fmt: skip
    compare_with(rows, "a")
    assert [r.speedup for r in rows] == [1, 2, 3, 1, None, None, None]


def test_both_states_of_the_cache_are_rows_of_their_own():
    outcome = run(plan([cheat("honest")], l2=["cold", "hot"]))
    assert [(row.l2, row.status) for row in outcome.rows] == [("cold", "ok"), ("hot", "ok")]


def test_verification_alone_times_nothing():
    outcome = run(plan([cheat("honest"), cheat("right_once")], is_timed=False))
    assert [row.status for row in outcome.rows] == ["ok", "wrong"]
    assert outcome.ceilings is None
    assert outcome.rows[0].p50 is None
    assert outcome.rows[0].max_error > 0


def test_threads_are_fixed():
    seen = []

    def kernel(query, key, value):
        seen.append(torch.get_num_threads())
        return cheats.honest(query, key, value)

    run(plan([Plugged("kernel", kernel, "kernel")], threads=1))
    assert set(seen) == {1}


def test_the_answer_is_computed_once_for_all_providers(monkeypatch):
    made = []
    original = runner.oracles
    monkeypatch.setattr(runner, "oracles", lambda p: made.append(p) or original(p))
    run(plan([cheat("honest"), cheat("zeros")], problems=[problem(), problem(seqlen=16)]))
    assert len(made) == 2


def apart(name, timeout=None):
    spec = f"{name}={cheats.__file__}:{name}"
    ceilings = Ceilings("cpu", flops={"fp32": 1e15}, copy=1e15, read=1e15)
    return measure_apart(problem(), name, [spec], QUICK, ceilings, True, 1, timeout)


def test_a_row_in_a_process_of_its_own():
    row = apart("honest")
    assert (row.status, row.reasons) == ("ok", [])
    assert row.n == len(row.samples_ms) > 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_process_that_dies_costs_its_own_row():
    row = apart("dies")
    assert (row.status, row.reasons) == ("wrong", ["its process died of SIGSEGV"])


def test_a_process_that_hangs_is_ended():
    start = time.monotonic()
    row = apart("hangs", timeout=3)
    assert (row.status, row.reasons) == ("timeout", ["no result after 3 s"])
    assert time.monotonic() - start < 60
