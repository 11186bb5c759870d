"""Select a subset of a data set: the images with the best scores, or a random part. Writes an index, copies no images.

  python -m platform.select data=runs/demo/data/pretrain scores=runs/scores output=runs/selection fraction=0.5
  python -m platform.select data=s3://bucket/luperson list=cfs_list.pkl fraction=0.5 output=s3://bucket/selection
  python -m platform.select data=runs/demo/data/pretrain random=true output=runs/control     (the control of any selection)
  python -m platform.select ... count=20000          (or threshold=0.9; inverse=true keeps the worst instead)
  python -m platform.select ... among=0.75         (a half drawn at random among the best three quarters)
  python -m platform.select ... stratify=camid floor=0.25          (at least the best quarter of every camera)
  python -m platform.select ... duplicates.similarity=0.98         (scores of platform.score features=true)
  python -m platform.select ... materialize=true write_list=true   (also new shards, and a list in the published format)
  python -m platform.select ... reference=cfs_list.pkl             (also: how far the scores agree with another ranking)
  python -m platform.select data=runs/demo/data/pretrain compare=[runs/scores,cfs_list.pkl,runs/control] output=runs/agreement

list: a published ranking to use instead of scores: a pickled list of paths, best first. It is read without executing any code.
Its paths may be absolute, begin with ./ or contain backslashes. It must name as many images of the data set as the fraction asks
for; with allow_short=true it may name fewer, and only the named images are kept.
`platform.pretrain data.selection=...` reads the index (file, row_group, row, key, score).
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelled key are answered at once
    run_program("select")

from typing import Any

import numpy as np
import pyarrow as pa

from platform.engine.clustering.sharded_neighbors import sharded_neighbors
from platform.engine.data.parts import write_table
from platform.engine.data.shards import Manifest, read_manifest, read_rows
from platform.engine.errors import UserError
from platform.engine.runs.complete import say_complete
from platform.engine.runs.run_folder import SUMMARY, VOLATILE, open_run
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import say
from platform.engine.schemas.select_settings import SelectConfig
from platform.engine.selection.comparison import compared, comparison
from platform.engine.selection.kept_features import features_behind
from platform.engine.selection.materialize import materialize, row_groups_of
from platform.engine.selection.rankings import (
    SELECTION,
    Ranking,
    any_ranking,
    listed_ranking,
    random_ranking,
    refused_as_user_error,
    scored_ranking,
)
from platform.engine.storage.location import Location, open_storage
from platform.engine.stream.units import INDEX
from reidssl.selection.distinct import without_duplicates
from reidssl.selection.published import published_list
from reidssl.selection.subset import count_of, select_best, select_stratified

LIST, SHARDS = "list.pkl", "data"


def main(config: SelectConfig) -> dict[str, Any]:
    """Write the selection, or the comparison. Returns the summary. Raises UserError for input that cannot be used."""
    if not (config.scores or config.list or config.random or config.compare):
        raise UserError("nothing to select by: give scores=<folder of platform.score>, list=<published order> or random=true")
    output = open_storage(config.output, config.storage)
    complete = (output / SUMMARY).exists()
    if not complete:
        read_manifest(open_storage(config.data, config.storage))
        output.prepare_output()
    # Select first: refused input must not become the configuration of the output folder.
    root = open_storage(config.data, config.storage)
    index, summary = (None, {}) if complete else comparison(config, root) if config.compare else select(config, root)
    run = open_run("select", config.output, config, config.storage, volatile=(*VOLATILE, "neighbors"))
    if complete:
        say_complete(run, root)
        return run.summary or {}
    if index is not None:
        publish(config, root, run.location, index, summary)
    run.finish(summary)
    return run.summary or {}


def publish(config: SelectConfig, root: Location, output: Location, index: pa.Table, summary: dict[str, Any]) -> None:
    """Write the index, and the list and the shards if they are asked for."""
    write_table(output / INDEX, index)
    if config.write_list:
        keys, scores = index["key"].to_pylist(), index["score"].to_numpy() * (-1 if config.inverse else 1)
        (output / LIST).write_bytes(published_list([keys[place] for place in select_best(keys, scores, len(keys))]))
    if config.materialize:
        connect(config.runtime, "select", config.output)
        made = materialize(root, read_manifest(root), index, output / SHARDS, config.shard_mb << 20)
        summary["shards"] = {"uri": (output / SHARDS).uri, "data_checksum": made.checksum, "bytes": made.num_bytes}
    (output / SELECTION).write_json(summary)
    say(
        f"select: kept {summary['selected']:,} of {summary['total']:,} images "
        f"({summary['selected'] / summary['total']:.0%}) in {output.uri}"
    )
    if not config.materialize and summary["read_share"] > 1.2 * summary["selected"] / summary["total"]:
        say(
            f"select: they are scattered: an epoch reads {summary['read_share']:.0%} of the data set's row groups; "
            "materialize=true writes the images as shards of their own"
        )


def select(config: SelectConfig, root: Location) -> tuple[pa.Table, dict[str, Any]]:
    """(index, summary) of the selection. Raises UserError for input that belongs to another data set or is broken."""
    manifest = read_manifest(root)
    keys = read_rows(root, ["key"])["key"].to_pylist()
    ranking = ranking_of(config, manifest, keys)
    summary: dict[str, Any] = {"by": ranking.record, "inverse": config.inverse}
    if config.reference:
        other = any_ranking(open_storage(config.reference, config.storage), config.data, manifest, keys)
        summary["agreement"] = compared(config, keys, ranking, other, f"with {config.reference}")
        summary["reference"] = other.record
    better = -ranking.values if config.inverse else ranking.values
    places = ranking.ranked
    undecodable = len(keys) - len(places) if ranking.kind == "scores" else 0
    wanted = count_of(len(keys) - undecodable, config.fraction)
    if config.duplicates.similarity:
        places = distinct(config, manifest, places, keys, better)
        summary["near_duplicates"] = len(ranking.ranked) - len(places)
    if config.threshold is not None:
        wanted = passing(config, ranking.values[places])
    if config.among:
        places, better = drawn(config, places, keys, better)
    wanted = enough(config, len(places), config.count or wanted, len(keys) - undecodable)
    chosen = places[best_of(config, root, [keys[place] for place in places], better[places], places, wanted)]
    index = locate(manifest, keys, ranking.values, chosen)
    touched = {(file, group) for file, group, _ in row_groups_of(index)}
    rows = {(entry.name, group): count for entry in manifest.files for group, count in enumerate(entry.row_groups)}
    summary |= {
        "data": config.data,
        "data_checksum": manifest.checksum,
        "total": len(keys),
        "corrupt_images": undecodable,
        "selected": len(chosen),
        "fraction": len(chosen) / (len(keys) - undecodable),
        "read_share": sum(rows[group] for group in touched) / len(keys),
    }
    if config.scores:  # ranks of a list and random numbers have no meaningful threshold
        summary["threshold"] = float((np.max if config.inverse else np.min)(ranking.values[chosen]))
    if "planted" in manifest.extra_columns:
        planted = read_rows(root, ["planted"])["planted"].to_numpy().astype(bool)
        summary["planted_share"] = {"all": float(planted.mean()), "selected": float(planted[chosen].mean())}
    return index, summary


def ranking_of(config: SelectConfig, manifest: Manifest, keys: list[str]) -> Ranking:
    """The ranking that decides: scores, a list or chance."""
    if config.random:
        return random_ranking(config.seed, keys)
    if config.list:
        return listed_ranking(open_storage(config.list, config.storage), keys)
    return scored_ranking(open_storage(config.scores, config.storage), config.data, manifest, keys)


def passing(config: SelectConfig, scores: np.ndarray) -> int:
    """Number of `scores` that pass the threshold. Raises UserError if there is none."""
    limit = float(config.threshold or 0.0)
    count = int((scores <= limit).sum() if config.inverse else (scores >= limit).sum())
    if not count:
        raise UserError(
            f"threshold={limit:g} keeps no image: the scores in {config.scores} are from {scores.min():g} to {scores.max():g}"
        )
    return count


def enough(config: SelectConfig, found: int, wanted: int, total: int) -> int:
    """`wanted`, or `found` if there are fewer and config.allow_short. Raises UserError if there are fewer.

    Args:
        found: images that can be selected; wanted: images asked for; total: all images that can be decoded.
    """
    if found >= wanted:
        return wanted
    asked = f"count={config.count}" if config.count else f"fraction={config.fraction:g}"
    if config.list:
        short, advice = (
            f"{config.list} names {found:,} of the {total:,} images of {config.data}",
            "give the list of this data set",
        )
    else:
        short = f"{found:,} of the {total:,} images of {config.data} can be selected"
        advice = "raise duplicates.similarity" if config.duplicates.similarity else "raise among" if config.among else ""
    short += f", {asked} asks for {wanted:,}"
    share = np.floor(1e4 * found / total) / 1e4
    ways = [f"set count={found} or less" if config.count or not share else f"set fraction={share:g} or less"]
    ways += [f"allow_short=true to keep the {found:,}"] if config.list or config.duplicates.similarity else []
    ways += [f"or {advice}"] if advice else []
    if not config.allow_short:
        raise UserError(f"{short}: {', '.join(ways)}")
    say(f"select: {short}; the {found:,} are kept (allow_short)")
    return found


def distinct(config: SelectConfig, manifest: Manifest, places: np.ndarray, keys: list[str], better: np.ndarray) -> np.ndarray:
    """`places` (ascending positions of all images with a score) without near duplicates of better images.

    Raises UserError if the features were not kept, or do not fit the scores.
    """
    how, folder = config.duplicates, open_storage(config.scores, config.storage)
    kept = features_behind(folder)
    connect(config.runtime, "select", config.output)
    parts = kept.parts("source", manifest.files)
    if sum(part.rows for part in parts) != len(places):
        raise UserError(f"the features in {kept.folder.uri} are not those of the scores in {folder.uri}: score again")
    say(f"select: {how.k} neighbors of {len(places):,} images, to find near duplicates")
    near, similarities = sharded_neighbors(parts, how.k + 1, how.neighbors, how.search)
    order = select_best([keys[place] for place in places], better[places], len(places))
    full = int((similarities[:, -1] >= how.similarity).sum()) if how.k + 1 < len(places) else 0
    if full:
        say(f"select: {full:,} images have more than {how.k} near duplicates; a larger duplicates.k finds more of them")
    with refused_as_user_error(folder.uri):
        found = places[without_duplicates(order, near, similarities, how.similarity)]
    say(f"select: {len(places) - len(found):,} near duplicates of better images are left out")
    return found


def drawn(config: SelectConfig, places: np.ndarray, keys: list[str], better: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the best share `among` of `places`, ascending; a random order of all images in place of `better`)."""
    share = count_of(len(places), config.among)
    best = select_best([keys[place] for place in places], better[places], share)
    return np.sort(places[best]), random_ranking(config.seed, keys).values


def best_of(
    config: SelectConfig, root: Location, keys: list[str], better: np.ndarray, places: np.ndarray, wanted: int
) -> np.ndarray:
    """Positions in `keys` of the images to keep.

    keys, better: keys and scores of the candidates; places: their positions in the data set.
    """
    with refused_as_user_error(config.scores or config.list or config.data):
        if not config.stratify:
            return select_best(keys, better, wanted)
        if config.stratify == "folder":
            strata = np.asarray([key.rpartition("/")[0] for key in keys])
        else:
            strata = np.asarray(read_rows(root, [config.stratify])[config.stratify].take(places).to_pylist()).astype(str)
        return select_stratified(keys, better, wanted, strata, config.floor)


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
