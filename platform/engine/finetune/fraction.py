"""Fine-tuning on a part of the training images."""

import math

import numpy as np


def chosen_images(pids: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Mask bool (N,) of the images to train on: those of a random `fraction` of the identities, at least one.

    If an image has no identity (pid -1), images are drawn instead. With the same seed, a larger fraction contains a smaller one.

    pids: int (N,); fraction: in (0, 1].
    """
    units = pids if len(pids) and pids.min() >= 0 else np.arange(len(pids))
    names = np.unique(units)
    order = np.random.default_rng(seed).permutation(names)
    return np.isin(units, order[: max(1, math.ceil(round(fraction * len(names), 6)))])
