"""Evaluate models on labeled test sets: mAP, Rank-1/5/10, mINP; optionally re-ranking, query expansion, ROC, camera pairs.

  python -m platform.evaluate checkpoints=[runs/usl] test_sets=[runs/demo/data/target]
  python -m platform.evaluate checkpoints=[runs/a,runs/b] test_sets=[runs/market,runs/msmt] output=runs/table
  python -m platform.evaluate checkpoints=[runs/usl] test_sets=[runs/market] evaluate.roc=true evaluate.cameras=true

Several models or test sets give the cross-domain matrix, with a row per model and a column per test set. A model is a run folder
or a checkpoint file, written by this platform or released by others; load.* supplies what the file does not say. A test set is a
folder of shards with splits query and gallery. Ray Data sends the images of all test sets through one pool of actors, which hold
all models of an image size; this process holds only labels, and the features of one test set at a time.
"""

from platform.engine.config.program import run_program

if __name__ == "__main__":  # before the imports below: --help and a misspelled key are answered at once
    run_program("evaluate")

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch

from platform.engine.data.set_aside import SetAside
from platform.engine.data.shards import Manifest, read_manifest
from platform.engine.errors import UserError, user_error_of
from platform.engine.inference.actors import Batch, FeatureActor, stream_through_actors
from platform.engine.inference.evaluation import Labels, evaluate_features, require_judgeable
from platform.engine.inference.features import FEATURE
from platform.engine.inference.models import load_model
from platform.engine.runs.run_folder import environment
from platform.engine.runtime.ray_session import connect
from platform.engine.runtime.terminal import say
from platform.engine.schemas.evaluate_settings import EvaluateProgramConfig
from platform.engine.schemas.retrieval_settings import EvaluateConfig
from platform.engine.storage.location import Location, open_storage
from reidssl.choices import RETRIEVAL_METRICS
from reidssl.data.msmt17 import IMAGE_FOLDERS

SPLITS = ("query", "gallery")


def main(config: EvaluateProgramConfig) -> list[dict[str, Any]]:
    """Evaluate every model on every test set. Returns one row for each pair.

    Raises UserError for missing or repeated inputs, and for a model or test set that cannot be used.
    """
    if not config.checkpoints or not config.test_sets:
        raise UserError("nothing to evaluate: give checkpoints=[<run folder>,...] and test_sets=[<shards>,...]")
    if config.evaluate.per_query and not config.output:
        raise UserError(
            "evaluate.per_query=true gives a number for every query, which only evaluation.json holds: give "
            "output=<folder>, or leave per_query out"
        )
    sets = [open_storage(uri, config.storage) for uri in config.test_sets]
    _refuse_repeated("checkpoints", [uri.rstrip("/") for uri in config.checkpoints])
    _refuse_repeated("test_sets", [location.uri for location in sets])
    for location in sets:
        require_judgeable(location)
    # Load first: a wrong path or an unknown camera must fail before any work.
    loaded = [load_model(uri, config.storage, config.load, **config.overrides) for uri in config.checkpoints]
    for uri, model in zip(config.checkpoints, loaded, strict=True):
        say(f"evaluate: {uri}: {model.report}")
        for location in sets:
            model.require_cameras(location, SPLITS)
    if config.output:
        open_storage(config.output, config.storage).prepare_output()
    connect(config.runtime, "evaluate", config.output or ",".join(config.checkpoints))
    models = dict(zip(config.checkpoints, loaded, strict=True))
    rows = []
    for size in dict.fromkeys(model.image_size for model in loaded):
        for uri, location, result in evaluate([uri for uri in models if models[uri].image_size == size], size, sets, config):
            row = {
                "model": uri,
                "data": location.uri,
                "splits": list(SPLITS),
                "image_size": list(size),
                "reranking": config.evaluate.reranking,
                "query_expansion": config.evaluate.expansion,
                "weights": models[uri].weights,
                "loaded": models[uri].about.as_dict(),
                **result,
            }
            rows.append(row)
            say(f"{uri} on {location.uri}: mAP {row['mAP']:.1%}  Rank-1 {row['rank1']:.1%}")
    order = [location.uri for location in sets]
    rows.sort(key=lambda row: (config.checkpoints.index(row["model"]), order.index(row["data"])))
    print(table(rows))
    if len(rows) > 1:
        print("\n" + matrix(rows))
    if config.output:
        (open_storage(config.output, config.storage) / "evaluation.json").write_json(
            [row | {"environment": environment()} for row in rows]
        )
    return rows


