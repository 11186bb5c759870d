"""Agreement of scores: with known labels (AUC) and with another order of the same images (rank correlation, common top)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from reidssl.selection.subset import count_of, select_best

Array = np.ndarray


def auc(scores: Array | Sequence[float], positives: Array | Sequence[bool]) -> float:
    """Area under the ROC curve: the probability that a positive has a higher score than a negative; ties count one half.

    Args:
        scores: numbers (B,).
        positives: bool (B,), with at least one positive and one negative.

    Raises:
        ValueError: lengths differ, a score is NaN, or there are no positives or no negatives.
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(positives, bool)
    _check_scores("scores", values)
    if values.shape != truth.shape:
        raise ValueError(f"scores and positives must be of one length: got {values.shape} and {truth.shape}")
    num_positive = int(truth.sum())
    num_negative = len(truth) - num_positive
    if not num_positive or not num_negative:
        raise ValueError(f"auc needs both kinds: got {num_positive} positives and {num_negative} negatives")
    rank_sum = float(rankdata(values)[truth].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def spearman(first: Array, second: Array) -> float:
    """Spearman's rank correlation of two arrays of scores (B,), in [-1, 1]. Equal scores have their average rank.

    Raises:
        ValueError: lengths differ, a score is NaN, or all scores of an array are equal, so that it defines no order.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    _check_scores("first", a)
    _check_scores("second", b)
    if a.shape != b.shape:
        raise ValueError(f"both score arrays must be of one length: got {a.shape} and {b.shape}")
    ranks = [rankdata(each) - (len(each) + 1) / 2 for each in (a, b)]
    norms = [float(np.sqrt(each @ each)) for each in ranks]
    if not all(norms):
        raise ValueError("a rank correlation needs scores that differ: all of one array are equal")
    return float(np.clip(ranks[0] @ ranks[1] / (norms[0] * norms[1]), -1.0, 1.0))


def agreement(keys: Sequence[str], first: Array, second: Array, fractions: Sequence[float]) -> dict[str, Any]:
    """Agreement of two rankings of the same images, such as scores and the published list.

    Args:
        keys: unique strings (B,).
        first, second: scores (B,), higher is better; NaN: the image is not in this ranking. Only images that both rank
            are ordered and compared.
        fractions: top fractions of the compared images, in (0, 1].

    Returns:
        {"num_first", "num_second": ranked images; "num_compared": images that both rank; "common": their share of the shorter
        ranking; "spearman": rank correlation in [-1, 1]; "overlaps": {fraction: common share of the two top fractions, in [0, 1],
        whose expected value for unrelated scores is the fraction}}. Without two images to compare, or with equal scores,
        "spearman" is None and "overlaps" is empty.

    Raises:
        ValueError: lengths differ, or a ranking is empty.
    """
    if not len(keys) == len(first) == len(second):
        raise ValueError(f"keys and scores must be of one length: got {len(keys)}, {len(first)} and {len(second)}")
    ranked = [~np.isnan(np.asarray(each, np.float64)) for each in (first, second)]
    if not all(each.any() for each in ranked):
        raise ValueError("a ranking without images cannot be compared")
    both = np.flatnonzero(ranked[0] & ranked[1])
    names = [keys[int(place)] for place in both]
    ours, theirs = (np.asarray(each, np.float64)[both] for each in (first, second))
    found: dict[str, Any] = {f"num_{name}": int(each.sum()) for name, each in zip(("first", "second"), ranked, strict=True)}
    found |= {"num_compared": len(both), "common": len(both) / min(found.values()), "spearman": None, "overlaps": {}}
    if len(both) > 1 and np.ptp(ours) > 0 and np.ptp(theirs) > 0:
        found["spearman"] = spearman(ours, theirs)
        best, reference = (select_best(names, each, len(names)) for each in (ours, theirs))
        for fraction in fractions:
            count = count_of(len(names), fraction)
            found["overlaps"][f"{fraction:g}"] = len(np.intersect1d(best[:count], reference[:count])) / count
    return found


def _check_scores(name: str, values: Array) -> None:
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must be one-dimensional and not empty: got shape {values.shape}")
    if np.isnan(values).any():
        raise ValueError(f"{name} must be numbers: entry {int(np.isnan(values).argmax())} is NaN")
