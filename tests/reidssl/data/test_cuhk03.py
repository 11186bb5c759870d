import json

import pytest

from reidssl.data import cuhk03
from reidssl.data.records import LayoutError, LayoutWarning, Record

FOLDERS = ["bounding_box_train/0001_c1_1.png", "query/0003_c1_21.png", "bounding_box_test/0003_c2_26.png"]
SPLITS = [
    {
        "train": [["/home/someone/cuhk03/images_labeled/1_001_1_01.png", 0, 0]],
        "query": [["C:\\\\data\\\\images_labeled\\\\1_003_1_01.png", 2, 0]],
        "gallery": [["images_labeled/1_003_2_06.png", 2, 1]],
        "num_train_pids": 1,
    }
]
UNPACKED = [
    "splits_new_labeled.json",
    "images_labeled/1_001_1_01.png",
    "images_labeled/1_003_1_01.png",
    "images_labeled/1_003_2_06.png",
    "images_labeled/5_001_1_01.png",
]


def read(_: str) -> str:
    return json.dumps(SPLITS)


def never(_: str) -> str:
    raise AssertionError("the folder layout has no lists")


@pytest.mark.parametrize("root", ["", "labeled/", "cuhk03-np/detected/"])
def test_reads_the_folders_of_one_set(root):
    assert cuhk03.index([root + path for path in FOLDERS], never, expect_published=False) == [
        Record(root + "bounding_box_test/0003_c2_26.png", 3, 2, "gallery"),
        Record(root + "bounding_box_train/0001_c1_1.png", 1, 1, "train"),
        Record(root + "query/0003_c1_21.png", 3, 1, "query"),
    ]


@pytest.mark.parametrize("root", ["", "cuhk03/"])
def test_reads_the_unpacked_original_by_its_list(root):
    """Images that the protocol does not use are left out; cameras are 1 and 2 in both layouts."""
    assert cuhk03.index([root + path for path in UNPACKED], read, expect_published=False) == [
        Record(root + "images_labeled/1_001_1_01.png", 0, 1, "train"),
        Record(root + "images_labeled/1_003_1_01.png", 2, 1, "query"),
        Record(root + "images_labeled/1_003_2_06.png", 2, 2, "gallery"),
    ]


def test_both_sets_need_a_choice():
    files = [f"{kind}/{path}" for kind in ("labeled", "detected") for path in FOLDERS]
    with pytest.raises(LayoutError, match="say which, boxes=labeled or boxes=detected"):
        cuhk03.index(files, never)
    for kind in ("labeled", "detected"):
        found = cuhk03.index(files, never, expect_published=False, boxes=kind)
        assert len(found) == 3 and all(record.key.startswith(kind) for record in found)
    with pytest.raises(ValueError, match="boxes must be one of labeled, detected"):
        cuhk03.index(files, never, boxes="drawn")


@pytest.mark.parametrize(("kind", "train", "gallery"), [("labeled", 7_368, 5_328), ("detected", 7_365, 5_332)])
def test_counts_are_those_of_the_set(kind, train, gallery, recwarn):
    with pytest.warns(LayoutWarning, match=rf"CUHK03 \({kind}\): 1 train images found, {train:,} were published"):
        cuhk03.index([f"{kind}/{path}" for path in FOLDERS], never)
    recwarn.clear()
    whole = [f"bounding_box_train/0001_c1_{i}.png" for i in range(train)]
    whole += [f"query/0003_c1_{i}.png" for i in range(1_400)]
    whole += [f"bounding_box_test/0003_c2_{i}.png" for i in range(gallery)]
    assert len(cuhk03.index(whole, never)) == train + 1_400 + gallery  # the counts identify the kind of boxes
    assert not recwarn.list


@pytest.mark.parametrize(
    ("files", "text", "message"),
    [
        (["a.txt"], "", "not a CUHK03 layout: no images in bounding_box_train/.*Found a.txt"),
        (UNPACKED[:2], None, r"splits_new_labeled.json, query 1: not there: images_labeled/1_003_1_01.png .*2 of 3 like this"),
        (UNPACKED, "{}", "splits_new_labeled.json is not understood"),
        (UNPACKED, '[{"train": [["a", "b"]]}]', "splits_new_labeled.json is not understood"),
        (UNPACKED, "not json", "expected a list of one object with train, query and gallery"),
        ([*UNPACKED, "copy/splits_new_labeled.json"], None, "more than one CUHK03 below this root"),
    ],
)
def test_other_layouts_are_refused_with_what_was_found(files, text, message):
    with pytest.raises(LayoutError, match=message):
        cuhk03.index(files, lambda _: json.dumps(SPLITS) if text is None else text)


def test_missing_choice_is_explained():
    with pytest.raises(LayoutError, match=r"not CUHK03 with detected boxes: no detected/ and no splits_new_detected.json"):
        cuhk03.index(UNPACKED, read, boxes="detected")


def test_bad_entries_are_set_aside_by_their_place():
    good = [[f"images_labeled/1_{n:03d}_1_01.png", n, 0] for n in range(9)]
    bad = [
        ["images_labeled/x.png", 1.7, 0],
        ["images_labeled/x.png", True, 0],
        ["images_labeled/x.png", 2**31, 0],
        ["x.png", 3],
        ["images_labeled/1_000_1_01.png", 0, 0],
        ["images_labeled/x.png", 3, 1],
        "abc",
    ]
    listed = json.dumps([{"train": good + bad, "query": [good[0]], "gallery": good[1:2]}])
    files = ["splits_new_labeled.json", *(path for path, _, _ in good)]
    aside: dict[str, str] = {}
    found = cuhk03.index(files, lambda _: listed, expect_published=False, aside=aside)
    assert [record.pid for record in found] == list(range(9)) and {record.split for record in found} == {"train"}
    assert list(aside) == [f"splits_new_labeled.json, train {n}" for n in range(10, 17)] + [
        "splits_new_labeled.json, query 1",
        "splits_new_labeled.json, gallery 1",
    ]
    reasons = list(aside.values())
    assert "identity 1.7 is no whole number" in reasons[0] and "identity True is no whole" in reasons[1]
    assert "2147483648 is not in -1..2147483647" in reasons[2] and "expected [path, identity, camera]" in reasons[3]
    assert "listed twice" in reasons[4] and "not there" in reasons[5] and "listed for train already" in reasons[7]


def test_a_list_that_is_nested_too_deeply_is_refused():
    with pytest.raises(LayoutError, match="is not understood \\(RecursionError"):
        cuhk03.index(UNPACKED, lambda _: "[" * 200_000)
