"""Neighbors of neighbors: nearer than the given table, and exact where the given table leads to the true neighbors."""

import numpy as np
import pytest

from reidssl.clustering.index import find_neighbors, recall
from reidssl.clustering.neighbors import knn
from reidssl.clustering.nn_descent import refine


def people(num: int = 4000, width: int = 32, seed: int = 0) -> np.ndarray:
    """Features with ten images per identity."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(num // 10, width))
    return (centers[np.arange(num) // 10] + 0.6 * random.normal(size=(num, width))).astype(np.float32)


FEATURES = people()


def test_what_a_hasty_search_missed_is_found():
    hasty = find_neighbors(FEATURES, 10, "ivf", effort=4)
    better = refine(FEATURES, hasty)
    before, after = recall(FEATURES, hasty), recall(FEATURES, better)
    assert before < 0.94 and 1 - after < 0.6 * (1 - before)
    assert (better[1] >= hasty[1] - 1e-6).all() and (better[0][:, 0] == np.arange(len(FEATURES))).all()
    assert all(len(set(row)) == len(row) for row in better[0].tolist())


def test_similarities_are_those_of_the_images_found():
    found, near = refine(FEATURES, find_neighbors(FEATURES, 15, "ivf", effort=2))
    unit = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    np.testing.assert_allclose(near, np.einsum("nd,nkd->nk", unit, unit[found]), atol=1e-5)
    assert (np.diff(near, axis=1) <= 1e-6).all()


def test_the_number_of_threads_changes_nothing(monkeypatch):
    monkeypatch.setattr("reidssl.clustering.nn_descent.BLOCK", 300)
    hasty = find_neighbors(FEATURES, 10, "ivf", effort=1)
    for one, other in zip(refine(FEATURES, hasty, 1), refine(FEATURES, hasty, 3), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_exact_table_stays_as_it_is():
    exact = knn(FEATURES, 12)
    found, near = refine(FEATURES, exact)
    np.testing.assert_array_equal(found, exact[0])
    np.testing.assert_allclose(near, exact[1], atol=1e-6)


def test_places_left_empty_are_filled_or_stay_empty():
    features = np.eye(4, 3, dtype=np.float32) + 0.1
    indices = np.array([[0, 1, -1], [1, 2, -1], [2, 0, -1], [3, -1, -1]])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarities = np.where(indices < 0, -np.inf, np.einsum("nd,nkd->nk", unit, unit[indices])).astype(np.float32)
    found, near = refine(features, (indices, similarities))
    assert [sorted(row) for row in found.tolist()] == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [-1, -1, 3]]
    assert near[3].tolist()[1:] == [-np.inf, -np.inf]


def test_a_table_of_other_images_is_refused():
    with pytest.raises(ValueError, match=r"a row for each of 4000 images: got indices \(3, 2\) and similarities \(3, 2\)"):
        refine(FEATURES, (np.zeros((3, 2), np.int64), np.zeros((3, 2), np.float32)))
