"""Choice of a subset: the images with the best scores, of all images or with a floor for each stratum."""

import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def count_of(num_images: int, fraction: float) -> int:
    """Number of images in the top `fraction`, in (0, 1]: rounded to the nearest integer, halves up, at least one.

    This agrees with the published subsets: 50 % of 4,180,243 are 2,090,122 and 60 % are 2,508,146.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction must be in (0, 1]: got {fraction}")
    return max(1, math.floor(round(num_images * fraction, 6) + 0.5))  # 50 * 0.29 is 14.5 less a rounding error


def select_top(keys: Sequence[str], scores: Array | Sequence[float], fraction: float) -> Array:
    """The best `count_of(B, fraction)` images, see `select_best`. fraction: in (0, 1]."""
    return select_best(keys, scores, count_of(len(keys), fraction))


def select_best(keys: Sequence[str], scores: Array | Sequence[float], count: int) -> Array:
    """Positions of the images with the best scores, best first. Equal scores are in ascending order of their keys.

    The selected keys do not depend on the order of the input.

    Args:
        keys: unique strings (B,).
        scores: numbers (B,), higher is better.
        count: number of images to select, at least 1; B if there are fewer.

    Returns:
        int64 (min(count, B),), positions in `keys`.

    Raises:
        ValueError: there are no images, lengths differ, a key is repeated, a score is NaN (the message names its key), or the
            count is below 1.
    """
    values = np.asarray(scores, np.float64)
    if values.shape != (len(keys),) or not len(keys):
        raise ValueError(f"keys and scores must be of one length, at least 1: got {len(keys)} and {values.shape}")
    if count < 1:
        raise ValueError(f"count must be at least 1: got {count}")
    missing = np.isnan(values)
    if missing.any():
        first = keys[int(missing.argmax())]
        raise ValueError(
            f"{int(missing.sum())} of {len(keys)} scores are NaN, the first that of '{first}': the proxies gave no finite "
            "feature; remove these images or score them again"
        )
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        double = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"keys must be unique: '{double}' occurs more than once")
    order = np.argsort(-values, kind="stable")
    sorted_values = values[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_values[1:] != sorted_values[:-1]]))
    ends = np.append(starts[1:], len(order))
    # Keys must be compared only in runs of equal scores that begin inside the subset.
    for run in np.flatnonzero((ends - starts > 1) & (starts < count)):
        span = slice(starts[run], ends[run])
        order[span] = sorted(order[span], key=keys.__getitem__)
    return order[:count].astype(np.int64)


def select_stratified(
    keys: Sequence[str], scores: Array | Sequence[float], count: int, strata: Sequence[str] | Array, floor: float
) -> Array:
    """The best images with a floor for each stratum: first the best `floor` of each stratum, then the best of all others.

    With `floor` equal to the share that is selected, every stratum keeps this share; with 0 it is `select_best`.

    Args:
        keys, scores, count: as in `select_best`.
        strata: the stratum of each image (B,), such as its camera.
        floor: share of the images of a stratum, in [0, 1]; its number of images is rounded down.

    Returns:
        int64 (min(count, B),), positions in `keys`, best first.

    Raises:
        ValueError: as `select_best`; or the floor is out of range, or the floors of all strata exceed the count.
    """
    if not 0.0 <= floor <= 1.0:
        raise ValueError(f"floor must be in [0, 1]: got {floor}")
    order = select_best(keys, scores, len(keys))
    _, numbers, sizes = np.unique(np.asarray(strata)[order], return_inverse=True, return_counts=True)
    by_stratum = np.argsort(numbers, kind="stable")  # best first within each stratum
    place = np.empty(len(order), np.int64)
    place[by_stratum] = np.concatenate([np.arange(size) for size in sizes])
    protected = place < np.floor(sizes * floor + 1e-9).astype(np.int64)[numbers]
    needed, count = int(protected.sum()), min(count, len(keys))
    if needed > count:
        raise ValueError(
            f"a floor of {floor:g} keeps {needed:,} images of {len(sizes):,} strata, more than the {count:,} asked for: lower "
            "the floor or select more"
        )
    others = np.flatnonzero(~protected)[: count - needed]
    chosen: Array = order[np.sort(np.concatenate([np.flatnonzero(protected), others]))]
    return chosen
