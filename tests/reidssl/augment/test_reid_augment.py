"""Re-ID augmentation: each step against plain arithmetic, the erasing against timm's."""

import random

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing

from reidssl.augment.geometry import resize_images
from reidssl.augment.reid_augment import ERASING_TRIES, ReidAugment, ReidAugmentConfig, erasing_boxes, normalize, shift
from reidssl.seeding import sample_seeds, uniforms

SIZE = (32, 16)


def make_batch(count: int, size: tuple[int, int] = SIZE) -> tuple[torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(1, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    return images, sample_seeds(0, 1, [f"{i}.jpg" for i in range(count)])


def test_normalize_is_the_plain_formula():
    images, _ = make_batch(3)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    for given in (images, images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)):
        made = normalize(given, mean, std)
        expected = (images.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        assert made.dtype == torch.float32 and made.is_contiguous()
        torch.testing.assert_close(made, expected.float(), rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="images must be uint8"):
        normalize(images.float(), mean, std)
    with pytest.raises(ValueError, match="std must"):
        normalize(images, mean, [1.0, 1.0])


def test_shift_is_pad_and_crop():
    images, _ = make_batch(4)
    draws_y, draws_x = np.array([0.0, 0.5, 0.999, 0.3]), np.array([0.999, 0.5, 0.0, 0.8])
    made = shift(images, 3, draws_y, draws_x)
    padded = torch.nn.functional.pad(images, (3, 3, 3, 3))
    for sample, (y, x) in enumerate([(0, 6), (3, 3), (6, 0), (2, 5)]):
        assert torch.equal(made[sample], padded[sample, :, y : y + 32, x : x + 16])
    assert torch.equal(shift(images, 0, draws_y, draws_x), images)


def test_nothing_switched_on_only_resizes_and_normalizes():
    config = ReidAugmentConfig(image_size=SIZE, flip=0.0, pad=0, erasing=0.0)
    images, seeds = make_batch(5)
    assert torch.equal(ReidAugment(config)(images, seeds), normalize(images, config.mean, config.std))
    images, seeds = make_batch(5, (20, 11))
    expected = normalize(resize_images(images, SIZE), config.mean, config.std)
    assert torch.equal(ReidAugment(config)(images, seeds), expected)


def test_every_image_is_a_shifted_and_perhaps_mirrored_one():
    images, seeds = make_batch(40)
    before = images.clone()
    config = ReidAugmentConfig(image_size=SIZE, pad=2, erasing=0.0)
    made = ReidAugment(config)(images, seeds)
    assert torch.equal(images, before)
    levels = ((made * 0.5 + 0.5) * 255).round().to(torch.uint8)
    found = []
    for image, result in zip(images, levels, strict=True):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        matches = [
            (y, x, flip)
            for y in range(5)
            for x in range(5)
            for flip in (False, True)
            if torch.equal(result.flip(2) if flip else result, padded[:, y : y + 32, x : x + 16])
        ]
        assert len(matches) == 1
        found += matches
    assert {y for y, _, _ in found} == {x for _, x, _ in found} == set(range(5))
    assert 8 <= sum(flip for _, _, flip in found) <= 32


def test_erasing_boxes_are_distributed_as_timms():
    count, height, width = 4000, 256, 128
    draws = uniforms(sample_seeds(0, 0, [str(i) for i in range(count)]), 2 * ERASING_TRIES + 2)
    boxes = erasing_boxes(draws, height, width, (0.02, 1 / 3), (0.3, 1 / 0.3))
    assert (boxes[:, 2] > 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all() and (boxes[:, 1] + boxes[:, 3] <= width).all()
    random.seed(0)
    erase = RandomErasing(probability=1.0, mode="const", device="cpu")
    expected = []
    for _ in range(count):
        marks = erase(torch.ones(1, height, width))[0] == 0
        rows, columns = marks.any(1).nonzero(), marks.any(0).nonzero()
        expected.append([int(rows[0]), int(columns[0]), len(rows), len(columns)])
    expected = np.array(expected)
    for power in (1, 2):  # means and variances, each within 4.5 standard errors
        ours, theirs = (boxes - expected.mean(0)) ** power, (expected - expected.mean(0)) ** power
        standard_error = np.sqrt((ours.var(0) + theirs.var(0)) / count)
        assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4.5 * standard_error).all()


def test_erasing_boxes_with_uniform_aspect():
    """The shares and ratios of the boxes; a box of 2 to 4 % of this image always fits."""
    count, height, width = 4000, 2048, 1024
    draws = uniforms(sample_seeds(0, 0, [str(i) for i in range(count)]), 2 * ERASING_TRIES + 2)
    boxes = erasing_boxes(draws, height, width, (0.02, 0.04), (0.3, 1 / 0.3), log_aspect=False)
    ratios, shares = boxes[:, 2] / boxes[:, 3], boxes[:, 2] * boxes[:, 3] / (height * width)
    for values, low, high in ((ratios, 0.3, 1 / 0.3), (shares, 0.02, 0.04)):
        found = np.quantile((values - low) / (high - low), [0.0, 0.25, 0.5, 0.75, 1.0])
        np.testing.assert_allclose(found, [0.0, 0.25, 0.5, 0.75, 1.0], atol=0.03)


def test_erasing_boxes_that_never_fit_are_empty():
    boxes = erasing_boxes(np.full((2, 2 * ERASING_TRIES + 2), 0.5), 10, 10, (1.0, 1.0), (1.0, 1.0))
    assert (boxes[:, 2:] == 0).all()
    config = ReidAugmentConfig(image_size=SIZE, flip=0.0, pad=0, erasing=1.0, erasing_area=(1.0, 1.0))
    images, seeds = make_batch(4)
    assert torch.equal(ReidAugment(config)(images, seeds), normalize(images, config.mean, config.std))


@pytest.mark.parametrize(("noise", "value"), [(True, [0.0, 0.0, 0.0]), (False, [0.0, 0.0, 0.0]), (False, [0.1, -0.2, 0.3])])
def test_erasing_fills_one_rectangle(noise, value):
    images, seeds = make_batch(300, (64, 32))
    config = ReidAugmentConfig(image_size=(64, 32), flip=0.0, pad=0, erasing_noise=noise, erasing_value=value)
    plain = normalize(images, config.mean, config.std)
    made = ReidAugment(config)(images, seeds)
    changed = (made != plain).any(1)  # (B, h, w)
    erased = changed.any(2).any(1)
    assert abs(erased.float().mean() - 0.5) < 0.12
    values = []
    for sample in erased.nonzero()[:, 0]:
        rows, columns = changed[sample].any(1).nonzero()[:, 0], changed[sample].any(0).nonzero()[:, 0]
        box = made[sample, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        share = box[0].numel() / (64 * 32)
        assert 0.015 < share < 0.36
        assert changed[sample].sum() > 0.97 * box[0].numel()
        values.append((box if noise else box - torch.tensor(value)[:, None, None]).flatten())
    values = torch.cat(values)
    if noise:
        assert abs(values.mean()) < 0.03 and abs(values.std() - 1) < 0.03
        assert len({float(value[0]) for value in values.split(997)}) > 100
    else:
        assert not values.any()


@pytest.mark.parametrize("part", [1, 4, 7])
def test_a_sample_does_not_depend_on_its_batch(part):
    images, seeds = make_batch(20, (50, 21))
    augment = ReidAugment(ReidAugmentConfig(image_size=SIZE))
    whole = augment(images, seeds)
    parts = torch.cat([augment(images[i : i + part], seeds[i : i + part]) for i in range(0, 20, part)])
    # A level may round differently where a product is summed in another order.
    assert (parts - whole).abs().max() <= 1 / 127 + 1e-6
    assert ((parts - whole).abs() > 1e-6).float().mean() < 1e-4
    assert torch.equal(ReidAugment(ReidAugmentConfig(image_size=SIZE))(images, seeds), whole)
    assert not torch.equal(augment(images, sample_seeds(0, 2, [str(i) for i in range(20)])), whole)
    assert augment(images[:0], seeds[:0]).shape == (0, 3, *SIZE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", (0, 1)),
        ("flip", 2.0),
        ("pad", -1),
        ("erasing", -0.5),
        ("erasing_area", (0.5, 0.2)),
        ("erasing_aspect", (0.0, 1.0)),
        ("erasing_value", [0.5]),
        ("mean", [0.5] * 4),
        ("std", [0.5, -0.5, 0.5]),
    ],
)
def test_wrong_settings_name_the_field(name, value):
    with pytest.raises(ValueError, match=f"^{name} must "):
        ReidAugmentConfig(**{name: value})


def test_wrong_inputs():
    with pytest.raises(ValueError, match=r"seeds must be.*\(2,\).*got uint64 \(1,\)"):
        ReidAugment(ReidAugmentConfig())(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), np.zeros(1, np.uint64))
    with pytest.raises(ValueError, match="images must be uint8"):
        ReidAugment(ReidAugmentConfig())(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), np.zeros(2, np.uint64))
