"""Area under the curve and agreement: against plain definitions and an independent library."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from reidssl.selection.agreement import agreement, auc, spearman


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
