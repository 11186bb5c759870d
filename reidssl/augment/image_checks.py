"""Validation of the inputs of augmentations."""

from typing import TYPE_CHECKING, Any

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


def check_shapes(images: "Tensor", shapes: NDArray[np.integer[Any]] | None) -> None:
    """Raise ValueError unless `shapes`, if given, are a positive height and width for each image, integers (B, 2)."""
    if shapes is None:
        return
    if not isinstance(shapes, np.ndarray) or shapes.dtype.kind not in "iu" or shapes.shape != (len(images), 2):
        described = f"{getattr(shapes, 'dtype', type(shapes).__name__)} {tuple(getattr(shapes, 'shape', ()))}"
        raise ValueError(f"shapes must be an integer array of the shape ({len(images)}, 2), height and width: got {described}")
    if (shapes < 1).any():
        raise ValueError(f"shapes must be positive heights and widths: got {shapes[(shapes < 1).any(1)][0].tolist()}")
