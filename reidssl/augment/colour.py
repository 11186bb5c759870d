"""Batched colour operators, in place, on planes.

Legend: N samples. `planes` are float32 (3, N, h, w) in [0, 1], channels first (red, green, blue), so that
each channel is one contiguous block and every step below is a plain pass over memory. Per-sample parameters
are float32 (N,) on the same device. The definitions are torchvision's and Pillow's, without the rounding to 8
bits between two operators.

No masks and no `where`: on a CPU these are ten times slower than arithmetic that reaches the same result.
"""

from __future__ import annotations

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
# Working memory of one step of the jitter on a CPU, so that its temporaries stay in the cache.
_CACHE_BYTES = 2**20


def luma(planes: Tensor) -> Tensor:
    """The grey image (N, h, w) of `planes`, as ITU-R 601-2 weighs the channels."""
    grey = torch.mul(planes[0], LUMA[0])
    return grey.add_(planes[1], alpha=LUMA[1]).add_(planes[2], alpha=LUMA[2])


def brightness_(planes: Tensor, factors: Tensor) -> Tensor:
    """Blend with black: multiplies by `factors` >= 0 and clamps."""
    return planes.mul_(factors[:, None, None]).clamp_(max=1.0)


def contrast_(planes: Tensor, factors: Tensor) -> Tensor:
    """Blend with the mean grey level of each image."""
    means = planes.mean(dim=(2, 3))  # (3, N)
    grey = LUMA[0] * means[0] + LUMA[1] * means[1] + LUMA[2] * means[2]
    offsets = (1 - factors) * grey
    return planes.mul_(factors[:, None, None]).add_(offsets[:, None, None]).clamp_(0.0, 1.0)


def saturation_(planes: Tensor, factors: Tensor) -> Tensor:
    """Blend with the grey image."""
    grey = luma(planes).mul_((1 - factors)[:, None, None])
    return planes.mul_(factors[:, None, None]).add_(grey).clamp_(0.0, 1.0)


