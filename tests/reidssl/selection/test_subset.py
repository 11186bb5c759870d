"""The top fraction, deterministically; published lists, safely."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from reidssl.selection.subset import count_of, load_published_list, select_top


def test_published_counts():
    assert count_of(4_180_243, 0.5) == 2_090_122
    assert count_of(4_180_243, 0.6) == 2_508_146
    assert count_of(10, 1.0) == 10 and count_of(10, 0.3) == 3 and count_of(3, 0.01) == 1


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


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_list_of_paths_is_read(tmp_path, protocol):
    paths = ["images/7/é.jpg", "images/1/b.jpg"]
    data = pickle.dumps(paths, protocol)
    (tmp_path / "order.pkl").write_bytes(data)
    assert load_published_list(data) == paths
    assert load_published_list(tmp_path / "order.pkl") == load_published_list(str(tmp_path / "order.pkl")) == paths


class Harmful:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_list_is_refused_and_not_run(tmp_path, protocol):
    harmful = pickle.dumps(["images/a.jpg", Harmful(tmp_path / "made")], protocol)
    with pytest.raises(ValueError, match=r"refused: its pickle loads .*mkdir"):
        load_published_list(harmful)
    assert not (tmp_path / "made").exists()
    pickle.loads(harmful)  # plain pickle does create the file
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps({"a": 1}), "non-empty list of image paths: got dict"),
        (pickle.dumps([]), "non-empty list of image paths: got list"),
        (pickle.dumps(["a", 3]), "strings only: entry 1 is int"),
        (pickle.dumps(np.arange(3)), "refused: its pickle loads numpy"),
        (pickle.dumps(["a", "b"])[:-4], "not a readable pickle"),
        (b"images/a.jpg\nimages/b.jpg\n", "not a readable pickle"),
        (b"", "not a readable pickle"),
    ],
)
def test_other_content_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        load_published_list(data)
