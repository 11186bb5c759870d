"""Catastrophic Forgetting Scores (CFS) of a data set: how well a model remembers each image after tuning to the target.

  python -m platform.score data=runs/demo/data/pretrain source_proxy=runs/proxy target_proxy=runs/target-proxy output=runs/scores
  python -m platform.score ... features=true                (also keep the features of both proxies)
  python -m platform.score data=runs/demo/data/pretrain features_from=runs/scores measure=group_cka output=runs/scores-cka

source_proxy: a pre-training run, or a checkpoint file. target_proxy: the same model fine-tuned to target data. load.* and
load_target.* supply what the files of the two proxies do not say. A high score means little forgetting and an image close to
the target domain (TransReID-SSL, section 3.3). The measures, for N images of feature width D:
  cosine              taken to be the paper's, which does not define its measure: cosine of the
                      two features of the image, in [-1, 1]. Cost N x D
  neighborhood        share of the image's k nearest images that the proxies agree on, in [0, 1].
                      Stores the features, shares the search among actors. Cost N x N x D;
                      search=ivf for millions of images
  group_neighborhood  the same within random groups of `group` images of a shard, in [0, 1].
                      One pass, constant memory. Cost N x group x D
  group_cka           part of the image in the linear CKA of the proxies on its group, in [-1, 1].
                      One pass, constant memory. Cost N x D x D
Scores are written shard by shard as Parquet (key, score, problem); an interrupted run continues with the missing shards. An
image that cannot be decoded has a null score and a problem with the reason, is counted in the summary and is never selected.
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelled key are answered at once
    run_program("score")

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from platform.engine.data.parts import PARTS, problems_in, write_parts
from platform.engine.data.set_aside import SetAside
from platform.engine.data.shards import FileEntry, Manifest, read_manifest
from platform.engine.errors import UserError, user_error_of
from platform.engine.inference.actors import Batch, stream_through_actors
from platform.engine.inference.models import LoadedModel, load_model
from platform.engine.runs.complete import say_complete
from platform.engine.runs.run_folder import SUMMARY, VOLATILE, open_run
from platform.engine.runtime.device import upload, use_threads
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import say
from platform.engine.schemas.score_settings import ScoreConfig
from platform.engine.selection.kept_features import FEATURES, PROXIES, KeptFeatures, kept_record, require_same
from platform.engine.selection.measuring import compare_neighborhoods, measure_of, publish
from platform.engine.selection.scores import summarize
from platform.engine.storage.location import Location, StorageConfig, open_storage
from platform.engine.storage.retry import patiently
from reidssl.models.given import LoadConfig
from reidssl.selection.cfs import MEASURE_OF, cfs_scores


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

    Raises UserError for unusable proxies, features or data, and for too many undecodable images.
    """
    for name, example in (("source_proxy", "runs/demo/pretrain/full"), ("target_proxy", "runs/demo/proxy/target")):
        if not (getattr(config, name) or config.features_from):
            raise UserError(f"{name} is empty: name that proxy's run folder, e.g. {name}={example}")
    root = open_storage(config.data, config.storage)
    if not (open_storage(config.output, config.storage) / SUMMARY).exists():  # check first: a wrong path must not be stored
        manifest = read_manifest(root)
        proxies = proxies_of(config, root, manifest)
    run = open_run("score", config.output, config, config.storage, volatile=(*VOLATILE, "neighbors"))
    if run.summary:
        say_complete(run, root)
        return run.summary
    run.pin({"data_checksum": manifest.checksum} | {f"{name}_weights": proxies[name]["weights"] for name in PROXIES})
    try:
        score(config, run.location, root, manifest, tuple(proxies["source"]["image_size"]))
    except Exception as error:
        raise user_error_of(error) or error from None
    set_aside = set_aside_of(config, root, manifest)
    for entry in manifest.files:  # including the shards scored by earlier starts
        set_aside.add(problems_in(run.location / PARTS / entry.name))
    run.finish(
        summarize(run.location, root, manifest)
        | set_aside.summary()
        | measure_of(config)
        | ({} if config.features_from else {"precision": config.pool.precision})
        | {f"{name}_proxy": proxies[name]["uri"] for name in PROXIES}
        | {
            "data": config.data,
            "data_checksum": manifest.checksum,
            "features": config.features_from or (config.output if config.features else ""),
            "proxies": {name: {fact: value for fact, value in proxies[name].items() if fact != "uri"} for name in PROXIES},
        }
    )
    return run.summary or {}


