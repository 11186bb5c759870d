"""What an approximate search missed, found among the neighbours of the neighbours it did find.

A neighbour that lies in a group the search did not visit is nearly always a neighbour of one that was found (Dong, Charikar
and Li, "Efficient k-nearest neighbor graph construction for generic similarity measures", WWW 2011). One round looks at up to
k x k images for each, a small part of what visiting more groups would look at.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from reidssl.clustering.index import in_order
from reidssl.clustering.neighbours import Array, Neighbours, unit_rows
from reidssl.clustering.selecting import insert
from reidssl.compiled import kernel, over_blocks

BLOCK = 8192  # rows that share one note of what was looked at


def refine(features: Tensor | Array, neighbours: Neighbours, num_threads: int | None = None) -> Neighbours:
    """A table of neighbours, at least as near as the given one's, from one round of looking at neighbours of neighbours.

    Args:
        features: float (N, D).
        neighbours: indices int64 (N, k), the image itself first, -1 where none was found; similarities float32 (N, k), falling.
        num_threads: None: as many as torch uses. The result does not depend on it.

    Returns:
        Of the same shapes; equal similarities by rising index.
    """
    unit = unit_rows(features).cpu().numpy()
    indices, similarities = neighbours[0], neighbours[1].astype(np.float32, copy=False)
    if indices.shape != similarities.shape or len(indices) != len(unit):
        raise ValueError(f"a table of neighbours must have a row for each of {len(unit)} images: got indices {indices.shape} and "
                         f"similarities {similarities.shape}")
    found, near = indices.copy(), similarities.copy()

    def work(start: int, stop: int) -> None:
        _look(unit, indices, found, near, np.zeros(len(unit), np.int64), start, stop)
        found[start:stop], near[start:stop] = in_order(found[start:stop], near[start:stop], np.arange(start, stop))
        near[start:stop, 0] = similarities[start:stop, 0]

    over_blocks(work, len(unit), BLOCK, num_threads)
    return found, near


@kernel
def _look(unit, indices, found, near, seen, start, stop):  # type: ignore[no-untyped-def]
    """Rows start..stop of `found` and `near`, which begin as the table; `seen` (N,) zeros, room for what was looked at."""
    k, width = indices.shape[1], unit.shape[1]
    for i in range(start, stop):
        mark = i + 1
        seen[i] = mark
        for t in range(k):
            if indices[i, t] >= 0:
                seen[indices[i, t]] = mark
        smallest, own = near[i, k - 1], unit[i]
        for t in range(1, k):
            between = indices[i, t]
            if between < 0:
                continue
            for u in range(1, k):
                other = indices[between, u]
                if other < 0 or seen[other] == mark:
                    continue
                seen[other] = mark
                line, score = unit[other], np.float32(0.0)
                for d in range(width):
                    score += own[d] * line[d]
                if score > smallest:
                    insert(near, found, i, score, other)
                    smallest = near[i, k - 1]
