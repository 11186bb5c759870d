"""Drawing of a person with an `Appearance` in a `Pose`, in order from back to front. Lengths are in body heights."""

import math

from PIL import Image

from reidssl.synthetic.appearance import Appearance, Pose, shade
from reidssl.synthetic.carried import draw_backpack, draw_hand_luggage, draw_shoulder_bag, draw_straps
from reidssl.synthetic.pen import BodyPen, Point, between, symmetric


def draw_person(canvas: Image.Image, a: Appearance, pose: Pose, center: float, top: float, height: float) -> None:
    """Draw one person on an RGB canvas. `center`, `top` and `height` give the position of the body in canvas pixels."""
    pen = BodyPen(canvas, pose, center, top, height)
    front = pen.facing > -0.25
    hands: dict[int, Point] = {}
    if a.bag == "backpack" and front:
        draw_backpack(pen, a)
    if a.hair_style == "long" and pen.facing > 0:
        _long_hair(pen, a, 0.06)
    hands[-pen.near] = _arm(pen, a, -pen.near)
    _leg(pen, a, -pen.near)
    _leg(pen, a, pen.near)
    _hips(pen, a)
    _torso(pen, a)
    if a.bag == "shoulder":
        draw_shoulder_bag(pen, a)
    _head(pen, a)
    if a.hair_style == "long" and pen.facing <= 0:
        _long_hair(pen, a, 0.10)
    hands[pen.near] = _arm(pen, a, pen.near)
    if a.bag == "backpack":
        draw_straps(pen, a) if front else draw_backpack(pen, a)
    if a.bag in ("handbag", "case"):
        draw_hand_luggage(pen, a, hands[a.bag_side * pen.mirror])


def _arm(pen: BodyPen, a: Appearance, side: int) -> Point:
    """Draw one arm, on the left (-1) or right (1) `side` of the image. Returns the position of the hand."""
    pose = pen.pose
    swing = 0.55 * pose.swing * math.sin(pose.phase + (math.pi if side > 0 else 0))
    # Seen from the side, an arm swings across the image. Seen from the front, it hangs a little outwards.
    angle = swing * pen.turn + 0.10 * side * pen.frontal
    bend = pose.arm_bend * (pen.turn if abs(pen.turn) > 0.4 else -0.4 * side)
    shoulder = (side * a.shoulder * 0.92 * pen.frontal + 0.01 * pen.turn, 0.195)
    elbow = (shoulder[0] + 0.165 * math.sin(angle), 0.195 + 0.165 * math.cos(angle))
    hand = (elbow[0] + 0.155 * math.sin(angle + bend), elbow[1] + 0.155 * math.cos(angle + bend))
    light = 0.96 if side == pen.near else 0.86
    skin, sleeve, width = shade(a.skin, light), shade(a.sleeve_color, light), a.arm_width
    pen.limb(shoulder, elbow, width, width * 0.85, sleeve if a.sleeve >= 0.45 else skin)
    pen.limb(elbow, hand, width * 0.85, width * 0.6, skin)
    if a.sleeve > 0.5:
        pen.limb(elbow, between(elbow, hand, (a.sleeve - 0.5) * 1.8), width * 0.88, width * 0.75, sleeve)
    return hand


def _leg(pen: BodyPen, a: Appearance, side: int) -> None:
    pose, width = pen.pose, a.leg_width
    wave = math.sin(pose.phase + (0 if side > 0 else math.pi)) * pose.swing
    angle, lift = 0.42 * wave * pen.turn, 0.02 * max(wave, 0) * pen.frontal
    knee_y = (a.hip_height + 0.97) / 2 + 0.01
    hip = (side * a.hip * 0.5 * pen.frontal, a.hip_height + 0.02)
    knee = (hip[0] + (knee_y - hip[1]) * math.tan(angle) + 0.01 * side * pen.frontal, knee_y - lift)
    trailing = 0.35 * max(-wave, 0) * pen.turn
    ankle = (knee[0] + (0.96 - knee_y) * math.tan(angle - trailing), 0.96 - 2 * lift)
    light = 1.0 if side == pen.near else 0.88
    skin, cloth, second = shade(a.skin, light), shade(a.lower, light), shade(a.lower_second, light)
    shoes = shade(a.shoes, light)

    pen.limb(hip, knee, width * 1.1, width * 0.75, skin)
    pen.limb(knee, ankle, width * 0.75, width * 0.5, skin)
    covered: list[tuple[Point, Point]] = []
    if a.lower_kind == "trousers":
        wide = width * a.lower_width
        pen.limb(hip, knee, max(width * 1.15, wide), wide * 0.85, cloth)
        pen.limb(knee, ankle, wide * 0.85, wide * 0.72, cloth)
        covered = [(hip, knee), (knee, ankle)]
        if a.lower_pattern == "cuffs":
            pen.limb(between(ankle, knee, 0.3), ankle, wide * 0.8, wide * 0.75, second)
    elif a.lower_kind == "shorts":
        end = between(hip, knee, min((a.lower_end - hip[1]) / (knee[1] - hip[1]), 1.0))
        pen.limb(hip, end, width * 1.15, width * (0.7 + 0.4 * a.lower_width), cloth)
        covered = [(hip, end)]
    if a.lower_pattern == "stripe":
        off = side * width * 0.25 * pen.frontal
        for (x0, y0), (x1, y1) in covered:
            pen.limb((x0 + off, y0), (x1 + off, y1), width * 0.28, width * 0.26, second)
    if a.boots:
        pen.limb(between(ankle, knee, 0.45), ankle, width * 0.8, width * 0.7, shoes)
    pen.limb(ankle, (ankle[0] + 0.035 * pen.turn + 0.006 * side, ankle[1] + 0.025), 0.045, 0.04, shoes)


