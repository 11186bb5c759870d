"""The shard format of a data set: Parquet files of encoded images, and a manifest that lists them.

    <location>/shard-<16 hex digits of its SHA-256>.parquet    about 64 MB, row groups of a few hundred rows
    <location>/rejected.parquet                                key and reason of every rejected image
    <location>/manifest.json                                   written last; without it there is no data set

The name of a shard depends on its content, so a task that runs twice writes one file. Only the files in the manifest are read,
so files of a failed attempt do no harm. Images are the original bytes. Parquet does not compress them, because they are
compressed already. The small columns can be read without the images.
"""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from platform.engine.errors import NotFoundError, StorageError
from platform.engine.storage.location import Location
from platform.engine.storage.parquet import read_columns
from platform.engine.storage.retry import patiently
from reidssl.data.decode import MAX_PIXELS

VERSION = 1
MANIFEST = "manifest.json"
REJECTED = "rejected.parquet"
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # path relative to the source, unique
        pa.field("image", pa.binary(), nullable=False),  # original encoded bytes
        pa.field("height", pa.int32(), nullable=False),  # of the image turned upright by its EXIF orientation
        pa.field("width", pa.int32(), nullable=False),
        pa.field("pid", pa.int32(), nullable=False),  # -1: unlabeled
        pa.field("camid", pa.int32(), nullable=False),  # -1: unknown
    ]
)
COLUMNS = SCHEMA.names
REJECTED_SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("reason", pa.string())])


@dataclass(frozen=True)
class FileEntry:
    """Entry of a shard in the manifest."""

    name: str
    rows: int
    bytes: int
    sha256: str
    row_groups: list[int]
    """Rows of each row group."""


