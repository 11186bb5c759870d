"""Multi-crop on a CPU, with compiled loops: one image after the other, so that each crop is finished while it is in the cache.

The operators are those of `geometry.py` and `color.py`, which define them and are used on accelerators. Results are equal up to
rounding, which tests verify. The loops save memory traffic (no pass over a whole batch) and work (the few taps of the resampling
kernel instead of dense matrices, and only the operators that a crop needs).

Legend: B images, V crops of one size for each, H x W source size and h x w crop size, n = h * w.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reidssl.augment.color import JITTER_ORDERS, LUMA
from reidssl.row_blocks import kernel, over_blocks

_ORDERS = np.array(JITTER_ORDERS, dtype=np.int64)  # (24, 4): which operator comes first, second, ...
_RED, _GREEN, _BLUE = (np.float32(weight) for weight in LUMA)
_ONE, _ZERO = np.float32(1.0), np.float32(0.0)
# Number of images that a thread processes at a time.
_BLOCK = 4


def make_crops(images: torch.Tensor, draws: Any, out: torch.Tensor, mean: list[float], std: list[float]) -> None:
    """Fill `out` float32 (V, B, 3, h, w) with the crops of `images` uint8 (B, 3, H, W), both on the CPU.

    draws: `Draws` of `MultiCrop` for V * B crops, view after view. Images are divided among torch's number of threads; results
    do not depend on it.
    """
    num_views, num_images = out.shape[:2]
    pixels, crops = images.contiguous().numpy(), out.numpy()

    def by_view(values: NDArray[Any], dtype: type) -> NDArray[Any]:
        return np.ascontiguousarray(values, dtype=dtype).reshape(num_views, num_images, *values.shape[1:])

    arguments = (
        by_view(draws.boxes, np.int64),
        by_view(draws.flipped, np.bool_),
        by_view(draws.jittered, np.bool_),
        by_view(draws.orders, np.int64),
        by_view(draws.factors, np.float32),
        by_view(draws.gray, np.bool_),
        by_view(draws.sigmas, np.float64),
        by_view(draws.solarized, np.bool_),
    )
    gains = np.array([1 / one for one in std], dtype=np.float32)
    offsets = np.array([-m / s for m, s in zip(mean, std, strict=True)], dtype=np.float32)

    def work(start: int, stop: int) -> None:
        _crop_images(pixels, *arguments, gains, offsets, _ORDERS, crops, start, stop)

    over_blocks(work, num_images, _BLOCK)


@kernel
def _taps(length, target, flip, firsts, weights):  # type: ignore[no-untyped-def]
    """Positions and weights with which a segment of `length` pixels is resampled to `target` samples.

    The kernel is Keys' cubic (a = -0.5), widened when shrinking and cut at the ends of the segment. Fills `firsts` (target,) and
    `weights` (target, taps), and returns the number of taps.
    """
    scale = length / target
    widening = max(scale, 1.0)
    narrowing = 1.0 / widening
    num_taps = math.ceil(4.0 * widening)
    num_taps = min((num_taps + 3) // 4 * 4, length)  # a multiple of four, for the loops in `_weighted_sum`
    for j in range(target):
        position = target - 1 - j if flip else j
        center = (position + 0.5) * scale
        first = math.floor(center - 2.0 * widening - 0.5) + 1
        first = min(max(first, 0), length - num_taps)
        total = 0.0
        for t in range(num_taps):
            distance = abs(first + t + 0.5 - center) * narrowing
            inner = min(distance, 1.0) - 1.0
            outer = min(distance, 2.0) - 2.0
            weight = inner * inner * (2.0 * inner + 1.0) - 0.5 * (outer + 1.0) * outer * outer
            weights[j, t] = weight
            total += weight
        share = np.float32(1.0 / total)
        for t in range(num_taps):
            weights[j, t] *= share
        firsts[j] = first
    return num_taps


@kernel
def _weighted_sum(lines, first, weights, start, stop, target):  # type: ignore[no-untyped-def]
    """target[...] = sum over t of weights[t] * lines[first + t, start:stop], in contiguous passes over memory."""
    length = stop - start
    t, taps = 0, weights.shape[0]
    if taps < 4:  # a box of fewer pixels than the kernel has taps
        for i in range(length):
            target[i] = _ZERO
    while t + 4 <= taps:
        a, b, c, d = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        line0, line1 = lines[first + t, start:stop], lines[first + t + 1, start:stop]
        line2, line3 = lines[first + t + 2, start:stop], lines[first + t + 3, start:stop]
        if t == 0:
            for i in range(length):
                target[i] = a * line0[i] + b * line1[i] + c * line2[i] + d * line3[i]
        else:
            for i in range(length):
                target[i] += a * line0[i] + b * line1[i] + c * line2[i] + d * line3[i]
        t += 4
    while t < taps:
        a, line0 = weights[t], lines[first + t, start:stop]
        for i in range(length):
            target[i] += a * line0[i]
        t += 1


@kernel
def _transpose(source, target):  # type: ignore[no-untyped-def]
    """target[j, i] = source[i, j], in square blocks that stay in the cache."""
    rows, columns = source.shape
    for i0 in range(0, rows, 16):
        for j0 in range(0, columns, 16):
            for j in range(j0, min(j0 + 16, columns)):
                line = target[j]
                for i in range(i0, min(i0 + 16, rows)):
                    line[i] = source[i, j]


@kernel
def _resize(turned, box, flip, narrow, upright, firsts, weights, crop):  # type: ignore[no-untyped-def]
    """Resample a box of the transposed image `turned`, float32 (3, W, H) in 0..255, into `crop` (3, h, w) in [0, 1].

    Columns are resampled first, on the transposed image, so that memory access is contiguous in both directions. `narrow` (w * H)
    and `upright` (H * w) are buffers for one channel.
    """
    top, left, height, width = box
    rows, columns = crop.shape[1], crop.shape[2]
    of_columns = _taps(width, columns, flip, firsts[0], weights[0])
    of_rows = _taps(height, rows, False, firsts[1], weights[1])
    lying = narrow[: columns * height].reshape(columns, height)
    standing = upright[: height * columns].reshape(height, columns)
    gain = np.float32(1 / 255)
    for channel in range(3):
        for x in range(columns):
            _weighted_sum(turned[channel], left + firsts[0, x], weights[0, x, :of_columns], top, top + height, lying[x])
        _transpose(lying, standing)
        for y in range(rows):
            target = crop[channel, y]
            _weighted_sum(standing, firsts[1, y], weights[1, y, :of_rows], 0, columns, target)
            for x in range(columns):
                value = target[x] * gain
                value = value if value > _ZERO else _ZERO
                target[x] = value if value < _ONE else _ONE


@kernel
def _brightness(planes, factor):  # type: ignore[no-untyped-def]
    """Adjust the brightness of a crop in place. planes: float32 (3, n), as in the following functions."""
    for channel in range(3):
        line = planes[channel]
        for i in range(line.shape[0]):
            value = line[i] * factor
            line[i] = value if value < _ONE else _ONE


@kernel
def _contrast(planes, factor):  # type: ignore[no-untyped-def]
    gray = np.float64(0.0)
    for channel in range(3):
        line, total = planes[channel], _ZERO
        for i in range(line.shape[0]):
            total += line[i]
        gray += (_RED if channel == 0 else (_GREEN if channel == 1 else _BLUE)) * total
    offset = np.float32((_ONE - factor) * (gray / planes.shape[1]))
    for channel in range(3):
        line = planes[channel]
        for i in range(line.shape[0]):
            value = line[i] * factor + offset
            value = value if value > _ZERO else _ZERO
            line[i] = value if value < _ONE else _ONE


@kernel
def _saturation(planes, factor):  # type: ignore[no-untyped-def]
    red, green, blue = planes[0], planes[1], planes[2]
    rest = _ONE - factor
    for i in range(red.shape[0]):
        r, g, b = red[i], green[i], blue[i]
        gray = (_RED * r + _GREEN * g + _BLUE * b) * rest
        r, g, b = r * factor + gray, g * factor + gray, b * factor + gray
        r, g, b = (r if r > _ZERO else _ZERO), (g if g > _ZERO else _ZERO), (b if b > _ZERO else _ZERO)
        red[i] = r if r < _ONE else _ONE
        green[i] = g if g < _ONE else _ONE
        blue[i] = b if b < _ONE else _ONE


@kernel
def _trapezoid(value):  # type: ignore[no-untyped-def]
    value = value if value > _ZERO else _ZERO
    return value if value < _ONE else _ONE


@kernel
def _hue(planes, turns):  # type: ignore[no-untyped-def]
    """As `color.hue`, with the hue in sextants in all steps."""
    red, green, blue = planes[0], planes[1], planes[2]
    one, two, three, four, six = _ONE, np.float32(2.0), np.float32(3.0), np.float32(4.0), np.float32(6.0)
    tiny = np.float32(1e-12)
    turn = six * turns
    for i in range(red.shape[0]):
        r, g, b = red[i], green[i], blue[i]
        low = r if r < g else g
        low = b if b < low else low
        high = r if r > g else g
        high = b if b > high else high
        chroma = high - low
        divisor = chroma if chroma > tiny else tiny
        hue = (g + b - r + high - two * low) / divisor
        hue = (hue if g >= b else -hue) + turn
        hue = hue + six if hue < _ZERO else hue
        red[i] = low + chroma * _trapezoid(abs(hue - three) - one)
        green[i] = low + chroma * _trapezoid(two - abs(hue - two))
        blue[i] = low + chroma * _trapezoid(two - abs(hue - four))


@kernel
def _grayscale(planes):  # type: ignore[no-untyped-def]
    red, green, blue = planes[0], planes[1], planes[2]
    for i in range(red.shape[0]):
        gray = _RED * red[i] + _GREEN * green[i] + _BLUE * blue[i]
        red[i], green[i], blue[i] = gray, gray, gray


@kernel
def _blur(crop, sigma, half, padded, scratch):  # type: ignore[no-untyped-def]
    """As `color.gaussian_blur`, on one crop (3, h, w). `half`, `padded` (one line) and `scratch` (3, h, w) are buffers."""
    rows, columns = crop.shape[1], crop.shape[2]
    reach = math.floor(4.0 * sigma)
    if reach == 0:
        return
    total = 1.0
    for k in range(1, reach + 1):
        half[k] = math.exp(-0.5 * (k / sigma) ** 2)
        total += 2.0 * half[k]
    for k in range(1, reach + 1):
        half[k] /= total
    half[reach + 1] = 0.0  # loops process two distances at a time; with more, the compiler does not vectorize them
    groups = (reach + 1) // 2
    pad = 2 * groups
    middle = np.float32(1.0 / total)
    for channel in range(3):
        for y in range(rows):
            line, target = crop[channel, y], scratch[channel, y]
            for x in range(pad):
                padded[x], padded[pad + columns + x] = line[0], line[columns - 1]
            for x in range(columns):
                padded[pad + x] = line[x]
                target[x] = middle * line[x]
            for group in range(groups):
                k = 2 * group + 1
                a, b = half[k], half[k + 1]
                left0, right0 = padded[pad - k :], padded[pad + k :]
                left1, right1 = padded[pad - k - 1 :], padded[pad + k + 1 :]
                for x in range(columns):
                    target[x] += a * (left0[x] + right0[x]) + b * (left1[x] + right1[x])
        lines = scratch[channel]
        for y in range(rows):
            line, target = lines[y], crop[channel, y]
            for x in range(columns):
                target[x] = middle * line[x]
            for group in range(groups):
                k = 2 * group + 1
                a, b = half[k], half[k + 1]
                up0, down0 = lines[max(y - k, 0)], lines[min(y + k, rows - 1)]
                up1, down1 = lines[max(y - k - 1, 0)], lines[min(y + k + 1, rows - 1)]
                for x in range(columns):
                    target[x] += a * (up0[x] + down0[x]) + b * (up1[x] + down1[x])


@kernel
def _finish(planes, solarized, gains, offsets):  # type: ignore[no-untyped-def]
    """Solarize the crop if `solarized`, then compute (x - mean) / std as x * gain + offset, in place."""
    for channel in range(3):
        line, gain, offset = planes[channel], gains[channel], offsets[channel]
        if solarized:
            for i in range(line.shape[0]):
                value = line[i]
                other = _ONE - value
                line[i] = (value if value < other else other) * gain + offset
        else:
            for i in range(line.shape[0]):
                line[i] = line[i] * gain + offset


@kernel
def _crop_images(  # type: ignore[no-untyped-def]
    images, boxes, flipped, jittered, orders, factors, gray, sigmas, solarized, gains, offsets, order_of, crops, start, stop
):
    """Make all crops of the images start..stop. Arguments are arrays indexed by view and image, from `make_crops`."""
    num_views, rows, columns = crops.shape[0], crops.shape[3], crops.shape[4]
    height, width = images.shape[2], images.shape[3]
    turned = np.empty((3, width, height), dtype=np.float32)
    narrow, upright = np.empty(columns * height, dtype=np.float32), np.empty(columns * height, dtype=np.float32)
    scratch = np.empty((3, rows, columns), dtype=np.float32)
    longest = max(rows, columns)
    firsts = np.empty((2, longest), dtype=np.int64)
    most_taps = 4 * math.ceil(max(1.0, height / rows, width / columns)) + 4
    weights = np.empty((2, longest, most_taps), dtype=np.float32)
    reach = math.floor(4.0 * sigmas.max()) + 1
    half, padded = np.empty(reach + 1, dtype=np.float32), np.empty(columns + 2 * reach, dtype=np.float32)
    for image in range(start, stop):
        for channel in range(3):
            _transpose(images[image, channel], turned[channel])
        for view in range(num_views):
            crop = crops[view, image]
            planes = crop.reshape(3, rows * columns)
            _resize(turned, boxes[view, image], flipped[view, image], narrow, upright, firsts, weights, crop)
            if jittered[view, image]:
                for step in range(4):
                    operator = order_of[orders[view, image], step]
                    factor = factors[view, image, operator]
                    if operator == 0:
                        _brightness(planes, factor)
                    elif operator == 1:
                        _contrast(planes, factor)
                    elif operator == 2:
                        _saturation(planes, factor)
                    else:
                        _hue(planes, factor)
            if gray[view, image]:
                _grayscale(planes)
            if sigmas[view, image] > 0:
                _blur(crop, sigmas[view, image], half, padded, scratch)
            _finish(planes, solarized[view, image], gains, offsets)
