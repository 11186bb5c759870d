"""Retrieval between pairs of cameras, to find the pairs on which a model is weak."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reidssl.choices import GALLERY_BLOCK
from reidssl.clustering.neighbors import Array
from reidssl.metrics.average_precision import judge_pieces, pieces_of
from reidssl.metrics.inputs import check_fit, labels_of, unit_pair


@dataclass(frozen=True)
class CameraPairs:
    """mAP of the queries of each query camera among the gallery images of each gallery camera."""

    query_cameras: Array
    """int64 (A,), query cameras in ascending order."""
    gallery_cameras: Array
    """int64 (B,), gallery cameras in ascending order."""
    mAP: Array
    """float64 (A, B) in [0, 1]; NaN if no query has a true match, as for a camera with itself, whose matches are junk."""
    num_queries: Array
    """int64 (A, B), number of queries with a true match."""


def camera_pairs(
    query_features: Tensor | Array,
    query_pids: Array,
    query_camids: Array,
    gallery_features: Tensor | Array,
    gallery_pids: Array,
    gallery_camids: Array,
    block: int = 128,
    num_threads: int | None = None,
    gallery_block: int = GALLERY_BLOCK,
) -> CameraPairs:
    """mAP for every pair of a query camera and a gallery camera. Arguments as in `rank`. The cost is that of one ranking.

    Raises:
        ValueError: arrays do not fit, or features are not finite.
    """
    q_pids, q_camids = labels_of("query", query_pids, query_camids)
    g_pids, g_camids = labels_of("gallery", gallery_pids, gallery_camids)
    check_fit("query", query_features, q_pids)
    check_fit("gallery", gallery_features, g_pids)
    queries, gallery = unit_pair(query_features, gallery_features)
    rows, columns = np.unique(q_camids), np.unique(g_camids)
    means = np.full((len(rows), len(columns)), np.nan)
    numbers = np.zeros((len(rows), len(columns)), np.int64)
    for b, camera in enumerate(columns):
        kept = np.flatnonzero(g_camids == camera)
        if not np.isin(g_pids[kept][g_pids[kept] >= 0], q_pids[(q_camids != camera) | (q_camids == -1)]).any():
            continue
        pieces = pieces_of(gallery[torch.from_numpy(kept).to(gallery.device)], gallery_block)
        found = judge_pieces(queries, q_pids, q_camids, pieces, g_pids[kept], g_camids[kept], block, num_threads=num_threads)
        valid = ~np.isnan(found.average_precision)
        for a, own in enumerate(rows):
            chosen = valid & (q_camids == own)
            numbers[a, b] = chosen.sum()
            if chosen.any():
                means[a, b] = found.average_precision[chosen].mean()
    return CameraPairs(rows, columns, means, numbers)
