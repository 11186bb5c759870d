"""Catastrophic Forgetting Score, CFS (TransReID-SSL, arXiv 2111.12084, section 3).

A source proxy is a model pre-trained on the images. The target proxy is the source proxy fine-tuned on the target data. The score
of an image measures how much of its representation is retained. A high score means that little was forgotten, and that the image
is close to the target domain.

The authors published the order of the images but no code, and the paper does not define the measure. Two are available:

    cosine          score(x) = cos(source feature of x, target feature of x); the default
    neighborhood    score(x) = |A(x) & B(x)| / k, with A and B the k nearest other images of x for each of the proxies

"neighborhood" does not need common coordinates (features that are only rotated have score 1), but needs all images at once.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from reidssl.choices import MEASURES
from reidssl.clustering.neighbors import Array, knn
from reidssl.selection.subset import count_of, select_top


@torch.no_grad()
def cfs_scores(source: Tensor | Array, target: Tensor | Array, measure: str = "cosine", k: int = 20, block: int = 1024) -> Tensor:
    """Scores of B images from the features of both proxies (256 x 128, eval mode, before the BNNeck).

    Args:
        source, target: float (B, D), features of the same images in the same order. For "neighborhood" the widths may differ.
        measure: "cosine", in [-1, 1], for each image alone; or "neighborhood", in [0, 1], among the B images, which must be the
            whole set and not a batch of it.
        k: number of neighbors for "neighborhood"; all other images if there are fewer.
        block: number of rows that "neighborhood" compares at a time; memory is block x B.

    Returns:
        float32 (B,) on the source's device. With "cosine", a feature with NaN has score NaN, which `select_top` rejects.

    Raises:
        ValueError: shapes do not fit, the measure is unknown, or (neighborhood) features are not finite.
    """
    first, second = torch.as_tensor(source), torch.as_tensor(target)
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(f"source and target must be (B, D), same images: got {tuple(first.shape)}, {tuple(second.shape)}")
    if measure == "cosine":
        if first.shape != second.shape:
            raise ValueError(f"cosine needs features of one width: got {first.shape[1]} and {second.shape[1]}")
        return (F.normalize(first.float(), dim=1) * F.normalize(second.float().to(first.device), dim=1)).sum(dim=1)
    if measure != "neighborhood":
        raise ValueError(f"measure must be one of {', '.join(MEASURES)}: got '{measure}'")
    if k < 1 or len(first) < 2:
        raise ValueError(f"neighborhood needs k of at least 1 and two images: got k {k}, {len(first)} images")
    near_source, near_target = (knn(each, k + 1, block)[0] for each in (first, second))
    return torch.from_numpy(neighborhood_overlap(near_source, near_target, block)).to(first.device)


def neighborhood_overlap(near_source: Array, near_target: Array, block: int = 1024) -> Array:
    """The "neighborhood" scores from tables of neighbors.

    Args:
        near_source, near_target: int (B, k + 1), the nearest images of every image for each proxy, the image itself first. -1:
            absent (not found by an approximate search), counts as not shared.
        block: number of rows compared at a time.

    Returns:
        float32 (B,), shared neighbors / k, in [0, 1].

    Raises:
        ValueError: the tables differ in shape or have fewer than two columns.
    """
    if near_source.shape != near_target.shape or near_source.ndim != 2 or near_source.shape[1] < 2:
        raise ValueError(
            "both neighbor tables must be (B, k + 1) with k of at least 1, of the same images: got "
            f"{near_source.shape} and {near_target.shape}"
        )
    shared = [((one[:, :, None] == other[:, None]) & (one[:, :, None] >= 0)).sum(axis=(1, 2))
              for one, other in ((near_source[start : start + block, 1:], near_target[start : start + block, 1:])
                                 for start in range(0, len(near_source), block))]  # fmt: skip
    overlaps: np.ndarray = np.concatenate(shared) / (near_source.shape[1] - 1)
    return overlaps.astype(np.float32)


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
