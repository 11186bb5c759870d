"""Features of images in consecutive parts: slices of an array in Ray's object store, or Parquet files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from platform.engine.data.parts import PROBLEM, as_array, problems_in
from platform.engine.errors import UserError
from platform.engine.storage.location import Location
from platform.engine.storage.parquet import from_parquet

FEATURE = "feature"


class Part(Protocol):
    """Interface of a part: some consecutive rows of the features."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    def read(self) -> np.ndarray:
        """The features, float32 (rows, D)."""

    def name(self, row: int) -> str:
        """Name of a row of this part, for messages."""


@dataclass(frozen=True)
class ObjectPart:
    """A slice of an array in Ray's object store. Unlike a Parquet file, it is lost with the machine of its owner."""

    reference: Any
    rows: int
    start: int = 0
    """First row of this part in the array."""

    def read(self) -> np.ndarray:
        import ray

        return ray.get(self.reference)

    def name(self, row: int) -> str:
        return f"row {self.start + row}"


@dataclass(frozen=True)
class ParquetPart:
    """A Parquet file with a column `feature` of fixed-size lists of float32. Rows with a non-empty `problem` are skipped."""

    file: Location
    rows: int

    def read(self) -> np.ndarray:
        def sound(parquet: pq.ParquetFile) -> pa.Table:
            marked = PROBLEM in parquet.schema_arrow.names
            table = parquet.read(columns=[FEATURE, *[PROBLEM] * marked])
            return table.filter(pc.equal(table[PROBLEM], "")) if marked else table

        table = from_parquet(self.file, sound)
        if table.num_rows != self.rows:
            raise UserError(
                f"{self.file.uri} has {table.num_rows} rows instead of {self.rows}: it was changed meanwhile; make "
                "the features again"
            )
        return as_array(table[FEATURE])

    def name(self, row: int) -> str:
        return f"row {row} of {self.file.uri}"


def stored_parts(files: Iterable[Location]) -> list[ParquetPart]:
    """A part for each of `files` with its rows without a problem. Files without such rows are skipped."""
    parts = [ParquetPart(file, int((problems_in(file) == "").sum())) for file in files]
    return [part for part in parts if part.rows]


def array_parts(features: np.ndarray, count: int) -> list[Part]:
    """Put `features` (N, D) into the object store, in at most `count` slices of about equal size."""
    import ray

    parts: list[Part] = []
    for piece in np.array_split(np.ascontiguousarray(features, np.float32), min(count, len(features))):
        parts.append(ObjectPart(ray.put(piece), len(piece), sum(part.rows for part in parts)))
    return parts


def read_all(parts: Sequence[Part]) -> np.ndarray:
    """All features, float32 (N, D), read part by part into one array.

    Raises:
        UserError: a part has changed, has another width, or has a row that is not finite (the message names it).
    """
    features, start = np.empty((0, 0), np.float32), 0
    for part in parts:
        values = part.read()
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise UserError(
                f"features must be finite: {part.name(int(bad[0]))} holds NaN or infinity ({len(bad)} such rows of "
                f"{part.rows} there); look for a diverged model or a broken image"
            )
        if not start:
            features = np.empty((sum(each.rows for each in parts), values.shape[1]), np.float32)
        if values.shape[1] != features.shape[1]:
            raise UserError(
                f"features must be of one width: {part.name(0)} has {values.shape[1]} numbers, those before it "
                f"{features.shape[1]}"
            )
        features[start : start + part.rows] = values
        start += part.rows
    return features
