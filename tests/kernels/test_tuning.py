"""The choice of a configuration: what is timed, what is kept for whom, what a bad file does."""

import json
import os
import subprocess
import sys
import threading
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_calls import DEVICE

# isort: split
import torch
import triton

from glassformer_kernels import launch, optimizer_step, rotary, tuning
from glassformer_kernels.cross_entropy import cross_entropy_backward, cross_entropy_forward
from glassformer_kernels.launch import Config
from glassformer_kernels.product import multiply
from glassformer_kernels.softmax import backward as softmax_backward
from glassformer_kernels.softmax import forward as softmax_forward

ROOT = Path(__file__).parents[2]
GPU = torch.device("cuda", 0)
CONFIGS = [Config({"BLOCK": size}, num_warps=4) for size in (64, 128, 256)]
FIRST, SECOND, THIRD = CONFIGS
KEY = (torch.float16, 1024, True)
ENTRY = "kernel torch.float16 1024 True"


@pytest.fixture(autouse=True)
def forget():
    """Forget what was read of cache files."""
    tuning._read.cache_clear()
    yield
    tuning._read.cache_clear()


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU whose name and kernels' times can be set, and an empty cache."""

    class Fake:
        name = "NVIDIA Test 9000"
        times = {64: 3.0, 128: 1.0, 256: 2.0}
        timed: list[int] = []

        def run(self, config):
            self.last = config.blocks["BLOCK"]

        def bench(self, call, return_mode):
            assert return_mode == "median"
            call()
            self.timed.append(self.last)
            if self.times[self.last] is None:
                raise triton.runtime.errors.OutOfResources(300_000, 232_448, "shared memory")
            return self.times[self.last]

        def choose(self, configs=CONFIGS, key=KEY, name="kernel"):
            return tuning.choose(name, key, configs, self.run, GPU)

    fake = Fake()
    fake.timed = []
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_gpu_name", lambda device: fake.name)
    monkeypatch.setattr(triton.testing, "do_bench", fake.bench)
    return fake


# ---- what is timed ------------------------------------------------------------------------------


def test_nothing_is_timed_unless_asked_for(gpu, tmp_path):
    assert gpu.choose() is FIRST
    assert gpu.timed == []
    assert list(tmp_path.iterdir()) == []


def test_the_fastest_is_found_once_and_taken_from_then_on(gpu):
    with tuning.autotune():
        assert gpu.choose() is SECOND
        assert gpu.timed == [64, 128, 256]
        assert gpu.choose() is SECOND
    assert gpu.choose() is SECOND
    assert gpu.timed == [64, 128, 256]


def test_another_key_or_kernel_is_timed_by_itself(gpu):
    with tuning.autotune():
        gpu.choose()
        gpu.times = {64: 1.0, 128: 2.0, 256: 3.0}
        assert gpu.choose(key=(torch.float32, 1024, True)) is FIRST
        assert gpu.choose(name="other") is FIRST
        assert gpu.choose() is SECOND
    assert len(gpu.timed) == 9


def test_one_configuration_is_nothing_to_choose_from(gpu):
    with tuning.autotune():
        assert gpu.choose([THIRD]) is THIRD
    assert gpu.timed == []


def test_on_the_cpu_nothing_is_timed(gpu):
    with tuning.autotune():
        taken = tuning.choose("kernel", KEY, CONFIGS, gpu.run, torch.device("cpu"))
    assert taken is FIRST
    assert gpu.timed == []


def test_what_needs_more_than_the_gpu_has_is_out(gpu):
    gpu.times = {64: 3.0, 128: None, 256: 2.0}
    with tuning.autotune():
        assert gpu.choose() is THIRD


def test_if_nothing_can_run_the_first_is_taken(gpu):
    gpu.times = {64: None, 128: None, 256: None}
    with tuning.autotune():
        assert gpu.choose() is FIRST


def test_another_failure_is_not_hidden(gpu):
    def broken(config):
        raise RuntimeError("an illegal memory access")

    with tuning.autotune(), pytest.raises(RuntimeError, match="illegal memory access"):
        tuning.choose("kernel", KEY, CONFIGS, broken, GPU)


