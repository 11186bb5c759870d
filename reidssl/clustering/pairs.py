"""Cosine similarities of selected pairs of images, for cases in which most pairs are not needed."""

import numpy as np

from reidssl.row_blocks import kernel


@kernel
def pair_cosines(queries, images, rows, others):  # type: ignore[no-untyped-def]
    """Dot products of queries[rows[p]] and images[others[p]] for each pair p: float32 (P,).

    Args:
        queries, images: float32 (Q, D) and (N, D), rows of length one.
        rows, others: int (P,).
    """
    width = queries.shape[1]
    cosines = np.empty(len(rows), np.float32)
    for place in range(len(rows)):
        row, other, cosine = queries[rows[place]], images[others[place]], np.float32(0)
        for d in range(width):
            cosine += row[d] * other[d]
        cosines[place] = cosine
    return cosines
