import pytest

from reidssl.data import folder
from reidssl.data.records import LayoutError, LayoutWarning, Record

pytestmark = pytest.mark.filterwarnings("always::reidssl.data.records.LayoutWarning")


def test_unlabeled_images_at_any_depth():
    files = ["b.jpg", "x/y/z/a.JPEG", "x/notes.txt", "x/.hidden.jpg", "__MACOSX/x/._a.jpg", "c.webp"]
    assert folder.index(files) == [
        Record("b.jpg", -1, -1, "train"),
        Record("c.webp", -1, -1, "train"),
        Record("x/y/z/a.JPEG", -1, -1, "train"),
    ]


def test_a_folder_per_identity():
    files = ["zoe/1.jpg", "anna/c2_7.jpg", "anna/frame-cam13.jpg", "anna/abc2.jpg"]
    assert folder.index(files, labeled=True) == [
        Record("anna/abc2.jpg", 0, -1, "train"),
        Record("anna/c2_7.jpg", 0, 2, "train"),
        Record("anna/frame-cam13.jpg", 0, 13, "train"),
        Record("zoe/1.jpg", 1, -1, "train"),
    ]


def test_numbered_folders_keep_their_numbers_and_splits_share_identities():
    files = ["query/0012/x_c1s1.jpg", "gallery/0012/x_c2s1.jpg", "train/0003/x_c2_1.jpg"]
    assert folder.index(files, labeled=True) == [
        Record("gallery/0012/x_c2s1.jpg", 12, 2, "gallery"),
        Record("query/0012/x_c1s1.jpg", 12, 1, "query"),
        Record("train/0003/x_c2_1.jpg", 3, 2, "train"),
    ]


@pytest.mark.parametrize(
    ("files", "labeled", "message"),
    [
        ([], False, "no images below this folder. Found no files at all"),
        (["a.txt"], True, "Found a.txt"),
        (["a.jpg"], True, "'a.jpg' is not at <identity>/<image>"),
        (["1/2/b.jpg", "1/2/c.jpg", "1/a.jpg"], True, "'1/2/b.jpg' is not at"),
        (["test/1/a.jpg"], True, "where a split is one of train, query, gallery"),
        (["train/a.jpg"], True, "'train/a.jpg' is not at"),
        (["7/a.jpg", "007/a.jpg"], True, "same number"),
    ],
)
def test_what_cannot_be_read_is_refused(files, labeled, message):
    with pytest.raises(LayoutError) as caught:
        folder.index(files, labeled=labeled)
    assert message in str(caught.value)


def read(*files, **settings) -> tuple[dict[str, tuple], dict[str, str]]:
    aside: dict[str, str] = {}
    found = folder.index(files, labeled=True, aside=aside, **settings)
    return {record.key: record[1:] for record in found}, aside


def test_junk_and_misplaced_images_are_set_aside():
    found, aside = read("-1/a.jpg", "-7/a.jpg", "0001/a.jpg", "0000/a.jpg", "cover.jpg", "9/x/deep.jpg", "2/b_c3.jpg", "2/c.jpg")
    assert found == {
        "0000/a.jpg": (0, -1, "train"),
        "0001/a.jpg": (1, -1, "train"),
        "2/b_c3.jpg": (2, 3, "train"),
        "2/c.jpg": (2, -1, "train"),
    }
    assert aside["-1/a.jpg"] == "junk: identity -1 is nobody" and "-7 is nobody" in aside["-7/a.jpg"]
    assert aside["cover.jpg"].startswith("not labeled: 'cover.jpg' is not at") and len(aside) == 4
    with pytest.warns(LayoutWarning, match=r"folder: 1 set aside \(1 not labeled\), the first is cover.jpg: "):
        folder.index(["-1/a.jpg", "1/a.jpg", "cover.jpg"], labeled=True)


def test_names_and_numbers_beyond_int32_get_the_lowest_free_numbers_and_that_is_said():
    files = ["20230101123456/a.jpg", "0001/a.jpg", "alice/a.jpg", "2147483648/a.jpg", "2147483647/a.jpg", "٣/a.jpg"]
    with pytest.warns(LayoutWarning, match=r"4 identities are no whole numbers .*'20230101123456' is 0, '2147483648' is 2, "):
        found, _ = read(*files)
    pids = {key.split("/")[0]: pid for key, (pid, _, _) in found.items()}
    assert pids == {"20230101123456": 0, "0001": 1, "2147483648": 2, "alice": 3, "٣": 4, "2147483647": 2147483647}
    assert read(*files[::-1])[0] == found  # the order of the names does not matter


def test_a_pattern_says_where_labels_are():
    found, aside = read(
        "north/p7_x.jpg",
        "south/p7_y.jpg",
        "south/deep/p12_z.jpg",
        "south/nobody.jpg",
        pattern=r"^(?P<camid>\w+)/.*p(?P<pid>\d+)_",
    )
    assert found == {
        "north/p7_x.jpg": (7, 0, "train"),
        "south/p7_y.jpg": (7, 1, "train"),
        "south/deep/p12_z.jpg": (12, 1, "train"),
    }
    assert "does not match the pattern" in aside["south/nobody.jpg"]
    found, _ = read("query/5/a-k3.jpg", "5/b.jpg", pattern=r"(-k(?P<camid>\d+))?\.jpg$")
    assert found == {"query/5/a-k3.jpg": (5, 3, "query"), "5/b.jpg": (5, -1, "train")}
    found, aside = read("5/a_test.jpg", "5/b_train.jpg", "5/c_val.jpg", pattern=r"_(?P<split>\w+)\.", splits={"test": "gallery"})
    assert found == {"5/a_test.jpg": (5, -1, "gallery"), "5/b_train.jpg": (5, -1, "train")}
    assert "'val' is none of train, query, gallery, test" in aside["5/c_val.jpg"]
    for wrong in ("(", "c[0-9]", "(?P<person>.)"):
        with pytest.raises(ValueError, match=r"^pattern must"):
            folder.check_pattern(wrong)


def test_other_names_of_splits_are_mapped():
    found, _ = read("test/7/a.jpg", "val/8/b.jpg", splits={"test": "gallery", "val": "train"})
    assert found == {"test/7/a.jpg": (7, -1, "gallery"), "val/8/b.jpg": (8, -1, "train")}
