"""Catastrophic Forgetting Score, CFS (TransReID-SSL, arXiv 2111.12084, section 3).

A source proxy is pre-trained on the images, a target proxy is the source proxy fine-tuned on the target data. The score
of an image says how much of its representation survived: high = little forgotten = close to the target domain.

The paper published the order of the images but no code, and does not fix the measure; `cosine` is the default here:

    cosine          score(x) = cos(source feature of x, target feature of x)
    neighborhood   score(x) = |A(x) & B(x)| / k, with A and B the k nearest other images in either proxy's space

The second needs no shared coordinates (features that were merely rotated keep score 1), but looks at all images at once.
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
    """Scores of B images from the two proxies' features of them (256 x 128, eval mode, before the BNNeck).

    Args:
        source, target: float (B, D), row by row the same images. For "neighborhood" the widths may differ.
        measure: "cosine", each image by itself, in [-1, 1]; or "neighborhood", in [0, 1], among the B images given:
            pass the whole set, not a batch of it.
        k: neighbors of "neighborhood"; with few images, all the others.
        block: rows compared at a time by "neighborhood"; memory is block x B.

    Returns:
        float32 (B,) on the source's device. "cosine" of a feature with NaN is NaN, which `select_top` refuses by key.

    Raises:
        ValueError: shapes that do not fit, an unknown measure, or (neighborhood) features that are not finite.
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
    """The "neighborhood" scores from searches made elsewhere.

    Args:
        near_source, near_target: int (B, k + 1), the nearest images of every image by either proxy, itself first; -1 where
            an approximate search found fewer, which counts as not shared.

    Returns:
        float32 (B,), the shared ones among the k others, in [0, 1].
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
    """Area under the ROC curve: the chance that a positive scores higher than a negative, ties counting one half.

    Args:
        scores: numbers (B,). positives: bool (B,), both kinds present.

    Raises:
        ValueError: different lengths, NaN, or only one kind.
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
    """Rank correlation of two score arrays (B,), equal scores sharing their average rank; in [-1, 1].

    Raises:
        ValueError: different lengths, NaN, or all scores of one array equal (it has no order to compare).
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
    """How far scores agree with a given order of the same images, such as the published list.

    Args:
        keys, scores: the images and their scores (B,).
        reference: keys, best first. A leading "images/" is ignored on both sides; only common keys are compared.
        fraction: which top part is compared.

    Returns:
        {"spearman": in [-1, 1]; "top_overlap": share of the top part common to both, in [0, 1], by chance `fraction`;
        "fraction"; "num_compared"}.

    Raises:
        ValueError: fewer than two common keys, a repeated key, NaN scores, or scores that are all equal.
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
