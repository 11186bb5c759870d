"""The selected subset: the best-scored share of a data set, or a random one, as an index, without copying an image.

  python -m platform.select data=runs/demo/data/pretrain scores=runs/scores output=runs/selection fraction=0.5
  python -m platform.select data=s3://b/luperson list=cfs_list.pkl fraction=0.5 output=s3://b/selection
  python -m platform.select ... reference=cfs_list.pkl      (also: how far the scores agree with a published order)
  python -m platform.select data=runs/demo/data/pretrain random=true output=runs/control      (the control of any selection)

list: a published order, best first (a pickled list of paths; read without executing anything), in place of scores.
The index (file, row_group, row, key, score) is what `platform.pretrain data.selection=...` reads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from platform.engine.config import run_program
from platform.engine.errors import UserError
from platform.engine.parts import write_table
from platform.engine.records import read_record
from platform.engine.runs import SUMMARY, open_run
from platform.engine.runtime import say
from platform.engine.selection import INDEX
from platform.engine.shards import Manifest, read_manifest, read_rows
from platform.engine.storage import StorageConfig, open_storage
from platform.score import read_scores
from reidssl.seeding import sample_seeds, uniforms
from reidssl.selection.cfs import agreement
from reidssl.selection.subset import load_published_list, select_top


@dataclass(kw_only=True)
class SelectConfig:
    """Everything a selection depends on."""

    output: str = "runs/selection"
    """Folder of the index."""
    scores: str = ""
    """Folder written by platform.score."""
    list: str = ""
    """Published order instead of scores: a pickled list of keys, best first."""
    random: bool = False
    """A random subset instead: what a selection must beat, since a smaller set is also seen more often."""
    seed: int = 0
    """Of the random subset."""
    reference: str = ""
    """Published order to compare the scores with."""
    fraction: float = 0.5
    """Share of the images to keep."""
    data: str = "runs/demo/data/pretrain"
    """Shards to select from."""
    storage: StorageConfig = field(default_factory=StorageConfig)

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1]: got {self.fraction}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more: got {self.seed}")
        given = [name for name in ("scores", "list", "random") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"scores, list and random exclude each other: got {' and '.join(given)}")


def main(config: SelectConfig) -> dict[str, Any]:
    """Write the index and its manifest; returns the summary."""
    if not (config.scores or config.list or config.random):
        raise UserError("nothing to select by: give scores=<folder of platform.score>, list=<published order> or random=true")
    output = open_storage(config.output, config.storage)
    complete = (output / SUMMARY).exists()
    if not complete:
        output.prepare_output()
    # What can be refused is refused before the folder takes this configuration for its own.
    index, summary = (None, {}) if complete else select(config)
    run = open_run("select", config.output, config, config.storage)
    if index is None:
        say(f"select: {run.location.uri} is complete already")
        return run.summary or {}
    write_table(run.location / INDEX, index)
    (run.location / "manifest.json").write_json(summary)
    run.finish(summary)
    say(f"select: kept {summary['selected']:,} of {summary['total']:,} images ({config.fraction:.0%}) in {run.location.uri}")
    return run.summary or {}


def select(config: SelectConfig) -> tuple[pa.Table, dict[str, Any]]:
    """The index and what there is to say about it. Raises UserError for input that belongs to other data or is broken."""
    root = open_storage(config.data, config.storage)
    manifest = read_manifest(root)
    keys, scores = scored_keys(config, manifest)
    summary: dict[str, Any] = {}
    if config.reference:
        order = published_list(config.reference, config.storage)
        with refused_as_user_error(config.reference):
            summary["agreement"] = agreement(keys, scores, order, config.fraction)
        say(f"agreement with {config.reference}: {summary['agreement']}")
    with refused_as_user_error(config.scores or config.list or config.data):
        chosen = select_top(keys, scores, config.fraction)
    summary |= {"data": config.data, "data_checksum": manifest.checksum, "total": len(keys),
                "selected": len(chosen), "fraction": config.fraction, "threshold": float(np.min(scores[chosen]))}
    if "planted" in manifest.extra_columns:
        planted = read_rows(root, ["planted"])["planted"].to_numpy().astype(bool)
        summary["planted_share"] = {"all": float(planted.mean()), "selected": float(planted[chosen].mean())}
    return locate(manifest, keys, scores, chosen), summary


def published_list(uri: str, storage: StorageConfig) -> list[str]:
    """Keys, best first. UserError for anything but a list of strings, code in the pickle above all."""
    file = open_storage(uri, storage)
    with refused_as_user_error(file.uri):
        return load_published_list(file.read_bytes())


@contextmanager
def refused_as_user_error(name: str) -> Iterator[None]:
    """The library refuses bad input with ValueError; here it is the user's file, so name it."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None


def scored_keys(config: SelectConfig, manifest: Manifest) -> tuple[list[str], np.ndarray]:
    """Keys in the order of the shards, and a score for each (with a published list: minus its rank; random: any in [0, 1))."""
    root = open_storage(config.data, config.storage)
    keys = read_rows(root, ["key"])["key"].to_pylist()
    if config.random:
        return keys, uniforms(sample_seeds(config.seed, 0, keys), 1)[:, 0]
    if config.scores:
        folder = open_storage(config.scores, config.storage)
        if not (folder / SUMMARY).exists():
            raise UserError(f"{folder.uri} holds no finished scores: run platform.score to its end first")
        about = read_record(folder / SUMMARY, "data_checksum", str, "give the folder that platform.score wrote as scores")
        if about["data_checksum"] != manifest.checksum:
            raise UserError(f"the scores in {folder.uri} belong to another data set than {root.uri}: score this one")
        with folder.errors("read the scores in"):
            table = read_scores(folder, manifest)
        if table["key"].to_pylist() != keys:
            raise UserError(f"the keys in {folder.uri} are not those of {root.uri}: score this data set again")
        return keys, table["score"].to_numpy()
    order = published_list(config.list, config.storage)
    rank = {key.removeprefix("images/"): position for position, key in enumerate(order)}
    found = np.asarray([rank.get(key.removeprefix("images/"), -1) for key in keys])
    missing = int((found < 0).sum())
    if missing == len(keys):
        raise UserError(f"none of the {len(keys):,} keys of {root.uri} is in {config.list} (first key '{keys[0]}', first "
                        f"entry '{order[0] if order else ''}'): the list belongs to another data set")
    if missing:
        say(f"select: {missing:,} of {len(keys):,} images are not in the list and rank last")
    return keys, np.where(found < 0, -float(len(order) + 1), -found.astype(float))


def locate(manifest: Manifest, keys: list[str], scores: np.ndarray, chosen: np.ndarray) -> pa.Table:
    """Where the chosen rows stand: file, row_group, row (within it), key, score; in the order of the shards."""
    files, groups, rows = [], [], []
    for entry in manifest.files:
        for group, count in enumerate(entry.row_groups):
            files.append(np.full(count, entry.name, object))
            groups.append(np.full(count, group, np.int32))
            rows.append(np.arange(count, dtype=np.int32))
    where = np.sort(np.asarray(chosen))
    return pa.table({"file": pa.array(np.concatenate(files)[where].tolist()),
                     "row_group": np.concatenate(groups)[where], "row": np.concatenate(rows)[where],
                     "key": [keys[index] for index in where], "score": np.asarray(scores, np.float64)[where]})


if __name__ == "__main__":
    run_program("select")
