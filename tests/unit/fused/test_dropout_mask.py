"""Dropout's decisions: how many, how independent, and the same for whoever asks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.fused.dropout_mask import keep_mask, keep_tile

PROBABILITIES = (0.1, 0.5, 0.9)


def assert_chi_square(statistic, degrees, what):
    """Within five standard deviations, on both sides: too even is wrong as well.

    The cube root of chi-square is nearly normal (Wilson and Hilferty 1931).
    """
    spread = 2 / (9 * degrees)
    distance = ((statistic / degrees) ** (1 / 3) - (1 - spread)) / np.sqrt(spread)
    assert abs(distance) < 5, f"{what}: chi-square {statistic:.0f} for {degrees} degrees of freedom"


@pytest.mark.parametrize("p", PROBABILITIES)
def test_every_head_row_and_column_keeps_its_share(p):
    keep = (keep_mask(3, p, (4, 8, 96, 128)) - (1 - p)) / np.sqrt(p * (1 - p))
    for axis, name in enumerate(("batch elements", "heads", "rows", "columns")):
        others = tuple(i for i in range(4) if i != axis)
        z = keep.sum(others) / np.sqrt(keep.size / keep.shape[axis])
        assert_chi_square((z**2).sum(), z.size, name)
    matrices = keep.reshape(-1, 96, 128)
    for axis, name in ((1, "column within a matrix"), (2, "row within a matrix")):
        z = matrices.sum(axis) / np.sqrt(matrices.shape[axis])
        assert_chi_square((z**2).sum(), z.size, name)


def assert_uncorrelated(keep, what):
    """Rows of decisions: the correlations of all pairs, and the worst one."""
    n, length = keep.shape
    pairs = np.corrcoef(keep)[np.triu_indices(n, 1)] * np.sqrt(length - 1)  # variance 1
    assert_chi_square((pairs**2).sum(), pairs.size, what)
    assert np.abs(pairs).max() < 6.5, f"{what}: two are alike"  # of 10⁵ normal ones: 1e-5


@pytest.mark.parametrize("p", PROBABILITIES)
def test_rows_columns_and_heads_are_independent(p):
    keep = keep_mask(5, p, (2, 6, 40, 512))
    assert_uncorrelated(keep.reshape(-1, 512), "rows")
    assert_uncorrelated(keep.reshape(-1, 512).T, "columns")
    assert_uncorrelated(keep.reshape(12, -1), "heads")
    assert_uncorrelated(keep.reshape(2, -1), "batch elements")


def test_neighbouring_seeds_share_nothing():
    """Seeds 0, 1, 2 … and seeds that differ in their upper half: rows are not dealt out again."""
    seeds = [*range(8), *(1 << 32 << k for k in range(4)), *(1 << k for k in range(8, 12))]
    rows = np.concatenate([keep_mask(seed, 0.5, (24, 1024)) for seed in seeds])
    assert_uncorrelated(rows, "rows of different seeds")


def test_neighbours_fall_in_all_patterns():
    """Eight decisions in a row, and a 3 by 3 patch, take each of their 2⁸ and 2⁹ patterns alike."""
    keep = keep_mask(11, 0.5, (768, 768))
    runs = keep.reshape(768, -1, 8) @ (1 << np.arange(8))
    patches = keep.reshape(256, 3, 256, 3).swapaxes(1, 2).reshape(-1, 9) @ (1 << np.arange(9))
    for patterns, count in ((runs, 256), (patches, 512)):
        found = np.bincount(patterns.ravel(), minlength=count)
        expected = patterns.size / count
        assert_chi_square(
            ((found - expected) ** 2 / expected).sum(), count - 1, f"{count} patterns"
        )


seeds = st.integers(-(2**63), 2**64 - 1)


@given(seeds, st.floats(0, 1), st.integers(0, 40), st.integers(0, 40), st.integers(1, 9))
def test_a_tile_is_a_piece_of_the_mask(seed, p, first_row, first_column, size):
    mask = keep_mask(seed, p, (7, 7, 49))
    rows = np.arange(first_row, min(first_row + size, 49))
    columns = np.arange(first_column, min(first_column + size, 49))
    tile = keep_tile(seed, p, rows, columns)
    np.testing.assert_array_equal(tile, mask.reshape(49, 49)[rows][:, columns])


@given(seeds, st.lists(st.integers(0, 5), max_size=4).map(tuple))
def test_probabilities_0_and_1_are_certain(seed, shape):
    shape = (*shape, 6)
    assert keep_mask(seed, 0.0, shape).all()
    assert not keep_mask(seed, 1.0, shape).any()
    assert keep_mask(seed, 0.5, shape).shape == shape


def test_what_a_smaller_probability_drops_a_larger_one_does():
    masks = [keep_mask(1, p, (64, 64)) for p in (0.1, 0.2, 0.7)]
    for more, less in zip(masks, masks[1:], strict=False):
        assert (more >= less).all() and (more != less).any()


def test_rows_beyond_2_to_the_32():
    rows = np.array([5, 2**32 + 5, 2**40 + 5], np.int64)
    keep = keep_tile(0, 0.5, rows, np.arange(4096))
    assert_uncorrelated(keep, "rows with equal lower halves")
