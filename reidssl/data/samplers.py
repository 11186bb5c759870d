"""Batches of P identities with K images each, for triplet losses and cluster memories.

An epoch's batches are a pure function of (identities, cameras, seed, epoch), so that every worker draws the same
list and a resumed run continues it.

Two ways to choose an identity's images, after TransReID-SSL's recipe and Cluster Contrast's (arXiv 2103.11568):
- default: its images are shuffled and dealt in hands of K, so that a pass sees each image at most once;
- cross_camera: one image, and K - 1 others from other cameras than that image's; one hand for each identity and pass.
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
    """The batches of one epoch: int64 arrays (P * K,) of positions in `pids`, the K images of an identity together.

    `pids` (N,): identities or pseudo-labels; negative ones (outliers, junk) are never drawn. `camids` (N,): cameras,
    needed for `cross_camera` only. P = `num_identities`, all different within a batch; K = `num_instances`.
    An identity with fewer than K images repeats some of them.

    Without `num_batches` the epoch is one pass: batches are made while P identities have images left. With it, passes
    are repeated, newly shuffled each time, until there are exactly that many.

    Raises ValueError where there are fewer than P identities. With `allow_fewer`, batches then hold all there are
    (as in the first epochs of clustering), and only no identity at all is an error.
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
    """Positions of each identity from 0 up, in ascending order."""
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
    """The shuffled images of one identity in hands of K; a rest of fewer than K waits for the next epoch."""
    shuffled = generator.permutation(group)
    if len(group) < num_instances:
        return [np.resize(shuffled, num_instances)]  # repeats them from the start
    num_hands = len(group) // num_instances
    return list(shuffled[: num_hands * num_instances].reshape(num_hands, num_instances))


def _across_cameras(group: Indices, cameras: NDArray[np.integer], num_instances: int, generator: np.random.Generator) -> Indices:
    """One image and K - 1 others, from other cameras if there is one: repeated rather than filled up from its
    own."""
    first = generator.choice(group)
    others = group[cameras[group] != cameras[first]]
    if not len(others):
        others = group[group != first]
    if not len(others):
        return np.full(num_instances, first, dtype=np.int64)
    rest = generator.choice(others, size=num_instances - 1, replace=len(others) < num_instances - 1)
    return np.concatenate([[first], rest]).astype(np.int64)
