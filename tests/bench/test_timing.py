"""Clocks, statistics, ceilings and memory, on the CPU. The GPU's clocks need a GPU."""

import time

import numpy as np
import pytest
import torch

from glassformer_bench import ceilings as ceilings_module
from glassformer_bench import memory, timing
from glassformer_bench.ceilings import Ceilings
from glassformer_bench.counting import Work
from glassformer_bench.samples import is_enough, summarise
from glassformer_bench.timing import Settings, Step, timer_faults, wall


def test_summary():
    summary = summarise(range(1, 102))
    assert (summary.p10, summary.p50, summary.p90, summary.n) == (11, 51, 91, 101)
    assert summary.noise == pytest.approx(80 / 51)


def test_sampling_stops_when_the_mean_is_settled_or_the_time_is_up():
    steady = [1.0, 1.001] * 15
    wild = [1.0, 3.0] * 15
    assert is_enough(steady, 101, 500, None)
    assert not is_enough(steady, 99, 500, None)  # too short to know what others do to it
    assert not is_enough(wild, 10, 500, None)
    assert is_enough(wild, 501, 500, None)
    assert not is_enough(wild, 501, 500, 0.1)  # noisier than wanted: up to three times as long
    assert is_enough(wild, 1501, 500, 0.1)
    assert not is_enough(steady[:4], 501, 500, None)
    assert not is_enough(steady[:1], 1501, 500, None)
    assert is_enough(steady[:1], 5001, 500, None)


def test_the_wall_clock_measures_run_alone():
    order = []

    def setup():
        order.append("setup")
        time.sleep(0.004)
        return len(order)

    def run(prepared):
        assert prepared == len(order)
        order.append("run")
        time.sleep(0.002)
        return order.count("run")

    step = Step(lambda i: order.append(f"refresh {i}"), setup, run)
    samples, last = wall(step, Settings(warmup_ms=10, rep_ms=60))
    assert order[:3] == ["refresh 0", "setup", "run"]
    assert order[3] == "refresh 1"
    assert last == order.count("run") > len(samples) >= 5
    assert 2 <= min(samples) < 4  # a busy machine adds to some, and setup would to all


def test_a_cold_cache_is_flushed_before_each_call(monkeypatch):
    flushed = []
    monkeypatch.setattr(timing, "flusher", lambda device: lambda: flushed.append(device))
    calls = []
    step = Step(lambda i: None, lambda: None, lambda _: calls.append(1))
    wall(step, Settings(l2="cold", warmup_ms=0, rep_ms=1))
    assert len(flushed) == len(calls)


def test_the_flush_is_larger_than_the_cache():
    flushed = timing.flusher("cpu")()
    assert flushed.numel() >= 2 * timing.cpu_cache_bytes() >= 2 << 20


def test_timers_say_what_they_cannot():
    assert timing.chosen("auto", "cpu") == "wall"
    assert timing.chosen("auto", "cuda") == "event"
    assert timer_faults("wall", "cpu", "bwd") == []
    assert "GPU" in timer_faults("event", "cpu", "fwd")[0]
    assert "fwd_bwd" in timer_faults("graph", "cuda", "bwd")[0]


def test_replaced_clocks_are_found_and_restored():
    assert timing.replaced_clocks() == []
    original = time.perf_counter
    time.perf_counter = lambda: 0.0
    try:
        assert timing.replaced_clocks() == ["time.perf_counter"]
    finally:
        timing.restore_clocks()
    assert time.perf_counter is original
    assert timing.replaced_clocks() == []


def test_ceilings_on_the_cpu():
    ceilings = Ceilings("cpu")
    ceilings.measure(["fp32"])
    assert 1e9 < ceilings.flops["fp32"] < 1e14
    assert 1e9 < ceilings.copy < 1e13
    assert 1e9 < ceilings.read < 1e13
    assert Ceilings.from_dict(ceilings.to_dict()) == ceilings


def test_a_disturbed_ceiling_says_so(monkeypatch):
    monkeypatch.setattr(ceilings_module, "_product_rate", lambda device, dtype: 1e9)
    monkeypatch.setattr(ceilings_module, "_bandwidth", lambda device: (2e9, 1e9))
    for faults in (["disturbed"], []):
        monkeypatch.setattr(ceilings_module.Neighbours, "faults", faults)
        ceilings = Ceilings("cpu")
        ceilings.measure(["fp32"])
        assert ceilings.is_disturbed == bool(faults)


def test_the_floor_counts_bytes_where_the_cache_cannot_hold_them():
    ceilings = Ceilings("cpu", flops={"fp32": 1e9}, copy=1e9, read=2e9)
    small = Work(flops=2.5e6, least_flops=2e6, bytes=8e6, bytes_read=6e6)
    assert ceilings.floor_ms(small, "fp32", is_cold=False) == pytest.approx(2)
    assert ceilings.floor_ms(small, "fp32", is_cold=True) == pytest.approx(3)
    large = Work(flops=2.5e6, least_flops=2e6, bytes=1e12, bytes_read=6e6)
    assert ceilings.floor_ms(large, "fp32", is_cold=False) == pytest.approx(5e5)
    assert ceilings.share(small, "fp32", True, ms=5) == pytest.approx(0.8)
    assert ceilings.share(small, "fp32", False, ms=8) == pytest.approx(0.5)
    assert ceilings.share(small, "fp32", True, ms=1.25) == pytest.approx(3.2)


def test_peak_memory_on_the_cpu():
    def call():
        return float(torch.ones(64 * 1024**2 // 4).sum() + np.ones(32 * 1024**2 // 8).sum())

    peak = memory.peak_bytes("cpu", call)
    if peak is None:
        pytest.skip("this system doesn't tell")
    assert 60e6 < peak < 140e6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("timer", ["event", "graph", "wall"])
@pytest.mark.parametrize("l2", ["hot", "cold"])
def test_clocks_of_a_gpu_agree_with_a_known_delay(timer, l2):
    x = torch.zeros(1, device="cuda")
    cycles = 2_000_000  # about a millisecond

    def run(_):
        torch.cuda._sleep(cycles)
        return x + 1

    settings = Settings(l2=l2, warmup_ms=20, rep_ms=100)
    samples, last = timing.make_timer(timer, "cuda")(
        Step(lambda i: x.add_(1), lambda: None, run), settings
    )
    torch.cuda.synchronize()
    assert 0.5 < np.median(samples) < 5
    assert float(last) == float(x) + 1  # of the input as it was at the last call
