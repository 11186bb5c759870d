"""Pseudo-labels computed over Ray equal those of one process, for any number of actors and ranges."""

from functools import partial

import numpy as np
import pytest

import platform.engine.clustering.sharded_labels as engine
import reidssl.clustering.pseudo_labels as library
from platform.engine.clustering.sharded_labels import sharded_labels, sharded_recall, sharded_refine, sharded_vectors
from platform.engine.clustering.sharded_neighbors import NeighborActorsConfig, shared_out
from platform.engine.inference.features import array_parts
from platform.engine.schemas.retrieval_settings import check_shared
from reidssl.clustering.dbscan import dbscan
from reidssl.clustering.index import find_neighbors, recall
from reidssl.clustering.jaccard import TooManyPairs, jaccard_rows, jaccard_vectors
from reidssl.clustering.neighbors import self_first, unit_rows
from reidssl.clustering.nn_descent import refine
from reidssl.clustering.pseudo_labels import ClusterConfig, pseudo_labels
from reidssl.clustering.reciprocal import half_of, query_expansion, reciprocal_vectors
from tests.platform.engine.clustering.test_sharded_neighbors import write_parts
from tests.reidssl.clustering.test_jaccard import clustered

FEATURES = clustered(350, 16, 30, seed=1)
K1, K2 = 12, 4


def sizes(actors: int, block: int) -> NeighborActorsConfig:
    return NeighborActorsConfig(actors=actors, cpus_per_actor=0.75, block=block)


@pytest.fixture(scope="module")
def shards(ray_session):
    """The features on two actors."""
    with shared_out(array_parts(FEATURES, 5), sizes(2, 350)) as shared:
        yield shared


@pytest.mark.parametrize("block", [350, 16])
def test_vectors_are_those_of_one_process(shards, block):
    shards.config = sizes(2, block)
    table = self_first(shards.neighbors(K1)[0], 350)
    np.testing.assert_array_equal(table, find_neighbors(FEATURES, K1)[0])
    for each in (table, np.where(np.arange(K1) < np.arange(350)[:, None] % K1 + 1, table, -1)):  # some rows are short
        expected = reciprocal_vectors(unit_rows(FEATURES), each, half_of(K1))
        found = sharded_vectors(shards, each, half_of(K1))
        np.testing.assert_array_equal(found.indptr, expected.indptr)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_allclose(found.data, expected.data, atol=1e-6)


def test_refined_search_and_its_recall(shards):
    shards.config = sizes(2, 150)
    exact = find_neighbors(FEATURES, 20)
    hasty = (exact[0][:, ::2].copy(), exact[1][:, ::2].copy())  # every second neighbor was missed
    better = refine(FEATURES, hasty)
    assert recall(FEATURES, hasty) < recall(FEATURES, better)
    found = sharded_refine(shards, hasty)
    np.testing.assert_array_equal(found[0], better[0])
    np.testing.assert_allclose(found[1], better[1], atol=1e-6)
    for table in (hasty, better):
        assert sharded_recall(shards, table, 200) == recall(FEATURES, table, 200)


@pytest.mark.parametrize("tasks", [1, 7])
def test_distances_are_those_of_one_process(ray_session, tasks):
    config = sizes(2, -(-350 // tasks))
    table = find_neighbors(FEATURES, K1)[0].astype(np.int32)
    vectors = reciprocal_vectors(unit_rows(FEATURES), table, half_of(K1))
    expected, expanded = query_expansion(vectors, table[:, :K2]), engine.expanded_by_tasks(vectors, table[:, :K2], config)
    assert (expanded != expected).nnz == 0 and expanded.shape == (350, 350)
    whole, found = jaccard_rows(expected, 350, 0.6), engine.distances_by_tasks(expected, 0.6, 10**6, config)
    assert (found != whole).nnz == 0 and found.nnz == whole.nnz and found.has_sorted_indices


@pytest.mark.parametrize(("actors", "changes"), [(2, {"reliability_gap": 0.03}), (1, {"search": "ivf", "search_effort": 2})])
def test_labels_are_those_of_one_process(ray_session, tmp_path, actors, changes):
    config = ClusterConfig(k1=K1, k2=K2, eps=0.5, eps_end=0.55, **changes)
    expected = pseudo_labels(FEATURES, config, progress=1.0)
    assert expected.num_clusters > 5
    found = sharded_labels(write_parts(tmp_path, FEATURES, [100, 30, 120, 100]), config, sizes(actors, 90), progress=1.0)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert (found.num_clusters, found.num_outliers) == (expected.num_clusters, expected.num_outliers)
    assert found.recall == expected.recall and set(found.seconds) == set(expected.seconds)


def test_collapsed_features(ray_session, monkeypatch):
    monkeypatch.setattr(library, "PAIRS_PER_IMAGE", 50)
    same = np.concatenate([np.tile(np.eye(16, dtype=np.float32)[:1], (150, 1)), FEATURES[:150]])
    vectors, graph = jaccard_vectors(same, K1, K2), partial(engine.distances_by_tasks, config=sizes(2, 100))
    labels = library.vectors_to_labels(vectors, ClusterConfig(eps=0.55), graph, library.Laps())
    np.testing.assert_array_equal(labels, dbscan(jaccard_rows(vectors, 300, 0.55), 0.55, 4))
    assert (labels[:150] == 0).all()
    for most, by in ((10_000, "one task"), (20_000, "all tasks together")):
        with pytest.raises(TooManyPairs, match=f"more than {most:,} pairs"):
            assert graph(vectors, 0.55, most).nnz <= most, by


def test_kmeans_is_not_shared_out():
    with pytest.raises(ValueError, match=r"neighbors.actors must be 0 with cluster.algorithm=kmeans, .*: got 2"):
        check_shared(ClusterConfig(algorithm="kmeans", num_clusters=3), sizes(2, 9))
    check_shared(ClusterConfig(algorithm="kmeans", num_clusters=3), NeighborActorsConfig())
