import pytest

from reidssl.data import msmt17
from reidssl.data.records import LayoutError, LayoutWarning, Record

pytestmark = pytest.mark.filterwarnings("always::reidssl.data.records.LayoutWarning")

LISTS = {
    "list_train.txt": "0000/0000_000_01_0303morning_0015_0.jpg 0\n0001/0001_000_15_0303noon_0015_0.jpg 1\n",
    "list_val.txt": "0000/0000_004_02_0303morning_0019_1.jpg 0\n",
    "list_query.txt": "0000/0000_000_03_0302noon_0001_0.jpg 0\n",
    "list_gallery.txt": "0000/0000_001_05_0302noon_0002_0.jpg 0\n\n",
}


def layout(root: str = "", train: str = "train", test: str = "test") -> list[str]:
    files = [root + name for name in LISTS]
    for name, text in LISTS.items():
        folder = train if name in ("list_train.txt", "list_val.txt") else test
        files += [f"{root}{folder}/{line.split()[0]}" for line in text.splitlines() if line]
    return files


def read(path: str) -> str:
    return LISTS[path.rsplit("/", 1)[-1]]


@pytest.mark.parametrize("root", ["", "MSMT17_V1/"])
def test_reads_version_1_with_train_and_val_as_training_set(root):
    assert msmt17.find(layout(root)) == (root, "V1")
    assert msmt17.index(layout(root), read, expect_published=False) == [
        Record(root + "test/0000/0000_000_03_0302noon_0001_0.jpg", 0, 3, "query"),
        Record(root + "test/0000/0000_001_05_0302noon_0002_0.jpg", 0, 5, "gallery"),
        Record(root + "train/0000/0000_000_01_0303morning_0015_0.jpg", 0, 1, "train"),
        Record(root + "train/0000/0000_004_02_0303morning_0019_1.jpg", 0, 2, "train"),
        Record(root + "train/0001/0001_000_15_0303noon_0015_0.jpg", 1, 15, "train"),
    ]


def test_tells_version_2_by_its_folders():
    files = layout("MSMT17_V2/", "mask_train_v2", "mask_test_v2")
    assert msmt17.find(files) == ("MSMT17_V2/", "V2")
    records = msmt17.index(files, read, expect_published=False)
    assert {r.key.split("/")[1] for r in records} == {"mask_train_v2", "mask_test_v2"} and len(records) == 5


def test_two_versions_side_by_side_are_refused():
    files = layout("MSMT17_V1/") + layout("MSMT17_V2/", "mask_train_v2", "mask_test_v2")
    with pytest.raises(LayoutError, match=r"more than one MSMT17 .*MSMT17_V1/ \(V1\), MSMT17_V2/ \(V2\)"):
        msmt17.index(files, read)


def test_images_that_no_list_names_are_left_out():
    files = [*layout(), "train/0002/0002_000_01_0303morning_0015_0.jpg"]
    assert len(msmt17.index(files, read, expect_published=False)) == 5


def test_published_counts_are_checked():
    with pytest.warns(LayoutWarning, match="MSMT17 V1: 3 train images found, 32,621 were published"):
        msmt17.index(layout(), read)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"list_val.txt": "0000/0000_004_02_0303morning_0019_1.jpg"},
            "list_val.txt, line 1: line not understood: expected '<path> <ident",
        ),
        ({"list_val.txt": "\n0000/0000_004_02_x_1.jpg zero"}, "list_val.txt, line 2"),
        ({"list_val.txt": "0000/person.jpg 0"}, "list_val.txt, line 1: line not understood: 0000/person.jpg has no camera"),
        ({"list_val.txt": LISTS["list_train.txt"]}, "list_val.txt, line 1: listed twice: train/0000/0000_000_01_0303"),
        ({"list_query.txt": LISTS["list_train.txt"]}, "list_query.txt, line 1: not there: test/0000/0000_000_01"),
        ({"list_query.txt": "\n \n"}, "list_query.txt is empty"),
        (
            {"list_gallery.txt": "0009/0009_001_05_0302noon_0002_0.jpg 9"},
            "list_gallery.txt, line 1: not there: test/0009/0009_001_05_0302noon_0002_0.jpg",
        ),
    ],
)
def test_bad_lists_are_named_with_their_line(change, message):
    with pytest.raises(LayoutError) as caught:
        msmt17.index(layout(), lambda path: {**LISTS, **change}[path], expect_published=False)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a/b.jpg"], "no list_train.txt. Found a/"),
        ([f for f in layout() if "list_query" not in f], "list_query.txt is missing"),
        (list(LISTS), "lists without images: expected train/ and test/ or mask_train_v2/"),
    ],
)
def test_other_layouts_are_refused(files, message):
    with pytest.raises(LayoutError) as caught:
        msmt17.index(files, read, expect_published=False)
    assert message in str(caught.value)


def test_bad_lines_are_set_aside_by_list_and_number():
    bad = [
        "0000/0000_009_01_0303morning_0015_0.jpg 20230101123456",
        "0000/0000_009_01_0303morning_0015_0.jpg -1",
        "x y z",
        "0000/0000_009_99999999999_0303morning_0015_0.jpg 1",
        "0000/0000_000_03_0302noon_0001_0.jpg 0",
        "0005/0005_0_1_x.jpg 5",
    ]
    good = [f"0001/0001_{n:03d}_05_0302noon_0002_0.jpg\t1" for n in range(8)]
    lists = {**LISTS, "list_gallery.txt": "\ufeff" + "\r\n".join([*good, "", *bad])}
    files = [*layout(), *(f"test/{line.split()[0]}" for line in good)]
    aside: dict[str, str] = {}
    found = msmt17.index(files, lambda path: lists[path], expect_published=False, aside=aside)
    assert sum(record.split == "gallery" for record in found) == 8
    assert list(aside) == [f"list_gallery.txt, line {number}" for number in range(10, 16)]
    reasons = list(aside.values())
    assert all(reason.startswith("line not understood: ") for reason in reasons[:4])
    assert reasons[4].startswith("listed twice: ") and "list_query.txt, line 1" in reasons[4]
    assert reasons[5].startswith("not there: test/0005/")
