"""Nearest-neighbor search in a set of images: exact, or approximate with FAISS for large sets.

    exact   every pair is compared, in blocks of matrix products by torch, on a GPU if torch has one
    ivf     images are grouped around 4 sqrt(N) centers; a query visits the `effort` nearest groups
    hnsw    search in a navigable graph that keeps `effort` candidates; the graph is built by one thread, since with several
            threads it would differ from run to run

All searches are deterministic. Neighbors with equal similarities are in ascending order of the index. If more equal images exist
than fit at the end of a list, `exact` selects those with the smallest indices; for the others the selection depends on the search
structure. On a GPU, similarities of equal rows may differ in the last bit. ivf uses a GPU if FAISS (its GPU build) has one; hnsw
always runs on the CPU.
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
"""By default a query visits one in this many groups."""


class NeighborIndex:
    """Search index of a set of images.

    Args:
        images: float (N, D); rows are normalized here.
        search: one of SEARCHES.
        effort: for ivf, the number of groups that a query visits (0: 1/32 of the groups, at least 8); for hnsw, the number of
            candidates kept (0: 128).
        unit: the rows already have length one (from `unit_rows`). They are then neither checked nor normalized again, which
            could change their last bits.

    Raises:
        ValueError: features are not finite (the message names the row), or the search is unknown or not installed.
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
            k: number of neighbors, at least 1.
            own: int (Q,), index of the image that is the query itself, which is placed first; -1: none. None: none for all.
            unit: the queries already have length one, as the rows of an index's `images`.

        Returns:
            indices int64 (Q, min(k, N)) and similarities float32 of the same shape. If an approximate search found fewer
            neighbors, the remaining indices are -1 and their similarities minus infinity.

        Raises:
            ValueError: k is below 1, or the queries are not finite or of another width.
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
        for start in range(0, len(host), 65536):  # in place and in blocks, to limit memory
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
    """Whether FAISS is a GPU build and finds a GPU."""
    if find_spec("faiss") is None:
        return False
    import faiss

    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def _accelerated(rows: Tensor) -> Tensor:
    """The rows on the GPU of this process, or unchanged if it has none."""
    return rows.to("cuda") if torch.cuda.is_available() else rows


def in_order(indices: Array, similarities: Array, own: Array | None = None) -> Neighbors:
    """Sort the rows of a table (Q, k) by descending similarity, then by ascending index, with absent entries (-1) last.

    own: int (Q,), the image that is moved to or inserted at the front of each row, with an infinite similarity; -1: none.
    """
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
    """The k nearest images of each of N images, the image itself first. Arguments and result as in `NeighborIndex`."""
    if search == "exact":
        found = nearest_among(_accelerated(unit_rows(features)), k)
        return found.indices, found.similarities
    index = NeighborIndex(features, search, effort)
    return index.nearest(index.images, k, np.arange(len(index.images)), unit=True)


def recall(features: Tensor | Array, neighbors: Neighbors, sample: int = 1000, seed: int = 0) -> float:
    """Recall in [0, 1] of a neighbor search on a random sample of the images. The image itself is not counted.

    A found image counts if it is at least as similar as the last true neighbor (with tolerance 1e-6), so that equally near
    images are interchangeable.

    Args:
        features: float (N, D).
        neighbors: (indices, similarities) of the search, (N, k).
        sample: number of images in the sample.
        seed: seed of the sample.
    """
    unit = unit_rows(features)
    indices, similarities = neighbors
    if indices.shape[1] < 2:
        return 1.0
    chosen = np.sort(np.random.default_rng(seed).choice(len(unit), min(sample, len(unit)), replace=False))
    exact = nearest(unit[torch.from_numpy(chosen).to(unit.device)], unit, indices.shape[1], chosen)
    enough = similarities[chosen, 1:] >= exact.similarities[:, -1:] - 1e-6
    return float((enough & (indices[chosen, 1:] >= 0)).mean())
