"""The scores of a shard, or of all images, from the results of the actors or from kept features."""

from typing import Any

import numpy as np

from platform.engine.clustering.sharded_neighbors import sharded_neighbors
from platform.engine.data.parts import PARTS
from platform.engine.data.shards import Manifest
from platform.engine.errors import UserError
from platform.engine.inference.actors import Batch
from platform.engine.runtime.terminal import say
from platform.engine.schemas.score_settings import ScoreConfig
from platform.engine.selection.kept_features import PROXIES, KeptFeatures
from platform.engine.selection.scores import write_scores
from platform.engine.storage.location import Location
from reidssl.selection.cfs import MEASURE_OF, cfs_scores, group_scores, neighborhood_overlap


def measure_of(config: ScoreConfig) -> dict[str, Any]:
    """The measure and the settings that it uses, for the summary."""
    used = {"neighborhood": ("k", "search"), "group_neighborhood": ("k", "group", "seed"), "group_cka": ("group", "seed")}
    return {"measure": config.measure} | {name: getattr(config, name) for name in used.get(config.measure, ())}


def publish(config: ScoreConfig, output: Location, name: str, columns: Batch) -> None:
    """Write what is known of a shard: its features if they are kept, and its scores unless they need all images."""
    scope, keys, problems = MEASURE_OF[config.measure].scope, columns["key"].tolist(), columns["problem"]
    if "score" in columns:
        write_scores(output, name, keys, columns["score"], problems)
        return
    if config.features or (scope == "set" and not config.features_from):
        KeptFeatures(output).write(name, columns)
    if scope == "set":
        return
    good = np.flatnonzero(problems == "")
    if scope == "group" and len(good) == 1:
        alone = f"image '{keys[good[0]]}' is alone in its shard: {config.measure} has nothing to compare it with"
        problems[good], good = alone, good[:0]
    scores = np.zeros(len(keys), np.float32)
    if len(good):
        source, target = (columns[proxy][good] for proxy in PROXIES)
        finite = np.isfinite(source).all(1) & np.isfinite(target).all(1)
        if scope == "group" and not finite.all():
            raise UserError(
                f"{config.measure} compares images, and a proxy gave {(~finite).sum():,} of the {len(good):,} images of {name} "
                f"no finite feature, the first '{keys[good[finite.argmin()]]}': look for a diverged proxy or leave the image out"
            )
        if scope == "group":
            named = [keys[place] for place in good]
            scores[good] = group_scores(named, source, target, config.measure, config.k, config.group, config.seed)
        else:
            scores[good] = cfs_scores(source, target, config.measure).numpy()
    write_scores(output, name, keys, scores, problems)


def compare_neighborhoods(config: ScoreConfig, output: Location, kept: KeptFeatures, manifest: Manifest) -> None:
    """Compute the neighborhood scores of all images from their features."""
    if all((output / PARTS / entry.name).exists() for entry in manifest.files):
        return
    tables: list[np.ndarray] = []
    for proxy in PROXIES:
        say(f"score: {config.k} neighbors of {manifest.num_rows:,} images by the {proxy} proxy")
        tables.append(sharded_neighbors(kept.parts(proxy, manifest.files), config.k + 1, config.neighbors, config.search)[0])
    scores, used = neighborhood_overlap(tables[0], tables[1]), 0
    for entry in manifest.files:
        keys, problems = kept.rows(entry)
        good = problems == ""
        values = np.zeros(entry.rows, scores.dtype)
        values[good] = scores[used : used + int(good.sum())]
        write_scores(output, entry.name, keys, values, problems)
        used += int(good.sum())
