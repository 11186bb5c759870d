"""Sparse Jaccard distances: against the released code's numbers and against a plain dense version."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from reidssl.clustering.jaccard import sparse_jaccard
from reidssl.clustering.neighbors import knn
from tests.reidssl.clustering.dense import dense_jaccard, to_dense

REFERENCE = Path(__file__).parents[2] / "reference" / "jaccard.npz"


def clustered(num, width, groups, seed, spread=0.5):
    """Noisy copies of a few centers, so that neighborhoods are not trivial."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(groups, width))
    return (centers[random.integers(groups, size=num)] + spread * random.normal(size=(num, width))).astype(np.float32)


def test_equal_to_the_released_code():
    stored = np.load(REFERENCE)
    matrix = sparse_jaccard(stored["features"], 30, 6)
    upper = sp.triu(matrix).tocsr()  # the reference stores each pair once
    np.testing.assert_array_equal(upper.indptr, stored["k1_30_k2_6_jac_indptr"])
    np.testing.assert_array_equal(upper.indices, stored["k1_30_k2_6_jac_indices"])
    np.testing.assert_allclose(upper.data, stored["k1_30_k2_6_jac_data"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(to_dense(matrix).astype(float).sum(1), stored["k1_30_k2_6_row_sum"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("num", "k1", "k2"), [(150, 30, 6), (150, 9, 1), (90, 15, 15), (40, 1, 1), (12, 30, 6), (1, 30, 6)])
def test_equal_to_a_dense_version(num, k1, k2):
    features = clustered(num, 16, 9, seed=num)
    ours = sparse_jaccard(features, k1, k2)
    np.testing.assert_allclose(to_dense(ours), dense_jaccard(features, k1, k2), rtol=0, atol=1e-6)
    assert ours.dtype == np.float32 and ours.has_sorted_indices
    assert (ours.data < 1).all() and (ours.data >= 0).all()
    assert abs(ours - ours.T).max() == 0
    assert all(i in ours[i].indices for i in range(num)) and (ours.diagonal() == 0).all()


@pytest.mark.parametrize("num", [10, 50])
def test_duplicates_and_equal_images(num):
    same = np.ones((num, 8), np.float32)
    np.testing.assert_allclose(to_dense(sparse_jaccard(same)), dense_jaccard(same, 30, 6), rtol=0, atol=1e-6)
    twice = np.eye(8, dtype=np.float32)[np.arange(num) % 8]  # exact ties everywhere
    np.testing.assert_allclose(to_dense(sparse_jaccard(twice, 5, 2)), dense_jaccard(twice, 5, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("block", "num_threads"), [(1, 1), (17, 2), (64, 4)])
def test_blocks_and_threads_do_not_matter(block, num_threads):
    features = clustered(200, 16, 12, seed=3)
    one, other = sparse_jaccard(features, num_threads=1), sparse_jaccard(features, block=block, num_threads=num_threads)
    assert (one != other).nnz == 0 and one.nnz == other.nnz


def test_permuting_the_images_permutes_the_distances():
    features = clustered(120, 16, 8, seed=4)
    order = np.random.default_rng(0).permutation(120)
    expected = to_dense(sparse_jaccard(features))[np.ix_(order, order)]
    np.testing.assert_allclose(to_dense(sparse_jaccard(features[order])), expected, atol=2e-6)


def test_max_distance_keeps_exactly_the_nearer_pairs():
    features = clustered(120, 16, 8, seed=5)
    full, cut = sparse_jaccard(features), sparse_jaccard(features, max_distance=0.6)
    assert 0 < cut.nnz < full.nnz
    np.testing.assert_array_equal(to_dense(cut), np.where(to_dense(full) <= np.float32(0.6), to_dense(full), 1))


def test_given_neighbors():
    features = clustered(80, 16, 6, seed=6)
    table = knn(features, 40)
    assert (sparse_jaccard(features, neighbors=table) != sparse_jaccard(features)).nnz == 0
    short = table[0].copy()
    short[:, 20:] = -1  # like an approximate search that found only 20 of 30 neighbors
    partly = to_dense(sparse_jaccard(features, 30, 6, neighbors=(short, table[1])))
    assert np.isfinite(partly).all() and (np.diag(partly) == 0).all() and (partly != to_dense(sparse_jaccard(features))).any()
    with pytest.raises(ValueError, match="10 columns, k1 asks for 30"):
        sparse_jaccard(features, neighbors=(table[0][:, :10], table[1][:, :10]))


def test_storage_follows_the_neighbors_not_the_square():
    few, many = (sparse_jaccard(clustered(num, 8, num // 10, 7, 0.05), 10, 3) for num in (300, 1200))
    assert many.nnz / 1200 < 1.5 * few.nnz / 300 and many.nnz < 1200 * 60


def test_refusals():
    features = clustered(20, 4, 2, seed=0)
    features[11, 2] = np.nan
    with pytest.raises(ValueError, match="row 11 holds NaN"):
        sparse_jaccard(features)
    with pytest.raises(ValueError, match="got k1 5, k2 6"):
        sparse_jaccard(features, 5, 6)
    with pytest.raises(ValueError, match="max_distance must be in"):
        sparse_jaccard(features, max_distance=0.0)
    with pytest.raises(ValueError, match="num_threads must be at least 1: got 0"):
        sparse_jaccard(np.ones((4, 2)), num_threads=0)
