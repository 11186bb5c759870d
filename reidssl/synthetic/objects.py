"""Street objects, drawn alone as crops without a person, or in front of a person."""

import random

from PIL import Image, ImageDraw

from reidssl.synthetic.appearance import Color, shade

OBJECTS = ("car", "sign", "bicycle", "bin", "tree", "bench")


def paint_object(canvas: Image.Image, kind: str, rng: random.Random, left: float, top: float, size: float) -> None:
    """Draw one street object of `kind`, one of OBJECTS. `left`, `top` and `size` (its width) are in canvas pixels."""
    pen = ImageDraw.Draw(canvas)
    color: Color = (rng.randint(20, 230), rng.randint(20, 230), rng.randint(20, 230))

    def box(x0: float, y0: float, x1: float, y1: float, fill: Color, round_: bool = False) -> None:
        corners = (left + x0 * size, top + y0 * size, left + x1 * size, top + y1 * size)
        (pen.ellipse if round_ else pen.rectangle)(corners, fill=fill)

    def stroke(x0: float, y0: float, x1: float, y1: float, fill: Color, width: float) -> None:
        pen.line(
            (left + x0 * size, top + y0 * size, left + x1 * size, top + y1 * size),
            fill=fill,
            width=max(int(width * size), 1),
        )

    dark: Color = (30, 30, 34)
    if kind == "car":
        pen.polygon(
            [(left + x * size, top + y * size) for x, y in ((0.15, 0.3), (0.3, 0), (0.72, 0), (0.9, 0.3))],
            fill=shade(color, 0.9),
        )
        box(0.3, 0.06, 0.7, 0.27, (120, 140, 150))
        box(0, 0.28, 1, 0.62, color)
        for x in (0.1, 0.68):
            box(x, 0.48, x + 0.22, 0.74, dark, True)
        box(0.9, 0.34, 1.0, 0.44, (230, 220, 170))
    elif kind == "sign":
        stroke(0.5, 0.3, 0.5, 3.0, (130, 130, 130), 0.08)
        box(0.05, 0, 0.95, 0.9, color, rng.random() < 0.5)
        box(0.25, 0.3, 0.75, 0.6, (235, 235, 230))
    elif kind == "bicycle":
        for x in (0.22, 0.78):
            box(x - 0.22, 0.4, x + 0.22, 0.84, dark, True)
            box(x - 0.17, 0.45, x + 0.17, 0.79, (150, 150, 148), True)
        for line in (
            (0.22, 0.62, 0.4, 0.2),
            (0.4, 0.2, 0.7, 0.25),
            (0.7, 0.25, 0.78, 0.62),
            (0.22, 0.62, 0.5, 0.62),
            (0.5, 0.62, 0.7, 0.25),
        ):
            stroke(*line, color, 0.05)
        stroke(0.3, 0.14, 0.46, 0.14, dark, 0.06)
    elif kind == "bin":
        box(0.1, 0.1, 0.9, 1.5, color)
        box(0, 0, 1, 0.15, shade(color, 0.6))
        box(0.25, 0.5, 0.75, 0.9, shade(color, 1.3))
    elif kind == "tree":
        stroke(0.5, 0.6, 0.5, 2.2, (90, 66, 46), 0.16)
        for _ in range(9):
            x, y = rng.uniform(0, 0.6), rng.uniform(0, 0.6)
            box(x, y, x + 0.45, y + 0.45, shade((60, 105, 50), rng.uniform(0.6, 1.3)), True)
    else:  # bench
        for y in (0, 0.12, 0.34):
            box(0, y, 1, y + 0.08, color)
        for x in (0.1, 0.85):
            stroke(x, 0, x, 0.65, dark, 0.06)


def paint_occluder(canvas: Image.Image, rng: random.Random) -> None:
    """Draw an object that hides a part of the person: a pole, a car at the bottom, or a wall at the side."""
    width, height = canvas.size
    pen, kind = ImageDraw.Draw(canvas), rng.randrange(3)
    gray = rng.randint(40, 170)
    if kind == 0:
        x = rng.choice((rng.uniform(0.1, 0.35), rng.uniform(0.6, 0.85))) * width
        w = rng.uniform(0.05, 0.12) * width
        pen.rectangle((x, 0, x + w, height), fill=(gray, gray, gray + 4))
    elif kind == 1:
        size = rng.uniform(1.2, 2.0) * width
        left, top = rng.uniform(-0.6, 0) * width, rng.uniform(0.62, 0.8) * height
        paint_object(canvas, "car", rng, left, top, size)
    else:
        w = rng.uniform(0.12, 0.28) * width
        x = rng.choice((0.0, width - w))
        pen.rectangle((x, rng.choice((0, 0.5)) * height, x + w, height), fill=(gray + 10, gray, gray - 10))
