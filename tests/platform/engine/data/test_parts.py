"""Parts of a result are published shard by shard, completely or not at all."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from platform.engine.data.parts import as_array, as_column, write_parts
from platform.engine.data.set_aside import SetAside
from platform.engine.data.shards import FileEntry
from platform.engine.errors import UserError

PENDING = [FileEntry(name, rows, 0, "", [rows]) for name, rows in (("a.parquet", 3), ("b.parquet", 4))]


def batches(values: np.ndarray, sizes: list[int]):
    files = np.asarray(["a.parquet"] * 3 + ["b.parquet"] * 4, dtype=object)
    keys = np.asarray([f"k{i}" for i in range(7)], dtype=object)
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        yield {"key": keys[rows], "file": files[rows], "problem": np.full(size, "", object), "value": values[rows]}
        start += size


def test_batches_across_shards():
    published = {}
    values = np.arange(14).reshape(7, 2)
    write_parts(PENDING, batches(values, [2, 3, 2]), published.__setitem__, 0, 7)
    assert list(published) == ["a.parquet", "b.parquet"]
    assert [len(part["key"]) for part in published.values()] == [3, 4]
    assert [key for part in published.values() for key in part["key"]] == [f"k{i}" for i in range(7)]
    np.testing.assert_array_equal(np.concatenate([part["value"] for part in published.values()]), values)


def test_an_incomplete_shard_is_not_published():
    published = {}
    with pytest.raises(UserError, match="1 shards came back incomplete"):
        write_parts(PENDING, batches(np.arange(7), [3, 2]), published.__setitem__, 0, 7)
    assert list(published) == ["a.parquet"]


def test_features_survive_the_column():
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    table = pa.table({"feature": as_column(values)})
    np.testing.assert_array_equal(as_array(table["feature"]), values)
    np.testing.assert_array_equal(as_array(table.slice(1, 2)["feature"]), values[1:3])


def peak_mib(num_shards: int, rows: int = 256, batch: int = 64) -> float:
    """Peak of the memory while features of this many shards are collected and published, one batch in ten with a bad image."""
    pending = [FileEntry(f"{number}.parquet", rows, 0, "", [rows]) for number in range(num_shards)]
    total = num_shards * rows

    def computed():
        for entry in pending:
            for start in range(0, rows, batch):
                problem = np.full(batch, "", object)
                problem[0] = f"image '{entry.name}/{start}' cannot be decoded" if start == 0 else ""
                yield {
                    "key": np.asarray([f"{entry.name}/{start + row}" for row in range(batch)], object),
                    "file": np.full(batch, entry.name, object),
                    "problem": problem,
                    "source": np.ones((batch, 384), np.float32),
                }

    published = []
    tracemalloc.start()
    set_aside = SetAside("data", total, 0.5, "share")
    write_parts(pending, set_aside.watch(computed()), lambda name, columns: published.append(len(columns["key"])), 0, total)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert published == [rows] * num_shards and set_aside.count == num_shards
    return peak


def test_the_memory_does_not_grow_with_the_number_of_images():
    small, large = peak_mib(8), peak_mib(160)
    assert large < 1.25 * small, f"{small:.1f} MiB for 2,048 images, {large:.1f} MiB for 40,960"
