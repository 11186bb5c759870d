"""Ranking metrics: against the released evaluator's numbers and against a plain sort, query by query."""

from pathlib import Path

import numpy as np
import pytest
import torch

from reidssl.metrics.inputs import have_matches
from reidssl.metrics.ranking import best_matches, leave_one_out, rank, rank_blocks, same_camera_share

REFERENCE = Path(__file__).parents[2] / "reference" / "ranking.npz"


def reference_set():
    stored = np.load(REFERENCE)
    return stored, [stored[name] for name in ("qf", "q_pids", "q_camids", "gf", "g_pids", "g_camids")]


def labeled(num, seed, num_ids=8, num_cameras=3, width=6):
    random = np.random.default_rng(seed)
    pids = random.integers(-1, num_ids, size=num)
    features = np.random.default_rng(99).normal(size=(num_ids + 1, width))[pids] + random.normal(size=(num, width))
    return features.astype(np.float32), pids, random.integers(num_cameras, size=num)


def sorted_evaluation(scores, q_pids, q_camids, g_pids, g_camids, max_rank=50, itself=False):
    """(mAP, cmc, mINP, AP per query) by sorting the gallery of each query."""
    precisions, curves, penalties = np.full(len(scores), np.nan), [], []
    for q, row in enumerate(scores):
        same_camera = (g_camids == q_camids[q]) & (q_camids[q] != -1)
        junk = (g_pids == -1) | ((g_pids == q_pids[q]) & same_camera)
        if itself:
            junk[q] = True
        order = [g for g in sorted(range(len(row)), key=lambda g: (-row[g], g)) if not junk[g]]
        hits = np.asarray([g_pids[g] == q_pids[q] for g in order], bool)
        if q_pids[q] == -1 or not hits.any():
            continue
        places = np.flatnonzero(hits)
        precisions[q] = np.mean([(n + 1) / (place + 1) for n, place in enumerate(places)])
        curves.append(np.arange(max_rank) >= places[0])
        penalties.append(len(places) / (places[-1] + 1))
    return np.nanmean(precisions), np.mean(curves, axis=0), np.mean(penalties), precisions


def assert_equal_metrics(found, expected):
    m_ap, cmc, m_inp, precisions = expected
    assert found.mAP == pytest.approx(m_ap, abs=1e-12) and found.mINP == pytest.approx(m_inp, abs=1e-12)
    np.testing.assert_allclose(found.cmc, cmc, atol=1e-12)
    np.testing.assert_allclose(found.average_precision, precisions, atol=1e-12)  # NaN for queries that are left out
    assert found.num_valid_queries == np.isfinite(precisions).sum()


def test_equal_to_the_released_evaluator():
    stored, arrays = reference_set()
    found = rank(*arrays)
    assert found.mAP == pytest.approx(float(stored["norm_mAP"]), abs=1e-9)
    np.testing.assert_allclose(found.cmc, stored["norm_cmc"], atol=1e-6)
    np.testing.assert_allclose(found.average_precision, stored["norm_AP_per_query"], atol=1e-9)
    assert found.num_valid_queries == 169 < len(arrays[0])
    assert found.as_dict() == {
        "mAP": found.mAP, "rank1": found.cmc[0], "rank5": found.cmc[4], "rank10": found.cmc[9],
        "mINP": found.mINP, "num_valid_queries": 169,
    }  # fmt: skip


@pytest.mark.parametrize(("block", "num_threads"), [(1, 1), (37, 2), (1000, 3)])
def test_block_and_threads_do_not_matter(block, num_threads):
    _, arrays = reference_set()
    np.testing.assert_allclose(
        rank(*arrays, block=block, num_threads=num_threads).average_precision, rank(*arrays).average_precision, atol=1e-12
    )


@pytest.mark.parametrize("seed", range(20))
def test_equal_to_a_sort_with_ties_junk_and_unknown_cameras(seed):
    random = np.random.default_rng(seed)
    _, q_pids, q_camids = labeled(25, seed)
    _, g_pids, g_camids = labeled(140, seed + 100)
    q_camids[random.random(25) < 0.1] = -1
    g_camids[random.random(140) < 0.1] = -1
    levels = (3, 10, 10**6)[seed % 3]  # few levels: nearly all scores are tied
    scores = random.integers(levels, size=(25, 140)).astype(np.float32)
    blocks = [(0, torch.from_numpy(scores[:11])), (11, torch.from_numpy(scores[11:]))]
    found = rank_blocks(blocks, q_pids, q_camids, g_pids, g_camids)
    assert_equal_metrics(found, sorted_evaluation(scores, q_pids, q_camids, g_pids, g_camids))


