"""Pseudo-identities of unlabelled images: neighbours, Jaccard distance, DBSCAN (Cluster Contrast, arXiv 2103.11568)."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reidssl.clustering.dbscan import dbscan
from reidssl.clustering.jaccard import sparse_jaccard
from reidssl.clustering.neighbours import Array, Neighbours, knn


@dataclass(kw_only=True)
class ClusterConfig:
    """How images are grouped."""

    k1: int = 30
    """Neighbours, the image included, whose reciprocity counts."""
    k2: int = 6
    """Neighbours, the image included, averaged by query expansion."""
    eps: float = 0.6
    """Largest Jaccard distance between neighbours in a cluster (0.6 for Market-1501, 0.7 for MSMT17)."""
    min_samples: int = 4
    """Neighbours, the image included, that make an image the core of a cluster."""

    def __post_init__(self) -> None:
        if self.k1 < 1:
            raise ValueError(f"k1 must be at least 1: got {self.k1}")
        if not 1 <= self.k2 <= self.k1:
            raise ValueError(f"k2 must be in [1, k1 = {self.k1}]: got {self.k2}")
        if not 0.0 < self.eps < 1.0:
            raise ValueError(f"eps must be in (0, 1): got {self.eps}")
        if self.min_samples < 1:
            raise ValueError(f"min_samples must be at least 1: got {self.min_samples}")


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of N images."""

    labels: Array
    """int64 (N,), cluster number in [0, num_clusters), or -1 for outliers."""
    num_clusters: int
    num_outliers: int
    seconds: dict[str, float]
    """Wall time of "search" (absent if the neighbours were given), "jaccard" and "dbscan"."""


def pseudo_labels(
    features: Tensor | Array,
    config: ClusterConfig,
    neighbours: Neighbours | None = None,
    num_threads: int | None = None,
) -> PseudoLabels:
    """Group N images by their features, float (N, D).

    Args:
        neighbours: (indices, similarities) of a search made elsewhere, at least k1 columns; None: exact search here.
        num_threads: of the Jaccard step; None: as many as torch uses. The search uses torch's threads.

    Raises:
        ValueError: features that are not finite (the row is named), or a table that does not fit.
    """
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[name], clock = now - clock, now

    if neighbours is None:
        neighbours = knn(features, config.k1)
        lap("search")
    distances = sparse_jaccard(
        features, config.k1, config.k2, neighbours, max_distance=config.eps, num_threads=num_threads
    )
    lap("jaccard")
    labels = dbscan(distances, config.eps, config.min_samples)
    lap("dbscan")
    return PseudoLabels(labels, int(labels.max()) + 1, int((labels < 0).sum()), seconds)


@torch.no_grad()
def cluster_centroids(features: Tensor | Array, labels: Tensor | Array) -> Tensor:
    """The mean feature of each cluster, scaled to length one: float32 (C, D) on the features' device.

    Args:
        features: float (N, D).
        labels: integers (N,), 0..C-1 with every number used; outliers (-1) are left out.

    Raises:
        ValueError: no cluster at all, an unused number, or arrays of different length.
    """
    values = torch.as_tensor(features).float()
    numbers = torch.as_tensor(np.asarray(labels) if not isinstance(labels, Tensor) else labels).to(values.device).long()
    if values.ndim != 2 or numbers.shape != values.shape[:1]:
        raise ValueError(
            f"features must be (N, D) and labels (N,): got {tuple(values.shape)} and {tuple(numbers.shape)}"
        )
    kept = numbers >= 0
    if not bool(kept.any()):
        raise ValueError(
            f"there is no cluster: all {len(numbers)} labels are -1; raise eps, lower min_samples, or train longer first"
        )
    counts = torch.bincount(numbers[kept])
    if bool((counts == 0).any()):
        raise ValueError(f"labels must use every number up to {len(counts) - 1}: {int((counts == 0).nonzero()[0])} is unused")
    sums = torch.zeros(len(counts), values.shape[1], device=values.device)
    sums.index_add_(0, numbers[kept], values[kept])
    return F.normalize(sums / counts[:, None], dim=1)
