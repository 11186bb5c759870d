"""The features of both proxies in storage, which save another measure the passes through the models.

<folder>/features/source/<shard>    Parquet: key, feature (fixed-size list of float32), problem; a row for every image
<folder>/features/target/<shard>    the same by the target proxy; written last, so this file marks the shard as done
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from platform.engine.data.parts import PROBLEM, as_array, as_column, write_table
from platform.engine.data.shards import FileEntry
from platform.engine.errors import NotFoundError, UserError
from platform.engine.inference.actors import Batch
from platform.engine.inference.features import FEATURE, ParquetPart, stored_parts
from platform.engine.runs.json_records import read_record
from platform.engine.runs.run_folder import SUMMARY
from platform.engine.storage.location import Location, open_storage
from platform.engine.storage.parquet import from_parquet

FEATURES = "features"
ADVICE = "give a folder that platform.score wrote with features=true"
PROXIES = ("source", "target")
LOADED = ("heads", "stride", "mean", "std", "cameras")
"""Facts beside weights and image size on which the features of a proxy depend; load.* may supply them."""


class KeptFeatures:
    """The features below a folder of platform.score."""

    def __init__(self, folder: Location) -> None:
        self.folder = folder / FEATURES

    def has(self, name: str) -> bool:
        """Whether the features of this shard are complete."""
        return self.folder.joinpath(PROXIES[-1], name).exists()

    def write(self, name: str, columns: Batch) -> None:
        """Write the features "source" and "target", float32 (rows, D), with "key" and "problem", of a shard."""
        for proxy in PROXIES:
            table = {"key": columns["key"].tolist(), FEATURE: as_column(columns[proxy]), PROBLEM: columns["problem"].tolist()}
            write_table(self.folder.joinpath(proxy, name), pa.table(table))

    def batches(self, entries: Sequence[FileEntry]) -> Iterator[Batch]:
        """Yields {"key", "file", "problem", "source", "target"} of each shard. Raises UserError for a missing or foreign file."""
        for entry in entries:
            tables = [self._read(proxy, entry) for proxy in PROXIES]
            yield {
                "key": np.asarray(tables[0]["key"].to_pylist(), object),
                "file": np.full(entry.rows, entry.name, object),
                "problem": np.asarray(tables[0][PROBLEM].to_pylist(), object),
                **{proxy: as_array(table[FEATURE]) for proxy, table in zip(PROXIES, tables, strict=True)},
            }

    def parts(self, proxy: str, entries: Sequence[FileEntry]) -> list[ParquetPart]:
        """The features of one proxy for a neighbor search, without the rows with a problem."""
        return stored_parts(self.folder.joinpath(proxy, entry.name) for entry in entries)

    def rows(self, entry: FileEntry) -> tuple[list[str], np.ndarray]:
        """(keys, problems) of the images of a shard."""
        table = self._read(PROXIES[-1], entry, ["key", PROBLEM])
        return table["key"].to_pylist(), np.asarray(table[PROBLEM].to_pylist(), object)

    def delete(self) -> None:
        """Delete all features. Does nothing if there are none."""
        self.folder.delete()

    def _read(self, proxy: str, entry: FileEntry, columns: list[str] | None = None) -> pa.Table:
        file = self.folder.joinpath(proxy, entry.name)
        try:
            table = from_parquet(file, lambda parquet: parquet.read(columns=columns))
        except NotFoundError:
            raise UserError(f"{file.uri} does not exist: the features are not whole; score with features=true again") from None
        if table.num_rows != entry.rows:
            raise UserError(f"{file.uri} has {table.num_rows} rows instead of {entry.rows}: score with features=true again")
        return table


def kept_record(folder: Location) -> dict[str, Any]:
    """The summary of a finished run of platform.score that kept its features. Raises UserError if the folder is none."""
    about = _scores_record(folder)
    if not (folder / FEATURES).exists():
        elsewhere = f", its measure was computed from those of {about['features']}" if about.get("features") else ""
        raise UserError(f"{folder.uri} keeps no features{elsewhere}: {ADVICE}")
    return about


def features_behind(folder: Location) -> KeptFeatures:
    """The features that the scores in `folder` were computed from. Raises UserError if they were not kept."""
    about = _scores_record(folder)
    if not (folder / FEATURES).exists() and about.get("features"):
        folder = open_storage(about["features"], folder.config)
        if kept_record(folder)["data_checksum"] != about["data_checksum"]:
            raise UserError(f"the features in {folder.uri} are of other data by now: {ADVICE}")
    kept_record(folder)
    return KeptFeatures(folder)


def require_same(folder: Location, about: dict[str, Any], checksum: str, proxies: dict[str, dict[str, Any]]) -> None:
    """Check that kept features are those of this data set and of these proxies. Raises UserError with all differences.

    Args:
        about: `kept_record` of the folder; checksum: of the data set's manifest.
        proxies: record of each proxy that was named.
    """
    differences = []
    if about["data_checksum"] != checksum:
        differences.append(f"data checksum {about['data_checksum'][:12]} there, {checksum[:12]} here")
    for name, record in proxies.items():
        kept, given = _facts(about["proxies"][name]), _facts(record)
        differences += [
            f"{fact} of the {name} proxy {kept[fact]} there, {given[fact]} here" for fact in kept if kept[fact] != given[fact]
        ]
    if differences:
        raise UserError(
            f"the features in {folder.uri} are not those asked for: {'; '.join(differences)}. Leave features_from out to compute "
            "them, or name the data and the proxies that they were made with"
        )


def _facts(record: dict[str, Any]) -> dict[str, str]:
    loaded = record.get("loaded", {})
    facts = {name: record.get(name) for name in ("weights", "image_size")} | {name: loaded.get(name) for name in LOADED}
    return {name: json.dumps(value).strip('"') for name, value in facts.items()}  # as stored: a tuple is a list


def _scores_record(folder: Location) -> dict[str, Any]:
    if not (folder / SUMMARY).exists():
        raise UserError(f"{folder.uri} holds no finished scores: run platform.score with features=true to its end first")
    return read_record(folder / SUMMARY, "data_checksum", str, ADVICE)
