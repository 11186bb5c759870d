"""Retrieval metrics from features, and the rankings that the report shows."""

from collections.abc import Mapping, Sequence
from copy import copy
from inspect import signature
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from platform.engine.data.shards import read_manifest, read_rows
from platform.engine.errors import UserError
from platform.engine.inference.ranking_tasks import rank_shared
from platform.engine.runtime.device import device
from platform.engine.schemas.retrieval_settings import EvaluateConfig
from platform.engine.storage.location import Location
from reidssl.choices import RETRIEVAL_METRICS
from reidssl.metrics.camera_pairs import camera_pairs
from reidssl.metrics.expansion import expand_queries
from reidssl.metrics.ranking import best_matches, rank
from reidssl.metrics.reranking import rank_reranked
from reidssl.metrics.verification import true_positive_rates

SHOWN_QUERIES, SHOWN_MATCHES = 8, 10


class Identified(Protocol):
    """Interface of the labels that the evaluation needs: an ImageSet, or `Labels` without the images."""

    location: Location
    keys: list[str]
    pids: np.ndarray
    camids: np.ndarray

    def __len__(self) -> int: ...


class Labels:
    """Keys, identities and cameras of one split, in the order of the shards. No image is read."""

    def __init__(self, location: Location, split: str) -> None:
        table = read_rows(location, ["key", "pid", "camid"], split=split)
        self.location = location
        self.keys: list[str] = table["key"].to_pylist()
        self.pids: np.ndarray = table["pid"].to_numpy().astype(np.int64)
        self.camids: np.ndarray = table["camid"].to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def only(self, chosen: np.ndarray) -> "Labels":
        """The labels of the images that `chosen`, bool (N,), selects."""
        found = copy(self)
        found.keys = [key for key, kept in zip(self.keys, chosen, strict=True) if kept]
        found.pids, found.camids = self.pids[chosen], self.camids[chosen]
        return found


def require_splits(location: Location, splits: Sequence[str]) -> None:
    """Check that the data set has images of every split. Raises UserError if not."""
    found = read_manifest(location).splits
    missing = [split for split in splits if not found.get(split)]
    if missing:
        raise UserError(
            f"{location.uri} has no images of split {', '.join(missing)}; its splits are "
            f"{', '.join(found) or 'none'}. Name another data set, or ingest this one with its test images"
        )


def require_judgeable(location: Location) -> None:
    """Check that at least one query of the data set has a valid match. Raises UserError if not. Reads labels only."""
    require_splits(location, ["query", "gallery"])
    table = read_rows(location, ["pid", "camid", "split"])
    split = np.asarray(table["split"].to_pylist())
    pids, camids = (table[name].to_numpy().astype(np.int64) for name in ("pid", "camid"))
    query, gallery = split == "query", (split == "gallery") & (pids != -1)
    people = np.unique(pids[query & (pids != -1)])
    shared = np.intersect1d(people, pids[gallery])
    cameras = np.unique(camids[(query | gallery) & np.isin(pids, shared)])
    if not len(people):
        problem = f"none of its {int(query.sum()):,} query images has an identity (pid)"
    elif not len(shared):
        problem = f"none of the {len(people):,} people of split query is in split gallery"
    elif len(cameras) == 1 and cameras[0] != -1:
        problem = (
            f"all images of the {len(shared):,} people whom split query and gallery share come from one camera "
            f"({cameras[0]}), and a match counts only in another camera than the query's"
        )
    elif not _matched(pids[query], camids[query], pids[gallery], camids[gallery]).any():
        problem = (
            f"none of its {int(query.sum()):,} query images has an image of the same person in another camera in split gallery"
        )
    else:
        return
    raise UserError(
        f"{location.uri} cannot be judged: {problem}. Name another data set, or ingest this one with the right "
        "splits, identities and cameras"
    )


def _matched(
    query_pids: np.ndarray, query_camids: np.ndarray, gallery_pids: np.ndarray, gallery_camids: np.ndarray
) -> np.ndarray:
    """bool (Q,): whether a query has a true match. As in `rank`, an unknown camera (-1) differs from every camera."""

    def occurrences(keys: np.ndarray, among: np.ndarray) -> np.ndarray:
        ordered = np.sort(among)
        return np.searchsorted(ordered, keys, "right") - np.searchsorted(ordered, keys, "left")

    alike = occurrences(query_pids, gallery_pids)
    both = (pids * 2**32 + camids for pids, camids in ((query_pids, query_camids), (gallery_pids, gallery_camids)))
    junk = np.where(query_camids == -1, 0, occurrences(*both))
    return (query_pids != -1) & (alike > junk)


