"""Ranking metrics of person re-identification: mAP, CMC (Rank-k) and mINP; also best matches for display, and probes.

Protocol (Zheng et al., Market-1501, ICCV 2015; mINP: Ye et al., arXiv 2001.04193): gallery images of the query's identity
and camera are junk for this query, and so are all images of identity -1. Queries without a true match are left out. Camera -1
is unknown and differs from every camera. Features are compared by cosine similarity, which gives the same order as the Euclidean
distance of rows of length one.

Ties: of equal scores, the earlier gallery image ranks first, as in a stable sort, so results are reproducible. On the CPU, equal
features have equal scores for any block size (`reidssl.clustering.products`).

Scores are not sorted. The rank of a true match is found by counting the images in front of it. Memory is one block of queries x
one block of the gallery.

Shapes: Q queries, G gallery images, D feature width, q queries of one block.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reidssl.choices import GALLERY_BLOCK
from reidssl.clustering.neighbors import Array, knn, top_scores, unit_rows
from reidssl.metrics.average_precision import (
    QueryResults,
    ScoreBlocks,
    cosine_blocks,
    judge_pieces,
    judge_queries,
    pieces_of,
)
from reidssl.metrics.inputs import check_fit, labels_of, unit_pair


@dataclass(frozen=True)
class RankingMetrics:
    """Ranking metrics in [0, 1] (not in percent)."""

    mAP: float
    """Mean average precision."""
    cmc: Array
    """float64 (max_rank,): share of queries with a true match among the first 1, 2, ... images."""
    mINP: float
    """Mean over queries of (number of true matches / rank of the last of them)."""
    average_precision: Array
    """float64 (Q,), NaN for queries without a true match."""
    num_valid_queries: int
    """Number of queries with a true match."""

    @property
    def rank1(self) -> float:
        return float(self.cmc[0])

    @property
    def rank5(self) -> float:
        return float(self.cmc[4])

    @property
    def rank10(self) -> float:
        return float(self.cmc[9])

    def as_dict(self) -> dict[str, float]:
        """{"mAP", "rank1", "rank5", "rank10", "mINP", "num_valid_queries"} as plain numbers."""
        values = {name: float(getattr(self, name)) for name in ("mAP", "rank1", "rank5", "rank10", "mINP")}
        return values | {"num_valid_queries": self.num_valid_queries}


class BestMatches(NamedTuple):
    """The best matches of each query in the gallery, without junk."""

    indices: Array
    """int64 (Q, top), gallery images, best first; -1 if there are fewer images."""
    correct: Array
    """bool (Q, top), whether the image has the query's identity."""
    similarities: Array
    """float32 (Q, top), cosines; minus infinity if the index is -1."""


def rank(
    query_features: Tensor | Array,
    query_pids: Array,
    query_camids: Array,
    gallery_features: Tensor | Array,
    gallery_pids: Array,
    gallery_camids: Array,
    block: int = 128,
    max_rank: int = 50,
    num_threads: int | None = None,
    gallery_block: int = GALLERY_BLOCK,
) -> RankingMetrics:
    """Rank the gallery for every query and compute the metrics.

    Args:
        query_features, gallery_features: float (Q, D) and (G, D); rows are normalized here. Products are computed on their
            device.
        query_pids, query_camids, gallery_pids, gallery_camids: integers (Q,) and (G,).
        block: number of queries processed at a time. Memory, in addition to the features, is about
            block x min(G, gallery_block) x 4 bytes (by default 42 MB for MSMT17's gallery).
        max_rank: length of the CMC curve, at least 10.
        num_threads: number of threads of the counting pass; None: torch's number.
        gallery_block: number of gallery images processed at a time. A larger gallery needs two passes.

    Raises:
        ValueError: arrays do not fit, features are not finite, or no query has a true match.
    """
    queries, gallery = unit_pair(query_features, gallery_features)
    pieces = pieces_of(gallery, gallery_block)
    found = judge_pieces(queries, query_pids, query_camids, pieces, gallery_pids, gallery_camids, block, num_threads=num_threads)
    return summarize(found, query_pids, gallery_pids, max_rank)


def leave_one_out(
    features: Tensor | Array,
    pids: Array,
    camids: Array,
    block: int = 128,
    max_rank: int = 50,
    num_threads: int | None = None,
    gallery_block: int = GALLERY_BLOCK,
) -> RankingMetrics:
    """Cross-camera probe of one labeled set: each image in turn is the query, and all other images are the gallery.

    Arguments and errors as in `rank`. Images of identity -1 are neither queries nor in the gallery.
    """
    unit = unit_rows(features)
    pieces, own = pieces_of(unit, gallery_block), np.arange(len(unit))
    found = judge_pieces(unit, pids, camids, pieces, pids, camids, block, own, num_threads)
    return summarize(found, pids, pids, max_rank)


