"""Augmentation of re-ID fine-tuning (TransReID-SSL, arXiv 2111.12084): flip, pad and crop, random erasing.

    images = ReidAugment(ReidAugmentConfig())(images, sample_seeds(seed, epoch, keys))   # for training
    images = normalize(images, mean, std)                                                # for evaluation

Legend: B images, H x W source size, h x w = `image_size`. The result for an image depends on its seed alone.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidssl.augment.augment_config import ReidAugmentConfig
from reidssl.augment.geometry import resize_images
from reidssl.augment.image_checks import check_images
from reidssl.checks import channel_statistics
from reidssl.seeding import uniforms

ERASING_TRIES = 10


class ReidAugment:
    """Augmentation of batches. It holds the configuration and a fixed table of noise, and no other state."""

    def __init__(self, config: ReidAugmentConfig) -> None:
        self.config = config
        # The noise of a sample is a random window of one fixed table. For the model this is as good as new noise, it is the
        # same on every device, and no generator has to run for single samples.
        height, width = config.image_size
        generator = torch.Generator().manual_seed(0)
        self._noise = torch.randn(3, 2 * height, 2 * width, generator=generator)

    @torch.no_grad()
    def __call__(self, images: Tensor, seeds: NDArray[np.uint64]) -> Tensor:
        """Augmented and normalized `images`: float32 (B, 3, h, w).

        `images`: uint8 (B, 3, H, W), RGB, on any device. `seeds`: uint64 (B,) from `sample_seeds`.
        Raises ValueError for other types or shapes.
        """
        check_images(images, seeds)
        config = self.config
        draws = uniforms(seeds, 6 + 2 * ERASING_TRIES + 2)
        if tuple(images.shape[2:]) != tuple(config.image_size):
            images = resize_images(images, config.image_size)
        images = shift(images, config.pad, draws[:, 0], draws[:, 1])
        flipped = torch.from_numpy(np.flatnonzero(draws[:, 2] < config.flip)).to(images.device)
        images[flipped] = images[flipped].flip(3)
        result = normalize(images, config.mean, config.std)
        self._erase_(result, draws[:, 3] < config.erasing, draws[:, 4:6], draws[:, 6:])
        return result

    def _erase_(
        self,
        images: Tensor,
        chosen: NDArray[np.bool_],
        noise_draws: NDArray[np.float64],
        draws: NDArray[np.float64],
    ) -> None:
        config = self.config
        height, width = config.image_size
        boxes = erasing_boxes(draws, height, width, config.erasing_area, config.erasing_aspect, config.erasing_log_aspect)
        corners = np.floor(noise_draws * (height, width)).astype(np.int64)
        if config.erasing_noise:
            self._noise = self._noise.to(images.device)
        value = torch.tensor(config.erasing_value, device=images.device)[:, None, None]
        # Slices are views, so each rectangle is one copy. Indexing the pixels of all rectangles at once is ten times slower.
        for sample in np.flatnonzero(chosen):  # an empty box erases nothing
            top, left, box_height, box_width = boxes[sample]
            target = images[sample, :, top : top + box_height, left : left + box_width]
            if config.erasing_noise:
                y, x = corners[sample]
                target.copy_(self._noise[:, y : y + box_height, x : x + box_width])
            else:
                target.copy_(value)


def erasing_boxes(
    draws: NDArray[np.float64],
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    log_aspect: bool = True,
) -> NDArray[np.int64]:
    """Boxes of random erasing, int64 (B, 4) as (top, left, height, width); height 0 if none of ten tries fits.

    Each try draws an area (uniform share of the image within `area`) and a ratio height / width within `aspect` (log-uniform, or
    uniform without `log_aspect`). The first box that is smaller than the image in both directions is placed uniformly.

    draws: uniform random numbers (B, 2 * ERASING_TRIES + 2) in [0, 1).
    """
    areas = height * width * (area[0] + (area[1] - area[0]) * draws[:, :ERASING_TRIES])
    low, high = (math.log(aspect[0]), math.log(aspect[1])) if log_aspect else aspect
    drawn = low + (high - low) * draws[:, ERASING_TRIES : 2 * ERASING_TRIES]
    aspects = np.exp(drawn) if log_aspect else drawn
    heights = np.rint(np.sqrt(areas * aspects)).astype(np.int64)
    widths = np.rint(np.sqrt(areas / aspects)).astype(np.int64)
    fits = (heights < height) & (widths < width) & (heights > 0) & (widths > 0)
    rows, first = np.arange(len(draws)), fits.argmax(axis=1)
    box_heights = np.where(fits.any(axis=1), heights[rows, first], 0)
    box_widths = np.where(fits.any(axis=1), widths[rows, first], 0)
    tops = np.floor(draws[:, -2] * (height - box_heights + 1)).astype(np.int64)
    lefts = np.floor(draws[:, -1] * (width - box_widths + 1)).astype(np.int64)
    return np.stack([tops, lefts, box_heights, box_widths], axis=1)


def shift(images: Tensor, pad: int, draws_y: NDArray[np.float64], draws_x: NDArray[np.float64]) -> Tensor:
    """Pad images (B, 3, H, W) with `pad` zeros on every side, and crop each image to H x W at its own position.

    draws_y, draws_x: uniform random numbers (B,) in [0, 1) that determine the positions.
    """
    if pad == 0:
        return images.clone()
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    height, width = images.shape[2:]
    tops = torch.from_numpy(np.floor(draws_y * (2 * pad + 1)).astype(np.int64)).to(images.device)
    lefts = torch.from_numpy(np.floor(draws_x * (2 * pad + 1)).astype(np.int64)).to(images.device)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, 3, 2 pad + 1, 2 pad + 1, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, tops, lefts]


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(image / 255 - mean) / std of images uint8 (B, 3, H, W), as contiguous float32 on the same device."""
    check_images(images)
    channel_statistics(mean, std)
    result = images.to(torch.float32, memory_format=torch.contiguous_format)
    for channel in range(3):
        plane = result[:, channel]
        offset = torch.tensor(-mean[channel] / std[channel])
        torch.add(offset, plane, alpha=1 / (255 * std[channel]), out=plane)
    return result
