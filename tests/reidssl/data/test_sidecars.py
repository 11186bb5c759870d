import json

import pytest

from reidssl.data.sidecars import FieldConfig, SidecarLabels, is_sidecar, labels_of


def read(*beside, image="a/1.jpg", others=(), splits=None, **fields) -> SidecarLabels:
    files = [(name, data if isinstance(data, bytes) else json.dumps(data).encode()) for name, data in beside]
    return labels_of(image, files, others, FieldConfig(**fields), splits or {})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pid": 7, "camid": 2, "split": "query"}, (7, 2, "query")),
        ({"person_id": 7, "camera": 2}, (7, 2, "train")),
        ({"identity": "0007", "cam_id": "2"}, (7, 2, "train")),
        ({"pid": 7, "person_id": 7, "camera_id": 0}, (7, 0, "train")),
        ({}, (-1, -1, "train")),
    ],
)
def test_known_fields(fields, expected):
    assert read(("a/1.json", fields))[:3] == expected
    assert read(("a/1.JSON", fields))[:3] == expected and read(("a/1.jpg.json", fields))[:3] == expected


def test_text_files_are_fields():
    assert read(("a/1.cls", b"7\n"), ("a/1.camid", b"2"), ("a/1.split", b"gallery"))[:3] == (7, 2, "gallery")
    assert read(("a/1.cls", b"7"), ("a/1.json", {"camera": 3}))[:3] == (7, 3, "train")
    assert read(("a/1.who", b"7"), pid_field="who")[0] == 7
    assert is_sidecar("a/1.cls", FieldConfig()) and is_sidecar("1.who", FieldConfig(pid_field="who"))
    assert not any(is_sidecar(name, FieldConfig()) for name in ("1.pyd", "1.pickle", "1.txt", "1.jpg", "cls"))


def test_given_fields_count_alone():
    assert read(
        ("a/1.json", {"pid": 7, "id": 9, "where": 3, "set": "test"}),
        pid_field="id",
        camid_field="where",
        split_field="set",
        splits={"test": "gallery"},
    ) == SidecarLabels(9, 3, "gallery")


def test_fields_that_are_not_used_are_named_where_a_label_is_missing():
    assert read(("a/1.json", {"label": 7, "camid": 1}), others=[".txt"]).note == (
        "no identity, while these are not used: .txt, label (raw.tar.pid_field can name one)"
    )
    assert "no identity and no camera" in read(("a/1.json", {"caption": "x"})).note
    assert read(("a/1.json", {"pid": 7, "camid": 1, "caption": "x"})).note == "" == read().note


def test_the_nearest_name_counts():
    own, sample = ("img_0.5_x.json", {"pid": 5}), ("img_0.7_y.json", {"pid": 7})
    assert read(own, sample, image="img_0.5_x.jpg").pid == 5 and read(own, sample, image="img_0.7_y.jpg").pid == 7
    assert read(("s.json", {"pid": 3}), image="s.left.jpg").pid == 3


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ([("a/1.json", {"pid": 1.7, "camid": 1})], "a/1.json, pid: 1.7 is no whole number"),
        ([("a/1.json", {"pid": 1, "camid": True})], "a/1.json, camid: True is no whole number"),
        ([("a/1.json", b'{"pid": Infinity}')], "a/1.json, pid: inf is no whole number"),
        ([("a/1.json", {"person_id": None})], "a/1.json, person_id: None is no whole number"),
        ([("a/1.json", {"pid": 20230101123456})], "20230101123456 is not in -1..2147483647"),
        ([("a/1.json", b'{"pid": ' + b"9" * 5000 + b"}")], "a/1.json cannot be read"),
        ([("a/1.json", {"split": "test"})], "a/1.json, split: 'test' is none of train, query, gallery"),
        ([("a/1.json", b'{"pid": 1, "pid": 2}')], "the field pid stands there twice"),
        ([("a/1.json", {"pid": 1, "person_id": 2})], "a/1.json, pid is 1 and a/1.json, person_id is 2: pid_field says which"),
        ([("a/1.json", {"pid": 1}), ("a/1.cls", b"2")], "a/1.json, pid is 1 and a/1.cls, cls is '2'"),
        ([("a/1.json", {"pid": 1}), ("a/1.json", {"pid": 1})], "two files beside the image, a/1.json and a/1.json"),
        ([("a/1.json", b"[1]")], "a/1.json holds [1]; an object of fields is expected"),
        ([("a/1.json", b"[" * 100_000)], "a/1.json is nested too deeply"),
        ([("a/1.json", b"\xff\xff\xff")], "a/1.json cannot be read"),
        ([("a/1.json", b"")], "a/1.json cannot be read"),
        ([("a/1.cls", b"seven")], "a/1.cls, cls: 'seven' is no whole number"),
    ],
)
def test_what_is_not_understood_names_file_field_and_value(beside, reason):
    with pytest.raises(ValueError) as caught:
        read(*beside)
    assert reason in str(caught.value)