def test_a_kernel_that_cannot_run_twice_is_never_timed_but_takes_what_is_kept(gpu):
    with tuning.autotune():
        assert tuning.choose("kernel", KEY, CONFIGS, None, GPU) is FIRST
        assert gpu.timed == []
        gpu.choose()
        assert tuning.choose("kernel", KEY, CONFIGS, None, GPU) is SECOND


def test_tuning_is_on_in_every_thread_and_until_it_ends(gpu):
    def elsewhere():  # as backward is, in PyTorch
        assert gpu.choose() is SECOND
        ended.append(True)

    ended = []
    with tuning.autotune():
        with tuning.autotune():
            pass
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert ended == [True]
        assert gpu.choose(name="other") is SECOND, "the inner block switched the outer off"
    with pytest.raises(KeyError), tuning.autotune():
        raise KeyError
    assert gpu.choose(name="another") is FIRST


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_the_fastest_takes_the_least_and_is_the_first_of_equals(times):
    configs = [Config({"BLOCK": i}) for i in range(len(times))]
    run_last = []
    best = tuning.fastest(
        configs,
        lambda config: run_last.append(config.blocks["BLOCK"]),
        lambda call: (call(), float(times[run_last[-1]]))[1],
    )
    assert best is configs[times.index(min(times))]
    assert run_last == list(range(len(times)))


def half_precision(*shape):
    return torch.ones(shape, dtype=torch.float16, device=DEVICE)


def softmax_in_place(x, **options):
    softmax_forward(x, out=x, **options)


def adamw(x):
    state = torch.zeros_like(x, dtype=torch.float32)
    hyper = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    optimizer_step.adamw_step(x, x.clone(), state, state.clone(), step=1, **hyper)


def rotate(x, in_place):
    table = torch.ones(x.shape[-2], x.shape[-1] // 2, device=DEVICE)
    rotary.rotate(x, table, table, out=x if in_place else None)


def backward_of_cross_entropy(x, in_place):
    target = torch.zeros(len(x), dtype=torch.int64, device=DEVICE)
    losses, lse = cross_entropy_forward(x, target)
    cross_entropy_backward(losses, x, target, lse, in_place=in_place)


def product(x, add):
    scale = torch.ones(1, device=DEVICE)
    multiply(x, x.T, half_precision(len(x), len(x)), scale, add=add)


@pytest.mark.parametrize(
    ("call", "mutates"),
    [
        (adamw, True),
        (lambda x: softmax_forward(x), False),
        (softmax_in_place, True),
        (lambda x: softmax_forward(x[:, :16], out=x[:, :16]), True),
        (lambda x: softmax_backward(x, softmax_forward(x)), False),
        (lambda x: softmax_backward(x, softmax_forward(x), out=x), True),
        (partial(rotate, in_place=False), False),
        (partial(rotate, in_place=True), True),
        (partial(backward_of_cross_entropy, in_place=False), False),
        (partial(backward_of_cross_entropy, in_place=True), True),
        (partial(product, add=False), False),
        (partial(product, add=True), True),
    ],
)
@pytest.mark.parametrize("longest", [0, 1 << 15])
def test_kernels_that_write_over_what_they_read_say_so(monkeypatch, call, mutates, longest):
    def spy(kernel, *args, **kwargs):
        said.append(kwargs.get("mutates", False))
        return real(kernel, *args, **kwargs)

    said, real = [], launch.launch
    monkeypatch.setattr(launch, "launch", spy)
    softmax = import_module("glassformer_kernels.softmax")
    monkeypatch.setattr(softmax, "LONGEST_FORWARD", longest)
    monkeypatch.setattr(softmax, "LONGEST_BACKWARD", longest)
    call(half_precision(16, 32))
    assert said[-1] is mutates
    assert not any(said[:-1])


# ---- what is kept -------------------------------------------------------------------------------


def test_another_gpu_does_not_see_the_choice(gpu):
    with tuning.autotune():
        gpu.choose()
    gpu.name = "NVIDIA Test 9001"
    assert gpu.choose() is FIRST


def test_another_triton_does_not_see_the_choice(gpu, monkeypatch):
    with tuning.autotune():
        gpu.choose()
    monkeypatch.setattr(triton, "__version__", "99.0")
    assert gpu.choose() is FIRST


def test_a_new_process_takes_the_kept_choice(gpu, tmp_path):
    with tuning.autotune():
        gpu.choose()
    program = f"""
import torch
torch.cuda.get_device_name = lambda device: {gpu.name!r}
from glassformer_kernels import tuning
from glassformer_kernels.launch import Config
configs = [Config({{"BLOCK": size}}, num_warps=4) for size in (64, 128, 256)]
key = (torch.float16, 1024, True)
print(tuning.choose("kernel", key, configs, None, torch.device("cuda", 0)))
"""
    paths = map(str, (ROOT / "engine", ROOT / "kernels"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(SECOND), done.stderr


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "here"))
    assert tuning.cache_file("A GPU").parent == tmp_path / "here" / "tuning"
    monkeypatch.delenv("GLASSFORMER_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning.cache_file("A GPU").parent == tmp_path / ".cache" / "glassformer" / "tuning"


@given(st.text())
def test_no_name_of_a_gpu_leads_out_of_the_folder(name):
    path = tuning.cache_file(name)
    assert path.parent.name == "tuning"
    assert path.name.isascii()
    assert path.name.endswith(".json")


def test_a_file_keeps_all_choices_and_no_temporary_one_is_left(tmp_path):
    path = tmp_path / "folder" / "a.json"
    tuning.keep(path, "one", "x")
    tuning.keep(path, "two", "y")
    tuning.keep(path, "one", "z")
    assert tuning._read(path) == {"one": "z", "two": "y"}
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    tuning.keep(path, "one", "x")

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="no space left"):
        tuning.keep(path, "two", "y")
    assert tuning._read(path) == {"one": "x"}
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_said_and_known_in_this_process(gpu, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "file"))
    with tuning.autotune():
        with pytest.warns(UserWarning, match="can't be kept"):
            assert gpu.choose() is SECOND
        assert gpu.choose() is SECOND
    assert gpu.timed == [64, 128, 256]


