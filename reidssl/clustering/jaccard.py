"""k-reciprocal Jaccard distance on sparse rows (Zhong et al., arXiv 1701.08398; Cluster Contrast, 2103.11568).

1. R(i): the neighbours j of i that have i among their neighbours; H(i): the same with half as many neighbours.
2. R(i) grows by every H(j), j in R(i), of which strictly more than 2/3 lies in R(i).
3. i becomes a sparse vector of weights over R(i): the softmax of minus its squared distances.
4. Query expansion: the mean vector of the first k2 neighbours.
5. J(i, j) = 1 - m / (2 - m), with m = the sum over images of the smaller of the two vectors' weights.

Nothing is N x N: the vectors hold some tens of weights each, and only pairs that share an image (J < 1) are visited.
The numbers of neighbours include the image itself, and the half set uses round(k1 / 2) + 1: an accident of the released code
(the textbook has k1 + 1) that shifts distances by up to 0.15, kept because the published results have it.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import scipy.sparse as sp
from torch import Tensor

from reidssl.clustering.neighbours import Array, Neighbours, knn, self_first, unit_rows
from reidssl.compiled import kernel, over_blocks


def sparse_jaccard(
    features: Tensor | Array,
    k1: int = 30,
    k2: int = 6,
    neighbours: Neighbours | None = None,
    max_distance: float = 1.0,
    block: int = 256,
    num_threads: int | None = None,
) -> sp.csr_matrix:
    """Jaccard distances below 1 of all pairs of images that have one.

    Args:
        features: float (N, D); rows are normalised here.
        k1, k2: neighbours, including the image itself, for the reciprocal sets and for query expansion; 1 <= k2 <= k1.
            With fewer images than neighbours all of them are used.
        neighbours: (indices (N, >= min(k1, N)), similarities) of a search made elsewhere (-1: absent); None: exact search.
            Only the indices are used. k1 and k2 count the image itself here as well.
        max_distance: pairs further apart are left out; clustering needs only those up to its eps.
        block, num_threads: rows worked on at once by one thread, and threads (None: torch's number).

    Returns:
        float32 CSR (N, N), symmetric, sorted indices, the diagonal stored (zeros). A pair without an entry is at
        distance 1, or beyond `max_distance`.

    Raises:
        ValueError: k1, k2 or max_distance out of range, features that are not finite (the row is named), a table that
            does not fit.
    """
    if not 1 <= k2 <= k1:
        raise ValueError(f"k1 and k2 must satisfy 1 <= k2 <= k1: got k1 {k1}, k2 {k2}")
    if not 0.0 < max_distance <= 1.0:
        raise ValueError(f"max_distance must be in (0, 1]: got {max_distance}")
    unit = unit_rows(features)
    indices = knn(unit, k1)[0] if neighbours is None else np.asarray(neighbours[0])
    if indices.ndim == 2 and indices.shape[1] < min(k1, len(unit)):
        raise ValueError(f"the neighbour table has {indices.shape[1]} columns, k1 asks for {min(k1, len(unit))}")
    table = self_first(indices, len(unit))[:, :k1]
    vectors = reciprocal_vectors(unit, table, round(k1 / 2) + 1, None, block, num_threads)
    vectors = query_expansion(vectors, table[:, :k2])
    return jaccard_rows(vectors, len(unit), max_distance, block, num_threads)


def reciprocal_vectors(
    unit: Tensor, table: Array, half: int, scales: Array | None = None, block: int = 256, num_threads: int | None = None
) -> sp.csr_matrix:
    """Steps 1 to 3: each image as weights over its expanded reciprocal set.

    Args:
        unit: float32 (N, D), rows of length one.
        table: int32 (N, k), first column the image itself, -1 absent (`self_first`).
        half: neighbours of the half sets, at most k are used.
        scales: float32 (N,), factor of each image's squared distances in the softmax; None: 1.

    Returns:
        float32 CSR (N, N), non-negative, rows sum to 1.
    """
    num = len(table)
    host = np.ascontiguousarray(unit.cpu().numpy())
    scales = np.ones(num, np.float32) if scales is None else np.ascontiguousarray(scales, np.float32)
    full, full_counts = _reciprocal(table, table.shape[1])
    halves, half_counts = _reciprocal(table, min(half, table.shape[1]))
    work = partial(_weights, host, full, full_counts, halves, half_counts, scales)
    return _stack(over_blocks(work, num, block, num_threads), num)


def query_expansion(vectors: sp.csr_matrix, table: Array) -> sp.csr_matrix:
    """Step 4: the mean of the vectors of each image's first neighbours, table int32 (N, k2), -1 absent."""
    num, columns = table.shape
    if columns == 1:
        return vectors
    present = table >= 0
    share = np.repeat(np.float32(1) / present.sum(axis=1).astype(np.float32), present.sum(axis=1))
    pointers = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
    expanded = sp.csr_matrix((share, table[present], pointers), shape=(num, num)) @ vectors
    expanded.sort_indices()
    return expanded


def jaccard_rows(
    vectors: sp.csr_matrix,
    num_rows: int,
    max_distance: float = 1.0,
    block: int = 256,
    num_threads: int | None = None,
    first_column: int = 0,
) -> sp.csr_matrix:
    """Step 5 for the first `num_rows` images against those from `first_column` on: float32 CSR, sorted indices."""
    columns = vectors[first_column:].tocsc()  # by image: who gives it weight
    columns.sort_indices()
    work = partial(
        _distances,
        vectors.indptr, vectors.indices, vectors.data,
        columns.indptr, columns.indices, columns.data,
        len(vectors.indptr) - 1 - first_column, first_column, np.float32(max_distance), max_distance >= 1.0,
    )  # fmt: skip
    return _stack(over_blocks(work, num_rows, block, num_threads), columns.shape[0])


def _stack(parts: list[tuple[Array, Array, Array]], num_columns: int) -> sp.csr_matrix:
    """CSR with sorted indices from row blocks of (entries per row, columns, values)."""
    counts = np.concatenate([part[0] for part in parts])
    indices = np.concatenate([part[1] for part in parts])
    data = np.concatenate([part[2] for part in parts])
    pointers = np.concatenate([[0], np.cumsum(counts)])
    matrix = sp.csr_matrix((data, indices, pointers), shape=(len(counts), num_columns))
    matrix.sort_indices()
    return matrix


@kernel
def _reciprocal(table, k):  # type: ignore[no-untyped-def]
    """Members of each image's k-reciprocal set: int32 (N, k) filled from the left, and their number (N,)."""
    num = len(table)
    members = np.empty((num, k), np.int32)
    counts = np.zeros(num, np.int32)
    for i in range(num):
        for a in range(k):
            j = table[i, a]
            if j < 0:
                continue
            for b in range(k):
                if table[j, b] == i:
                    members[i, counts[i]] = j
                    counts[i] += 1
                    break
    return members, counts


@kernel
def _weights(unit, full, full_counts, halves, half_counts, scales, start, stop):  # type: ignore[no-untyped-def]
    """Expanded sets and softmax weights of the rows start..stop."""
    width = unit.shape[1]
    counts = np.zeros(stop - start, np.int64)
    most = 0
    for i in range(start, stop):
        most += full_counts[i] * (1 + halves.shape[1])
    indices = np.empty(most, np.int32)
    data = np.empty(most, np.float32)
    reciprocal = np.zeros(len(full), np.bool_)
    chosen = np.zeros(len(full), np.bool_)
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
            j = full[i, a]
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
        total = np.float32(0)
        for place in range(first, used):
            j = indices[place]
            cosine = np.float32(0)
            for d in range(width):
                cosine += unit[i, d] * unit[j, d]
            data[place] = np.exp(-scales[i] * (np.float32(2) - np.float32(2) * cosine))
            total += data[place]
            reciprocal[j] = False
            chosen[j] = False
        for place in range(first, used):
            data[place] /= total
        counts[i - start] = used - first
    return counts, indices[:used].copy(), data[:used].copy()


@kernel
def _distances(  # type: ignore[no-untyped-def]
    pointers, indices, data, by_pointers, by_indices, by_data, num, first_column, most, everything, start, stop
):
    """Jaccard distances of the rows start..stop to the `num` images from `first_column` on, below 1 or up to `most`."""
    counts = np.zeros(stop - start, np.int64)
    out_indices = np.empty(256 * (stop - start), np.int32)
    out_data = np.empty(256 * (stop - start), np.float32)
    shared = np.zeros(num, np.float32)
    touched = np.empty(num, np.int32)
    used = 0
    for i in range(start, stop):
        num_touched = 0
        # Images in rising order, as for the other of the pair: m(i, j) and m(j, i) then round alike.
        for place in range(pointers[i], pointers[i + 1]):
            weight = data[place]
            image = indices[place]
            for other in range(by_pointers[image], by_pointers[image + 1]):
                j = by_indices[other]
                smaller = min(weight, by_data[other])
                if shared[j] == 0 and smaller > 0:
                    touched[num_touched] = j
                    num_touched += 1
                shared[j] += smaller
        if used + num_touched > len(out_indices):
            more_indices = np.empty(2 * len(out_indices) + num_touched, np.int32)
            more_data = np.empty(2 * len(out_indices) + num_touched, np.float32)
            for place in range(used):
                more_indices[place] = out_indices[place]
                more_data[place] = out_data[place]
            out_indices, out_data = more_indices, more_data
        first = used
        for place in range(num_touched):
            j = touched[place]
            distance = max(np.float32(0), np.float32(1) - shared[j] / (np.float32(2) - shared[j]))
            shared[j] = 0
            if j + first_column == i:
                distance = np.float32(0)
            if (distance < 1) if everything else (distance <= most):
                out_indices[used] = j
                out_data[used] = distance
                used += 1
        counts[i - start] = used - first
    return counts, out_indices[:used].copy(), out_data[:used].copy()
