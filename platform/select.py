"""The selected subset: the best-scored share of a data set, or a random one, as an index, without copying an image.

  python -m platform.select data=runs/demo/data/pretrain scores=runs/scores output=runs/selection fraction=0.5
  python -m platform.select data=s3://bucket/luperson list=cfs_list.pkl fraction=0.5 output=s3://bucket/selection
  python -m platform.select ... reference=cfs_list.pkl      (also: how far the scores agree with a published order)
  python -m platform.select data=runs/demo/data/pretrain random=true output=runs/control      (the control of any selection)

list: a published order, best first (a pickled list of paths; read without executing anything), in place of scores. Its paths may
be absolute, begin with ./ or have backslashes. It must name as many images of the data set as the fraction asks for, or
allow_short=true: then those that it names are kept, and no others.
The index (file, row_group, row, key, score) is what `platform.pretrain data.selection=...` reads.
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
from platform.engine.storage.location import StorageConfig, open_storage
from platform.engine.stream.units import INDEX
from platform.score import read_scores
from reidssl.seeding import sample_seeds, uniforms
from reidssl.selection.cfs import agreement
from reidssl.selection.matching import match_entries
from reidssl.selection.subset import load_published_list, select_top


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
    if config.scores:  # a place in a list and a random number are no scores
        summary["threshold"] = float(np.min(scores[chosen]))
    if "planted" in manifest.extra_columns:
        planted = read_rows(root, ["planted"])["planted"].to_numpy().astype(bool)
        summary["planted_share"] = {"all": float(planted.mean()), "selected": float(planted[chosen].mean())}
    return locate(manifest, keys, scores, chosen), summary


def compared(config: SelectConfig, keys: list[str], scores: np.ndarray) -> dict[str, Any]:
    """How far the scores agree with the reference's order, of the images that it names."""
    found, about = matched(config.reference, config.storage, keys)
    order = [keys[place] for place in np.argsort(found, kind="stable") if found[place] >= 0]
    with refused_as_user_error(config.reference):
        agreed = agreement(keys, scores, order, config.fraction)
    say(f"agreement with {config.reference}: {agreed}")
    return {"agreement": agreed, "reference": about}


def listed_only(config: SelectConfig, chosen: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """`chosen` without what the list does not name. UserError if that makes it smaller than asked for, unless allowed."""
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
    """For each key its place in the published list, -1 if it has none; and what to record of the list.

    UserError for anything but a list of strings, code in the pickle above all, for images named twice, and for a list that names
    nothing of this data set.
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
    """The library refuses bad input with ValueError; here it is the user's file, so name it."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None


def scored(config: SelectConfig, manifest: Manifest, keys: list[str]) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """A score for each key, which of them are known at all (None: all), and what the scores are, for the records.

    With a published list the score is minus the place in it; random: any in [0, 1). NaN: an image that could not be
    decoded and is never selected.
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
    missing = np.isnan(scores) & table["score"].is_valid().to_numpy()  # not those that could not be decoded, which have none
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
    """Where the chosen rows stand: file, row_group, row (within it), key, score; in the order of the shards."""
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
