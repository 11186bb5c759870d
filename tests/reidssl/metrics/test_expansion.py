"""Query expansion against its formula, query by query."""

import numpy as np
import pytest
import torch

from reidssl.metrics.expansion import expand_queries
from tests.reidssl.metrics.test_ranking import copies


@pytest.mark.parametrize(("k", "alpha", "block"), [(5, 3.0, 128), (3, 0.0, 4), (100, 1.0, 128)])
def test_equal_to_the_formula(k, alpha, block):
    random = np.random.default_rng(0)
    queries, gallery = (random.normal(size=(num, 6)).astype(np.float32) for num in (13, 40))
    found = expand_queries(queries, gallery, k, alpha, block).numpy()
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (queries, gallery)]
    for q, query in enumerate(unit[0]):
        cosines = unit[1] @ query
        best = np.argsort(-cosines, kind="stable")[:k]
        total = query + sum(cosines[g] ** alpha * unit[1][g] for g in best if cosines[g] > 0)
        np.testing.assert_allclose(found[q], total / np.linalg.norm(total), atol=1e-5)


def test_autocast_does_not_matter():
    arrays = copies()
    expected = expand_queries(arrays[0], arrays[3], 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(expand_queries(arrays[0], arrays[3], 8), expected)


@pytest.mark.parametrize("block", [1, 7, 64, 2048])
def test_blocks_do_not_matter(block):
    arrays = copies()
    expected = expand_queries(arrays[0], arrays[3], 8)
    np.testing.assert_allclose(expand_queries(arrays[0], arrays[3], 8, block=block).numpy(), expected.numpy(), atol=1e-6)


def test_a_gallery_smaller_than_k_and_equal_features():
    same = np.tile(np.random.default_rng(2).normal(size=5), (4, 1))
    np.testing.assert_allclose(expand_queries(same[:2], same, 9).numpy(), same[:2] / np.linalg.norm(same[0]), atol=1e-6)


def test_noisy_queries_move_to_their_person():
    random = np.random.default_rng(1)
    people = np.eye(8, dtype=np.float32)
    queries = people + 0.3 * random.normal(size=(8, 8)).astype(np.float32)
    gallery = np.repeat(people, 5, axis=0) + 0.05 * random.normal(size=(40, 8)).astype(np.float32)
    before = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    after = expand_queries(queries, gallery, 4).numpy()
    assert np.diag(after).mean() > np.diag(before).mean() + 0.05


def test_refusals():
    with pytest.raises(ValueError, match=r"k must be at least 1 and alpha at least 0: got 0, 3.0"):
        expand_queries(np.eye(3), np.eye(3), 0)
    with pytest.raises(ValueError, match="one width: got 3 and 4"):
        expand_queries(np.eye(3), np.eye(4), 1)
