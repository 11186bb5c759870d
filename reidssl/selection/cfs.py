"""Catastrophic Forgetting Score, CFS (TransReID-SSL, arXiv 2111.12084, section 3).

A source proxy is a model pre-trained on the images. The target proxy is the source proxy fine-tuned on the target data. The score
of an image measures how much of its representation is retained. A high score means that little was forgotten, and that the image
is close to the target domain.

The authors published the order of the images but no code, and the paper does not define the measure. A measure is a function of
the two features x and y of an image and, except for the cosine, of the images that it is compared with:

    cosine              cos(x, y); the default: second-hand, this is the authors' measure
    neighborhood        |A & B| / k, with A and B the k nearest other images for each of the proxies, in the whole set
    group_neighborhood  the same, but only among the images of the image's group
    group_cka           the image's part of the linear CKA of its group: the cosine of its rows in the two Gram matrices

All but "cosine" need no common coordinates: features that are only rotated have the highest score. The groups are random, of a
fixed size and within one shard, so these measures take one pass, constant memory and a time linear in the number of images.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reidssl.choices import MEASURES
from reidssl.clustering.neighbors import Array, knn
from reidssl.seeding import GROUP_STREAM, sample_seeds, uniforms


class Measure(NamedTuple):
    """A measure of the CFS."""

    scope: str
    """The images that are compared: "image" (each one alone), "group" (those of a group) or "set" (all images)."""
    score: Callable[[Tensor, Tensor, int, int], Tensor]
    """(source (B, D), target (B, E), k, block) -> scores float32 (B,) of the images of one scope."""


@torch.no_grad()
def cfs_scores(source: Tensor | Array, target: Tensor | Array, measure: str = "cosine", k: int = 20, block: int = 1024) -> Tensor:
    """Scores of B images from the features of both proxies (256 x 128, eval mode, before the BNNeck).

    Args:
        source, target: float (B, D), features of the same images in the same order. Only "cosine" needs equal widths.
        measure: a key of MEASURE_OF. Except for "cosine", the B images must be the whole set or group and not a batch of it.
        k: number of neighbors of the neighborhoods; all other images if there are fewer.
        block: number of rows that a neighborhood compares at a time; memory is block x B.

    Returns:
        float32 (B,) on the source's device. With "cosine", a feature with NaN has score NaN, which `select_top` rejects.

    Raises:
        ValueError: shapes do not fit, the measure is unknown, or (all but cosine) features are not finite or of fewer than two
            images.
    """
    first, second = torch.as_tensor(source), torch.as_tensor(target)
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(f"source and target must be (B, D), same images: got {tuple(first.shape)}, {tuple(second.shape)}")
    if measure not in MEASURES:
        raise ValueError(f"measure must be one of {', '.join(MEASURES)}: got '{measure}'")
    if MEASURE_OF[measure].scope != "image" and (k < 1 or len(first) < 2):
        raise ValueError(f"{measure} needs k of at least 1 and two images: got k {k}, {len(first)} images")
    return MEASURE_OF[measure].score(first, second.to(first.device), k, block)


def group_scores(
    keys: Sequence[str],
    source: Tensor | Array,
    target: Tensor | Array,
    measure: str = "group_neighborhood",
    k: int = 20,
    group: int = 4096,
    seed: int = 0,
) -> Array:
    """Scores of the images of one shard by a measure of groups. Memory is that of one group.

    Args:
        keys: unique strings (B,); source, target, measure, k: see `cfs_scores`.
        group, seed: see `groups_of`.

    Returns:
        float32 (B,).

    Raises:
        ValueError: as `cfs_scores`.
    """
    first, second = torch.as_tensor(source), torch.as_tensor(target)
    scores = np.empty(len(keys), np.float32)
    for members in groups_of(keys, group, seed):
        rows = torch.from_numpy(members)
        scores[members] = cfs_scores(first[rows], second[rows], measure, k).cpu().numpy()
    return scores


def groups_of(keys: Sequence[str], group: int, seed: int) -> list[Array]:
    """Random groups of the images of a shard: ascending positions int64 in `keys`, of each group.

    The images are ordered by a random number that is a function of (seed, key), and this order is cut into the fewest groups of
    at most `group` images, whose sizes differ by one at most. Therefore the groups depend only on the seed and the keys.
    """
    if group < 3:
        raise ValueError(f"group must be at least 3, since one of two images may have to be alone: got {group}")
    order = np.argsort(uniforms(sample_seeds(seed, 0, keys), 1, stream=GROUP_STREAM)[:, 0], kind="stable")
    return [np.sort(members) for members in np.array_split(order, max(1, -(-len(keys) // group)))]


def _cosine(source: Tensor, target: Tensor, k: int, block: int) -> Tensor:
    """cos(x, y), in [-1, 1]. Cost: B x D."""
    if source.shape != target.shape:
        raise ValueError(f"cosine needs features of one width: got {source.shape[1]} and {target.shape[1]}")
    return (F.normalize(source.float(), dim=1) * F.normalize(target.float(), dim=1)).sum(dim=1)


def _neighborhood(source: Tensor, target: Tensor, k: int, block: int) -> Tensor:
    """|A & B| / k, in [0, 1]; k / (B - 1) on average for unrelated features. Cost: B x B x D, memory block x B."""
    near_source, near_target = (knn(each, k + 1, block)[0] for each in (source, target))
    return torch.from_numpy(neighborhood_overlap(near_source, near_target, block)).to(source.device)


def _cka(source: Tensor, target: Tensor, k: int, block: int) -> Tensor:
    """The part of each image in the linear CKA of the B images, in [-1, 1]; around 0 for unrelated features.

    With X (B, D) and Y (B, E) the features minus their means, and K = X X', L = Y Y' (Kornblith et al., arXiv 1905.00414):

        CKA = <K, L> / (|K| |L|)       score_i = <K_i, L_i> / (|K_i| |L_i|), with K_i and L_i the rows of image i

    CKA is the mean of the scores with the weights |K_i| |L_i| / (|K| |L|), so the score is the image's part without the weight
    that long features have. Dropping that weight keeps images from a low score only because they lie near the mean. An image that
    lies exactly at the mean has score 0. Computed in float64 as x'(X'Y)y / sqrt(x'(X'X)x y'(Y'Y)y): no B x B array. Cost:
    B x D x E.
    """
    x, y = (each.double() - each.double().mean(dim=0) for each in (source, target))
    for name, each in (("source", x), ("target", y)):
        if not torch.isfinite(each).all():
            raise ValueError(f"{name} must be finite: look for a diverged model or a broken image")
    shared, own, others = (((a @ (a.T @ b)) * b).sum(dim=1) for a, b in ((x, y), (x, x), (y, y)))
    lengths = (own * others).clamp_min(0).sqrt()
    return torch.where(lengths > 0, shared / lengths, 0.0).clamp(-1.0, 1.0).float()


MEASURE_OF = {
    "cosine": Measure("image", _cosine),
    "neighborhood": Measure("set", _neighborhood),
    "group_neighborhood": Measure("group", _neighborhood),
    "group_cka": Measure("group", _cka),
}
"""Every measure in reidssl.choices.MEASURES."""


def neighborhood_overlap(near_source: Array, near_target: Array, block: int = 1024) -> Array:
    """The "neighborhood" scores from tables of neighbors.

    Args:
        near_source, near_target: int (B, k + 1), the nearest images of every image for each proxy, the image itself first. -1:
            absent (not found by an approximate search), counts as not shared.
        block: largest number of rows compared at a time; fewer with many neighbors, so that a comparison takes 64 MiB.

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
    block = max(1, min(block, (64 << 20) // near_source.shape[1] ** 2))
    shared = [((one[:, :, None] == other[:, None]) & (one[:, :, None] >= 0)).sum(axis=(1, 2))
              for one, other in ((near_source[start : start + block, 1:], near_target[start : start + block, 1:])
                                 for start in range(0, len(near_source), block))]  # fmt: skip
    overlaps: np.ndarray = np.concatenate(shared) / (near_source.shape[1] - 1)
    return overlaps.astype(np.float32)
