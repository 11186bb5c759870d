"""Re-ranking: against the released code's numbers and against a plain dense version."""

import numpy as np
import pytest
import torch

from reidssl.clustering.neighbours import knn
from reidssl.metrics.ranking import rank
from reidssl.metrics.reranking import rank_reranked, reranked_blocks
from tests.reidssl.clustering.dense import dense_distances, dense_vectors
from tests.reidssl.metrics.test_ranking import reference_set


def dense_reranking(queries, gallery, k1, k2, weight):
    """Final distances float64 (Q, G) from N x N arrays, N = Q + G."""
    both = np.concatenate([queries, gallery]).astype(np.float64)
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    squared = 2 - 2 * both @ both.T
    scaled = squared / squared.max(axis=1, keepdims=True)
    table = knn(both, k1 + 1)[0]
    vectors = dense_vectors(both, table, round(k1 / 2) + 1, 1 / squared.max(axis=1))
    final = (1 - weight) * dense_distances(vectors, table, k2) + weight * scaled
    return final[: len(queries), len(queries) :]


def test_equal_to_the_released_code():
    stored, arrays = reference_set()
    found = rank_reranked(*arrays)
    # That code keeps weights in float16: its mAP is 2e-5 from exact arithmetic.
    assert found.mAP == pytest.approx(float(stored["rerank_20_6_mAP"]), abs=1e-4)
    np.testing.assert_allclose(found.cmc, stored["rerank_20_6_cmc"], atol=1e-4)
    assert found.mAP > rank(*arrays).mAP + 0.1


@pytest.mark.parametrize(("k1", "k2", "weight", "block"), [(20, 6, 0.3, 256), (7, 1, 0.0, 9), (12, 12, 0.8, 16)])
def test_equal_to_a_dense_version(k1, k2, weight, block):
    _, (qf, _, _, gf, _, _) = reference_set()
    queries, gallery = qf[:40], gf[:110]
    found = [(start, scores.clone()) for start, scores in reranked_blocks(queries, gallery, k1, k2, weight, block, num_threads=2)]
    assert [start for start, _ in found] == list(range(0, 40, block))
    distances = -torch.cat([scores for _, scores in found]).numpy()
    np.testing.assert_allclose(distances, dense_reranking(queries, gallery, k1, k2, weight), atol=2e-6)


def test_weight_one_is_the_plain_ranking():
    _, arrays = reference_set()
    np.testing.assert_allclose(rank_reranked(*arrays, weight=1.0).mAP, rank(*arrays).mAP, atol=1e-6)


def test_fewer_images_than_neighbours():
    _, (qf, _, _, gf, _, _) = reference_set()
    found = torch.cat([scores.clone() for _, scores in reranked_blocks(qf[:3], gf[:6])]).numpy()
    np.testing.assert_allclose(-found, dense_reranking(qf[:3], gf[:6], 20, 6, 0.3), atol=2e-6)


def test_junk_identities_take_no_part():
    _, (qf, q_pids, q_camids, gf, g_pids, g_camids) = reference_set()
    clean = rank_reranked(qf, q_pids, q_camids, gf, g_pids, g_camids)
    noise = np.random.default_rng(0).normal(size=(50, gf.shape[1])).astype(np.float32)
    with_junk = rank_reranked(
        qf, q_pids, q_camids, torch.from_numpy(np.concatenate([noise, gf])),
        np.concatenate([np.full(50, -1), g_pids]), np.concatenate([np.zeros(50, int), g_camids]),
    )  # fmt: skip
    np.testing.assert_array_equal(with_junk.average_precision, clean.average_precision)


def test_refusals():
    _, arrays = reference_set()
    with pytest.raises(ValueError, match="got k1 3, k2 6"):
        rank_reranked(*arrays, k1=3)
    with pytest.raises(ValueError, match=r"weight must be in \[0, 1\]: got 1.5"):
        rank_reranked(*arrays, weight=1.5)
    with pytest.raises(ValueError, match="899 gallery features do not fit 900 labels"):
        rank_reranked(*arrays[:3], arrays[3][1:], *arrays[4:])
