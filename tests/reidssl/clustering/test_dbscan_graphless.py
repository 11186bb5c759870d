"""DBSCAN without a stored graph: the same labels as with a stored graph, and collapsed features."""

import tracemalloc

import numpy as np
import pytest

import reidssl.clustering.pseudo_labels as module
from reidssl.clustering.dbscan import dbscan
from reidssl.clustering.dbscan_graphless import dbscan_vectors
from reidssl.clustering.jaccard import TooManyPairs, jaccard_rows, jaccard_vectors
from reidssl.clustering.pseudo_labels import ClusterConfig, pseudo_labels
from tests.reidssl.clustering.test_jaccard import clustered

SETS = {
    "people": clustered(400, 16, 40, seed=2, spread=0.45),
    "people far apart": clustered(500, 16, 60, seed=3, spread=0.8),
    "duplicates": np.repeat(clustered(60, 8, 12, seed=4), 5, axis=0),
    "all equal": np.ones((300, 8), np.float32),
    "two equal groups among others": np.concatenate(
        [np.tile(np.eye(8, dtype=np.float32)[:2], (80, 1)), clustered(200, 8, 30, seed=5)]
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_labels_of_the_stored_graph(name):
    vectors = jaccard_vectors(SETS[name], 10, 3)
    seen = set()
    for eps, min_samples in ((0.6, 4), (0.5, 8), (0.3, 4), (0.7, 1), (0.0, 2)):
        graph = jaccard_rows(vectors, len(SETS[name]), max(eps, 1e-12))
        expected = dbscan(graph, eps, min_samples)
        for block, threads in ((None, 1), (37, 3)):
            np.testing.assert_array_equal(dbscan_vectors(vectors, eps, min_samples, block, threads), expected)
        near = np.repeat(np.arange(len(expected)), np.diff(graph.indptr))[graph.data <= np.float32(eps)]
        core = np.bincount(near) >= min_samples
        seen |= {"border"} if (~core & (expected >= 0)).any() else set()
        seen |= {"outlier"} if (expected < 0).any() else set()
    assert name != "people far apart" or seen == {"border", "outlier"}  # both kinds of points occurred


def test_refusals():
    vectors = jaccard_vectors(np.eye(3), 2, 1)
    with pytest.raises(ValueError, match=r"eps must be in \[0, 1\)"):
        dbscan_vectors(vectors, 1.0, 2)
    with pytest.raises(ValueError, match="min_samples must be at least 1"):
        dbscan_vectors(vectors, 0.5, 0)


@pytest.mark.parametrize("room", [2**26, 10_000])
def test_the_graph_stops_in_time(monkeypatch, room):
    monkeypatch.setattr("reidssl.clustering.jaccard.ROOM", room)
    vectors = jaccard_vectors(SETS["all equal"], 10, 3)
    for threads in (1, 3):
        with pytest.raises(TooManyPairs, match=r"more than 30,000 pairs of images are at a Jaccard distance of at most 0\.6"):
            jaccard_rows(vectors, 300, 0.6, block=50, num_threads=threads, most_pairs=30_000)
    whole = jaccard_rows(vectors, 300, 0.6, block=20, most_pairs=90_000)
    assert whole.nnz == 90_000 == jaccard_rows(vectors, 300, 0.6).nnz


@pytest.mark.parametrize("kind", ["all equal", "three points"])
def test_collapsed_features_get_labels_in_bounded_memory(monkeypatch, kind):
    monkeypatch.setattr(module, "PAIRS_PER_IMAGE", 100)
    features = np.ones((3000, 4), np.float32) if kind == "all equal" else np.eye(4, dtype=np.float32)[np.arange(3000) % 3]
    pseudo_labels(features[:40], ClusterConfig(k1=10, k2=3))  # compiles and imports everything
    tracemalloc.start()
    found = pseudo_labels(features, ClusterConfig())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20  # a stored graph would take 72 or 24 MB, and its parts the same again
    expected = np.zeros(3000, int) if kind == "all equal" else np.arange(3000) % 3
    np.testing.assert_array_equal(found.labels, expected)
    assert set(found.seconds) == {"search", "jaccard", "dbscan"}


@pytest.mark.parametrize("changes", [{"algorithm": "infomap"}, {"reliability_gap": 0.05}])
def test_what_needs_the_graph_says_so(changes):
    features = np.ones((1200, 4), np.float32)
    named = changes.get("algorithm", "the reliability criterion")
    with pytest.raises(
        ValueError,
        match=rf"the features have collapsed: more than 1,200,000 pairs of images .* 1,000 for each "
        rf"of 1,200 images, and {named} needs them all in memory; look for a diverged",
    ):
        pseudo_labels(features, ClusterConfig(**changes))
