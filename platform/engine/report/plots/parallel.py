"""Parallel coordinates: one line per trial through an axis per setting, colored by a metric."""

import html
import math
import statistics
from collections.abc import Sequence
from typing import Any

from platform.engine.report.plots.svg import COLORS, INK, MUTED, PAPER, axis, document, fitted, line, short_number, text

LOG_SPAN = 50
LABEL_ROOM = 13.0  # smallest distance of two labels on an axis, in pixels


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether positive numbers span more than a factor of LOG_SPAN, and most of them lie in the lowest fifth of their range."""
    low, high = min(values), max(values)
    return low > 0 and high / low > LOG_SPAN and statistics.median(values) < high / 5


def positions(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Place of each value on an axis from 0 to 1, and the axis labels [(place, label)].

    Numbers of many different values are linear or logarithmic (`is_logarithmic`). Anything else has a place for each value, in
    order.
    """
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    distinct: list[Any] = sorted(set(values)) if numeric else sorted({str(value) for value in values})
    if numeric and len(distinct) > 8 and is_logarithmic(distinct):
        low, high = math.log10(distinct[0]), math.log10(distinct[-1])
        powers = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
        labels = [((math.log10(value) - low) / (high - low), short_number(value)) for value in powers]
        return [(math.log10(value) - low) / (high - low) for value in values], labels
    if numeric and len(distinct) > 8:
        scale = axis(float(distinct[0]), float(distinct[-1]), 0.0, 1.0, snap=False)
        ends = [(0.0, short_number(distinct[0])), (1.0, short_number(distinct[-1]))]
        inner = [(scale(tick), short_number(tick)) for tick in scale.ticks if 0.08 < scale(tick) < 0.92]
        return [scale(float(value)) for value in values], ends[:1] + inner + ends[1:]
    place = {value: (number + 0.5) / len(distinct) for number, value in enumerate(distinct)}
    labels = [(place[value], short_number(value) if numeric else str(value)) for value in distinct]
    return [place[value if numeric else str(value)] for value in values], labels


def parallel_coordinates(
    trials: Sequence[tuple[dict[str, Any], float, str]], *, title: str, metric: str, size: tuple[float, float] = (1000, 340)
) -> str:
    """Parallel coordinates as inline SVG: an axis for every setting and the metric at the right.

    trials: [(setting -> value, metric, tooltip)], all with the same settings. The best trials are drawn last and strongest.
    Labels of an axis that would overlap are left out. Raises ValueError without trials.
    """
    if not trials:
        raise ValueError(f"nothing to draw in '{title}': there are no trials")
    names = list(trials[0][0])
    width, height = size
    top, bottom, left, right = 52.0, height - 14, 150.0, width - 60
    step = (right - left) / len(names)
    columns = [positions([values[name] for values, _, _ in trials]) for name in names]
    columns.append(positions_of_metric([value for _, value, _ in trials]))
    parts = [text(4, 15, title, size=13, weight=600)]
    order = sorted(range(len(trials)), key=lambda number: trials[number][1])
    ranks = {number: place / max(len(order) - 1, 1) for place, number in enumerate(order)}
    for number in order:
        points = " ".join(
            f"{left + step * column:.1f},{bottom - (bottom - top) * places[number]:.1f}"
            for column, (places, _) in enumerate(columns)
        )
        rank = ranks[number]
        look = f"stroke-width:{1 + 1.4 * rank**4:.1f};stroke-opacity:{0.12 + 0.88 * rank**2:.2f}"
        style = f"fill:none;stroke:{COLORS[1]};{look}"
        parts.append(f'<polyline points="{points}" style="{style}"><title>{html.escape(trials[number][2])}</title></polyline>')
    for column, (name, (_, labels)) in enumerate(zip([*names, metric], columns, strict=True)):
        x = left + step * column
        parts += [line(x, top, x, bottom, MUTED, 1.2)]
        head = fitted(name, 146 + step / 2 - 8 if column == 0 else step - 12 if column < len(names) else 110, 11)
        anchor = "start" if column == 0 else "end" if column == len(names) else "middle"
        parts.append(
            text(x + (-146 if column == 0 else 54 if column == len(names) else 0), top - 12, head, anchor=anchor, weight=600)
        )
        last = None
        for place, label in labels:
            y = bottom - (bottom - top) * place
            if last is not None and abs(last - y) < LABEL_ROOM:
                continue
            last = y
            parts.append(line(x - 3, y, x + 3, y, INK, 1))
            shown = fitted(label, 138 if column == 0 else min(step - 16, 150), 10)
            after = column == len(names)
            parts.append(_label(x + (7 if after else -7), y + 3.5, shown, "start" if after else "end"))
    return document(width, height, parts, f"{title}: {len(trials)} trials over {', '.join(names)}")


def positions_of_metric(values: Sequence[float]) -> tuple[list[float], list[tuple[float, str]]]:
    """As `positions`, for shares in [0, 1] that are labeled in per cent."""
    scale = axis(100 * min(values), 100 * max(values), 0.0, 1.0)
    return [scale(100 * value) for value in values], [(scale(tick), short_number(tick)) for tick in scale.ticks]


def _label(x: float, y: float, content: str, anchor: str) -> str:
    """A label with a halo in the color of the page, readable on top of the lines."""
    drawn = text(x, y, content, size=10, anchor=anchor, color=INK)
    return drawn.replace('style="', f'style="paint-order:stroke;stroke:{PAPER};stroke-width:3px;', 1)
