"""The measures of the score, against plain definitions."""

import numpy as np
import pytest
import torch

from reidssl.choices import MEASURES
from reidssl.selection.cfs import MEASURE_OF, cfs_scores, group_scores, groups_of


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


def test_refusals():
    with pytest.raises(ValueError, match="measure must be one of cosine, neighborhood, group_neighborhood, group_cka: got 'l2'"):
        cfs_scores(features(), features(), "l2")
    with pytest.raises(ValueError, match="one width: got 10 and 9"):
        cfs_scores(features(), features(width=9))
    with pytest.raises(ValueError, match="same images"):
        cfs_scores(features(), features(num=9))
    with pytest.raises(ValueError, match="got k 0"):
        cfs_scores(features(), features(), "neighborhood", k=0)


# ---- measures of groups


def gram(values):
    centered = values.astype(np.float64) - values.astype(np.float64).mean(axis=0)
    return centered @ centered.T


def test_cka_is_the_part_of_an_image_in_the_cka_of_its_group():
    a = features(num=40, seed=1)
    b = np.concatenate([a[:, :4], features(num=40, width=3, seed=2)], axis=1)
    own, other = gram(a), gram(b)
    rows = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(own, other, strict=True)]
    found = cfs_scores(a, b, "group_cka").numpy()
    np.testing.assert_allclose(found, rows, atol=1e-6)
    whole = np.linalg.norm(own) * np.linalg.norm(other)
    weights = np.linalg.norm(own, axis=1) * np.linalg.norm(other, axis=1) / whole
    assert weights @ found == pytest.approx((own * other).sum() / whole, abs=1e-6)
    assert found.std() > 0.05 and 0.3 < found.mean() < 0.95  # the features are neither equal nor unrelated


def test_cka_ignores_rotation_shift_and_scale_and_sees_a_moved_image():
    a = features(num=80)
    rotation = np.linalg.qr(features(10, 10, seed=5))[0].astype(np.float32)
    np.testing.assert_allclose(cfs_scores(a, 3 * a @ rotation + 2, "group_cka"), 1.0, atol=1e-6)
    moved = a.copy()
    moved[7] = -3 * a[7]
    assert int(cfs_scores(a, moved, "group_cka").argmin()) == 7
    same = np.ones((5, 4), np.float32)
    assert cfs_scores(same, features(5, 4), "group_cka").tolist() == [0.0] * 5  # no image differs from the mean
    a[3, 1] = np.inf
    with pytest.raises(ValueError, match="source must be finite"):
        cfs_scores(a, moved, "group_cka")


@pytest.mark.parametrize("measure", ["group_neighborhood", "group_cka"])
def test_groups_are_scored_alone_whatever_the_order_of_the_rows(measure):
    keys = [f"{number}.jpg" for number in range(50)]
    a, b = features(num=50, seed=1), features(num=50, seed=1) + features(num=50, seed=2)
    found = group_scores(keys, a, b, measure, k=5, group=20, seed=3)
    groups = groups_of(keys, 20, 3)
    assert sorted(np.concatenate(groups).tolist()) == list(range(50)) and [len(one) for one in groups] == [17, 17, 16]
    for members in groups:
        kind = measure.removeprefix("group_")
        np.testing.assert_array_equal(found[members], cfs_scores(a[members], b[members], measure, 5))
        if kind in MEASURE_OF:  # over the whole set or within a group: one definition
            np.testing.assert_array_equal(found[members], cfs_scores(a[members], b[members], kind, 5))
    mixed = np.random.default_rng(0).permutation(50)
    again = group_scores([keys[place] for place in mixed], a[mixed], b[mixed], measure, k=5, group=20, seed=3)
    np.testing.assert_allclose(again, found[mixed], atol=1e-6)
    assert (group_scores(keys, a, b, measure, k=5, group=20, seed=4) != found).any()


def test_no_group_has_one_image():
    for count in range(2, 60):
        keys = [f"{number}" for number in range(count)]
        assert min(len(one) for one in groups_of(keys, 3, 0)) >= 2


def test_groups_are_random_and_even():
    keys = [f"{number:05d}" for number in range(1000)]
    groups = groups_of(keys, 300, 0)
    assert [len(one) for one in groups] == [250] * 4
    assert all(90 < (one < 500).sum() < 160 for one in groups)  # not consecutive rows
    assert [len(one) for one in groups_of(keys, 1000, 0)] == [1000]
    with pytest.raises(ValueError, match="group must be at least 3, since one of two images may have to be alone: got 2"):
        groups_of(keys, 2, 0)
    with pytest.raises(ValueError, match="group_cka needs k of at least 1 and two images: got k 20, 1 images"):
        group_scores(["a"], features(1), features(1), "group_cka")


def test_every_measure_that_a_user_can_choose_is_there():
    assert tuple(MEASURE_OF) == MEASURES
    assert {name: one.scope for name, one in MEASURE_OF.items()} == {
        "cosine": "image",
        "neighborhood": "set",
        "group_neighborhood": "group",
        "group_cka": "group",
    }
