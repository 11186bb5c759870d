"""k-reciprocal re-ranking (Zhong et al., arXiv 1701.08398) without the dense matrices of the original.

New distance = weight * d + (1 - weight) * J. Here d is the squared Euclidean distance divided by the largest one in the query's
row (over queries and gallery), and J is the k-reciprocal Jaccard distance in the joint set of queries and gallery. J is 1 for
pairs that share no neighbor, so only the other pairs are stored. Here an image has k1 + 1 neighbors, including itself.

The result differs from the usual code in precision only. That code stores weights in float16, which changes mAP by about 2e-5.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from reidssl.clustering.jaccard import jaccard_rows
from reidssl.clustering.neighbors import Array, nearest_among
from reidssl.clustering.products import products, products_buffer
from reidssl.clustering.reciprocal import query_expansion, reciprocal_vectors
from reidssl.metrics.inputs import check_fit, labels_of, unit_pair
from reidssl.metrics.ranking import RankingMetrics, rank_blocks
from reidssl.row_blocks import kernel

NOWHERE = np.float32(1e-5)
"""Minimum of the largest squared distance, by which the others are divided. If all images are equal, a smaller divisor would
amplify the rounding errors of distances (1e-7) or overflow the weights."""


def rank_reranked(
    query_features: Tensor | Array,
    query_pids: Array,
    query_camids: Array,
    gallery_features: Tensor | Array,
    gallery_pids: Array,
    gallery_camids: Array,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    block: int = 128,
    max_rank: int = 50,
    num_threads: int | None = None,
) -> RankingMetrics:
    """`rank` after re-ranking. Gallery images of identity -1 are removed first, as the usual code does on loading.

    Args:
        k1, k2, weight: as in `reranked_blocks`.
        Other arguments and errors as in `rank`.
    """
    gallery_pids, gallery_camids = labels_of("gallery", gallery_pids, gallery_camids)
    check_fit("gallery", gallery_features, gallery_pids)
    kept = np.flatnonzero(gallery_pids != -1)
    gallery = torch.as_tensor(gallery_features)
    gallery = gallery[torch.from_numpy(kept).to(gallery.device)]
    blocks = reranked_blocks(query_features, gallery, k1, k2, weight, block, num_threads)
    return rank_blocks(
        blocks, query_pids, query_camids, gallery_pids[kept], gallery_camids[kept], max_rank, num_threads=num_threads
    )


@torch.no_grad()
def reranked_blocks(
    query_features: Tensor | Array,
    gallery_features: Tensor | Array,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    block: int = 128,
    num_threads: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Negative re-ranked distances of consecutive query blocks, as scores for `rank_blocks`.

    Args:
        query_features, gallery_features: float (Q, D) and (G, D); rows are normalized here.
        k1, k2: numbers of neighbors for the reciprocal sets and for query expansion, 1 <= k2 <= k1.
        weight: weight of the original distance (lambda in the paper), in [0, 1].
        block: number of queries in a block.
        num_threads: number of threads; None: torch's number.

    Yields:
        (first query, float32 (block, G)). Each block is overwritten by the next one.

    Raises:
        ValueError: an argument is out of range, or features are not finite.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1 query: got {block}")
    if not 1 <= k2 <= k1:
        raise ValueError(f"k1 and k2 must satisfy 1 <= k2 <= k1: got k1 {k1}, k2 {k2}")
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"weight must be in [0, 1]: got {weight}")
    queries, gallery = unit_pair(query_features, gallery_features)
    both = torch.cat([queries, gallery])
    num = len(queries)
    found = nearest_among(both, k1 + 1, num_threads=num_threads)
    farthest = np.maximum(2 - 2 * found.lowest, NOWHERE)
    table = found.indices.astype(np.int32)
    vectors = reciprocal_vectors(both, table, round(k1 / 2) + 1, 1 / farthest, num_threads=num_threads)
    vectors = query_expansion(vectors, np.ascontiguousarray(table[:, :k2]))
    jaccard = jaccard_rows(vectors, num, num_threads=num_threads, first_column=num)
    scale = torch.from_numpy(2 * weight / farthest[:num, None]).to(queries.device)
    buffer = products_buffer(queries, min(block, num), len(gallery))
    for start in range(0, num, block):
        rows, factor = queries[start : start + block], scale[start : start + block]
        # First the negative distances as if J were 1 for all pairs, then a correction for the pairs with a smaller J.
        scores = products(rows * factor, gallery, buffer).add_(weight - 1 - factor).cpu()
        pointers = jaccard.indptr[start : start + len(rows) + 1]
        _add_nearness(scores.numpy(), pointers, jaccard.indices, jaccard.data, np.float32(1 - weight))
        yield start, scores


@kernel
def _add_nearness(scores, pointers, indices, data, factor):  # type: ignore[no-untyped-def]
    """scores[i, j] += factor * (1 - J(i, j)) for the stored pairs."""
    for row in range(len(scores)):
        for place in range(pointers[row], pointers[row + 1]):
            scores[row, indices[place]] += factor * (np.float32(1) - data[place])
