"""Batches of P identities with K images each, for triplet losses and cluster memories.

The batches of an epoch are a pure function of (identities, cameras, seed, epoch). Every worker therefore computes the same
list, and a resumed run continues it.

The images of an identity are chosen in one of two ways:
- default (TransReID-SSL): its images are shuffled and divided into groups of K, so that a pass uses each image at most once;
- cross_camera (Cluster Contrast, arXiv 2103.11568): one image, and K - 1 images from other cameras; one group per identity
  and pass.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reidssl.seeding import mix

Indices = NDArray[np.int64]


def identity_batches(
    pids: ArrayLike,
    camids: ArrayLike | None,
    num_identities: int,
    num_instances: int,
    seed: int,
    epoch: int,
    num_batches: int | None = None,
    cross_camera: bool = False,
    allow_fewer: bool = False,
) -> list[Indices]:
    """The batches of one epoch: int64 arrays (P * K,) of positions in `pids`, with the K images of an identity together.

    An identity with fewer than K images repeats some of them.

    Args:
        pids: int (N,), identities or pseudo-labels. Negative ones (outliers, junk) are never drawn.
        camids: int (N,), cameras; required for `cross_camera` only.
        num_identities: P, the number of different identities in a batch.
        num_instances: K, the number of images of each identity in a batch.
        num_batches: number of batches; passes are repeated with new shuffles until it is reached. None: one pass, which ends
            when fewer than P identities have images left.
        cross_camera: choose images across cameras (see the top of this module).
        allow_fewer: with fewer than P identities, make smaller batches of all of them, as in the first epochs of clustering.

    Raises ValueError for invalid arguments, if there are fewer than P identities and not `allow_fewer`, and if there is no
    identity at all.
    """
    pids = np.asarray(pids)
    if pids.ndim != 1 or not np.issubdtype(pids.dtype, np.integer):
        raise ValueError(f"pids must be a one-dimensional array of integers: got {pids.dtype} {pids.shape}")
    if num_identities < 1 or num_instances < 1:
        raise ValueError(f"num_identities and num_instances must be at least 1: got {num_identities} and {num_instances}")
    if num_batches is not None and num_batches < 0:
        raise ValueError(f"num_batches must not be negative: got {num_batches}")
    cameras = _checked_cameras(camids, len(pids)) if cross_camera else None

    groups = _groups(pids)
    if not groups:
        raise ValueError(f"no identity to draw batches from: none of the {len(pids)} labels is 0 or larger")
    if len(groups) < num_identities:
        if not allow_fewer:
            raise ValueError(
                f"num_identities is {num_identities}, but there are only {len(groups)} identities; lower it, or set "
                "allow_fewer to take smaller batches"
            )
        num_identities = len(groups)

    batches: list[Indices] = []
    number = 0
    while num_batches is None or len(batches) < num_batches:
        generator = np.random.default_rng(mix(seed, epoch, number))
        batches.extend(_one_pass(groups, cameras, num_identities, num_instances, generator))
        number += 1
        if num_batches is None:
            return batches
    return batches[:num_batches]


def _checked_cameras(camids: ArrayLike | None, count: int) -> NDArray[np.integer]:
    if camids is None:
        raise ValueError("cross_camera needs camids, one for each of the pids: got None")
    cameras = np.asarray(camids)
    if cameras.shape != (count,):
        raise ValueError(f"camids must have the shape of pids, ({count},): got {cameras.shape}")
    return cameras


def _groups(pids: NDArray[np.integer]) -> list[Indices]:
    """Positions of the images of each identity, for identities of 0 or more in ascending order."""
    order = np.argsort(pids, kind="stable").astype(np.int64)
    order = order[pids[order] >= 0]
    return np.split(order, np.flatnonzero(np.diff(pids[order])) + 1) if len(order) else []


def _one_pass(
    groups: Sequence[Indices],
    cameras: NDArray[np.integer] | None,
    num_identities: int,
    num_instances: int,
    generator: np.random.Generator,
) -> Iterator[Indices]:
    if cameras is None:
        hands = [_deal(group, num_instances, generator) for group in groups]
    else:
        hands = [[_across_cameras(group, cameras, num_instances, generator)] for group in groups]
    left = np.array([len(hand) for hand in hands])
    while (available := np.flatnonzero(left)).size >= num_identities:
        chosen = generator.choice(available, size=num_identities, replace=False)
        left[chosen] -= 1
        yield np.concatenate([hands[identity][left[identity]] for identity in chosen])


def _deal(group: Indices, num_instances: int, generator: np.random.Generator) -> list[Indices]:
    """The shuffled images of one identity in groups of K. A remainder of fewer than K is not used in this pass."""
    shuffled = generator.permutation(group)
    if len(group) < num_instances:
        return [np.resize(shuffled, num_instances)]  # np.resize repeats the images from the start
    num_hands = len(group) // num_instances
    return list(shuffled[: num_hands * num_instances].reshape(num_hands, num_instances))


def _across_cameras(group: Indices, cameras: NDArray[np.integer], num_instances: int, generator: np.random.Generator) -> Indices:
    """One random image and K - 1 others: from other cameras if possible, else from the same camera.

    If there are fewer than K - 1 images from other cameras, these are repeated; images of the own camera are not added.
    """
    first = generator.choice(group)
    others = group[cameras[group] != cameras[first]]
    if not len(others):
        others = group[group != first]
    if not len(others):
        return np.full(num_instances, first, dtype=np.int64)
    rest = generator.choice(others, size=num_instances - 1, replace=len(others) < num_instances - 1)
    return np.concatenate([[first], rest]).astype(np.int64)
