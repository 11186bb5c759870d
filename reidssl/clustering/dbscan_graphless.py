"""DBSCAN on Jaccard distances that are not stored, for features so similar that most pairs of images are near each other.

For such features even the sparse graph has about N x N entries. Here the distance of a pair is computed when it is needed, from
the images' vectors of weights: first for each point until it has enough neighbors to be a core point, then from core points to
points without a label. Memory is that of the vectors plus a few arrays of N numbers. Labels equal those of `dbscan` on the
stored graph.
"""

from functools import partial

import numpy as np
import scipy.sparse as sp

from reidssl.clustering.dbscan import check_dbscan
from reidssl.clustering.jaccard import by_image
from reidssl.clustering.neighbors import Array
from reidssl.clustering.reciprocal import block_of
from reidssl.row_blocks import kernel, over_blocks


def dbscan_vectors(
    vectors: sp.csr_matrix, eps: float, min_samples: int, block: int | None = None, num_threads: int | None = None
) -> Array:
    """`dbscan(jaccard_rows(vectors, N, eps), eps, min_samples)`, without the graph.

    Args:
        vectors: float32 CSR (N, N), sorted indices (`jaccard_vectors`).
        block, num_threads: number of rows that a thread processes at once in the first pass, and number of threads, as in
            `sparse_jaccard`.

    Returns and raises: as `dbscan`.
    """
    check_dbscan(eps, min_samples)
    columns, num = by_image(vectors), vectors.shape[0]
    pairs = (vectors.indptr, vectors.indices, vectors.data, columns.indptr, columns.indices)
    core, limit = np.zeros(num, np.bool_), np.float32(eps)
    over_blocks(partial(_find_core, *pairs, limit, min_samples, core), num, block_of(num, block), num_threads)
    labels: np.ndarray = _label(*pairs[:4], columns.indices.copy(), limit, core)
    return labels


@kernel
def _distance(pointers, indices, data, i, j):  # type: ignore[no-untyped-def]
    """J(i, j), summed in ascending order of the images as in jaccard.py, so that both round in the same way."""
    a, b, shared = pointers[i], pointers[j], np.float32(0)
    while a < pointers[i + 1] and b < pointers[j + 1]:
        if indices[a] == indices[b]:
            shared += min(data[a], data[b])
            a += 1
            b += 1
        elif indices[a] < indices[b]:
            a += 1
        else:
            b += 1
    return max(np.float32(0), np.float32(1) - shared / (np.float32(2) - shared))


@kernel
def _find_core(  # type: ignore[no-untyped-def]
    pointers, indices, data, by_pointers, by_indices, eps, min_samples, core, start, stop
):
    """Find the core points among the points start..stop; updates `core`, bool (N,)."""
    asked = np.full(len(core), -1, np.int64)
    for i in range(start, stop):
        asked[i] = i
        near = 1
        for place in range(pointers[i], pointers[i + 1]):
            image = indices[place]
            for other in range(by_pointers[image], by_pointers[image + 1]):
                if near >= min_samples:
                    break
                j = by_indices[other]
                if asked[j] != i:
                    asked[j] = i
                    near += _distance(pointers, indices, data, i, j) <= eps
        core[i] = near >= min_samples


@kernel
def _label(pointers, indices, data, by_pointers, unlabeled, eps, core):  # type: ignore[no-untyped-def]
    """Grow each cluster from its first core point.

    unlabeled: int32, for each image the vectors with a weight for it, as `by_indices`; updated. Points that have a label are
    removed from a list when the list is next visited, so that they are not visited again by every member of their cluster.
    """
    num = len(core)
    labels = np.full(num, -1, np.int64)
    waiting = np.empty(num, np.int64)
    asked = np.full(num, -1, np.int64)
    ends = by_pointers[1:].copy()
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
                image = indices[place]
                kept = by_pointers[image]
                for other in range(by_pointers[image], ends[image]):
                    j = unlabeled[other]
                    if labels[j] >= 0:
                        continue
                    unlabeled[kept] = j
                    kept += 1
                    if asked[j] == i:
                        continue
                    asked[j] = i
                    if _distance(pointers, indices, data, i, j) <= eps:
                        labels[j] = cluster
                        if core[j]:
                            waiting[num_waiting] = j
                            num_waiting += 1
                ends[image] = kept
        cluster += 1
    return labels
