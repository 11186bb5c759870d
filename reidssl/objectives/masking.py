"""Block masks for masked image modeling (BEiT, arXiv 2106.08254; used as in iBOT, arXiv 2111.07832).

Shapes: V views of B images, N = rows * columns patches, M masked patches in total.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reidssl.accelerator import send

SMALLEST_BLOCK = 4
ATTEMPTS = 10


@dataclass(frozen=True)
class PatchMasks:
    """The masked patches of a batch of images."""

    hidden: Tensor
    """bool (images, N), true for masked patches."""
    places: Tensor
    """int64 (M,), indices of the masked patches in the flattened `hidden`, ascending."""
    weights: Tensor
    """float32 (M,): 1 / (masked patches of the same image) / images, so that all masked images have equal weight."""

    def to(self, device: torch.device) -> "PatchMasks":
        return PatchMasks(send(self.hidden, device), send(self.places, device), send(self.weights, device))


def block_mask(generator: np.random.Generator, grid: tuple[int, int], count: int, aspect: float = 0.3) -> np.ndarray:
    """A mask of exactly `count` patches of a (rows, columns) grid, made of overlapping random rectangles.

    The height / width ratio of a rectangle is drawn log-uniformly from [aspect, 1 / aspect], and its area from 4 patches to the
    number of patches still to be masked. If no further rectangle fits, the remaining patches are masked one by one.

    Args:
        generator: source of random numbers.
        grid: (rows, columns).
        count: number of masked patches, from 0 to rows * columns.
        aspect: smallest height / width ratio, in (0, 1].

    Returns:
        bool (rows, columns).

    Raises ValueError for arguments out of range.
    """
    rows, columns = grid
    if not 0 <= count <= rows * columns:
        raise ValueError(f"count must be in [0, {rows * columns}] on a grid of {rows} x {columns}: got {count}")
    if not 0 < aspect <= 1:
        raise ValueError(f"aspect must be in (0, 1]: got {aspect}")
    mask = np.zeros(grid, bool)
    left, spread = count, abs(math.log(aspect))
    for _ in range(ATTEMPTS * count):
        if left < SMALLEST_BLOCK:
            break
        area = generator.uniform(SMALLEST_BLOCK, left)
        shape = math.exp(generator.uniform(-spread, spread))
        height, width = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if not (0 < height <= rows and 0 < width <= columns):
            continue
        top, start = generator.integers(rows - height + 1), generator.integers(columns - width + 1)
        block = mask[top : top + height, start : start + width]
        fresh = block.size - int(block.sum())
        if 0 < fresh <= left:
            block[:] = True
            left -= fresh
    if left:
        mask.flat[generator.choice(np.flatnonzero(~mask), left, replace=False)] = True
    return mask


def patch_masks(
    seed: int, num_images: int, grid: tuple[int, int], share: float, ratio: tuple[float, float], aspect: float = 0.3
) -> PatchMasks:
    """Masks for a batch of images, on the CPU. The result depends on the arguments alone.

    The masked images are drawn at random, but their number is fixed: round(share * num_images), at least one. Their shares of
    masked patches are spread evenly over `ratio` and assigned at random. M is therefore the same for every seed.

    Args:
        seed: 0 or more; identifies the batch.
        num_images: at least 1.
        grid: (rows, columns) of patches; at least two patches.
        share: share of the images that are masked, in (0, 1].
        ratio: (smallest, largest) share of masked patches of a masked image, in (0, 1).
        aspect: as in `block_mask`.

    Raises ValueError for fewer images or patches.
    """
    patches = grid[0] * grid[1]
    if num_images < 1 or patches < 2:
        raise ValueError(f"masking needs an image of at least 2 patches: got {num_images} images of {patches} patches")
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(num_images)[: max(1, round(share * num_images))]
    hidden = np.zeros((num_images, *grid), bool)
    for number, image in enumerate(chosen):
        wanted = ratio[0] + (ratio[1] - ratio[0]) * (number + 0.5) / len(chosen)
        hidden[image] = block_mask(generator, grid, min(max(1, round(wanted * patches)), patches - 1), aspect)
    flat = torch.from_numpy(hidden.reshape(num_images, patches))
    weights = 1.0 / (flat.sum(dim=1, keepdim=True).clamp(min=1) * num_images)
    return PatchMasks(flat, flat.flatten().nonzero().squeeze(1), weights.expand_as(flat)[flat].float())
