"""The best k of blocks of scores as they come, on the CPU.

Most stretches of scores hold nothing that would enter any list, which their largest says, many scores at a time. Images come in
rising order, and only a larger score displaces another, so equal scores keep the order of their index. No score is NaN:
features are finite.
"""

from functools import partial

import numpy as np

from reidssl.row_blocks import kernel

STRETCH = 64
finite_kernel = partial(kernel, finite=True)


@kernel
def insert(values, indices, row, score, index):  # type: ignore[no-untyped-def]
    """Put `score`, larger than the last of the row's falling values, where it belongs, after equal ones."""
    place = values.shape[1] - 1
    while place > 0 and values[row, place - 1] < score:
        values[row, place] = values[row, place - 1]
        indices[row, place] = indices[row, place - 1]
        place -= 1
    values[row, place] = score
    indices[row, place] = index


@finite_kernel
def select_rows(scores, first, values, indices, lowest, start, stop):  # type: ignore[no-untyped-def]
    """Take the block into the lists of its rows start..stop.

    Args:
        scores: float32 (b, c) of b queries with the c images from `first` on.
        values, indices: float32 and int64 (b, k), the best so far, falling; updated.
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
    """The same for the columns start..stop: scores float32 (b, c) of the b images from `first` on with c queries."""
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
    """Take a group of images into the lists of the queries that visit it.

    Args:
        scores: float32 (b, c). visitors: int64 (b,), queries, each once. images: int64 (c,).
        values, indices: float32 and int64 (Q, k), the best so far of all queries; updated.
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
