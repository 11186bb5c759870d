"""The whole multi-crop: shapes, reproducibility, independence from the batch, and the recipe's probabilities."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from reidssl.augment import color
from reidssl.augment.multicrop import MultiCrop, MultiCropConfig
from reidssl.seeding import sample_seeds

SMALL = {"global_size": (64, 32), "local_size": (32, 16), "num_local": 3}
NO_COLOR = {
    "jitter": 0.0,
    "grayscale": 0.0,
    "blur_global1": 0.0,
    "blur_global2": 0.0,
    "blur_local": 0.0,
    "solarize": 0.0,
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
}


def make_batch(count: int, height: int = 64, width: int = 32) -> tuple[torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    return images, sample_seeds(0, 1, [f"{i}.jpg" for i in range(count)])


def test_shapes_types_and_the_input_is_left_alone():
    images, seeds = make_batch(5, 50, 21)
    before = images.clone()
    crops = MultiCrop(MultiCropConfig(**SMALL))(images, seeds)
    assert [tuple(crop.shape) for crop in crops] == [(5, 3, 64, 32)] * 2 + [(5, 3, 32, 16)] * 3
    assert all(crop.dtype == torch.float32 and crop.is_contiguous() and not crop.requires_grad for crop in crops)
    assert all(torch.isfinite(crop).all() for crop in crops)
    assert torch.equal(images, before)
    assert len(MultiCrop(MultiCropConfig(**{**SMALL, "num_local": 0}))(images, seeds)) == 2
    empty = MultiCrop(MultiCropConfig(**SMALL))(images[:0], seeds[:0])
    assert [tuple(crop.shape) for crop in empty] == [(0, 3, 64, 32)] * 2 + [(0, 3, 32, 16)] * 3


def test_without_color_a_crop_is_torchvisions_resized_crop():
    images, seeds = make_batch(6)
    multicrop = MultiCrop(MultiCropConfig(**SMALL, **NO_COLOR))
    crops = multicrop(images, seeds)
    flips = 0
    for views, size in (([0, 1], (64, 32)), ([2, 3, 4], (32, 16))):
        draws = multicrop._draw(seeds, 64, 32, views)
        for row, view in enumerate(np.repeat(views, 6)):
            sample = row % 6
            expected = reference.resized_crop(
                images[sample].float() / 255,
                *draws.boxes[row].tolist(),
                list(size),
                interpolation=InterpolationMode.BICUBIC,
                antialias=True,
            ).clamp(0, 1)
            expected = expected.flip(2) if draws.flipped[row] else expected
            flips += int(draws.flipped[row])
            torch.testing.assert_close(crops[view][sample], expected, rtol=0, atol=1e-5)
    assert 5 <= flips <= 25


def test_the_steps_come_in_the_recipes_order():
    """The result equals jitter, grayscale, blur, solarize and normalize, applied one after the other."""
    images, seeds = make_batch(20)
    config = MultiCropConfig(**SMALL)
    plain = MultiCrop(dataclasses.replace(config, **NO_COLOR))(images, seeds)
    crops = MultiCrop(config)(images, seeds)
    for views in ([0, 1], [2, 3, 4]):
        draws = MultiCrop(config)._draw(seeds, 64, 32, views)
        lines = torch.cat([plain[view] for view in views]).transpose(1, 2).contiguous()  # (N, h, 3, w)
        lines = color.jitter(lines, torch.from_numpy(color.jitter_steps(draws.jittered, draws.orders, draws.factors)))
        lines = color.grayscale(lines, torch.from_numpy(draws.gray))
        lines = color.gaussian_blur(lines, torch.from_numpy(draws.sigmas), 2.0)
        lines = color.solarize(lines, torch.from_numpy(draws.solarized))
        expected = lines.transpose(1, 2)
        expected = (expected - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[:, None, None]
        torch.testing.assert_close(torch.cat([crops[view] for view in views]), expected, rtol=0, atol=1e-5)


def test_the_same_seeds_give_the_same_crops_and_others_do_not():
    images, seeds = make_batch(8)
    multicrop = MultiCrop(MultiCropConfig(**SMALL))
    torch.manual_seed(1)
    first = multicrop(images, seeds)
    torch.manual_seed(2)
    second = multicrop(images, seeds)
    other = multicrop(images, sample_seeds(0, 2, [f"{i}.jpg" for i in range(8)]))
    for view, (a, b, c) in enumerate(zip(first, second, other, strict=True)):
        assert torch.equal(a, b)
        # With the released aspect range the first global crops often have the same box, but never the same colors.
        assert all(not torch.equal(a[i], c[i]) for i in range(8)), f"view {view}"
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[2], first[3])


@pytest.mark.parametrize("sizes", [{**SMALL}, {"global_size": (48, 23), "local_size": (17, 9), "num_local": 2}])
@pytest.mark.parametrize("part", [1, 3, 7, 16])
def test_a_sample_does_not_depend_on_its_batch(sizes, part):
    images, seeds = make_batch(33, 60, 29)
    multicrop = MultiCrop(MultiCropConfig(**sizes))
    whole = multicrop(images, seeds)
    parts = [multicrop(images[i : i + part], seeds[i : i + part]) for i in range(0, 33, part)]
    for view, crop in enumerate(whole):
        joined = torch.cat([crops[view] for crops in parts])
        torch.testing.assert_close(joined, crop, rtol=0, atol=1e-5)
    backwards = multicrop(images.flip(0), seeds[::-1].copy())
    for view, crop in enumerate(whole):
        torch.testing.assert_close(backwards[view].flip(0), crop, rtol=0, atol=1e-5)


def test_probabilities_and_ranges_are_the_recipes():
    config = MultiCropConfig()
    seeds = sample_seeds(3, 0, [str(i) for i in range(4000)])
    multicrop = MultiCrop(config)
    for views in ([0, 1], list(range(2, 10))):
        draws = multicrop._draw(seeds, 256, 128, views)
        for position, view in enumerate(views):
            crop = slice(position * 4000, (position + 1) * 4000)
            blur = {0: 1.0, 1: 0.1}.get(view, 0.5)
            rates = {
                "flipped": (draws.flipped[crop].mean(), 0.5),
                "jittered": (draws.jittered[crop].mean(), 0.8),
                "gray": (draws.gray[crop].mean(), 0.2),
                "blurred": ((draws.sigmas[crop] > 0).mean(), blur),
                "solarized": (draws.solarized[crop].mean(), 0.2 if view == 1 else 0.0),
            }
            for name, (rate, expected) in rates.items():
                assert abs(rate - expected) < 0.035, f"view {view}: {name} {rate}, not {expected}"
        sigmas = draws.sigmas[draws.sigmas > 0]
        assert 0.1 <= sigmas.min() < 0.12 and 1.98 < sigmas.max() <= 2.0
        assert abs(sigmas.mean() - 1.05) < 0.03
        assert np.bincount(draws.orders, minlength=24).min() > len(draws.orders) / 24 * 0.8
        np.testing.assert_allclose(draws.factors.min(0), [0.6, 0.6, 0.8, -0.1], atol=0.002)
        np.testing.assert_allclose(draws.factors.max(0), [1.4, 1.4, 1.2, 0.1], atol=0.002)
    # Crop areas relative to the image: those of local crops are uniform up to the fallback.
    areas = draws.boxes[:, 2] * draws.boxes[:, 3] / (256 * 128)
    assert 0.045 < areas.min() < 0.06 and areas.max() < 0.72


def test_what_happens_to_a_crop_is_independent_of_the_rest():
    """The position, flip, factors, blur etc. of a crop do not correlate with each other or with those of another crop."""
    count = 6000
    seeds = sample_seeds(3, 0, [str(i) for i in range(count)])
    config = MultiCropConfig(aspect=(0.5, 0.5), global_scale=(0.3, 0.3), blur_global2=0.5)
    draws = MultiCrop(config)._draw(seeds, 256, 128, [0, 1])
    parameters = [
        draws.boxes[:, 0],
        draws.boxes[:, 1],
        draws.flipped,
        draws.jittered,
        draws.orders,
        *draws.factors.T,
        draws.gray,
        draws.sigmas,
    ]
    columns = [half for parameter in parameters for half in (parameter[:count], parameter[count:])]
    columns += [draws.solarized[count:], draws.sigmas[count:] > 0]
    correlation = np.abs(np.corrcoef(np.array(columns, dtype=np.float64)))
    np.fill_diagonal(correlation, 0.0)
    # Whether there is a blur correlates with its sigma by definition.
    correlation[-1, -3] = correlation[-3, -1] = 0.0
    assert correlation.max() < 0.055


@pytest.mark.parametrize("on_accelerators", [False, True])
def test_crops_of_a_scaled_image_show_what_crops_of_the_image_itself_show(on_accelerators):
    """A tall image scaled to another shape before cropping: nearly the same crops as without that, and not without its shape."""
    rows, columns = np.mgrid[:480, :160]
    picture = 128 + 60 * np.sin(rows / 37)[..., None] + 60 * np.cos(columns / 19)[..., None] * np.array([1.0, 0.5, -1.0])
    whole = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    images = [torch.from_numpy(np.array(one).transpose(2, 0, 1))[None] for one in (whole, whole.resize((128, 256), 3))]
    multicrop = MultiCrop(MultiCropConfig(**SMALL, **NO_COLOR), use_compiled=not on_accelerators)
    seeds = sample_seeds(0, 0, ["a"])
    expected, shape = multicrop(images[0], seeds), np.array([[480, 160]], np.int32)
    given, plain = multicrop(images[1], seeds, shape), multicrop(images[1], seeds)
    assert max(float((one - two).abs().mean()) for one, two in zip(given, expected, strict=True)) < 0.05
    assert min(float((one - two).abs().mean()) for one, two in zip(plain[:2], expected[:2], strict=True)) > 0.15
    same = multicrop(images[0], seeds, shape)  # not scaled: its own shape changes nothing
    assert all(torch.equal(one, two) for one, two in zip(same, expected, strict=True))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (np.ones((3, 2), np.int32), r"shapes must be an integer array of the shape \(2, 2\).*got int32 \(3, 2\)"),
        (np.ones((2, 2)), r"shapes must be an integer array.*got float64 \(2, 2\)"),
        ([[1, 2], [3, 4]], "got list"),
        (np.array([[8, 8], [8, 0]]), r"shapes must be positive heights and widths: got \[8, 0\]"),
    ],
)
def test_wrong_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        MultiCrop(MultiCropConfig(**SMALL))(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), np.zeros(2, np.uint64), shapes)


@pytest.mark.parametrize(
    ("images", "seeds", "message"),
    [
        (torch.zeros(2, 3, 8, 8), np.zeros(2, np.uint64), r"images must be uint8.*got torch.float32 \(2, 3, 8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), np.zeros(2, np.uint64), r"images must be uint8.*\(3, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), np.zeros(2, np.uint64), r"\(B, 3, H, W\).*\(2, 8, 8, 3\)"),
        (torch.zeros(2, 3, 0, 8, dtype=torch.uint8), np.zeros(2, np.uint64), r"\(2, 3, 0, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), np.zeros(3, np.uint64), r"shape \(2,\).*got uint64 \(3,\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), np.zeros(2, np.int64), r"seeds must be a uint64.*got int64"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [1, 2], r"seeds must be a uint64.*got list"),
    ],
)
def test_wrong_inputs(images, seeds, message):
    with pytest.raises(ValueError, match=message):
        MultiCrop(MultiCropConfig(**SMALL))(images, seeds)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("global_size", (0, 128)),
        ("local_size", (128, -1)),
        ("num_local", -1),
        ("global_scale", (0.0, 1.0)),
        ("local_scale", (0.5, 0.4)),
        ("aspect", (0.0, 1.0)),
        ("flip", 1.5),
        ("jitter", -0.1),
        ("hue", 0.6),
        ("brightness", 1.1),
        ("blur_sigma", (0.0, 1.0)),
        ("blur_local", float("nan")),
        ("mean", [0.5]),
        ("std", [0.5, 0.5, 0.0]),
    ],
)
def test_wrong_settings_name_the_field(name, value):
    with pytest.raises(ValueError, match=f"^{name} must "):
        MultiCropConfig(**{name: value})


def test_the_configuration_can_be_structured():
    from omegaconf import OmegaConf

    structured = OmegaConf.structured(MultiCropConfig)
    merged = OmegaConf.merge(structured, {"num_local": 2, "aspect": [0.33, 0.5]})
    config = OmegaConf.to_object(merged)
    assert isinstance(config, MultiCropConfig)
    assert config.num_local == 2 and tuple(config.aspect) == (0.33, 0.5)
    images, seeds = make_batch(2)
    assert len(MultiCrop(config)(images, seeds)) == 4
