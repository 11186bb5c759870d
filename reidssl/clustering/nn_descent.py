"""What an approximate search missed, found among the neighbors of the neighbors it did find.

A neighbor that lies in a group the search did not visit is nearly always a neighbor of one that was found (Dong, Charikar
and Li, "Efficient k-nearest neighbor graph construction for generic similarity measures", WWW 2011). One round looks at up to
k x k images for each, a small part of what visiting more groups would look at.
"""

import numpy as np
from torch import Tensor

from reidssl.clustering.index import in_order
from reidssl.clustering.neighbors import Array, Neighbors, unit_rows
from reidssl.clustering.pairs import pair_cosines
from reidssl.clustering.top_k import insert
from reidssl.row_blocks import kernel, over_blocks

BLOCK = 2048  # rows that share one note of what was looked at, and whose candidates are listed at a time


def refine(features: Tensor | Array, neighbors: Neighbors, num_threads: int | None = None) -> Neighbors:
    """A table of neighbors, at least as near as the given one's, from one round of looking at neighbors of neighbors.

    Args:
        features: float (N, D).
        neighbors: indices int64 (N, k), the image itself first, -1 where none was found; similarities float32 (N, k), falling.
        num_threads: None: as many as torch uses. The result does not depend on it.

    Returns:
        Of the same shapes; equal similarities by rising index.
    """
    unit = unit_rows(features).cpu().numpy()
    indices, similarities = neighbors[0], neighbors[1].astype(np.float32, copy=False)
    if indices.shape != similarities.shape or len(indices) != len(unit):
        raise ValueError(
            f"a table of neighbors must have a row for each of {len(unit)} images: got indices {indices.shape} and "
            f"similarities {similarities.shape}"
        )
    found, near = np.empty_like(indices), np.empty_like(similarities)

    def work(start: int, stop: int) -> None:
        counts, others = candidates(indices, start, stop)
        rows = np.repeat(np.arange(start, stop, dtype=np.int32), counts)
        cosines, own = pair_cosines(unit, unit, rows, others), np.arange(start, stop)
        found[start:stop], near[start:stop] = taken(indices[start:stop], similarities[start:stop], own, counts, others, cosines)

    over_blocks(work, len(unit), BLOCK, num_threads)
    return found, near


def taken(indices: Array, similarities: Array, own: Array, counts: Array, others: Array, cosines: Array) -> Neighbors:
    """Some rows of the table, (n, k), with those of their candidates that are nearer.

    Args:
        own: int (n,), the images of these rows.
        counts, others: of `candidates` for them. cosines: float32 (P,), of the image and the candidate.
    """
    found, near = indices.copy(), similarities.copy()
    _take(found, near, counts, others, cosines)
    found, near = in_order(found, near, own)
    near[:, 0] = similarities[:, 0]
    return found, near


@kernel
def candidates(indices, start, stop):  # type: ignore[no-untyped-def]
    """Neighbors of the neighbors of the images start..stop: how many of each, int64 (stop - start,), and who, int32.

    indices: int (N, k), the image itself first, -1 absent. Each is named once, and none that the table has for that image.
    """
    num, k = indices.shape
    counts = np.zeros(stop - start, np.int64)
    others = np.empty((stop - start) * (k - 1) * (k - 1), np.int32)
    seen = np.full(num, -1, np.int64)
    used = 0
    for i in range(start, stop):
        first = used
        seen[i] = i
        for t in range(k):
            if indices[i, t] >= 0:
                seen[indices[i, t]] = i
        for t in range(1, k):
            between = indices[i, t]
            if between < 0:
                continue
            for u in range(1, k):
                other = indices[between, u]
                if other >= 0 and seen[other] != i:
                    seen[other] = i
                    others[used] = other
                    used += 1
        counts[i - start] = used - first
    return counts, others[:used].copy()


@kernel
def _take(found, near, counts, others, cosines):  # type: ignore[no-untyped-def]
    """Enter candidates into the lists (n, k), falling; updated."""
    last, place = found.shape[1] - 1, 0
    for row in range(len(found)):
        for candidate in range(place, place + counts[row]):
            if cosines[candidate] > near[row, last]:
                insert(near, found, row, cosines[candidate], others[candidate])
        place += counts[row]
