"""Drawing of what a person carries: a backpack, a shoulder bag, a handbag, or a case on wheels."""

from reidssl.synthetic.appearance import Appearance, shade
from reidssl.synthetic.pen import BodyPen, Point, symmetric


def draw_backpack(pen: BodyPen, a: Appearance) -> None:
    """Draw a backpack with a pocket. It is fully visible from behind and partly from the side."""
    half = 0.088 * a.bag_size * max(pen.frontal, 0.55)
    x, bottom = -pen.turn * (a.waist * 0.75 + 0.035), 0.19 + 0.24 * a.bag_size
    pen.polygon(symmetric(x, [(half * 0.8, 0.18), (half, 0.22), (half, bottom)]), a.bag_color)
    pocket = [(half * 0.7, bottom - 0.11), (half * 0.7, bottom - 0.02)]
    pen.polygon(symmetric(x, pocket), shade(a.bag_color, 0.7))


def draw_straps(pen: BodyPen, a: Appearance) -> None:
    """Draw the straps of a backpack, which are visible from the front."""
    x = a.shoulder * 0.55 * pen.depth
    for side in (-1, 1):
        pen.limb((side * x, 0.17), (side * x * 1.15, 0.33), 0.024, 0.022, a.bag_color)


def draw_shoulder_bag(pen: BodyPen, a: Appearance) -> None:
    """Draw a bag at the hip with a strap across the body."""
    side, half = a.bag_side * pen.mirror, 0.055 * a.bag_size
    x = side * a.hip * max(pen.frontal, 0.3) * 1.1
    start = (-side * a.shoulder * 0.6 * pen.depth, 0.165)
    pen.limb(start, (x, 0.45), 0.02, 0.02, shade(a.bag_color, 0.8))
    pen.polygon(symmetric(x, [(half, 0.43), (half, 0.43 + 1.8 * half)]), a.bag_color)


def draw_hand_luggage(pen: BodyPen, a: Appearance, hand: Point) -> None:
    """Draw a handbag below the hand, or a case on the ground beside it."""
    x, y = hand
    if a.bag == "case":
        x += 0.06 * (1 if x >= 0 else -1)
        pen.limb((x, y), (x, 0.75), 0.012, 0.012, (60, 60, 60))
        pen.polygon(symmetric(x, [(0.06, 0.72), (0.06, 0.98)]), a.bag_color)
        return
    half = 0.05 * a.bag_size
    pen.polygon(symmetric(x, [(half * 0.6, y), (half, y + 0.05), (half * 1.05, y + 0.14)]), a.bag_color)
