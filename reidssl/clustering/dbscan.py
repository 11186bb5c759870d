"""DBSCAN on a sparse distance graph (Ester et al., KDD 1996). Time and memory are linear in the number of stored pairs.

Labels are identical to those of scikit-learn's `DBSCAN(metric="precomputed")` on the dense matrix: clusters are numbered by
their first core point, and a border point belongs to the first cluster with a core point that reaches it.
"""

import numpy as np
import scipy.sparse as sp

from reidssl.clustering.neighbors import Array
from reidssl.row_blocks import kernel


def dbscan(distances: sp.csr_matrix, eps: float, min_samples: int) -> Array:
    """Cluster labels from distances in [0, 1].

    Args:
        distances: float CSR (N, N), symmetric. A pair without an entry is further apart than eps. The distance of a point to
            itself is 0, whether it is stored or not.
        eps: largest distance between neighbors, in [0, 1); compared in the dtype of the distances.
        min_samples: number of neighbors, including the point itself, that make a point a core point.

    Returns:
        int64 (N,): 0..C-1, or -1 for outliers.

    Raises:
        ValueError: eps or min_samples are out of range, or the matrix is not square, not sparse or contains NaN.
    """
    check_dbscan(eps, min_samples)
    if not sp.issparse(distances) or distances.shape[0] != distances.shape[1]:
        raise ValueError(f"distances must be a square sparse matrix: got {type(distances).__name__} {distances.shape}")
    graph = distances.tocsr()
    if np.isnan(graph.data).any():
        row = int(np.searchsorted(graph.indptr, np.isnan(graph.data).argmax(), side="right")) - 1
        raise ValueError(f"distances must be numbers: row {row} holds NaN")
    near = graph.data <= graph.data.dtype.type(eps)
    labels: np.ndarray = _expand(graph.indptr, graph.indices, near, min_samples)
    return labels


def check_dbscan(eps: float, min_samples: int) -> None:
    """Raise ValueError if eps or min_samples are out of range."""
    if not 0.0 <= eps < 1.0:
        raise ValueError(f"eps must be in [0, 1): got {eps}; pairs at distance 1 are not stored")
    if min_samples < 1:
        raise ValueError(f"min_samples must be at least 1: got {min_samples}")


@kernel
def _expand(pointers, indices, near, min_samples):  # type: ignore[no-untyped-def]
    """Grow each cluster from its first core point. Points that are not core points are reached but not expanded."""
    num = len(pointers) - 1
    core = np.zeros(num, np.bool_)
    for i in range(num):
        others = 0
        for place in range(pointers[i], pointers[i + 1]):
            if near[place] and indices[place] != i:
                others += 1
        core[i] = others + 1 >= min_samples
    labels = np.full(num, -1, np.int64)
    waiting = np.empty(num, np.int64)  # each point is labeled once, so it is on the stack at most once
    cluster = 0
    for seed in range(num):
        if not core[seed] or labels[seed] >= 0:
            continue
        labels[seed] = cluster
        waiting[0] = seed
        num_waiting = 1
        while num_waiting:
            num_waiting -= 1
            i = waiting[num_waiting]
            for place in range(pointers[i], pointers[i + 1]):
                j = indices[place]
                if near[place] and labels[j] < 0:
                    labels[j] = cluster
                    if core[j]:
                        waiting[num_waiting] = j
                        num_waiting += 1
        cluster += 1
    return labels
