"""Heat maps: the mean of a metric for every pair of values of two settings."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from platform.engine.report.plots.svg import COLORS, INK, MUTED, document, fitted, short_number, text, text_width

CELL, HIGH = 64.0, 26.0
LEFT = 150.0


def heat_map(
    cells: Mapping[tuple[Any, Any], Sequence[float]], *, title: str, row_name: str, column_name: str, width: float = 1000
) -> str:
    """Heat map as inline SVG. A cell has the mean in per cent; its tooltip has the number of trials.

    cells: (row value, column value) -> shares in [0, 1]; pairs may be missing. Raises ValueError without cells.
    """
    if not cells:
        raise ValueError(f"nothing to draw in '{title}': there are no cells")
    rows, columns = (ordered([pair[side] for pair in cells]) for side in (0, 1))
    means = {pair: sum(values) / len(values) for pair, values in cells.items()}
    low, high = min(means.values()), max(means.values())
    labels = [_short(value) for value in columns]
    cell = min(max(CELL, *(text_width(label, 10) + 10 for label in labels)), (width - LEFT) / len(columns))
    top = 58.0
    parts = [
        text(4, 15, title, size=13, weight=600),
        text(LEFT, 34, fitted(column_name, max(cell * len(columns), 160), 11), color=MUTED),
        text(LEFT - 8, top - 8, fitted(row_name, LEFT - 16, 11), anchor="end", color=MUTED),
    ]
    for number, label in enumerate(labels):
        parts.append(text(LEFT + cell * (number + 0.5), top - 8, fitted(label, cell - 6, 10), size=10, anchor="middle"))
    for line_number, row in enumerate(rows):
        y = top + HIGH * line_number
        parts.append(text(LEFT - 8, y + HIGH / 2 + 3.5, fitted(_short(row), LEFT - 16, 10), size=10, anchor="end"))
        for number, column in enumerate(columns):
            if (row, column) not in means:
                continue
            value = means[row, column]
            place = (value - low) / (high - low) if high > low else 0.5
            tip = html.escape(f"{row_name}={row}, {column_name}={column}: {100 * value:.1f} ({len(cells[row, column])} trials)")
            parts.append(
                f'<rect x="{LEFT + cell * number + 1:.1f}" y="{y + 1:.1f}" width="{cell - 2:.1f}" height="{HIGH - 2:.1f}" rx="2" '
                f'style="fill:{COLORS[1]};fill-opacity:{0.08 + 0.6 * place:.2f}"><title>{tip}</title></rect>'
            )
            if cell >= 30:
                parts.append(
                    text(LEFT + cell * (number + 0.5), y + HIGH / 2 + 4, f"{100 * value:.1f}", anchor="middle", color=INK)
                )
    across = max(LEFT + cell * len(columns), text_width(title, 13) * 1.1) + 4
    return document(across, top + HIGH * len(rows) + 6, parts, title)


def ordered(values: Sequence[Any]) -> list[Any]:
    """The different values: numbers ascending, then texts."""
    return sorted(set(values), key=lambda value: (isinstance(value, str), value if not isinstance(value, str) else 0, str(value)))


def _short(value: Any) -> str:
    return short_number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
