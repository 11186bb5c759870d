"""Running selection of the k best scores from a sequence of blocks, on the CPU.

In most stretches of scores, no score is large enough to enter a list. Comparing the largest score of a stretch shows this for
many scores at once. Images come in ascending order, and only a larger score displaces another, so equal scores stay in order of
their index. Scores are never NaN, because features are finite.
"""

from functools import partial

import numpy as np

from reidssl.row_blocks import kernel

STRETCH = 64
finite_kernel = partial(kernel, finite=True)


@kernel
def insert(values, indices, row, score, index):  # type: ignore[no-untyped-def]
    """Insert `score` into the descending values of a row, after equal ones. It must be larger than the last value."""
    place = values.shape[1] - 1
    while place > 0 and values[row, place - 1] < score:
        values[row, place] = values[row, place - 1]
        indices[row, place] = indices[row, place - 1]
        place -= 1
    values[row, place] = score
    indices[row, place] = index


@finite_kernel
def select_rows(scores, first, values, indices, lowest, start, stop):  # type: ignore[no-untyped-def]
    """Add a block of scores to the lists of the rows start..stop.

    Args:
        scores: float32 (b, c), of b queries and the c images from `first` on.
        values, indices: float32 and int64 (b, k), the best so far in descending order; updated.
        lowest: float32 (b,), the smallest score so far; updated.
    """
    num, k = scores.shape[1], values.shape[1]
    for r in range(start, stop):
        smallest, low, row = values[r, k - 1], lowest[r], scores[r]
        for begin in range(0, num, STRETCH):
            end = min(begin + STRETCH, num)
            largest = least = row[begin]
            for c in range(begin, end):
                largest = max(largest, row[c])
                least = min(least, row[c])
            low = min(low, least)
            if largest <= smallest:
                continue
            for c in range(begin, end):
                if row[c] > smallest:
                    insert(values, indices, r, row[c], first + c)
                    smallest = values[r, k - 1]
        lowest[r] = low


@finite_kernel
def select_columns(scores, first, values, indices, lowest, start, stop):  # type: ignore[no-untyped-def]
    """As `select_rows`, for the columns start..stop: scores float32 (b, c) of the b images from `first` on and c queries."""
    num, k, width = scores.shape[0], values.shape[1], stop - start
    smallest = values[start:stop, k - 1].copy()
    low = lowest[start:stop].copy()
    for r in range(num):
        row = scores[r, start:stop]
        for begin in range(0, width, STRETCH):
            end = min(begin + STRETCH, width)
            most = np.float32(-np.inf)
            for c in range(begin, end):
                most = max(most, row[c] - smallest[c])
                low[c] = min(low[c], row[c])
            if most <= 0:
                continue
            for c in range(begin, end):
                if row[c] > smallest[c]:
                    insert(values, indices, start + c, row[c], first + r)
                    smallest[c] = values[start + c, k - 1]
    lowest[start:stop] = low


@finite_kernel
def select_visitors(scores, visitors, images, values, indices):  # type: ignore[no-untyped-def]
    """Add the scores of a group of images to the lists of the queries that visit this group.

    Args:
        scores: float32 (b, c), of the visitors and the images.
        visitors: int64 (b,), rows of the queries, without repetition.
        images: int64 (c,), numbers of the images.
        values, indices: float32 and int64 (Q, k), the best so far of all queries in descending order; updated.
    """
    num, k = scores.shape[1], values.shape[1]
    for r in range(len(visitors)):
        q, row = visitors[r], scores[r]
        smallest = values[q, k - 1]
        for begin in range(0, num, STRETCH):
            end = min(begin + STRETCH, num)
            largest = row[begin]
            for c in range(begin, end):
                largest = max(largest, row[c])
            if largest <= smallest:
                continue
            for c in range(begin, end):
                if row[c] > smallest:
                    insert(values, indices, q, row[c], images[c])
                    smallest = values[q, k - 1]
