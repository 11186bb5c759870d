"""The shard format: Parquet files of encoded images and the manifest that makes them a data set.

    <location>/shard-<16 hex of its SHA-256>.parquet    about 64 MB, row groups of a few hundred rows
    <location>/rejected.parquet                         key and reason of every image that was left out
    <location>/manifest.json                            written last: without it there is no data set

File names come from the content, so a task that runs twice writes one file, and files of a broken attempt are never
read: only what the manifest lists counts. Images are the original bytes, uncompressed by Parquet (they are compressed
already); the small columns can be read without them.
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
from reidssl.data.decode import MAX_PIXELS

VERSION = 1
MANIFEST = "manifest.json"
REJECTED = "rejected.parquet"
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # path relative to the source, unique
        pa.field("image", pa.binary(), nullable=False),  # JPEG or PNG as it came
        pa.field("height", pa.int32(), nullable=False),  # of the upright image, whatever its EXIF says
        pa.field("width", pa.int32(), nullable=False),
        pa.field("pid", pa.int32(), nullable=False),  # -1 unlabeled
        pa.field("camid", pa.int32(), nullable=False),  # -1 unknown
    ]
)
COLUMNS = SCHEMA.names
REJECTED_SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("reason", pa.string())])


@dataclass(frozen=True)
class FileEntry:
    """One shard as the manifest lists it."""

    name: str
    rows: int
    bytes: int
    sha256: str
    row_groups: list[int]
    """Rows of each row group."""


@dataclass(frozen=True)
class Manifest:
    """What a data set consists of and where it came from."""

    files: list[FileEntry]
    num_rejected: int = 0
    source: dict[str, Any] = field(default_factory=dict)
    """The kind and place the images came from."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Everything that determines the content; equal arguments give equal shards."""
    splits: dict[str, int] = field(default_factory=dict)
    """Rows of each split."""
    converted: dict[str, int] = field(default_factory=dict)
    """Images that the decoder changes when they are used, by what it does (reidssl.data.color_modes.CONVERSIONS)."""
    extra_columns: dict[str, str] = field(default_factory=dict)
    """Columns beyond COLUMNS and their Arrow types."""
    version: int = VERSION

    @property
    def num_rows(self) -> int:
        return sum(entry.rows for entry in self.files)

    @property
    def num_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)

    @property
    def max_pixels(self) -> int:
        """The limit that its images passed, which holds for every later use of them."""
        return int(self.arguments.get("max_pixels", MAX_PIXELS))

    @property
    def checksum(self) -> str:
        """SHA-256 over the files' names, rows and checksums, in order: the identity of the data."""
        lines = [f"{entry.name} {entry.rows} {entry.sha256}\n" for entry in self.files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_shard(location: Location, table: pa.Table, row_group_rows: int = 256) -> FileEntry:
    """Write one shard below `location`; the same rows give the same file name and bytes.

    table: SCHEMA's columns first, then any extra ones. Raises ValueError for other columns or no rows, StorageError.
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
    location.joinpath(name).write_bytes(data)
    full, rest = divmod(table.num_rows, row_group_rows)
    return FileEntry(name, table.num_rows, data.size, sha256, [row_group_rows] * full + [rest] * (rest > 0))


def write_rejected(location: Location, rejected: Sequence[tuple[str, str]]) -> None:
    """Publish the (key, reason) list of what was left out."""
    table = pa.table([[key for key, _ in rejected], [reason for _, reason in rejected]], schema=REJECTED_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    location.joinpath(REJECTED).write_bytes(sink.getvalue())


def write_manifest(location: Location, manifest: Manifest) -> None:
    """Publish the data set: the last write of an ingest."""
    totals = {"num_rows": manifest.num_rows, "num_bytes": manifest.num_bytes, "checksum": manifest.checksum}
    location.joinpath(MANIFEST).write_json({"version": manifest.version} | totals | asdict(manifest))


def read_manifest(location: Location) -> Manifest:
    """The manifest of a data set. Raises StorageError when there is none or it is torn or of another version."""
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
        values = {"converted": {}, **values}  # older ones do not have it
        manifest = Manifest(files=entries, **{name: values[name] for name in names})
    except (KeyError, TypeError) as error:
        raise StorageError(f"{file} is not a shard manifest ({error}): ingest the data again") from None
    if manifest.checksum != values.get("checksum"):
        raise StorageError(f"{file} was changed after it was written (its checksum does not match): ingest the data again")
    return manifest


def read_rows(location: Location, columns: Sequence[str] | None = None, split: str | None = None, threads: int = 4) -> pa.Table:
    """Rows of a data set in order, optionally of one split. Only the columns asked for travel.

    columns: None = all but the images. Raises StorageError for unknown columns or splits and broken shards.
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
        tables = list(pool.map(lambda entry: _read_columns(location.joinpath(entry.name), fetched), manifest.files))
    table = pa.concat_tables(tables)
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    return table.select(wanted)


def _read_columns(file: Location, columns: Sequence[str] | None) -> pa.Table:
    with file.open_input() as opened, file.errors("read"):
        return pq.ParquetFile(opened).read(columns=None if columns is None else list(columns))


def verify(location: Location) -> list[str]:
    """Every problem of a data set as one line each; [] when it is whole. Reads all bytes."""
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
