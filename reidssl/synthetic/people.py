"""Synthetic data sets of people: a small, free substitute for LUPerson, Market-1501 and a target set with other cameras.

`specifications` lists the images of a part without drawing them, and `render` draws one image. Every image is a pure function of
its specification and the configuration, so any worker can draw any image at any time.

There are three parts without common identities: `pretrain` (unlabeled, many scenes, with a planted share of useless images),
`source` (labeled, warm and sharp cameras) and `target` (labeled, other cameras, dim and cool). File names follow the layouts of
LUPerson and Market-1501.
"""

import hashlib
import math
import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from reidssl.checks import at_least, within
from reidssl.synthetic.appearance import Pose, draw_appearance
from reidssl.synthetic.camera import DOMAINS, Camera, draw_camera, photograph
from reidssl.synthetic.figure import draw_person
from reidssl.synthetic.objects import OBJECTS, paint_object, paint_occluder
from reidssl.synthetic.scene import paint_place

SUPERSAMPLING = 2
PLANTED_KINDS = ("place", "place", "object", "fragment", "smear")  # "place" (background only) is the most common


@dataclass(kw_only=True)
class SyntheticConfig:
    """Numbers of people, cameras and images of the synthetic data sets. Equal configurations give equal images."""

    seed: int = 0
    """Seed of all random numbers."""
    image_size: tuple[int, int] = (128, 64)
    """(height, width) of every image in pixels."""
    num_pretrain: int = 8192
    """Number of unlabeled images."""
    planted_fraction: float = 0.25
    """Share of the unlabeled images that are useless for re-identification."""
    pretrain_identities: int = 1024
    """Number of people in the unlabeled images."""
    pretrain_scenes: int = 64
    """Number of scenes (videos) in the unlabeled images; each has its own camera."""
    source_identities: int = 200
    """Number of people in the source set, training and test together."""
    source_cameras: int = 6
    """Number of cameras of the source set."""
    target_identities: int = 200
    """Number of people in the target set, training and test together."""
    target_cameras: int = 6
    """Number of cameras of the target set."""
    cameras_per_identity: int = 4
    """Number of cameras of a set that see each of its people."""
    images_per_camera: int = 3
    """Number of images of each person in each camera that sees them. One of them is a query for people of the test split."""
    camera_strength: float = 0.5
    """Strength of the camera errors (color cast, blur, noise, resolution), from 0 (none) to 1 (severe)."""
    background_strength: float = 0.5
    """Contrast of the backgrounds, from 0 (plain gray) to 1 (as strong as that of the people)."""
    train_fraction: float = 0.5
    """Share of the labeled people that are used for training."""

    def __post_init__(self) -> None:
        height, width = self.image_size  # YAML gives a list
        self.image_size = (height, width)
        if height < 16 or width < 8:
            raise ValueError(f"image_size must be at least (16, 8) as (height, width): got {self.image_size}")
        at_least(
            1, num_pretrain=self.num_pretrain, pretrain_identities=self.pretrain_identities, pretrain_scenes=self.pretrain_scenes
        )
        within("[2, 9999]", source_identities=self.source_identities, target_identities=self.target_identities)
        at_least(
            2,
            source_cameras=self.source_cameras,
            target_cameras=self.target_cameras,
            images_per_camera=self.images_per_camera,
            cameras_per_identity=self.cameras_per_identity,
        )
        within("[0, 1)", planted_fraction=self.planted_fraction)
        within("[0, 1]", camera_strength=self.camera_strength, background_strength=self.background_strength)
        within("(0, 1)", train_fraction=self.train_fraction)


class SyntheticSpec(NamedTuple):
    """Specification of one image, before drawing. `pid` and `camid` are -1 if unlabeled; `planted` is 1 for a useless image."""

    key: str
    pid: int
    camid: int
    split: str  # train | query | gallery
    planted: int
    domain: str
    identity_seed: int
    scene_seed: int
    image_seed: int


