"""Crop boxes and resampling against torchvision's own."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from reidssl.augment.geometry import CROP_UNIFORMS, crop_and_resize, random_crop_boxes, resize_images
from reidssl.seeding import sample_seeds, uniforms

SETTINGS = [
    # height, width, scale, aspect
    (256, 128, (0.4, 1.0), (3 / 4, 4 / 3)),  # mostly the central fallback
    (256, 128, (0.05, 0.4), (3 / 4, 4 / 3)),
    (64, 32, (0.4, 1.0), (1 / 3, 1 / 2)),
    (30, 90, (0.5, 1.0), (3 / 4, 4 / 3)),  # the fallback of a wide image
    (64, 32, (1.0, 1.0), (0.4, 0.6)),
]


def draws_for(count: int) -> np.ndarray:
    return uniforms(sample_seeds(0, 0, [str(i) for i in range(count)]), CROP_UNIFORMS)


@pytest.mark.parametrize(("height", "width", "scale", "aspect"), SETTINGS)
def test_boxes_are_distributed_as_torchvisions(height, width, scale, aspect):
    count = 4000
    boxes = random_crop_boxes(draws_for(count), height, width, scale, aspect)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    expected = np.array([RandomResizedCrop.get_params(image, scale, aspect) for _ in range(count)])

    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all() and (boxes[:, 1] + boxes[:, 3] <= width).all()
    for power in (1, 2):  # means and variances, each within 4.5 standard errors
        ours, theirs = (boxes - expected.mean(0)) ** power, (expected - expected.mean(0)) ** power
        standard_error = np.sqrt((ours.var(0) + theirs.var(0)) / count)
        assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4.5 * standard_error + 1e-9).all()
    # The share of the most frequent box, which is the central fallback where there is one.
    share = np.unique(boxes, axis=0, return_counts=True)[1].max() / count
    expected_share = np.unique(expected, axis=0, return_counts=True)[1].max() / count
    assert abs(share - expected_share) < 0.04


def test_the_fallback_is_torchvisions():
    """If the area never fits, the central box is returned."""
    for height, width, aspect in [(256, 128, (3 / 4, 4 / 3)), (30, 90, (3 / 4, 4 / 3)), (50, 40, (0.7, 0.9))]:
        boxes = random_crop_boxes(draws_for(3), height, width, (40.0, 50.0), aspect)
        expected = RandomResizedCrop.get_params(torch.empty(3, height, width), (40.0, 50.0), aspect)
        assert boxes.tolist() == [list(expected)] * 3


@pytest.mark.parametrize(("height", "width"), [(4096, 1024), (800, 1600), (3000, 1500)])
@pytest.mark.parametrize(("scale", "aspect"), [setting[2:] for setting in SETTINGS[:3]])
def test_boxes_of_a_scaled_image_show_what_boxes_of_the_image_itself_show(height, width, scale, aspect):
    """The same draws give the same parts of an image, whether the boxes are drawn before it is scaled or after."""
    draws, scaled = draws_for(500), (1024, 512)
    expected = random_crop_boxes(draws, height, width, scale, aspect) / np.tile((height, width), 2)
    stretch = np.full(500, (scaled[1] / width) / (scaled[0] / height))
    found = random_crop_boxes(draws, *scaled, scale, aspect, stretch) / np.tile(scaled, 2)
    differs = np.abs(found - expected).max(1) > 2 / min(scaled)
    assert differs.mean() < 0.01  # boxes that just fit, or just do not fit, after rounding to pixels


def test_every_place_of_a_crop_is_as_likely():
    draws = draws_for(6000)
    boxes = random_crop_boxes(draws, 10, 10, (0.49, 0.49), (1.0, 1.0))  # 7 x 7: four places in each direction
    assert set(boxes[:, 2]) == set(boxes[:, 3]) == {7}
    places = np.bincount(boxes[:, 0] * 4 + boxes[:, 1], minlength=16)
    assert len(places) == 16
    np.testing.assert_allclose(places, 6000 / 16, atol=100)


def test_boxes_ask_for_the_right_number_of_draws():
    with pytest.raises(ValueError, match=rf"\(B, {CROP_UNIFORMS}\): got \(4, 3\)"):
        random_crop_boxes(np.zeros((4, 3)), 10, 10, (0.5, 1.0), (1.0, 1.0))


@pytest.mark.parametrize("size", [(40, 24), (64, 32), (9, 7), (1, 1), (3, 50)])
def test_crop_and_resize_is_torchvisions_antialiased_bicubic(size):
    torch.manual_seed(1)
    images = torch.rand(6, 3, 40, 24)
    boxes = np.array([[0, 0, 40, 24], [3, 5, 10, 7], [10, 2, 30, 20], [39, 23, 1, 1], [5, 0, 8, 24], [0, 0, 2, 3]])
    flips = np.array([False, True, False, True, True, False])
    made = crop_and_resize(images.transpose(0, 1).contiguous(), boxes, size, flips=flips).transpose(0, 1)
    for image, box, flip, result in zip(images, boxes.tolist(), flips, made, strict=True):
        expected = reference.resized_crop(image, *box, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
        torch.testing.assert_close(result, expected.flip(2) if flip else expected, rtol=0, atol=5e-6)


def test_the_whole_image_at_its_own_size_is_unchanged():
    planes = torch.rand(3, 2, 20, 10)
    boxes = np.array([[0, 0, 20, 10]] * 2)
    torch.testing.assert_close(crop_and_resize(planes, boxes, (20, 10)), planes, rtol=0, atol=1e-6)
    torch.testing.assert_close(crop_and_resize(planes, boxes, (20, 10), gain=0.5), planes / 2, rtol=0, atol=1e-6)


def test_crop_and_resize_wants_a_box_for_each_sample():
    with pytest.raises(ValueError, match=r"shape \(2, 4\).*got \(3, 4\)"):
        crop_and_resize(torch.rand(3, 2, 8, 8), np.zeros((3, 4), np.int64), (4, 4))


@pytest.mark.parametrize("size", [(256, 128), (40, 60), (90, 33)])
def test_resize_images_is_pillows(size):
    """Pillow rounds and clamps to 8 bits between its two passes, so a level may differ by 1 where nothing overshoots."""
    from PIL import Image

    images = np.random.default_rng(0).integers(70, 186, (2, 90, 33, 3), dtype=np.uint8)
    made = resize_images(torch.from_numpy(images).permute(0, 3, 1, 2), size)
    assert made.dtype == torch.uint8 and made.is_contiguous()
    for image, result in zip(images, made, strict=True):
        expected = np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))
        difference = np.abs(result.permute(1, 2, 0).numpy().astype(int) - expected)
        assert difference.max() <= 1
