"""Agreement of scores: with known labels (AUC) and with another order of the same images (rank correlation, common top)."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from reidssl.selection.subset import count_of, select_top

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


def agreement(keys: Sequence[str], scores: Array, reference: Sequence[str], fraction: float = 0.5) -> dict[str, float | int]:
    """Agreement of scores with a reference order of the same images, such as the published list.

    Args:
        keys, scores: keys and scores (B,) of the images.
        reference: keys, best first. A leading "images/" is ignored in both lists. Only common keys are compared.
        fraction: top fraction of the images to compare, in (0, 1].

    Returns:
        {"spearman": rank correlation in [-1, 1]; "top_overlap": common share of the two top fractions, in [0, 1], expected value
        `fraction` for random scores; "fraction"; "num_compared": number of common keys}.

    Raises:
        ValueError: there are fewer than two common keys or a repeated key, or scores are NaN or all equal.
    """
    if len(keys) != len(scores):
        raise ValueError(f"keys and scores must be of one length: got {len(keys)} and {len(scores)}")
    position = {key.removeprefix("images/"): place for place, key in enumerate(reference)}
    if len(position) != len(reference):
        raise ValueError(f"the reference names {len(reference) - len(position)} images twice")
    names = [key.removeprefix("images/") for key in keys]
    common = [place for place, name in enumerate(names) if name in position]
    if len(common) < 2:
        raise ValueError(
            f"the reference shares {len(common)} of {len(keys)} images (first key '{names[0] if names else ''}', first "
            f"entry '{reference[0] if reference else ''}'): it belongs to another data set"
        )
    names = [names[place] for place in common]
    ours = np.asarray(scores, np.float64)[common]
    theirs = -np.asarray([position[name] for name in names], np.float64)
    top = [set(select_top(names, each, fraction).tolist()) for each in (ours, theirs)]
    return {
        "spearman": spearman(ours, theirs),
        "top_overlap": len(top[0] & top[1]) / count_of(len(names), fraction),
        "fraction": fraction,
        "num_compared": len(names),
    }


def _check_scores(name: str, values: Array) -> None:
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must be one-dimensional and not empty: got shape {values.shape}")
    if np.isnan(values).any():
        raise ValueError(f"{name} must be numbers: entry {int(np.isnan(values).argmax())} is NaN")
