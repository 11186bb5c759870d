"""Images as weights over their k-reciprocal neighbors: steps 1 to 4 of the Jaccard distance (see jaccard.py).

The sets are computed from the table of neighbors alone, and the weights from the similarities of an image and the members of its
set. The two are separate functions, so that features can be stored in other processes
(platform/engine/clustering/sharded_labels.py).
"""

from functools import partial

import numpy as np
import scipy.sparse as sp
from torch import Tensor

from reidssl.clustering.neighbors import Array
from reidssl.clustering.pairs import pair_cosines
from reidssl.row_blocks import kernel, over_blocks


def block_of(num: int, block: int | None) -> int:
    """Number of rows that a thread processes at once: `block`, or by default a number that grows with N.

    Each block needs work arrays of N numbers, so the number of blocks must not grow with N.
    """
    return max(256, num // 512) if block is None else block


def half_of(k1: int) -> int:
    """Number of neighbors of the half sets. As in the released code, k1 counts the image itself and half of it does not."""
    return round(k1 / 2) + 1


def reciprocal_vectors(
    unit: Tensor, table: Array, half: int, scales: Array | None = None, block: int | None = None, num_threads: int | None = None
) -> sp.csr_matrix:
    """Steps 1 to 3: each image as weights over its expanded reciprocal set.

    Args:
        unit: float32 (N, D), rows of length one.
        table: int32 (N, k), neighbors with the image itself in the first column, -1: absent (`self_first`).
        half: number of neighbors of the half sets; at most k are used.
        scales: float32 (N,), factor of each image's squared distances in the softmax; None: 1.
        block, num_threads: as in `sparse_jaccard`.

    Returns:
        float32 CSR (N, N), non-negative, rows sum to 1.
    """
    num = len(table)
    host = np.ascontiguousarray(unit.cpu().numpy())
    scales = np.ones(num, np.float32) if scales is None else np.ascontiguousarray(scales, np.float32)
    counts, indices = reciprocal_sets(table, half, 0, num, block, num_threads)
    pointers = np.concatenate([[0], np.cumsum(counts)])
    data = np.empty(len(indices), np.float32)

    def work(start: int, stop: int) -> None:
        mine = slice(pointers[start], pointers[stop])
        rows = np.repeat(np.arange(start, stop), counts[start:stop])
        cosines = pair_cosines(host, host, rows, indices[mine])
        data[mine] = softmax_weights(counts[start:stop], cosines, scales[start:stop])

    over_blocks(work, num, block_of(num, block), num_threads)
    vectors = sp.csr_matrix((data, indices, pointers), shape=(num, num))
    vectors.sort_indices()
    return vectors


def reciprocal_sets(
    table: Array, half: int, start: int, stop: int, block: int | None = None, num_threads: int | None = None
) -> tuple[Array, Array]:
    """Steps 1 and 2 for the images start..stop: number of members per image, int64 (stop - start,), and the members, int32.

    Half sets are computed only for the images that occur in the reciprocal sets of start..stop.
    """
    num, k = table.shape
    block = block_of(num, block)
    full, full_counts = _reciprocal_rows(table, k, np.arange(start, stop), block, num_threads)
    needed = np.arange(num) if stop - start == num else np.unique(full[np.arange(k) < full_counts[:, None]])
    halves, half_counts = _reciprocal_rows(table, min(half, k), needed, block, num_threads)
    places = np.full(num, -1, np.int32)
    places[needed] = np.arange(len(needed))
    parts = over_blocks(partial(_expanded, full, full_counts, halves, half_counts, places), stop - start, block, num_threads)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def query_expansion(vectors: sp.csr_matrix, table: Array) -> sp.csr_matrix:
    """Step 4: the mean of the vectors of the first neighbors, for each image in a row of the table.

    Args:
        vectors: float32 CSR (N, N).
        table: int32 (n, k2), first neighbors of all or some images, -1: absent.

    Returns:
        float32 CSR (n, N), sorted indices.
    """
    num, columns = table.shape
    if columns == 1 and num == vectors.shape[0]:
        return vectors
    present = table >= 0
    share = np.repeat(np.float32(1) / present.sum(axis=1).astype(np.float32), present.sum(axis=1))
    pointers = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
    expanded = sp.csr_matrix((share, table[present], pointers), shape=(num, vectors.shape[0])) @ vectors
    expanded.sort_indices()
    return expanded


@kernel
def softmax_weights(counts, cosines, scales):  # type: ignore[no-untyped-def]
    """Step 3: the softmax of the negative scaled squared distances within each set, float32 (P,).

    The smallest distance of a set is subtracted first, so that the largest exponential is 1 for any scale. Cosines that exceed 1
    by rounding give distance 0.

    Args:
        counts: int (n,), number of members of each set.
        cosines: float32 (P,), cosines of each image and the members of its set, one set after the other.
        scales: float32 (n,), factors of the squared distances.
    """
    data = np.empty(len(cosines), np.float32)
    first = 0
    for row in range(len(counts)):
        last = first + counts[row]
        least = np.float32(4)
        for place in range(first, last):
            data[place] = max(np.float32(0), np.float32(2) - np.float32(2) * cosines[place])
            least = min(least, data[place])
        total = np.float32(0)
        for place in range(first, last):
            data[place] = np.exp(-scales[row] * (data[place] - least))
            total += data[place]
        for place in range(first, last):
            data[place] /= total
        first = last
    return data


def _reciprocal_rows(table: Array, k: int, rows: Array, block: int, num_threads: int | None) -> tuple[Array, Array]:
    """The k-reciprocal sets of the images `rows`: members int32 (n, k), filled from the left, and their numbers int32 (n,)."""
    members, counts = np.empty((len(rows), k), np.int32), np.zeros(len(rows), np.int32)
    over_blocks(partial(_reciprocal, table, k, rows, members, counts), len(rows), block, num_threads)
    return members, counts


@kernel
def _reciprocal(table, k, rows, members, counts, start, stop):  # type: ignore[no-untyped-def]
    for place in range(start, stop):
        i = rows[place]
        for a in range(k):
            j = table[i, a]
            if j < 0:
                continue
            for b in range(k):
                if table[j, b] == i:
                    members[place, counts[place]] = j
                    counts[place] += 1
                    break


@kernel
def _expanded(full, full_counts, halves, half_counts, places, start, stop):  # type: ignore[no-untyped-def]
    """The reciprocal sets in the rows start..stop of `full`, extended by the half sets that lie mostly inside (step 2).

    halves: half sets of the images that are needed. places: int32 (N,), the row of each image in `halves`.
    """
    counts = np.zeros(stop - start, np.int64)
    most = 0
    for i in range(start, stop):
        most += full_counts[i] * (1 + halves.shape[1])
    indices = np.empty(most, np.int32)
    reciprocal = np.zeros(len(places), np.bool_)
    chosen = np.zeros(len(places), np.bool_)
    used = 0
    for i in range(start, stop):
        first = used
        for a in range(full_counts[i]):
            j = full[i, a]
            reciprocal[j] = True
            chosen[j] = True
            indices[used] = j
            used += 1
        for a in range(full_counts[i]):
            j = places[full[i, a]]
            overlap = 0
            for b in range(half_counts[j]):
                overlap += reciprocal[halves[j, b]]
            if 3 * overlap > 2 * half_counts[j]:
                for b in range(half_counts[j]):
                    member = halves[j, b]
                    if not chosen[member]:
                        chosen[member] = True
                        indices[used] = member
                        used += 1
        for place in range(first, used):
            reciprocal[indices[place]] = False
            chosen[indices[place]] = False
        counts[i - start] = used - first
    return counts, indices[:used].copy()