@dataclass(frozen=True)
class Manifest:
    """The content of a data set and its origin."""

    files: list[FileEntry]
    num_rejected: int = 0
    source: dict[str, Any] = field(default_factory=dict)
    """Kind and path of the source of the images."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """All settings that determine the content; equal arguments give equal shards."""
    splits: dict[str, int] = field(default_factory=dict)
    """Number of rows of each split."""
    converted: dict[str, int] = field(default_factory=dict)
    """Number of images that the decoder converts, by kind of conversion (reidssl.data.color_modes.CONVERSIONS)."""
    extra_columns: dict[str, str] = field(default_factory=dict)
    """Names of the columns beyond COLUMNS, with their Arrow types."""
    version: int = VERSION

    @property
    def num_rows(self) -> int:
        """Number of images."""
        return sum(entry.rows for entry in self.files)

    @property
    def num_bytes(self) -> int:
        """Size of all shards in bytes."""
        return sum(entry.bytes for entry in self.files)

    @property
    def max_pixels(self) -> int:
        """Largest number of pixels of an image, used at ingest and whenever an image is decoded."""
        return int(self.arguments.get("max_pixels", MAX_PIXELS))

    @property
    def checksum(self) -> str:
        """SHA-256 over the names, rows and checksums of the files, in order. It identifies the data."""
        lines = [f"{entry.name} {entry.rows} {entry.sha256}\n" for entry in self.files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_shard(location: Location, table: pa.Table, row_group_rows: int = 256) -> FileEntry:
    """Write one shard below `location`. The same rows give the same file name and bytes.

    Requests to object storage that fail for a while are retried; a full disk is an error at once.

    table: first the columns of SCHEMA, then any extra columns. Raises ValueError for other columns or an empty table, and
    StorageError if it cannot be written.
    """
    if table.num_rows == 0:
        raise ValueError("a shard needs at least one row")
    if table.schema.names[: len(COLUMNS)] != COLUMNS:
        raise ValueError(f"a shard begins with the columns {COLUMNS}: got {table.schema.names}")
    small = [name for name in table.schema.names if name != "image"]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=row_group_rows,
        use_dictionary=[name for name in small if name != "key"],
        compression={name: "NONE" if name == "image" else "ZSTD" for name in table.schema.names},
        write_statistics=small,
    )
    data = sink.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"shard-{sha256[:16]}.parquet"
    patiently(lambda: (location / name).write_bytes(data), location.config.retry_timeout_s if location.is_s3 else 0)
    full, rest = divmod(table.num_rows, row_group_rows)
    return FileEntry(name, table.num_rows, data.size, sha256, [row_group_rows] * full + [rest] * (rest > 0))


def write_rejected(location: Location, rejected: Sequence[tuple[str, str]]) -> None:
    """Write the list of (key, reason) of the rejected images."""
    table = pa.table([[key for key, _ in rejected], [reason for _, reason in rejected]], schema=REJECTED_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    location.joinpath(REJECTED).write_bytes(sink.getvalue())


def write_manifest(location: Location, manifest: Manifest) -> None:
    """Write the manifest, which publishes the data set. It must be the last write of an ingest."""
    totals = {"num_rows": manifest.num_rows, "num_bytes": manifest.num_bytes, "checksum": manifest.checksum}
    location.joinpath(MANIFEST).write_json({"version": manifest.version} | totals | asdict(manifest))


def read_manifest(location: Location) -> Manifest:
    """The manifest of a data set. Raises StorageError if it does not exist, is damaged or has another version."""
    file = location.joinpath(MANIFEST)
    try:
        values = file.read_json()
    except NotFoundError:
        raise NotFoundError(
            f"there is no data set at {location}: it has no {MANIFEST}. Make one "
            "with `python -m platform.ingest`; an interrupted ingest leaves none "
            "until it is run again"
        ) from None
    if not isinstance(values, Mapping) or values.get("version") != VERSION:
        found = values.get("version") if isinstance(values, Mapping) else None
        raise StorageError(f"{file} is of version {found}; this program reads version {VERSION}: ingest the data again")
    try:
        entries = [FileEntry(**entry) for entry in values["files"]]
        names = set(Manifest.__dataclass_fields__) - {"files"}
        values = {"converted": {}, **values}  # older manifests have no "converted"
        manifest = Manifest(files=entries, **{name: values[name] for name in names})
    except (KeyError, TypeError) as error:
        raise StorageError(f"{file} is not a shard manifest ({error}): ingest the data again") from None
    for entry in entries:
        location.joinpath(entry.name)  # the names come from a file and must not lead out of the data set
    if manifest.checksum != values.get("checksum"):
        raise StorageError(f"{file} was changed after it was written (its checksum does not match): ingest the data again")
    return manifest


def read_rows(location: Location, columns: Sequence[str] | None = None, split: str | None = None, threads: int = 4) -> pa.Table:
    """Table of the rows of a data set in order, optionally of one split. Only the needed columns are transferred.

    columns: None: all columns but the images. Raises StorageError for unknown columns or splits, and for damaged shards.
    """
    manifest = read_manifest(location)
    known = COLUMNS + list(manifest.extra_columns)
    wanted = list(columns) if columns is not None else [name for name in known if name != "image"]
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise StorageError(f"{location} has no column {', '.join(unknown)}; its columns are {', '.join(known)}")
    if split is not None and split not in manifest.splits:
        raise StorageError(f"{location} has no split '{split}'; its splits are {', '.join(manifest.splits) or 'none'}")
    fetched = wanted if split is None or "split" in wanted else [*wanted, "split"]
    with ThreadPoolExecutor(threads) as pool:
        tables = list(pool.map(lambda entry: read_columns(location / entry.name, fetched), manifest.files))
    table = pa.concat_tables(tables)
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    return table.select(wanted)


def verify(location: Location) -> list[str]:
    """Check a data set. Returns one line for each problem, [] if there is none. Reads all bytes."""
    try:
        manifest = read_manifest(location)
    except StorageError as error:
        return [str(error)]
    sizes = {item.name: item.bytes for item in location.list(recursive=False)}
    problems, keys = [], []
    for entry in manifest.files:
        if entry.name not in sizes:
            problems.append(f"{entry.name} is missing")
        elif sizes[entry.name] != entry.bytes:
            problems.append(f"{entry.name} has {sizes[entry.name]:,} bytes instead of {entry.bytes:,}")
        else:
            data = location.joinpath(entry.name).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                problems.append(f"{entry.name} was changed: its checksum does not match")
                continue
            parquet = pq.ParquetFile(pa.BufferReader(data))
            groups = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
            if groups != entry.row_groups or sum(groups) != entry.rows:
                problems.append(f"{entry.name} has row groups {groups} instead of {entry.row_groups}")
            keys.append(parquet.read(columns=["key"])["key"])
    if REJECTED not in sizes:
        problems.append(f"{REJECTED} is missing")
    if keys:
        counts = pc.value_counts(pa.chunked_array([chunk for column in keys for chunk in column.chunks]))
        problems += [
            f"key '{item['values']}' occurs {item['counts']} times"
            for item in counts.filter(pc.greater(counts.field("counts"), 1)).slice(0, 10).to_pylist()
        ]
    return problems
