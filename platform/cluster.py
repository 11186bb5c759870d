"""Cluster the images of a data set of any size into pseudo-identities: features, neighbors, Jaccard distance, clusters.

  python -m platform.cluster checkpoint=runs/usl data=runs/demo/data/pretrain output=runs/clusters
  python -m platform.cluster checkpoint=s3://bucket/runs/usl data=s3://bucket/luperson output=s3://bucket/clusters \\
      cluster.search=ivf neighbors.actors=16 neighbors.cpus_per_actor=8

load.* supplies what the checkpoint file does not say, e.g. load.heads=12. A pool of actors computes the features and stores them
shard by shard as Parquet; an interrupted run continues with the missing shards. With neighbors.actors, actors share the search
and the Jaccard distance: each loads some of the feature files, so no machine holds all features. This program then holds only
the neighbor table, the weights of each image over its neighbors and the distances (some kB per image), and clusters them.
Result: labels.parquet (key, label, problem; label -1: outlier). An image that cannot be decoded is not clustered: its label is
-1, its problem gives the reason, and the summary counts it.
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelled key are answered at once
    run_program("cluster")

import time
from typing import Any

import numpy as np
import pyarrow as pa

from platform.engine.clustering.sharded_labels import sharded_labels
from platform.engine.data.parts import PARTS, PROBLEM, as_column, problems_in, write_parts, write_table
from platform.engine.data.people import DISTRACTOR, read_people
from platform.engine.data.set_aside import SetAside
from platform.engine.data.shards import Manifest, read_manifest
from platform.engine.errors import UserError, user_error_of
from platform.engine.inference.actors import Batch, FeatureActor, stream_through_actors
from platform.engine.inference.features import FEATURE, ParquetPart, read_all, stored_parts
from platform.engine.inference.models import load_model
from platform.engine.runs.complete import say_complete
from platform.engine.runs.gauges import show
from platform.engine.runs.run_folder import SUMMARY, VOLATILE, Run, open_run
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import say
from platform.engine.schemas.cluster_settings import ClusterProgramConfig
from platform.engine.storage.location import Location, open_storage
from platform.engine.storage.parquet import read_columns
from reidssl.clustering.agreement import agreement
from reidssl.clustering.pseudo_labels import PseudoLabels, pseudo_labels

LABELS = "labels.parquet"


def main(config: ClusterProgramConfig) -> dict[str, Any]:
    """Compute the missing features, then the neighbors and labels. Returns the summary.

    Raises UserError for an unusable checkpoint or data set, for collapsed features, and for too many undecodable images.
    """
    if not config.checkpoint:
        raise UserError(
            "checkpoint is empty: name the run folder or checkpoint file that gives the features, e.g. checkpoint=runs/usl"
        )
    root = open_storage(config.data, config.storage)
    if not (open_storage(config.output, config.storage) / SUMMARY).exists():
        # Check the inputs first: a wrong path or an unknown camera must not become the configuration of the output folder.
        model = load_model(config.checkpoint, config.storage, config.load)
        manifest = read_manifest(root)
        model.require_cameras(root, ())
        say(f"cluster: {config.checkpoint}: {model.report}")
    run = open_run("cluster", config.output, config, config.storage, volatile=(*VOLATILE, "neighbors"))
    if run.summary:
        say_complete(run, root)
        return run.summary
    run.pin({"data_checksum": manifest.checksum, "weights": model.weights})
    connect(config.runtime, "cluster", run.location.uri)
    extract(config, run, root, manifest, model.image_size)
    started = time.perf_counter()
    set_aside = set_aside_of(config, root, manifest)
    problems = np.concatenate([problems_in(run.location / PARTS / entry.name) for entry in manifest.files])
    set_aside.add(problems)  # including those found by earlier starts
    found = label(config, stored_parts(run.location / PARTS / entry.name for entry in manifest.files))
    (known, people), good = read_people(root, ["key"]), problems == ""
    labels = np.full(len(problems), -1, np.int32)
    labels[good] = found.labels
    write_table(run.location / LABELS, pa.table({"key": known["key"], "label": labels, PROBLEM: problems.tolist()}))
    show(run.location.uri, {"clusters": found.num_clusters, "outliers": found.num_outliers})
    recall = "" if found.recall is None else f"; recall of the search {found.recall:.3f}"
    say(
        f"cluster: {found.num_clusters:,} clusters, {found.num_outliers:,} outliers of {int(good.sum()):,} images in "
        f"{time.perf_counter() - started:,.0f} s{recall}"
    )
    summary = {
        "images": manifest.num_rows,
        "clusters": found.num_clusters,
        "outliers": found.num_outliers,
        "search_recall": found.recall,
        "actors": config.neighbors.actors,
        "seconds": found.seconds,
    }
    if (index := rand_index(found.labels, people[good])) is not None:
        summary["adjusted_rand_index"] = index
    run.finish(
        summary
        | set_aside.summary()
        | {
            "checkpoint": config.checkpoint,
            "model": model.about.as_dict(),
            "weights": model.weights,
            "data": config.data,
            "data_checksum": manifest.checksum,
        }
    )
    return run.summary or {}


def set_aside_of(config: ClusterProgramConfig, root: Location, manifest: Manifest) -> SetAside:
    """An empty counter of undecodable images, with the limit of pool.max_corrupt_share."""
    return SetAside(root.uri, manifest.num_rows, config.pool.max_corrupt_share, "pool.max_corrupt_share")


def extract(config: ClusterProgramConfig, run: Run, root: Location, manifest: Manifest, size: tuple[int, int]) -> None:
    """Write one feature file for every shard that has none yet. size: (height, width) of the images."""
    pending = [entry for entry in manifest.files if not (run.location / PARTS / entry.name).exists()]
    done = manifest.num_rows - sum(entry.rows for entry in pending)
    say(f"cluster: {manifest.num_rows:,} images in {len(manifest.files)} shards, {done:,} have features")
    if not pending:
        return
    arguments = {
        "model": config.checkpoint,
        "storage": config.storage,
        "threads": max(1, int(config.pool.cpus_per_actor)),
        "precision": config.pool.precision,
        "compiling": config.pool.compiling(manifest.num_rows),
        "given": config.load,
    }
    batches = stream_through_actors([(root, pending)], FeatureActor, arguments, size, config.pool)

    def publish(name: str, columns: Batch) -> None:
        table = pa.table(
            {"key": columns["key"].tolist(), FEATURE: as_column(columns["feature"]), PROBLEM: columns["problem"].tolist()}
        )
        write_table(run.location / PARTS / name, table)

    try:
        watched = set_aside_of(config, root, manifest).watch(batches)
        write_parts(pending, watched, publish, done, manifest.num_rows, run.location.uri)
    except Exception as error:
        raise user_error_of(error) or error from None


def label(config: ClusterProgramConfig, parts: list[ParquetPart]) -> PseudoLabels:
    """Neighbors, distances and clusters, computed by this process or, with neighbors.actors, by actors.

    Raises UserError if the features cannot be clustered.
    """
    try:
        if config.neighbors.actors:
            return sharded_labels(parts, config.cluster, config.neighbors)
        return pseudo_labels(read_all(parts), config.cluster)
    except ValueError as error:  # features that have collapsed, more clusters than images
        raise UserError(f"{config.data} cannot be clustered: {error}") from None


def rand_index(labels: np.ndarray, people: np.ndarray) -> float | None:
    """Adjusted Rand index of the clusters and the people, without distractors; None if an image is unlabeled, or none is left.

    labels: int (N,), -1 for outliers; people: int64 (N,), see platform/engine/data/people.py.
    """
    judged = people != DISTRACTOR
    known = judged.any() and people[judged].min() >= 0
    return agreement(labels[judged], people[judged]) if known else None


def read_labels(output: Location) -> tuple[list[str], np.ndarray]:
    """(keys, labels) of a finished run; labels is int32 (N,), -1 for outliers. Raises StorageError if it cannot be read."""
    table = read_columns(output / LABELS, ["key", "label"])
    return table["key"].to_pylist(), table["label"].to_numpy()
