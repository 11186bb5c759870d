"""Two tiny data sets of synthetic people, made once per session. Tests must not write to them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from platform.engine.data.shards import REJECTED, SCHEMA, Manifest, read_manifest, write_manifest, write_rejected, write_shard
from platform.engine.ingest.sources.drawn import SyntheticSource
from platform.engine.storage.location import Location, open_storage
from reidssl.data.decode import check_image
from reidssl.synthetic.people import SyntheticConfig, specifications


def write_data_set(location: Location, config: SyntheticConfig, part: str, shard_rows: list[int], row_group_rows: int) -> None:
    """Write shards with `shard_rows` rows each, which must add up to the number of images of the part."""
    source = SyntheticSource(config, part, unit_images=1, image_format="jpeg", jpeg_quality=90)
    rows = []
    for found in source.read(specifications(config, part)):
        rows.append((found.key, found.image, *check_image(found.image)[:2], found.pid, found.camid, found.split, found.extras[0]))
    schema = pa.schema([*SCHEMA, *[pa.field(name, kind) for name, kind in source.extra_columns.items()]])
    columns = list(zip(*rows, strict=True))
    table = pa.Table.from_arrays(
        [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema
    )
    assert sum(shard_rows) == table.num_rows
    entries, start = [], 0
    for count in shard_rows:
        entries.append(write_shard(location, table.slice(start, count), row_group_rows))
        start += count
    write_rejected(location, [])
    splits = table["split"].to_pylist()
    write_manifest(
        location,
        Manifest(
            files=entries,
            source={"kind": "synthetic"},
            arguments={"part": part},
            splits={name: splits.count(name) for name in sorted(set(splits))},
            extra_columns={name: str(kind) for name, kind in source.extra_columns.items()},
        ),
    )


def write_copies(location: Location, origin: Location, shards: int, rows: int) -> Location:
    """Write `shards` shards of `rows` rows each with images of a data set under other keys."""
    table = pa.concat_tables(pq.read_table((origin / entry.name).path) for entry in read_manifest(origin).files)
    entries = []
    for number in range(shards):
        part = table.take(pa.array((np.arange(rows) * 7 + number * 31) % table.num_rows))
        keys = pa.array([f"images/{number:02d}/{row:02d}.jpg" for row in range(rows)])
        entries.append(write_shard(location, part.set_column(0, table.schema.field(0), keys), 16))
    write_rejected(location, [])
    write_manifest(location, replace(read_manifest(origin), files=entries, splits={"train": shards * rows}))
    return location


def with_images(origin: Location, location: Location, images: Mapping[str, bytes]) -> Location:
    """A copy of the data set with other images under these keys and a manifest that matches its shards."""
    manifest, entries = read_manifest(origin), []
    for entry in manifest.files:
        table = pq.read_table((origin / entry.name).path)
        column = [images.get(key, image) for key, image in zip(table["key"].to_pylist(), table["image"].to_pylist(), strict=True)]
        place = table.schema.get_field_index("image")
        table = table.set_column(place, table.schema.field(place), pa.array(column, pa.binary()))
        entries.append(write_shard(location, table, entry.row_groups[0]))
    write_rejected(location, [])
    write_manifest(location, replace(manifest, files=entries))
    return location


def with_labels(
    origin: Location, location: Location, label: Callable[[int, str, str, int, int], tuple[int, int]], **changes: Any
) -> Location:
    """A copy of the data set with other labels and a manifest that matches its shards.

    label: function of (number of the row, key, split, pid, camid) to (pid, camid); changes: of the fields of the manifest.
    """
    manifest, entries, row = read_manifest(origin), [], 0
    for entry in manifest.files:
        table = pq.read_table((origin / entry.name).path)
        given = zip(*(table[name].to_pylist() for name in ("key", "split", "pid", "camid")), strict=True)
        labels = [label(row + number, *each) for number, each in enumerate(given)]
        for name, column in zip(("pid", "camid"), zip(*labels, strict=True), strict=True):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(place), pa.array(column, pa.int32()))
        entries.append(write_shard(location, table, entry.row_groups[0]))
        row += table.num_rows
    write_rejected(location, [])
    write_manifest(location, replace(manifest, files=entries, **changes))
    return location


def rejected_of(location: Location) -> list[tuple[str, str]]:
    """(key, reason) of every image that an ingest rejected, read from rejected.parquet."""
    table = pq.read_table(pa.BufferReader(location.joinpath(REJECTED).read_bytes()))
    return list(zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True))


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory) -> Location:
    """90 unlabeled images of 64 x 32 in two shards with ragged row groups: 12 12 12 12 7 and 12 12 11."""
    location = open_storage(str(tmp_path_factory.mktemp("data") / "tiny"))
    config = SyntheticConfig(image_size=(64, 32), num_pretrain=90, pretrain_identities=30, pretrain_scenes=8)
    write_data_set(location, config, "pretrain", [55, 35], row_group_rows=12)
    return location


@pytest.fixture(scope="session")
def tiny_labeled(tmp_path_factory) -> Location:
    """12 people in 3 cameras, 2 images each: 36 train, 18 query, 18 gallery images of 64 x 32."""
    location = open_storage(str(tmp_path_factory.mktemp("data") / "labeled"))
    config = SyntheticConfig(
        image_size=(64, 32), target_identities=12, target_cameras=3, cameras_per_identity=3, images_per_camera=2
    )
    write_data_set(location, config, "target", [40, 32], row_group_rows=16)
    return location
