"""Retrieval metrics of features, with the rankings that the report shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from platform.engine.errors import UserError
from platform.engine.images import ImageSet
from platform.engine.shards import read_manifest
from platform.engine.storage import Location
from reidssl.metrics.ranking import best_matches, rank
from reidssl.metrics.reranking import rank_reranked

SHOWN_QUERIES, SHOWN_MATCHES = 8, 10


@dataclass(kw_only=True)
class EvaluateConfig:
    """How retrieval is judged."""

    reranking: bool = False
    """Also report k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3)."""


def require_splits(location: Location, splits: Sequence[str]) -> None:
    """UserError if the data set lacks images of one of the splits, before any work is done."""
    found = read_manifest(location).splits
    missing = [split for split in splits if not found.get(split)]
    if missing:
        raise UserError(f"{location.uri} has no images of split {', '.join(missing)}; its splits are "
                        f"{', '.join(found) or 'none'}. Name another data set, or ingest this one with its test images")


def evaluate_features(query: ImageSet, gallery: ImageSet, query_features: Tensor, gallery_features: Tensor,
                      config: EvaluateConfig) -> dict[str, Any]:
    """{"mAP", "rank1", "rank5", "rank10", "mINP", "queries", "gallery", ["reranked"], "rankings"}, all shares in [0, 1]."""
    arguments = (query_features, query.pids, query.camids, gallery_features, gallery.pids, gallery.camids)
    try:
        found: dict[str, Any] = rank(*arguments).as_dict()
    except ValueError as error:  # no query has a match, features that are no numbers
        raise UserError(f"{query.location.uri} cannot be judged: {error}") from None
    found |= {"queries": int(found.pop("num_valid_queries")), "gallery": len(gallery)}
    if config.reranking:
        reranked = rank_reranked(*arguments)
        found["reranked"] = {"mAP": float(reranked.mAP), "rank1": float(reranked.rank1)}
    found["rankings"] = _rankings(query, gallery, query_features, gallery_features)
    return found


def _rankings(query: ImageSet, gallery: ImageSet, query_features: Tensor, gallery_features: Tensor) -> list[dict[str, Any]]:
    """Top matches of a few queries, evenly spread over the identities."""
    chosen = np.linspace(0, len(query) - 1, min(SHOWN_QUERIES, len(query))).astype(int)
    found = best_matches(query_features[chosen], query.pids[chosen], query.camids[chosen], gallery_features,
                         gallery.pids, gallery.camids, top=SHOWN_MATCHES)
    return [{"query": query.keys[row], "matches": [gallery.keys[i] for i in found.indices[n] if i >= 0],
             "correct": [bool(c) for i, c in zip(found.indices[n], found.correct[n], strict=True) if i >= 0]}
            for n, row in enumerate(chosen)]
