"""Retrieval metrics of models on labelled test sets: mAP, Rank-1/5/10, mINP; re-ranking, query expansion, ROC, camera pairs.

  python -m platform.evaluate models=[runs/usl] test_sets=[runs/demo/data/target]
  python -m platform.evaluate models=[runs/a,runs/b] test_sets=[runs/market,runs/msmt] evaluate.reranking=true output=runs/table
  python -m platform.evaluate models=[runs/usl] test_sets=[runs/market] evaluate.roc=true evaluate.cameras=true

Several models or test sets give the cross-domain matrix: a row a model, a column a test set. A model is a run folder or a
checkpoint file, ours or a released one; a test set is shards with splits query and gallery. Images go from the shards through a
pool of actors by Ray Data; only labels and features are held here.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from platform.engine.config import run_program
from platform.engine.errors import UserError, user_error_of
from platform.engine.evaluation import EvaluateConfig, Labels, evaluate_features, require_splits
from platform.engine.inference import Embedder, PoolConfig, stream_through_actors
from platform.engine.models import load_model
from platform.engine.runs import environment
from platform.engine.runtime import RuntimeConfig, connect, say
from platform.engine.shards import Manifest, read_manifest
from platform.engine.storage import Location, StorageConfig, open_storage
from reidssl.data.msmt17 import IMAGE_FOLDERS

SPLITS = ("query", "gallery")
COLUMNS = ("mAP", "rank1", "rank5", "rank10", "mINP")


@dataclass(kw_only=True)
class EvaluateProgramConfig:
    """Which models, on which test sets."""

    models: list[str] = field(default_factory=list)
    """Run folders or checkpoint files."""
    test_sets: list[str] = field(default_factory=lambda: ["runs/demo/data/target"])
    """Shards with splits query and gallery."""
    image_size: list[int] = field(default_factory=list)
    """[height, width] of the images, position embeddings resized to it; empty: what each model was trained with."""
    output: str = ""
    """Folder for evaluation.json (all results and rankings); empty: print only."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if self.image_size and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(f"image_size must be [height, width] or []: got {list(self.image_size)}")

    @property
    def changes(self) -> dict[str, Any]:
        """To the configuration of the backbones."""
        return {"image_size": tuple(self.image_size)} if self.image_size else {}


def main(config: EvaluateProgramConfig) -> list[dict[str, Any]]:
    """Evaluate every model on every test set; returns one row a pair."""
    if not config.models or not config.test_sets:
        raise UserError("nothing to evaluate: give models=[<run folder>,...] and test_sets=[<shards>,...]")
    if config.evaluate.per_query and not config.output:
        raise UserError("evaluate.per_query=true gives a number for every query, which only evaluation.json holds: give "
                        "output=<folder>, or leave per_query out")
    if config.output:
        open_storage(config.output, config.storage).prepare_output()
    sets = [open_storage(uri, config.storage) for uri in config.test_sets]
    _refuse_repeated("models", [uri.rstrip("/") for uri in config.models])
    _refuse_repeated("test_sets", [location.uri for location in sets])
    for location in sets:
        require_splits(location, SPLITS)
    loaded = [load_model(uri, config.storage, **config.changes) for uri in config.models]  # a wrong path fails before any work
    connect(config.runtime)
    rows = []
    for uri, model in zip(config.models, loaded, strict=True):
        for location in sets:
            result = evaluate(uri, model.image_size, location, config)
            row = {"model": uri, "data": location.uri, "splits": list(SPLITS), "image_size": list(model.image_size),
                   "reranking": config.evaluate.reranking, "query_expansion": config.evaluate.expansion, "weights": model.weights,
                   **result}
            rows.append(row)
            say(f"{uri} on {location.uri}: mAP {row['mAP']:.1%}  Rank-1 {row['rank1']:.1%}")
    print(table(rows))
    if len(rows) > 1:
        print("\n" + matrix(rows))
    if config.output:
        (open_storage(config.output, config.storage) / "evaluation.json").write_json(
            [row | {"environment": environment()} for row in rows])
    return rows


