"""Results for each shard of a data set, in Parquet files with the names of the shards.

A file is published when the results of its shard are complete, so an interrupted job continues with the missing files.
"""

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from platform.engine.data.shards import FileEntry
from platform.engine.errors import UserError
from platform.engine.inference.actors import Batch
from platform.engine.runs.gauges import show
from platform.engine.runtime.rate import Rate
from platform.engine.runtime.terminal import say
from platform.engine.storage.location import Location
from platform.engine.storage.parquet import from_parquet

PARTS = "parts"
PROBLEM = "problem"
"""Column with the reason why an image could not be decoded, "" otherwise. The other values of such a row are meaningless."""


def write_parts(
    pending: Sequence[FileEntry],
    batches: Iterable[Batch],
    publish: Callable[[str, Batch], None],
    done: int,
    total: int,
    run: str = "",
) -> None:
    """Collect batches, with "key", "file", "problem" and values, and call `publish(name, columns)` for each complete shard.

    The memory is that of the shards whose batches have begun to come, one or two if the batches are in the order of the shards.

    Args:
        pending: the shards that the batches come from.
        done, total: number of images with results before, and of all images; for the lines on the terminal.
        run: URI of the run folder, for the Prometheus port.

    Raises UserError if the batches of a shard are incomplete.
    """
    rows_of = {entry.name: entry.rows for entry in pending}
    waiting: dict[str, list[Batch]] = {}
    spoken, rate, rejected = time.perf_counter(), Rate(total), 0
    for batch in batches:
        for name in dict.fromkeys(batch["file"].tolist()):
            chosen = batch["file"] == name
            waiting.setdefault(name, []).append({column: values[chosen] for column, values in batch.items()})
            if sum(len(part["key"]) for part in waiting[name]) == rows_of[name]:
                parts = waiting.pop(name)
                publish(name, {column: np.concatenate([part[column] for part in parts]) for column in batch})
        done += len(batch["key"])
        rejected += int((batch[PROBLEM] != "").sum())
        rate.update(done)
        if time.perf_counter() - spoken > 5 or done == total:
            spoken = time.perf_counter()
            say(f"computed {done:,}/{total:,}  {rate}".rstrip())
            gauges = {"extracted_images": done, "extraction_rejected": rejected}
            show(run, gauges | ({"extraction_images_per_second": rate.per_second} if rate.per_second else {}))
    if waiting:
        raise UserError(f"{len(waiting)} shards came back incomplete; run the same command again")


def as_column(values: np.ndarray) -> pa.Array:
    """An array as an Arrow column: (N,) unchanged, (N, D) as fixed-size lists of float32."""
    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def as_array(column: pa.ChunkedArray) -> np.ndarray:
    """The inverse of `as_column` for fixed-size lists: float32 (N, D)."""
    whole = column.combine_chunks()
    return whole.flatten().to_numpy().reshape(len(whole), whole.type.list_size)


def problems_in(file: Location) -> np.ndarray:
    """The column PROBLEM of a part, str (rows,); all "" if the file has no such column."""

    def problems(parquet: pq.ParquetFile) -> np.ndarray:
        if PROBLEM not in parquet.schema_arrow.names:
            return np.full(parquet.metadata.num_rows, "", object)
        return np.asarray(parquet.read(columns=[PROBLEM])[PROBLEM].to_pylist(), object)

    return from_parquet(file, problems)


def write_table(file: Location, table: pa.Table) -> None:
    """Write a Parquet file atomically. Raises StorageError."""
    with file.open_output() as sink:
        pq.write_table(table, sink, compression="zstd")
