"""Batched geometry: random crop boxes, and cropping + resizing + flipping as two matrix products.

Legend: B samples, C channels, H x W source size, h x w target size, K taps of the resampling kernel. `planes` are images with
the channels first, (C, B, H, W), so that each channel of a batch is one contiguous block for the matrix products of
`crop_and_resize`.

Cropping a box and resampling it with a separable kernel is linear in the rows and in the columns of an image. The whole operation
is therefore `out = rows @ image @ columns^T` with one pair of banded matrices for each sample. Dense products also multiply the
zeros, but run at the full speed of the matrix units.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CROP_TRIES = 10
CROP_UNIFORMS = 2 * CROP_TRIES + 2


def random_crop_boxes(
    draws: NDArray[np.float64],
    height: int,
    width: int,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    stretches: NDArray[np.float64] | float = 1.0,
) -> NDArray[np.int64]:
    """Boxes of random resized crops, int64 (B, 4) as (top, left, height, width), with the distribution of torchvision.

    An area (uniform share of the image's area within `scale`) and an aspect ratio (width / height, log-uniform within `aspect`)
    are drawn ten times. The first pair that fits is placed uniformly. If none fits, the box is the largest central one with an
    aspect ratio within `aspect`. On a tall person image, the usual 3/4..4/3 gives this central box for most large crops.

    draws: uniform random numbers (B, CROP_UNIFORMS) in [0, 1). Raises ValueError for another shape.
    stretches: (B,), for images that were scaled to height x width: by how much wider they became, relative to their height.
    `aspect` then refers to the images as they were, as if they had been scaled after cropping.
    """
    if draws.ndim != 2 or draws.shape[1] != CROP_UNIFORMS:
        raise ValueError(f"draws must have the shape (B, {CROP_UNIFORMS}): got {draws.shape}")
    area_draws, aspect_draws = draws[:, :CROP_TRIES], draws[:, CROP_TRIES : 2 * CROP_TRIES]
    areas = height * width * (scale[0] + (scale[1] - scale[0]) * area_draws)
    stretches = np.broadcast_to(np.asarray(stretches, np.float64), len(draws))
    log_aspect = (math.log(aspect[0]), math.log(aspect[1]))
    aspects = stretches[:, None] * np.exp(log_aspect[0] + (log_aspect[1] - log_aspect[0]) * aspect_draws)
    widths = np.rint(np.sqrt(areas * aspects)).astype(np.int64)
    heights = np.rint(np.sqrt(areas / aspects)).astype(np.int64)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    rows, first = np.arange(len(draws)), fits.argmax(axis=1)
    found = fits.any(axis=1)

    # The largest central box whose aspect ratio is the image's, clamped to `aspect`.
    tallest, flattest = np.rint(width / (aspect[0] * stretches)), np.rint(height * aspect[1] * stretches)
    box_heights = np.where(found, heights[rows, first], np.clip(tallest, 1, height)).astype(np.int64)
    box_widths = np.where(found, widths[rows, first], np.clip(flattest, 1, width)).astype(np.int64)
    room_y, room_x = height - box_heights, width - box_widths
    tops = np.where(found, np.floor(draws[:, -2] * (room_y + 1)).astype(np.int64), room_y // 2)
    lefts = np.where(found, np.floor(draws[:, -1] * (room_x + 1)).astype(np.int64), room_x // 2)
    return np.stack([tops, lefts, box_heights, box_widths], axis=1)


def resampling_matrices(
    starts: Tensor,
    lengths: Tensor,
    source: int,
    target: int,
    *,
    flips: Tensor | None = None,
    gain: float = 1.0,
) -> Tensor:
    """Matrices float32 (B, target, source) that resample segments [start, start + length) to `target` samples.

    The kernel is the antialiased bicubic kernel of Pillow and of torchvision with antialias=True: Keys' cubic with a = -0.5,
    widened when shrinking, cut at the ends of the segment and renormalized there.

    Args:
        starts, lengths: int64 (B,).
        source, target: numbers of samples before and after.
        flips: bool (B,), reverses the output.
        gain: factor of every weight.
    """
    scales = lengths.to(torch.float64)[:, None] / target
    widening = scales.clamp(min=1.0)
    positions = torch.arange(target, dtype=torch.float64, device=starts.device).expand(len(starts), target)
    if flips is not None:
        positions = torch.where(flips[:, None], target - 1 - positions, positions)
    centers = (positions + 0.5) * scales
    firsts = torch.floor(centers - 2.0 * widening + 0.5)
    # The number of taps must not depend on the batch, since another order of summation rounds differently.
    num_taps = math.ceil(4.0 * max(1.0, source / target)) + 1
    taps = torch.arange(num_taps, device=starts.device)
    offsets = (firsts - centers + 0.5).to(torch.float32)[:, :, None] + taps
    weights = _keys_cubic(offsets.div_(widening.to(torch.float32)[:, :, None]))
    columns = firsts.to(torch.int64)[:, :, None] + taps
    inside = (columns >= 0) & (columns < lengths[:, None, None])
    weights *= inside
    weights *= gain / weights.sum(dim=2, keepdim=True)
    columns += starts[:, None, None]
    matrices = torch.zeros(len(starts), target, source, device=starts.device)
    # Clamped columns have weight zero, so the order of additions on an accelerator does not matter.
    return matrices.scatter_add_(2, columns.clamp_(0, source - 1), weights)


def _keys_cubic(offsets: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5, with its two pieces combined without branches."""
    distances = offsets.abs()
    inner, outer = distances.clamp(max=1.0), distances.clamp(max=2.0)
    return (inner - 1).square_() * (2 * inner - 1) - 0.5 * (outer - 1) * (outer - 2).square_()


def crop_and_resize(
    planes: Tensor,
    boxes: NDArray[np.int64],
    size: tuple[int, int],
    *,
    flips: NDArray[np.bool_] | None = None,
    gain: float = 1.0,
) -> Tensor:
    """Crop `boxes` (B, 4) from `planes` float32 (C, B, H, W) and resize them to `size` (bicubic): float32 (C, B, h, w).

    The caller must clamp the result, since bicubic weights overshoot.

    Args:
        flips: bool (B,), mirrors samples left to right.
        gain: factor of the result.

    Raises ValueError if there is not one box for each sample.
    """
    channels, samples, height, width = planes.shape
    if boxes.shape != (samples, 4):
        raise ValueError(f"boxes must have the shape ({samples}, 4), one for each sample: got {boxes.shape}")
    tops, lefts, box_heights, box_widths = torch.from_numpy(boxes).to(planes.device).unbind(1)
    mirrored = None if flips is None else torch.from_numpy(flips).to(planes.device)
    rows = resampling_matrices(tops, box_heights, height, size[0])  # (B, h, H)
    columns = resampling_matrices(lefts, box_widths, width, size[1], flips=mirrored, gain=gain)  # (B, w, W)
    columns = columns.transpose(1, 2)
    out = planes.new_empty(channels, samples, *size)
    for plane, target in zip(planes, out, strict=True):
        torch.bmm(rows, torch.bmm(plane, columns), out=target)
    return out


@torch.no_grad()
def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `images` uint8 (B, C, H, W) to `size` (height, width): uint8 (B, C, h, w), antialiased bicubic, rounded."""
    boxes = np.tile(np.array([0, 0, *images.shape[2:]], dtype=np.int64), (len(images), 1))
    planes = images.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    resized = crop_and_resize(planes, boxes, size)
    return resized.round_().clamp_(0, 255).to(torch.uint8).transpose(0, 1).contiguous()
