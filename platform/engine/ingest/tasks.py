"""The tasks of an ingest: read and check units of a source, and write blocks of rows as shards."""

import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from platform.engine.data.shards import SCHEMA, FileEntry, write_shard
from platform.engine.errors import UserError
from platform.engine.ingest.sources.source import LARGEST_IMAGE, Candidate, Source
from platform.engine.storage.location import Location
from reidssl.data.decode import MAX_PIXELS, check_image

UNSTORABLE = (pa.ArrowException, OverflowError, ValueError, TypeError)
BLOCK_BYTES = 16 << 20  # approximate size of a block that a reading task yields


class Written(NamedTuple):
    """The results of the write tasks."""

    entries: list[FileEntry]
    """The shards."""
    rejected: list[tuple[str, str]]
    """(key, reason) of each rejected image."""
    splits: Counter[str]
    """Number of rows of each split."""
    converted: Counter[str]
    """Number of images that the decoder converts, by kind of conversion."""
    labels: Counter[str]
    """Number of rows with an "identity", of those among them with "no camera", and of each note of the source."""


def joined(parts: Sequence[Written]) -> Written:
    """Several results as one, in order."""
    return Written(
        [entry for part in parts for entry in part.entries],
        [pair for part in parts for pair in part.rejected],
        sum((part.splits for part in parts), Counter()),
        sum((part.converted for part in parts), Counter()),
        sum((part.labels for part in parts), Counter()),
    )


