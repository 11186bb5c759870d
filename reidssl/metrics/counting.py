"""The one pass over a query's scores from which all ranking metrics follow, without sorting them.

The rank of a true match is the number of gallery images in front of it. So only the few true matches are put in order, and
every other image is looked up among them: most score below the last match and cost one comparison.
"""

from __future__ import annotations

import numpy as np

from reidssl.clustering.compiled import kernel


@kernel
def count_rows(  # type: ignore[no-untyped-def]
    scores, q_pids, q_camids, g_pids, g_camids, own, precision, penalty, first, start, stop
):
    """Fill the results of the rows start..stop; rows without a true match are left alone.

    Args:
        scores: float32 (Q, G). q_pids, q_camids, g_pids, g_camids: int64 (Q,) and (G,).
        own: int64 (Q,), a gallery image that is junk for the query, or -1.
        precision, penalty: float64 (Q,), filled with the average precision and matches / rank of the last match.
        first: int64 (Q,), filled with the rank, from 0, of the first match.
    """
    num = len(g_pids)
    places = np.empty(num, np.int64)  # of the true matches
    for q in range(start, stop):
        pid, camid, row = q_pids[q], q_camids[q], scores[q]
        if pid == -1:
            continue
        num_matches = 0
        for g in range(num):
            if g_pids[g] == pid and (g_camids[g] != camid or camid == -1) and g != own[q]:
                places[num_matches] = g
                num_matches += 1
        if num_matches == 0:
            continue
        # Best first, the earlier of equal scores first: insertion, since a query has few true matches.
        for number in range(1, num_matches):
            match = places[number]
            spot = number
            while spot > 0 and row[places[spot - 1]] < row[match]:
                places[spot] = places[spot - 1]
                spot -= 1
            places[spot] = match
        lowest = row[places[num_matches - 1]]
        before = np.zeros(num_matches, np.int64)  # images that rank between the previous match and this one
        for g in range(num):
            score = row[g]
            if score < lowest or g_pids[g] == -1 or g_pids[g] == pid:
                continue  # behind every match, or junk, or a match itself
            low, high = 0, num_matches
            while low < high:  # the first match behind image g
                middle = (low + high) // 2
                at = places[middle]
                if row[at] < score or (row[at] == score and at > g):
                    high = middle
                else:
                    low = middle + 1
            if low < num_matches:
                before[low] += 1
        total = 0.0
        position = 0
        for number in range(num_matches):
            position += before[number] + 1
            total += (number + 1) / position
            if number == 0:
                first[q] = position - 1
        precision[q] = total / num_matches
        penalty[q] = num_matches / position
