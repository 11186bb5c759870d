"""The compiled crops against the batched crops, which define them."""

import numpy as np
import pytest
import torch

from reidssl.augment import kernels as compiled
from reidssl.augment.geometry import resampling_matrices
from reidssl.augment.multicrop import MultiCrop, MultiCropConfig
from reidssl.seeding import sample_seeds

# Rounding differs, and hue enlarges the difference where a pixel is nearly gray.
TOLERANCE = {"rtol": 0, "atol": 3e-5}


def smooth_images(count: int, height: int, width: int) -> torch.Tensor:
    """Images with colors at every scale and with flat, gray, black and white parts."""
    generator = torch.Generator().manual_seed(count + height)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    images[:, :, : height // 4] = 255
    images[:, :, : height // 8] = 0
    images[:, :, height // 2 : 3 * height // 4] = images[:, :1, height // 2 : 3 * height // 4]
    return images


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ((64, 32), {}),
        ((150, 61), {"local_scale": (0.3, 1.0), "aspect": (0.2, 3.0)}),  # shrinking by many taps
        ((9, 5), {"global_scale": (0.02, 0.1), "local_scale": (0.02, 0.05)}),  # boxes of a pixel or two
        ((33, 64), {"blur_sigma": (2.0, 9.0), "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}),
        ((1, 1), {}),
    ],
)
def test_same_crops_as_the_batched_operators(source, fields):
    settings = {"global_size": (48, 20), "local_size": (17, 16), "num_local": 3, "blur_global2": 0.5, "solarize": 0.5, **fields}
    config = MultiCropConfig(**settings)
    images, seeds = smooth_images(24, *source), sample_seeds(1, 2, [str(i) for i in range(24)])
    expected = MultiCrop(config, use_compiled=False)(images, seeds)
    found = MultiCrop(config)(images, seeds)
    assert [crop.shape for crop in found] == [crop.shape for crop in expected]
    for crop, other in zip(found, expected, strict=True):
        torch.testing.assert_close(crop, other, **TOLERANCE)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("length", "target"), [(1, 5), (2, 5), (3, 8), (40, 40), (40, 64), (64, 40), (97, 16), (5, 1)])
def test_taps_are_the_matrices_rows(length, target, flip):
    firsts, weights = np.empty(target, np.int64), np.empty((target, 400), np.float32)
    num_taps = compiled._taps(length, target, flip, firsts, weights)
    dense = np.zeros((target, length), np.float32)
    for row in range(target):
        assert 0 <= firsts[row] <= length - num_taps
        dense[row, firsts[row] : firsts[row] + num_taps] = weights[row, :num_taps]
    flips = torch.tensor([flip])
    expected = resampling_matrices(torch.tensor([0]), torch.tensor([length]), length, target, flips=flips)[0]
    torch.testing.assert_close(torch.from_numpy(dense), expected, rtol=0, atol=1e-6)


def test_any_number_of_threads_gives_the_same_bits():
    config = MultiCropConfig(global_size=(32, 16), local_size=(16, 8), num_local=2)
    images, seeds = smooth_images(11, 40, 20), sample_seeds(0, 0, [str(i) for i in range(11)])
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(MultiCrop(config)(images, seeds))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_images_of_any_layout_in_memory():
    """Channels-last images and slices of larger tensors are read correctly."""
    config = MultiCropConfig(global_size=(32, 16), local_size=(16, 8), num_local=1)
    images, seeds = smooth_images(4, 40, 20), sample_seeds(0, 0, list("abcd"))
    expected = MultiCrop(config)(images, seeds)
    for other in (images.contiguous(memory_format=torch.channels_last), torch.cat([images, images], dim=3)[..., :20]):
        assert all(torch.equal(one, two) for one, two in zip(MultiCrop(config)(other, seeds), expected, strict=True))