class EveryModel:
    """Actor with several models: the features of an image by each of them, in columns named by the place of the model."""

    def __init__(self, models: Sequence[str], **how: Any) -> None:
        self.actors = [FeatureActor(model, **how) for model in models]

    def __call__(self, batch: Batch) -> Batch:
        names = ("key", "split", "set", "file", "problem")
        features = {str(place): actor(batch)[FEATURE] for place, actor in enumerate(self.actors)}
        return {name: batch[name] for name in names} | features


def evaluate(
    uris: Sequence[str], image_size: tuple[int, int], sets: Sequence[Location], config: EvaluateProgramConfig
) -> Iterator[tuple[str, Location, dict[str, Any]]]:
    """Yields (model, test set, metrics) for models of one image size, (height, width), set by set.

    One pool of actors reads the query and gallery images of each set once and computes the features of all models. The features
    of one set at a time are in memory. The metrics and data set facts are a JSON-compatible dict.
    """
    manifests = [read_manifest(location) for location in sets]
    arguments = {
        "models": uris,
        "storage": config.storage,
        "threads": max(1, int(config.pool.cpus_per_actor)),
        "precision": config.pool.precision,
        "compiling": config.pool.compiling(sum(manifest.num_rows for manifest in manifests)),
        "given": config.load,
        "changes": config.overrides,
        "flip": config.evaluate.flip,
    }
    shards = [(location, manifest.files) for location, manifest in zip(sets, manifests, strict=True)]
    try:
        stream = stream_through_actors(shards, EveryModel, arguments, image_size, config.pool, SPLITS, config.evaluate.resize)
        batches = (batch for batch in stream if len(batch["key"]))
        for place, own in groupby(batches, key=lambda batch: int(batch["set"][0])):
            location, manifest = sets[place], manifests[place]
            total = sum(manifest.splits[split] for split in SPLITS)
            set_aside = SetAside(location.uri, total, config.pool.max_corrupt_share, "pool.max_corrupt_share")
            found = list(set_aside.watch(own))
            for number, uri in enumerate(uris):
                rows = {name: np.concatenate([batch[name] for batch in found]) for name in ("key", "split", "problem")}
                features = np.concatenate([batch[str(number)] for batch in found])
                yield uri, location, set_aside.summary() | metrics_of(location, manifest, rows, features, config.evaluate)
    except Exception as error:
        raise user_error_of(error) or error from None


def metrics_of(
    location: Location, manifest: Manifest, rows: dict[str, np.ndarray], features: np.ndarray, how: EvaluateConfig
) -> dict[str, Any]:
    """The metrics of one model on one test set, from the features (N, D) of its query and gallery images.

    rows: "key", "split" and "problem" of the images. Raises UserError if no image of a split could be decoded.
    """
    labels, of_split, left_out = [], [], {}
    for split in SPLITS:
        chosen = rows["split"] == split
        labels.append(Labels(location, split))
        if rows["key"][chosen].tolist() != labels[-1].keys:
            raise UserError(f"{location.uri} changed while it was read: run the same command again")
        good = rows["problem"][chosen] == ""
        if not good.any():
            raise UserError(f"{location.uri} cannot be judged: none of its {split} images can be decoded")
        labels[-1] = labels[-1].only(good)
        of_split.append(torch.from_numpy(features[chosen][good]))
        left_out[split] = int((~good).sum())
    return {
        "data_set": data_set(manifest, labels[1].keys[0]),
        "data_checksum": manifest.checksum,
        "left_out": left_out,
        **evaluate_features(labels[0], labels[1], of_split[0], of_split[1], how),
    }


