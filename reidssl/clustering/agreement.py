"""How well cluster labels agree with identities, or with the labels of another epoch."""

import numpy as np
from numpy.typing import NDArray


def agreement(labels: NDArray[np.int64], pids: NDArray[np.int64]) -> float:
    """Adjusted Rand index of labels and identities: 1 for the same groups, near 0 by chance.

    labels: int64 (N,), -1 for outliers, each of which counts as a cluster of its own: they are in no cluster, so no two of them
    are taken for one person. pids: int64 (N,).
    """
    from sklearn.metrics import adjusted_rand_score

    alone = labels.max(initial=-1) + 1 + np.arange(len(labels))
    return float(adjusted_rand_score(pids, np.where(labels < 0, alone, labels)))


def purity(labels: NDArray[np.int64], pids: NDArray[np.int64]) -> float:
    """Share of the clustered images that have the most frequent identity of their cluster, in (0, 1]; NaN without clusters.

    labels: int64 (N,), -1 for outliers, which do not count; pids: int64 (N,). Many small clusters are pure by chance, so read it
    together with the number of clusters.
    """
    inside = labels >= 0
    if not inside.any():
        return float("nan")
    _, rows = np.unique(labels[inside], return_inverse=True)
    _, columns = np.unique(pids[inside], return_inverse=True)
    width = int(columns.max()) + 1
    pairs, counts = np.unique(rows * width + columns, return_counts=True)
    largest = np.zeros(int(rows.max()) + 1, np.int64)
    np.maximum.at(largest, pairs // width, counts)
    return float(largest.sum() / inside.sum())


def stability(labels: NDArray[np.int64], before: NDArray[np.int64]) -> float:
    """Adjusted Rand index of two labelings of the same images, over those that are in a cluster in both; NaN for fewer than two.

    labels, before: int64 (N,), -1 for outliers. 1: the same clusters; 0: as alike as by chance.
    """
    from sklearn.metrics import adjusted_rand_score

    both = (labels >= 0) & (before >= 0)
    return float(adjusted_rand_score(before[both], labels[both])) if both.sum() > 1 else float("nan")
