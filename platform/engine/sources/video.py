"""Person crops of videos with detections in MOTChallenge form."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from platform.engine.errors import UserError
from platform.engine.sources.base import Candidate, Plan, encode_image
from platform.engine.storage import Location
from reidssl.data.mot import CropConfig, Detections, crops_of, parse_detections, select
from reidssl.data.video import VideoError, frames

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".mpg", ".mpeg", ".webm", ".m4v", ".ts")


class VideoUnit(NamedTuple):
    """One video and the detections to cut out of it."""

    name: str
    """Path below the root; "" for the root itself."""
    detections: Detections


@dataclass
class VideoSource:
    """`root`: a video with one file of detections, or a folder of videos with a folder of `<video's name>.txt`.

    One unit per video, decoded once from its beginning in bounded memory: frame numbers are then certain, whatever the
    container says about time. Crops have no original bytes, so they are encoded here.
    Key: the video's path without suffix, then frame and track (without a track: the box).
    """

    root: Location
    detections: Location
    crops: CropConfig
    image_format: str
    jpeg_quality: int
    extra_columns: dict[str, pa.DataType] = field(default_factory=lambda: {
        "split": pa.string(), "frame": pa.int32(), "track": pa.int32(), "score": pa.float32()})

    def plan(self, limit: int) -> Plan:
        units, left = [], limit
        for name, file in self._pairs():
            try:
                found = select(parse_detections(file.read_text()), self.crops)
            except ValueError as error:
                raise UserError(f"source.detections {file}: {error}") from None
            if limit:
                found = found.take(np.arange(min(left, len(found.frames))))
                left -= len(found.frames)
            if len(found.frames):
                units.append(VideoUnit(name, found))
        return Plan(units, sum(len(unit.detections.frames) for unit in units))

    def _pairs(self) -> list[tuple[str, Location]]:
        """(video's name, its file of detections)."""
        if self.root.is_file():
            return [("", self.detections)]
        names = [item.name for item in self.root.list() if item.name.lower().endswith(VIDEO_SUFFIXES)]
        if not names:
            raise UserError(f"source.path {self.root} is no video and holds none ({', '.join(VIDEO_SUFFIXES)})")
        pairs = [(name, self.detections.joinpath(posixpath.splitext(name)[0] + ".txt")) for name in names]
        missing = [str(file) for _, file in pairs if not file.is_file()]
        if missing:
            raise UserError(f"{len(missing)} of {len(pairs)} videos have no detections, the first missing file is "
                            f"{missing[0]}. source.detections is the folder with one <video's name>.txt each")
        return pairs

    def read(self, unit: VideoUnit) -> Iterator[Candidate]:
        location = self.root.joinpath(unit.name) if unit.name else self.root
        stem = posixpath.splitext(unit.name or self.root.name)[0]
        left = {int(frame) for frame in unit.detections.frames}
        try:
            with location.open_input() as file:
                for number, image in frames(file, wanted=set(left)):
                    yield from self._frame(unit.detections, number, image, stem)
                    left.discard(number)
        except VideoError as error:
            for row in np.flatnonzero(np.isin(unit.detections.frames, list(left))):
                yield Candidate(self._key(unit.detections, int(row), stem), error=str(error))

    def _frame(self, detections: Detections, number: int, image: np.ndarray, stem: str) -> Iterator[Candidate]:
        rows = detections.in_frame(number)
        cut = dict(crops_of(image, detections.boxes[rows], self.crops))
        for place, row in enumerate(rows):
            key = self._key(detections, row, stem)
            if place not in cut:
                yield Candidate(key, error="the box is too small or too far outside the frame (source.crops)")
                continue
            extras = (number, int(detections.tracks[row]), float(detections.scores[row]))
            yield Candidate(key, encode_image(cut[place], self.image_format, self.jpeg_quality), extras=extras)

    def _key(self, detections: Detections, row: int, stem: str) -> str:
        track = int(detections.tracks[row])
        box = "_".join(f"{value:.0f}" for value in detections.boxes[row])
        who = f"track{track:05d}" if track >= 0 else f"box{box}"
        return f"{stem}/{int(detections.frames[row]):07d}_{who}.{'jpg' if self.image_format == 'jpeg' else 'png'}"
