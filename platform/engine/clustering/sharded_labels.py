"""Pseudo-labels of features that no single process holds: search, Jaccard distance and clusters over Ray.

The features stay on the actors of the search. These also compute the similarities that the other steps need: for the
candidates of the refined search, for a sample that measures its recall, and for the members of the reciprocal sets. Then the
actors end. Ray tasks compute query expansion and distances for ranges of images from the weight vectors, which each node gets
once. This process holds the neighbor table, the vectors and the distances (about 1.5 kB per image), and clusters them. The
result equals `pseudo_labels` in one process.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from platform.engine.clustering.sharded_neighbors import FeatureShards, NeighborActorsConfig, shared_out
from platform.engine.inference.features import Part
from platform.engine.runtime.device import use_threads
from reidssl.clustering.cluster_config import ClusterConfig
from reidssl.clustering.jaccard import TooManyPairs, by_image, jaccard_range, stack, too_many
from reidssl.clustering.neighbors import Neighbors, self_first
from reidssl.clustering.nn_descent import candidates, taken
from reidssl.clustering.pseudo_labels import Laps, PseudoLabels, vectors_to_labels
from reidssl.clustering.reciprocal import half_of, query_expansion, reciprocal_sets, softmax_weights


def sharded_labels(
    parts: Sequence[Part], cluster: ClusterConfig, config: NeighborActorsConfig, progress: float = 0.0
) -> PseudoLabels:
    """`reidssl.clustering.pseudo_labels.pseudo_labels` of all parts together, by dbscan or infomap.

    progress: as in `pseudo_labels`.

    Raises:
        UserError: as in `shared_out`.
        ValueError: collapsed features with an algorithm that needs the whole graph.
    """
    lap, recall = Laps(), None
    with shared_out(parts, config, cluster.search, cluster.search_effort) as shards:
        found = shards.neighbors(cluster.k1)
        lap("search")
        if cluster.search != "exact":
            found = sharded_refine(shards, found)
            lap("refine")
            recall = sharded_recall(shards, found)
            lap("recall")
        table = self_first(found[0], shards.num)
        vectors = sharded_vectors(shards, table, half_of(cluster.k1))
    vectors = expanded_by_tasks(vectors, table[:, : cluster.k2], config)
    labels = vectors_to_labels(vectors, cluster, partial(distances_by_tasks, config=config), lap, progress)
    return PseudoLabels(labels, int(labels.max()) + 1, int((labels < 0).sum()), lap.seconds, recall)


def sharded_refine(shards: FeatureShards, neighbors: Neighbors) -> Neighbors:
    """`reidssl.clustering.nn_descent.refine` over actors: also consider the neighbors of the neighbors."""
    indices, similarities = neighbors
    found, near = np.empty_like(indices), np.empty_like(similarities)

    def conclusion(start: int, stop: int) -> Callable[..., Neighbors]:
        return partial(taken, indices[start:stop], similarities[start:stop], np.arange(start, stop))

    block = max(1, shards.config.block // 8)  # an image has hundreds of candidates
    for start, stop, (better, nearer) in shards.pairs(indices.astype(np.int32), candidates, conclusion, block):
        found[start:stop], near[start:stop] = better, nearer
    return found, near


def sharded_recall(shards: FeatureShards, neighbors: Neighbors, sample: int = 1000, seed: int = 0) -> float:
    """`reidssl.clustering.index.recall` over actors: share of the true neighbors found, in [0, 1], for a sample of the images."""
    indices, similarities = neighbors
    if indices.shape[1] < 2:
        return 1.0
    chosen = np.sort(np.random.default_rng(seed).choice(shards.num, min(sample, shards.num), replace=False))
    exact = shards.nearest_exact(chosen, indices.shape[1])[1]
    return float(((similarities[chosen, 1:] >= exact[:, -1:] - 1e-6) & (indices[chosen, 1:] >= 0)).mean())


def sharded_vectors(shards: FeatureShards, table: np.ndarray, half: int) -> sp.csr_matrix:
    """`reciprocal_vectors` over actors: float32 CSR (N, N) with sorted indices. table: int32 (N, k) from `self_first`."""
    found = shards.pairs(table, partial(_sets, half), lambda start, stop: _weighted, shards.config.block)
    rows = {start: part for start, _, part in found}
    return stack([rows[start] for start in sorted(rows)], shards.num)


def _sets(half: int, table: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    return reciprocal_sets(table, half, start, stop)


def _weighted(counts: np.ndarray, others: np.ndarray, cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return counts, others, softmax_weights(counts, cosines, np.ones(len(counts), np.float32))


def expanded_by_tasks(vectors: sp.csr_matrix, table: np.ndarray, config: NeighborActorsConfig) -> sp.csr_matrix:
    """`query_expansion` by Ray tasks over ranges of images: float32 CSR (N, N)."""
    return sp.vstack(list(_by_ranges(_expanded, config, vectors, np.ascontiguousarray(table))), format="csr")


def _expanded(threads: int, start: int, stop: int, vectors: sp.csr_matrix, table: np.ndarray) -> sp.csr_matrix:
    return query_expansion(vectors, table[start:stop])


def distances_by_tasks(
    vectors: sp.csr_matrix, max_distance: float, most_pairs: int, config: NeighborActorsConfig
) -> sp.csr_matrix:
    """`jaccard_rows` by Ray tasks over ranges of images: float32 CSR (N, N). Raises TooManyPairs as there."""
    parts: list[sp.csr_matrix] = []
    work = partial(_distances, max_distance, most_pairs)
    for part in _by_ranges(work, config, vectors, by_image(vectors)):
        if part is None or sum(each.nnz for each in parts) + part.nnz > most_pairs:
            raise too_many(most_pairs, max_distance)
        parts.append(part)
    return sp.vstack(parts, format="csr")


def _distances(
    max_distance: float, most_pairs: int, threads: int, start: int, stop: int, vectors: sp.csr_matrix, columns: sp.csc_matrix
) -> sp.csr_matrix | None:
    try:
        return jaccard_range(vectors, columns, start, stop, max_distance, num_threads=threads, most_pairs=most_pairs)
    except TooManyPairs:  # raised by the calling process, which counts the pairs of all tasks
        return None


def _by_ranges(work: Callable[..., Any], config: NeighborActorsConfig, vectors: sp.csr_matrix, other: Any) -> Iterator[Any]:
    """Yields work(threads, start, stop, vectors, other) for ranges of `config.block` images, in order, computed by Ray tasks."""
    import ray

    remote: Any = ray.remote(num_cpus=config.cpus_per_actor)(_on_threads)
    shared, num = [ray.put(vectors), ray.put(other)], vectors.shape[0]
    waiting: deque[Any] = deque()
    try:
        for start in range(0, num, config.block):
            waiting.append(remote.remote(work, config.threads, start, min(start + config.block, num), *shared))
            if len(waiting) > 2 * config.actors:  # results that are not fetched would fill the object store
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())
    finally:
        for reference in waiting:
            ray.cancel(reference)


def _on_threads(work: Callable[..., Any], threads: int, start: int, stop: int, vectors: sp.csr_matrix, other: Any) -> Any:
    use_threads(threads)
    return work(threads, start, stop, vectors, other)
