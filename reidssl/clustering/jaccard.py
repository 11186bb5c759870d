"""k-reciprocal Jaccard distance on sparse rows (Zhong et al., arXiv 1701.08398; Cluster Contrast, 2103.11568).

1. R(i): the neighbors j of i that have i among their neighbors. H(i): the same with half as many neighbors.
2. R(i) is extended by every H(j), j in R(i), of which strictly more than 2/3 lies in R(i).
3. Image i becomes a sparse vector of weights over R(i): the softmax of the negative squared distances.
4. Query expansion: the mean vector of the first k2 neighbors.
5. J(i, j) = 1 - m / (2 - m), where m is the sum over all images of the smaller of the two vectors' weights.

Steps 1 to 4 are in reciprocal.py. No array is N x N: each vector has some tens of weights, and only pairs that share an image
(J < 1) are computed. If features have collapsed, these are all pairs, and `most_pairs` stops the computation in time.
As in the released code, k1 and k2 count the image itself, but the half set has round(k1 / 2) + 1 neighbors. With the usual
definition the full set has k1 + 1. The difference changes distances by up to 0.15. It is kept to reproduce the published results.
"""

from functools import partial
from threading import Lock

import numpy as np
import scipy.sparse as sp
from torch import Tensor

from reidssl.clustering.neighbors import Array, Neighbors, knn, self_first, unit_rows
from reidssl.clustering.reciprocal import block_of, half_of, query_expansion, reciprocal_vectors
from reidssl.row_blocks import kernel, over_blocks

ROOM = 2**26
"""Maximum number of pairs of one block (8 bytes each) if the total is limited. Only collapsed features reach it."""


class TooManyPairs(ValueError):
    """There are more pairs within the largest distance than allowed."""


def sparse_jaccard(
    features: Tensor | Array,
    k1: int = 30,
    k2: int = 6,
    neighbors: Neighbors | None = None,
    max_distance: float = 1.0,
    block: int | None = None,
    num_threads: int | None = None,
) -> sp.csr_matrix:
    """Jaccard distances of all pairs of images whose distance is below 1.

    Args:
        features: float (N, D); rows are normalized here.
        k1, k2: numbers of neighbors, including the image itself, for the reciprocal sets and for query expansion;
            1 <= k2 <= k1. If there are fewer images, all of them are used.
        neighbors: (indices (N, >= min(k1, N)), similarities) from another search, including the image itself (-1: absent). Only
            the indices are used. None: exact search.
        max_distance: pairs with a larger distance are left out. Clustering needs only pairs up to its eps.
        block: number of rows that a thread processes at once; None: grows with N.
        num_threads: number of threads; None: torch's number.

    Returns:
        float32 CSR (N, N), symmetric, with sorted indices and a stored diagonal of zeros. A pair without an entry has
        distance 1, or a distance above `max_distance`.

    Raises:
        ValueError: k1, k2 or max_distance are out of range, features are not finite (the message names the row), or
            `neighbors` does not fit.
    """
    if not 0.0 < max_distance <= 1.0:
        raise ValueError(f"max_distance must be in (0, 1]: got {max_distance}")
    vectors = jaccard_vectors(features, k1, k2, neighbors, block, num_threads)
    return jaccard_rows(vectors, vectors.shape[0], max_distance, block, num_threads)


def jaccard_vectors(
    features: Tensor | Array,
    k1: int = 30,
    k2: int = 6,
    neighbors: Neighbors | None = None,
    block: int | None = None,
    num_threads: int | None = None,
) -> sp.csr_matrix:
    """Steps 1 to 4: float32 CSR (N, N), sorted indices, rows sum to 1. Arguments and errors as in `sparse_jaccard`."""
    if not 1 <= k2 <= k1:
        raise ValueError(f"k1 and k2 must satisfy 1 <= k2 <= k1: got k1 {k1}, k2 {k2}")
    unit = unit_rows(features)
    indices = knn(unit, k1)[0] if neighbors is None else np.asarray(neighbors[0])
    if indices.ndim == 2 and indices.shape[1] < min(k1, len(unit)):
        raise ValueError(f"the neighbor table has {indices.shape[1]} columns, k1 asks for {min(k1, len(unit))}")
    table = self_first(indices, len(unit))[:, :k1]
    vectors = reciprocal_vectors(unit, table, half_of(k1), None, block, num_threads)
    return query_expansion(vectors, table[:, :k2])


