"""The door that every launch goes through: devices, grids, configurations, recordings, targets."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_calls import DEVICE

# isort: split
import torch
import triton
import triton.language as tl

from glassformer_kernels import launch, targets, tuning
from glassformer_kernels.launch import Config
from glassformer_kernels.targets import INTERPRETER, TARGETS, target_of

ROOT = Path(__file__).parents[2]
SMALL, LARGE = Config({"BLOCK": 4}), Config({"BLOCK": 64}, num_warps=8, num_stages=2)


@triton.jit
def _numbers(p_x, n, BLOCK: tl.constexpr):
    """Write to each element which program wrote it, and of how many."""
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    tl.store(p_x + o, tl.program_id(0) * 1000 + tl.num_programs(0), mask=o < n)


def numbers(x, configs=(SMALL, LARGE), kernel=_numbers, **options):
    launch.launch(
        kernel,
        lambda blocks: launch.cdiv(len(x), blocks["BLOCK"]),
        configs,
        p_x=x,
        n=len(x),
        **options,
    )
    return x.tolist()


def zeros(n=10):
    return torch.zeros(n, dtype=torch.int32, device=DEVICE)


class Spy:
    """Stands for a kernel, and keeps what it is launched with."""

    __name__ = "_spied"

    def __init__(self):
        self.launches = []

    def __getitem__(self, grid):
        return lambda **args: self.launches.append((grid, args))


# ---- grids and configurations -------------------------------------------------------------------


def test_the_first_configuration_is_taken_and_the_grid_follows_it():
    assert numbers(zeros()) == [3] * 4 + [1003] * 4 + [2003] * 2
    assert numbers(zeros(), (LARGE, SMALL)) == [1] * 10


def test_a_forced_configuration_is_used_by_the_kernel_of_that_name_alone():
    with launch.use_config(numbers=Config({"BLOCK": 8})):
        with launch.use_config(other=SMALL):
            assert numbers(zeros()) == [2] * 8 + [1002] * 2
        with launch.use_config(numbers=LARGE):
            assert numbers(zeros()) == [1] * 10
        assert numbers(zeros()) == [2] * 8 + [1002] * 2
    with pytest.raises(KeyError), launch.use_config(numbers=LARGE):
        raise KeyError
    assert numbers(zeros()) == [3] * 4 + [1003] * 4 + [2003] * 2


@given(n=st.integers(0, 200), size=st.sampled_from([1, 2, 16, 64]))
def test_the_grid_has_one_dimension_and_covers_everything(n, size):
    spy = Spy()
    numbers(zeros(n), [Config({"BLOCK": size})], spy)
    assert [grid for grid, _ in spy.launches] == ([(-(-n // size),)] if n else [])


def test_a_grid_of_nothing_is_not_launched():
    spy = Spy()
    for programs in (0, -1, lambda blocks: 0):
        launch.launch(spy, programs, [SMALL], p_x=zeros())
    assert spy.launches == []


def test_a_kernel_gets_its_arguments_the_blocks_and_the_options_by_name():
    spy = Spy()
    x = zeros()
    launch.launch(spy, 2, [LARGE], p_x=x, n=3, twice=lambda blocks: 2 * blocks["BLOCK"])
    [(grid, args)] = spy.launches
    assert grid == (2,)
    assert args.pop("p_x") is x
    assert args == {
        "n": 3,
        "twice": 128,
        "BLOCK": 64,
        "num_warps": 8,
        "num_stages": 2,
        "enable_fp_fusion": True,
    }


# ---- devices ------------------------------------------------------------------------------------


@contextmanager
def fake_cuda(monkeypatch):
    """Tensors that say they are on cuda:1, and the devices that were made current."""
    current = []

    @contextmanager
    def device(which):
        current.append(which)
        yield
        current.append(None)

    # A class of its own: `isinstance(x, torch.Tensor)` is how launch finds a device.
    class OnGpu(torch.Tensor):
        device = torch.device("cuda", 1)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(tuning, "_gpu_name", lambda device: "NVIDIA Test 9000")
    yield torch.zeros(4).as_subclass(OnGpu), current


def test_edge_18_the_tensors_own_device_is_current_while_a_kernel_runs(monkeypatch):
    with fake_cuda(monkeypatch) as (x, current):
        spy = Spy()
        spy.launches = SimpleNamespace(append=lambda launch: seen.append(list(current)))
        seen = []
        launch.launch(spy, lambda blocks: 1, [SMALL, LARGE], p_x=x)
        assert seen == [[torch.device("cuda", 1)]]
        assert current == [torch.device("cuda", 1), None], "the current device was not given back"


def test_the_current_device_is_given_back_if_a_launch_fails(monkeypatch):
    entered = []

    class Guard:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *error):
            entered.append(None)

    def fail(blocks):
        raise RuntimeError("no such grid")

    with fake_cuda(monkeypatch) as (x, _):
        monkeypatch.setattr(torch.cuda, "device", Guard)
        with pytest.raises(RuntimeError, match="no such grid"):
            launch.launch(Spy(), fail, [SMALL], p_x=x)
    assert entered == [torch.device("cuda", 1), None]


@pytest.mark.parametrize("mutates", [False, True])
def test_what_mutates_is_launched_once_even_while_tuning(monkeypatch, tmp_path, mutates):
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(triton.testing, "do_bench", lambda call, return_mode: (call(), 1.0)[1])
    spy = Spy()
    with fake_cuda(monkeypatch) as (x, _), tuning.autotune():
        launch.launch(spy, 1, [SMALL, LARGE], mutates=mutates, p_x=x)
    assert len(spy.launches) == (1 if mutates else 3)


def test_without_the_interpreter_a_cpu_tensor_is_refused_with_the_way_out():
    program = """
