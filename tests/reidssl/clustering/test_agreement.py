"""Purity and stability of labels, against counting by hand."""

import math
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from reidssl.clustering.agreement import agreement, purity, stability


@pytest.mark.parametrize("seed", range(4))
def test_purity_is_the_share_of_the_majority(seed):
    generator = np.random.default_rng(seed)
    labels, pids = generator.integers(-1, 6, 80), generator.integers(3, 9, 80) * 7
    most = sum(max(Counter(pids[labels == name]).values()) for name in range(6) if (labels == name).any())
    assert purity(labels, pids) == pytest.approx(most / (labels >= 0).sum())


def test_purity_without_clusters_is_unknown():
    assert math.isnan(purity(np.full(3, -1), np.arange(3)))


def test_stability_is_over_the_images_in_clusters_of_both():
    labels = np.array([0, 0, 1, 1, 2, -1, 3, 3])
    renamed = np.array([5, 5, 2, 2, 7, 0, -1, -1])
    assert stability(labels, renamed) == 1.0
    generator = np.random.default_rng(0)
    one, other = generator.integers(-1, 5, 60), generator.integers(-1, 5, 60)
    both = (one >= 0) & (other >= 0)
    assert stability(one, other) == pytest.approx(adjusted_rand_score(one[both], other[both]))
    assert math.isnan(stability(labels, np.full(8, -1)))


def test_each_outlier_is_a_cluster_of_its_own():
    pids = np.array([0, 0, 1, 1, 2, 2])
    assert agreement(np.array([0, 0, 1, 1, -1, -1]), pids) == adjusted_rand_score(pids, [0, 0, 1, 1, 2, 3])
    assert agreement(np.array([0, 0, 1, 1, -1, 2]), pids) == adjusted_rand_score(pids, [0, 0, 1, 1, 3, 2])
    assert agreement(pids + 4, pids) == 1.0 and agreement(np.full(6, -1), pids) == 0.0
