import pytest

from reidssl.data import dukemtmc
from reidssl.data.records import LayoutError, LayoutWarning, Record

FILES = [
    "query/0005_c2_f0046985.jpg",
    "bounding_box_test/0005_c8_f0052565.jpg",
    "bounding_box_test/7140_c1_f0000001.jpg",
    "bounding_box_train/0001_c2_f0046182.jpg",
    "CITATION.txt",
]


def test_reads_the_published_layout():
    """Distractors have their own identities, so nothing is left out."""
    assert dukemtmc.index(["DukeMTMC-reID/" + path for path in FILES], expect_published=False) == [
        Record("DukeMTMC-reID/bounding_box_test/0005_c8_f0052565.jpg", 5, 8, "gallery"),
        Record("DukeMTMC-reID/bounding_box_test/7140_c1_f0000001.jpg", 7140, 1, "gallery"),
        Record("DukeMTMC-reID/bounding_box_train/0001_c2_f0046182.jpg", 1, 2, "train"),
        Record("DukeMTMC-reID/query/0005_c2_f0046985.jpg", 5, 2, "query"),
    ]


def test_published_counts_are_checked(recwarn):
    with pytest.warns(LayoutWarning, match="DukeMTMC-reID: 1 train images found, 16,522 were published"):
        dukemtmc.index(FILES)
    recwarn.clear()
    whole = [f"bounding_box_train/0001_c1_f{i:07d}.jpg" for i in range(16_522)]
    whole += [f"query/0002_c1_f{i:07d}.jpg" for i in range(2_228)]
    whole += [f"bounding_box_test/0002_c2_f{i:07d}.jpg" for i in range(17_661)]
    assert len(dukemtmc.index(whole)) == 36_411 and LayoutWarning not in [warning.category for warning in recwarn]


def test_market_is_not_duke():
    with pytest.raises(LayoutError, match=r"'query/0003_c2s1_000451_00.jpg' is not a DukeMTMC-reID name: expected <identity>_c"):
        dukemtmc.index([*FILES, "query/0003_c2s1_000451_00.jpg", "query/0004_c2s1_000451_00.jpg"])
