"""Lists whose paths are written differently from the keys: matched where unambiguous, otherwise refused."""

import numpy as np
import pytest

from reidssl.selection.matching import match_entries

KEYS = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"]


@pytest.mark.parametrize(
    "write",
    [
        lambda key: key,
        lambda key: f"./{key}",
        lambda key: f"images/{key}",
        lambda key: f"./images/{key}",
        lambda key: f"/{key}",
        lambda key: key.replace("/", "//"),
        lambda key: key.replace("/", "\\"),
        lambda key: ".\\" + key.replace("/", "\\"),
        lambda key: "D:\\LUPerson\\images\\" + key.replace("/", "\\"),
        lambda key: f"/data/LUPerson/images/{key}",
        lambda key: f"/data/set/{key}",
        lambda key: f"../set/{key}",
        lambda key: f" {key}\n",
    ],
    ids=lambda write: repr(write("key")),
)
def test_one_order_however_it_is_written(write):
    found = match_entries([write(KEYS[place]) for place in (2, 0, 3)], KEYS)
    np.testing.assert_array_equal(found.places, [1, -1, 0, 2])
    assert found.absent == []


@pytest.mark.parametrize("before", ["set/", "images/", "x/images/y/"])
def test_folders_before_the_keys(before):
    found = match_entries(["b/2.jpg", "a/1.jpg"], [before + key for key in KEYS])
    np.testing.assert_array_equal(found.places, [1, -1, -1, 0])


def test_what_is_not_there_is_listed_as_written():
    found = match_entries(["./c/1.jpg", "a/1.jpg", "", "1.jpg"], KEYS)
    assert found.absent == ["./c/1.jpg", "", "1.jpg"]
    np.testing.assert_array_equal(found.places, [1, -1, -1, -1])


def test_only_one_beginning_is_left_out():
    """/x/a/1.jpg and /y/b/1.jpg would both match by their ends, but the second folder belongs to another data set."""
    assert match_entries(["p/1.jpg", "q/2.jpg"], ["1.jpg", "2.jpg"]).absent == ["p/1.jpg", "q/2.jpg"]
    found = match_entries(["/x/a/1.jpg", "/x/a/2.jpg", "/y/b/1.jpg"], KEYS)
    assert found.absent == ["/y/b/1.jpg"] and found.entry_prefix == "x/"
    np.testing.assert_array_equal(found.places, [0, 1, -1, -1])


@pytest.mark.parametrize(
    "entries",
    [["a/1.jpg", "b/1.jpg", "a/1.jpg"], ["a/1.jpg", ".\\a\\1.jpg"], ["c/9.jpg", "./c/9.jpg"], ["/x/a/1.jpg", "a/1.jpg"]],
)
def test_an_image_named_twice_is_refused(entries):
    with pytest.raises(ValueError, match=r"1 images are named more than once, e\.g\. '.*[19]\.jpg': which place counts"):
        match_entries(entries, KEYS)
