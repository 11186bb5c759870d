"""Alpha query expansion (Radenovic et al., arXiv 1711.02512): each query is replaced by a weighted mean with its best matches."""

import torch
from torch import Tensor
from torch.nn import functional as F

from reidssl.clustering.neighbors import Array, nearest
from reidssl.metrics.inputs import unit_pair
from reidssl.precision import no_autocast


@torch.no_grad()
def expand_queries(
    query_features: Tensor | Array, gallery_features: Tensor | Array, k: int, alpha: float = 3.0, block: int = 128
) -> Tensor:
    """Expanded queries: each query plus the sum of its k nearest gallery images, each weighted with cosine^alpha.

    Args:
        query_features, gallery_features: float (Q, D) and (G, D); rows are normalized here.
        k: number of gallery images, at least 1; all of them if there are fewer.
        alpha: exponent, 0 or more. With 0, all weights are equal; a larger alpha gives less weight to farther images. Images with
            a negative cosine have weight 0.
        block: number of queries processed at a time.

    Returns:
        float32 (Q, D), rows of length one.

    Raises:
        ValueError: k is below 1, alpha is below 0, or features do not fit or are not finite.
    """
    if k < 1 or alpha < 0:
        raise ValueError(f"k must be at least 1 and alpha at least 0: got {k}, {alpha}")
    queries, gallery = unit_pair(query_features, gallery_features)
    found = nearest(queries, gallery, k, block=block)
    indices, weights = (torch.from_numpy(each).to(queries.device) for each in (found.indices, found.similarities))
    weights = torch.where(weights > 0, weights.clamp(min=0) ** alpha, 0)
    expanded = queries.clone()
    with no_autocast(queries):  # a process that trains in bf16 may allow inexact products
        for start in range(0, len(queries), block):
            rows = slice(start, start + block)
            expanded[rows] += torch.einsum("qk,qkd->qd", weights[rows], gallery[indices[rows]])
    return F.normalize(expanded, dim=1)
