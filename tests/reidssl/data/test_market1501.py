import pytest

from reidssl.data import market1501
from reidssl.data.records import LayoutError, LayoutWarning, Record

FILES = [
    "query/0003_c2s1_000451_00.jpg",
    "bounding_box_test/0003_c1s1_000451_03.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "bounding_box_test/0000_c6s3_000851_01.jpg",
    "bounding_box_test/Thumbs.db",
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0007_c10s1_000451_03.jpg.jpg",
    "gt_bbox/0001_c1s1_001051_00.jpg",
    "readme.txt",
]


def test_reads_the_published_layout():
    assert market1501.index(FILES, expect_published=False) == [
        Record("bounding_box_test/0000_c6s3_000851_01.jpg", 0, 6, "gallery"),
        Record("bounding_box_test/0003_c1s1_000451_03.jpg", 3, 1, "gallery"),
        Record("bounding_box_train/0002_c1s1_000451_03.jpg", 2, 1, "train"),
        Record("bounding_box_train/0007_c10s1_000451_03.jpg.jpg", 7, 10, "train"),
        Record("query/0003_c2s1_000451_00.jpg", 3, 2, "query"),
    ]


def test_the_root_may_be_one_folder_higher():
    deeper = [f"Market-1501-v15.09.15/{path}" for path in FILES]
    records = market1501.index(deeper, expect_published=False)
    assert [r.pid for r in records] == [0, 3, 2, 7, 3] and records[0].key.startswith("Market-1501-v15.09.15/")


def test_order_of_the_listing_does_not_matter():
    expected = market1501.index(FILES, expect_published=False)
    assert market1501.index(FILES[::-1], expect_published=False) == expected


def test_published_counts_are_checked_split_by_split():
    with pytest.warns(LayoutWarning) as caught:
        market1501.index(FILES)
    assert [str(w.message).split(" were")[0] for w in caught] == [
        "Market-1501: 2 train images found, 12,936",
        "Market-1501: 1 query images found, 3,368",
        "Market-1501: 2 gallery images found, 15,913",
    ]


def test_a_complete_set_gives_no_warning(recwarn):
    files = [f"bounding_box_train/{i:05d}_c1s1_000001_00.jpg" for i in range(1, 12_937)]
    files += [f"query/{i:05d}_c1s1_000001_00.jpg" for i in range(1, 3_369)]
    files += [f"bounding_box_test/{i:05d}_c1s1_000001_00.jpg" for i in range(15_913)]
    files += [f"bounding_box_test/-1_c1s1_{i:06d}_00.jpg" for i in range(3_819)]
    assert len(market1501.index(files)) == 12_936 + 3_368 + 15_913
    assert not recwarn.list


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no images in bounding_box_train/, query/, bounding_box_test/. Found no files at all"),
        (["train/1/a.jpg", "b.txt"], "Found b.txt, train/"),
        ([f for f in FILES if not f.startswith("query")], "no images in query/"),
        (["query/person.jpg", "query/0001-c2.jpg", *FILES], "'query/person.jpg' is not a Market-1501 name"),
        (FILES + [f"copy/{f}" for f in FILES], "more than one Market-1501 layout below this root: ., copy"),
    ],
)
def test_other_layouts_are_refused_with_what_was_found(files, message):
    with pytest.raises(LayoutError) as caught:
        market1501.index(files, expect_published=False)
    assert message in str(caught.value)


def test_what_does_not_fit_is_set_aside_with_its_reason():
    aside: dict[str, str] = {}
    odd = [
        "query/person.jpg",
        "query/0000_c1s1_000001_00.jpg",
        "bounding_box_train/-2_c1s1_000001_00.jpg",
        "bounding_box_train/٣_c1s1_1.jpg",
    ]
    found = market1501.index([*FILES, *odd], expect_published=False, aside=aside)
    assert found == market1501.index(FILES, expect_published=False)
    assert aside.keys() == {*odd, "bounding_box_test/-1_c1s1_000401_03.jpg"}
    assert aside[odd[0]].startswith("name not understood: 'query/person.jpg' is not a Market-1501 name: expected <identity>")
    assert aside[odd[1]].startswith("distractor: ") and aside["bounding_box_test/-1_c1s1_000401_03.jpg"].startswith("junk: ")
    with pytest.warns(LayoutWarning, match=r"Market-1501: 4 set aside \(3 name not understood, 1 distractor\)"):
        market1501.index([*FILES, *odd], expect_published=False)
