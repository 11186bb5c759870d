import pytest

from reidssl.data import folder
from reidssl.data.records import LayoutError, Record


def test_unlabelled_images_at_any_depth():
    files = ["b.jpg", "x/y/z/a.JPEG", "x/notes.txt", "x/.hidden.jpg", "__MACOSX/x/._a.jpg", "c.webp"]
    assert folder.index(files) == [
        Record("b.jpg", -1, -1, "train"),
        Record("c.webp", -1, -1, "train"),
        Record("x/y/z/a.JPEG", -1, -1, "train"),
    ]


def test_a_folder_per_identity():
    files = ["zoe/1.jpg", "anna/c2_7.jpg", "anna/frame-cam13.jpg", "anna/abc2.jpg"]
    assert folder.index(files, labelled=True) == [
        Record("anna/abc2.jpg", 0, -1, "train"),
        Record("anna/c2_7.jpg", 0, 2, "train"),
        Record("anna/frame-cam13.jpg", 0, 13, "train"),
        Record("zoe/1.jpg", 1, -1, "train"),
    ]


def test_numbered_folders_keep_their_numbers_and_splits_share_identities():
    files = ["query/0012/x_c1s1.jpg", "gallery/0012/x_c2s1.jpg", "train/0003/x_c2_1.jpg"]
    assert folder.index(files, labelled=True) == [
        Record("gallery/0012/x_c2s1.jpg", 12, 2, "gallery"),
        Record("query/0012/x_c1s1.jpg", 12, 1, "query"),
        Record("train/0003/x_c2_1.jpg", 3, 2, "train"),
    ]


@pytest.mark.parametrize(
    ("files", "labelled", "message"),
    [
        ([], False, "no images below this folder. Found no files at all"),
        (["a.txt"], True, "Found a.txt"),
        (["a.jpg"], True, "'a.jpg' is not at <identity>/<image>"),
        (["1/a.jpg", "1/2/b.jpg"], True, "'1/2/b.jpg' is not at"),
        (["train/a.jpg"], True, "'train/a.jpg' is not at"),
        (["7/a.jpg", "007/a.jpg"], True, "same number"),
    ],
)
def test_what_cannot_be_read_is_refused(files, labelled, message):
    with pytest.raises(LayoutError) as caught:
        folder.index(files, labelled=labelled)
    assert message in str(caught.value)
