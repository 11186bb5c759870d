"""Multi-crop on an accelerator: all crops of one size at once, with a fixed sequence of operators for any random parameters.

Cropping, resizing and mirroring are two matrix products, and so is the blur. The color operators come between them. The whole
function is compiled on devices that benefit from it. On others, the operators run one by one.

Legend: B images, V crops of one size for each, H x W source size and h x w crop size. N = B * V, with all crops of an image
together, so that one product processes all crops of an image. `lines` as in `color.py`.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidssl.accelerator import compiled, send
from reidssl.augment import color, geometry
from reidssl.precision import no_autocast

# Rows of the table of parameters: 4 for the box, then flip, gray, sigma, solarize, and 16 for the steps of the jitter.
_BOX, _FLIP, _GRAY, _SIGMA, _SOLARIZE, _STEPS = slice(0, 4), 4, 5, 6, 7, slice(8, 24)


def table_of(draws: Any, num_views: int) -> NDArray[np.float64]:
    """The parameters of V * B crops as one table float64 (24, N). draws: `Draws` of `MultiCrop`, view after view."""
    steps = color.jitter_steps(draws.jittered, draws.orders, draws.factors).reshape(-1, len(draws.orders))
    single = [draws.flipped[None], draws.gray[None], draws.sigmas[None], draws.solarized[None]]
    table = np.concatenate([draws.boxes.T, *single, steps])
    return table.reshape(len(table), num_views, -1).swapaxes(1, 2).reshape(len(table), -1)


def make_crops(
    images: Tensor,
    groups: list[tuple[tuple[int, int], int, Any]],
    largest_sigma: float,
    mean: list[float],
    std: list[float],
    may_compile: bool = True,
) -> list[Tensor]:
    """The normalized crops of `images` uint8 (B, 3, H, W): float32 (V, B, 3, h, w) for each group.

    Args:
        groups: (crop size, V, draws of the V * B crops) for each crop size.
        largest_sigma: largest standard deviation of the blur in the configuration; 0 if no crop is ever blurred.
        mean, std: normalization of the three channels.
        may_compile: False: run the operators without compilation.
    """
    tables = [table_of(draws, num_views) for _, num_views, draws in groups]
    # One copy to the device for all parameters.
    table = send(torch.from_numpy(np.concatenate(tables, axis=1)), images.device)
    work = compiled(_crops_of_one_size, images.device) if may_compile else _crops_of_one_size
    with no_autocast(images):
        source = images.permute(0, 2, 1, 3).to(torch.float32, memory_format=torch.contiguous_format)  # (B, H, 3, W)
        return [
            work(source, part, size, num_views, largest_sigma, tuple(mean), tuple(std))
            for part, (size, num_views, _) in zip(table.split([one.shape[1] for one in tables], dim=1), groups, strict=True)
        ]


def _crops_of_one_size(
    source: Tensor,
    table: Tensor,
    size: tuple[int, int],
    num_views: int,
    largest_sigma: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Tensor:
    """The crops (V, B, 3, h, w) of `source` float32 (B, H, 3, W) in 0..255, with the parameters `table` (24, N)."""
    images, height, channels, width = source.shape
    samples, (rows, columns) = images * num_views, size
    tops, lefts, box_heights, box_widths = table[_BOX].to(torch.int64).unbind(0)
    upright = geometry.resampling_matrices(tops, box_heights, height, rows)  # (N, h, H)
    lying = geometry.resampling_matrices(lefts, box_widths, width, columns, flips=table[_FLIP] > 0, gain=1 / 255)  # (N, w, W)
    lines = torch.bmm(upright.view(images, num_views * rows, height), source.view(images, height, channels * width))
    lines = torch.bmm(lines.view(samples, rows * channels, width), lying.transpose(1, 2))
    lines = lines.view(samples, rows, channels, columns).clamp(0.0, 1.0)
    lines = color.jitter(lines, table[_STEPS].unflatten(0, (-1, color.NUM_COEFFICIENTS)))
    lines = color.grayscale(lines, table[_GRAY] > 0)
    if largest_sigma > 0:
        lines = color.gaussian_blur(lines, table[_SIGMA], largest_sigma)
    lines = color.solarize(lines, table[_SOLARIZE] > 0)
    # (x - mean) / std. This step also moves the channels before the rows, and the views before the images.
    by_channel = lines.view(images, num_views, rows, channels, columns).transpose(0, 1).unbind(3)
    return torch.stack([plane * (1 / s) - m / s for plane, m, s in zip(by_channel, mean, std, strict=True)], dim=2)
