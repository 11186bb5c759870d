"""Features to pseudo-identities and their centroids."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from reidssl.clustering.neighbours import knn
from reidssl.clustering.pseudo_labels import ClusterConfig, cluster_centroids, pseudo_labels

REFERENCE = Path(__file__).parents[2] / "reference" / "jaccard.npz"


def test_reference_labels_and_counts():
    stored = np.load(REFERENCE)
    expected = stored["k1_30_k2_6_dbscan"]
    found = pseudo_labels(torch.from_numpy(stored["features"]), ClusterConfig(), num_threads=2)
    np.testing.assert_array_equal(found.labels, expected)
    assert (found.num_clusters, found.num_outliers) == (expected.max() + 1, (expected < 0).sum())
    assert set(found.seconds) == {"search", "jaccard", "dbscan"} and min(found.seconds.values()) > 0
    given = pseudo_labels(stored["features"], ClusterConfig(), neighbours=knn(stored["features"], 30))
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
    ],
)
def test_config_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        ClusterConfig(**wrong)


def test_config_can_be_composed():
    config = OmegaConf.merge(OmegaConf.structured(ClusterConfig), {"eps": 0.7})
    assert OmegaConf.to_object(config) == ClusterConfig(eps=0.7)
