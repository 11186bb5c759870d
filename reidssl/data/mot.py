"""Person crops from a video's detections in MOTChallenge form.

One detection a line: `frame, track, left, top, width, height, score, ...`, frames from 1, pixels of the
resolution that the detector saw, further fields ignored (motchallenge.net). Real detections reach over
the frame's edge, are tiny, or were recorded at another resolution than the video's: that is what the
settings are for.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(kw_only=True)
class CropConfig:
    """Which detections become crops."""

    recorded_size: tuple[int, int] = (0, 0)
    """(height, width) of the frames that the detections refer to; (0, 0) = the video's own."""
    min_height: int = 48
    """Smallest height of a crop in pixels of the video, after clipping to the frame."""
    min_width: int = 16
    """Smallest width of a crop in pixels of the video, after clipping to the frame."""
    min_score: float = -1e6
    """Smallest detector score; the default keeps every detection, also of detectors with negative scores."""
    min_visible: float = 0.5
    """Smallest share of the box's area that lies inside the frame."""
    frame_stride: int = 1
    """Of the frames that have detections, use every so manieth."""

    def __post_init__(self) -> None:
        height, width = self.recorded_size  # a list where it comes from a YAML file
        self.recorded_size = (height, width)
        if self.recorded_size != (0, 0) and (height < 1 or width < 1):
            raise ValueError(
                f"recorded_size must be (height, width), both positive, or (0, 0): got {self.recorded_size}"
            )
        for name in ("min_height", "min_width", "frame_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if not 0 <= self.min_visible <= 1:
            raise ValueError(f"min_visible must be in [0, 1]: got {self.min_visible}")
        if not math.isfinite(self.min_score):
            raise ValueError(f"min_score must be a finite number: got {self.min_score}")


class Detections(NamedTuple):
    """N detections, in ascending order of their frames."""

    frames: np.ndarray  # (N,) int64, from 1
    tracks: np.ndarray  # (N,) int64, -1 = not tracked
    boxes: np.ndarray  # (N, 4) float64: left, top, width, height
    scores: np.ndarray  # (N,) float64

    def take(self, rows: np.ndarray) -> "Detections":
        """The given rows (indices in ascending order, or a mask)."""
        return Detections(self.frames[rows], self.tracks[rows], self.boxes[rows], self.scores[rows])

    def in_frame(self, frame: int) -> np.ndarray:
        """The rows of one frame, int64."""
        start, stop = np.searchsorted(self.frames, [frame, frame + 1])
        return np.arange(start, stop)


def parse_detections(text: str) -> Detections:
    """Read a MOTChallenge detection file.

    Fields are separated by commas or white space; the score may be left out (1). Empty lines and those
    that begin with `#` are skipped. Raises ValueError that names the line for anything else.
    """
    rows = [_parse(line, number) for number, line in enumerate(text.splitlines(), 1) if _has_data(line)]
    table = np.array(rows, np.float64).reshape(len(rows), 7)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return Detections(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2:6], table[:, 6])


def _has_data(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _parse(line: str, number: int) -> list[float]:
    fields = line.replace(",", " ").split()
    if len(fields) < 6:
        raise ValueError(
            f"line {number}: {len(fields)} fields, at least 6 are needed "
            f"(frame, track, left, top, width, height): {line[:80]!r}"
        )
    try:
        values = [float(field) for field in fields[:7]]
    except ValueError as error:
        raise ValueError(f"line {number}: {error}: {line[:80]!r}") from None
    if not all(map(math.isfinite, values)):
        raise ValueError(f"line {number}: every value must be finite: {line[:80]!r}")
    if values[0] < 1 or values[0] != int(values[0]):
        raise ValueError(f"line {number}: frames are whole numbers from 1: got {fields[0]}")
    if values[1] != int(values[1]):
        raise ValueError(f"line {number}: a track is a whole number: got {fields[1]}")
    return values if len(values) == 7 else [*values, 1.0]


def select(detections: Detections, config: CropConfig) -> Detections:
    """Apply what needs no picture: the score and the stride over frames that have detections."""
    frames = np.unique(detections.frames)[:: config.frame_stride]
    return detections.take(np.isin(detections.frames, frames) & (detections.scores >= config.min_score))


def crops_of(image: np.ndarray, boxes: np.ndarray, config: CropConfig) -> Iterator[tuple[int, np.ndarray]]:
    """The crops of one frame: for each usable box its row and its pixels.

    `image` uint8 (H, W, 3); `boxes` (N, 4) left, top, width, height in pixels of `config.recorded_size`.
    Boxes are scaled to the image, clipped to it and rounded outwards. A crop is a uint8 (h, w, 3) array
    of its own, so that it does not keep the frame alive.
    """
    height, width = image.shape[:2]
    recorded_height, recorded_width = (
        config.recorded_size if config.recorded_size != (0, 0) else (height, width)
    )
    scale = np.array([width / recorded_width, height / recorded_height] * 2)
    for row, (left, top, box_width, box_height) in enumerate(np.asarray(boxes, np.float64) * scale):
        if box_width <= 0 or box_height <= 0:
            continue
        x0, x1 = max(left, 0.0), min(left + box_width, float(width))
        y0, y1 = max(top, 0.0), min(top + box_height, float(height))
        if x1 <= x0 or y1 <= y0 or (x1 - x0) * (y1 - y0) < config.min_visible * box_width * box_height:
            continue
        crop = image[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)]
        if crop.shape[0] >= config.min_height and crop.shape[1] >= config.min_width:
            yield row, np.ascontiguousarray(crop).copy()
