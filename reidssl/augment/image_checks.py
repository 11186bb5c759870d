"""Validation of the inputs of augmentations."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def check_images(images: "Tensor", seeds: NDArray[np.uint64] | None = None) -> None:
    """Raise ValueError unless `images` is uint8 (B, 3, H, W) and `seeds`, if given, uint64 (B,)."""
    import torch  # imported here, because settings are checked without torch

    if (
        not isinstance(images, torch.Tensor)
        or images.dtype != torch.uint8
        or images.ndim != 4
        or images.shape[1] != 3
        or 0 in images.shape[2:]
    ):
        raise ValueError(
            "images must be uint8 RGB of the shape (B, 3, H, W), as decoded, neither scaled nor normalized: "
            f"got {'' if isinstance(images, torch.Tensor) else 'no tensor but '}{images.dtype} {tuple(images.shape)}"
        )
    if seeds is None:
        return
    if not isinstance(seeds, np.ndarray) or seeds.dtype != np.uint64 or seeds.shape != (len(images),):
        described = f"{getattr(seeds, 'dtype', type(seeds).__name__)} {tuple(getattr(seeds, 'shape', ()))}"
        raise ValueError(
            f"seeds must be a uint64 array of the shape ({len(images)},), one seed for each image, as "
            f"reidssl.seeding.sample_seeds gives: got {described}"
        )
