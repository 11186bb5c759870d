"""Lines of MOTChallenge files (motchallenge.net): detections, tracker outputs and ground truth.

    detections     frame, track, left, top, width, height[, score[, x, y, z]]               score may be empty: 1
    ground truth   frame, track, left, top, width, height, flag, class, visibility          MOT16 and later
                   frame, track, left, top, width, height, flag, x, y, z                    2015

Fields are separated by commas, or by white space if the line has no comma. Empty fields between commas count as fields. Frames
are numbered from 1. Flag 0 marks boxes that the benchmark does not evaluate, class 1 is a pedestrian, and visibility is the
visible fraction of the person. A line that cannot be read is rejected, with its number, field and value in the reason. So is a
line of ground truth that is not a visible person.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from reidssl.data.labels import LARGEST, shown
from reidssl.data.mot import CropConfig, Detections

FIELDS = ("frame", "track", "left", "top", "width", "height")
LARGEST_TRACK = 2**63 - 1
LARGEST_PIXEL = 1_000_000  # beyond the largest frame of any camera
GROUND_TRUTH, DETECTIONS = "ground_truth", "detections"


class ParsedLines(NamedTuple):
    """The content of a MOTChallenge file."""

    detections: Detections
    form: str
    """Format in which the lines were read, GROUND_TRUTH or DETECTIONS."""
    aside: list[tuple[int, str]]
    """(line number, reason) of the rejected lines. A reason begins with its kind and a colon."""


def parse_lines(text: str, config: CropConfig) -> ParsedLines:
    """Read the text of a MOTChallenge file in the format `config.form`.

    `config.classes` and `config.min_visibility` apply to ground truth. With form "auto", a file is ground truth if most of its
    lines have nine fields whose last three can be flag, class and visibility. It is also ground truth (2015) if most lines have
    ten fields and a track, and their seventh fields are 0 or 1 with at least one 0. Empty lines and lines that begin with `#`
    are skipped. Raises ValueError with the first bad line if more than half of the lines cannot be read.
    """
    lines = [(number, _fields(line)) for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1) if _has_data(line)]
    form = config.form if config.form != "auto" else _form([fields for _, fields in lines])
    rows: list[tuple[Any, ...]] = []
    aside: list[tuple[int, str]] = []
    unread: list[str] = []
    for number, fields in lines:
        try:
            row = _row(fields)
            score, reason = _judged(fields, config) if form == GROUND_TRUTH else (_score(fields), "")
        except ValueError as error:
            unread.append(f"line {number}: {error}")
            aside.append((number, f"line not understood: {error}"))
            continue
        if reason:
            aside.append((number, reason))
        else:
            rows.append((*row, score))
    if 2 * len(unread) > len(lines):
        raise ValueError(f"{unread[0]} ({len(unread):,} of {len(lines):,} lines are not understood)")
    return ParsedLines(_detections(rows), form, aside)


def _has_data(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split(",")] if "," in line else line.split()


def _form(lines: list[list[str]]) -> str:
    """The format of a whole file, decided by the majority of its lines, since a single line can fit both formats."""
    nine = sum(_can_be_ground_truth(fields) for fields in lines)
    if 2 * nine > len(lines):
        return GROUND_TRUTH
    tracked = [fields[6] for fields in lines if len(fields) == 10 and not fields[1].startswith("-")]
    flags = set(tracked)
    return GROUND_TRUTH if 2 * len(tracked) > len(lines) and "0" in flags and flags <= {"0", "1"} else DETECTIONS


def _can_be_ground_truth(fields: list[str]) -> bool:
    if len(fields) != 9 or fields[6] not in ("0", "1"):
        return False
    try:
        return 1 <= int(fields[7]) <= 99 and 0 <= float(fields[8]) <= 1
    except ValueError:
        return False


def _row(fields: list[str]) -> tuple[Any, ...]:
    """(frame, track, left, top, width, height) of a line. Raises ValueError with the name of the invalid field."""
    if not 6 <= len(fields) <= 10:
        raise ValueError(
            f"{len(fields)} fields, 6 to 10 are allowed (frame, track, left, top, width, height, score, ...): "
            f"{shown(', '.join(fields))}"
        )
    usual = _usual_row(fields)
    if usual is not None:
        return usual
    frame = _value(fields, 0, "frame", _whole, lambda value: 1 <= value <= LARGEST, f"a whole number in 1..{LARGEST}")
    track = _value(
        fields, 1, "track", _whole, lambda value: -1 <= value <= LARGEST_TRACK, "a whole number from 0, or -1 for none"
    )
    box = [
        _value(
            fields,
            place,
            FIELDS[place],
            float,
            lambda value: abs(value) <= LARGEST_PIXEL,
            f"a number of pixels within {LARGEST_PIXEL}",
        )
        for place in range(2, 6)
    ]
    for place in (4, 5):
        if box[place - 2] <= 0:
            raise ValueError(f"{FIELDS[place]} must be above 0: got {fields[place]}")
    return (frame, track, *box)


def _usual_row(fields: list[str]) -> tuple[Any, ...] | None:
    """Fast path of `_row` for usual lines, since files have millions of lines; None if the line needs the detailed checks."""
    try:
        frame, track = int(fields[0]), int(fields[1])
        left, top, width, height = map(float, fields[2:6])
    except ValueError:
        return None
    usual = (
        1 <= frame <= LARGEST
        and -1 <= track <= LARGEST_TRACK
        and 0 < width <= LARGEST_PIXEL
        and 0 < height <= LARGEST_PIXEL
        and -LARGEST_PIXEL <= left <= LARGEST_PIXEL
        and -LARGEST_PIXEL <= top <= LARGEST_PIXEL
        and "_" not in "".join(fields[:6])
    )
    return (frame, track, left, top, width, height) if usual else None


def _score(fields: list[str]) -> float:
    if len(fields) < 7 or not fields[6]:
        return 1.0
    return float(_value(fields, 6, "score", float, math.isfinite, "a finite number, or left out"))


def _judged(fields: list[str], config: CropConfig) -> tuple[float, str]:
    """(score, reason to reject a line of ground truth, or ""). Raises ValueError with the name of the invalid field."""
    nine = len(fields) == 9
    if nine and fields[6] == "1" and fields[7] == "1" and 1 in config.classes and _between(fields[8], config.min_visibility):
        return 1.0, ""
    flagged = len(fields) > 6 and (nine or bool(fields[6]))
    reasons = []
    if flagged and _value(fields, 6, "flag", float, lambda value: value in (0, 1), "0 or 1") == 0:
        reasons.append("flag 0: the benchmark does not judge this box")
    if nine:
        kind = _value(fields, 7, "class", _whole, lambda value: -1 <= value <= 99, "a whole number up to 99")
        visibility = _value(fields, 8, "visibility", float, lambda value: -1 <= value <= 1, "a number up to 1")
        if kind not in config.classes:
            reasons.append(f"class {kind}: only {', '.join(map(str, config.classes))} are people here (raw.crops.classes)")
        if 0 <= visibility < config.min_visibility:  # -1: unknown
            reasons.append(f"hardly visible: visibility {visibility} is below {config.min_visibility} (raw.crops.min_visibility)")
    return 1.0, "; ".join(reasons)


def _between(text: str, least: float) -> bool:
    try:
        return least <= float(text) <= 1
    except ValueError:
        return False


def _value(
    fields: list[str], place: int, name: str, kind: Callable[[str], Any], fits: Callable[[Any], bool], allowed: str
) -> Any:
    text = fields[place]
    if not text:
        raise ValueError(f"{name} is empty (field {place + 1}): it must be {allowed}")
    try:
        value = kind(text if "_" not in text else "")  # Python would accept 1_000 as a number
        if fits(value):  # false for NaN
            return value
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{name} must be {allowed}: got {shown(text)} (field {place + 1})")


def _whole(text: str) -> int:
    """A whole number from text such as 7 or 7.0, which many tools write. Exact for all int64 values. Raises ValueError."""
    if len(text) > 40:
        raise ValueError("too long")
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if not value.is_integer() or abs(value) > 2**53:
            raise ValueError("not whole") from None
        return int(value)


def _detections(rows: list[tuple[Any, ...]]) -> Detections:
    rows.sort(key=lambda row: row[0])  # stable, so the order of the file is kept within a frame
    columns = list(zip(*rows, strict=True)) or [()] * 7
    return Detections(
        np.array(columns[0], np.int64),
        np.array(columns[1], np.int64),
        np.array(columns[2:6], np.float64).T.reshape(len(rows), 4),
        np.array(columns[6], np.float64),
    )
