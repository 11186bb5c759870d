"""What the augmentations ask of their inputs, and the words in which they refuse."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


def check_images(images: "Tensor", seeds: NDArray[np.uint64] | None = None) -> None:
    """Raise ValueError unless `images` is uint8 (B, 3, H, W) and `seeds`, if given, uint64 (B,)."""
    import torch  # not above: settings are checked without it

    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(
            "images must be uint8 RGB of the shape (B, 3, H, W), as decoded, neither scaled nor normalised: "
            f"got {images.dtype} {tuple(images.shape)}"
        )
    if seeds is None:
        return
    if not isinstance(seeds, np.ndarray) or seeds.dtype != np.uint64 or seeds.shape != (len(images),):
        described = f"{getattr(seeds, 'dtype', type(seeds).__name__)} {tuple(getattr(seeds, 'shape', ()))}"
        raise ValueError(
            f"seeds must be a uint64 array of the shape ({len(images)},), one seed for each image, as "
            f"reidssl.seeding.sample_seeds gives: got {described}"
        )


def check_positive_size(name: str, size: tuple[int, int]) -> None:
    """Raise ValueError unless `size` is a (height, width) of positive integers."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{name} must be (height, width), both at least 1: got {tuple(size)}")


def check_probability(name: str, value: float) -> None:
    """Raise ValueError unless `value` is in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be a probability in [0, 1]: got {value}")


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise ValueError unless `mean` and `std` have three values each, those of `std` positive."""
    if len(mean) != 3:
        raise ValueError(f"mean must have one value for each of the 3 channels: got {list(mean)}")
    if len(std) != 3 or min(std) <= 0:
        raise ValueError(f"std must have one positive value for each of the 3 channels: got {list(std)}")
