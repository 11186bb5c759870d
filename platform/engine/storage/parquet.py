"""Read Parquet files, again while storage fails for a while."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from platform.engine.errors import StorageError
from platform.engine.storage.location import Location
from platform.engine.storage.retry import patiently

Result = TypeVar("Result")


def from_parquet(file: Location, read: Callable[[pq.ParquetFile], Result]) -> Result:
    """What `read` takes from a Parquet file; only the bytes that it asks for are transferred.

    Raises StorageError: NotFoundError if the file does not exist, a transient one after `storage.retry_timeout_s` seconds.
    """

    def attempt() -> Result:
        with file.open_input() as opened, file.errors("read"):
            return read(pq.ParquetFile(opened))

    return patiently(attempt, file.config.retry_timeout_s)


def read_columns(file: Location, columns: Sequence[str]) -> pa.Table:
    """These columns of a Parquet file. Raises StorageError as `from_parquet` does, and if the file has no such column."""

    def read(parquet: pq.ParquetFile) -> pa.Table:
        known = parquet.schema_arrow.names
        missing = [name for name in columns if name not in known]
        if missing:  # pyarrow would leave them out
            raise StorageError(f"cannot read {file}: it has no column {', '.join(missing)}; its columns are {', '.join(known)}")
        return parquet.read(columns=list(columns))

    return from_parquet(file, read)
