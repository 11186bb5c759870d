"""Scores, area under the curve and agreement: against plain definitions and an independent library."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from reidssl.selection.cfs import agreement, auc, cfs_scores, spearman


def features(num=60, width=10, seed=0):
    return np.random.default_rng(seed).normal(size=(num, width)).astype(np.float32)


def test_cosine_is_the_cosine():
    a, b = features(seed=0), features(seed=1)
    expected = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    found = cfs_scores(a, b)
    assert found.dtype == torch.float32 and found.shape == (60,)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(cfs_scores(torch.from_numpy(a), torch.from_numpy(3 * a)), 1.0, atol=1e-6)
    np.testing.assert_allclose(cfs_scores(a, -a), -1.0, atol=1e-6)


def test_cosine_looks_at_each_image_by_itself():
    a, b = features(seed=0), features(seed=1)
    np.testing.assert_allclose(cfs_scores(a[7:9], b[7:9]), cfs_scores(a, b)[7:9], atol=1e-7)


def test_a_broken_feature_scores_nan_and_only_that():
    a, b = features(seed=0), features(seed=1)
    b[4, 2] = np.nan
    assert cfs_scores(a, b).isnan().nonzero().flatten().tolist() == [4]
    with pytest.raises(ValueError, match="row 4"):
        cfs_scores(a, b, "neighborhood")


@pytest.mark.parametrize(("k", "block"), [(5, 1024), (20, 7), (1, 1), (500, 16)])
def test_neighborhood_is_the_overlap(k, block):
    a, b = features(seed=2), features(width=6, seed=3)

    def nearest(values):
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        order = np.argsort(-(unit @ unit.T), axis=1, kind="stable")
        return [set([j for j in row if j != i][:k]) for i, row in enumerate(order)]

    expected = [len(x & y) / min(k, 59) for x, y in zip(nearest(a), nearest(b), strict=True)]
    np.testing.assert_allclose(cfs_scores(a, b, "neighborhood", k, block), expected, atol=1e-6)


def test_neighborhood_ignores_a_rotation_and_cosine_does_not():
    a = features(num=100)
    rotation = np.linalg.qr(features(10, 10, seed=5))[0].astype(np.float32)
    assert cfs_scores(a, a @ rotation, "neighborhood", 10).min() > 0.85  # rounding may swap near ties
    assert abs(float(cfs_scores(a, a @ rotation).mean())) < 0.5


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_auc_equals_scikit_learn_and_the_pairs(levels):
    random = np.random.default_rng(levels)
    scores, truth = random.integers(levels, size=200) / 7.0, random.random(200) < 0.3
    pairs = np.sign(scores[truth][:, None] - scores[~truth])
    assert auc(scores, truth) == pytest.approx((pairs + 1).mean() / 2, abs=1e-12)
    assert auc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert auc(-scores, truth) == pytest.approx(1 - auc(scores, truth), abs=1e-12)


def test_auc_extremes_and_refusals():
    assert auc([3, 2, 1, 0], [True, True, False, False]) == 1.0
    assert auc([1, 1, 1], [True, False, False]) == 0.5
    with pytest.raises(ValueError, match="0 positives and 2 negatives"):
        auc([1, 2], [False, False])
    with pytest.raises(ValueError, match="entry 1 is NaN"):
        auc([1, np.nan], [True, False])
    with pytest.raises(ValueError, match="one length"):
        auc([1, 2, 3], [True, False])


@pytest.mark.parametrize("levels", [4, 10**6])
def test_spearman_equals_scipy(levels):
    random = np.random.default_rng(levels)
    a = random.integers(levels, size=150)
    b = a + random.integers(levels, size=150)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    with pytest.raises(ValueError, match="all of one array are equal"):
        spearman(a, np.ones(150))


def test_agreement_with_a_list():
    keys = [f"{place}.jpg" for place in range(10)]
    scores = -np.arange(10.0)
    same = agreement(keys, scores, [f"images/{key}" for key in keys])
    assert same == {"spearman": pytest.approx(1.0), "top_overlap": 1.0, "fraction": 0.5, "num_compared": 10}
    opposite = agreement(keys, scores, keys[::-1])
    assert opposite["spearman"] == pytest.approx(-1.0) and opposite["top_overlap"] == 0.0
    swapped = agreement(keys, scores, [*keys[:4], keys[5], keys[4], *keys[6:]])
    assert swapped["top_overlap"] == pytest.approx(0.8) and 0.9 < swapped["spearman"] < 1.0


def test_agreement_compares_common_images_only():
    keys = ["a", "x", "b", "c", "y", "d"]
    found = agreement(keys, [6, 9, 5, 4, 8, 3], ["a", "other", "b", "c", "d"])
    assert found["num_compared"] == 4 and found["spearman"] == pytest.approx(1.0) and found["top_overlap"] == 1.0
    with pytest.raises(ValueError, match=r"shares 1 of 6 images .*another data set"):
        agreement(keys, np.arange(6), ["a", "z"])
    with pytest.raises(ValueError, match="names 1 images twice"):
        agreement(keys, np.arange(6), ["a", "a", "b"])


def test_refusals():
    with pytest.raises(ValueError, match="measure must be one of cosine, neighborhood: got 'l2'"):
        cfs_scores(features(), features(), "l2")
    with pytest.raises(ValueError, match="one width: got 10 and 9"):
        cfs_scores(features(), features(width=9))
    with pytest.raises(ValueError, match="same images"):
        cfs_scores(features(), features(num=9))
    with pytest.raises(ValueError, match="got k 0"):
        cfs_scores(features(), features(), "neighborhood", k=0)
