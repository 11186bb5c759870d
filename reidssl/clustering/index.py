"""Nearest neighbors in a set of images: exactly, or approximately with FAISS where the set is too large for that.

    exact   every pair is compared, in blocks of matrix products by torch, on a GPU where torch sees one
    ivf     images are grouped around 4 sqrt(N) centers; a query visits the nearest few groups (`effort` of them)
    hnsw    a graph is walked from neighbor to neighbor, keeping `effort` candidates; one thread builds it, since
            the graph would differ from run to run otherwise

All are deterministic. Equal similarities are ordered by rising index among the neighbors found; which of several equal
images are found at the end of the list is exact for `exact` and follows the index for the others. On a GPU equal rows may differ
in the last bit of their similarities. ivf uses a GPU where FAISS sees one (its GPU build); hnsw does not exist there.
"""

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reidssl.clustering.cluster_config import check_search
from reidssl.clustering.ivf import GroupedIndex, num_groups
from reidssl.clustering.neighbors import Array, Neighbors, nearest, nearest_among, unit_rows

PART_VISITED = 32
"""By default a query visits one group in so many."""


class NeighborIndex:
    """A set of images, made ready to be searched.

    Args:
        images: float (N, D); rows are normalized here.
        search: one of SEARCHES.
        effort: ivf: groups visited by a query; hnsw: candidates kept; 0: 1/32 of the groups, at least 8; 128 candidates.
        unit: the rows are of length one already (from `unit_rows`): neither checked nor normalized, which would move last bits.

    Raises:
        ValueError: features that are not finite (the row is named), or a search that cannot be.
    """

    def __init__(self, images: Tensor | Array, search: str = "exact", effort: int = 0, *, unit: bool = False) -> None:
        check_search(search, effort)
        self.images = torch.as_tensor(images) if unit else unit_rows(images)
        self.search, self.effort = search, effort
        self._gpu = search == "ivf" and _gpu()
        self._index: Any = None
        if search == "exact":
            self.images = _accelerated(self.images)
        else:
            self._index = self._build(self.images.cpu().numpy())

    def nearest(self, queries: Tensor | Array, k: int, own: Array | None = None, *, unit: bool = False) -> Neighbors:
        """The k nearest images of every query.

        Args:
            queries: float (Q, D); rows are normalized here.
            own: int (Q,), the image that is the query itself and comes first, -1 for none; None: none at all.
            unit: the queries are rows of some index's `images`, of length one already.

        Returns:
            indices int64 (Q, min(k, N)), -1 where an approximate search found fewer; similarities float32, minus infinity there.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1: got {k}")
        rows = torch.as_tensor(queries) if unit else unit_rows(queries, "queries")
        if rows.shape[1] != self.images.shape[1]:
            raise ValueError(f"queries must be as wide as the images ({self.images.shape[1]}): got {rows.shape[1]}")
        if self._index is None:
            found = nearest(rows.to(self.images.device), self.images, k, own)
            return found.indices, found.similarities
        k = min(k, len(self.images))
        host = np.ascontiguousarray(rows.cpu().numpy())
        if isinstance(self._index, GroupedIndex):
            indices, similarities = self._index.nearest(torch.from_numpy(host), k)
        else:
            similarities, indices = self._faiss_search(host, k)
        for start in range(0, len(host), 65536):  # in place, block by block
            here = slice(start, start + 65536)
            mine = None if own is None else np.asarray(own)[here]
            indices[here], similarities[here] = in_order(indices[here], similarities[here], mine)
        if own is not None:
            known = np.flatnonzero(np.asarray(own) >= 0)
            similarities[known, 0] = 1.0
        return indices, similarities

    def _build(self, images: Array) -> Any:
        import faiss

        num, width = images.shape
        product = faiss.METRIC_INNER_PRODUCT
        faiss.omp_set_num_threads(1 if self.search == "hnsw" else torch.get_num_threads())
        if self.search == "hnsw":
            index: Any = faiss.IndexHNSWFlat(width, 32, product)
            index.hnsw.efSearch = self.effort or 128
        else:
            count = num_groups(num)
            probes = min(self.effort or max(8, count // PART_VISITED), count)
            if not self._gpu:
                return GroupedIndex(torch.from_numpy(images), probes)
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, count, product)
            index.cp.max_points_per_centroid = 64
            index.nprobe = probes
            index.train(images)
            self._resources = faiss.StandardGpuResources()
            index = faiss.index_cpu_to_gpu(self._resources, 0, index)
        index.add(images)
        return index

    def _faiss_search(self, queries: Array, k: int) -> tuple[Array, Array]:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        found: tuple[Array, Array] = self._index.search(queries, k)
        return found


def _gpu() -> bool:
    """Whether there is FAISS's GPU build and a GPU that it sees."""
    if find_spec("faiss") is None:
        return False
    import faiss

    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def _accelerated(rows: Tensor) -> Tensor:
    """The rows on the GPU that this process was given, if there is one."""
    return rows.to("cuda") if torch.cuda.is_available() else rows


def in_order(indices: Array, similarities: Array, own: Array | None = None) -> Neighbors:
    """Rows of (Q, k) by falling similarity, equal ones by rising index, absent ones (-1) last; `own` (Q,) moved or put first."""
    k = indices.shape[1]
    if own is not None:
        repeated = indices == own[:, None]
        first = np.where(own >= 0, np.inf, -np.inf).astype(np.float32)
        indices = np.concatenate([own[:, None], np.where(repeated, -1, indices)], axis=1)
        similarities = np.concatenate([first[:, None], similarities], axis=1)
    similarities = np.where(indices < 0, np.float32(-np.inf), similarities).astype(np.float32)
    order = np.lexsort((np.where(indices < 0, np.iinfo(np.int64).max, indices), -similarities), axis=1)[:, :k]
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(similarities, order, axis=1)


def find_neighbors(features: Tensor | Array, k: int, search: str = "exact", effort: int = 0) -> Neighbors:
    """The k nearest images of each of N images, itself first; see `NeighborIndex`."""
    if search == "exact":
        found = nearest_among(_accelerated(unit_rows(features)), k)
        return found.indices, found.similarities
    index = NeighborIndex(features, search, effort)
    return index.nearest(index.images, k, np.arange(len(index.images)), unit=True)


def recall(features: Tensor | Array, neighbors: Neighbors, sample: int = 1000, seed: int = 0) -> float:
    """Share in [0, 1] of the true neighbors that a search found, itself not counted, over a random sample of the images.

    A found image counts if it is as near as the last true one (to 1e-6), so any of several equally near will do.
    """
    unit = unit_rows(features)
    indices, similarities = neighbors
    if indices.shape[1] < 2:
        return 1.0
    chosen = np.sort(np.random.default_rng(seed).choice(len(unit), min(sample, len(unit)), replace=False))
    exact = nearest(unit[torch.from_numpy(chosen).to(unit.device)], unit, indices.shape[1], chosen)
    enough = similarities[chosen, 1:] >= exact.similarities[:, -1:] - 1e-6
    return float((enough & (indices[chosen, 1:] >= 0)).mean())
