"""Person crops of video frames from boxes in MOTChallenge format; `reidssl.data.mot_lines` reads the files.

Real detections can extend beyond the frame, be tiny, or refer to another resolution than that of the video. The settings
handle these cases.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from reidssl.checks import at_least, one_of, within

FORMS = ("auto", "detections", "ground_truth")


@dataclass(kw_only=True)
class CropConfig:
    """Settings that select the detections to crop."""

    recorded_size: tuple[int, int] = (0, 0)
    """(height, width) in pixels of the frames that the detections refer to. (0, 0): the size of the video."""
    min_height: int = 48
    """Minimum height of a crop in pixels of the video, after clipping to the frame."""
    min_width: int = 16
    """Minimum width of a crop in pixels of the video, after clipping to the frame."""
    min_score: float = -1e6
    """Minimum detector score. The default keeps every detection, even from detectors with negative scores."""
    min_visible: float = 0.5
    """Minimum fraction, in [0, 1], of the box's area that lies inside the frame."""
    frame_stride: int = 1
    """Use every n-th of the frames that have detections; 1 uses all of them."""
    form: str = "auto"
    """Format of the lines: detections (7th field is a score), ground_truth (7th to 9th field are flag, class, visibility),
    or auto, which decides by the majority of the lines and reports the decision."""
    classes: list[int] = field(default_factory=lambda: [1])
    """Ground truth only: classes to crop, for example 1 pedestrian, 2 person on vehicle, 7 static person."""
    min_visibility: float = 0.3
    """Ground truth only: minimum visible fraction of a person, in [0, 1]."""

    def __post_init__(self) -> None:
        height, width = self.recorded_size  # a list where it comes from a YAML file
        self.recorded_size = (height, width)
        if self.recorded_size != (0, 0) and (height < 1 or width < 1):
            raise ValueError(f"recorded_size must be (height, width), both positive, or (0, 0): got {self.recorded_size}")
        at_least(1, min_height=self.min_height, min_width=self.min_width, frame_stride=self.frame_stride)
        within("[0, 1]", min_visible=self.min_visible, min_visibility=self.min_visibility)
        one_of(FORMS, form=self.form)
        if not self.classes:
            raise ValueError("classes must be at least one number, such as [1]: got []")
        if not math.isfinite(self.min_score):
            raise ValueError(f"min_score must be a finite number: got {self.min_score}")


class Detections(NamedTuple):
    """N detections, in ascending order of their frames."""

    frames: np.ndarray  # (N,) int64, from 1
    tracks: np.ndarray  # (N,) int64, -1 = not tracked
    boxes: np.ndarray  # (N, 4) float64: left, top, width, height
    scores: np.ndarray  # (N,) float64

    def take(self, rows: np.ndarray) -> "Detections":
        """The detections of these rows (indices in ascending order, or a boolean mask)."""
        return Detections(self.frames[rows], self.tracks[rows], self.boxes[rows], self.scores[rows])

    def in_frame(self, frame: int) -> np.ndarray:
        """The rows (int64) of the detections of one frame."""
        start, stop = np.searchsorted(self.frames, [frame, frame + 1])
        return np.arange(start, stop)


def select(detections: Detections, config: CropConfig) -> Detections:
    """Apply the settings that need no image: the minimum score, and the stride over frames that have detections."""
    frames = np.unique(detections.frames)[:: config.frame_stride]
    return detections.take(np.isin(detections.frames, frames) & (detections.scores >= config.min_score))


def crops_of(image: np.ndarray, boxes: np.ndarray, config: CropConfig) -> Iterator[tuple[int, np.ndarray]]:
    """The crops of one frame: for each usable box, its row in `boxes` and its pixels.

    Boxes are scaled to the image, clipped to it and rounded outwards. A crop is a uint8 (h, w, 3) copy, so that it does not
    keep the frame in memory.

    Args:
        image: uint8 (H, W, 3).
        boxes: (N, 4) left, top, width, height in pixels of `config.recorded_size`.
    """
    height, width = image.shape[:2]
    recorded_height, recorded_width = config.recorded_size if config.recorded_size != (0, 0) else (height, width)
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
