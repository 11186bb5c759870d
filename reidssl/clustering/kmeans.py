"""Spherical k-means with FAISS, for a known number of identities or a fixed number of classes."""

import numpy as np
import torch
from torch import Tensor

from reidssl.clustering.cluster_config import check_kmeans
from reidssl.clustering.infomap import renumbered
from reidssl.clustering.neighbors import Array, unit_rows


def kmeans(features: Tensor | Array, num_clusters: int, iterations: int = 20, seed: int = 0) -> Array:
    """Cluster labels int64 (N,), 0..C-1 in order of the first image. C is below `num_clusters` if clusters are empty.

    Args:
        features: float (N, D); rows are normalized here.
        num_clusters: number of clusters, at most N.
        iterations: number of k-means iterations.
        seed: seed of the initial centers.

    Raises:
        ValueError: features are not finite (the message names the row), there are more clusters than images, or FAISS is missing.
    """
    check_kmeans(num_clusters)
    unit = unit_rows(features).cpu().numpy()
    if num_clusters > len(unit):
        raise ValueError(f"num_clusters must be at most the number of images, {len(unit)}: got {num_clusters}")
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    search = faiss.Kmeans(
        unit.shape[1],
        num_clusters,
        niter=iterations,
        spherical=True,
        seed=seed + 1,
        min_points_per_centroid=1,
        max_points_per_centroid=256,
    )
    search.train(unit)
    return renumbered(search.index.search(np.ascontiguousarray(unit), 1)[1][:, 0])
