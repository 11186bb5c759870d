"""Ranking strips: the first gallery images of a query, each framed as right or wrong."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from platform.engine.report.plots.picture_strip import data_uri
from platform.engine.report.plots.svg import MUTED, RIGHT, WRONG, document, text

TILE_HEIGHT, GAP, FRAME = 136.0, 10.0, 3.5


@dataclass(frozen=True)
class Match:
    """An entry of a ranking."""

    key: str
    image: bytes | None
    """JPEG bytes; None if the image is not available."""
    correct: bool


def ranking_strip(matches: Sequence[Match], *, places: int = 10, aspect: float = 2.0) -> str:
    """A ranking as inline SVG, best match first. Right matches have a green frame and a check, wrong ones a red one and a cross.

    Args:
        places: width of the strip in images, so that strips of different lengths align.
        aspect: height / width of a tile.
    """
    tile = TILE_HEIGHT / aspect
    width = places * (tile + GAP) + 4
    height = TILE_HEIGHT + 24
    parts = []
    for number, match in enumerate(matches[:places]):
        x = 4 + number * (tile + GAP)
        parts += _tile(match, x, tile, number + 1)
    right = sum(match.correct for match in matches[:places])
    return document(width, height, parts, f"{right} of {min(len(matches), places)} images are of the query's person")


def _tile(match: Match, x: float, tile: float, place: int) -> list[str]:
    color = RIGHT if match.correct else WRONG
    verdict = "right" if match.correct else "wrong"
    tip = html.escape(f"{place}. {verdict}: {match.key}")
    frame = f"fill:none;stroke:{color};stroke-width:{FRAME}"
    shape = f'x="{x:.1f}" y="3" width="{tile:.1f}" height="{TILE_HEIGHT:g}"'
    parts = [f"<g><title>{tip}</title>"]
    if match.image is None:
        parts.append(f'<rect {shape} style="fill:var(--grid,#dfe3e8)"/>')
        parts.append(text(x + tile / 2, 3 + TILE_HEIGHT / 2, "no image", size=9, anchor="middle", color=MUTED))
    else:
        parts.append(f'<image {shape} preserveAspectRatio="none" href="{data_uri(match.image)}"/>')
    parts.append(f'<rect {shape} rx="1.5" style="{frame}"/>')
    parts += [
        _mark(x + tile - 6, 3 + TILE_HEIGHT - 6, match.correct, color),
        text(x + tile / 2, TILE_HEIGHT + 19, str(place), size=10, anchor="middle", color=MUTED),
        "</g>",
    ]
    return parts


def _mark(x: float, y: float, correct: bool, color: str) -> str:
    """A check or a cross in a disc, which is readable without color."""
    drawn = "M-3.6 .2 L-1 3 L3.8 -2.8" if correct else "M-3 -3 L3 3 M3 -3 L-3 3"
    return (
        f'<g transform="translate({x:.1f} {y:.1f})"><circle r="7.5" style="fill:{color};stroke:#fff;stroke-width:1.2"/>'
        f'<path d="{drawn}" style="fill:none;stroke:#fff;stroke-width:2;stroke-linecap:round"/></g>'
    )
