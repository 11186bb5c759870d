"""The people of a data set: which images show the same person, from the identities, the splits and the kind of the source."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from platform.engine.data.shards import Manifest, read_manifest, read_rows
from platform.engine.storage.location import Location
from reidssl.data import market1501

DISTRACTOR = -2
"""In place of a person's number: the image shows somebody who is in the gallery only to be confused with others."""
DISTRACTORS = {"market1501": market1501.DISTRACTOR}
"""Kind of a source -> the identity that all its distractors share. In other kinds every identity from 0 on is a person."""
BENCHMARKS = ("market1501", "dukemtmc", "msmt17", "cuhk03")
"""Kinds of sources whose people to train on and to test on are different people. MSMT17 and CUHK03 number both from 0 or 1."""


def kind_of(manifest: Manifest) -> str:
    """The kind of the source of the images (raw.kind of platform.ingest), also of a selection with shards of its own."""
    raw = manifest.arguments.get("raw")
    own = str(manifest.source.get("kind", ""))
    return str(raw.get("kind", own)) if own == "selection" and isinstance(raw, dict) else own


def people(manifest: Manifest, pids: np.ndarray, splits: Sequence[str] | np.ndarray | None) -> np.ndarray:
    """Numbers int64 (N,): equal where two images show the same person; -1: unlabeled; DISTRACTOR: nobody in particular.

    pids: int (N,); splits: (N,), the split of each image; None: there are none.
    """
    kind = kind_of(manifest)
    numbers = np.asarray(pids).astype(np.int64)
    distractors = numbers == DISTRACTORS[kind] if kind in DISTRACTORS else np.zeros(len(numbers), bool)
    if kind in BENCHMARKS and splits is not None:
        numbers = np.where(numbers >= 0, 2 * numbers + (np.asarray(splits) != "train"), numbers)
    numbers[distractors] = DISTRACTOR
    return numbers


def read_people(location: Location, columns: Sequence[str] = ()) -> tuple[pa.Table, np.ndarray]:
    """(the `columns` of all rows of a data set in order, the result of `people` for them). Raises StorageError."""
    manifest = read_manifest(location)
    needed = ["pid", *(["split"] if "split" in manifest.extra_columns else [])]
    table = read_rows(location, list(dict.fromkeys([*columns, *needed])))
    splits = table["split"].to_pylist() if "split" in needed else None
    return table.select(list(columns)), people(manifest, table["pid"].to_numpy(), splits)


def each_apart(numbers: np.ndarray) -> np.ndarray:
    """Every distractor as a person of its own: a wrong match of all queries, and a query without a true match. int64 (N,)."""
    found = numbers.copy()
    distractors = np.flatnonzero(numbers == DISTRACTOR)
    found[distractors] = numbers.max(initial=-1) + 1 + np.arange(len(distractors))
    return found
