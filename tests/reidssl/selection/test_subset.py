"""The best images, deterministically, and with a floor for each stratum."""

import numpy as np
import pytest

from reidssl.selection.subset import count_of, select_best, select_stratified, select_top


def test_published_counts():
    assert count_of(4_180_243, 0.5) == 2_090_122
    assert count_of(4_180_243, 0.6) == 2_508_146
    assert count_of(10, 1.0) == 10 and count_of(10, 0.3) == 3 and count_of(3, 0.01) == 1
    assert count_of(50, 0.29) == 15  # 14.5, although the product is a little less


@pytest.mark.parametrize("levels", [1, 3, 10**6])
@pytest.mark.parametrize("fraction", [0.01, 0.37, 0.5, 1.0])
def test_equal_to_a_plain_sort_in_any_order_of_input(levels, fraction):
    random = np.random.default_rng(levels)
    scores = (random.integers(levels, size=101) / 3).astype(np.float32)
    keys = [f"{number:x}.jpg" for number in random.permutation(101)]
    expected = sorted(keys, key=lambda key: (-scores[keys.index(key)], key))[: count_of(101, fraction)]
    for order in (np.arange(101), random.permutation(101)):
        mixed = [keys[place] for place in order]
        chosen = select_top(mixed, scores[order], fraction)
        assert chosen.dtype == np.int64 and [mixed[place] for place in chosen] == expected


def test_zeros_of_either_sign_and_infinities_are_ordered():
    assert select_top(["b", "a", "c", "d"], [0.0, -0.0, np.inf, -np.inf], 1.0).tolist() == [2, 1, 0, 3]
    assert select_top(["a", "b"], np.asarray([1, 2], np.uint8), 0.5).tolist() == [1]


def test_select_top_refuses():
    with pytest.raises(ValueError, match=r"1 of 3 scores are NaN, the first that of 'b\.jpg'"):
        select_top(["a.jpg", "b.jpg", "c.jpg"], [1.0, np.nan, 2.0], 0.5)
    with pytest.raises(ValueError, match="'a' occurs more than once"):
        select_top(["a", "b", "a"], [1.0, 2.0, 3.0], 0.5)
    for fraction in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\]"):
            select_top(["a"], [1.0], fraction)
    with pytest.raises(ValueError, match="at least 1: got 0"):
        select_top([], [], 0.5)
    with pytest.raises(ValueError, match="got 2 and"):
        select_top(["a", "b"], [1.0], 0.5)


@pytest.mark.parametrize(("count", "floor"), [(40, 0.0), (40, 0.2), (40, 0.4), (100, 0.9), (7, 0.05)])
def test_every_stratum_keeps_its_floor_and_the_rest_are_the_best(count, floor):
    random = np.random.default_rng(count)
    keys, strata = [f"{number}.jpg" for number in range(100)], random.choice(["a", "b", "c"], 100, p=[0.6, 0.3, 0.1])
    scores = np.round(random.normal(size=100) + (strata == "a"), 1)
    chosen = select_stratified(keys, scores, count, strata, floor)
    order = sorted(range(100), key=lambda place: (-scores[place], keys[place]))
    floors = {place for name in "abc" for place in [p for p in order if strata[p] == name][: int((strata == name).sum() * floor)]}
    expected = floors | set([place for place in order if place not in floors][: count - len(floors)])
    assert chosen.tolist() == [place for place in order if place in expected] and len(chosen) == count
    if floor == 0.0:
        np.testing.assert_array_equal(chosen, select_best(keys, scores, count))
    with pytest.raises(ValueError, match=r"a floor of 0\.9 keeps \d+ images of 3 strata, more than the 7 asked for"):
        select_stratified(keys, scores, 7, strata, 0.9)
    with pytest.raises(ValueError, match=r"floor must be in \[0, 1\]: got 1.5"):
        select_stratified(keys, scores, 7, strata, 1.5)
