"""Kernels that cheat are caught, and get no speed; an honest one passes."""

from pathlib import Path

import pytest
import torch

from glassformer_bench import timing
from glassformer_bench.ceilings import Ceilings
from glassformer_bench.cell import measure, oracles
from glassformer_bench.problem import Problem, normalised
from glassformer_bench.providers import plugged
from glassformer_bench.providers.plugged import Plugged
from glassformer_bench.timing import Settings
from tests.bench import cheats

SIZES = {"batch": 2, "heads": 2, "kv_heads": 2, "seqlen": 48, "seqlen_k": 48, "head_dim": 16}
QUICK = Settings(warmup_ms=1, rep_ms=10)
SLOW_DEVICE = {"flops": {"fp32": 1e15}, "copy": 1e15, "read": 1e15}  # a floor of nothing


def run(name, mode="fwd", settings=QUICK, check=True, ceilings=None, **changes):
    cheats.forget()
    problem = normalised(Problem(mode=mode, **{**SIZES, **changes}))
    provider = Plugged(name, getattr(cheats, name), name)
    if ceilings is None:
        ceilings = Ceilings("cpu", **SLOW_DEVICE)
    return measure(problem, provider, settings, ceilings, oracles(problem) if check else None)


@pytest.mark.parametrize("mode", ["fwd", "bwd", "fwd_bwd"])
@pytest.mark.parametrize("changes", [{}, {"causal": "top_left"}])
def test_an_honest_kernel_passes_in_every_mode(mode, changes):
    row = run("honest", mode, **changes)
    assert (row.status, row.reasons) == ("ok", [])
    assert 0 < row.p10 <= row.p50 <= row.p90
    assert row.n == len(row.samples_ms) >= 5
    assert 0 < row.mean_error < row.max_error < 1e-5
    expected = {"out"} if mode == "fwd" else {"out", "d_query", "d_key", "d_value"}
    assert set(row.errors) == expected
    assert row.tflops > 0
    assert row.gbps > 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zeros", "out: max error"),
        ("cached_by_shape", "new inputs in the same memory"),
        ("cached_by_pointer", "new inputs in the same memory"),
        ("replays_after_eight_calls", "timed call"),
        ("stale_buffer", "out: max error"),
        ("one_buffer_for_all", "out of an earlier call changed"),
        ("mutates_query", "it changed its input query"),
        ("wrong_dtype", "out is torch.float64, not torch.float32"),
        ("half_precision_inside", "out: max error"),
        ("wrong_shape", "out has shape (2, 2, 47, 16), not (2, 2, 48, 16)"),
        ("transposed", "out has shape (2, 48, 2, 16)"),
        ("nan_in_the_tail", "out holds NaN"),
        ("right_once", "second call, same inputs"),
        ("lazy", "out is a _Lazy"),
    ],
)
def test_a_cheat_is_caught(name, reason):
    row = run(name)
    assert row.status == "wrong"
    assert any(reason in told for told in row.reasons), row.reasons
    assert row.p50 is row.tflops is row.share is row.speedup is None
    assert row.samples_ms == []


def test_a_tail_that_is_never_written_is_caught():
    # Large enough that the allocator hands out a freed block again, which holds NaN.
    assert run("unwritten_tail", seqlen=47).status == "wrong"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wrong_key_gradient", "d_key: max error"),
        ("mutates_gradient", "it changed its input d_out"),
        ("right_once", "second call"),
        ("zeros", "out: max error"),
    ],
)
@pytest.mark.parametrize("mode", ["bwd", "fwd_bwd"])
def test_a_cheat_in_backward_is_caught(name, reason, mode):
    row = run(name, mode)
    assert row.status == "wrong"
    assert any(reason in told for told in row.reasons), row.reasons