@pytest.mark.parametrize("levels", [2, 30, 10**6])
def test_many_matches_are_counted_as_few_are(levels):
    random = np.random.default_rng(levels)
    scores = random.integers(levels, size=(12, 150)).astype(np.float32)
    labels = [random.integers(*each) for each in ((0, 2, 12), (0, 3, 12), (-1, 2, 150), (0, 4, 150))]
    found = rank_blocks([(0, torch.from_numpy(scores))], *labels)  # about fifty matches per query
    assert_equal_metrics(found, sorted_evaluation(scores, *labels))


def test_scores_that_are_no_numbers_are_refused():
    scores = torch.rand(4, 30, generator=torch.Generator().manual_seed(0))
    labels = np.arange(4), np.zeros(4, int), np.arange(30) % 5, np.ones(30, int)
    for place in (1, 2):  # a match of query 1, and another person
        broken = scores.clone()
        broken[1, place] = torch.nan
        with pytest.raises(ValueError, match="query 1 has NaN among its scores"):
            rank_blocks([(0, broken)], *labels)


def copies(seed=0):
    """Query and gallery with many equal images, so that many scores are tied."""
    random = np.random.default_rng(seed)
    points = random.normal(size=(50, 24)).astype(np.float32)
    found = []
    for num in (60, 230):
        chosen = random.integers(50, size=num)
        found += [points[chosen], np.where(random.random(num) < 0.1, -1, chosen // 6), random.integers(-1, 4, size=num)]
    return found


@pytest.mark.parametrize(("block", "gallery_block"), [(1, 10**6), (3, 10**6), (7, 64), (64, 7), (2048, 29), (2048, 229)])
def test_ties_fall_alike_whatever_the_blocks(block, gallery_block):
    arrays = copies()
    expected = rank(*arrays)
    found = rank(*arrays, block=block, gallery_block=gallery_block, num_threads=1 + block % 2)
    np.testing.assert_array_equal(found.average_precision, expected.average_precision)
    np.testing.assert_array_equal(found.cmc, expected.cmc)
    assert found.mINP == expected.mINP
    everybody = leave_one_out(*arrays[3:])
    again = leave_one_out(*arrays[3:], block=block, gallery_block=gallery_block)
    np.testing.assert_array_equal(again.average_precision, everybody.average_precision)
    # Ties are ranked by position in the gallery, as in a stable sort of exactly equal scores.
    points, numbers = np.unique(np.concatenate([arrays[0], arrays[3]]), axis=0, return_inverse=True)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    scores = (unit @ unit.T)[numbers.reshape(-1)[:60]][:, numbers.reshape(-1)[60:]]
    assert_equal_metrics(found, sorted_evaluation(scores, *arrays[1:3], *arrays[4:]))


def test_order_does_not_matter():
    arrays = [*labeled(40, 11), *labeled(170, 12)]
    expected = rank(*arrays)
    order = np.random.default_rng(13).permutation(40)
    moved = rank(*(each[order] for each in arrays[:3]), *arrays[3:])
    np.testing.assert_array_equal(moved.average_precision, expected.average_precision[order])
    order = np.random.default_rng(14).permutation(170)
    moved = rank(*arrays[:3], *(each[order] for each in arrays[3:]))
    np.testing.assert_array_equal(moved.average_precision, expected.average_precision)  # there are no ties


def test_features_that_are_all_equal_rank_by_place():
    gallery = np.asarray([1, 0, -1, 0, 1, 0]), np.asarray([1, 1, 1, 0, 1, 1])
    for vector in np.random.default_rng(15).normal(size=(10, 7)).astype(np.float32):
        found = rank(vector[None], np.asarray([0]), np.asarray([0]), np.tile(vector, (6, 1)), *gallery)
        assert found.mAP == pytest.approx((1 / 2 + 2 / 4) / 2)  # places 2 and 4 of 4, junk removed


def test_a_single_image_of_each():
    one = np.ones((1, 4), np.float32)
    found = rank(one, np.asarray([3]), np.asarray([0]), one, np.asarray([3]), np.asarray([1]))
    assert found.mAP == found.mINP == found.rank10 == 1.0


def test_worked_example():
    # Gallery order by score: junk (same camera), match, other, identity -1 (junk), match -> hits at 1 and 3 of 3.
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5]])
    found = rank_blocks([(0, scores)], np.asarray([7]), np.asarray([0]), np.asarray([7, 7, 3, -1, 7]), np.arange(5))
    assert found.mAP == pytest.approx((1 / 1 + 2 / 3) / 2) and found.mINP == pytest.approx(2 / 3)
    assert (found.rank1, found.rank5, found.rank10) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("cameras", ["known", "unknown"])
def test_leave_one_out(cameras):
    features, pids, camids = labeled(90, 5)
    camids = camids if cameras == "known" else np.full(90, -1)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = sorted_evaluation(unit @ unit.T, pids, camids, pids, camids, itself=True)
    found = leave_one_out(features, pids, camids, block=32)
    assert found.mAP == pytest.approx(expected[0], abs=1e-6) and found.mINP == pytest.approx(expected[2], abs=1e-6)
    np.testing.assert_allclose(found.cmc, expected[1], atol=1e-9)
    assert found.mAP < 1.0  # no query found itself