def data_set(manifest: Manifest, key: str) -> str:
    """Kind of the data set, with the version if the paths show it: "market1501", "msmt17 V1". key: of a gallery image."""
    kind = str(manifest.source.get("kind", "unknown"))
    folders = key.split("/")[:-1]
    versions = [version for version, (_, test) in IMAGE_FOLDERS.items() if kind == "msmt17" and test in folders]
    return " ".join([kind, *versions[-1:]])  # the last match: mask_test_v2 is more specific than test


def _refuse_repeated(name: str, uris: list[str]) -> None:
    repeated = [uri for uri, times in Counter(uris).items() if times > 1]
    if repeated:
        raise UserError(f"{name} has {', '.join(repeated)} more than once: name each once")


def table(rows: list[dict[str, Any]]) -> str:
    """The results as fixed-width text, metrics in per cent."""
    width = max(len(row["model"]) for row in rows)
    data_width = max(len(row["data"]) for row in rows)
    lines = [f"{'model':<{width}}  {'test set':<{data_width}}  " + "  ".join(f"{name:>7}" for name in RETRIEVAL_METRICS)]
    for row in rows:
        lines.append(
            f"{row['model']:<{width}}  {row['data']:<{data_width}}  "
            + "  ".join(f"{100 * row[name]:7.1f}" for name in RETRIEVAL_METRICS)
        )
        resize = f" ({row['evaluation']['resize']})" if row["evaluation"]["resize"] else ""
        lines.append(
            f"  {row['data_set']} (checksum {row['data_checksum'][:12]}), {' and '.join(row['splits'])}, images "
            f"{'x'.join(map(str, row['image_size']))}{resize}, {expansion_text(row['query_expansion'])}, "
            f"{'mirror images averaged, ' if row['evaluation']['flip'] else ''}"
            f"{'also' if row['reranking'] else 'no'} re-ranking, weights {row['weights']}"
        )
        if row["corrupt_images"]:
            counts = " and ".join(f"{count} {split}" for split, count in row["left_out"].items() if count)
            lines.append(f"  left out: {counts} images that cannot be decoded")
        if "camera_note" in row:
            lines.append(f"  {row['camera_note']}")
        if "reranked" in row:
            reranked = row["reranked"]
            lines.append(
                f"{'  re-ranked':<{width}}  {'':<{data_width}}  {100 * reranked['mAP']:7.1f}  {100 * reranked['rank1']:7.1f}"
            )
        if "roc" in row:
            rates = "  ".join(f"{100 * value:.1f} at FPR {rate}" for rate, value in row["roc"].items())
            lines.append(f"  true positive rate: {rates}")
        if "camera_pairs" in row:
            lines += camera_table(row["camera_pairs"])
    return "\n".join(lines)


def expansion_text(images: int) -> str:
    """The query expansion that all figures include, in words."""
    return f"query expansion with {images} images" if images else "no query expansion"


def camera_table(pairs: dict[str, Any]) -> list[str]:
    """Lines with the mAP from query camera (row) to gallery camera (column); a dash where there is no true match."""
    lines = ["  mAP from camera to camera", "  " + " " * 6 + "".join(f"{camera:>7}" for camera in pairs["gallery_cameras"])]
    for camera, row in zip(pairs["query_cameras"], pairs["mAP"], strict=True):
        lines.append(f"  {camera:>6}" + "".join(f"{'-':>7}" if value is None else f"{100 * value:7.1f}" for value in row))
    return lines


def matrix(rows: list[dict[str, Any]]) -> str:
    """Cross-domain matrix as text: mAP / Rank-1 in per cent, a row per model, a column per test set."""
    models, sets = (list(dict.fromkeys(row[name] for row in rows)) for name in ("model", "data"))
    cells = {(row["model"], row["data"]): f"{100 * row['mAP']:.1f} / {100 * row['rank1']:.1f}" for row in rows}
    width, columns = max(map(len, models)), [max(len(name), 13) for name in sets]
    lines = [" " * width + "".join(f"  {name:>{column}}" for name, column in zip(sets, columns, strict=True))]
    lines += [
        f"{model:<{width}}" + "".join(f"  {cells[model, name]:>{column}}" for name, column in zip(sets, columns, strict=True))
        for model in models
    ]
    return f"mAP / Rank-1, {expansion_text(rows[0]['query_expansion'])}\n" + "\n".join(lines)
