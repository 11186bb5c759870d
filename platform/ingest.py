"""Turn any source of person images into shards: folders, LMDB, tars, video with detections, synthetic people.

  python -m platform.ingest source.kind=folder source.path=photos output=runs/photos
  python -m platform.ingest source.kind=market1501 source.path=Market-1501-v15.09.15 output=runs/market
  python -m platform.ingest source.kind=msmt17 source.path=MSMT17_V1 output=s3://bucket/msmt17 storage=s3
  python -m platform.ingest source.kind=luperson_lmdb source.path=LUPerson output=s3://bucket/luperson storage=s3
  python -m platform.ingest source.kind=webdataset source.path=s3://bucket/tars output=s3://bucket/shards storage=s3
  python -m platform.ingest source.kind=video source.path=street.avi source.detections=street.txt output=runs/street
  python -m platform.ingest source.kind=synthetic source.part=pretrain output=runs/synthetic

Ray Data reads units of the source in parallel, checks that every image decodes, keeps the original bytes and writes
Parquet shards. What cannot be used is listed with its reason in rejected.parquet and never stops the job. The manifest
is published last: an interrupted ingest leaves no data set, and running it again starts over. Equal arguments on an
unchanged source give equal shards, whatever the number of machines.
"""

import fnmatch
import io
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from hydra.core.config_store import ConfigStore
from PIL import Image, UnidentifiedImageError

from platform.engine.config import run_program
from platform.engine.errors import UserError
from platform.engine.progress import progress, quiet_ray_data
from platform.engine.runtime import RuntimeConfig, connect, say
from platform.engine.shards import (
    MANIFEST,
    REJECTED,
    SCHEMA,
    FileEntry,
    Manifest,
    read_manifest,
    write_manifest,
    write_rejected,
    write_shard,
)
from platform.engine.sources import Candidate, Source, SourceConfig, open_source
from platform.engine.sources.base import LARGEST_IMAGE
from platform.engine.storage import Location, StorageConfig, abort_incomplete_uploads, open_storage

BLOCK_BYTES = 16 << 20  # what a reading task hands on at a time
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


