"""Drawing in body coordinates, and patterns of cloth.

Body coordinates: y = 0 at the top of the head, y = 1 at the soles, x = 0 on the body's axis, both in
body heights.
"""

import math

from PIL import Image, ImageDraw

from reidssl.synthetic.appearance import Color, Pose

Point = tuple[float, float]


class BodyPen:
    """Draws shapes in body coordinates on an RGB canvas.

    `center` (of the body's axis), `top` (of the head) and `height` (of the body) are in canvas pixels. `facing` is 1 for a body
    seen from the front and -1 from behind. `turn` is 1 for a person who walks to the right and -1 to the left.
    """

    def __init__(self, canvas: Image.Image, pose: Pose, center: float, top: float, height: float):
        self.canvas, self.pose = canvas, pose
        self.center, self.top, self.height = center, top, height
        self.facing, self.turn = math.cos(pose.yaw), math.sin(pose.yaw)
        self.frontal = abs(self.facing)
        self.mirror = 1 if self.facing >= 0 else -1  # from the front, the left hand is on the right side of the image
        self.near = 1 if self.turn >= 0 else -1
        # The depth of a body is about 0.62 times its width.
        self.depth = math.sqrt(self.facing**2 + (0.62 * self.turn) ** 2)
        self._draw = ImageDraw.Draw(canvas)

    def point(self, x: float, y: float) -> Point:
        """Convert body coordinates to canvas pixels. A leaning body is sheared about its hips."""
        return self.center + (x + self.pose.lean * (0.55 - y)) * self.height, self.top + y * self.height

    def polygon(self, points: list[Point], color: Color) -> None:
        """Draw a filled polygon."""
        self._draw.polygon([self.point(x, y) for x, y in points], fill=color)

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        """Draw a filled ellipse with center (x, y) and half-axes rx and ry."""
        cx, cy = self.point(x, y)
        rx, ry = rx * self.height, ry * self.height
        self._draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=color)

    def limb(self, start: Point, end: Point, width_start: float, width_end: float, color: Color) -> None:
        """Draw a tapering limb with a round end."""
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0) or 1e-6
        nx, ny = (y1 - y0) / length / 2, -(x1 - x0) / length / 2
        ax, ay, bx, by = nx * width_start, ny * width_start, nx * width_end, ny * width_end
        self.polygon([(x0 + ax, y0 + ay), (x1 + bx, y1 + by), (x1 - bx, y1 - by), (x0 - ax, y0 - ay)], color)
        self.ellipse(x1, y1, width_end / 2, width_end / 2, color)

    def cloth(self, outline: list[Point], pattern: str, base: Color, second: Color, count: int) -> None:
        """Fill the polygon `outline` with a pattern that moves, scales and turns with the body."""
        if pattern == "plain":
            self.polygon(outline, base)
            return
        points = [self.point(x, y) for x, y in outline]
        left, top = int(min(p[0] for p in points)), int(min(p[1] for p in points))
        width = int(max(p[0] for p in points)) - left + 2
        height = int(max(p[1] for p in points)) - top + 2
        patch = Image.new("RGB", (width, height), base)
        paint_pattern(patch, pattern, second, count, self.turn, self.mirror)
        mask = Image.new("1", (width, height))
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in points], fill=1)
        self.canvas.paste(patch, (left, top), mask)


def symmetric(x: float, right: list[Point]) -> list[Point]:
    """A closed outline that is symmetric about the vertical line at `x`. right: points (distance from the line, y)."""
    return [(x + half, y) for half, y in right] + [(x - half, y) for half, y in reversed(right)]


def between(start: Point, end: Point, share: float) -> Point:
    """The point at the fraction `share` of the way from `start` to `end`."""
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def paint_pattern(patch: Image.Image, pattern: str, color: Color, count: int, turn: float, mirror: int) -> None:
    """Paint `pattern` in `color` on `patch`, with `count` repetitions, shifted by `turn` and mirrored if `mirror` is -1."""
    pen, (w, h) = ImageDraw.Draw(patch), patch.size
    shift = turn * w * 0.25
    if pattern in ("horizontal", "checks"):
        step = h / (2 * count)
        for i in range(count):
            y = (2 * i + 1) * step
            pen.rectangle((0, y, w, max(y + step - 1, y)), fill=color)
    if pattern in ("vertical", "checks"):
        step = w / (2 * (count - 1))
        for i in range(-1, count + 1):
            x = 2 * i * step + shift
            pen.rectangle((x, 0, max(x + step - 1, x), h), fill=color)
    elif pattern == "dots":
        step = w / (count - 0.5)
        radius = 0.3 * step
        for row in range(int(h / step) + 1):
            for column in range(-1, count + 1):
                x, y = (column + 0.5 * (row % 2)) * step + shift % step, (row + 0.6) * step
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    elif pattern == "halves":
        pen.rectangle((0, h * 0.52, w, h), fill=color)
    elif pattern == "sides":
        edge = min(max(w * 0.5 + 1.6 * shift, 0), w)
        pen.rectangle((edge, 0, w, h) if mirror > 0 else (0, 0, edge, h), fill=color)
    elif pattern == "band":
        start = 0.18 + 0.07 * count
        pen.rectangle((0, h * start, w, h * (start + 0.2)), fill=color)
    elif pattern == "yoke":
        pen.rectangle((0, 0, w, h * 0.24), fill=color)
    elif pattern == "diagonal":
        step, rise = h / count, w * mirror
        for i in range(-2 * count, 3 * count, 2):
            y = i * step
            pen.polygon([(0, y), (w, y + rise), (w, y + rise + step), (0, y + step)], fill=color)
    elif pattern == "logo":
        size, middle = w * (0.2 + 0.02 * count), w / 2 + shift
        pen.rectangle((middle - size, h * 0.25, middle + size, h * 0.25 + 1.3 * size), fill=color)
