"""Matrix products of few rows, which take another way than the rest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer.backends import products
from glassformer.backends.blas import numpy_blas
from glassformer.backends.threads import parallel_for
from glassformer.grad_mode import set_grad_enabled

TOLERANCE = {"float64": 1e-12, "float32": 1e-4, "float16": 2e-2}


@given(
    st.sampled_from([0, 1, 2, 3, 4, 5, 17, 63, 64]),
    st.sampled_from([0, 1, 3, 300]),
    st.sampled_from([0, 1, 2, 4000]),
    st.sampled_from([*TOLERANCE]),
    st.booleans(),
)
def test_few_rows(rows, inner, columns, dtype, transposed):
    """Either layout of the second matrix, shared by threads or not, gives the sum of products."""
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, inner)).astype(dtype)
    weight = rng.standard_normal((columns, inner)).astype(dtype)
    y = weight.T if transposed else np.ascontiguousarray(weight.T)
    found = products.matmul(x, y)
    assert found.dtype == x.dtype
    expected = np.einsum("mk,nk->mn", x.astype("float64"), weight.astype("float64"))
    bound = TOLERANCE[dtype] * max(1.0, np.sqrt(inner))
    np.testing.assert_allclose(found, expected, atol=bound, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(("rows", "columns"), [(1, 8192), (3, 8192), (16, 4099), (70, 1000)])
@pytest.mark.parametrize("recorded", [True, False])
def test_the_number_of_threads_changes_little(rows, columns, recorded):
    """Nothing in dot products; elsewhere OpenBLAS rounds differently at the edge of a share."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 256), dtype=np.float32)
    weight = rng.standard_normal((columns, 256), dtype=np.float32)
    before, found = gf.get_num_threads(), []
    try:
        for threads in (1, 2):
            gf.set_num_threads(threads)
            with set_grad_enabled(recorded):
                found.append(products.matmul(x, weight.T))
    finally:
        gf.set_num_threads(before)
    exact = x.astype("float64") @ weight.T.astype("float64")
    for result in found:
        np.testing.assert_allclose(result, exact, atol=2e-4)
    if rows == 3:
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("core", ["SkylakeX", "Haswell", ""])
def test_which_matrix_stands_first_changes_nothing(core, monkeypatch):
    """Whatever CPU OpenBLAS takes this one for."""
    blas = numpy_blas()
    if blas is None:
        pytest.skip("NumPy has no OpenBLAS of its own here")
    calls = []
    monkeypatch.setattr(products, "numpy_blas", lambda: blas._replace(core=core))
    way_round = products._other_way_round

    def noted(x, y, out):
        calls.append(x.shape)
        return way_round(x, y, out)

    monkeypatch.setattr(products, "_other_way_round", noted)
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((16, 96)), rng.standard_normal((200, 96))
    found = products.matmul(x.astype(np.float32), weight.astype(np.float32).T)
    assert bool(calls) == (core == "SkylakeX")
    np.testing.assert_allclose(found, x @ weight.T, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 16, 64])
@pytest.mark.parametrize("recorded", [True, False])
def test_whose_threads_share_a_product(rows, recorded, monkeypatch):
    """BLAS's own where few rows are multiplied in inference, but for two or three; else ours."""
    shared = []

    def noted(function, total, grain):
        shared.append(total)
        parallel_for(function, total, grain)

    monkeypatch.setattr(products, "parallel_for", noted)
    monkeypatch.setattr(products, "get_num_threads", lambda: 2)
    x, weight = np.ones((rows, 512), np.float32), np.ones((4096, 512), np.float32)
    with set_grad_enabled(recorded):
        found = products.matmul(x, weight.T)
    np.testing.assert_array_equal(found, 512)
    assert bool(shared) == (recorded or rows in (2, 64))
