"""Exact and approximate search: the same rules of order, and measured recall."""

import numpy as np
import pytest
import torch

import reidssl.clustering.cluster_config as settings
from reidssl.clustering.index import NeighborIndex, find_neighbors, in_order, recall
from reidssl.clustering.neighbors import knn
from reidssl.clustering.pseudo_labels import ClusterConfig, pseudo_labels
from tests.reidssl.clustering.test_jaccard import clustered

FEATURES = clustered(2500, 16, 120, seed=1, spread=0.3)


@pytest.mark.parametrize("search", ["ivf", "hnsw"])
def test_approximate_searches_find_most_neighbors_and_more_with_effort(search):
    exact = knn(FEATURES, 15)
    found = find_neighbors(FEATURES, 15, search)
    assert found[0].dtype == np.int64 and found[0].shape == exact[0].shape
    assert (found[0][:, 0] == np.arange(2500)).all()
    assert (np.diff(found[1][:, 1:], axis=1) <= 0).all()
    unit = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    np.testing.assert_allclose(found[1], np.einsum("nd,nkd->nk", unit, unit[found[0]]), atol=1e-5)
    share = recall(FEATURES, found)
    assert share > 0.9
    least = find_neighbors(FEATURES, 15, search, effort=1)
    assert recall(FEATURES, least) < share
    again = find_neighbors(FEATURES, 15, search)
    np.testing.assert_array_equal(found[0], again[0])  # the same from run to run


def test_recall_is_the_share_of_true_neighbors():
    exact = knn(FEATURES, 11)
    assert recall(FEATURES, exact) == 1.0
    spoiled = exact[0].copy(), exact[1].copy()
    spoiled[0][:, 6:], spoiled[1][:, 6:] = -1, -np.inf
    assert recall(FEATURES, spoiled) == pytest.approx(0.5)
    assert recall(FEATURES, (exact[0][:, :1], exact[1][:, :1])) == 1.0
    twins = np.repeat(np.eye(4, dtype=np.float32), 6, axis=0)
    other = knn(twins, 3)[0].copy()
    other[:, 1:] = (np.arange(24) // 6 * 6)[:, None] + (np.arange(24)[:, None] + np.asarray([2, 3])) % 6
    assert recall(twins, (other, np.ones((24, 3), np.float32))) == 1.0  # any of several equal neighbors is correct


@pytest.mark.parametrize("search", ["exact", "ivf", "hnsw"])
def test_queries_of_their_own(search):
    index = NeighborIndex(FEATURES[:2000], search, effort=300)
    own = np.where(np.arange(30) < 10, np.arange(30), -1)  # ten of the queries are among the images
    queries = np.concatenate([FEATURES[:10], FEATURES[2000:2020]])
    indices, similarities = index.nearest(queries, 7, own)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (queries, FEATURES[:2000])]
    expected = np.argsort(-(unit[0] @ unit[1].T), axis=1, kind="stable")[:, :7]
    assert (indices == expected).mean() > 0.97 and (indices[:10, 0] == np.arange(10)).all()
    assert np.isfinite(similarities).all()


@pytest.mark.parametrize("search", ["exact", "ivf", "hnsw"])
@pytest.mark.parametrize("num", [1, 3, 60])
def test_degenerate_sets(search, num):
    for features in (np.ones((num, 4)), np.eye(64)[:num], np.zeros((num, 4))):  # all equal, all orthogonal, no direction
        indices, similarities = find_neighbors(features, 5, search)
        assert indices.shape == similarities.shape == (num, min(5, num))
        assert (indices[:, 0] == np.arange(num)).all()
        for row in indices:
            present = row[row >= 0]
            assert len(set(present.tolist())) == len(present)
    if search == "exact":  # among equal similarities the earlier image comes first
        np.testing.assert_array_equal(find_neighbors(np.ones((3, 4)), 5)[0], [[0, 1, 2], [1, 0, 2], [2, 0, 1]])


def test_rows_of_length_one_are_taken_as_they_are():
    index = NeighborIndex(FEATURES)
    own = np.arange(200, 500)
    whole = find_neighbors(FEATURES, 9)
    found = index.nearest(index.images[200:500], 9, own, unit=True)
    np.testing.assert_array_equal(found[0], whole[0][200:500])
    np.testing.assert_array_equal(found[1], whole[1][200:500])  # bit for bit: rows are normalized once only
    again = NeighborIndex(index.images, unit=True)
    assert torch.equal(again.images, index.images)
    assert not torch.equal(NeighborIndex(index.images).images, index.images)  # why `unit` exists


@pytest.mark.parametrize("search", ["ivf", "hnsw"])
def test_order_of_the_queries_does_not_matter(search):
    index = NeighborIndex(FEATURES, search)
    order = np.random.default_rng(3).permutation(300)
    found, moved = (index.nearest(FEATURES[rows], 8, rows) for rows in (np.arange(300), order))
    np.testing.assert_array_equal(moved[0], found[0][order])


def test_order_of_rows():
    indices = np.asarray([[4, 2, -1, 9], [3, 1, 0, 2]])
    similarities = np.float32([[0.5, 0.5, 9.0, 0.7], [0.1, 0.2, 0.3, 0.2]])
    found = in_order(indices, similarities)
    assert found[0].tolist() == [[9, 2, 4, -1], [0, 1, 2, 3]] and found[1][0, 3] == -np.inf
    moved = in_order(indices, similarities, np.asarray([4, 7]))
    assert moved[0].tolist() == [[4, 9, 2, -1], [7, 0, 1, 2]]
    assert in_order(indices, similarities, np.asarray([-1, -1]))[0].tolist() == found[0].tolist()


def test_refusals(monkeypatch):
    broken = FEATURES[:50].copy()
    broken[17, 3] = np.nan
    for search in ("exact", "ivf", "hnsw"):
        with pytest.raises(ValueError, match="row 17 holds NaN"):
            find_neighbors(broken, 5, search)
    with pytest.raises(ValueError, match="search must be one of exact, ivf, hnsw: got 'lsh'"):
        ClusterConfig(search="lsh")
    with pytest.raises(ValueError, match="search_effort must be 0"):
        ClusterConfig(search="ivf", search_effort=-1)
    with pytest.raises(ValueError, match="as wide as the images"):
        NeighborIndex(FEATURES).nearest(FEATURES[:, :3], 2)
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"exact where FAISS is not installed: got 'ivf'; pip install 'reidssl\[cpu\]'"):
        ClusterConfig(search="ivf")
    ClusterConfig()


def test_pseudo_labels_with_an_approximate_search():
    exact = pseudo_labels(torch.from_numpy(FEATURES), ClusterConfig(k1=12, k2=3))
    found = pseudo_labels(torch.from_numpy(FEATURES), ClusterConfig(k1=12, k2=3, search="ivf"))
    assert exact.recall is None and 0.9 < found.recall <= 1.0
    assert set(found.seconds) == {"search", "refine", "recall", "jaccard", "dbscan"}
    assert (found.labels == exact.labels).mean() > 0.8 and exact.num_clusters > 50