def _hips(pen: BodyPen, a: Appearance) -> None:
    half, y = a.hip * pen.depth, a.hip_height
    if a.lower_kind != "skirt":
        pen.polygon(symmetric(0, [(half * 0.9, y - 0.07), (half, y + 0.045)]), a.lower)
        return
    wide = half * (0.9 + 0.35 * a.lower_width) + 0.03 * pen.pose.swing * abs(pen.turn)
    style = {"plain": "plain", "stripe": "vertical", "checks": "checks", "cuffs": "halves"}[a.lower_pattern]
    outline = symmetric(0, [(half * 0.9, y - 0.06), (wide, a.lower_end)])
    pen.cloth(outline, style, a.lower, a.lower_second, 5)


def _torso(pen: BodyPen, a: Appearance) -> None:
    d = pen.depth
    shoulder, waist, hem = a.shoulder * d, a.waist * d, a.hip * d * a.flare
    waist_y = 0.195 + (a.hip_height - 0.195) * 0.62
    right = [(0.03, 0.148), (shoulder, 0.178), (shoulder * 0.96, 0.26), (waist, waist_y), (hem, a.hem)]
    pattern = a.pattern
    if pattern == "logo" and not (pen.facing > 0.2 or (pen.facing < -0.2 and a.back_print)):
        pattern = "plain"
    pen.cloth(symmetric(0, right), pattern, a.upper, a.upper_second, a.pattern_count)
    shift = 0.5 * pen.turn * shoulder
    if a.open_jacket and pen.facing > -0.1:
        half = 0.036 * max(pen.facing, 0.35)
        pen.polygon(symmetric(shift, [(half * 0.7, 0.15), (half * 1.5, a.hem)]), a.lower_second)
    if a.scarf:
        pen.polygon(symmetric(0, [(0.055 * d, 0.135), (0.07 * d, 0.18)]), a.bag_color)
        if pen.facing > 0:
            pen.limb((shift, 0.17), (shift + 0.01, 0.30), 0.04, 0.035, a.bag_color)


def _head(pen: BodyPen, a: Appearance) -> None:
    r, style = a.head, a.hair_style
    x, y = 0.015 * pen.turn, a.head * 1.15
    pen.polygon(symmetric(0, [(0.022, 0.10), (0.03, 0.165)]), shade(a.skin, 0.85))
    if style == "afro":
        pen.ellipse(x, y * 0.95, r * 1.25, r * 1.2, a.hair)
    if style == "bun":
        pen.ellipse(x - 0.03 * pen.turn, 0.012, r * 0.42, r * 0.42, a.hair)
    pen.ellipse(x, y, r * 0.82, r * 1.12, a.skin)
    if style != "bald":
        if pen.facing < -0.25:
            pen.ellipse(x, y * 0.95, r * 0.88, r * 1.05, a.hair)
        else:  # the hairline; in profile, the hair is at the back of the head
            pen.ellipse(x - 0.4 * r * pen.turn, y - r * 0.55, r * 0.82, r * 0.62, a.hair)
            if abs(pen.turn) > 0.5:
                pen.ellipse(x - 0.55 * r * pen.turn, y - 0.1 * r, r * 0.5, r * 0.85, a.hair)
    if style == "bob":
        for side in (-1, 1):
            strand = x + side * r * 0.75 * pen.frontal - 0.5 * r * pen.turn
            pen.ellipse(strand, y + 0.2 * r, r * 0.34, r * 0.95, a.hair)
    if a.hat == "none":
        return
    pen.polygon(symmetric(x, [(r * 0.7, y - r * 1.15), (r * 0.92, y - 0.25 * r)]), a.hat_color)
    if a.hat == "cap" and pen.facing > -0.4:
        pen.ellipse(x + r * 0.8 * pen.turn, y - 0.25 * r, r * 0.9, r * 0.2, shade(a.hat_color, 0.7))
    if a.hat == "brim":
        pen.ellipse(x, y - 0.3 * r, r * 1.6, r * 0.25, shade(a.hat_color, 0.8))


def _long_hair(pen: BodyPen, a: Appearance, half: float) -> None:
    half *= max(pen.depth, 0.7) * 0.75
    pen.polygon(symmetric(-0.04 * pen.turn, [(half, 0.06), (half * 1.1, 0.235)]), a.hair)
