"""Color operators against torchvision and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms.v2 import functional as reference

from reidssl.augment import color


def make_images(count: int = 5, height: int = 40, width: int = 24) -> torch.Tensor:
    """Noise with a gray, a black, a white and a saturated patch, where hues are undefined or channels are equal."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, height, width, generator=generator)
    images[:, :, :4] = images[:, :1, :4]
    images[:, :, 4:6] = 0.0
    images[:, :, 6:8] = 1.0
    images[:, 0, 8:10] = 1.0
    images[:, 1:, 8:10] = 0.0
    images[:, :2, 10:12] = 0.7
    return images


def as_lines(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, h, w) -> (N, h, 3, w), and back."""
    return images.transpose(1, 2).contiguous()


def jittered(images: torch.Tensor, chosen: np.ndarray, orders: np.ndarray, factors: np.ndarray) -> torch.Tensor:
    steps = torch.from_numpy(color.jitter_steps(chosen, orders, factors))
    return as_lines(color.jitter(as_lines(images), steps))


@pytest.mark.parametrize(
    ("operator", "expected", "values", "tolerance"),
    [
        ("brightness", reference.adjust_brightness, [0.0, 0.6, 1.0, 1.4, 2.0], 1e-6),
        # torchvision's gray weights 0.2989, 0.587, 0.114 do not add up to 1; those of Pillow and of this library do.
        ("contrast", reference.adjust_contrast, [0.0, 0.6, 1.0, 1.4, 2.0], 2e-4),
        ("saturation", reference.adjust_saturation, [0.0, 0.6, 1.0, 1.4, 2.0], 2e-4),
        ("hue", reference.adjust_hue, [-0.5, -0.1, 0.0, 0.1, 0.5], 5e-6),
        ("hue", reference.adjust_hue, [-0.33, 0.27, -0.02, 0.4, -0.41], 5e-6),
    ],
)
def test_operators_are_torchvisions(operator, expected, values, tolerance):
    images = make_images()
    factors = np.tile([1.0, 1.0, 1.0, 0.0], (5, 1))  # neutral for the other three
    factors[:, color.JITTER_OPERATORS.index(operator)] = values
    made = jittered(images, np.ones(5, bool), np.array([0, 7, 13, 18, 23]), factors)
    for image, value, result in zip(images, values, made, strict=True):
        torch.testing.assert_close(result, expected(image, value), rtol=0, atol=tolerance)


def test_jitter_applies_each_samples_own_order():
    count = 60
    images = make_images(count, 12, 8)
    rng = np.random.default_rng(0)
    chosen = rng.random(count) < 0.8
    orders = rng.permutation(np.arange(count) % 24)
    factors = np.column_stack([rng.uniform(0.6, 1.4, (count, 3)), rng.uniform(-0.1, 0.1, count)])
    operators = {
        "brightness": reference.adjust_brightness,
        "contrast": reference.adjust_contrast,
        "saturation": reference.adjust_saturation,
        "hue": reference.adjust_hue,
    }
    made = jittered(images, chosen, orders, factors)
    for sample in range(count):
        expected = images[sample]
        if chosen[sample]:
            for position in color.JITTER_ORDERS[orders[sample]]:
                expected = operators[color.JITTER_OPERATORS[position]](expected, float(factors[sample, position]))
        torch.testing.assert_close(made[sample], expected, rtol=0, atol=1e-3)
        # The tolerance distinguishes orders: another order of the same operators differs by more.
    assert len({tuple(order) for order in color.JITTER_ORDERS}) == 24
    other = jittered(images, chosen, (orders + 9) % 24, factors)
    differences = (other - made).abs().amax(dim=(1, 2, 3))[torch.from_numpy(chosen)]
    assert (differences > 5e-3).float().mean() > 0.9


def test_jitter_leaves_unchosen_samples_and_empty_batches_alone():
    images = make_images(3)
    assert torch.equal(jittered(images, np.zeros(3, bool), np.zeros(3, np.int64), np.full((3, 4), 0.3)), images)
    assert jittered(images[:0], np.zeros(0, bool), np.zeros(0, np.int64), np.ones((0, 4))).shape == (0, 3, 40, 24)


def test_grayscale_and_solarize_are_pillows_on_8_bit_levels():
    levels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    levels[0, 0, :, 0] = np.arange(120, 136)  # around the threshold
    images = torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 255
    chosen = torch.tensor([True, False, True, True])
    solarized = as_lines(color.solarize(as_lines(images), chosen))
    gray = as_lines(color.grayscale(as_lines(images), chosen))
    for sample in range(4):
        picture = Image.fromarray(levels[sample])
        if not chosen[sample]:
            assert torch.equal(solarized[sample], images[sample]) and torch.equal(gray[sample], images[sample])
            continue
        expected = torch.from_numpy(np.array(ImageOps.solarize(picture, 128))).permute(2, 0, 1)
        torch.testing.assert_close(solarized[sample] * 255, expected.float(), rtol=0, atol=1e-4)
        expected = torch.from_numpy(np.array(picture.convert("L"))).float().expand(3, 16, 16)
        torch.testing.assert_close(gray[sample] * 255, expected, rtol=0, atol=0.51)


def test_blur_is_the_gaussian_with_repeated_borders():
    images = make_images(5, 20, 33)
    sigmas = torch.tensor([0.1, 0.0, 0.5, 1.1, 2.0], dtype=torch.float64)
    made = as_lines(color.gaussian_blur(as_lines(images), sigmas, 2.0))
    larger = as_lines(color.gaussian_blur(as_lines(images), sigmas, 9.0))  # room for wider kernels than are used
    torch.testing.assert_close(larger, made, rtol=0, atol=1e-6)
    assert torch.equal(made[1], images[1])
    for sample in (0, 2, 3, 4):
        padded = torch.nn.functional.pad(images[sample : sample + 1], (12, 12, 12, 12), mode="replicate")
        sigma = float(sigmas[sample])
        radius = int(4 * sigma)
        expected = reference.gaussian_blur(padded, [2 * radius + 1] * 2, [sigma] * 2)[0, :, 12:-12, 12:-12]
        torch.testing.assert_close(made[sample], expected, rtol=0, atol=1e-5)


def test_blur_is_close_to_pillows():
    """Pillow approximates the Gaussian by boxes and rounds, so the mean difference is about one level."""
    smooth = torch.nn.functional.interpolate(make_images(1, 12, 8), (48, 32), mode="bicubic").clamp(0, 1)
    levels = (smooth[0] * 255).round().byte()
    picture = Image.fromarray(levels.permute(1, 2, 0).numpy())
    for sigma in (0.3, 1.0, 2.0):
        sigmas = torch.tensor([sigma], dtype=torch.float64)
        made = as_lines(color.gaussian_blur(as_lines(levels.float()[None] / 255), sigmas, sigma))[0] * 255
        blurred = np.array(picture.filter(ImageFilter.GaussianBlur(sigma))).transpose(2, 0, 1).astype(np.float32)
        difference = (made - torch.from_numpy(blurred)).abs()
        assert difference.mean() < 1.2 and difference.max() < 8
        assert (made - levels).abs().mean() > 1.5 * difference.mean() or sigma == 0.3


@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_blur_matrices_keep_the_level_and_are_symmetric(length):
    """Rows add up to 1 for any length of the line; reversing the line reverses the result."""
    sigmas = torch.tensor([0.1, 0.7, 2.0], dtype=torch.float64)
    matrices = color.blur_matrices(sigmas, length, 2.0)
    torch.testing.assert_close(matrices.sum(2), torch.ones(3, length), rtol=0, atol=1e-6)
    torch.testing.assert_close(matrices.flip(1, 2), matrices, rtol=0, atol=0)
    assert (matrices >= 0).all()
    alone = color.blur_matrices(sigmas[1:2], length, 2.0)
    assert torch.equal(alone[0], matrices[1])
