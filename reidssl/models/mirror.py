"""Test-time augmentation with the mirror image."""

from collections.abc import Callable

from torch import Tensor


def mirrored_mean(features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Mean (B, D) of the features of images and of their mirror images, not normalized.

    Usual at test time in person re-identification ("Bag of Tricks", arXiv 1903.07071, and fast-reid, arXiv 2006.02631).

    features: function from images to features (B, D) before normalization; images: (B, 3, H, W).
    """
    return (features(images) + features(images.flip(-1))) / 2
