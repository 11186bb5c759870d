import json

import pytest

from reidssl.data import cuhk03
from reidssl.data.records import LayoutError, LayoutWarning, Record

FOLDERS = ["bounding_box_train/0001_c1_1.png", "query/0003_c1_21.png", "bounding_box_test/0003_c2_26.png"]
SPLITS = [{
    "train": [["/home/someone/cuhk03/images_labeled/1_001_1_01.png", 0, 0]],
    "query": [["C:\\\\data\\\\images_labeled\\\\1_003_1_01.png", 2, 0]],
    "gallery": [["images_labeled/1_003_2_06.png", 2, 1]],
    "num_train_pids": 1,
}]
UNPACKED = ["splits_new_labeled.json", "images_labeled/1_001_1_01.png", "images_labeled/1_003_1_01.png",
            "images_labeled/1_003_2_06.png", "images_labeled/5_001_1_01.png"]


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
    """Images that the protocol does not use are there too and left out; cameras are 1 and 2 in both layouts."""
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
    assert len(cuhk03.index(whole, never)) == train + 1_400 + gallery  # told apart by their numbers
    assert not recwarn.list


@pytest.mark.parametrize(
    ("files", "text", "message"),
    [
        (["a.txt"], "", "not a CUHK03 layout: no images in bounding_box_train/.*Found a.txt"),
        (UNPACKED[:2], None, "2 of 3 images that splits_new_labeled.json lists are not there, first images_labeled/1_003_1"),
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
