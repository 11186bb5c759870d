"""Elements of all charts: colors, number formats, axes with round ticks, escaped text."""

import html
import math
from dataclasses import dataclass

# Palette after Okabe and Ito, which is distinguishable with all common kinds of color vision; 0 is for baselines.
COLORS = (
    "var(--plot-0,#5f6b7a)",
    "var(--plot-1,#0072b2)",
    "var(--plot-2,#d55e00)",
    "var(--plot-3,#009e73)",
    "var(--plot-4,#aa4499)",
    "var(--plot-5,#b8860b)",
)
# Lines also differ by their dashes, for gray prints.
DASHES = ("2 3", "none", "7 3", "9 3 2 3", "4 2", "1 2")
INK, MUTED, GRID, PAPER = "var(--ink,#1b1f24)", "var(--muted,#5b6470)", "var(--grid,#dfe3e8)", "var(--paper,#ffffff)"
FONT = "font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"
RIGHT, WRONG = "#1a8f4a", "#c62828"


@dataclass(frozen=True)
class Axis:
    """A linear map from values in [low, high] to pixels from `start` to `end`, with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def axis(
    low: float, high: float, start: float, end: float, *, num_ticks: int = 5, snap: bool = True, whole: bool = False
) -> Axis:
    """An axis over [low, high] in values and from `start` to `end` in pixels.

    Args:
        num_ticks: approximate number of ticks.
        snap: move the ends outwards to ticks.
        whole: ticks are whole numbers.

    Equal ends are spread a little. Raises ValueError for non-finite ends.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"an axis needs finite ends: got {low}, {high}")
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
        spread = abs(low) * 0.05
        low, high = (low - spread, high + spread) if spread else (0.0, 1.0)
    raw = (high - low) / max(num_ticks - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if snap:
        low, high = first * step, last * step
    slack = 1e-9 * (high - low)
    ticks = tuple(0.0 if k == 0 else k * step for k in range(first, last + 1) if low - slack <= k * step <= high + slack)
    return Axis(low, high, start, end, ticks)


def short_number(value: float) -> str:
    """A number as a short axis label: 1.2M, 35k, 0.996, 5e-5."""
    size = abs(value)
    if size >= 1e9:
        return f"{value / 1e9:.4g}G"
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.6g}"


def text(
    x: float,
    y: float,
    content: str,
    *,
    size: float = 11,
    anchor: str = "start",
    color: str = INK,
    weight: int = 400,
    turned: bool = False,
) -> str:
    """A text element. `content` is escaped."""
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    style = f"fill:{color};font-size:{size}px;font-weight:{weight};text-anchor:{anchor}"
    return f'<text x="{x:.1f}" y="{y:.1f}" style="{style}"{turn}>{html.escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, color: str = GRID, width: float = 1, dash: str = "none") -> str:
    style = f"stroke:{color};stroke-width:{width};stroke-dasharray:{dash}"
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="{style}"/>'


def axes(x: Axis, y: Axis, x_label: str) -> list[str]:
    """The elements of both axes: horizontal grid lines with their values, the base line, x ticks and the x label."""
    parts = []
    for value in y.ticks:
        parts.append(line(x.start, y(value), x.end, y(value)))
        parts.append(text(x.start - 6, y(value) + 3.5, short_number(value), size=10.5, anchor="end", color=MUTED))
    parts.append(line(x.start, y.start, x.end, y.start, MUTED))
    for value in x.ticks:
        parts.append(line(x(value), y.start, x(value), y.start + 4, MUTED))
        parts.append(text(x(value), y.start + 16, short_number(value), size=10.5, anchor="middle", color=MUTED))
    parts.append(text((x.start + x.end) / 2, y.start + 32, x_label, size=10.5, anchor="middle", color=MUTED))
    return parts


def document(width: float, height: float, parts: list[str], description: str) -> str:
    """The svg element around `parts`. It scales with its column, up to its own size. description: its accessible label."""
    label = html.escape(description, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}" '
        f'style="width:100%;max-width:{width:g}px;height:auto;{FONT}">{"".join(parts)}</svg>'
    )


def fitted(content: str, room: float, size: float = 11) -> str:
    """`content`, cut in its middle if it is wider than `room` pixels."""
    if text_width(content, size) <= room:
        return content
    kept = max(int(room / (0.56 * size)) - 1, 2)
    return f"{content[: kept // 2]}…{content[len(content) - (kept - kept // 2) :]}"


def text_width(content: str, size: float = 11) -> float:
    """Approximate width in pixels of a sans-serif text, for legends and labels."""
    return 0.56 * size * len(content)
