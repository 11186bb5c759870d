"""The published dense algorithms in plain form: N x N arrays and a Python loop over the images.

Pseudo-labels as in Cluster Contrast (arXiv 2103.11568): FAISS flat search, reciprocal weights V, query expansion, Jaccard matrix
and scikit-learn's DBSCAN. Re-ranking as in Zhong et al. (arXiv 1701.08398): full sort of the distances, V in float16.
"""

import faiss
import numpy as np
import torch
from sklearn.cluster import DBSCAN

from reidssl.row_blocks import kernel


def reciprocal_sets(ranks: np.ndarray, k: int) -> list[np.ndarray]:
    """For every image, those of its first k neighbors that have it among their own first k neighbors."""
    sets = []
    for i in range(len(ranks)):
        forward = ranks[i, :k]
        backward = ranks[forward, :k]
        sets.append(forward[np.where(backward == i)[0]])
    return sets


def expanded_set(i: int, full: list[np.ndarray], half: list[np.ndarray]) -> np.ndarray:
    """R*(i): the union of R(i) and every half-size set of which more than two thirds lie in R(i)."""
    own = full[i]
    parts = own
    for candidate in own:
        other = half[candidate]
        if len(np.intersect1d(other, own)) > 2 / 3 * len(other):
            parts = np.append(parts, other)
    return np.unique(parts)


def jaccard_matrix(features: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """Jaccard distances float32 (N, N) for clustering."""
    num = len(features)
    index = faiss.IndexFlatL2(features.shape[1])
    index.add(features)
    ranks = index.search(features, k1)[1]
    full, half = reciprocal_sets(ranks, k1), reciprocal_sets(ranks, round(k1 / 2) + 1)
    vectors = np.zeros((num, num), np.float32)
    for i in range(num):
        members = expanded_set(i, full, half)
        distances = torch.from_numpy(2 - 2 * features[i] @ features[members].T)
        vectors[i, members] = torch.softmax(-distances, dim=0).numpy()
    if k2 != 1:
        means = np.zeros_like(vectors)
        for i in range(num):
            means[i] = vectors[ranks[i, :k2]].mean(axis=0)
        vectors = means
    inverted = [np.where(vectors[:, i] != 0)[0] for i in range(num)]
    jaccard = np.zeros((num, num), np.float32)
    for i in range(num):
        shared = np.zeros(num, np.float32)
        for image in np.where(vectors[i] != 0)[0]:
            shared[inverted[image]] += np.minimum(vectors[i, image], vectors[inverted[image], image])
        jaccard[i] = 1 - shared / (2 - shared)
    jaccard[jaccard < 0] = 0
    return jaccard


def pseudo_labels(features: np.ndarray, k1: int, k2: int, eps: float, min_samples: int) -> np.ndarray:
    """Cluster numbers int64 (N,), -1 for outliers."""
    distances = jaccard_matrix(features, k1, k2)
    return DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed", n_jobs=-1).fit_predict(distances)


def rerank(queries: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, weight: float = 0.3) -> np.ndarray:
    """Re-ranked distances float32 (Q, G)."""
    num_query, features = len(queries), torch.from_numpy(np.concatenate([queries, gallery]))
    squares = features.pow(2).sum(dim=1)
    original = (squares[:, None] + squares[None]).addmm_(features, features.T, beta=1, alpha=-2).numpy()
    num = len(original)
    original = np.transpose(original / np.max(original, axis=0))
    ranks = np.argsort(original).astype(np.int32)
    full, half = reciprocal_sets(ranks, k1 + 1), reciprocal_sets(ranks, round(k1 / 2) + 1)
    vectors = np.zeros((num, num), np.float16)
    for i in range(num):
        members = expanded_set(i, full, half)
        weights = np.exp(-original[i, members])
        vectors[i, members] = weights / np.sum(weights)
    original = original[:num_query]
    if k2 != 1:
        means = np.zeros_like(vectors)
        for i in range(num):
            means[i] = np.mean(vectors[ranks[i, :k2]], axis=0)
        vectors = means
    del ranks
    inverted = [np.where(vectors[:, i] != 0)[0] for i in range(num)]
    jaccard = np.zeros((num_query, num), np.float16)
    for i in range(num_query):
        shared = np.zeros(num, np.float16)
        for image in np.where(vectors[i] != 0)[0]:
            shared[inverted[image]] += np.minimum(vectors[i, image], vectors[inverted[image], image])
        jaccard[i] = 1 - shared / (2 - shared)
    return ((1 - weight) * jaccard + weight * original)[:, num_query:]


def squared_distances(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances float32 (Q, G), computed as in the usual libraries."""
    rows, columns = torch.from_numpy(queries), torch.from_numpy(gallery)
    squares = rows.pow(2).sum(dim=1, keepdim=True) + columns.pow(2).sum(dim=1)
    return squares.addmm_(rows, columns.T, beta=1, alpha=-2).numpy()


def sorted_ranking(
    distances: np.ndarray, q_pids: np.ndarray, g_pids: np.ndarray, q_camids: np.ndarray, g_camids: np.ndarray, max_rank: int = 50
) -> tuple[np.ndarray, float]:
    """(CMC (max_rank,), mAP) in the usual way: sort the whole gallery of every query, then run a compiled loop over it.

    It replaces the Cython evaluator of torchreid, whose source distribution lacks the Cython file. The steps and NumPy's sort
    are the same; numba compiles the loop.
    """
    order = np.argsort(distances, axis=1)
    matches = (g_pids[order] == q_pids[:, None]).astype(np.int64)
    return _loop(order, matches, q_pids, g_pids, q_camids, g_camids, max_rank)


@kernel
def _loop(order, matches, q_pids, g_pids, q_camids, g_camids, max_rank):  # type: ignore[no-untyped-def]
    curves, total, num_valid = np.zeros(max_rank), 0.0, 0
    raw = np.empty(order.shape[1], np.int64)
    for q in range(len(order)):
        num = 0
        for place in range(order.shape[1]):
            g = order[q, place]
            if g_pids[g] != q_pids[q] or g_camids[g] != q_camids[q]:
                raw[num] = matches[q, place]
                num += 1
        hits, precision, first = 0, 0.0, num
        for place in range(num):
            if raw[place]:
                if hits == 0:
                    first = place
                hits += 1
                precision += hits / (place + 1)
        if hits:
            num_valid += 1
            total += precision / hits
            for place in range(first, max_rank):
                curves[place] += 1
    return curves / num_valid, total / num_valid
