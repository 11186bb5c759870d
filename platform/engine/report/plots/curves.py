"""Line charts of one metric for several runs."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from platform.engine.report.plots.svg import (
    COLORS,
    DASHES,
    MUTED,
    Axis,
    axes,
    axis,
    document,
    fitted,
    line,
    short_number,
    text,
    text_width,
)

MAX_POINTS = 300
MARKED_POINTS = 40  # series with at most this number of points have a marker with a tooltip at each point


@dataclass(frozen=True)
class Series:
    """A line of a chart: x (ascending) and y of equal length. A NaN in y interrupts the line.

    Raises ValueError for different lengths.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 1
    """Index of the color and dash pattern; 0 is meant for baselines."""
    faint: bool = False
    """A thin gray line without a legend, for one of many."""

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"series '{self.name}' has {len(self.x)} x values and {len(self.y)} y values: give one y per x")


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    reference: tuple[str, float] | None = None,
    x_low: float | None = None,
    y_low: float | None = None,
    size: tuple[float, float] = (430, 260),
) -> str:
    """Line chart of all series as inline SVG, with a legend if there are several.

    Args:
        reference: (label, value) of a horizontal reference line.
        x_low, y_low: the axes start at these values or below; None: at the smallest value.
        size: (width, height) in pixels.

    Long series are thinned to about MAX_POINTS points without losing peaks. Raises ValueError if no point is finite.
    """
    points = [[(float(x), float(y)) for x, y in zip(one.x, one.y, strict=True)] for one in series]
    finite = [(x, y) for one in points for x, y in one if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        raise ValueError(f"nothing to draw in '{title}': no series has a finite point")
    width, height = size
    legend, legend_rows = _legend([one for one in series if not one.faint], width)
    values = [y for _, y in finite] + ([reference[1]] if reference else []) + ([y_low] if y_low is not None else [])
    xs = [x for x, _ in finite] + ([x_low] if x_low is not None else [])
    y_axis = axis(min(values), max(values), height - 42, 34 + 16 * legend_rows)
    left = 18 + max(text_width(short_number(value), 10.5) for value in y_axis.ticks)
    x_axis = axis(min(xs), max(xs), left, width - 18, snap=False, whole=all(x == int(x) for x in xs))
    parts = [text(4, 15, title, size=13, weight=600), *legend, *axes(x_axis, y_axis, x_label)]
    if reference:
        parts += _reference(reference, x_axis, y_axis)
    for one, own in zip(series, points, strict=True):
        parts += _draw(one, own, x_axis, y_axis)
    return document(width, height, parts, f"{title}: {', '.join(one.name for one in series if not one.faint)}")


def thin(points: list[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """About `most` of the points: the lowest and highest of every section, in order, so that no peak is lost."""
    if len(points) <= most:
        return points
    buckets = max(1, most // 2)
    kept: list[tuple[float, float]] = []
    for number in range(buckets):
        bucket = points[number * len(points) // buckets : (number + 1) * len(points) // buckets]
        usable = [index for index, (_, y) in enumerate(bucket) if math.isfinite(y)]
        if not usable:
            kept.append(bucket[0])  # a non-finite point, which keeps the gap
            continue
        extremes = {min(usable, key=lambda index: bucket[index][1]), max(usable, key=lambda index: bucket[index][1])}
        kept += [bucket[index] for index in sorted(extremes)]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _draw(series: Series, points: list[tuple[float, float]], x_axis: Axis, y_axis: Axis) -> list[str]:
    color, dash = COLORS[series.style % len(COLORS)], DASHES[series.style % len(DASHES)]
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in thin(points):
        if math.isfinite(x) and math.isfinite(y):
            stretches[-1].append((x, y))
        elif stretches[-1]:
            stretches.append([])
    parts = []
    for stretch in filter(None, stretches):
        path = " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in stretch)
        style = f"fill:none;stroke:{color};stroke-width:2;stroke-dasharray:{dash};stroke-linejoin:round"
        if series.faint:
            style = f"fill:none;stroke:{MUTED};stroke-width:1;stroke-opacity:.45;stroke-linejoin:round"
        parts.append(f'<polyline points="{path}" style="{style}"><title>{html.escape(series.name)}</title></polyline>')
    if len(points) <= MARKED_POINTS and not series.faint:
        for x, y in points:
            if math.isfinite(x) and math.isfinite(y):
                tip = html.escape(f"{series.name}: {y:.5g} at {short_number(x)}")
                parts.append(
                    f'<circle cx="{x_axis(x):.1f}" cy="{y_axis(y):.1f}" r="2.6" style="fill:{color}">'
                    f"<title>{tip}</title></circle>"
                )
    return parts


def _reference(reference: tuple[str, float], x_axis: Axis, y_axis: Axis) -> list[str]:
    label, value = reference
    height = y_axis(value)
    return [
        line(x_axis.start, height, x_axis.end, height, MUTED, 1.2, "3 3"),
        text(x_axis.end, height - 4, label, size=10, anchor="end", color=MUTED),
    ]


def _legend(series: Sequence[Series], width: float) -> tuple[list[str], int]:
    """(elements, number of rows) of the legend under the title; ([], 0) for a single series."""
    if len(series) < 2:
        return [], 0
    parts, x, row = [], 4.0, 0
    for one in series:
        name = fitted(one.name, width - 40)
        needed = 26 + text_width(name, 11) + 12
        if x > 4 and x + needed > width:
            x, row = 4.0, row + 1
        y = 31 + 16 * row
        color, dash = COLORS[one.style % len(COLORS)], DASHES[one.style % len(DASHES)]
        parts += [line(x, y - 4, x + 20, y - 4, color, 2.4, dash), text(x + 26, y, name)]
        x += needed
    return parts, row + 1