def evaluate_features(
    query: Identified, gallery: Identified, query_features: Tensor, gallery_features: Tensor, config: EvaluateConfig
) -> dict[str, Any]:
    """All metrics that `config` asks for, in [0, 1]. Computed on the accelerator of this process, if it has one.

    Args:
        query_features, gallery_features: float (Q, D) and (G, D).

    Returns {"mAP", "rank1", "rank5", "rank10", "mINP", "queries", "gallery", "rankings", "evaluation" (`options_of`)} and,
    depending on `config`:
        "reranked": {"mAP", "rank1"}
        "roc": {"1e-04": true positive rate, ...}
        "camera_pairs": {"query_cameras", "gallery_cameras", "mAP": rows, None where undefined}
        "average_precision": {key: value, None for a query without a true match}
    "camera_note" is added if some cameras are unknown. Raises UserError if the features cannot be evaluated.
    """
    query_features, gallery_features = query_features.to(device()), gallery_features.to(device())
    sizes: dict[str, Any] = {"block": config.block, "gallery_block": config.gallery_block}
    try:
        if config.expansion:
            query_features = expand_queries(
                query_features, gallery_features, config.expansion, config.expansion_alpha, config.block
            )
        arguments = (query_features, query.pids, query.camids, gallery_features, gallery.pids, gallery.camids)
        ranked = rank_shared(*arguments, tasks=config.tasks, **sizes) if config.tasks else rank(*arguments, **sizes)
        found: dict[str, Any] = ranked.as_dict()
        found |= {"queries": int(found.pop("num_valid_queries")), "gallery": len(gallery)}
        if config.reranking:
            reranked = rank_reranked(*arguments, block=config.block)
            found["reranked"] = {"mAP": float(reranked.mAP), "rank1": float(reranked.rank1)}
        if config.roc:
            rates = true_positive_rates(*arguments, **sizes)
            found["roc"] = {f"{rate:.0e}": value for rate, value in rates.items()}
        if config.cameras:
            pairs = camera_pairs(*arguments, **sizes)
            found["camera_pairs"] = {
                "query_cameras": pairs.query_cameras.tolist(),
                "gallery_cameras": pairs.gallery_cameras.tolist(),
                "mAP": [[_number(value) for value in row] for row in pairs.mAP],
            }
    except ValueError as error:  # e.g. no query has a match, or non-finite features
        raise UserError(f"{query.location.uri} cannot be judged: {error}") from None
    if config.per_query:
        found["average_precision"] = {
            key: _number(value) for key, value in zip(query.keys, ranked.average_precision, strict=True)
        }
    found["evaluation"] = options_of(config)
    note = camera_note(query, gallery)
    if note:
        found["camera_note"] = note
    found["rankings"] = _rankings(query, gallery, query_features, gallery_features)
    return found


def retrieval_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation that are logged."""
    return {name: float(result[name]) for name in RETRIEVAL_METRICS}


def options_of(config: EvaluateConfig) -> dict[str, Any]:
    """The options that the metrics depend on, to be stored with them; None for an option that was not used.

    "expansion" {"images", "alpha"}, "flip" (true) and "resize" ("bilinear") apply to all metrics, "reranking" {"k1", "k2",
    "weight"} only to "reranked".
    """
    defaults = {name: parameter.default for name, parameter in signature(rank_reranked).parameters.items()}
    return {
        "expansion": {"images": config.expansion, "alpha": config.expansion_alpha} if config.expansion else None,
        "flip": True if config.flip else None,
        "resize": None if config.resize == "bicubic" else config.resize,
        "reranking": {name: defaults[name] for name in ("k1", "k2", "weight")} if config.reranking else None,
    }


def camera_note(query: Identified, gallery: Identified) -> str:
    """Note on the effect of unknown cameras (camid -1) on the metrics; "" if all cameras are known."""
    unknown = [int(((images.camids == -1) & (images.pids != -1)).sum()) for images in (query, gallery)]
    if not any(unknown):
        return ""
    which = (
        "no cameras are known"
        if unknown == [len(query), len(gallery)]
        else (f"{unknown[0]:,} of {len(query):,} query and {unknown[1]:,} of {len(gallery):,} gallery images have no camera")
    )
    return f"{which}: matches within one camera count, which published figures leave out"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _rankings(query: Identified, gallery: Identified, query_features: Tensor, gallery_features: Tensor) -> list[dict[str, Any]]:
    """Top matches of a few queries, evenly spread over the query images."""
    chosen = np.linspace(0, len(query) - 1, min(SHOWN_QUERIES, len(query))).astype(int)
    found = best_matches(
        query_features[chosen],
        query.pids[chosen],
        query.camids[chosen],
        gallery_features,
        gallery.pids,
        gallery.camids,
        top=SHOWN_MATCHES,
    )
    return [
        {
            "query": query.keys[row],
            "matches": [gallery.keys[i] for i in found.indices[n] if i >= 0],
            "correct": [bool(c) for i, c in zip(found.indices[n], found.correct[n], strict=True) if i >= 0],
        }
        for n, row in enumerate(chosen)
    ]
