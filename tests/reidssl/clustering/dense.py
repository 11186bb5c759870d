"""Plain N x N version of the k-reciprocal Jaccard distance, as a reference."""

import numpy as np

from reidssl.clustering.neighbors import knn


def dense_vectors(features, table, half, scales):
    """Rows of softmax weights over the expanded reciprocal sets, float64 (N, N)."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    squared = 2 - 2 * unit @ unit.T
    num = len(unit)

    def reciprocal(i, k):
        return {int(j) for j in table[i, :k] if i in table[j, :k]}

    vectors = np.zeros((num, num))
    for i in range(num):
        first = reciprocal(i, table.shape[1])
        expanded = set(first)
        for j in first:
            candidate = reciprocal(j, half)
            if len(candidate & first) > 2 / 3 * len(candidate):
                expanded |= candidate
        chosen = sorted(expanded)
        weights = np.exp(-squared[i, chosen] * scales[i])
        vectors[i, chosen] = weights / weights.sum()
    return vectors


def dense_distances(vectors, table, k2):
    """Query expansion and Jaccard distance, float64 (N, N)."""
    expanded = np.stack([vectors[row[:k2]].mean(axis=0) for row in table])
    shared = np.stack([np.minimum(row, expanded).sum(axis=1) for row in expanded])
    return np.clip(1 - shared / (2 - shared), 0, None)


def dense_jaccard(features, k1, k2):
    features = np.asarray(features, np.float64)
    table = knn(features, k1)[0]
    vectors = dense_vectors(features, table, round(k1 / 2) + 1, np.ones(len(features)))
    return dense_distances(vectors, table, k2)


def to_dense(distances):
    """Dense float32 matrix of sparse distances; pairs that are not stored have distance 1."""
    full = np.ones(distances.shape, np.float32)
    entries = distances.tocoo()
    full[entries.row, entries.col] = entries.data
    return full