def _seed(*parts: object) -> int:
    """A stable 63-bit seed from objects with a stable repr."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def specifications(config: SyntheticConfig, part: str) -> list[SyntheticSpec]:
    """Specifications of the images of `part` ("pretrain", "source" or "target"), sorted by key. Nothing is drawn."""
    if part not in DOMAINS:
        raise ValueError(f"part must be one of {', '.join(DOMAINS)}: got {part!r}")
    specs = _pretrain(config) if part == "pretrain" else _labeled(config, part)
    return sorted(specs)


def _pretrain(config: SyntheticConfig) -> list[SyntheticSpec]:
    rng = random.Random(_seed(config.seed, "pretrain"))
    planted = set(rng.sample(range(config.num_pretrain), round(config.planted_fraction * config.num_pretrain)))
    specs = []
    for number in range(config.num_pretrain):
        scene, person = rng.randrange(config.pretrain_scenes), rng.randrange(config.pretrain_identities)
        specs.append(
            SyntheticSpec(
                key=f"images/s{scene:04d}/{number:07d}.jpg",
                pid=-1,
                camid=-1,
                split="train",
                planted=int(number in planted),
                domain="pretrain",
                identity_seed=_seed(config.seed, "pretrain", "identity", person),
                scene_seed=_seed(config.seed, "pretrain", "camera", scene),
                image_seed=_seed(config.seed, "pretrain", "image", number),
            )
        )
    return specs


def _labeled(config: SyntheticConfig, part: str) -> list[SyntheticSpec]:
    rng = random.Random(_seed(config.seed, part))
    num_identities: int = getattr(config, f"{part}_identities")
    num_cameras: int = getattr(config, f"{part}_cameras")
    num_train = min(max(round(config.train_fraction * num_identities), 1), num_identities - 1)
    train = set(rng.sample(range(1, num_identities + 1), num_train))
    specs, frame = [], 0
    for pid in range(1, num_identities + 1):
        seen_by = rng.sample(range(1, num_cameras + 1), min(config.cameras_per_identity, num_cameras))
        for camid in sorted(seen_by):
            for number in range(config.images_per_camera):
                frame += rng.randint(1, 40)
                split = "train" if pid in train else "query" if number == 0 else "gallery"
                folder = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}[split]
                box = 0 if split == "query" else 1 + number % 9
                specs.append(
                    SyntheticSpec(
                        key=f"{folder}/{pid:04d}_c{camid}s1_{frame:06d}_{box:02d}.jpg",
                        pid=pid,
                        camid=camid,
                        split=split,
                        planted=0,
                        domain=part,
                        identity_seed=_seed(config.seed, part, "identity", pid),
                        scene_seed=_seed(config.seed, part, "camera", camid),
                        image_seed=_seed(config.seed, part, "image", frame),
                    )
                )
    return specs


def render(spec: SyntheticSpec, config: SyntheticConfig) -> np.ndarray:
    """Draw one image: uint8 (height, width, 3), RGB. A pure function of its arguments."""
    rng = random.Random(spec.image_seed)
    camera = draw_camera(spec.scene_seed, spec.domain, config.camera_strength)
    height, width = config.image_size
    canvas = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    paint_place(canvas, camera, rng, config.background_strength)
    blur = _paint_planted(canvas, spec, camera, rng) if spec.planted else _paint_crop(canvas, spec, camera, rng)
    return photograph(canvas, config.image_size, camera, rng, spec.image_seed, blur)


def _pose(camera: Camera, rng: random.Random) -> Pose:
    usual = rng.random() < 0.6
    yaw = rng.gauss(camera.yaw, 0.5) if usual else rng.uniform(0, 2 * math.pi)
    return Pose(yaw, rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 1.0), rng.gauss(0, 0.02), rng.uniform(0.0, 0.9))


def _paint_crop(canvas: Image.Image, spec: SyntheticSpec, camera: Camera, rng: random.Random) -> float:
    """Paint a person as in a detector's crop: filling it, not exactly centered, sometimes partly hidden.

    Returns the extra blur, which is 0.
    """
    width, height = canvas.size
    if rng.random() < 0.2:  # another person behind, cut off by the edge of the crop
        _paint_other(canvas, camera, rng, rng.choice((-1, 1)) * rng.uniform(0.42, 0.6))
    tall = height * rng.uniform(0.88, 1.04)
    top = (height - tall) / 2 + height * rng.gauss(0, 0.025)
    center = width * (0.5 + rng.gauss(0, 0.04))
    draw_person(canvas, draw_appearance(spec.identity_seed), _pose(camera, rng), center, top, tall)
    if rng.random() < 0.12:
        paint_occluder(canvas, rng)
    elif rng.random() < 0.05:
        _paint_other(canvas, camera, rng, rng.choice((-1, 1)) * rng.uniform(0.5, 0.62))
    return 0.0


def _paint_other(canvas: Image.Image, camera: Camera, rng: random.Random, offset: float) -> None:
    width, height = canvas.size
    somebody = draw_appearance(rng.getrandbits(60))
    tall = height * rng.uniform(0.75, 1.0)
    center, top = width * (0.5 + offset), height * rng.uniform(0, 0.1)
    draw_person(canvas, somebody, _pose(camera, rng), center, top, tall)


def _paint_planted(canvas: Image.Image, spec: SyntheticSpec, camera: Camera, rng: random.Random) -> float:
    """Paint the content of a useless crop, as from a bad detector. Returns the extra blur, in the unit of `Camera.blur`."""
    width, height = canvas.size
    kind = rng.choice(PLANTED_KINDS)
    if kind == "object":
        for _ in range(rng.randint(1, 2)):
            size = width * rng.uniform(0.6, 1.6)
            left, top = rng.uniform(-0.3, 0.3) * width, rng.uniform(0.05, 0.55) * height
            paint_object(canvas, rng.choice(OBJECTS), rng, left, top, size)
    elif kind == "fragment":  # a person much too close, or much too small and off center
        if rng.random() < 0.7:
            tall = height * rng.uniform(2.2, 4.0)
            top = -tall * rng.uniform(0.1, 0.65)
            center = width * rng.uniform(0.1, 0.9)
        else:
            tall = height * rng.uniform(0.15, 0.3)
            top, center = rng.uniform(0, 0.7) * height, width * rng.uniform(0, 1)
        draw_person(canvas, draw_appearance(spec.identity_seed), _pose(camera, rng), center, top, tall)
    elif kind == "smear":
        draw_person(canvas, draw_appearance(spec.identity_seed), _pose(camera, rng), width / 2, 0, height)
        return rng.uniform(9, 16)
    return 0.0