def jaccard_rows(
    vectors: sp.csr_matrix,
    num_rows: int,
    max_distance: float = 1.0,
    block: int | None = None,
    num_threads: int | None = None,
    first_column: int = 0,
    most_pairs: int | None = None,
) -> sp.csr_matrix:
    """Step 5 between the first `num_rows` images and the images from `first_column` on: float32 CSR, sorted indices.

    Args:
        most_pairs: TooManyPairs is raised as soon as there are more pairs, before they fill the memory. None: no limit.
    """
    columns = by_image(vectors, first_column)
    return jaccard_range(vectors, columns, 0, num_rows, max_distance, block, num_threads, first_column, most_pairs)


def by_image(vectors: sp.csr_matrix, first_column: int = 0) -> sp.csc_matrix:
    """The vectors from row `first_column` on as CSC: for each image, the vectors that give it a weight."""
    columns = vectors[first_column:].tocsc()
    columns.sort_indices()
    return columns


def jaccard_range(
    vectors: sp.csr_matrix,
    columns: sp.csc_matrix,
    start: int,
    stop: int,
    max_distance: float = 1.0,
    block: int | None = None,
    num_threads: int | None = None,
    first_column: int = 0,
    most_pairs: int | None = None,
) -> sp.csr_matrix:
    """Step 5 for the images start..stop: float32 CSR (stop - start, images), sorted indices.

    columns: the result of `by_image`. Other arguments and errors as in `jaccard_rows`.
    """
    num = columns.shape[0]
    room = ROOM if most_pairs is not None else np.iinfo(np.int64).max
    work = partial(
        _distances,
        vectors.indptr, vectors.indices, vectors.data,
        columns.indptr, columns.indices, columns.data,
        num, first_column, np.float32(max_distance), max_distance >= 1.0, room,
    )  # fmt: skip
    pairs, counting = 0, Lock()

    def counted(first: int, last: int) -> tuple[Array, Array, Array]:
        nonlocal pairs
        if most_pairs is not None and pairs > most_pairs:
            raise too_many(most_pairs, max_distance)
        part: tuple[Array, Array, Array] = work(start + first, start + last)
        with counting:
            pairs += len(part[1])
        if most_pairs is not None and (len(part[1]) > room or pairs > most_pairs):
            pairs = most_pairs + 1  # makes the other threads stop as well
            raise too_many(most_pairs, max_distance)
        return part

    return stack(over_blocks(counted, stop - start, block_of(num, block), num_threads), num)


def too_many(most_pairs: int, max_distance: float) -> TooManyPairs:
    """The TooManyPairs error with its message, for the caller to raise."""
    return TooManyPairs(f"more than {most_pairs:,} pairs of images are at a Jaccard distance of at most {max_distance:g}")


def stack(parts: list[tuple[Array, Array, Array]], num_columns: int) -> sp.csr_matrix:
    """Assemble a CSR matrix with sorted indices from row blocks of (entries per row, columns, values)."""
    counts = np.concatenate([part[0] for part in parts])
    indices = np.concatenate([part[1] for part in parts])
    data = np.concatenate([part[2] for part in parts])
    pointers = np.concatenate([[0], np.cumsum(counts)])
    matrix = sp.csr_matrix((data, indices, pointers), shape=(len(counts), num_columns))
    matrix.sort_indices()
    return matrix


@kernel
def _distances(  # type: ignore[no-untyped-def]
    pointers, indices, data, by_pointers, by_indices, by_data, num, first_column, most, everything, room, start, stop
):
    """Jaccard distances of the rows start..stop to the `num` images from `first_column` on.

    Returned are distances below 1 if `everything`, else those up to `most`. The computation ends early after `room` pairs.
    """
    counts = np.zeros(stop - start, np.int64)
    out_indices = np.empty(256 * (stop - start), np.int32)
    out_data = np.empty(256 * (stop - start), np.float32)
    shared = np.zeros(num, np.float32)
    touched = np.empty(num, np.int32)
    used = 0
    for i in range(start, stop):
        num_touched = 0
        # Sums are taken in ascending order of the images, so that m(i, j) and m(j, i) round in the same way.
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
        if used > room:
            break
    return counts, out_indices[:used].copy(), out_data[:used].copy()
