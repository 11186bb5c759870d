"""The pass over a query's scores from which all ranking metrics follow, without sorting them.

The rank of a true match is the number of gallery images in front of it. So nothing is put in order: for each of the few
true matches the row is run through once, and how many scores are larger is counted, many at a time.
"""

from __future__ import annotations

import numpy as np

from reidssl.compiled import kernel


@kernel
def count_rows(  # type: ignore[no-untyped-def]
    scores, q_pids, q_camids, g_camids, by_pid, begin, end, nobody, own, precision, penalty, first, start, stop
):
    """Fill the results of the rows start..stop; rows without a true match are left alone.

    Of equal scores the earlier gallery image is in front.

    Args:
        scores: float32 (Q, G), no NaN. q_pids, q_camids, g_camids: int64 (Q,) and (G,).
        by_pid: int64, gallery images in order of identity; by_pid[begin[q] : end[q]] are those of q's identity.
        nobody: int64, gallery images of identity -1.
        own: int64 (Q,), a gallery image that is junk for the query, or -1.
        precision, penalty: float64 (Q,), filled with the average precision and matches / rank of the last match.
        first: int64 (Q,), filled with the rank, from 0, of the first match.
    """
    num = scores.shape[1]
    row = np.empty(num, np.float32)
    for q in range(start, stop):
        if q_pids[q] == -1 or begin[q] == end[q]:
            continue
        camid = q_camids[q]
        for g in range(num):
            row[g] = scores[q, g]
        # Junk becomes NaN, which is in front of nothing.
        for place in nobody:
            row[place] = np.nan
        if own[q] >= 0:
            row[own[q]] = np.nan
        num_matches = 0
        for number in range(begin[q], end[q]):
            g = by_pid[number]
            if g == own[q] or (camid != -1 and g_camids[g] == camid):
                row[g] = np.nan
            else:
                num_matches += 1
        if num_matches == 0:
            continue
        ranks = np.empty(num_matches, np.int64)
        found = 0
        for number in range(begin[q], end[q]):
            match = by_pid[number]
            score = row[match]
            if np.isnan(score):
                continue
            ahead = 0
            for g in range(match):
                ahead += row[g] >= score
            for g in range(match + 1, num):
                ahead += row[g] > score
            ranks[found] = ahead
            found += 1
        ranks.sort()
        total = 0.0
        for number in range(num_matches):
            total += (number + 1) / (ranks[number] + 1)
        precision[q] = total / num_matches
        penalty[q] = num_matches / (ranks[num_matches - 1] + 1)
        first[q] = ranks[0]
