"""Verification (do two images show the same person?): true positive rate at given false positive rates.

The pairs are all pairs of a query and a gallery image, except junk (see `reidssl.metrics.ranking`): pairs of the same identity
and camera, and images of identity -1.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import Tensor

from reidssl.choices import GALLERY_BLOCK
from reidssl.clustering.neighbors import Array
from reidssl.metrics.average_precision import product_blocks
from reidssl.metrics.inputs import check_fit, labels_of, unit_pair
from reidssl.row_blocks import kernel, over_blocks

FALSE_POSITIVE_RATES = (1e-4, 1e-3, 1e-2)


def true_positive_rates(
    query_features: Tensor | Array,
    query_pids: Array,
    query_camids: Array,
    gallery_features: Tensor | Array,
    gallery_pids: Array,
    gallery_camids: Array,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
    block: int = 128,
    num_bins: int = 2**18,
    num_threads: int | None = None,
    gallery_block: int = GALLERY_BLOCK,
) -> dict[float, float]:
    """True positive rate, in [0, 1], for each false positive rate in `rates`.

    Scores are counted in `num_bins` equal bins of [-1, 1], so memory does not grow with the number of pairs. The threshold for a
    rate is the lowest edge between bins that at most this share of the different-person pairs exceeds.

    Args:
        rates: false positive rates in (0, 1].
        num_bins: number of bins, at least 2.
        Other arguments as in `rank`.

    Returns:
        {false positive rate: share of same-person pairs above its threshold}.

    Raises:
        ValueError: as in `rank`; also if there are no same-person or no different-person pairs.
    """
    if block < 1 or gallery_block < 1:
        raise ValueError(f"block and gallery_block must be at least 1: got {block}, {gallery_block}")
    if num_bins < 2 or not all(0 < rate <= 1 for rate in rates):
        raise ValueError(f"rates must be in (0, 1] and num_bins at least 2: got {list(rates)}, {num_bins}")
    q_pids, q_camids = labels_of("query", query_pids, query_camids)
    g_pids, g_camids = labels_of("gallery", gallery_pids, gallery_camids)
    check_fit("query", query_features, q_pids)
    check_fit("gallery", gallery_features, g_pids)
    queries, gallery = unit_pair(query_features, gallery_features)
    counts = np.zeros((2, num_bins), np.int64)
    for first in range(0, len(gallery), gallery_block):
        there = slice(first, first + gallery_block)
        for start, scores in product_blocks(queries, gallery[there], block):
            here = slice(start, start + len(scores))
            labels = q_pids[here], q_camids[here], g_pids[there], g_camids[there]
            work = partial(_histogram, scores.cpu().numpy(), *labels, num_bins)
            for part in over_blocks(work, len(scores), max(1, -(-len(scores) // 4)), num_threads):
                counts += part
    different, same = counts
    if not different.sum() or not same.sum():
        raise ValueError(
            f"verification needs pairs of one person in two cameras and of two people: got {same.sum()} and "
            f"{different.sum()} pairs"
        )
    above_different, above_same = (np.append(np.cumsum(each[::-1])[::-1], 0) / each.sum() for each in (different, same))
    return {rate: float(above_same[np.argmax(above_different <= rate)]) for rate in rates}


@kernel
def _histogram(scores, q_pids, q_camids, g_pids, g_camids, num_bins, start, stop):  # type: ignore[no-untyped-def]
    """Histograms of the scores of the rows start..stop: int64 (2, num_bins), different-person and same-person pairs."""
    counts = np.zeros((2, num_bins), np.int64)
    for q in range(start, stop):
        if q_pids[q] == -1:
            continue
        for g in range(len(g_pids)):
            if g_pids[g] == -1:
                continue
            same = g_pids[g] == q_pids[q]
            if same and q_camids[q] != -1 and g_camids[g] == q_camids[q]:
                continue
            place = int((scores[q, g] + 1) * 0.5 * num_bins)
            counts[int(same), min(max(place, 0), num_bins - 1)] += 1
    return counts
