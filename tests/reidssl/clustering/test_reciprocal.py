"""Vectors of weights: finite at any scale and rounding, and the same by ranges of rows as all at once."""

import numpy as np
import pytest
import torch

from reidssl.clustering.neighbors import knn, unit_rows
from reidssl.clustering.pairs import pair_cosines
from reidssl.clustering.reciprocal import block_of, query_expansion, reciprocal_sets, reciprocal_vectors, softmax_weights
from tests.reidssl.clustering.dense import dense_vectors
from tests.reidssl.clustering.test_jaccard import clustered


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e7, 1e12, 1e30])
@pytest.mark.parametrize("width", [3, 37, 384])
def test_collapsed_features_under_any_scale(scale, width):
    """Rounding puts the cosines of equal rows slightly above or below 1. A large scale must not turn that into bad weights."""
    same = unit_rows(np.random.default_rng(0).normal(size=(1, width)).repeat(40, axis=0))
    vectors = reciprocal_vectors(same, knn(same, 12)[0].astype(np.int32), 7, np.full(40, scale, np.float32))
    assert np.isfinite(vectors.data).all() and (vectors.data >= 0).all()
    np.testing.assert_allclose(vectors.sum(axis=1), 1, atol=1e-5)


def test_weights_of_cosines_that_rounding_made():
    above, below = np.float32([1.0000002, 1.0000004, 1.0]), np.float32([0.9999998, 0.9999999, 0.9999998])
    for cosines in (above, below):
        for scale in (1e12, 1e38):
            weights = softmax_weights(np.array([3]), cosines, np.float32([scale]))
            assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    np.testing.assert_allclose(softmax_weights(np.array([3]), above, np.float32([1e12])), 1 / 3, rtol=1e-6)  # all at distance 0


def test_equal_to_a_dense_version_with_scales():
    features = clustered(90, 16, 8, seed=1)
    table, scales = knn(features, 12)[0].astype(np.int32), np.linspace(0.3, 40, 90, dtype=np.float32)
    found = reciprocal_vectors(unit_rows(features), table, 7, scales)
    np.testing.assert_allclose(found.toarray(), dense_vectors(features.astype(float), table, 7, scales), atol=1e-5)


@pytest.mark.parametrize("size", [90, 31, 7])
def test_ranges_of_rows_together_are_the_whole(size):
    features = clustered(90, 16, 8, seed=2)
    unit, table = unit_rows(features), knn(features, 12)[0].astype(np.int32)
    table[5, 8:] = -1
    whole = reciprocal_vectors(unit, table, 7)
    expanded = query_expansion(whole, table[:, :4])
    for start in range(0, 90, size):
        stop = min(start + size, 90)
        counts, members = reciprocal_sets(table, 7, start, stop, block=3)
        assert counts.tolist() == np.diff(whole.indptr)[start:stop].tolist()
        for row, mine in zip(range(start, stop), np.split(members, np.cumsum(counts)[:-1]), strict=True):
            assert sorted(mine) == whole[row].indices.tolist()
        for columns in (1, 4):
            part = query_expansion(whole, table[start:stop, :columns])
            assert (part != (whole if columns == 1 else expanded)[start:stop]).nnz == 0


def test_cosines_of_pairs():
    one, two = unit_rows(torch.randn(5, 9)).numpy(), unit_rows(torch.randn(7, 9)).numpy()
    rows, others = np.array([0, 4, 4, 2]), np.array([6, 0, 1, 2], np.int32)
    np.testing.assert_allclose(pair_cosines(one, two, rows, others), (one @ two.T)[rows, others], atol=1e-6)
    assert pair_cosines(one, two, rows[:0], others[:0]).shape == (0,)


def test_blocks_grow_with_the_images():
    assert [block_of(num, None) for num in (10, 100_000, 1_024_000)] == [256, 256, 2000] and block_of(10**6, 17) == 17
