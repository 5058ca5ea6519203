"""float16 and bfloat16 widened to float32, and products with weights that are held in them."""

import tracemalloc

import numpy as np
import pytest

import glassformer as gf
from glassformer.backends import half, numpy_backend, products
from glassformer.dtypes import BFLOAT16_STORAGE
from glassformer.nn import functional as F

ALL = np.arange(1 << 16, dtype=np.uint16)


def values(bits, dtype):
    """float32 of 16 bits of half precision, made the slow way."""
    if dtype == np.float16:
        return bits.view(np.float16).astype(np.float32)
    return np.stack([np.zeros_like(bits), bits], -1).view(np.float32)[..., 0]  # little-endian


def same_bits(found, expected):
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16_STORAGE], ids=str)
class TestWidening:
    def test_every_value(self, dtype):
        """Subnormal numbers, both zeros, infinities and NaNs included, the NaNs' bits too."""
        same_bits(half.widened(ALL.view(dtype)), values(ALL, dtype))

    def test_every_finite_value(self, dtype):
        finite = ALL[np.isfinite(values(ALL, dtype))]
        same_bits(half.widened(finite.view(dtype)), values(finite, dtype))

    @pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
    def test_one_special_value_among_others(self, dtype, special):
        expected = np.linspace(-2, 2, 300, dtype=np.float32)
        bits = (
            expected.astype(np.float16).view(np.uint16)
            if dtype == np.float16
            else (expected.view(np.uint32) >> 16).astype(np.uint16)
        )
        sample = np.array([special], np.float32)
        bits[17] = (
            sample.astype(np.float16).view(np.uint16)[0]
            if dtype == np.float16
            else sample.view(np.uint32)[0] >> 16
        )
        same_bits(half.widened(bits.view(dtype)), values(bits, dtype))

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 5), (700, 1000)])
    def test_shapes(self, dtype, shape):
        bits = np.random.default_rng(0).integers(0, 1 << 15, shape, dtype=np.uint16)
        bits = np.asarray(bits & 0x3FFF, np.uint16)
        same_bits(half.widened(bits.view(dtype)), values(bits.reshape(-1), dtype).reshape(shape))

    def test_strides(self, dtype):
        bits = ALL.reshape(256, 256)
        for view in (bits[::3, ::-2], bits.T, bits[:, 5]):
            expected = values(np.ascontiguousarray(view), dtype)
            same_bits(half.widened(view.view(dtype)), expected)

    @pytest.mark.parametrize("other", ["float64", "float16", "int64"])
    def test_other_types_come_from_float32(self, dtype, other):
        bits = ALL[0x3C00:0x4400]  # of float16 1 to 4, of bfloat16 2⁻⁷ to 768
        found = numpy_backend.astype(bits.view(dtype), getattr(gf, other))
        assert found.dtype == other
        np.testing.assert_array_equal(found, values(bits, dtype).astype(other))


def compact(rows, columns, dtype):
    """Return a random matrix of half precision, and its values in float32."""
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((rows, columns), dtype=np.float32)
    if dtype == np.float16:
        bits = wide.astype(np.float16).view(np.uint16)
    else:
        bits = (wide.view(np.uint32) >> 16).astype(np.uint16)
    return bits.view(dtype), values(bits, dtype)


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16_STORAGE], ids=str)
class TestProducts:
    @pytest.mark.parametrize("rows", [0, 1, 2, 5, 63, 64, 200])
    @pytest.mark.parametrize("columns", [0, 1, 700])
    def test_a_compact_weight(self, rows, columns, dtype, monkeypatch):
        """As the product with its float32 values, whole or tile by tile."""
        weight, wide = compact(columns, 1030, dtype)
        x = np.random.default_rng(1).standard_normal((rows, 1030), dtype=np.float32)
        expected = x.astype("float64") @ wide.T.astype("float64")
        for tile in (half._TILE, 1030 * 64):
            monkeypatch.setattr(half, "_TILE", tile)
            found = products.matmul(x, weight.T)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, atol=1e-3)

    @pytest.mark.parametrize("shape", [(3, 40), (2, 3, 40), (2, 40)])
    def test_other_layouts_and_float64(self, shape, dtype):
        weight, wide = compact(40, 50, dtype)
        x = np.random.default_rng(1).standard_normal(shape)
        for kind in ("float32", "float64"):
            found = products.matmul(x.astype(kind), weight)
            assert found.dtype == kind
            np.testing.assert_allclose(found, x @ wide, atol=1e-4)

    @pytest.mark.parametrize(("rows", "columns"), [(0, 40), (7, 0), (0, 0)])
    def test_empty_weights(self, rows, columns, dtype):
        weight, _ = compact(9, 40, dtype)
        x = np.ones((3, columns), np.float32)
        found = products.matmul(x, weight[1 : 1 + rows, :columns].T)
        assert found.shape == (3, rows) and not found.any()

    def test_it_is_never_widened_whole(self, dtype):
        weight, _ = compact(1 << 15, 512, dtype)
        x = np.ones((1, 512), np.float32)
        products.matmul(x, weight.T)  # the pool's first blocks
        tracemalloc.start()
        try:
            products.matmul(x, weight.T)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 5e6  # the whole has 67 MB

    def test_linear_and_its_gradients(self, dtype):
        """Of the input, from a frozen weight; and of the weight, where one wants it."""
        held, wide = compact(6, 9, dtype)
        weight, reference = gf.Tensor(held, gf.device("cpu")), gf.tensor(wide)
        x = gf.randn(4, 9, requires_grad=True)
        twin = x.detach().clone().requires_grad_()
        out, expected = F.linear(x, weight), F.linear(twin, reference)
        np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), atol=1e-5)
        (out**2).sum().backward()
        (expected**2).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), twin.grad.numpy(), atol=1e-4)


def test_a_float16_weight_gets_a_gradient():
    weight = gf.tensor(np.ones((3, 2), np.float16)).requires_grad_()
    x = gf.tensor([[1.0, 2.0]])
    F.linear(x, weight).sum().backward()
    assert weight.grad.dtype is gf.float16
    np.testing.assert_array_equal(weight.grad.numpy(), [[1, 2]] * 3)
