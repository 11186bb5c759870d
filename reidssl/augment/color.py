"""Color operators on a whole batch at once, with separate parameters for each sample.

Legend: N samples. `lines` are float32 (N, h, 3, w) in [0, 1], with the channels (red, green, blue) between rows and columns, as
the matrix products of `batched.py` return them. Parameters are (N,) on the same device. The definitions are those of torchvision
and Pillow, without rounding to 8 bits between operators.

Every sample goes through every operator, with neutral parameters if the operator is not wanted. The kernels launched on an
accelerator therefore do not depend on the random parameters, and `torch.compile` fuses them into a few.
"""

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
# All orders of the four jitter operators; an order is drawn as an index in [0, 24).
JITTER_ORDERS = tuple(itertools.permutations(range(4)))
JITTER_OPERATORS = ("brightness", "contrast", "saturation", "hue")
NUM_COEFFICIENTS = 4  # per step: gain, share of the gray image, share of the mean of the gray image, hue shift


def luma(lines: Tensor) -> Tensor:
    """The gray image (N, h, w) of `lines`, with the channel weights of ITU-R 601-2."""
    red, green, blue = lines.unbind(2)
    return (red * LUMA[0]).add(green, alpha=LUMA[1]).add(blue, alpha=LUMA[2])


def _each(parameters: Tensor) -> Tensor:
    return parameters[:, None, None, None]


def hue(lines: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue of the HSV color by `turns`, in [-0.5, 0.5] of the full circle. Value and saturation do not change.

    With m, M the smallest and largest channel and C = M - m, the distance of the hue from red in sextants is
    (M - r + g + b - 2m) / C on both halves of the circle, and the sign of g - b determines the half. In the inverse direction,
    each channel is m + C * t(hue), where t is the trapezoid function of the channel.
    """
    red, green, blue = lines.unbind(2)
    smallest, largest = torch.minimum(torch.minimum(red, green), blue), torch.maximum(torch.maximum(red, green), blue)
    chroma = largest - smallest
    distance = (green + blue - red + largest).sub(smallest, alpha=2.0)
    # A gray pixel has no hue. Its chroma is zero, so it does not change, whatever the result of the division.
    sextants = torch.copysign(distance / (chroma * 6.0).clamp(min=1e-12), green - blue)
    sextants = torch.frac(sextants + (turns + 1.0)[:, None, None]) * 6.0  # in [0, 6)
    trapezoids = ((sextants - 3.0).abs() - 1.0, 2.0 - (sextants - 2.0).abs(), 2.0 - (sextants - 4.0).abs())
    return torch.stack([torch.addcmul(smallest, chroma, one.clamp(0.0, 1.0)) for one in trapezoids], dim=2)


def jitter_steps(chosen: NDArray[np.bool_], orders: NDArray[np.int64], factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients for `jitter`, float64 (4 steps, NUM_COEFFICIENTS, N).

    Brightness, contrast and saturation have the same formula, gain * x + a * gray + b * mean(gray), clamped to [0, 1]. The step
    of the hue, and all steps of a sample that is not `chosen`, have the neutral coefficients (1, 0, 0). A hue shift of 0 means
    that the step is not the hue.

    Args:
        chosen: bool (N,), samples to which the jitter is applied.
        orders: int64 (N,), index into JITTER_ORDERS.
        factors: float64 (N, 4), one for each of JITTER_OPERATORS.
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
    """Apply brightness, contrast, saturation and hue jitter to each sample in its own order. steps: from `jitter_steps`."""
    for gain, of_gray, of_mean, turn in steps.to(lines.dtype).unbind(0):
        gray = luma(lines)
        offsets = (of_mean * gray.mean(dim=(1, 2)))[:, None, None] + of_gray[:, None, None] * gray
        changed = (lines * _each(gain) + offsets[:, :, None]).clamp(0.0, 1.0)
        lines = torch.where(_each(turn != 0), hue(lines, turn), changed)
    return lines


def grayscale(lines: Tensor, chosen: Tensor) -> Tensor:
    """Replace all three channels of the `chosen` (bool (N,)) samples by the gray image."""
    return torch.where(_each(chosen), luma(lines)[:, :, None], lines)


def solarize(lines: Tensor, chosen: Tensor) -> Tensor:
    """Invert all levels of 128 and above (of 256) in the `chosen` (bool (N,)) samples.

    For 8-bit levels this is exactly min(x, 255 - x). The same formula is used here without rounding.
    """
    return torch.where(_each(chosen), torch.minimum(lines, 1.0 - lines), lines)


def gaussian_blur(lines: Tensor, sigmas: Tensor, largest: float) -> Tensor:
    """Blur each sample with its own Gaussian. Border pixels are repeated outwards.

    The Gaussian is sampled at whole pixels and cut at four standard deviations. Pillow's blur, used by the released recipe,
    approximates the same Gaussian with three box filters.

    sigmas: float64 (N,), standard deviations in pixels in [0, largest]; 0: no blur.
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
    widths = sigmas.clamp(min=1e-3)[:, None]  # a kernel this narrow is exactly one pixel wide
    half = torch.exp(-0.5 * (distances / widths).square()) * (distances <= 4.0 * widths)
    # tails[:, k] is the total weight of the kernel at distances of k pixels and more, on one side.
    tails = half.flip(1).cumsum(1).flip(1)
    totals = 2.0 * tails[:, :1] - 1.0
    half, tails = (half / totals).to(torch.float32), (tails / totals).to(torch.float32)[:, :length]
    if length == 1:
        return torch.ones(len(sigmas), 1, 1, device=sigmas.device)
    place = torch.arange(length, device=sigmas.device)
    inner = half[:, (place[:, None] - place).abs()]  # (N, length, length)
    # Weights outside the line are added to the border pixels, which are repeated there.
    return torch.cat([tails[:, :, None], inner[:, :, 1:-1], tails.flip(1)[:, :, None]], dim=2)
