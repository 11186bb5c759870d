"""Select a subset of a data set: the share with the best scores, or a random one. Writes an index, copies no images.

  python -m platform.select data=runs/demo/data/pretrain scores=runs/scores output=runs/selection fraction=0.5
  python -m platform.select data=s3://bucket/luperson list=cfs_list.pkl fraction=0.5 output=s3://bucket/selection
  python -m platform.select ... reference=cfs_list.pkl      (also: how far the scores agree with a published order)
  python -m platform.select data=runs/demo/data/pretrain random=true output=runs/control      (the control of any selection)

list: a published ranking to use instead of scores: a pickled list of paths, best first. It is read without executing any code.
Its paths may be absolute, begin with ./ or contain backslashes. It must name as many images of the data set as the fraction asks
for; with allow_short=true it may name fewer, and only the named images are kept.
`platform.pretrain data.selection=...` reads the index (file, row_group, row, key, score).
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelled key are answered at once
    run_program("select")

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from platform.engine.data.parts import write_table
from platform.engine.data.shards import Manifest, read_manifest, read_rows
from platform.engine.errors import UserError
from platform.engine.runs.json_records import read_record
from platform.engine.runs.run_folder import SUMMARY, open_run
from platform.engine.runtime.terminal import say
from platform.engine.schemas.select_settings import SelectConfig
from platform.engine.selection.scores import read_scores
from platform.engine.storage.location import StorageConfig, open_storage
from platform.engine.stream.units import INDEX
from reidssl.seeding import sample_seeds, uniforms
from reidssl.selection.agreement import agreement
from reidssl.selection.matching import match_entries
from reidssl.selection.subset import load_published_list, select_top


def main(config: SelectConfig) -> dict[str, Any]:
    """Write the index and its manifest. Returns the summary. Raises UserError for input that cannot be used."""
    if not (config.scores or config.list or config.random):
        raise UserError("nothing to select by: give scores=<folder of platform.score>, list=<published order> or random=true")
    output = open_storage(config.output, config.storage)
    complete = (output / SUMMARY).exists()
    if not complete:
        output.prepare_output()
    # Select first: refused input must not become the configuration of the output folder.
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
    """(index, summary) of the selection. Raises UserError for input that belongs to another data set or is broken."""
    root = open_storage(config.data, config.storage)
    manifest = read_manifest(root)
    keys = read_rows(root, ["key"])["key"].to_pylist()
    scores, listed, by = scored(config, manifest, keys)
    places = np.flatnonzero(~np.isnan(scores))
    if not len(places):
        raise UserError(f"none of the {len(keys):,} images of {root.uri} has a score: none of them could be decoded")
    candidates = [keys[place] for place in places]
    summary: dict[str, Any] = {"by": by}
    if config.reference:
        summary |= compared(config, candidates, scores[places])
    with refused_as_user_error(config.scores or config.list or config.data):
        chosen = places[select_top(candidates, scores[places], config.fraction)]
    if listed is not None:
        chosen = listed_only(config, chosen, listed)
    summary |= {
        "data": config.data,
        "data_checksum": manifest.checksum,
        "total": len(keys),
        "corrupt_images": len(keys) - len(places),
        "selected": len(chosen),
        "fraction": config.fraction,
    }
    if config.scores:  # ranks of a list and random numbers have no meaningful threshold
        summary["threshold"] = float(np.min(scores[chosen]))
    if "planted" in manifest.extra_columns:
        planted = read_rows(root, ["planted"])["planted"].to_numpy().astype(bool)
        summary["planted_share"] = {"all": float(planted.mean()), "selected": float(planted[chosen].mean())}
    return locate(manifest, keys, scores, chosen), summary


def compared(config: SelectConfig, keys: list[str], scores: np.ndarray) -> dict[str, Any]:
    """Agreement of the scores with the reference ranking, over the images that it names."""
    found, about = matched(config.reference, config.storage, keys)
    order = [keys[place] for place in np.argsort(found, kind="stable") if found[place] >= 0]
    with refused_as_user_error(config.reference):
        agreed = agreement(keys, scores, order, config.fraction)
    say(f"agreement with {config.reference}: {agreed}")
    return {"agreement": agreed, "reference": about}


def listed_only(config: SelectConfig, chosen: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """`chosen` without the images that the list does not name.

    Raises UserError if images are left out, unless config.allow_short.

    Args:
        chosen: int (M,) indices of the selected images.
        listed: bool (N,), whether the list names an image.
    """
    kept = chosen[listed[chosen]]
    if len(kept) < len(chosen):
        share = np.floor(1e4 * len(kept) / len(listed)) / 1e4
        short = (
            f"{config.list} names {len(kept):,} of the {len(listed):,} images of {config.data}, "
            f"fraction={config.fraction:g} asks for {len(chosen):,}"
        )
        if not config.allow_short:
            raise UserError(
                f"{short}: set fraction={share:g} or less, allow_short=true to keep the {len(kept):,}, or give "
                "the list of this data set"
            )
        say(f"select: {short}; the {len(kept):,} are kept (allow_short)")
    return kept


def matched(uri: str, storage: StorageConfig, keys: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """(ranks, record) of a published list: the rank of each key in it, -1 if it is not named, and facts for the summary.

    Raises UserError if the file is anything but a pickled list of strings (in particular if the pickle holds code), if it names
    an image twice, or if it names no image of this data set.
    """
    file = open_storage(uri, storage)
    content = file.read_bytes()
    with refused_as_user_error(file.uri):
        entries = load_published_list(content)
        found = match_entries(entries, keys)
    unlisted = int((found.places < 0).sum())
    if unlisted == len(keys):
        raise UserError(
            f"none of the {len(keys):,} keys is in {uri} (first key '{keys[0]}', first entry '{entries[0]}'): the "
            "list belongs to another data set"
        )
    for side, prefix in (("list has", found.entry_prefix), ("keys have", found.key_prefix)):
        if prefix:
            say(f"select: the {side} '{prefix}' before the paths; it is left out")
    if found.absent:
        shown = ", ".join(f"'{entry}'" for entry in found.absent[:3])
        say(f"select: {len(found.absent):,} of {len(entries):,} entries of the list name no image of the data set, e.g. {shown}")
    return found.places, {
        "uri": uri,
        "sha256": hashlib.sha256(content).hexdigest(),
        "entries": len(entries),
        "absent_from_data": len(found.absent),
        "absent_from_list": unlisted,
    }


@contextmanager
def refused_as_user_error(name: str) -> Iterator[None]:
    """Context manager: turns a ValueError of the library into a UserError that names the input file `name`."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None


