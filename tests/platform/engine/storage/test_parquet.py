"""Parquet files in storage that fails for a while, and damaged ones, which no second try would mend."""

import io
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from platform.engine.errors import NotFoundError, StorageError
from platform.engine.storage.location import open_storage
from platform.engine.storage.parquet import from_parquet, read_columns
from tests.platform.engine.storage.test_patient_input import location
from tests.platform.engine.storage.unsteady import unsteady_store

TABLE = pa.table({"key": [f"{index:04d}" for index in range(3000)]})


def content() -> bytes:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink, row_group_size=1000)
    return sink.getvalue()


def test_failures_pass_and_damage_stays():
    whole = content()
    damaged = whole[:200] + bytes(2000) + whole[2200:]
    with unsteady_store({"whole": whole, "damaged": damaged, "cut": whole[:-100]}) as store:
        store.failures = 2
        assert from_parquet(location(store, "whole"), lambda file: file.read(columns=["key"])) == TABLE
        assert store.failures == 0
        started = time.monotonic()
        for name in ("damaged", "cut"):
            with pytest.raises(StorageError, match=f"cannot read s3://bucket/{name}: ") as error:
                from_parquet(location(store, name), lambda file: file.read())
            assert not error.value.transient, "it would be read again for minutes"
        with pytest.raises(NotFoundError):
            from_parquet(location(store, "nothing"), lambda file: file.read())
        assert time.monotonic() - started < 5
        store.failures = 1000
        with pytest.raises(StorageError) as error:
            from_parquet(location(store, "whole", retry_timeout_s=0.6), lambda file: file.read())
        assert error.value.transient


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(content())
    file = open_storage(str(tmp_path / "x.parquet"))
    assert read_columns(file, ["key"]) == TABLE
    with pytest.raises(StorageError, match=r"cannot read .*x\.parquet: it has no column label; its columns are key$"):
        read_columns(file, ["key", "label"])
