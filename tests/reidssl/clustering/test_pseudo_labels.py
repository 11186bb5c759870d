"""Features to pseudo-identities and their centroids."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score

from reidssl.clustering.neighbors import knn
from reidssl.clustering.pseudo_labels import ClusterConfig, cluster_centroids, pseudo_labels
from tests.reidssl.clustering.dense import dense_jaccard
from tests.reidssl.clustering.test_jaccard import clustered

REFERENCE = Path(__file__).parents[2] / "reference" / "jaccard.npz"


def test_reference_labels_and_counts():
    stored = np.load(REFERENCE)
    expected = stored["k1_30_k2_6_dbscan"]
    found = pseudo_labels(torch.from_numpy(stored["features"]), ClusterConfig(), num_threads=2)
    np.testing.assert_array_equal(found.labels, expected)
    assert (found.num_clusters, found.num_outliers) == (expected.max() + 1, (expected < 0).sum())
    assert set(found.seconds) == {"search", "jaccard", "dbscan"} and min(found.seconds.values()) > 0
    given = pseudo_labels(stored["features"], ClusterConfig(), neighbors=knn(stored["features"], 30))
    np.testing.assert_array_equal(given.labels, expected)
    assert "search" not in given.seconds


def test_well_separated_identities_are_found():
    random = np.random.default_rng(0)
    identities = np.repeat(np.arange(10), 12)
    features = random.normal(size=(10, 32))[identities] + 0.05 * random.normal(size=(120, 32))
    found = pseudo_labels(features, ClusterConfig(k1=10, k2=3))
    assert found.num_clusters == 10 and found.num_outliers == 0
    np.testing.assert_array_equal(found.labels, identities)


def test_all_outliers():
    found = pseudo_labels(np.eye(6), ClusterConfig(k1=1, k2=1, min_samples=2))
    assert found.num_clusters == 0 and found.num_outliers == 6
    with pytest.raises(ValueError, match="all 6 labels are -1"):
        cluster_centroids(np.eye(6), found.labels)


def test_centroids_are_unit_means():
    random = np.random.default_rng(1)
    features, labels = random.normal(size=(40, 5)), random.integers(-1, 4, size=40)
    centroids = cluster_centroids(features, labels)
    assert centroids.shape == (4, 5) and centroids.dtype == torch.float32
    for number in range(4):
        mean = features[labels == number].mean(axis=0)
        np.testing.assert_allclose(centroids[number], mean / np.linalg.norm(mean), atol=1e-6)
    with pytest.raises(ValueError, match="1 is unused"):
        cluster_centroids(features[:3], np.asarray([0, 2, -1]))
    with pytest.raises(ValueError, match=r"labels \(N,\): got \(40, 5\) and \(3,\)"):
        cluster_centroids(features, labels[:3])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k1": 0}, "^k1 must be"),
        ({"k1": 4}, "^k2 must be in"),
        ({"eps": 1.0}, "^eps must be in"),
        ({"min_samples": 0}, "^min_samples must be"),
        ({"num_clusters": -1}, "^num_clusters must be 0 or more: got -1"),
    ],
)
def test_config_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        ClusterConfig(**wrong)


def test_config_can_be_composed():
    config = OmegaConf.merge(OmegaConf.structured(ClusterConfig), {"eps": 0.7})
    assert OmegaConf.to_object(config) == ClusterConfig(eps=0.7)


DEGENERATE = {
    "all equal": np.ones((40, 5)),
    "all far apart": np.eye(40),
    "fewer images than neighbors": clustered(9, 5, 2, seed=1, spread=0.1),
    "one image": np.ones((1, 3)),
    "duplicates": np.repeat(clustered(12, 5, 4, seed=2), 4, axis=0),
    "one cluster": np.ones((40, 5)) + 0.01 * np.random.default_rng(0).normal(size=(40, 5)),
    "no direction": np.zeros((12, 4)),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_sets_equal_the_dense_algorithm(name):
    features = DEGENERATE[name].astype(np.float32)
    if name == "no direction":  # rows of zeros have no direction; the search must still work
        assert len(pseudo_labels(features, ClusterConfig(k1=10, k2=3)).labels) == 12
        return
    config = ClusterConfig(k1=10, k2=3, eps=0.5)
    dense = dense_jaccard(features, 10, 3)
    expected = DBSCAN(eps=0.5, min_samples=4, metric="precomputed").fit_predict(dense)
    found = pseudo_labels(features, config)
    np.testing.assert_array_equal(found.labels, expected)
    assert found.num_clusters == expected.max() + 1 and found.num_outliers == (expected < 0).sum()


def test_permuting_the_images_renames_the_clusters():
    features = clustered(300, 16, 25, seed=6, spread=0.4)
    order = np.random.default_rng(1).permutation(300)
    first, second = (pseudo_labels(each, ClusterConfig(k1=12, k2=4)) for each in (features, features[order]))
    assert (first.num_clusters, first.num_outliers) == (second.num_clusters, second.num_outliers) and first.num_clusters > 5
    assert adjusted_rand_score(first.labels[order], second.labels) > 0.99  # a border point may join another cluster


def test_nan_is_refused_with_the_row():
    features = clustered(30, 8, 3, seed=0)
    features[21, 0] = np.inf
    for config in (ClusterConfig(), ClusterConfig(search="ivf"), ClusterConfig(algorithm="kmeans", num_clusters=3)):
        with pytest.raises(ValueError, match="row 21 holds NaN or infinity"):
            pseudo_labels(features, config)
