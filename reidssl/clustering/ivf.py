"""Inverted-file (IVF) search that processes all queries of a group at once, as a matrix product.

FAISS trains the centers. Its own search goes through the groups one query after the other and takes longer for large sets of
queries: 1.5 times as long for 100,000 images on 2 cores (`python -m benchmarks.ivf --full`).
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from reidssl.clustering.neighbors import Neighbors, nearest
from reidssl.clustering.top_k import select_visitors
from reidssl.row_blocks import one_torch_thread_each, over_blocks

IMAGES_PER_GROUP = 39
"""Minimum number of images per center, below which FAISS warns when it trains k-means."""
QUERIES, VISITORS = 65536, 4096
"""Maximum number of queries in a block of one thread, and of those compared with a group at a time."""


def num_groups(num_images: int) -> int:
    """Number of groups for a set of N images: 4 sqrt(N), fewer for small sets, at least 1."""
    return max(1, min(int(4 * num_images**0.5), num_images // IMAGES_PER_GROUP))


class GroupedIndex:
    """Images grouped by their nearest centers.

    Args:
        images: float32 (N, D) on the CPU, rows of length one.
        probes: number of groups that a query visits, those with the nearest centers.
        seed: seed of the k-means centers.
    """

    def __init__(self, images: Tensor, probes: int, seed: int = 1234) -> None:
        import faiss

        count = num_groups(len(images))
        faiss.omp_set_num_threads(torch.get_num_threads())
        training = faiss.Kmeans(
            images.shape[1], count, niter=10, spherical=True, seed=seed, max_points_per_centroid=64, min_points_per_centroid=1
        )
        training.train(images.numpy())
        self.images, self.probes = images, min(probes, count)
        self.centers = torch.from_numpy(np.array(training.centroids, np.float32).reshape(count, -1))
        group = nearest(images, self.centers, 1).indices[:, 0]
        self.members = np.argsort(group, kind="stable")  # sorted by group, then by index
        self.ends = np.searchsorted(group[self.members], np.arange(count), side="right")

    def nearest(self, queries: Tensor, k: int) -> Neighbors:
        """The k nearest images of queries float32 (Q, D): indices int64 (Q, k) and similarities float32 (Q, k), descending.

        Indices are -1 if the visited groups have fewer images. Equal similarities are in any order.
        """
        indices = np.full((len(queries), k), -1, np.int64)
        similarities = np.full((len(queries), k), -np.inf, np.float32)
        num_threads = torch.get_num_threads()
        block = max(1, min(QUERIES, -(-len(queries) // num_threads)))
        with one_torch_thread_each():
            over_blocks(partial(self._search, queries, indices, similarities), len(queries), block, num_threads)
        return indices, similarities

    @torch.no_grad()
    def _search(self, queries: Tensor, indices: np.ndarray, similarities: np.ndarray, start: int, stop: int) -> None:
        rows = queries[start:stop]
        visits = nearest(rows, self.centers, self.probes, num_threads=1).indices.astype(np.int32).reshape(-1)
        order = np.argsort(visits, kind="stable")
        ends = np.searchsorted(visits[order], np.arange(len(self.ends)), side="right")
        visitors = order // self.probes
        firsts, begins = (np.append(0, each[:-1]) for each in (ends, self.ends))
        for first, last, begin, end in zip(firsts, ends, begins, self.ends, strict=True):
            if first == last or begin == end:
                continue
            members = self.members[begin:end]
            columns = self.images[torch.from_numpy(members)].T
            for low in range(first, last, VISITORS):
                mine = visitors[low : min(low + VISITORS, last)]
                scores = (rows[torch.from_numpy(mine)] @ columns).numpy()
                select_visitors(scores, mine, members, similarities[start:stop], indices[start:stop])
