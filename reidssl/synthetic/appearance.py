"""Synthetic people: the fixed appearance of an identity, and the pose that changes between its images.

An `Appearance` is everything that is the same in all images of one identity: build, head, garments with their patterns, bag, hat.
A `Pose` is everything that changes. All identities share one short list of colors. A color histogram therefore helps, but is not
enough to distinguish people. Build, cut and pattern are also needed.
"""

import random
from typing import NamedTuple

Color = tuple[int, int, int]

GARMENT_COLORS: tuple[Color, ...] = (
    (34, 34, 38),
    (72, 74, 80),
    (150, 152, 156),
    (232, 232, 228),
    (38, 52, 98),
    (82, 120, 176),
    (160, 40, 44),
    (48, 100, 62),
    (196, 168, 120),
    (110, 74, 52),
    (222, 176, 50),
    (198, 110, 150),
    (108, 70, 130),
    (40, 130, 140),
)
# Dark and neutral clothes are common in streets, so many identities share them.
GARMENT_WEIGHTS = (5, 3, 3, 4, 4, 3, 2, 1.5, 2, 1.5, 1, 1, 1, 1)
SKIN_COLORS: tuple[Color, ...] = (
    (240, 205, 180),
    (222, 180, 148),
    (190, 140, 105),
    (140, 96, 70),
    (92, 62, 48),
)
HAIR_COLORS: tuple[Color, ...] = (
    (28, 24, 24),
    (60, 42, 32),
    (112, 76, 44),
    (196, 160, 96),
    (150, 148, 146),
    (120, 50, 36),
)
PATTERNS = (
    "plain",
    "horizontal",
    "vertical",
    "checks",
    "dots",
    "halves",
    "sides",
    "band",
    "yoke",
    "diagonal",
    "logo",
)
PATTERN_WEIGHTS = (4, 2.5, 2, 2, 2, 2, 1.5, 2, 1.5, 1.5, 3)


class Appearance(NamedTuple):
    """The appearance of one identity. Lengths are in body heights. Colors are RGB 0..255."""

    shoulder: float
    waist: float
    hip: float
    head: float
    hip_height: float
    arm_width: float
    leg_width: float
    skin: Color
    hair: Color
    hair_style: str  # bald | short | afro | bob | long | bun
    hat: str  # none | cap | beanie | brim
    hat_color: Color
    upper: Color
    upper_second: Color
    pattern: str
    pattern_count: int
    sleeve: float  # length of the sleeve, from 0 (none) to 1 (to the wrist)
    sleeve_color: Color
    hem: float  # y of the lower end of the upper garment
    flare: float
    open_jacket: bool
    back_print: bool
    scarf: bool
    lower: Color
    lower_second: Color
    lower_kind: str  # trousers | shorts | skirt
    lower_end: float
    lower_width: float
    lower_pattern: str  # plain | stripe | checks | cuffs
    shoes: Color
    boots: bool
    bag: str  # none | backpack | shoulder | handbag | case
    bag_color: Color
    bag_side: int
    bag_size: float


class Pose(NamedTuple):
    """The pose of a person at one moment of a walk. Angles are in radians, yaw 0 faces the camera, `swing` is in 0..1."""

    yaw: float
    phase: float
    swing: float
    lean: float
    arm_bend: float


def draw_appearance(seed: int) -> Appearance:
    """The appearance of the identity with this seed."""
    rng = random.Random(seed)
    pick = rng.choices

    def garment() -> Color:
        return _vary(pick(GARMENT_COLORS, GARMENT_WEIGHTS)[0], rng, 14)

    def other_than(color: Color) -> Color:
        while True:
            other = garment()
            if sum(abs(a - b) for a, b in zip(color, other, strict=True)) > 130:
                return other

    build = rng.uniform(-1, 1)  # from slight to heavy; shared by all widths so that bodies look plausible
    upper, lower = garment(), garment()
    second = other_than(upper)
    kind = pick(("trousers", "shorts", "skirt"), (6, 2, 2))[0]
    end = {"trousers": 0.95, "shorts": rng.uniform(0.62, 0.74), "skirt": rng.uniform(0.64, 0.86)}[kind]
    long_coat = rng.random() < 0.2
    pattern = pick(PATTERNS, PATTERN_WEIGHTS)[0]
    return Appearance(
        shoulder=0.130 + 0.017 * build + rng.uniform(-0.012, 0.012),
        waist=0.102 + 0.025 * build + rng.uniform(-0.012, 0.012),
        hip=0.108 + 0.018 * build + rng.uniform(-0.012, 0.012),
        head=rng.uniform(0.056, 0.070),
        hip_height=rng.uniform(0.47, 0.55),
        arm_width=0.053 + 0.010 * build + rng.uniform(-0.004, 0.006),
        leg_width=0.083 + 0.014 * build + rng.uniform(-0.006, 0.008),
        skin=_vary(rng.choice(SKIN_COLORS), rng, 8),
        hair=_vary(rng.choice(HAIR_COLORS), rng, 8),
        hair_style=pick(("bald", "short", "afro", "bob", "long", "bun"), (1, 4, 1, 2, 2.5, 1))[0],
        hat=pick(("none", "cap", "beanie", "brim"), (6, 1.5, 1, 0.8))[0],
        hat_color=garment(),
        upper=upper,
        upper_second=second,
        pattern=pattern,
        pattern_count=rng.randint(3, 7),
        sleeve=pick((0.0, 0.45, 0.75, 1.0), (1, 3, 1, 5))[0],
        sleeve_color=second if rng.random() < 0.22 else upper,
        hem=rng.uniform(0.62, 0.76) if long_coat else rng.uniform(0.48, 0.57),
        flare=rng.uniform(0.9, 1.3),
        open_jacket=rng.random() < 0.22,
        back_print=rng.random() < 0.3,
        scarf=rng.random() < 0.12,
        lower=lower,
        lower_second=other_than(lower),
        lower_kind=kind,
        lower_end=end,
        lower_width=rng.uniform(0.85, 1.35),
        lower_pattern=pick(("plain", "stripe", "checks", "cuffs"), (6, 2, 1, 1))[0],
        shoes=garment(),
        boots=rng.random() < 0.2,
        bag=pick(("none", "backpack", "shoulder", "handbag", "case"), (5, 3, 2, 2, 0.7))[0],
        bag_color=garment(),
        bag_side=rng.choice((-1, 1)),
        bag_size=rng.uniform(0.8, 1.3),
    )


def _vary(color: Color, rng: random.Random, amount: int) -> Color:
    shift = rng.randint(-amount, amount)
    r, g, b = (min(max(c + shift + rng.randint(-amount // 2, amount // 2), 0), 255) for c in color)
    return r, g, b


def shade(color: Color, factor: float) -> Color:
    """`color` multiplied by `factor` and clipped to 0..255."""
    r, g, b = (min(max(int(c * factor), 0), 255) for c in color)
    return r, g, b
