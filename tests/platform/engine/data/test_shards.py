"""Shards: rows are read as they were written, the same rows give the same files, and damage is detected."""

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from platform.engine.data.shards import (
    COLUMNS,
    MANIFEST,
    REJECTED,
    SCHEMA,
    Manifest,
    read_manifest,
    read_rows,
    verify,
    write_manifest,
    write_rejected,
    write_shard,
)
from platform.engine.errors import NotFoundError, StorageError
from platform.engine.storage.location import Location, StorageConfig, open_storage
from tests.fixtures_shards import rejected_of


def make_table(start: int, count: int, split: str = "train") -> pa.Table:
    rng = np.random.default_rng(start)
    columns = [
        [f"images/{index:06d}.jpg" for index in range(start, start + count)],
        [rng.bytes(int(rng.integers(50, 200))) for _ in range(count)],
        [128] * count,
        [64] * count,
        list(range(start, start + count)),
        [index % 6 for index in range(count)],
    ]
    table = pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    return table.append_column(pa.field("split", pa.string(), nullable=False), pa.array([split] * count))


def make_data_set(location, sizes=(600, 300)):
    entries, start = [], 0
    for index, size in enumerate(sizes):
        entries.append(write_shard(location, make_table(start, size, "train" if index == 0 else "query"), 256))
        start += size
    write_rejected(location, [("images/bad.jpg", "truncated")])
    manifest = Manifest(
        files=entries,
        num_rejected=1,
        source={"kind": "folder"},
        arguments={"limit": 0},
        splits={"train": sizes[0], "query": sum(sizes[1:])},
        extra_columns={"split": "string"},
    )
    write_manifest(location, manifest)
    return manifest


@pytest.fixture(params=["local", "s3"])
def location(request, tmp_path):
    if request.param == "local":
        return open_storage(str(tmp_path / "shards"))
    server = request.getfixturevalue("s3")
    return open_storage(f"{server.uri}/shards", StorageConfig(endpoint_url=server.endpoint_url))


def test_a_written_data_set_comes_back(location):
    written = make_data_set(location)
    assert read_manifest(location) == written
    assert written.num_rows == 900 and written.num_bytes == sum(e.bytes for e in written.files)
    assert [entry.row_groups for entry in written.files] == [[256, 256, 88], [256, 44]]
    assert verify(location) == []
    assert rejected_of(location) == [("images/bad.jpg", "truncated")]
    expected = pa.concat_tables([make_table(0, 600), make_table(600, 300, "query")])
    assert read_rows(location, [*COLUMNS, "split"]).equals(expected)
    assert read_rows(location).column_names == ["key", "height", "width", "pid", "camid", "split"]
    assert read_rows(location, ["pid"], split="query")["pid"].to_pylist() == list(range(600, 900))


def test_the_file_is_plain_parquet_with_untouched_images(tmp_path):
    location = open_storage(str(tmp_path))
    entry = write_shard(location, make_table(0, 300), 100)
    parquet = pq.ParquetFile(tmp_path / entry.name)
    assert parquet.num_row_groups == 3
    column = parquet.metadata.row_group(0).column(COLUMNS.index("image"))
    assert column.path_in_schema == "image" and column.compression == "UNCOMPRESSED"
    assert parquet.metadata.row_group(0).column(0).compression == "ZSTD"
    assert parquet.read()["image"].to_pylist() == make_table(0, 300)["image"].to_pylist()


def test_equal_rows_give_one_file_and_other_rows_another(tmp_path):
    location = open_storage(str(tmp_path))
    first, again, other = (write_shard(location, make_table(start, 50)) for start in (0, 0, 1))
    assert first == again and first.name != other.name
    assert len(location.list()) == 2
    entries = [first, other]
    assert Manifest(files=entries).checksum != Manifest(files=entries[::-1]).checksum  # the order is part of the data


