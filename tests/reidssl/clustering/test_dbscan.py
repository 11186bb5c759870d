"""DBSCAN on the sparse graph gives exactly scikit-learn's labels of the dense matrix."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.cluster import DBSCAN

from reidssl.clustering.dbscan import dbscan
from reidssl.clustering.jaccard import sparse_jaccard
from tests.reidssl.clustering.dense import to_dense

REFERENCE = Path(__file__).parents[2] / "reference" / "jaccard.npz"


def random_distances(num, density, seed):
    """Symmetric distances with only a few values, so that many equal eps and many points are border points."""
    random = np.random.default_rng(seed)
    values = np.float32([0.0, 0.25, 0.5, 0.6, 0.75])[random.integers(5, size=(num, num))]
    stored = np.triu(random.random((num, num)) < density, 1)
    rows, columns = np.nonzero(stored)
    data = values[rows, columns]
    everything = np.concatenate
    return sp.csr_matrix(
        (
            everything([data, data, np.zeros(num, np.float32)]),
            (everything([rows, columns, np.arange(num)]), everything([columns, rows, np.arange(num)])),
        ),
        shape=(num, num),
    )


def test_reference_labels():
    stored = np.load(REFERENCE)
    distances = sparse_jaccard(stored["features"])
    np.testing.assert_array_equal(dbscan(distances, 0.6, 4), stored["k1_30_k2_6_dbscan"])
    np.testing.assert_array_equal(dbscan(distances, 0.5, 4), stored["k1_30_k2_6_dbscan_eps0.5"])


def test_identical_to_scikit_learn_on_the_dense_matrix():
    seen = set()
    for seed in range(60):
        density = (0.01, 0.03, 0.06)[seed % 3]
        distances = random_distances(120, density, seed)
        for eps, min_samples in ((0.5, 4), (0.6, 4), (0.25, 2), (0.6, 1), (0.0, 3)):
            expected = DBSCAN(eps=max(eps, 1e-12), min_samples=min_samples, metric="precomputed").fit(to_dense(distances))
            labels = dbscan(distances, eps, min_samples)
            np.testing.assert_array_equal(labels, expected.labels_, err_msg=f"seed {seed}, eps {eps}")
            border = np.setdiff1d(np.flatnonzero(labels >= 0), expected.core_sample_indices_)
            seen |= {"border"} if len(border) else set()
            seen |= {"outlier"} if (labels < 0).any() else set()
            seen |= {"many"} if labels.max() > 3 else set()
    assert seen == {"border", "outlier", "many"}  # all kinds of cases occurred


def test_border_point_belongs_to_the_first_cluster():
    # 0-1-2 and 4-5-6 are two dense groups. 3 is near 2 and 4 only and is not a core point.
    near = [(0, 1), (0, 2), (1, 2), (4, 5), (4, 6), (5, 6), (2, 3), (3, 4), (0, 7), (1, 7), (4, 8), (5, 8)]
    rows, columns = np.asarray(near + [(b, a) for a, b in near]).T
    graph = sp.csr_matrix((np.full(len(rows), 0.3), (rows, columns)), shape=(9, 9))
    labels = dbscan(graph, 0.5, 4)
    assert labels[3] == labels[0] == 0 and labels[4] == 1


def test_diagonal_counts_stored_or_not():
    distances = random_distances(80, 0.04, 3)
    bare = distances.copy()
    bare.setdiag(0.9)
    bare = sp.csr_matrix(
        (bare.data[bare.data != 0.9], bare.indices[bare.data != 0.9], np.cumsum([0, *np.diff(bare.indptr) - 1])),
        shape=bare.shape,
    )
    assert bare.nnz == distances.nnz - 80
    np.testing.assert_array_equal(dbscan(bare, 0.6, 4), dbscan(distances, 0.6, 4))


def test_empty_graph_and_refusals():
    empty = sp.csr_matrix((5, 5), dtype=np.float32)
    assert dbscan(empty, 0.5, 2).tolist() == [-1] * 5
    assert dbscan(empty, 0.5, 1).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"eps must be in \[0, 1\): got 1.0"):
        dbscan(empty, 1.0, 2)
    with pytest.raises(ValueError, match="min_samples must be at least 1"):
        dbscan(empty, 0.5, 0)
    with pytest.raises(ValueError, match="square sparse matrix"):
        dbscan(np.zeros((3, 3)), 0.5, 2)
    broken = sp.csr_matrix(([0.1, np.nan], ([1, 3], [2, 4])), shape=(5, 5))
    with pytest.raises(ValueError, match="row 3 holds NaN"):
        dbscan(broken, 0.5, 2)
