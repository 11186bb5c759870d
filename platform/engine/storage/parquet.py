"""Read Parquet files, again while storage fails for a while."""

from collections.abc import Callable
from typing import TypeVar

import pyarrow.parquet as pq

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
