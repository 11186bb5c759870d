"""Near duplicates: removed best first, chains thinned, and no pair of them left."""

import numpy as np
import pytest

from reidssl.clustering.neighbors import knn
from reidssl.selection.distinct import without_duplicates


def test_equal_to_a_plain_loop_over_all_pairs():
    random = np.random.default_rng(0)
    centers = random.normal(size=(30, 8))
    features = (centers[random.integers(30, size=120)] + 0.1 * random.normal(size=(120, 8))).astype(np.float32)
    order = random.permutation(120)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines, kept = unit @ unit.T, []
    for image in order:
        if not any(cosines[image, other] >= 0.97 for other in kept):
            kept.append(image)
    found = without_duplicates(order, *knn(features, 120), 0.97)
    assert np.flatnonzero(found).tolist() == sorted(kept) and 20 < len(kept) < 80


def test_a_chain_is_thinned_and_either_side_may_name_the_other():
    near = np.asarray([[0, 1], [1, 2], [2, 3], [3, -1]])  # 0 - 1 - 2 - 3, each pair named once
    similar = np.ones((4, 2), np.float32)
    assert without_duplicates(np.arange(4), near, similar, 0.9).tolist() == [True, False, True, False]
    assert without_duplicates(np.asarray([3, 1, 0, 2]), near, similar, 0.9).tolist() == [False, True, False, True]
    assert without_duplicates(np.arange(4), near, np.full((4, 2), 0.5), 0.9).all()


def test_refusals():
    with pytest.raises(ValueError, match=r"similarity must be in \(0, 1\]: got 0"):
        without_duplicates(np.arange(2), np.zeros((2, 2), int), np.zeros((2, 2)), 0)
    with pytest.raises(ValueError, match="of the same images"):
        without_duplicates(np.arange(3), np.zeros((2, 2), int), np.zeros((2, 2)), 0.5)
