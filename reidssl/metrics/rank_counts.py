"""The passes over a query's scores from which all ranking metrics follow, without sorting them.

The rank of a true match is the number of gallery images in front of it; of equal scores the earlier image is in front. So
nothing but the true matches is put in order, and all scores are run through: once for each of a few matches, many scores at a
time; once for all together where there are many, looking up each score's place among the matches.
"""

import numpy as np

from reidssl.row_blocks import kernel

FEW = 12
"""Matches up to which running through the row for each is faster."""


@kernel
def copy_without_junk(  # type: ignore[no-untyped-def]
    row, scores, q, q_camids, g_camids, by_pid, begin, end, nobody, own, first
):
    """Fill `row` (c,) with the scores of query q and the images from `first` on, junk as NaN; False if a score is NaN."""
    num = len(row)
    broken = 0
    for g in range(num):
        row[g] = scores[q, g]
        broken += row[g] != row[g]
    # NaN is in front of nothing.
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
    """Add to `ahead` (m,) how many images of the row are in front of each match.

    Args:
        row: float32 (c,), scores of the images from `first` on, junk NaN.
        scores, places: float32 and int64 (m,), the matches in order: falling scores, equal ones by rising place.
        ahead: int64 (m,).
    """
    num, many = len(row), len(scores)
    if many <= FEW:
        for number in range(many):
            score = scores[number]
            middle = min(max(places[number] - first, 0), num)
            total = 0
            for g in range(middle):
                total += row[g] >= score
            for g in range(middle, num):  # the match itself is not larger than itself
                total += row[g] > score
            ahead[number] += total
        return
    new = np.zeros(many + 1, np.int64)
    for g in range(num):
        score = row[g]
        if not score >= scores[many - 1]:  # junk, or behind all
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
    """Results of query q from the rising ranks, from 0, of its matches, at least one."""
    total = 0.0
    for number in range(len(ranks)):
        total += (number + 1) / (ranks[number] + 1)
    precision[q] = total / len(ranks)
    penalty[q] = len(ranks) / (ranks[-1] + 1)
    first[q] = ranks[0]


@kernel
def in_rank_order(scores, places):  # type: ignore[no-untyped-def]
    """Order of matches whose places rise: falling scores, equal ones by rising place."""
    return np.argsort(-scores, kind="mergesort")


@kernel
def count_rows(  # type: ignore[no-untyped-def]
    scores, q_pids, q_camids, g_camids, by_pid, begin, end, nobody, own, precision, penalty, first, start, stop
):
    """Fill the results of the rows start..stop; rows without a true match are left alone.

    Args:
        scores: float32 (Q, G). q_pids, q_camids, g_camids: int64 (Q,) and (G,).
        by_pid: int64, gallery images in order of identity; by_pid[begin[q] : end[q]] are those of q's identity, rising.
        nobody: int64, gallery images of identity -1, rising.
        own: int64 (Q,), a gallery image that is junk for the query, or -1.
        precision, penalty: float64 (Q,), filled with the average precision and matches / rank of the last match.
        first: int64 (Q,), filled with the rank, from 0, of the first match.

    Returns:
        The first row with a score that is NaN, -1 if there is none; nothing is filled from there on.
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
    """Take the scores of those matches of the rows start..stop that are among the images from `first` on.

    Args:
        scores: float32 (q, c).
        pointers, places: int64, matches of row r are places[pointers[r] : pointers[r + 1]], rising.
        found: float32, one for each of `places`.
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
    """Add to `ahead` what a piece of the gallery, the images from `first` on, has in front of the matches of start..stop.

    As `count_rows`, with the matches of each row, in order, at pointers[r] : pointers[r + 1] of places, matches and ahead.
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