@pytest.mark.parametrize("seed", range(6))
def test_the_labels_tell_which_images_have_a_match(seed):
    """Sparse labels: some people have one image, or several in one camera; identities and cameras may be unknown."""
    features, pids, camids = labeled(40, seed, num_ids=25, num_cameras=2)
    random = np.random.default_rng(seed)
    pids, camids = np.where(random.random(40) < 0.2, -1, pids), np.where(random.random(40) < 0.3, -1, camids)
    matched = have_matches(pids, camids)
    assert 0 < matched.sum() < 40
    np.testing.assert_array_equal(matched, ~np.isnan(leave_one_out(features, pids, camids).average_precision))


def test_best_matches():
    features, pids, camids = labeled(60, 7)
    queries, q_pids, q_camids = labeled(9, 8)
    found = best_matches(queries, q_pids, q_camids, features, pids, camids, top=5, block=4)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (queries, features)]
    for q, row in enumerate(unit[0] @ unit[1].T):
        junk = (pids == -1) | ((pids == q_pids[q]) & (camids == q_camids[q]))
        order = [g for g in np.argsort(-row, kind="stable") if not junk[g]][:5]
        assert found.indices[q].tolist() == order
        assert found.correct[q].tolist() == [bool(pids[g] == q_pids[q]) for g in order]
        np.testing.assert_allclose(found.similarities[q], row[order], atol=1e-6)


def test_best_matches_with_too_small_a_gallery():
    gallery = np.eye(3, dtype=np.float32)
    pids, camids = np.asarray([1, 1, 2]), np.asarray([0, 1, 0])
    found = best_matches(gallery[:1], pids[:1], camids[:1], gallery, pids, camids, top=4)
    assert found.indices.tolist() == [[1, 2, -1, -1]] and found.correct.tolist() == [[True, False, False, False]]


def test_same_camera_share():
    random = np.random.default_rng(0)
    camids = np.repeat(np.arange(4), 10)
    camera_only = np.eye(4)[camids] + 0.01 * random.normal(size=(40, 4))
    assert same_camera_share(camera_only, camids) == same_camera_share(camera_only, camids, k=9) == 1.0
    assert same_camera_share(camera_only, camids, k=39) == pytest.approx(9 / 39)
    camids = np.concatenate([camids, np.full(5, -1)])  # images of unknown cameras are ignored
    assert same_camera_share(np.concatenate([camera_only, camera_only[:5]]), camids, k=9) == 1.0
    with pytest.raises(ValueError, match=r"k must be in \[1, .* = 39\]: got 40"):
        same_camera_share(camera_only, camids[:40], k=40)


def test_refusals():
    _, (qf, q_pids, q_camids, gf, g_pids, g_camids) = reference_set()
    with pytest.raises(ValueError, match=r"no query has a true match in another camera: .* share 0 identities"):
        rank(qf, q_pids, q_camids, gf, g_pids + 5000, g_camids)
    with pytest.raises(ValueError, match=r"of the same images: got scores .* for 179 query"):
        rank(qf, q_pids[1:], q_camids[1:], gf, g_pids, g_camids)
    with pytest.raises(ValueError, match="got 179 query rows, 180 labels"):
        rank(qf[1:], q_pids, q_camids, gf, g_pids, g_camids)
    with pytest.raises(ValueError, match="of the same images"):
        best_matches(qf, q_pids, q_camids, gf[1:], g_pids, g_camids)
    with pytest.raises(ValueError, match="one width: got 63 and 64"):
        rank(qf[:, 1:], q_pids, q_camids, gf, g_pids, g_camids)
    with pytest.raises(ValueError, match="gallery_block must be at least 1 image: got 0"):
        rank(qf, q_pids, q_camids, gf, g_pids, g_camids, gallery_block=0)
    with pytest.raises(ValueError, match=r"got scores .* for 180 query and 899"):
        rank(qf, q_pids, q_camids, gf, g_pids[1:], g_camids[1:])
    with pytest.raises(ValueError, match="got 900 gallery features and 899 labels"):
        rank(qf, q_pids, q_camids, gf, g_pids[1:], g_camids[1:], gallery_block=100)
    with pytest.raises(ValueError, match="max_rank must be at least 10: got 5"):
        rank(qf, q_pids, q_camids, gf, g_pids, g_camids, max_rank=5)
    with pytest.raises(ValueError, match="gallery pids and camids must be integers: got float64"):
        rank(qf, q_pids, q_camids, gf, g_pids.astype(float), g_camids)
    gf = gf.copy()
    gf[17, 3] = np.nan
    with pytest.raises(ValueError, match="gallery_features must be finite: row 17"):
        rank(qf, q_pids, q_camids, gf, g_pids, g_camids)
