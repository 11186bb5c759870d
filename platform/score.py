"""Catastrophic Forgetting Scores (CFS) of a data set: how well a model remembers each image after tuning to the target.

  python -m platform.score data=runs/demo/data/pretrain source_proxy=runs/proxy target_proxy=runs/target-proxy output=runs/scores

source_proxy: a pre-training run, or a checkpoint file. target_proxy: the same model fine-tuned to target data. load.* and
load_target.* supply what the files of the two proxies do not say. A high score means little forgetting and an image close to
the target domain (TransReID-SSL, section 3.3). The measures:
  cosine         cosine of the two proxies' features of the image, in [-1, 1]
  neighborhood   share of the image's k nearest images that the two proxies agree on, in [0, 1]. The features are stored
                 as Parquet below output, and actors share the search (search=ivf for millions of images)
Scores are written shard by shard as Parquet (key, score, problem); an interrupted run continues with the missing shards. An
image that cannot be decoded has a null score and a problem with the reason, is counted in the summary and is never selected.
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelled key are answered at once
    run_program("score")

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from platform.engine.clustering.sharded_neighbors import sharded_neighbors
from platform.engine.data.parts import PARTS, PROBLEM, as_column, problems_in, write_parts, write_table
from platform.engine.data.set_aside import SetAside
from platform.engine.data.shards import Manifest, read_manifest, read_rows
from platform.engine.errors import UserError, user_error_of
from platform.engine.inference.actors import stream_through_actors
from platform.engine.inference.features import FEATURE, stored_parts
from platform.engine.inference.models import LoadedModel, load_model
from platform.engine.runs.run_folder import SUMMARY, VOLATILE, open_run
from platform.engine.runtime.device import upload, use_threads
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import say
from platform.engine.schemas.score_settings import ScoreConfig
from platform.engine.storage.location import Location, StorageConfig, open_storage
from reidssl.models.given import LoadConfig
from reidssl.selection.cfs import auc, cfs_scores, neighborhood_overlap

FEATURES = "features"


class Scorer:
    """Actor that holds both proxies and runs one forward pass of each.

    It returns the score of each image or, for measures that compare images, its two features. Batches have "image" uint8
    (B, 3, H, W), "camid", "key", "file" and "problem".
    """

    def __init__(
        self,
        source_proxy: str,
        target_proxy: str,
        measure: str,
        storage: StorageConfig,
        threads: int,
        precision: str,
        compiling: str,
        load: LoadConfig,
        load_target: LoadConfig,
    ) -> None:
        use_threads(threads)
        how = {"precision": precision, "compiling": compiling}
        self.source = load_model(source_proxy, storage, load, **how)
        self.target = load_model(target_proxy, storage, load_target, "load_target", **how)
        self.measure = measure

    @torch.inference_mode()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = upload(np.ascontiguousarray(batch["image"]))
        source, target = (model.features(images, batch["camid"]) for model in (self.source, self.target))
        found = {"score": cfs_scores(source, target)} if self.measure == "cosine" else {"source": source, "target": target}
        arrays = {name: each.float().cpu().numpy() for name, each in found.items()}
        return {name: batch[name] for name in ("key", "file", "problem")} | arrays


def main(config: ScoreConfig) -> dict[str, Any]:
    """Score the images that have no score yet. Returns the summary.

    Raises UserError for unusable proxies or data, and for too many undecodable images.
    """
    for name, example in (("source_proxy", "runs/demo/pretrain/full"), ("target_proxy", "runs/demo/proxy/target")):
        if not getattr(config, name):
            raise UserError(f"{name} is empty: name that proxy's run folder, e.g. {name}={example}")
    root = open_storage(config.data, config.storage)
    if not (open_storage(config.output, config.storage) / SUMMARY).exists():  # check first: a wrong path must not be stored
        manifest = read_manifest(root)
        proxies = load_proxies(config, root)
    run = open_run("score", config.output, config, config.storage, volatile=(*VOLATILE, "neighbors"))
    if run.summary:
        say(f"score: {run.location.uri} is complete already")
        return run.summary
    run.pin({"data_checksum": manifest.checksum} | {f"{name}_weights": proxy.weights for name, proxy in proxies.items()})
    # The measure "neighborhood" compares images, so it needs the features of all images first.
    done_in = [run.location / PARTS] + [run.location.joinpath(FEATURES, "target")] * (config.measure == "neighborhood")
    pending = [entry for entry in manifest.files if not any((folder / entry.name).exists() for folder in done_in)]
    done = manifest.num_rows - sum(entry.rows for entry in pending)
    say(f"score: {manifest.num_rows:,} images in {len(manifest.files)} shards, {done:,} scored before")
    connect(config.runtime, "score", run.location.uri)
    arguments = {
        "source_proxy": config.source_proxy,
        "target_proxy": config.target_proxy,
        "measure": config.measure,
        "storage": config.storage,
        "threads": max(1, int(config.pool.cpus_per_actor)),
        "precision": config.pool.precision,
        "compiling": config.pool.compiling(manifest.num_rows),
        "load": config.load,
        "load_target": config.load_target,
    }
    try:
        if pending:
            batches = stream_through_actors(root, pending, Scorer, arguments, proxies["source"].image_size, config.pool)
            batches = set_aside_of(config, root, manifest).watch(batches)
            write_parts(pending, batches, partial(publish, run.location), done, manifest.num_rows, run.location.uri)
        if config.measure == "neighborhood":
            compare_neighborhoods(config, run.location, root, manifest)
    except Exception as error:
        raise user_error_of(error) or error from None
    set_aside = set_aside_of(config, root, manifest)
    for entry in manifest.files:  # including the shards scored by earlier starts
        set_aside.add(problems_in(run.location / PARTS / entry.name))
    run.finish(
        summarize(run.location, root, manifest)
        | set_aside.summary()
        | measure_of(config)
        | {
            "source_proxy": config.source_proxy,
            "target_proxy": config.target_proxy,
            "data": config.data,
            "data_checksum": manifest.checksum,
            "proxies": {
                name: {
                    "weights": proxy.weights,
                    "image_size": list(proxy.image_size),
                    "loaded": proxy.about.as_dict(),
                    **proxy.origin,
                }
                for name, proxy in proxies.items()
            },
        }
    )
    return run.summary or {}


def load_proxies(config: ScoreConfig, root: Location) -> dict[str, LoadedModel]:
    """The two models as {"source": ..., "target": ...}.

    Raises UserError for a wrong path, for cameras of the data at `root` that a proxy does not know, and for two models with
    different architectures, of which neither can be the fine-tuned other.
    """
    proxies = {
        "source": load_model(config.source_proxy, config.storage, config.load),
        "target": load_model(config.target_proxy, config.storage, config.load_target, "load_target"),
    }
    for section, proxy in zip(("load", "load_target"), proxies.values(), strict=True):
        proxy.require_cameras(root, (), section)
        say(f"score: {proxy.uri}: {proxy.report}")
    source, target = (proxy.backbone.config for proxy in proxies.values())
    for name in ("image_size", "width", "depth", "patch_size", "stem"):
        if getattr(source, name) != getattr(target, name):
            raise UserError(
                f"the proxies are not of one model: {name} is {getattr(source, name)} in source_proxy={config.source_proxy} and "
                f"{getattr(target, name)} in target_proxy={config.target_proxy}. The target proxy is the source proxy "
                "fine-tuned: give its run of platform.finetune as target"
            )
    if proxies["source"].weights == proxies["target"].weights:
        say(f"score: warning: source and target hold the same weights ({proxies['source'].weights}), so nothing was forgotten")
    return proxies


def measure_of(config: ScoreConfig) -> dict[str, Any]:
    """The measure, the precision of the features and the settings that the measure uses, for the summary."""
    used = {"k": config.k, "search": config.search} if config.measure == "neighborhood" else {}
    return {"measure": config.measure, "precision": config.pool.precision, **used}


def set_aside_of(config: ScoreConfig, root: Location, manifest: Manifest) -> SetAside:
    """An empty counter of undecodable images, with the limit of pool.max_corrupt_share."""
    return SetAside(root.uri, manifest.num_rows, config.pool.max_corrupt_share, "pool.max_corrupt_share")


def publish(output: Location, name: str, columns: dict[str, np.ndarray]) -> None:
    """Write the scores of a shard, or its features by both proxies.

    The target's features are written last: their file marks the shard as done.
    """
    if "score" in columns:
        write_scores(output, name, columns["key"].tolist(), columns["score"], columns["problem"])
        return
    for proxy in ("source", "target"):
        write_table(
            output.joinpath(FEATURES, proxy, name),
            pa.table({FEATURE: as_column(columns[proxy]), PROBLEM: columns["problem"].tolist()}),
        )


def compare_neighborhoods(config: ScoreConfig, output: Location, root: Location, manifest: Manifest) -> None:
    """Compute the neighborhood scores from the stored features of all images, then delete the features."""
    if all((output / PARTS / entry.name).exists() for entry in manifest.files):
        return
    tables: list[np.ndarray] = []
    for proxy in ("source", "target"):
        say(f"score: {config.k} neighbors of {manifest.num_rows:,} images by the {proxy} proxy")
        parts = stored_parts(output.joinpath(FEATURES, proxy, entry.name) for entry in manifest.files)
        tables.append(sharded_neighbors(parts, config.k + 1, config.neighbors, config.search)[0])
    scores = neighborhood_overlap(tables[0], tables[1])
    keys, start, used = read_rows(root, ["key"])["key"].to_pylist(), 0, 0
    for entry in manifest.files:
        problems = problems_in(output.joinpath(FEATURES, "target", entry.name))
        good = problems == ""
        values = np.zeros(entry.rows, scores.dtype)
        values[good] = scores[used : used + int(good.sum())]
        write_scores(output, entry.name, keys[start : start + entry.rows], values, problems)
        start, used = start + entry.rows, used + int(good.sum())
    (output / FEATURES).delete()


def write_scores(output: Location, name: str, keys: list[str], scores: np.ndarray, problems: np.ndarray) -> None:
    """Write one row for every key of the shard; the score is null for keys with a problem."""
    write_table(
        output / PARTS / name,
        pa.table({"key": keys, "score": pa.array(scores, mask=(problems != "").astype(bool)), PROBLEM: problems.tolist()}),
    )


def summarize(output: Location, root: Location, manifest: Manifest) -> dict[str, Any]:
    """Distribution of the scores. If the data has a `planted` column, also the AUC with which they rank planted images low."""
    column = read_scores(output, manifest)["score"]
    scored = column.is_valid().to_numpy()
    scores = column.drop_null().to_numpy()
    summary: dict[str, Any] = {
        "total": len(column),
        "mean": float(scores.mean()),
        "std": float(scores.std()),
        "quantiles": [float(q) for q in np.quantile(scores, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])],
    }
    if "planted" in manifest.extra_columns:
        planted = read_rows(root, ["planted"])["planted"].to_numpy().astype(bool)[scored]
        if planted.any() and not planted.all():
            summary["auc_planted"] = float(auc(scores, ~planted))
    return summary


def read_scores(output: Location, manifest: Manifest) -> pa.Table:
    """Table (key, score) of every image in the order of the shards; the score is null for images that cannot be decoded."""
    tables = []
    for entry in manifest.files:
        with (output / PARTS / entry.name).open_input() as file:
            tables.append(pq.read_table(file, columns=["key", "score"]))
    return pa.concat_tables(tables)
