"""JSON files of other programs are read if they have the needed keys; otherwise the error names the file."""

import pytest

from platform.engine.errors import NotFoundError, StorageError, UserError
from platform.engine.runs.json_records import read_record
from platform.engine.storage.location import open_storage


def test_a_record_is_read_whole(tmp_path):
    file = open_storage(str(tmp_path / "a.json"))
    file.write_json({"data": "x", "more": [1]})
    assert read_record(file, "data", str, "look elsewhere") == {"data": "x", "more": [1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", r"a\.json holds a list where an object with 'data' belongs: look elsewhere$"),
        ("null", r"a\.json holds a NoneType where"),
        ("{}", r"it has no 'data' \(it has: nothing\): look elsewhere$"),
        ('{"files": [], "extra": 1}', r"it has no 'data' \(it has: extra, files\): look elsewhere$"),
        ('{"data": 3}', r"its 'data' is of type int: look elsewhere$"),
    ],
)
def test_anything_else_is_refused_in_words(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_record(open_storage(str(tmp_path / "a.json")), "data", str, "look elsewhere")


def test_no_json_and_no_file(tmp_path):
    (tmp_path / "a.json").write_text('{"data": ')
    with pytest.raises(StorageError, match=r"a\.json: it is not valid JSON \(line 1"):
        read_record(open_storage(str(tmp_path / "a.json")), "data", str, "look elsewhere")
    with pytest.raises(NotFoundError):
        read_record(open_storage(str(tmp_path / "b.json")), "data", str, "look elsewhere")
