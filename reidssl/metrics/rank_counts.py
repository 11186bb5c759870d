"""Ranks of the true matches of a query by counting, without sorting all scores. All ranking metrics are computed from them.

The rank of a true match is the number of gallery images in front of it. Of equal scores, the earlier image is in front. So
only the true matches are sorted, and the scores are counted in passes. With few matches, there is one vectorized pass for each
match. With many matches, there is one pass in which the position of each score among the matches is found by bisection.
"""

import numpy as np

from reidssl.row_blocks import kernel

FEW = 12
"""Largest number of matches for which one pass per match is faster."""


@kernel
def copy_without_junk(  # type: ignore[no-untyped-def]
    row, scores, q, q_camids, g_camids, by_pid, begin, end, nobody, own, first
):
    """Copy the scores of query q and the images from `first` on to `row` (c,), with NaN for junk.

    Returns False if a score itself is NaN. Other arguments as in `count_rows`.
    """
    num = len(row)
    broken = 0
    for g in range(num):
        row[g] = scores[q, g]
        broken += row[g] != row[g]
    # Comparisons with NaN are false, so junk is never counted.
    for place in nobody[np.searchsorted(nobody, first) : np.searchsorted(nobody, first + num)]:
        row[place - first] = np.nan
    if first <= own[q] < first + num:
        row[own[q] - first] = np.nan
    if q_camids[q] != -1:
        members = by_pid[begin[q] : end[q]]
        for place in members[np.searchsorted(members, first) : np.searchsorted(members, first + num)]:
            if g_camids[place] == q_camids[q]:
                row[place - first] = np.nan
    return broken == 0


@kernel
def count_ahead(row, first, scores, places, ahead):  # type: ignore[no-untyped-def]
    """Add to `ahead` the number of images of the row in front of each match.

    Args:
        row: float32 (c,), scores of the images from `first` on, NaN for junk.
        scores, places: float32 and int64 (m,), the matches in order of descending score, then ascending place.
        ahead: int64 (m,); updated.
    """
    num, many = len(row), len(scores)
    if many <= FEW:
        for number in range(many):
            score = scores[number]
            middle = min(max(places[number] - first, 0), num)
            total = 0
            for g in range(middle):
                total += row[g] >= score
            for g in range(middle, num):  # `>` also excludes the match itself
                total += row[g] > score
            ahead[number] += total
        return
    new = np.zeros(many + 1, np.int64)
    for g in range(num):
        score = row[g]
        if not score >= scores[many - 1]:  # junk, or behind all matches
            continue
        low, high = 0, many
        while low < high:  # the first match that the image is in front of
            middle = (low + high) >> 1
            if score > scores[middle] or (score == scores[middle] and g + first < places[middle]):
                high = middle
            else:
                low = middle + 1
        new[low] += 1
    total = 0
    for number in range(many):
        total += new[number]
        ahead[number] += total


@kernel
def judge(ranks, q, precision, penalty, first):  # type: ignore[no-untyped-def]
    """Compute the results of query q from the ranks of its matches (ascending, from 0, at least one match)."""
    total = 0.0
    for number in range(len(ranks)):
        total += (number + 1) / (ranks[number] + 1)
    precision[q] = total / len(ranks)
    penalty[q] = len(ranks) / (ranks[-1] + 1)
    first[q] = ranks[0]


@kernel
def in_rank_order(scores, places):  # type: ignore[no-untyped-def]
    """Permutation that sorts matches by descending score, then ascending place. `places` must be ascending."""
    return np.argsort(-scores, kind="mergesort")


@kernel
def count_rows(  # type: ignore[no-untyped-def]
    scores, q_pids, q_camids, g_camids, by_pid, begin, end, nobody, own, precision, penalty, first, start, stop
):
    """Compute the results of the rows start..stop. Rows without a true match are not changed.

    Args:
        scores: float32 (Q, G).
        q_pids, q_camids, g_camids: int64 (Q,), (Q,) and (G,).
        by_pid: int64 (G,), gallery images sorted by identity; by_pid[begin[q] : end[q]] are those of q's identity, ascending.
        nobody: int64, gallery images of identity -1, ascending.
        own: int64 (Q,), a gallery image that is junk for the query, or -1.
        precision: float64 (Q,), filled with the average precision.
        penalty: float64 (Q,), filled with number of matches / rank (from 1) of the last match.
        first: int64 (Q,), filled with the rank, from 0, of the first match.

    Returns:
        The first row with a NaN score, at which the computation stops; -1 if there is none.
    """
    row = np.empty(scores.shape[1], np.float32)
    for q in range(start, stop):
        if q_pids[q] == -1 or begin[q] == end[q]:
            continue
        if not copy_without_junk(row, scores, q, q_camids, g_camids, by_pid, begin, end, nobody, own, 0):
            return q
        places = by_pid[begin[q] : end[q]]
        places = places[~np.isnan(row[places])]
        if len(places) == 0:
            continue
        matches = row[places]
        order = in_rank_order(matches, places)
        ahead = np.zeros(len(places), np.int64)
        count_ahead(row, 0, matches[order], places[order], ahead)
        judge(ahead, q, precision, penalty, first)
    return -1


@kernel
def gather_matches(scores, first, pointers, places, found, start, stop):  # type: ignore[no-untyped-def]
    """Collect the scores of the matches of the rows start..stop that are in a piece of the gallery.

    Args:
        scores: float32 (q, c), of the images from `first` on.
        pointers, places: int64; the matches of row r are places[pointers[r] : pointers[r + 1]], ascending.
        found: float32, one score for each of `places`; updated.
    """
    for r in range(start, stop):
        for number in range(pointers[r], pointers[r + 1]):
            column = places[number] - first
            if 0 <= column < scores.shape[1]:
                found[number] = scores[r, column]


@kernel
def count_piece(  # type: ignore[no-untyped-def]
    scores, q_camids, g_camids, by_pid, begin, end, nobody, own, first, pointers, places, matches, ahead, start, stop
):
    """Add to `ahead` the number of images of a piece of the gallery in front of each match of the rows start..stop.

    The piece consists of the images from `first` on. The matches of row r, in order, are at pointers[r] : pointers[r + 1] of
    `places`, `matches` (their scores) and `ahead`. Other arguments and result as in `count_rows`.
    """
    row = np.empty(scores.shape[1], np.float32)
    for r in range(start, stop):
        here = slice(pointers[r], pointers[r + 1])
        if here.start == here.stop:
            continue
        if not copy_without_junk(row, scores, r, q_camids, g_camids, by_pid, begin, end, nobody, own, first):
            return r
        count_ahead(row, first, matches[here], places[here], ahead[here])
    return -1