def test_a_request_that_fails_is_repeated_and_a_full_disk_is_not(s3, tmp_path, monkeypatch):
    upload, calls = Location._upload, []

    def failing_once(location, file):
        calls.append(location.name)
        if len(calls) == 1:
            raise ConnectionResetError(104, "Connection reset by peer")
        upload(location, file)

    monkeypatch.setattr(Location, "_upload", failing_once)
    there = open_storage(s3.uri, StorageConfig(endpoint_url=s3.endpoint_url)) / "out"
    entry = write_shard(there, make_table(0, 50))
    assert calls == [entry.name] * 2 and (there / entry.name).size() == entry.bytes
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    started = time.monotonic()
    with pytest.raises(StorageError, match="No space left on device"):
        write_shard(open_storage(str(tmp_path)), make_table(0, 50))
    assert time.monotonic() - started < 5


def test_files_that_the_manifest_does_not_list_do_not_count(location):
    make_data_set(location)
    write_shard(location, make_table(5000, 10))  # left by an attempt that died
    assert verify(location) == []
    assert read_rows(location, ["key"]).num_rows == 900


def test_without_a_manifest_there_is_no_data_set(location):
    make_data_set(location)
    (location / MANIFEST).delete()
    with pytest.raises(NotFoundError, match=r"no data set at .* no manifest\.json.*platform\.ingest"):
        read_manifest(location)
    assert len(verify(location)) == 1


def test_verify_finds_every_kind_of_damage(tmp_path):
    location = open_storage(str(tmp_path))
    manifest = make_data_set(location, sizes=(300, 200, 100))
    missing, truncated, changed = (location / entry.name for entry in manifest.files)
    missing.delete()
    truncated.write_bytes(truncated.read_bytes()[:-10])
    data = bytearray(changed.read_bytes())
    data[1000] ^= 1
    changed.write_bytes(bytes(data))
    (location / REJECTED).delete()
    problems = verify(location)
    assert [
        name in problem for name, problem in zip((missing.name, truncated.name, changed.name, REJECTED), problems, strict=True)
    ] == [True] * 4
    assert ["missing" in problems[0], "bytes instead of" in problems[1], "checksum" in problems[2]] == [True] * 3


def test_verify_finds_double_keys(tmp_path):
    location = open_storage(str(tmp_path))
    entries = [write_shard(location, make_table(0, 20)), write_shard(location, make_table(19, 20))]
    write_rejected(location, [])
    write_manifest(location, Manifest(files=entries))
    assert verify(location) == ["key 'images/000019.jpg' occurs 2 times"]


def test_a_changed_or_foreign_manifest_is_refused(tmp_path):
    location = open_storage(str(tmp_path))
    make_data_set(location)
    good = (location / MANIFEST).read_json()
    for change, text in (
        ({"version": 99}, "version 99.*reads version 1"),
        ({"checksum": "0"}, "was changed"),
        ({"files": [{"name": "x"}]}, "not a shard manifest"),
    ):
        (location / MANIFEST).write_json(good | change)
        with pytest.raises(StorageError, match=text):
            read_manifest(location)
    for name in ("../shard-0.parquet", "/etc/passwd", "a/../../b", ""):
        (location / MANIFEST).write_json(good | {"files": [good["files"][0] | {"name": name}]})
        with pytest.raises(StorageError, match=r"is not a name below .*'\.\.', '\.', empty and absolute parts are refused"):
            read_manifest(location)
    (location / MANIFEST).write_json([1])
    with pytest.raises(StorageError, match="version None"):
        read_manifest(location)


def test_unknown_columns_and_splits_name_the_known_ones(tmp_path):
    location = open_storage(str(tmp_path))
    make_data_set(location)
    with pytest.raises(StorageError, match=r"no column pidd; its columns are key, image.*split"):
        read_rows(location, ["pidd"])
    with pytest.raises(StorageError, match="no split 'gallery'; its splits are train, query"):
        read_rows(location, ["pid"], split="gallery")


def test_wrong_tables_are_refused(tmp_path):
    location = open_storage(str(tmp_path))
    with pytest.raises(ValueError, match="at least one row"):
        write_shard(location, make_table(0, 1).slice(0, 0))
    with pytest.raises(ValueError, match="begins with the columns"):
        write_shard(location, make_table(0, 5).drop_columns(["camid"]))
