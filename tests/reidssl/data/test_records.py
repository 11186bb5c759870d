import pytest

from reidssl.data import folder
from reidssl.data.records import LayoutWarning, Record, describe, is_image, list_files, warn_unless_published


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.jpg", True),
        ("x/A.JPG", True),
        ("x.y/b.png", True),
        ("a.jpg.txt", False),
        ("jpg", False),
        (".a.jpg", False),
        (".cache/a.jpg", False),
        ("__MACOSX/a.jpg", False),
    ],
)
def test_is_image(path, expected):
    assert is_image(path) is expected


def test_describe_names_the_top_of_a_listing():
    assert describe([]) == "no files at all"
    assert describe(["b/c.txt", "a.txt", "b/d/e"]) == "a.txt, b/"
    assert describe([f"{n}/x" for n in range(9)], limit=2) == "0/, 1/ and 7 more"


def test_warns_only_for_the_splits_that_differ():
    records = [Record("a", 1, 1, "train"), Record("b", 1, 1, "query")]
    with pytest.warns(LayoutWarning) as caught:
        warn_unless_published("Set", records, {"train": 1, "query": 3})
    assert len(caught) == 1 and "Set: 1 query images found, 3 were published" in str(caught[0].message)


def test_list_files_gives_what_the_layouts_take(tmp_path):
    for name in ("query/7/a_c2.jpg", "train/7/b.jpg", "notes.txt"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "set" / "train")
    assert list_files(tmp_path / "set") == ["notes.txt", "query/7/a_c2.jpg", "train/7/b.jpg"]
    assert list_files(tmp_path) == ["link/7/b.jpg", *(f"set/{name}" for name in list_files(str(tmp_path / "set")))]
    assert [record.pid for record in folder.index(list_files(tmp_path / "set"), labeled=True)] == [7, 7]
    with pytest.raises(NotADirectoryError, match=r"notes\.txt is no folder"):
        list_files(tmp_path / "set" / "notes.txt")
