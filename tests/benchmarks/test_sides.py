"""Both sides of a benchmark compute the same numbers, and the reported memory is that of the work."""

import sys

import numpy as np
import pytest

from benchmarks import augmentation, dense, ivf
from benchmarks.measure import measure
from benchmarks.people import query_and_gallery, unlabeled
from reidssl.clustering.pseudo_labels import ClusterConfig, pseudo_labels
from reidssl.metrics.ranking import rank
from reidssl.metrics.reranking import rank_reranked


def test_pseudo_labels_equal_the_dense_algorithm():
    features = unlabeled(500, 17, 4, seed=1)[0]
    found = pseudo_labels(features, ClusterConfig())
    np.testing.assert_array_equal(found.labels, dense.pseudo_labels(features, 30, 6, 0.6, 4))
    assert 5 < found.num_clusters < 60 and found.num_outliers > 0  # the labels are not trivial


def test_ranking_and_reranking_equal_the_other_side():
    arrays = query_and_gallery(60, 400, 15, 4, seed=2, noise=2.0)
    queries, q_pids, q_camids, gallery, g_pids, g_camids = arrays
    for ours, distances in (
        (rank(*arrays), dense.squared_distances(queries, gallery)),
        (rank_reranked(*arrays), dense.rerank(queries, gallery)),
    ):
        cmc, m_ap = dense.sorted_ranking(distances, q_pids, g_pids, q_camids, g_camids)
        assert ours.mAP == pytest.approx(m_ap, abs=3e-4) and 0.2 < m_ap < 0.99  # the other side has float16 weights
        np.testing.assert_allclose(ours.cmc, cmc, atol=1 / 60)


@pytest.mark.parametrize("side", [ivf.ours, ivf.faiss])
def test_both_inverted_files_find_the_neighbors(side):
    work, check = side(3000)
    assert check(work())["recall"] > 0.9


def test_augmentation_of_this_side():
    """Only this project's side, because the other side needs a package that is not in the environment."""
    work, summary = augmentation.ours(2)
    assert summary(work())["shapes"] == [(2, 3, 256, 128), (2, 3, 128, 64)]


def test_missing_lightly_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightly", None)
    monkeypatch.setattr(sys, "argv", ["augmentation"])
    with pytest.raises(SystemExit, match=r"(?s)error: lightly cannot be imported.*pip install --target lightly-packages"):
        augmentation.main()


def test_memory_is_that_of_the_work():
    found = measure("tests.benchmarks.grow", "grows", {"mib": 300})
    assert 280 < found.grown_mib < 340 and found.numbers == {"sum": 1000.0} and found.seconds > 0
    assert found.resident_mib > found.peak_mib  # at least Python's own library is mapped from its file