class ReadUnits:
    """Reads units of a source and yields blocks of checked rows.

    A block has the columns of a shard and `note`, `converted` and `error` (empty for good rows). A fault of one image rejects
    that image only. A UserError concerns the whole source and ends the job.
    """

    def __init__(self, source: Source, counter: Any, max_pixels: int = MAX_PIXELS) -> None:
        self.source, self.counter, self.max_pixels = source, counter, max_pixels
        self.no_extras = (None,) * (len(source.extra_columns) - 1)  # for images that the source could not read
        extras = [pa.field(name, kind) for name, kind in source.extra_columns.items()]
        # Nullable, because rejected rows have no image; large_binary, because Ray may join blocks to more than 2 GiB.
        fields = [field.with_nullable(True) for field in SCHEMA]
        fields[1] = pa.field("image", pa.large_binary())
        about = [pa.field("note", pa.string()), pa.field("converted", pa.list_(pa.string())), pa.field("error", pa.string())]
        self.schema = pa.schema([*fields, *extras, *about])

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for packed in batch["unit"].to_pylist():
            unit = pickle.loads(packed)  # made by `ingest` in this job, never read from a file
            seen: set[str] = set()
            rows: list[tuple[Any, ...]] = []
            size = 0
            for candidate in self._candidates(unit):
                rows.append(checked_row(candidate._replace(extras=candidate.extras or self.no_extras), seen, self.max_pixels))
                size += len(candidate.image)
                if size >= BLOCK_BYTES:
                    yield self._block(rows)
                    rows, size = [], 0
            if rows:
                yield self._block(rows)

    def _candidates(self, unit: Any) -> Iterator[Candidate]:
        """Yields the images of a unit. Sources handle faults of single images; unexpected exceptions are handled here."""
        last = ""
        try:
            for candidate in self.source.read(unit):
                last = candidate.key
                yield candidate
        except UserError:
            raise
        except Exception as error:
            yield Candidate(f"behind {last}", error=f"reading broke off: {type(error).__name__}: {error}"[:300])

    def _block(self, rows: list[tuple[Any, ...]]) -> pa.Table:
        try:
            table = self._table(rows)
        except UNSTORABLE:
            rows = [self._storable(row) for row in rows]
            table = self._table(rows)
        rejected = sum(row[-1] != "" for row in rows)
        self.counter.add.remote(images=len(rows), rejected=rejected)
        return table

    def _table(self, rows: list[tuple[Any, ...]]) -> pa.Table:
        columns = list(zip(*rows, strict=True))
        arrays = [pa.array(column, kind) for column, kind in zip(columns, self.schema.types, strict=True)]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _storable(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """The row, or a rejected row with the reason why it cannot be stored in Arrow, e.g. an identity beyond int32."""
        for field, value in zip(self.schema, row, strict=True):
            try:
                pa.array([value], field.type)
            except UNSTORABLE as problem:
                key = str(row[0]).encode("utf-8", "backslashreplace").decode()
                reason = f"cannot be stored: {field.name} {str(value)[:60]!r} is no {field.type}: {problem}"
                error = Candidate(key, extras=self.no_extras, error=reason.splitlines()[0].encode("utf-8", "replace").decode())
                return checked_row(error, set())
        return row


def checked_row(candidate: Candidate, seen: set[str], max_pixels: int = MAX_PIXELS) -> tuple[Any, ...]:
    """The row of a candidate, with its upright size and its conversions, or with the reason why it is rejected.

    seen: keys of the unit so far; the key of a good row is added. A key in `seen` is rejected as a duplicate.
    """
    error, height, width = candidate.error, 0, 0
    converted: tuple[str, ...] = ()
    if not error and candidate.key in seen:
        error = "duplicate key"
    if not error and len(candidate.image) > LARGEST_IMAGE:
        error = f"{len(candidate.image):,} bytes are too many for a person image"
    if not error:
        try:
            height, width, converted = check_image(candidate.image, max_pixels)
        except ValueError as problem:
            error = str(problem)
    if not error:
        seen.add(candidate.key)
    image = None if error else candidate.image
    labels = (candidate.pid, candidate.camid, candidate.split, *candidate.extras)
    return (candidate.key, image, height, width, *labels, candidate.note, converted, error)


def shard_sink(output: Location, shard_bytes: int, row_group_rows: int) -> Any:
    """Ray Data sink whose write tasks get about `shard_bytes` of rows each and write them as shards.

    After the job, its attribute `written` holds the results of all tasks (`Written`), in the order of the source.
    """
    from ray.data import Datasink

    class ShardSink(Datasink[Written]):
        written: Written

        @property
        def min_bytes_per_write(self) -> int:
            return shard_bytes

        def write(self, blocks: Iterable[Any], ctx: Any) -> Written:
            return write_blocks(output, list(blocks), shard_bytes, row_group_rows)

        def on_write_complete(self, write_result: Any) -> None:
            self.written = joined(write_result.write_returns)

    return ShardSink()


def write_blocks(output: Location, blocks: list[pa.Table], shard_bytes: int, row_group_rows: int) -> Written:
    """Write blocks of ReadUnits as one shard, or as several if the blocks are much larger than `shard_bytes`."""
    table = pa.concat_tables(blocks)
    bad = table.filter(pc.not_equal(table["error"], ""))
    good = table.filter(pc.equal(table["error"], ""))
    converted, labels = Counter(pc.list_flatten(good["converted"]).to_pylist()), label_counts(good)
    good = good.drop_columns(["note", "converted", "error"])
    rejected = list(zip(bad["key"].to_pylist(), bad["error"].to_pylist(), strict=True))
    extras = [field for field in good.schema if field.name not in SCHEMA.names]
    target = pa.schema([*SCHEMA, *extras])
    pieces = max(1, round(good.nbytes / shard_bytes))
    rows = -(-good.num_rows // pieces)
    entries = [
        write_shard(output, good.slice(start, rows).cast(target), row_group_rows)
        for start in range(0, good.num_rows, max(rows, 1))
    ]
    return Written(entries, rejected, Counter(good["split"].to_pylist()), converted, labels)


def label_counts(rows: pa.Table) -> Counter[str]:
    """The counts of `Written.labels` for a table of good rows."""
    known = pc.not_equal(rows["pid"], -1)
    no_camera = pc.and_(known, pc.equal(rows["camid"], -1))
    counts = Counter({"identity": pc.sum(known).as_py() or 0, "no camera": pc.sum(no_camera).as_py() or 0})
    return counts + Counter(note for note in rows["note"].to_pylist() if note)
