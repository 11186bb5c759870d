"""Re-ranking: against the released code's numbers and against a plain dense version."""

import numpy as np
import pytest
import torch

from reidssl.clustering.neighbors import knn
from reidssl.metrics.ranking import rank
from reidssl.metrics.reranking import rank_reranked, reranked_blocks
from tests.reidssl.clustering.dense import dense_distances, dense_vectors
from tests.reidssl.metrics.test_ranking import copies, reference_set


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
    # The released code keeps weights in float16; its mAP differs by 2e-5 from exact arithmetic.
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


def test_fewer_images_than_neighbors():
    _, (qf, _, _, gf, _, _) = reference_set()
    found = torch.cat([scores.clone() for _, scores in reranked_blocks(qf[:3], gf[:6])]).numpy()
    np.testing.assert_allclose(-found, dense_reranking(qf[:3], gf[:6], 20, 6, 0.3), atol=2e-6)


def of(blocks):
    return torch.cat([scores.clone() for _, scores in blocks]).numpy()


def test_features_that_are_all_equal():
    random = np.random.default_rng(0)
    for _ in range(60):
        width = int(random.integers(2, 80))
        rows = np.tile(random.normal(size=width).astype(np.float32), (int(random.integers(3, 60)), 1))
        scores = of(reranked_blocks(rows[:2], rows))
        assert np.isfinite(scores).all() and scores.max() - scores.min() < 0.75 and scores.max() < 0.05
        pids, cameras = np.arange(len(rows)) % 3, np.arange(len(rows)) % 2
        found = rank_reranked(rows[:2], pids[:2], 1 - cameras[:2], rows, pids, cameras, weight=1.0)  # all distances equal
        assert found.mAP == rank(rows[:2], pids[:2], 1 - cameras[:2], rows, pids, cameras).mAP


@pytest.mark.parametrize("block", [1, 7, 64, 2048])
def test_copies_and_blocks(block):
    queries, _, _, gallery, _, _ = copies()
    expected = of(reranked_blocks(queries, gallery, 12, 4))
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(of(reranked_blocks(queries, gallery, 12, 4, block=block)), expected)
    # With original distances only, equal images have equal scores for any block size.
    plain = of(reranked_blocks(queries, gallery, 12, 4, weight=1.0, block=block))
    numbers = np.unique(gallery, axis=0, return_inverse=True)[1].reshape(-1)
    for number in np.unique(numbers):
        assert (np.ptp(plain[:, numbers == number], axis=1) == 0).all()


def test_one_query():
    _, (qf, _, _, gf, _, _) = reference_set()
    np.testing.assert_allclose(-of(reranked_blocks(qf[:1], gf[:60])), dense_reranking(qf[:1], gf[:60], 20, 6, 0.3), atol=2e-6)


def test_order_does_not_matter():
    _, (qf, _, _, gf, _, _) = reference_set()
    random = np.random.default_rng(1)
    rows, columns = random.permutation(30), random.permutation(90)
    expected = of(reranked_blocks(qf[:30], gf[:90]))
    found = of(reranked_blocks(qf[:30][rows], gf[:90][columns]))
    np.testing.assert_allclose(found, expected[rows][:, columns], atol=2e-6)


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
    with pytest.raises(ValueError, match="block must be at least 1 query: got 0"):
        rank_reranked(*arrays, block=0)
    with pytest.raises(ValueError, match=r"weight must be in \[0, 1\]: got 1.5"):
        rank_reranked(*arrays, weight=1.5)
    with pytest.raises(ValueError, match="got 899 gallery features and 900 labels"):
        rank_reranked(*arrays[:3], arrays[3][1:], *arrays[4:])
