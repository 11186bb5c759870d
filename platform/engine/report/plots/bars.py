"""Bar charts: a histogram of scores by group, and results grouped by setting."""

import html
from collections.abc import Mapping, Sequence

import numpy as np

from platform.engine.report.plots.svg import (
    COLORS,
    INK,
    MUTED,
    axes,
    axis,
    document,
    fitted,
    line,
    short_number,
    text,
    text_width,
)

NARROW, TURNED_ROOM = 34.0, 70.0  # pixels


def histogram(
    groups: Mapping[str, np.ndarray],
    *,
    title: str,
    x_label: str,
    threshold: float | None = None,
    threshold_label: str = "",
    num_bins: int = 48,
    styles: Sequence[int] = (1, 2, 3, 4),
    size: tuple[float, float] = (1000, 300),
) -> str:
    """Histogram of several groups over common bins, with a translucent shape for each group, as inline SVG.

    Args:
        groups: name -> values float (N,), finite.
        threshold: position of a labeled vertical line; None: no line.
        styles: style index of each group.
        size: (width, height) in pixels.

    Raises ValueError if all groups are empty.
    """
    values = {name: np.asarray(group, np.float64) for name, group in groups.items() if len(group)}
    if not values:
        raise ValueError(f"nothing to draw in '{title}': every group is empty")
    together = np.concatenate(list(values.values()))
    low, high = float(together.min()), float(together.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, num_bins + 1)
    counts = {name: np.histogram(group, edges)[0] for name, group in values.items()}
    width, height = size
    y_axis = axis(0.0, float(max(count.max() for count in counts.values())), height - 42, 54)
    left = 18 + max(text_width(short_number(value), 10.5) for value in y_axis.ticks)
    x_axis = axis(low, high, left, width - 18, num_ticks=9, snap=False)
    parts = [text(4, 15, title, size=13, weight=600), *axes(x_axis, y_axis, x_label)]
    x = 4.0
    for (name, count), style in zip(counts.items(), styles, strict=False):
        color = COLORS[style % len(COLORS)]
        outline = [f"{x_axis(low):.1f},{y_axis(0):.1f}"]
        for index, number in enumerate(count):
            top = y_axis(float(number))
            outline += [f"{x_axis(edges[index]):.1f},{top:.1f}", f"{x_axis(edges[index + 1]):.1f},{top:.1f}"]
        outline.append(f"{x_axis(high):.1f},{y_axis(0):.1f}")
        style_text = f"fill:{color};fill-opacity:.32;stroke:{color};stroke-width:1.6;stroke-linejoin:round"
        label = f"{name} ({len(values[name]):,})"
        parts.append(f'<polygon points="{" ".join(outline)}" style="{style_text}"><title>{html.escape(label)}</title></polygon>')
        parts.append(f'<rect x="{x:.1f}" y="24" width="14" height="10" style="{style_text}"/>')
        parts.append(text(x + 20, 33, label))
        x += 32 + text_width(label)
    if threshold is not None:
        at = x_axis(min(max(threshold, low), high))
        before = at > (x_axis.start + x_axis.end) / 2
        parts += [
            line(at, y_axis.start, at, y_axis.end - 8, INK, 1.6, "5 3"),
            text(at + (-6 if before else 6), y_axis.end, threshold_label, anchor="end" if before else "start"),
        ]
    return document(width, height, parts, f"{title}: {', '.join(values)}")


def grouped_bars(
    groups: Sequence[tuple[str, Sequence[tuple[str, float, int]]]], *, title: str, size: tuple[float, float] = (640, 280)
) -> str:
    """Vertical bars for shares in [0, 1], labeled in per cent, as inline SVG.

    groups: (group name, [(bar name, value, style index)]). Raises ValueError if there are no values.
    """
    bars = [value for _, members in groups for _, value, _ in members]
    if not bars:
        raise ValueError(f"nothing to draw in '{title}': there are no values")
    width, height = size
    slot = (width - 60) / len(groups) * 0.8 / max(len(members) for _, members in groups)
    turned = slot < NARROW  # too narrow for labels side by side
    y_axis = axis(0.0, max(100 * max(bars), 1.0), height - (40 + TURNED_ROOM * turned), 44 + 12 * turned)
    left = 18 + max(text_width(short_number(value), 10.5) for value in y_axis.ticks)
    parts = [text(4, 15, title, size=13, weight=600)]
    for value in y_axis.ticks:
        parts.append(line(left, y_axis(value), width - 8, y_axis(value)))
        parts.append(text(left - 6, y_axis(value) + 3.5, short_number(value), size=10.5, anchor="end", color=MUTED))
    space = (width - 8 - left) / len(groups)
    for number, (group, members) in enumerate(groups):
        bar = min(64.0, space * 0.8 / max(len(members), 1))
        start = left + space * (number + 0.5) - bar * len(members) / 2
        for place, (name, value, style) in enumerate(members):
            x, top = start + place * bar, y_axis(100 * value)
            tip = html.escape(f"{group}, {name}: {100 * value:.1f} %")
            parts.append(
                f'<rect x="{x + 3:.1f}" y="{top:.1f}" width="{bar - 6:.1f}" height="{y_axis.start - top:.1f}" rx="2" '
                f'style="fill:{COLORS[style % len(COLORS)]}"><title>{tip}</title></rect>'
            )
            figure, middle = f"{100 * value:.1f}", x + bar / 2
            if turned:
                parts.append(text(middle + 3.5, top - 5, figure, size=9, turned=True))
                shown = fitted(name, TURNED_ROOM + 4, 9)
                parts.append(text(middle + 3.5, y_axis.start + 8, shown, size=9, anchor="end", color=MUTED, turned=True))
            else:
                parts.append(text(middle, top - 5, figure, anchor="middle", weight=600))
                shown = fitted(name, bar - 4, 10.5)
                parts.append(text(middle, y_axis.start + 14, shown, size=10.5, anchor="middle", color=MUTED))
        low = y_axis.start + 32 + TURNED_ROOM * turned
        parts.append(text(left + space * (number + 0.5), low, fitted(group, space - 6, 12), size=12, anchor="middle", weight=600))
    parts.append(line(left, y_axis.start, width - 8, y_axis.start, MUTED))
    return document(width, height, parts, f"{title}: {', '.join(group for group, _ in groups)}")