def scored(config: SelectConfig, manifest: Manifest, keys: list[str]) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """(scores, listed, record): a score for each key, which keys the list names (None: no list), and facts for the summary.

    With a published list, the score is minus the rank in it. For a random subset it is uniform in [0, 1). NaN marks an image that
    could not be decoded and is never selected. Raises UserError for missing, foreign or non-finite scores.
    """
    if config.random:
        return uniforms(sample_seeds(config.seed, 0, keys), 1)[:, 0], None, {"kind": "random", "seed": config.seed}
    if config.list:
        places, about = matched(config.list, config.storage, keys)
        return np.where(places < 0, -float(about["entries"]), -places.astype(float)), places >= 0, {"kind": "list", **about}
    folder = open_storage(config.scores, config.storage)
    if not (folder / SUMMARY).exists():
        raise UserError(f"{folder.uri} holds no finished scores: run platform.score to its end first")
    about = read_record(folder / SUMMARY, "data_checksum", str, "give the folder that platform.score wrote as scores")
    if about["data_checksum"] != manifest.checksum:
        raise UserError(
            f"the scores in {folder.uri} belong to another data set than {config.data}: score this one (their "
            f"checksum {about['data_checksum'][:12]}, this one's {manifest.checksum[:12]})"
        )
    with folder.errors("read the scores in"):
        table = read_scores(folder, manifest)
    if table["key"].to_pylist() != keys:
        raise UserError(f"the keys in {folder.uri} are not those of {config.data}: score this data set again")
    scores = table["score"].to_numpy()
    missing = np.isnan(scores) & table["score"].is_valid().to_numpy()  # null is an undecodable image, NaN is an error
    if missing.any():
        raise UserError(
            f"{config.scores}: {int(missing.sum())} of {len(keys)} scores are NaN, the first that of "
            f"'{keys[int(missing.argmax())]}': the proxies gave no finite feature there; score again with "
            "other proxies"
        )
    names = ("measure", "k", "search", "source_proxy", "target_proxy", "proxies")
    taken: dict[str, Any] = {name: about[name] for name in names if name in about}
    return scores, None, {"kind": "scores", "uri": config.scores, **taken}


def locate(manifest: Manifest, keys: list[str], scores: np.ndarray, chosen: np.ndarray) -> pa.Table:
    """The index: table (file, row_group, row within the row group, key, score) of the chosen images, in the order of the shards.

    chosen: int indices of the selected images.
    """
    files, groups, rows = [], [], []
    for entry in manifest.files:
        for group, count in enumerate(entry.row_groups):
            files.append(np.full(count, entry.name, object))
            groups.append(np.full(count, group, np.int32))
            rows.append(np.arange(count, dtype=np.int32))
    where = np.sort(np.asarray(chosen))
    return pa.table(
        {
            "file": pa.array(np.concatenate(files)[where].tolist()),
            "row_group": np.concatenate(groups)[where],
            "row": np.concatenate(rows)[where],
            "key": [keys[index] for index in where],
            "score": np.asarray(scores, np.float64)[where],
        }
    )