def hue_(planes: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of the HSV colour by `turns` in [-0.5, 0.5] of the full circle; value and saturation stay.

    With m, M the smallest and largest channel and C = M - m, the hue's distance from red in sextants is
    (M - r + g + b - 2m) / C on both halves of the circle, and the sign of g - b tells the half.
    Back again, each channel is m + C * t(hue), with t the trapezoid of that channel.
    """
    red, green, blue = planes
    smallest, largest = torch.minimum(red, green), torch.maximum(red, green)
    torch.minimum(smallest, blue, out=smallest)
    torch.maximum(largest, blue, out=largest)
    hue = torch.add(green, blue).sub_(red).add_(largest).sub_(smallest, alpha=2.0)
    chroma = largest.sub_(smallest)
    # A grey pixel has no hue: with a chroma of zero it stays as it is, whatever the division gives.
    work = torch.mul(chroma, 6.0).clamp_(min=1e-12)
    hue.div_(work)
    torch.sub(green, blue, out=work)
    torch.copysign(hue, work, out=hue)
    hue.add_((turns + 1.0)[:, None, None]).frac_().mul_(6.0)  # sextants in [0, 6)

    torch.sub(hue, 3.0, out=work).abs_().sub_(1.0).clamp_(0.0, 1.0)
    torch.addcmul(smallest, chroma, work, out=red)
    torch.sub(hue, 2.0, out=work).abs_().neg_().add_(2.0).clamp_(0.0, 1.0)
    torch.addcmul(smallest, chroma, work, out=green)
    hue.sub_(4.0).abs_().neg_().add_(2.0).clamp_(0.0, 1.0)
    torch.addcmul(smallest, chroma, hue, out=blue)
    return planes


_OPERATORS = (brightness_, contrast_, saturation_, hue_)


def jitter_(
    planes: Tensor, chosen: NDArray[np.bool_], orders: NDArray[np.int64], factors: NDArray[np.float64]
) -> Tensor:
    """Brightness, contrast, saturation and hue of the `chosen` samples, each in an order of its own.

    `chosen` (N,) bool; `orders` (N,) index into JITTER_ORDERS; `factors` (N, 4), one for each of
    JITTER_OPERATORS. Samples of one order are gathered, changed in place and put back.
    """
    samples = np.flatnonzero(chosen)
    samples = samples[np.argsort(orders[samples], kind="stable")]
    ends = np.flatnonzero(np.diff(orders[samples], append=-1)) + 1
    sorted_samples = torch.from_numpy(samples).to(planes.device)
    sorted_factors = torch.from_numpy(factors[samples].T.astype(np.float32)).to(planes.device)  # (4, n)
    longest = _group_size(planes, planes.shape[0] * planes.shape[2] * planes.shape[3])
    start = 0
    for end in ends.tolist():
        order = JITTER_ORDERS[orders[samples[start]]]
        for first in range(start, end, longest):
            group = slice(first, min(first + longest, end))
            selected = planes.index_select(1, sorted_samples[group])
            for operator in order:
                _OPERATORS[operator](selected, sorted_factors[operator, group])
            planes[:, sorted_samples[group]] = selected
        start = end
    return planes


def _group_size(planes: Tensor, values_per_sample: int) -> int:
    """How many samples to work on at once: all of them, except on a CPU, whose cache should hold them."""
    if planes.device.type != "cpu":
        return max(1, planes.shape[1])
    return max(1, _CACHE_BYTES // (4 * values_per_sample))


def greyscale_(planes: Tensor, chosen: NDArray[np.bool_]) -> Tensor:
    """Replace the `chosen` (N,) samples by their grey image, in all three channels."""
    samples = torch.from_numpy(np.flatnonzero(chosen)).to(planes.device)
    if len(samples):
        planes[:, samples] = luma(planes.index_select(1, samples))
    return planes


def solarise_(planes: Tensor, chosen: NDArray[np.bool_]) -> Tensor:
    """Invert all levels of 128 and above (of 256) in the `chosen` (N,) samples.

    On 8-bit levels that is min(x, 255 - x) exactly, and so it is here, on unrounded ones.
    """
    samples = torch.from_numpy(np.flatnonzero(chosen)).to(planes.device)
    if len(samples):
        selected = planes.index_select(1, samples)
        planes[:, samples] = torch.minimum(selected, 1.0 - selected)
    return planes


def gaussian_blur_(planes: Tensor, sigmas: NDArray[np.float64]) -> Tensor:
    """Blur the samples whose `sigmas` (N,) are positive, in pixels; the border pixels are repeated outwards.

    The Gaussian is sampled at whole pixels and cut at four sigmas. Pillow's blur, which the released recipe
    uses, approximates the same Gaussian with three box filters.
    """
    blurred = np.flatnonzero(sigmas > 0)
    longest = _group_size(planes, planes.shape[2] ** 2 + planes.shape[3] ** 2)
    for first in range(0, len(blurred), longest):
        group = blurred[first : first + longest]
        samples = torch.from_numpy(group).to(planes.device)
        rows = blur_matrices(sigmas[group], planes.shape[2], planes.device)
        columns = blur_matrices(sigmas[group], planes.shape[3], planes.device).transpose(1, 2)
        for plane in planes:
            plane[samples] = torch.bmm(rows, torch.bmm(plane.index_select(0, samples), columns))
    return planes


def blur_matrices(sigmas: NDArray[np.float64], length: int, device: torch.device) -> Tensor:
    """Matrices (N, length, length) float32 that blur lines of `length` pixels; `sigmas` (N,), all > 0."""
    reach = max(length, math.ceil(4.0 * sigmas.max()) + 1)
    distances = torch.arange(reach, dtype=torch.float64, device=device)
    widths = torch.from_numpy(sigmas).to(device)[:, None]
    half = torch.exp(-0.5 * (distances / widths).square())
    half *= distances <= 4.0 * widths
    # tails[:, k] is the kernel's weight at k pixels and further, to one side.
    tails = half.flip(1).cumsum(1).flip(1)
    totals = 2.0 * tails[:, :1] - 1.0
    half, tails = (half / totals).to(torch.float32), (tails / totals).to(torch.float32)[:, :length]
    # The kernel at -(length - 1) .. length - 1. Row i of the matrix is the kernel shifted by i: the windows
    # of that line, in reverse order.
    kernels = torch.cat([half[:, 1:length].flip(1), half[:, :length]], dim=1)
    matrices = kernels.unfold(1, length, 1).flip(1)
    if length == 1:
        return torch.ones_like(matrices)
    # What falls outside the line belongs to the repeated border pixels.
    matrices[:, :, 0] = tails
    matrices[:, :, -1] = tails.flip(1)
    return matrices