def test_a_kernel_that_replaces_the_clock_gains_nothing():
    row = run("replaces_the_clock")
    assert row.status == "suspicious"
    assert row.reasons == ["it replaced time.perf_counter"]
    assert row.p50 > 0
    assert timing.replaced_clocks() == []
    row = run("replaces_the_clock_and_is_wrong")
    assert row.status == "wrong"
    assert row.reasons[-1] == "it replaced time.perf_counter"
    assert timing.replaced_clocks() == []


def test_a_time_below_the_floor_is_suspicious(monkeypatch):
    monkeypatch.setattr(Ceilings, "measure", lambda self, dtypes: None)
    weak = Ceilings("cpu", flops={"fp32": 1e6}, copy=1e12, read=1e12)
    row = run("honest", ceilings=weak)
    assert row.status == "suspicious"
    assert "below" in row.reasons[0]
    assert row.p50 > 0


def test_a_ceiling_that_others_pressed_down_accuses_nobody(monkeypatch):
    monkeypatch.setattr(Ceilings, "measure", lambda self, dtypes: None)
    weak = Ceilings("cpu", flops={"fp32": 1e6}, copy=1e12, read=1e12, is_disturbed=True)
    row = run("honest", ceilings=weak)
    assert row.status == "ok"
    assert "other processes had the cores" in row.reasons[0]


def test_before_anyone_is_accused_the_ceiling_is_measured_again():
    row = run("honest", ceilings=Ceilings("cpu", flops={"fp32": 1e6}, copy=1e6, read=1e6))
    assert row.status == "ok"


def test_a_kernel_that_raises_costs_its_own_row():
    row = run("raises")
    assert (row.status, row.reasons) == (
        "unsupported",
        ["it raised RuntimeError: no kernel image is available"],
    )


def test_out_of_memory_is_a_status():
    row = run("out_of_memory")
    assert row.status == "oom"
    assert "20.00 GiB" in row.reasons[0]


def test_a_kernel_without_gradients_says_so():
    row = run("one_buffer_for_all", "bwd")
    assert row.status == "unsupported"


def test_what_a_signature_does_not_name_cannot_be_asked_for():
    row = run("zeros", causal="top_left")
    assert (row.status, row.reasons) == (
        "unsupported",
        ["zeros takes no argument is_causal or causal"],
    )


def test_check_off_times_and_says_so():
    row = run("zeros", check=False)
    assert (row.status, row.reasons) == ("ok", ["unchecked"])
    assert row.p50 > 0
    assert row.max_error is None


def test_noise_is_told():
    row = run("honest", settings=Settings(warmup_ms=1, rep_ms=5, max_noise=0.0))
    assert row.reasons[0].startswith("noisy: ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_work_on_another_stream_is_caught():
    problem = normalised(Problem(device="cuda", **{**SIZES, "seqlen": 4096, "seqlen_k": 4096}))
    provider = Plugged("side", cheats.on_another_stream, "side")
    ceilings = Ceilings("cuda", **SLOW_DEVICE)
    row = measure(problem, provider, QUICK, ceilings, oracles(problem))
    assert row.status == "wrong"
    assert "busy stream" in row.reasons[-1] or "max error" in row.reasons[0]


def test_kernels_are_named_by_module_or_by_file():
    by_file = plugged(f"mine={Path(cheats.__file__)}:honest")
    by_module = plugged("torchs=torch.nn.functional:scaled_dot_product_attention")
    problem = normalised(Problem(causal="top_left", mode="fwd_bwd", **SIZES))
    for provider in (by_file, by_module):
        ceilings = Ceilings("cpu", **SLOW_DEVICE)
        assert measure(problem, provider, QUICK, ceilings, oracles(problem)).status == "ok"
    for spec, message in (
        ("mine", "NAME=package.module:function"),
        ("mine=torch.nn.functional:nothing", "has no 'nothing'"),
        ("mine=no_such_module:f", "no module 'no_such_module'"),
        ("mine=no/such/file.py:f", "no file no/such/file.py"),
        ("mine=math:pi", "is a float, not a function"),
    ):
        with pytest.raises(ValueError, match=message):
            plugged(spec)
