"""Color operators on a whole batch at once, each sample with parameters of its own.

Legend: N samples. `lines` are float32 (N, h, 3, w) in [0, 1], the channels (red, green, blue) between rows and columns, as the
matrix products of `geometry.py` leave them. Parameters are (N,) on the same device. The definitions are torchvision's and
Pillow's, without the rounding to 8 bits between two operators.

Every sample goes through every operator, with neutral parameters where it has none: what is launched on an accelerator depends
neither on the batch nor on what was drawn, and `torch.compile` makes a few kernels of it.
"""

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
# The random order of the jitter's four operators: one index in [0, 24).
JITTER_ORDERS = tuple(itertools.permutations(range(4)))
JITTER_OPERATORS = ("brightness", "contrast", "saturation", "hue")
NUM_COEFFICIENTS = 4  # of one step: gain, share of the gray image, share of its mean, turn of the hue


def luma(lines: Tensor) -> Tensor:
    """The gray image (N, h, w) of `lines`, as ITU-R 601-2 weighs the channels."""
    red, green, blue = lines.unbind(2)
    return (red * LUMA[0]).add(green, alpha=LUMA[1]).add(blue, alpha=LUMA[2])


def _each(parameters: Tensor) -> Tensor:
    return parameters[:, None, None, None]


def hue(lines: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of the HSV color by `turns` in [-0.5, 0.5] of the full circle; value and saturation stay.

    With m, M the smallest and largest channel and C = M - m, the hue's distance from red in sextants is
    (M - r + g + b - 2m) / C on both halves of the circle, and the sign of g - b tells the half.
    Back again, each channel is m + C * t(hue), with t the trapezoid of that channel.
    """
    red, green, blue = lines.unbind(2)
    smallest, largest = torch.minimum(torch.minimum(red, green), blue), torch.maximum(torch.maximum(red, green), blue)
    chroma = largest - smallest
    distance = (green + blue - red + largest).sub(smallest, alpha=2.0)
    # A gray pixel has no hue: with a chroma of zero it stays as it is, whatever the division gives.
    sextants = torch.copysign(distance / (chroma * 6.0).clamp(min=1e-12), green - blue)
    sextants = torch.frac(sextants + (turns + 1.0)[:, None, None]) * 6.0  # in [0, 6)
    trapezoids = ((sextants - 3.0).abs() - 1.0, 2.0 - (sextants - 2.0).abs(), 2.0 - (sextants - 4.0).abs())
    return torch.stack([torch.addcmul(smallest, chroma, one.clamp(0.0, 1.0)) for one in trapezoids], dim=2)


def jitter_steps(chosen: NDArray[np.bool_], orders: NDArray[np.int64], factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """What `jitter` needs, float64 (4 places of the order, NUM_COEFFICIENTS, N).

    Brightness, contrast and saturation are one formula, gain * x + a * gray + b * mean(gray), clamped to [0, 1]. The place of
    the hue, and all of a sample that is not `chosen`, has the neutral (1, 0, 0); a turn of 0 stands for "not the hue".

    `chosen` (N,) bool; `orders` (N,) index into JITTER_ORDERS; `factors` (N, 4), one for each of JITTER_OPERATORS.
    """
    which = np.array(JITTER_ORDERS)[orders].T  # (4, N)
    factor = np.take_along_axis(factors.T, which, axis=0)
    linear, rest = chosen & (which < 3), np.where(chosen, 1.0 - factor, 0.0)
    steps = [
        np.where(linear, factor, 1.0),
        np.where(which == 2, rest, 0.0),
        np.where(which == 1, rest, 0.0),
        np.where(chosen & (which == 3), factor, 0.0),
    ]
    return np.stack(steps, axis=1)


def jitter(lines: Tensor, steps: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of each sample in the order that `steps` of `jitter_steps` has."""
    for gain, of_gray, of_mean, turn in steps.to(lines.dtype).unbind(0):
        gray = luma(lines)
        offsets = (of_mean * gray.mean(dim=(1, 2)))[:, None, None] + of_gray[:, None, None] * gray
        changed = (lines * _each(gain) + offsets[:, :, None]).clamp(0.0, 1.0)
        lines = torch.where(_each(turn != 0), hue(lines, turn), changed)
    return lines


def grayscale(lines: Tensor, chosen: Tensor) -> Tensor:
    """Replace the `chosen` (N,) samples by their gray image, in all three channels."""
    return torch.where(_each(chosen), luma(lines)[:, :, None], lines)


def solarize(lines: Tensor, chosen: Tensor) -> Tensor:
    """Invert all levels of 128 and above (of 256) in the `chosen` (N,) samples.

    On 8-bit levels that is min(x, 255 - x) exactly, and so it is here, on unrounded ones.
    """
    return torch.where(_each(chosen), torch.minimum(lines, 1.0 - lines), lines)


def gaussian_blur(lines: Tensor, sigmas: Tensor, largest: float) -> Tensor:
    """Blur each sample with its sigma in pixels, 0 for none; the border pixels are repeated outwards.

    The Gaussian is sampled at whole pixels and cut at four sigmas. Pillow's blur, which the released recipe uses, approximates
    the same Gaussian with three box filters.

    `sigmas` float64 (N,), at most `largest`.
    """
    samples, height, channels, width = lines.shape
    rows, columns = (blur_matrices(sigmas, length, largest) for length in (height, width))
    lines = torch.bmm(rows, lines.reshape(samples, height, channels * width))
    lines = torch.bmm(lines.view(samples, height * channels, width), columns.transpose(1, 2))
    return lines.view(samples, height, channels, width)


def blur_matrices(sigmas: Tensor, length: int, largest: float) -> Tensor:
    """Matrices (N, length, length) float32 that blur lines of `length` pixels; `sigmas` float64 (N,) in [0, largest]."""
    reach = max(length, math.ceil(4.0 * largest) + 1)
    distances = torch.arange(reach, dtype=torch.float64, device=sigmas.device)
    widths = sigmas.clamp(min=1e-3)[:, None]  # so narrow a kernel is exactly one pixel wide
    half = torch.exp(-0.5 * (distances / widths).square()) * (distances <= 4.0 * widths)
    # tails[:, k] is the kernel's weight at k pixels and further, to one side.
    tails = half.flip(1).cumsum(1).flip(1)
    totals = 2.0 * tails[:, :1] - 1.0
    half, tails = (half / totals).to(torch.float32), (tails / totals).to(torch.float32)[:, :length]
    if length == 1:
        return torch.ones(len(sigmas), 1, 1, device=sigmas.device)
    place = torch.arange(length, device=sigmas.device)
    inner = half[:, (place[:, None] - place).abs()]  # (N, length, length)
    # What falls outside the line belongs to the repeated border pixels.
    return torch.cat([tails[:, :, None], inner[:, :, 1:-1], tails.flip(1)[:, :, None]], dim=2)
