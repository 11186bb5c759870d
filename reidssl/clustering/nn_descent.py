"""Refinement of an approximate neighbor search: missed neighbors are found among the neighbors of the found neighbors.

A neighbor in a group that the search did not visit is nearly always a neighbor of a found neighbor (Dong, Charikar and Li,
"Efficient k-nearest neighbor graph construction for generic similarity measures", WWW 2011). One round compares each image with
up to k x k others, far fewer than a visit of further groups would.
"""

import numpy as np
from torch import Tensor

from reidssl.clustering.index import in_order
from reidssl.clustering.neighbors import Array, Neighbors, unit_rows
from reidssl.clustering.pairs import pair_cosines
from reidssl.clustering.top_k import insert
from reidssl.row_blocks import kernel, over_blocks

BLOCK = 2048  # rows processed at a time; they share one array that marks the images already seen


def refine(features: Tensor | Array, neighbors: Neighbors, num_threads: int | None = None) -> Neighbors:
    """Refine a table of neighbors by one round of comparisons with the neighbors of neighbors.

    Args:
        features: float (N, D).
        neighbors: indices int64 (N, k), the image itself first, -1: absent; and similarities float32 (N, k), descending.
        num_threads: number of threads; None: torch's number. The result does not depend on it.

    Returns:
        Neighbors at least as near, in arrays of the same shapes. Equal similarities are in ascending order of the index.

    Raises:
        ValueError: the table does not fit the features.
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
    """Update some rows of the table, (n, k), with their nearer candidates. Returns new arrays.

    Args:
        indices, similarities: the rows of the table.
        own: int (n,), the images of these rows.
        counts, others: the result of `candidates` for these images.
        cosines: float32 (P,), cosines of each image and its candidates.
    """
    found, near = indices.copy(), similarities.copy()
    _take(found, near, counts, others, cosines)
    found, near = in_order(found, near, own)
    near[:, 0] = similarities[:, 0]
    return found, near


@kernel
def candidates(indices, start, stop):  # type: ignore[no-untyped-def]
    """Neighbors of the neighbors of the images start..stop: their numbers int64 (stop - start,), and their indices int32.

    The candidates of an image have no duplicates and none of its neighbors in the table. indices: int (N, k), the image itself
    first, -1: absent.
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
    """Insert candidates into the descending lists (n, k), which are updated."""
    last, place = found.shape[1] - 1, 0
    for row in range(len(found)):
        for candidate in range(place, place + counts[row]):
            if cosines[candidate] > near[row, last]:
                insert(near, found, row, cosines[candidate], others[candidate])
        place += counts[row]
