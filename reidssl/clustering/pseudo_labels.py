"""Pseudo-identities of unlabeled images: neighbors, Jaccard distance, clusters (Cluster Contrast, arXiv 2103.11568)."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional as F

from reidssl.clustering.cluster_config import ClusterConfig
from reidssl.clustering.dbscan import dbscan
from reidssl.clustering.dbscan_graphless import dbscan_vectors
from reidssl.clustering.index import find_neighbors, recall
from reidssl.clustering.infomap import infomap
from reidssl.clustering.jaccard import TooManyPairs, jaccard_rows, jaccard_vectors
from reidssl.clustering.kmeans import kmeans
from reidssl.clustering.neighbors import Array, Neighbors
from reidssl.clustering.nn_descent import refine
from reidssl.clustering.reliability import reliable

PAIRS_PER_IMAGE = 1000
"""Maximum average number of stored pairs within eps per image (8 bytes each). Usual: some tens; collapsed features: N."""

Graph = Callable[[sp.csr_matrix, float, int], sp.csr_matrix]
"""Function (vectors, largest distance, maximum number of pairs) -> distances; may raise TooManyPairs."""


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo-labels of N images."""

    labels: Array
    """int64 (N,), cluster number in [0, num_clusters), or -1 for outliers."""
    num_clusters: int
    num_outliers: int
    seconds: dict[str, float]
    """Wall time of each step in seconds: "search" (not if neighbors were given), "refine", "recall", "jaccard", "dbscan", ..."""
    recall: float | None = None
    """Recall of an approximate search in [0, 1], measured on a sample; None for an exact search."""


def pseudo_labels(
    features: Tensor | Array,
    config: ClusterConfig,
    neighbors: Neighbors | None = None,
    num_threads: int | None = None,
    progress: float = 0.0,
) -> PseudoLabels:
    """Cluster N images by their features.

    Args:
        features: float (N, D).
        config: algorithm and its settings.
        neighbors: (indices, similarities) from another search, with at least min(k1, N) columns; None: searched here.
        num_threads: number of threads of the Jaccard step; None: torch's number. The search uses torch's threads.
        progress: completed fraction of the training, in [0, 1], for the schedule of eps.

    Raises:
        ValueError: features are not finite (the message names the row) or have collapsed, or `neighbors` does not fit.
    """
    lap, found = Laps(), None
    if config.algorithm == "kmeans":
        labels = kmeans(features, config.num_clusters)
        lap("kmeans")
        return PseudoLabels(labels, int(labels.max()) + 1, 0, lap.seconds)
    if neighbors is None:
        neighbors = find_neighbors(features, config.k1, config.search, config.search_effort)
        lap("search")
    if config.search != "exact":
        neighbors = refine(features, neighbors, num_threads)
        lap("refine")
        found = recall(features, neighbors)
        lap("recall")
    vectors = jaccard_vectors(features, config.k1, config.k2, neighbors, num_threads=num_threads)

    def graph(vectors: sp.csr_matrix, max_distance: float, most_pairs: int) -> sp.csr_matrix:
        return jaccard_rows(vectors, len(features), max_distance, num_threads=num_threads, most_pairs=most_pairs)

    labels = vectors_to_labels(vectors, config, graph, lap, progress, num_threads)
    return PseudoLabels(labels, int(labels.max()) + 1, int((labels < 0).sum()), lap.seconds, found)


def vectors_to_labels(
    vectors: sp.csr_matrix,
    config: ClusterConfig,
    graph: Graph,
    lap: "Laps",
    progress: float = 0.0,
    num_threads: int | None = None,
) -> Array:
    """Step 5 of the Jaccard distance, and clustering: labels int64 (N,), -1 for outliers.

    If there are more near pairs than can be stored, DBSCAN runs without the stored graph, which is slower.

    Args:
        vectors: float32 CSR (N, N), sorted indices (`jaccard_vectors`).
        graph: computes the distances, in this process or in others.
        lap: called at the end of each step.
        progress, num_threads: as in `pseudo_labels`.

    Raises:
        ValueError: there are too many near pairs and the algorithm needs the stored graph.
    """
    eps, gap, num = config.eps_at(progress), config.reliability_gap, vectors.shape[0]
    try:
        distances = graph(vectors, eps + gap, PAIRS_PER_IMAGE * num)
    except TooManyPairs as error:
        lap("jaccard")
        if config.algorithm != "dbscan" or gap:
            raise ValueError(
                f"the features have collapsed: {error}, {PAIRS_PER_IMAGE:,} for each of {num:,} images, and "
                f"{'the reliability criterion' if gap else config.algorithm} needs them all in memory; look for a diverged or "
                "untrained model, lower eps, or use algorithm=dbscan with reliability_gap=0"
            ) from None
        labels = dbscan_vectors(vectors, eps, config.min_samples, num_threads=num_threads)
        lap("dbscan")
        return labels
    lap("jaccard")
    cluster = {"dbscan": dbscan, "infomap": infomap}[config.algorithm]
    labels = cluster(distances, eps, config.min_samples)
    if gap:
        looser, tighter = (cluster(distances, each, config.min_samples) for each in (eps + gap, eps - gap))
        labels = reliable(labels, looser, tighter, config.reliable_share, min(2, config.min_samples))
    lap(config.algorithm)
    return labels


class Laps:
    """Stopwatch for the wall time of consecutive steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = time.perf_counter()

    def __call__(self, name: str) -> None:
        """Record the time since the previous call, or since creation, as the time of step `name`."""
        now = time.perf_counter()
        self.seconds[name], self._clock = now - self._clock, now


@torch.no_grad()
def cluster_centroids(features: Tensor | Array, labels: Tensor | Array) -> Tensor:
    """The mean feature of each cluster, scaled to length one: float32 (C, D) on the features' device.

    Args:
        features: float (N, D).
        labels: integers (N,), 0..C-1 with every number used. Outliers (-1) are ignored.

    Raises:
        ValueError: there is no cluster, a number is unused, or the arrays differ in length.
    """
    values = torch.as_tensor(features).float()
    numbers = torch.as_tensor(np.asarray(labels) if not isinstance(labels, Tensor) else labels).to(values.device).long()
    if values.ndim != 2 or numbers.shape != values.shape[:1]:
        raise ValueError(f"features must be (N, D) and labels (N,): got {tuple(values.shape)} and {tuple(numbers.shape)}")
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
