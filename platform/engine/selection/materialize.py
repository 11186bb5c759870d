"""The images of a selection as new shards, in Ray tasks. Each task reads the row groups of one new shard and keeps the rows.

An index costs nothing to write, but training reads whole row groups: half of the images, scattered, cost the bytes of all images
in every epoch. New shards cost their size once.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from platform.engine.data.shards import FileEntry, Manifest, write_manifest, write_rejected, write_shard
from platform.engine.errors import user_error_of
from platform.engine.runtime.progress import progress
from platform.engine.storage.location import Location
from platform.engine.storage.parquet import from_parquet

Piece = list[tuple[str, int, np.ndarray]]
"""(file, row group, rows within it) of the images of one new shard."""


def materialize(root: Location, manifest: Manifest, index: pa.Table, output: Location, shard_bytes: int) -> Manifest:
    """Write the rows that `index` names (file, row_group, row; in the order of the shards) as shards of about `shard_bytes`.

    The same index gives the same shards. Returns the manifest, which is written last. Raises StorageError.
    """
    import ray

    row_group_rows = max(max(entry.row_groups) for entry in manifest.files)
    pieces = plan(manifest, index, shard_bytes)
    with progress("materialize", "images", index.num_rows) as counter:
        task = ray.remote(num_cpus=0.5)(write_piece)
        waiting = [task.remote(root, output, piece, row_group_rows, counter) for piece in pieces]
        try:
            written = ray.get(waiting)
        except Exception as error:
            raise user_error_of(error) or error from None
    write_rejected(output, [])
    made = Manifest(
        files=[entry for entry, _ in written],
        source={"kind": "selection", "path": root.uri},
        arguments=manifest.arguments | {"selected_from": manifest.checksum, "shard_mb": shard_bytes >> 20},
        splits=dict(sorted(sum((splits for _, splits in written), Counter[str]()).items())),
        extra_columns=manifest.extra_columns,
    )
    write_manifest(output, made)
    return made


def plan(manifest: Manifest, index: pa.Table, shard_bytes: int) -> list[Piece]:
    """The rows of each new shard, by the average size of the images of each file."""
    image_bytes = {entry.name: entry.bytes / entry.rows for entry in manifest.files}
    pieces: list[Piece] = [[]]
    filled = 0.0
    for name, group, rows in row_groups_of(index):
        if filled >= shard_bytes:
            pieces.append([])
            filled = 0.0
        pieces[-1].append((name, group, rows))
        filled += image_bytes[name] * len(rows)
    return pieces


def row_groups_of(index: pa.Table) -> Piece:
    """The row groups that an index touches, in its order."""
    files, groups, rows = (index[name].to_numpy(zero_copy_only=False) for name in ("file", "row_group", "row"))
    new = np.flatnonzero((files[1:] != files[:-1]) | (groups[1:] != groups[:-1])) + 1
    return [(str(files[part[0]]), int(groups[part[0]]), rows[part]) for part in np.split(np.arange(len(files)), new)]


def write_piece(
    root: Location, output: Location, piece: Piece, row_group_rows: int, counter: Any
) -> tuple[FileEntry, Counter[str]]:
    """Read the rows of a piece and write them as one shard. Returns its entry and the rows of each split."""
    table = pa.concat_tables(_rows_of(root / name, [(group, rows) for file, group, rows in piece if file == name])
                             for name in dict.fromkeys(file for file, _, _ in piece))  # fmt: skip
    entry = write_shard(output, table, row_group_rows)
    counter.add.remote(images=table.num_rows)
    return entry, Counter(table["split"].to_pylist() if "split" in table.schema.names else [])


def _rows_of(shard: Location, chosen: Sequence[tuple[int, np.ndarray]]) -> pa.Table:
    return from_parquet(shard, lambda file: pa.concat_tables(file.read_row_group(group).take(rows) for group, rows in chosen))
