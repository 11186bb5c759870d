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


def test_agreement_of_two_orders():
    keys, scores = [f"{place}.jpg" for place in range(10)], -np.arange(10.0)
    same = agreement(keys, scores, 3 * scores, [0.2, 0.5])
    counts = {"num_first": 10, "num_second": 10, "num_compared": 10, "common": 1.0}
    assert same == {**counts, "spearman": pytest.approx(1.0), "overlaps": {"0.2": 1.0, "0.5": 1.0}}
    opposite = agreement(keys, scores, -scores, [0.5, 0.8])
    assert opposite["spearman"] == pytest.approx(-1.0) and opposite["overlaps"] == {"0.5": 0.0, "0.8": 0.75}
    swapped = scores.copy()
    swapped[[4, 5]] = scores[[5, 4]]
    found = agreement(keys, scores, swapped, [0.5])
    assert found["overlaps"]["0.5"] == pytest.approx(0.8) and 0.9 < found["spearman"] < 1.0
    assert agreement(keys, scores, np.append([-1.0, 0.0], scores[2:]), [0.1])["overlaps"]["0.1"] == 0.0


def test_agreement_compares_the_images_that_both_rank():
    keys = ["a", "x", "b", "c", "y", "d"]
    found = agreement(keys, np.asarray([6, 9, 5, 4, 8, 3]), np.asarray([6, np.nan, 5, 4, np.nan, 3]), [0.5])
    assert (found["num_first"], found["num_second"], found["num_compared"], found["common"]) == (6, 4, 4, 1.0)
    assert found["spearman"] == pytest.approx(1.0) and found["overlaps"] == {"0.5": 1.0}
    disjoint = agreement(keys[:2], np.asarray([1, np.nan]), np.asarray([np.nan, 1]), [0.5])
    assert disjoint["common"] == 0.0 and disjoint["spearman"] is None and disjoint["overlaps"] == {}
    with pytest.raises(ValueError, match="a ranking without images"):
        agreement(["a"], np.asarray([np.nan]), np.asarray([1.0]), [0.5])
    with pytest.raises(ValueError, match="one length: got 6, 1 and 1"):
        agreement(keys, np.ones(1), np.ones(1), [0.5])