def evaluate(uri: str, image_size: tuple[int, int], location: Location, config: EvaluateProgramConfig) -> dict[str, Any]:
    """Features of query and gallery through the actors, in one pass over the shards, then the metrics."""
    arguments = {"model": uri, "storage": config.storage, "threads": max(1, int(config.pool.cpus_per_actor)),
                 "changes": config.changes}
    manifest = read_manifest(location)
    try:
        batches = list(stream_through_actors(location, manifest.files, Embedder, arguments, image_size, config.pool, SPLITS))
    except Exception as error:
        raise user_error_of(error) or error from None
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in ("key", "split", "feature")}
    labels, features = [], []
    for split in SPLITS:
        chosen = rows["split"] == split
        labels.append(Labels(location, split))
        features.append(torch.from_numpy(rows["feature"][chosen]))
        if rows["key"][chosen].tolist() != labels[-1].keys:
            raise UserError(f"{location.uri} changed while it was read: run the same command again")
    found = evaluate_features(labels[0], labels[1], features[0], features[1], config.evaluate)
    return {"data_set": data_set(manifest, labels[1].keys[0]), "data_checksum": manifest.checksum, **found}


def data_set(manifest: Manifest, key: str) -> str:
    """What was ingested, with the version that the paths tell: "market1501", "msmt17 V1"; key: an image of the gallery."""
    kind = str(manifest.source.get("kind", "unknown"))
    folders = key.split("/")[:-1]
    versions = [version for version, (_, test) in IMAGE_FOLDERS.items() if kind == "msmt17" and test in folders]
    return " ".join([kind, *versions[-1:]])  # mask_test_v2 says more than a folder called test


def _refuse_repeated(name: str, uris: list[str]) -> None:
    repeated = [uri for uri, times in Counter(uris).items() if times > 1]
    if repeated:
        raise UserError(f"{name} has {', '.join(repeated)} more than once: name each once")


def table(rows: list[dict[str, Any]]) -> str:
    """Fixed-width text, percentages."""
    width = max(len(row["model"]) for row in rows)
    data_width = max(len(row["data"]) for row in rows)
    lines = [f"{'model':<{width}}  {'test set':<{data_width}}  " + "  ".join(f"{name:>7}" for name in COLUMNS)]
    for row in rows:
        lines.append(f"{row['model']:<{width}}  {row['data']:<{data_width}}  "
                     + "  ".join(f"{100 * row[name]:7.1f}" for name in COLUMNS))
        lines.append(f"  {row['data_set']} (checksum {row['data_checksum'][:12]}), {' and '.join(row['splits'])}, images "
                     f"{'x'.join(map(str, row['image_size']))}, {expansion_text(row['query_expansion'])}, "
                     f"{'also' if row['reranking'] else 'no'} re-ranking, weights {row['weights']}")
        if "reranked" in row:
            reranked = row["reranked"]
            lines.append(f"{'  re-ranked':<{width}}  {'':<{data_width}}  {100 * reranked['mAP']:7.1f}  "
                         f"{100 * reranked['rank1']:7.1f}")
        if "roc" in row:
            rates = "  ".join(f"{100 * value:.1f} at FPR {rate}" for rate, value in row["roc"].items())
            lines.append(f"  true positive rate: {rates}")
        if "camera_pairs" in row:
            lines += camera_table(row["camera_pairs"])
    return "\n".join(lines)


def expansion_text(images: int) -> str:
    """What was done to the queries before all figures."""
    return f"query expansion with {images} images" if images else "no query expansion"


def camera_table(pairs: dict[str, Any]) -> list[str]:
    """mAP from the camera of the row to the camera of the column; a dash where there is nothing to find."""
    lines = ["  mAP from camera to camera", "  " + " " * 6 + "".join(f"{camera:>7}" for camera in pairs["gallery_cameras"])]
    for camera, row in zip(pairs["query_cameras"], pairs["mAP"], strict=True):
        lines.append(f"  {camera:>6}" + "".join(f"{'-':>7}" if value is None else f"{100 * value:7.1f}" for value in row))
    return lines


def matrix(rows: list[dict[str, Any]]) -> str:
    """Cross-domain matrix, mAP / Rank-1 in per cent: a row a model, a column a test set."""
    models, sets = (list(dict.fromkeys(row[name] for row in rows)) for name in ("model", "data"))
    cells = {(row["model"], row["data"]): f"{100 * row['mAP']:.1f} / {100 * row['rank1']:.1f}" for row in rows}
    width, columns = max(map(len, models)), [max(len(name), 13) for name in sets]
    lines = [" " * width + "".join(f"  {name:>{column}}" for name, column in zip(sets, columns, strict=True))]
    lines += [f"{model:<{width}}" + "".join(f"  {cells[model, name]:>{column}}"
              for name, column in zip(sets, columns, strict=True)) for model in models]
    return f"mAP / Rank-1, {expansion_text(rows[0]['query_expansion'])}\n" + "\n".join(lines)


if __name__ == "__main__":
    run_program("evaluate")