def score(config: ScoreConfig, output: Location, root: Location, manifest: Manifest, image_size: tuple[int, int]) -> None:
    """Write the missing parts of the scores. Shards pass through the actors, or their kept features are read."""
    whole = MEASURE_OF[config.measure].scope == "set"  # such a measure needs the features of all images first
    kept = KeptFeatures(open_storage(config.features_from, config.storage) if config.features_from else output)
    pending = [entry for entry in manifest.files if not (output / PARTS / entry.name).exists()]
    if whole:
        pending = [entry for entry in pending if not kept.has(entry.name)]
    done = manifest.num_rows - sum(entry.rows for entry in pending)
    say(f"score: {manifest.num_rows:,} images in {len(manifest.files)} shards, {done:,} scored before")
    if whole or not config.features_from:
        connect(config.runtime, "score", output.uri)
    if pending:
        batches = kept.batches(pending) if config.features_from else forward(config, root, manifest, pending, image_size)
        batches = set_aside_of(config, root, manifest).watch(batches)

        def write(name: str, columns: Batch) -> None:
            patiently(lambda: publish(config, output, name, columns), config.storage.retry_timeout_s, say)

        write_parts(pending, batches, write, done, manifest.num_rows, output.uri)
    if whole:
        compare_neighborhoods(config, output, kept, manifest)
        if not (config.features or config.features_from):
            kept.delete()


def forward(
    config: ScoreConfig, root: Location, manifest: Manifest, pending: Sequence[FileEntry], image_size: tuple[int, int]
) -> Iterator[Batch]:
    """The batches of the actors: "score", or "source" and "target" if the features are needed."""
    arguments = {
        "source_proxy": config.source_proxy,
        "target_proxy": config.target_proxy,
        "measure": config.measure if not config.features else FEATURES,
        "storage": config.storage,
        "threads": max(1, int(config.pool.cpus_per_actor)),
        "precision": config.pool.precision,
        "compiling": config.pool.compiling(manifest.num_rows),
        "load": config.load,
        "load_target": config.load_target,
    }
    return stream_through_actors([(root, pending)], Scorer, arguments, image_size, config.pool)


def proxies_of(config: ScoreConfig, root: Location, manifest: Manifest) -> dict[str, dict[str, Any]]:
    """What is known of the two models, as {"source": ..., "target": ...}, for the summary.

    Raises UserError for proxies that cannot be used (see `load_proxies`), and for kept features that are not of this data set and
    these proxies.
    """
    found = {
        name: {
            "uri": proxy.uri,
            "weights": proxy.weights,
            "image_size": list(proxy.image_size),
            "loaded": proxy.about.as_dict(),
            **proxy.origin,
        }
        for name, proxy in load_proxies(config, root).items()
    }
    if not config.features_from:
        return found
    folder = open_storage(config.features_from, config.storage)
    about = kept_record(folder)
    require_same(folder, about, manifest.checksum, found)
    return {name: {"uri": about[f"{name}_proxy"], **about["proxies"][name]} | found.get(name, {}) for name in PROXIES}


def load_proxies(config: ScoreConfig, root: Location) -> dict[str, LoadedModel]:
    """The models that are named, as {"source": ..., "target": ...}; the features of others must be kept.

    Raises UserError for a wrong path, for cameras of the data at `root` that a proxy does not know, and for two models with
    different architectures, of which neither can be the fine-tuned other.
    """
    proxies = {}
    for name, section in zip(PROXIES, ("load", "load_target"), strict=True):
        if uri := getattr(config, f"{name}_proxy"):
            proxies[name] = load_model(uri, config.storage, getattr(config, section), section)
            proxies[name].require_cameras(root, (), section)
            say(f"score: {uri}: {proxies[name].report}")
    if len(proxies) < len(PROXIES):
        return proxies
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


def set_aside_of(config: ScoreConfig, root: Location, manifest: Manifest) -> SetAside:
    """An empty counter of undecodable images, with the limit of pool.max_corrupt_share."""
    return SetAside(root.uri, manifest.num_rows, config.pool.max_corrupt_share, "pool.max_corrupt_share")