def rank_blocks(
    blocks: ScoreBlocks,
    query_pids: Array,
    query_camids: Array,
    gallery_pids: Array,
    gallery_camids: Array,
    max_rank: int = 50,
    left_out: Array | None = None,
    num_threads: int | None = None,
) -> RankingMetrics:
    """Metrics from scores of any kind, block by block.

    Args:
        blocks: scores of all queries in order.
        left_out: int (Q,), for each query a gallery image that is junk regardless of its labels, or -1; None: none.
        Other arguments and errors as in `rank`.
    """
    found = judge_queries(blocks, query_pids, query_camids, gallery_pids, gallery_camids, left_out, num_threads)
    return summarize(found, query_pids, gallery_pids, max_rank)


def summarize(found: QueryResults, query_pids: Array, gallery_pids: Array, max_rank: int = 50) -> RankingMetrics:
    """Compute the metrics from the results of all queries (second half of `rank_blocks`).

    Raises ValueError if no query has a true match or max_rank is below 10.
    """
    if max_rank < 10:
        raise ValueError(f"max_rank must be at least 10: got {max_rank}")
    q_pids, g_pids = np.asarray(query_pids), np.asarray(gallery_pids)
    valid = ~np.isnan(found.average_precision)
    if not valid.any():
        shared = len(np.intersect1d(q_pids[q_pids >= 0], g_pids[g_pids >= 0]))
        raise ValueError(
            f"no query has a true match in another camera: {len(q_pids)} queries and {len(g_pids)} gallery images share "
            f"{shared} identities; check the split and the labels"
        )
    counts = np.bincount(np.minimum(found.first[valid], max_rank), minlength=max_rank + 1)
    return RankingMetrics(
        mAP=float(found.average_precision[valid].mean()),
        cmc=np.cumsum(counts)[:max_rank] / valid.sum(),
        mINP=float(found.penalty[valid].mean()),
        average_precision=found.average_precision,
        num_valid_queries=int(valid.sum()),
    )


@torch.no_grad()
def best_matches(
    query_features: Tensor | Array,
    query_pids: Array,
    query_camids: Array,
    gallery_features: Tensor | Array,
    gallery_pids: Array,
    gallery_camids: Array,
    top: int = 10,
    block: int = 256,
) -> BestMatches:
    """The `top` nearest gallery images of every query, without junk. Queries without a true match are included.

    Other arguments and errors as in `rank`.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1: got {top}")
    q_pids, q_camids = (torch.from_numpy(each) for each in labels_of("query", query_pids, query_camids))
    g_pids, g_camids = (torch.from_numpy(each) for each in labels_of("gallery", gallery_pids, gallery_camids))
    check_fit("query", query_features, q_pids)
    check_fit("gallery", gallery_features, g_pids)
    indices = np.full((len(q_pids), top), -1, np.int64)
    similarities = np.full((len(q_pids), top), -np.inf, np.float32)
    for start, scores in cosine_blocks(query_features, gallery_features, block):
        pids, camids = q_pids[start : start + block, None], q_camids[start : start + block, None]
        junk = (g_pids == -1) | ((g_pids == pids) & (g_camids == camids) & (camids != -1))
        scores[junk.to(scores.device)] = -torch.inf
        values, columns = (each.cpu().numpy() for each in top_scores(scores, top))
        rows = slice(start, start + len(scores))
        indices[rows, : columns.shape[1]] = np.where(np.isinf(values), -1, columns)
        similarities[rows, : columns.shape[1]] = values
    correct = (indices >= 0) & (g_pids.numpy()[indices] == q_pids.numpy()[:, None])
    return BestMatches(indices, correct, similarities)


def same_camera_share(features: Tensor | Array, camids: Array, k: int = 1) -> float:
    """Share, in [0, 1], of the k nearest other images that come from the same camera as the image.

    If the share is far above chance, the features describe the camera or its background rather than the person. Images of an
    unknown camera (-1) are ignored.

    Args:
        features: float (N, D).
        camids: integers (N,).
        k: number of neighbors of each image, less than the number of images with a known camera.

    Raises:
        ValueError: camids do not fit, k is out of range, or features are not finite.
    """
    cameras = np.asarray(camids)
    known = np.flatnonzero(cameras != -1)
    if cameras.shape != (len(features),):
        raise ValueError(f"camids must have one number per image: got {cameras.shape} for {len(features)} images")
    if not 1 <= k < len(known):
        raise ValueError(f"k must be in [1, images with a known camera - 1 = {len(known) - 1}]: got {k}")
    tensor = torch.as_tensor(features)
    neighbors = knn(tensor[torch.from_numpy(known).to(tensor.device)], k + 1)[0][:, 1:]
    cameras = cameras[known]
    return float((cameras[neighbors] == cameras[:, None]).mean())
