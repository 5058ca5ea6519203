"""Rotary embedding: kernel against reference, and what a rotation must satisfy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import glassformer as gf
from glassformer import fused
from glassformer.fused.rotary import rotary_embedding
from tests.fused_calls import (
    check_derivatives,
    check_kernel,
    drawn,
    dtypes,
    layouts,
    seeds,
    shapes,
)
from tests.tolerances import assert_close

NAME, KERNEL = "rotary_embedding", "numpy-tiled"


def angles(rng, length, half, dtype):
    angle = rng.uniform(-np.pi, np.pi, (length, half))
    return np.asarray(np.cos(angle), dtype), np.asarray(np.sin(angle), dtype)


@given(shapes(min_dims=1, max_dims=4, max_side=9), dtypes, layouts, layouts, seeds)
def test_kernel_equals_reference(shape, dtype, layout, gradient_layout, seed):
    rng = np.random.default_rng(seed)
    shape = (*shape[:-1], 5, 2 * shape[-1])
    cos, sin = angles(rng, 5, shape[-1] // 2, dtype)
    x = layout(drawn(rng, shape, dtype))
    kernel = "reference" if 0 in shape else KERNEL
    check_kernel(NAME, [x, cos, sin], {}, kernel, gradient_layout, seed)


@given(st.sampled_from([(3, 1, 4, 3), (4, 1), (1, 3), (2, 4, 3)]), seeds)
def test_angles_of_other_shapes_go_to_the_reference(shape, seed):
    rng = np.random.default_rng(seed)
    cos, sin = drawn(rng, shape), drawn(rng, shape)
    check_kernel(NAME, [drawn(rng, (3, 2, 4, 6)), cos, sin], {}, "reference")


@given(seeds)
def test_is_multiplication_of_complex_numbers(seed):
    rng = np.random.default_rng(seed)
    x = drawn(rng, (2, 3, 5, 8))
    cos, sin = angles(rng, 5, 4, "float64")
    turned = (x[..., :4] + 1j * x[..., 4:]) * (cos + 1j * sin)
    out = rotary_embedding(*map(gf.from_numpy, (x, cos, sin))).numpy()
    assert fused.last_kernel(NAME) == KERNEL
    assert_close(out, np.concatenate([turned.real, turned.imag], -1))


@given(seeds)
def test_scores_depend_on_distance_alone(seed):
    rng = np.random.default_rng(seed)
    q, k = drawn(rng, (1, 8)), drawn(rng, (1, 8))
    angle = np.arange(20)[:, None] * 10000 ** (-np.arange(4) / 4)
    cos, sin = (gf.from_numpy(f(angle)) for f in (np.cos, np.sin))
    turned_q, turned_k = (
        rotary_embedding(gf.from_numpy(np.repeat(x, 20, 0)), cos, sin).numpy() for x in (q, k)
    )
    scores = turned_q @ turned_k.T
    assert_close(scores[5:, 5:], scores[:-5, :-5])


def test_many_chunks():
    rng = np.random.default_rng(0)
    cos, sin = angles(rng, 64, 32, "float32")
    x = drawn(rng, (16, 64, 6, 64), "float32").transpose(0, 2, 1, 3)
    check_kernel(NAME, [x, cos, sin], {}, KERNEL)


def test_first_and_second_derivatives():
    rng = np.random.default_rng(0)
    check_derivatives(NAME, [drawn(rng, (2, 3, 4)), *angles(rng, 3, 2, "float64")], {})


def test_errors():
    with pytest.raises(ValueError, match="odd"):
        rotary_embedding(gf.zeros(2, 3), gf.zeros(2, 1), gf.zeros(2, 1))
    with pytest.raises(ValueError, match=r"broadcast to \(5, 2\)"):
        rotary_embedding(gf.zeros(5, 4), gf.zeros(5, 3), gf.zeros(5, 3))