# ---- files that aren't as we write them ---------------------------------------------------------

GOOD = {"format": 1, "choices": {ENTRY: str(SECOND)}}


def write(gpu, text):
    path = tuning.cache_file(gpu.name)
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_as_we_write_it_is_read(gpu):
    write(gpu, json.dumps(GOOD))
    assert gpu.choose() is SECOND


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        b"\xff\xfe\x00",
        "null",
        "[]",
        '"format"',
        json.dumps(GOOD)[:-2],
        json.dumps(GOOD | {"format": 2}),
        json.dumps(GOOD | {"choices": [ENTRY]}),
        json.dumps(GOOD | {"choices": {ENTRY: 128}}),
        json.dumps(GOOD | {"choices": {ENTRY: {"BLOCK": 128}}}),
        json.dumps(GOOD | {"choices": {ENTRY: "BLOCK=1048576 warps=4 stages=1"}}),
        json.dumps(GOOD | {"choices": {ENTRY: "__import__('os').abort()"}}),
        "[" * 100_000 + "]" * 100_000,
        '{"format": 1, "choices": ' + '{"a": ' * 100_000 + "1" + "}" * 100_000 + "}",
        '{"format": ' + "9" * 10_000 + "}",
    ],
)
def test_a_damaged_or_hostile_file_counts_as_none_and_is_replaced_by_tuning(gpu, text):
    path = write(gpu, text)
    assert gpu.choose() is FIRST
    assert gpu.timed == []
    with tuning.autotune():
        assert gpu.choose() is SECOND
    assert json.loads(path.read_text())["choices"][ENTRY] == str(SECOND)


def test_one_wrong_entry_does_not_take_the_others_along(gpu):
    write(gpu, json.dumps({"format": 1, "choices": {"other": 3, ENTRY: str(THIRD)}}))
    assert gpu.choose() is THIRD


def test_a_folder_in_the_file_s_place_counts_as_none(gpu):
    tuning.cache_file(gpu.name).mkdir(parents=True)
    assert gpu.choose() is FIRST


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(anything | st.fixed_dictionaries({"format": st.just(1), "choices": anything}))
def test_any_content_is_read_as_choices_of_text(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("cache") / "a.json"
    path.write_text(json.dumps(content))
    choices = tuning._parse(path)
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in choices.items())
