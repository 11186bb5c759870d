"""The self-paced criterion and camera proxies against explicit sets of images."""

import numpy as np
import pytest

from reidssl.clustering.camera_proxies import camera_proxies
from reidssl.clustering.pseudo_labels import ClusterConfig, pseudo_labels
from reidssl.clustering.reliability import overlap, reliable
from tests.reidssl.clustering.test_jaccard import clustered


def plain_overlap(labels, others):
    def members(numbers, i):
        return {j for j in range(len(numbers)) if j == i or (numbers[i] >= 0 and numbers[j] == numbers[i])}

    pairs = [(members(labels, i), members(others, i)) for i in range(len(labels))]
    return [len(one & two) / len(one | two) for one, two in pairs]


def test_overlap_equals_sets():
    random = np.random.default_rng(0)
    for _ in range(20):
        labels, others = random.integers(-1, 5, size=(2, 40))
        np.testing.assert_allclose(overlap(labels, others), plain_overlap(labels, others))


def test_what_does_not_last_is_dropped():
    #                 stays      merges when looser  loses images when tighter
    labels = np.asarray([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, -1])
    looser = np.asarray([0, 0, 0, 1, 1, 1, 1, 1, 1, 3, 3, 3, 3, -1])
    tighter = np.asarray([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, -1, -1])
    assert reliable(labels, looser, tighter, share=0.5).tolist() == 3 * [0] + 6 * [-1] + 3 * [1] + [-1, -1]
    assert reliable(labels, looser, tighter, share=1.0).tolist() == 3 * [0] + 3 * [1] + 3 * [2] + 3 * [3] + [-1, -1]
    assert reliable(labels, labels, labels).tolist() == labels.tolist()
    nobody = np.full(14, -1)
    assert reliable(nobody, looser, nobody).tolist() == nobody.tolist()
    with pytest.raises(ValueError, match="of the same images"):
        reliable(labels, looser[:3], tighter)
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\]: got 0"):
        reliable(labels, looser, tighter, share=0)


def test_a_border_image_that_goes_elsewhere_does_not_condemn_its_cluster():
    labels = np.asarray([0, 0, 0, 0, 1, 1, 1, 2, 2])
    looser = np.asarray([0, 0, 0, 2, 1, 1, 1, 2, 2])  # independence of cluster 0: 3/4, its last image alone 1/6
    assert reliable(labels, looser, labels, share=2 / 3).tolist() == [0, 0, 0, 0, 1, 1, 1, -1, -1]


def test_equal_to_the_definition_image_by_image():
    random = np.random.default_rng(1)
    for _ in range(20):
        labels, looser, tighter = random.integers(-1, 6, size=(3, 50))
        labels = np.where(labels >= 0, np.unique(labels[labels >= 0], return_inverse=True)[1].max() - labels, -1)
        independence, compactness = plain_overlap(labels, looser), plain_overlap(labels, tighter)
        members = [np.flatnonzero(labels == cluster) for cluster in range(labels.max() + 1)]
        best = [max(independence[i] for i in each) for each in members]
        limit = sorted(best, reverse=True)[max(0, round(0.7 * len(best)) - 1)]
        kept = [
            i
            for each, value in zip(members, best, strict=True)
            if value >= limit
            for i in each
            if compactness[i] >= max(compactness[j] for j in each)
        ]
        found = reliable(labels, looser, tighter, share=0.7, min_samples=1)
        assert np.flatnonzero(found >= 0).tolist() == sorted(kept)


def test_the_criterion_and_the_schedule_in_pseudo_labels():
    features = clustered(400, 16, 40, seed=2, spread=0.45)
    every = pseudo_labels(features, ClusterConfig(k1=10, k2=3, eps=0.55))
    some = pseudo_labels(features, ClusterConfig(k1=10, k2=3, eps=0.55, reliability_gap=0.05, reliable_share=0.8))
    assert 0 < some.num_clusters <= every.num_clusters and some.num_outliers > every.num_outliers
    for number in range(some.num_clusters):  # parts of the old clusters
        assert len(set(every.labels[some.labels == number].tolist())) == 1
    moving = ClusterConfig(k1=10, k2=3, eps=0.3, eps_end=0.55)
    assert [moving.eps_at(each) for each in (0.0, 0.5, 1.0)] == pytest.approx([0.3, 0.425, 0.55])
    np.testing.assert_array_equal(pseudo_labels(features, moving, progress=1.0).labels, every.labels)
    assert pseudo_labels(features, moving).num_outliers > every.num_outliers
    with pytest.raises(ValueError, match="reliability_gap must be 0"):
        ClusterConfig(eps=0.6, reliability_gap=0.5)
    with pytest.raises(ValueError, match="eps_end must be 0"):
        ClusterConfig(eps_end=1.0)


def test_camera_proxies():
    labels, camids = np.asarray([1, 0, 1, -1, 0, 1]), np.asarray([2, 0, 1, 0, 0, 2])
    proxies, clusters = camera_proxies(labels, camids)
    assert proxies.tolist() == [2, 0, 1, -1, 0, 2] and clusters.tolist() == [0, 1, 1]
    nothing = camera_proxies(np.full(3, -1), np.zeros(3, int))
    assert nothing[0].tolist() == [-1, -1, -1] and len(nothing[1]) == 0
    with pytest.raises(ValueError, match="of the same images"):
        camera_proxies(labels, camids[:2])