@dataclass(kw_only=True)
class IngestConfig:
    """A source, an output and the shape of the shards."""

    source: SourceConfig = field(default_factory=SourceConfig)
    output: str = ""
    """Folder or s3:// prefix of the shards."""
    shard_mb: int = 64
    """Megabytes of images in a shard, about."""
    row_group_rows: int = 256
    """Images in a row group: what training reads with one request."""
    limit: int = 0
    """Take only this many images, from the beginning; 0: all."""
    overwrite: bool = False
    """Replace a data set that is there already."""
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        for name in ("shard_mb", "row_group_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if self.limit < 0:
            raise ValueError(f"limit must be 0 (all) or more: got {self.limit}")


ConfigStore.instance().store(name="ingest_schema", node=IngestConfig)  # configs/ingest.yaml starts from it


def main(config: IngestConfig) -> Manifest:
    """Ingest unless the same data set is there already. Raises UserError."""
    if not config.output:
        raise UserError("output is empty: say where the shards go, e.g. output=runs/photos or output=s3://bucket/photos")
    output = open_storage(config.output, config.storage).prepare_output()
    arguments = {"source": config.source.arguments(), "limit": config.limit, "shard_mb": config.shard_mb,
                 "row_group_rows": config.row_group_rows}
    existing = existing_data_set(output, arguments, config.overwrite)
    if existing is not None:
        say(f"{output} is complete already: {summary(existing)}; nothing to do (overwrite=true makes it anew)")
        return existing
    source = open_source(config.source, config.storage)
    connect(config.runtime)
    manifest = ingest(source, output, config, arguments)
    say(f"{output}: {summary(manifest)}")
    return manifest


def existing_data_set(output: Location, arguments: Mapping[str, Any], overwrite: bool) -> Manifest | None:
    """The finished data set at `output` if it was made with these arguments; UserError if with others."""
    if overwrite or not output.joinpath(MANIFEST).exists():
        return None
    manifest = read_manifest(output)
    if manifest.arguments == arguments:
        return manifest
    old, new = _flat(manifest.arguments), _flat(arguments)
    changed = ", ".join(f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
                        for key in sorted(old | new) if old.get(key) != new.get(key))
    raise UserError(f"{output} holds a data set made with other arguments ({changed}). Choose another output, or set "
                    "overwrite=true to replace it")


def ingest(source: Source, output: Location, config: IngestConfig, arguments: dict[str, Any]) -> Manifest:
    """The whole job: plan, read, check, write, publish."""
    import ray.data

    quiet_ray_data()
    plan = source.plan(config.limit)
    if not plan.units:
        raise UserError(f"nothing to ingest: {config.source.path or config.source.kind} holds no images that this kind "
                        f"of source ({config.source.kind}) takes")
    clean(output)
    units = [{"unit": pickle.dumps(unit)} for unit in plan.units]
    with progress("ingest", "images", plan.num_images) as counter:
        dataset = ray.data.from_items(units, override_num_blocks=len(units))
        dataset = dataset.map_batches(ReadUnits(source, counter), batch_size=1, batch_format="pyarrow", num_cpus=1)
        dataset.context.execution_options.preserve_order = True  # shards must not depend on who is faster
        sink = shard_sink(output, config.shard_mb << 20, config.row_group_rows)
        try:
            dataset.write_datasink(sink, ray_remote_args={"num_cpus": 0.5})
        except Exception as error:
            raise _user_error(error) or error from None
    entries, rejected, splits = sink.results
    if not entries:
        examples = "; ".join(f"{key}: {reason}" for key, reason in rejected[:3])
        raise UserError(f"none of the {len(rejected):,} images could be used ({examples}). Nothing was published")
    write_rejected(output, rejected)
    manifest = Manifest(
        files=entries, num_rejected=len(rejected),
        source={"kind": config.source.kind, "path": arguments["source"].get("path", "")},
        arguments=arguments, splits=dict(sorted(splits.items())),
        extra_columns={name: str(kind) for name, kind in source.extra_columns.items()},
    )
    write_manifest(output, manifest)
    return manifest


def clean(output: Location) -> None:
    """Remove what an earlier ingest left: the manifest first, so that the rest no longer counts."""
    output.joinpath(MANIFEST).delete()
    for item in output.list(recursive=False):
        if item.name == REJECTED or fnmatch.fnmatch(item.name, "shard-*.parquet"):
            output.joinpath(item.name).delete()
    abort_incomplete_uploads(output.uri, output.config, older_than_h=1.0)


class ReadUnits:
    """Units -> blocks of rows, one column more than the shards': `error`, empty for good rows."""

    def __init__(self, source: Source, counter: Any) -> None:
        self.source, self.counter = source, counter
        self.no_extras = (None,) * (len(source.extra_columns) - 1)  # for what a source could not read
        extras = [pa.field(name, kind) for name, kind in source.extra_columns.items()]
        # Rejected rows have no image; large_binary because Ray may join blocks beyond 2 GiB.
        fields = [field.with_nullable(True) for field in SCHEMA]
        fields[1] = pa.field("image", pa.large_binary())
        self.schema = pa.schema([*fields, *extras, pa.field("error", pa.string())])

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for packed in batch["unit"].to_pylist():
            unit = pickle.loads(packed)  # made by `ingest` in this job, never read from a file
            seen: set[str] = set()
            rows: list[tuple[Any, ...]] = []
            size = 0
            for candidate in self.source.read(unit):
                rows.append(checked_row(candidate._replace(extras=candidate.extras or self.no_extras), seen))
                size += len(candidate.image)
                if size >= BLOCK_BYTES:
                    yield self._block(rows)
                    rows, size = [], 0
            if rows:
                yield self._block(rows)

    def _block(self, rows: list[tuple[Any, ...]]) -> pa.Table:
        columns = list(zip(*rows, strict=True))
        arrays = [pa.array(column, kind) for column, kind in zip(columns, self.schema.types, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        rejected = len(rows) - columns[-1].count("")
        self.counter.add.remote(images=len(rows), rejected=rejected)
        return table


def checked_row(candidate: Candidate, seen: set[str]) -> tuple[Any, ...]:
    """The candidate as a row, with its size, or with the reason why it is set aside."""
    error, height, width = candidate.error, 0, 0
    if not error and candidate.key in seen:
        error = "duplicate key"
    if not error:
        try:
            height, width = check_image(candidate.image)
        except ValueError as problem:
            error = str(problem)
    seen.add(candidate.key)
    image = None if error else candidate.image
    labels = (candidate.pid, candidate.camid, candidate.split, *candidate.extras)
    return (candidate.key, image, height, width, *labels, error)


def check_image(data: bytes) -> tuple[int, int]:
    """(height, width) of an encoded image, decoded in full. Raises ValueError with the reason why it cannot be."""
    if not data:
        raise ValueError("empty file")
    if len(data) > LARGEST_IMAGE:
        raise ValueError(f"{len(data):,} bytes are too many for a person image")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.verify()  # checksums of the container
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()  # every pixel: finds truncated files
            return image.height, image.width
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... on damaged files
        unknown = f"not an image in a known format ({', '.join(FORMATS)})"
        reason = unknown if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"cannot be decoded: {reason}") from None


def shard_sink(output: Location, shard_bytes: int, row_group_rows: int) -> Any:
    """Ray Data sink whose write tasks get about `shard_bytes` of rows each and publish them as shards."""
    from ray.data import Datasink

    class ShardSink(Datasink[tuple[list[FileEntry], list[tuple[str, str]], Counter[str]]]):
        results: tuple[list[FileEntry], list[tuple[str, str]], Counter[str]]

        @property
        def min_bytes_per_write(self) -> int:
            return shard_bytes

        def write(self, blocks: Iterable[Any], ctx: Any) -> Any:
            return write_blocks(output, list(blocks), shard_bytes, row_group_rows)

        def on_write_complete(self, write_result: Any) -> None:
            returns = write_result.write_returns
            self.results = ([entry for entries, _, _ in returns for entry in entries],
                            [pair for _, rejected, _ in returns for pair in rejected],
                            sum((splits for _, _, splits in returns), Counter()))

    return ShardSink()


def write_blocks(output: Location, blocks: list[pa.Table], shard_bytes: int,
                 row_group_rows: int) -> tuple[list[FileEntry], list[tuple[str, str]], Counter[str]]:
    """Blocks of ReadUnits -> (shards written, rejected keys with reasons, rows per split)."""
    table = pa.concat_tables(blocks)
    bad = table.filter(pc.not_equal(table["error"], ""))
    good = table.filter(pc.equal(table["error"], "")).drop_columns(["error"])
    rejected = list(zip(bad["key"].to_pylist(), bad["error"].to_pylist(), strict=True))
    extras = [field for field in good.schema if field.name not in SCHEMA.names]
    target = pa.schema([*SCHEMA, *extras])
    pieces = max(1, round(good.nbytes / shard_bytes))
    rows = -(-good.num_rows // pieces)
    entries = [write_shard(output, good.slice(start, rows).cast(target), row_group_rows)
               for start in range(0, good.num_rows, max(rows, 1))]
    return entries, rejected, Counter(good["split"].to_pylist())


def summary(manifest: Manifest) -> str:
    splits = ", ".join(f"{name} {count:,}" for name, count in manifest.splits.items())
    return (f"{manifest.num_rows:,} images ({splits}) in {len(manifest.files)} shards, "
            f"{manifest.num_bytes / 1e6:,.1f} MB, {manifest.num_rejected:,} rejected")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _user_error(error: BaseException) -> UserError | None:
    """The UserError that a task raised, out of what Ray wrapped around it (whose text is the remote stack trace)."""
    from ray.exceptions import RayTaskError

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError) and not isinstance(seen, RayTaskError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None


if __name__ == "__main__":
    run_program(IngestConfig, "ingest", main, __doc__)
