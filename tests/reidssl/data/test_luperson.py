import collections
import os
import pickle
from pathlib import Path

import pytest

from reidssl.data import luperson
from reidssl.data.records import LayoutError, LayoutWarning, Record


@pytest.mark.parametrize("root", ["", "LUPerson/"])
def test_reads_the_image_tree(root):
    files = [
        f"{root}images/v2/b.jpg",
        f"{root}images/v1/a.PNG",
        f"{root}lists/images.txt",
        f"{root}cover.jpg",
    ]
    assert luperson.index(files, expect_published=False) == [
        Record(f"{root}images/v1/a.PNG", -1, -1, "train"),
        Record(f"{root}images/v2/b.jpg", -1, -1, "train"),
    ]


def test_the_published_count_is_checked():
    with pytest.warns(LayoutWarning, match="1 train images found, 4,180,243 were published"):
        luperson.index(["images/a.jpg"])


def test_other_layouts_are_refused_and_repeated_keys_count_once():
    with pytest.raises(LayoutError, match=r"no images below images/. Found pictures/"):
        luperson.index(["pictures/a.jpg"])
    assert [record.key for record in luperson.records_of_keys(["b", "a", "b"], expect_published=False)] == ["a", "b"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("keys", [[], ["v1/a.jpg", "v1/ü.jpg"], ("v1/a.jpg",)])
def test_reads_key_lists_of_every_protocol(keys, protocol):
    assert luperson.read_keys(pickle.dumps(keys, protocol)) == list(keys)


def test_reads_keys_as_bytes():
    assert luperson.read_keys(pickle.dumps([b"v1/a.jpg", "v1/ü.jpg".encode()], 4)) == ["v1/a.jpg", "v1/ü.jpg"]


def test_entries_that_are_no_keys_are_set_aside():
    aside: dict[str, str] = {}
    data = pickle.dumps(["a", 7, b"\xff\xfe", "a", None, "b", "c"])
    assert luperson.read_keys(data, aside) == ["a", "\udcff\udcfe", "b", "c"]
    assert list(aside) == ["keys.pkl, entry 1", "keys.pkl, entry 4"] and "got None (NoneType)" in aside["keys.pkl, entry 4"]


class Exploit:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_nothing_in_the_file_is_executed(tmp_path):
    data = pickle.dumps(["v1/a.jpg", Exploit(tmp_path / "owned")])
    with pytest.raises(LayoutError, match=r"asks for \w+.mkdir: only a plain list of strings"):
        luperson.read_keys(data)
    assert not (tmp_path / "owned").exists()
    pickle.loads(data)  # plain pickle does run the code
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize("value", [collections.OrderedDict(a=1), Path("a"), [Path("a")]])
def test_every_global_is_refused_even_a_harmless_one(value):
    with pytest.raises(LayoutError, match="only a plain list of strings"):
        luperson.read_keys(pickle.dumps(value))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable pickle \\(0 bytes\\)"),
        (b"a.jpg\nb.jpg\n", "not a readable pickle"),
        (pickle.dumps(["a.jpg"] * 50)[:-20], "not a readable pickle"),
        (pickle.dumps({"keys": ["a"]}), "must hold a list of strings: got dict"),
        (pickle.dumps([7, "", "a"]), "key 0 must be text that is not empty: got 7 .int. .2 of 3 like this"),
    ],
)
def test_damaged_and_foreign_files_are_refused(data, message):
    with pytest.raises(LayoutError, match=message):
        luperson.read_keys(data)