import torch
from glassformer_kernels import launch
def _kernel(): pass
try:
    launch.launch(_kernel, 1, [launch.Config()], p_x=torch.zeros(1))
except ValueError as error:
    print(error)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT / "engine", ROOT / "kernels")))
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == (
        "kernel runs on CUDA tensors, got tensors on cpu; move them there, or set "
        "TRITON_INTERPRET=1 before the first import of triton to run it slowly on CPU tensors"
    ), done.stderr


def test_a_tensor_of_no_memory_is_refused():
    with pytest.raises(ValueError, match="spied runs on CUDA tensors, got tensors on meta"):
        launch.launch(Spy(), 1, [SMALL], p_x=torch.zeros(1, device="meta"))


# ---- recordings ---------------------------------------------------------------------------------


def test_a_recording_keeps_launches_and_makes_none():
    x = torch.empty(10, dtype=torch.int32, device="meta")
    spy = Spy()
    with launch.recording() as launches:
        launch.launch(
            spy, 3, [SMALL, LARGE], key=("a",), p_x=x, n=lambda blocks: blocks["BLOCK"] + 1
        )
    assert spy.launches == []
    [made] = launches
    assert made.kernel is spy
    assert made.key == ("a",)
    assert made.configs == (SMALL, LARGE)
    assert made.arguments(SMALL) == {"p_x": x, "n": 5, "BLOCK": 4}
    assert made.arguments(LARGE) == {"p_x": x, "n": 65, "BLOCK": 64}


def test_a_recording_is_made_as_if_on_its_target_and_ends():
    x = torch.empty(1, device="meta")
    with launch.recording(TARGETS["gfx942"]) as outer:
        assert launch.target_for(x).name == "gfx942"
        with launch.recording(TARGETS["sm_90"]) as inner:
            assert launch.target_for(x).has_tma
            launch.launch(Spy(), 1, [SMALL], p_x=x)
        assert launch.target_for(x).name == "gfx942"
    assert launch.target_for(x) is INTERPRETER
    assert (len(outer), len(inner)) == (0, 1)


