"""Worker threads: every chunk once, errors raised, and BLAS's own threads put back."""

import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer.backends.blas import numpy_blas
from glassformer.backends.threads import (
    get_num_threads,
    grain_for,
    parallel_for,
    set_num_threads,
    single_threaded_blas,
)


@pytest.fixture
def four_threads():
    before = get_num_threads()
    set_num_threads(4)
    yield
    set_num_threads(before)


def blas_threads():
    blas = numpy_blas()
    return None if blas is None else blas.get_num_threads()


@given(st.integers(0, 100), st.integers(1, 120), st.integers(1, 4))
def test_every_index_once_in_chunks_of_the_grain(total, grain, count):
    chunks = []
    before = get_num_threads()
    set_num_threads(count)
    try:
        parallel_for(lambda start, stop: chunks.append((start, stop)), total, grain)
    finally:
        set_num_threads(before)
    assert sorted(chunks) == [(i, min(i + grain, total)) for i in range(0, total, grain)]


@given(st.integers(0, 10_000), st.integers(1, 5_000))
def test_grain_covers_and_is_even(rows, size):
    grain = grain_for(rows, size)
    assert grain >= 1
    chunks = -(-rows // grain)
    if rows * size < 3 * 2**16:
        assert chunks <= 1
    elif rows >= chunks**2:  # enough rows to be shared out evenly
        assert chunks % 2 == 0
        assert 3 * 2**15 - size <= grain * size < 2**18 + size


def test_several_threads_share_the_work(four_threads):
    seen = set()
    together = threading.Barrier(4)

    def chunk(start, stop):
        together.wait(timeout=30)  # no chunk ends before four have begun
        seen.add(threading.get_ident())

    parallel_for(chunk, 4, 1)
    assert len(seen) == 4
    assert threading.get_ident() in seen


def test_one_thread_means_the_caller():
    before = get_num_threads()
    set_num_threads(1)
    try:
        seen = []
        parallel_for(lambda start, stop: seen.append(threading.get_ident()), 10, 1)
    finally:
        set_num_threads(before)
    assert seen == [threading.get_ident()] * 10


def test_an_error_is_raised_and_the_rest_is_left(four_threads):
    started = []

    def chunk(start, stop):
        started.append(start)
        if start == 5:
            raise KeyError("five")

    with pytest.raises(KeyError, match="five"):
        parallel_for(chunk, 100_000, 1)
    assert len(started) < 100_000
    done = []
    parallel_for(lambda start, stop: done.append(start), 50, 1)
    assert sorted(done) == list(range(50))


def test_nested_calls_run_where_they_are(four_threads):
    def chunk(start, stop):
        mine = threading.get_ident()
        inner = []
        parallel_for(lambda a, b: inner.append(threading.get_ident()), 8, 1)
        assert inner == [mine] * 8

    parallel_for(chunk, 8, 1)


def test_no_warnings_from_any_thread(four_threads):
    zeros = np.zeros(1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_for(lambda start, stop: np.divide(zeros, zeros), 8, 1)
        parallel_for(lambda start, stop: np.log(zeros), 1, 1)


def test_sixteen_callers_at_once(four_threads):
    wrong = []

    def caller(seed):
        x = np.random.default_rng(seed).standard_normal(10_000)
        for _ in range(30):
            out = np.empty_like(x)
            parallel_for(lambda a, b, out=out: np.multiply(x[a:b], 2, out=out[a:b]), len(x), 500)
            if not (out == 2 * x).all():
                wrong.append(seed)

    callers = [threading.Thread(target=caller, args=(seed,)) for seed in range(16)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong


def test_number_of_threads_follows_the_environment():
    code = "from glassformer.backends.threads import get_num_threads; print(get_num_threads())"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, name: "3"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == ["3"]


def test_fewer_than_one_thread():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        set_num_threads(0)


def test_single_threaded_blas_nests_and_ends():
    before = blas_threads()
    if before is None:
        pytest.skip("NumPy was built with another BLAS")
    with single_threaded_blas():
        assert blas_threads() == 1
        with single_threaded_blas():
            assert blas_threads() == 1
        assert blas_threads() == 1
    assert blas_threads() == before
    with pytest.raises(KeyError), single_threaded_blas():
        raise KeyError
    assert blas_threads() == before


def test_single_threaded_blas_from_several_threads():
    before = blas_threads()
    if before is None:
        pytest.skip("NumPy was built with another BLAS")
    inside, leave = threading.Event(), threading.Event()

    def other():
        with single_threaded_blas():
            inside.set()
            leave.wait(timeout=30)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(timeout=30)
    with single_threaded_blas():
        pass
    assert blas_threads() == 1  # the other thread is still inside
    leave.set()
    thread.join()
    assert blas_threads() == before


def test_setting_threads_sets_those_of_blas():
    before = get_num_threads()
    try:
        for count in (1, 2):
            set_num_threads(count)
            assert get_num_threads() == count
            assert blas_threads() in (count, None)
        with single_threaded_blas():
            set_num_threads(1)
            set_num_threads(2)
            assert blas_threads() in (1, None)
        assert blas_threads() in (2, None)
    finally:
        set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_process_has_workers_of_its_own():
    code = """
import os
from glassformer.backends.threads import parallel_for, set_num_threads
set_num_threads(3)
done = []
parallel_for(lambda a, b: done.append(a), 30, 1)
child = os.fork()
if child == 0:
    done = []
    parallel_for(lambda a, b: done.append(a), 30, 1)
    os._exit(0 if sorted(done) == list(range(30)) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    # A fork while other threads run makes newer Pythons warn; that is the case under test.
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_inference_on_sixteen_threads_is_serial_inference():
    x = gf.randn(700, 512)
    weight, bias = gf.randn(512), gf.randn(512)

    def infer():
        with gf.no_grad():
            y = gf.nn.functional.layer_norm(x, (512,), weight, bias)
            y = gf.nn.functional.gelu(y, approximate="tanh")
            return gf.nn.functional.log_softmax(y).numpy()

    expected = infer()
    wrong = []

    def caller():
        for _ in range(3):
            if not (infer() == expected).all():
                wrong.append(1)

    callers = [threading.Thread(target=caller) for _ in range(16)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong
