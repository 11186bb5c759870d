"""The background of a synthetic person: wall and ground with clutter, in the colors of the camera.

The palette belongs to the camera, but the background is drawn at random for every image. With one fixed background per camera, a
model would learn to distinguish cameras and nothing about people.
"""

import random

from PIL import Image, ImageDraw

from reidssl.synthetic.appearance import shade
from reidssl.synthetic.camera import Camera

NEUTRAL = (126, 126, 122)


def paint_place(canvas: Image.Image, camera: Camera, rng: random.Random, strength: float = 1.0) -> None:
    """Paint a background of wall, ground and clutter in the camera's colors over the whole `canvas`.

    strength: contrast of the background, in [0, 1]; with 0, every background is the same gray.
    """
    _paint(canvas, camera, rng)
    canvas.paste(Image.blend(Image.new("RGB", canvas.size, NEUTRAL), canvas, strength))


def _paint(canvas: Image.Image, camera: Camera, rng: random.Random) -> None:
    width, height = canvas.size
    pen = ImageDraw.Draw(canvas)
    horizon = int((camera.horizon + rng.uniform(-0.2, 0.2)) * height)
    wall, ground = rng.choice(camera.palette), rng.choice(camera.palette)
    wall, ground = shade(wall, rng.uniform(0.7, 1.3)), shade(ground, rng.uniform(0.7, 1.3))
    pen.rectangle((0, 0, width, horizon), fill=wall)
    pen.rectangle((0, horizon, width, height), fill=ground)
    style, step = rng.randrange(5), rng.uniform(0.08, 0.3) * width
    line, start = shade(wall, rng.choice((0.75, 0.85, 1.2))), rng.uniform(-1, 0) * step
    if style == 0:  # bricks or slabs
        for row in range(int(horizon / (step * 0.5)) + 1):
            pen.line((0, row * step * 0.5, width, row * step * 0.5), fill=line)
    if style in (0, 1):  # panels
        for column in range(int(width / step) + 2):
            pen.line((start + column * step, 0, start + column * step, horizon), fill=line, width=1 + style)
    elif style == 2:  # windows
        for row in range(3):
            for column in range(-1, int(width / step / 1.6) + 1):
                x, y = start + column * step * 1.6, (row + 0.2) * height * 0.2
                if y + height * 0.13 < horizon:
                    pen.rectangle((x, y, x + step, y + height * 0.13), fill=line)
    elif style == 3:  # leaves
        for _ in range(14):
            x, y, r = rng.uniform(0, width), rng.uniform(0, horizon), rng.uniform(0.05, 0.2) * width
            leaf = shade((70, 100, 60), rng.uniform(0.5, 1.3))
            pen.ellipse((x - r, y - r, x + r, y + r), fill=leaf)
    for _ in range(rng.randrange(4)):  # ground joints, curbs, lane marks
        y = rng.uniform(horizon, height)
        pen.line(
            (0, y, width, y + rng.uniform(-0.1, 0.1) * height),
            fill=shade(ground, rng.choice((0.7, 1.3))),
            width=rng.randint(1, 4),
        )
    for _ in range(rng.randrange(4)):
        color = shade(rng.choice(camera.palette), rng.uniform(0.4, 1.4))
        x, w = rng.uniform(-0.2, 1) * width, rng.uniform(0.08, 0.5) * width
        y, h = horizon - rng.uniform(0, 0.5) * height, rng.uniform(0.1, 0.45) * height
        if rng.random() < 0.3:
            pen.ellipse((x, y, x + w, y + h), fill=color)
        else:
            pen.rectangle((x, y, x + w, y + h), fill=color)