# ---- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arch", "shared", "has_tma"),
    [  # CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"
        ("sm_80", 80, 163, False),
        ("sm_86", 86, 99, False),
        ("sm_89", 89, 99, False),
        ("sm_90", 90, 227, True),
        ("sm_100", 100, 227, True),
        ("sm_120", 120, 99, True),
    ],
)
def test_nvidia_targets(name, arch, shared, has_tma):
    target = TARGETS[name]
    assert (target.backend, target.arch, target.warp_size) == ("cuda", arch, 32)
    assert target.shared_memory == shared * 1024
    assert target.has_tma == has_tma


def test_amd_s_target():
    target = TARGETS["gfx942"]
    assert (target.backend, target.arch, target.warp_size) == ("hip", "gfx942", 64)
    assert target.shared_memory == 64 * 1024
    assert not target.has_tma


def properties(monkeypatch, hip=None, **values):
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**values)
    )
    monkeypatch.setattr(torch.version, "hip", hip)
    targets.target_of.cache_clear()
    try:
        return target_of(torch.device("cuda", 0))
    finally:
        targets.target_of.cache_clear()


def test_a_device_s_target_is_found_by_its_properties(monkeypatch):
    assert properties(monkeypatch, major=9, minor=0) is TARGETS["sm_90"]
    assert properties(monkeypatch, major=8, minor=6) is TARGETS["sm_86"]
    assert properties(monkeypatch, "6.2", gcnArchName="gfx942:sramecc+:xnack-") is TARGETS["gfx942"]
    assert target_of(torch.device("cpu")) is INTERPRETER


def test_an_unknown_device_is_described_by_what_it_says(monkeypatch):
    new = properties(monkeypatch, major=11, minor=3, shared_memory_per_block_optin=300_000)
    assert (new.name, new.arch, new.shared_memory) == ("sm_113", 113, 300_000)
    assert properties(monkeypatch, major=7, minor=5).shared_memory == 99 * 1024
    amd = properties(monkeypatch, "6.2", gcnArchName="gfx1100")
    assert (amd.name, amd.backend, amd.arch) == ("gfx1100", "hip", "gfx1100")


# ---- numbers ------------------------------------------------------------------------------------


@given(st.integers(0, 2**40))
def test_next_power_of_2_is_the_smallest_that_is_large_enough(n):
    power = launch.next_power_of_2(n)
    assert power & (power - 1) == 0
    assert power >= max(n, 1)
    assert power == 1 or power // 2 < n


@given(st.integers(0, 2**40), st.integers(1, 2**20))
def test_cdiv_is_how_many_tiles_cover(n, size):
    tiles = launch.cdiv(n, size)
    assert tiles * size >= n
    assert tiles == 0 or (tiles - 1) * size < n


def test_views_of_the_same_memory_are_known():
    x = zeros()
    assert launch.share_memory(x, x[::2])
    assert launch.share_memory(x[:5], x[5:])
    assert not launch.share_memory(x, zeros())


def test_configurations_are_told_apart_by_what_they_print():
    assert str(LARGE) == "BLOCK=64 warps=8 stages=2"
    assert str(Config()) == "warps=4 stages=1"
    assert Config({"BLOCK": 4}) == SMALL
    assert len({SMALL, Config({"BLOCK": 4}), LARGE}) == 2


def test_float32_products_are_exact_unless_pytorch_was_told_that_tf32_will_do():
    x = torch.empty(1, device="meta")
    asked = torch.get_float32_matmul_precision()
    try:
        for wish, on_nvidia in (("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")):
            torch.set_float32_matmul_precision(wish)
            for name, expected in (("sm_90", on_nvidia), ("sm_80", on_nvidia), ("gfx942", "ieee")):
                with launch.recording(TARGETS[name]):
                    assert launch.dot_precision(x) == expected
    finally:
        torch.set_float32_matmul_precision(asked)
