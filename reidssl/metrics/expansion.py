"""Alpha query expansion (Radenovic et al., arXiv 1711.02512): a query becomes a weighted mean of itself and its best matches."""

import torch
from torch import Tensor
from torch.nn import functional as F

from reidssl.clustering.neighbors import Array, nearest
from reidssl.metrics.inputs import unit_pair


@torch.no_grad()
def expand_queries(
    query_features: Tensor | Array, gallery_features: Tensor | Array, k: int, alpha: float = 3.0, block: int = 128
) -> Tensor:
    """float32 (Q, D), rows of length one: q + the sum over its k nearest gallery images of cosine^alpha times the image.

    Args:
        query_features, gallery_features: float (Q, D) and (G, D); rows are normalized here.
        k: gallery images that take part, at least 1 (all of them where there are fewer).
        alpha: 0 weighs all alike; the larger, the less the farther ones count. Negative cosines count nothing.
        block: queries at a time.

    Raises:
        ValueError: k below 1, alpha below 0, features that do not fit or are not finite.
    """
    if k < 1 or alpha < 0:
        raise ValueError(f"k must be at least 1 and alpha at least 0: got {k}, {alpha}")
    queries, gallery = unit_pair(query_features, gallery_features)
    found = nearest(queries, gallery, k, block=block)
    indices, weights = (torch.from_numpy(each).to(queries.device) for each in (found.indices, found.similarities))
    weights = torch.where(weights > 0, weights.clamp(min=0) ** alpha, 0)
    expanded = queries.clone()
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        expanded[rows] += torch.einsum("qk,qkd->qd", weights[rows], gallery[indices[rows]])
    return F.normalize(expanded, dim=1)
