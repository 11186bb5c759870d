"""Published lists are read safely, and written so that they are read."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from reidssl.selection.published import load_published_list, published_list


def test_a_written_list_has_the_paths_below_images():
    assert load_published_list(published_list(["images/b/1.jpg", "a/images/2.jpg"])) == ["b/1.jpg", "a/images/2.jpg"]
    assert pickle.loads(published_list(["images/é.jpg"])) == ["é.jpg"]  # as its users load it


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_list_of_paths_is_read(tmp_path, protocol):
    paths = ["images/7/é.jpg", "images/1/b.jpg"]
    data = pickle.dumps(paths, protocol)
    (tmp_path / "order.pkl").write_bytes(data)
    assert load_published_list(data) == paths
    assert load_published_list(tmp_path / "order.pkl") == load_published_list(str(tmp_path / "order.pkl")) == paths


class Harmful:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_list_is_refused_and_not_run(tmp_path, protocol):
    harmful = pickle.dumps(["images/a.jpg", Harmful(tmp_path / "made")], protocol)
    with pytest.raises(ValueError, match=r"refused: its pickle loads .*mkdir"):
        load_published_list(harmful)
    assert not (tmp_path / "made").exists()
    pickle.loads(harmful)  # plain pickle does create the file
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps({"a": 1}), "non-empty list of image paths: got dict"),
        (pickle.dumps([]), "non-empty list of image paths: got list"),
        (pickle.dumps(["a", 3]), "strings only: entry 1 is int"),
        (pickle.dumps(np.arange(3)), "refused: its pickle loads numpy"),
        (pickle.dumps(["a", "b"])[:-4], "not a readable pickle"),
        (b"images/a.jpg\nimages/b.jpg\n", "not a readable pickle"),
        (b"", "not a readable pickle"),
    ],
)
def test_other_content_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        load_published_list(data)
