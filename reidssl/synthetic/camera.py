"""The camera of a synthetic image: its colors, its direction and its photometric errors.

A `Camera` is drawn at random from a seed and a domain. Domains differ in the ranges of their camera parameters: wide for
`pretrain`, warm and sharp for `source`, dim and cool for `target`.
"""

import io
import math
import random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from reidssl.synthetic.appearance import Color

DOMAINS = ("pretrain", "source", "target")


class Camera(NamedTuple):
    """One camera or scene."""

    gains: tuple[float, float, float]  # factors of the channels, red first
    gamma: float
    brightness: float
    contrast: float
    blur: float  # standard deviation, in rows of an image of 128 rows
    noise: float  # standard deviation in levels of 0..255
    resolution: float  # resolution of the sensor as a share of the output's
    quality: int  # JPEG quality, 0: no JPEG compression
    palette: tuple[Color, ...]
    yaw: float  # usual walking direction in radians, relative to the camera
    horizon: float
    light: float  # direction of the light, from -1 (left) to 1 (right)


def draw_camera(seed: int, domain: str, strength: float = 1.0) -> Camera:
    """The camera of `seed` in `domain`, one of `DOMAINS`.

    strength: factor of every photometric error, in [0, 1]. 0 gives a neutral camera, 1 the full range of the domain.
    """
    rng = random.Random(seed)
    span = rng.uniform
    if domain == "source":
        gains = (span(0.98, 1.20), span(0.92, 1.05), span(0.70, 0.95))
        gamma, brightness, contrast = span(0.8, 1.15), span(0.85, 1.15), span(0.85, 1.15)
        blur, noise, resolution = span(0.0, 0.5), span(2, 5), span(0.8, 1.0)
    elif domain == "target":
        gains = (span(0.72, 0.98), span(0.85, 1.05), span(0.95, 1.25))
        gamma, brightness, contrast = span(0.85, 1.35), span(0.6, 1.0), span(0.7, 1.05)
        blur, noise, resolution = span(0.3, 1.1), span(4, 11), span(0.5, 0.9)
    else:
        gains = (span(0.65, 1.25), span(0.8, 1.1), span(0.65, 1.3))
        gamma, brightness, contrast = span(0.75, 1.45), span(0.5, 1.2), span(0.6, 1.2)
        blur, noise, resolution = span(0.0, 1.1), span(2, 11), span(0.5, 1.0)
    colors = tuple((rng.randint(40, 215), rng.randint(40, 215), rng.randint(40, 215)) for _ in range(2))
    painted = tuple(_blend(color, (128, 128, 124), 0.6) for color in colors)
    grays = tuple((g, g + rng.randint(-8, 8), g + rng.randint(-14, 10)) for g in rng.sample(range(60, 215), 4))
    return Camera(
        gains=(_scaled(gains[0], strength), _scaled(gains[1], strength), _scaled(gains[2], strength)),
        gamma=_scaled(gamma, strength),
        brightness=_scaled(brightness, strength),
        contrast=_scaled(contrast, strength),
        blur=blur * strength,
        noise=noise * strength,
        resolution=_scaled(resolution, strength),
        quality=rng.choice((0, 40, 60, 80)),
        palette=painted + grays,
        yaw=span(0, 2 * math.pi),
        horizon=span(0.35, 0.7),
        light=span(-1, 1),
    )


def _scaled(factor: float, strength: float) -> float:
    return 1.0 + strength * (factor - 1.0)


def _blend(a: Color, b: Color, share: float) -> Color:
    r, g, blue = (int(x * (1 - share) + y * share) for x, y in zip(a, b, strict=True))
    return r, g, blue


def photograph(
    canvas: Image.Image,
    size: tuple[int, int],
    camera: Camera,
    rng: random.Random,
    seed: int,
    extra_blur: float = 0.0,
) -> np.ndarray:
    """The canvas as photographed by the camera: uint8 (height, width, 3).

    size: (height, width). extra_blur: additional blur in the unit of `Camera.blur`.
    """
    height, width = size
    scale = height / 128
    sensor = camera.resolution * rng.uniform(0.85, 1.0)
    small = (max(int(width * sensor), 8), max(int(height * sensor), 16))
    image = canvas.resize(small, Image.Resampling.BOX)
    sigma = (math.hypot(camera.blur * rng.uniform(0.6, 1.4), extra_blur)) * scale * sensor
    if sigma > 0.15:
        image = image.filter(ImageFilter.BoxBlur(sigma * 1.2))
    if small != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    generator = np.random.Generator(np.random.SFC64(seed))
    levels = np.asarray(image, np.float32) * np.float32(1 / 255)
    exposure = camera.brightness * rng.uniform(0.85, 1.15)
    gains = np.array([g * exposure * rng.uniform(0.96, 1.04) for g in camera.gains], np.float32)
    light = np.linspace(1 - 0.2 * camera.light, 1 + 0.2 * camera.light, width, dtype=np.float32)
    table = _curve(camera, rng)
    levels *= gains * light[:, None]
    np.clip(levels, 0, 1, out=levels)
    levels = table[(levels * 1023).astype(np.int16)]
    levels += generator.standard_normal(levels.shape, np.float32) * np.float32(camera.noise)
    np.clip(levels, 0, 255, out=levels)
    pixels = levels.astype(np.uint8)
    if camera.quality:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=camera.quality)
        pixels = np.array(Image.open(buffer))
    return pixels


def _curve(camera: Camera, rng: random.Random) -> np.ndarray:
    """Gamma and contrast as one lookup table of 1024 levels, before clipping to 0..255."""
    steps = np.linspace(0, 1, 1024, dtype=np.float32) ** np.float32(camera.gamma * rng.uniform(0.9, 1.1))
    return ((steps - 0.5) * camera.contrast + 0.5) * np.float32(255)
