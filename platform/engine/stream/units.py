"""The rows of a data set to train on: all of them, or those of a selection. No image is copied."""

from collections import defaultdict
from typing import Any

import numpy as np

from platform.engine.data.shards import Manifest, read_manifest
from platform.engine.errors import StorageError, UserError
from platform.engine.runs.json_records import read_record
from platform.engine.storage.location import Location
from platform.engine.storage.parquet import read_columns
from platform.engine.stream.order import Unit

INDEX = "index.parquet"


def read_units(root: Location, selection: Location | None = None) -> list[Unit]:
    """The row groups of the data set at `root`, reduced to the rows of `selection` (None: all rows).

    Raises UserError if the selection was made from another data set, is not a selection or is damaged. Raises StorageError if
    storage does not answer.
    """
    manifest = read_manifest(root)
    units = [Unit(entry.name, group, rows) for entry in manifest.files for group, rows in enumerate(entry.row_groups)]
    if selection is None:
        return units
    selection_record(selection, root.uri, manifest)
    index = selection / INDEX
    try:
        table = read_columns(index, ["file", "row_group", "row"])
    except StorageError as error:
        if error.transient:
            raise
        raise UserError(f"{error}. The selection is not whole: run platform.select again into a new folder") from None
    rows: dict[tuple[str, int], list[int]] = defaultdict(list)
    for name, group, row in zip(table["file"].to_pylist(), table["row_group"].to_pylist(), table["row"].to_pylist(), strict=True):
        rows[name, group].append(row)
    return [
        Unit(
            unit.file,
            unit.row_group,
            len(rows[unit.file, unit.row_group]),
            np.sort(np.asarray(rows[unit.file, unit.row_group], np.int32)),
        )
        for unit in units
        if (unit.file, unit.row_group) in rows
    ]


def selection_record(selection: Location, data: str, manifest: Manifest) -> dict[str, Any]:
    """What platform.select recorded about a selection. Raises UserError if it was made from another data set, or is none."""
    about = read_record(
        selection / "manifest.json",
        "data_checksum",
        str,
        "give the folder that platform.select wrote as data.selection, and the data set as data.uri",
    )
    if about["data_checksum"] != manifest.checksum:
        raise UserError(
            f"the selection {selection.uri} was made from {about.get('data', 'other data')} as it was then (checksum "
            f"{about['data_checksum'][:12]}), not from {data} (checksum {manifest.checksum[:12]}); "
            "run platform.select on this data set"
        )
    return about
