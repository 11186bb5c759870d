"""Source of person crops from videos, with detections in MOTChallenge format."""

import posixpath
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from platform.engine.errors import UserError
from platform.engine.ingest.sources.items import fault_of, folders_of, list_items, not_taken, open_item, unreached
from platform.engine.ingest.sources.source import OTHER_VIDEOS, Candidate, ReadingPlan, encode_image
from platform.engine.runtime.terminal import say
from platform.engine.storage.location import Location
from reidssl.data.mot import CropConfig, Detections, crops_of, select
from reidssl.data.mot_lines import GROUND_TRUTH, parse_lines
from reidssl.data.names import spelled
from reidssl.data.video import VideoError, frames

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".mpg", ".mpeg", ".webm", ".m4v", ".ts")

NOT_TAKEN = "box not taken: it is too small or too far outside the frame (raw.crops)"
NO_DETECTIONS = Detections(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)), np.empty(0))


class VideoUnit(NamedTuple):
    """A video and its detections, the unit of reading."""

    name: str
    """Path below the root; "" for the root itself."""
    stem: str
    """First part of the keys of its crops."""
    detections: Detections
    """The boxes to cut out."""
    aside: list[tuple[str, str]]
    """(key, reason) of each line of detections, or whole video, that is rejected already."""


@dataclass
class VideoSource:
    """Person crops from videos. root: a video with one file of detections, or a folder of videos with a folder of their files.

    Each video is a unit. It is decoded once from its start in bounded memory, so frame numbers do not depend on the timestamps of
    the container. Crops have no original bytes, so they are encoded here. The key of a crop is the path of the video without
    suffix, followed by frame and track (the box, if there is no track).
    """

    root: Location
    detections: Location
    crops: CropConfig
    image_format: str
    jpeg_quality: int
    follow_links: bool = False
    extra_columns: dict[str, pa.DataType] = field(
        default_factory=lambda: {"split": pa.string(), "frame": pa.int32(), "track": pa.int64(), "score": pa.float32()}
    )

    def plan(self, limit: int) -> ReadingPlan:
        units, left, single = [], limit, self.root.is_file()
        forms: Counter[str] = Counter()
        for name, stem, file, text, reason in self._texts(single):
            try:
                parsed = None if reason else parse_lines(text, self.crops)
            except ValueError as error:
                if single:
                    raise UserError(f"raw.detections {self.detections}: {error}") from None
                parsed, reason = None, f"detections not understood: {file}: {error}"
            if parsed is None:
                units.append(VideoUnit(name, stem, NO_DETECTIONS, [(stem, reason)]))
                continue
            forms[parsed.form] += 1
            found = select(parsed.detections, self.crops)
            if limit:
                found = found.take(np.arange(min(left, len(found.frames))))
                left -= len(found.frames)
            aside = [(f"{file}, line {number}", why) for number, why in parsed.aside]
            if len(found.frames) or aside:
                units.append(VideoUnit(name, stem, found, aside))
        self._refuse_nothing(units)
        _say_forms(forms, units)
        return ReadingPlan(units, sum(len(unit.detections.frames) + len(unit.aside) for unit in units))

    def _texts(self, single: bool) -> list[tuple[str, str, str, str, str]]:
        """(name of the video, stem of its keys, name and text of its detection file, reason if it is unusable or "") of each."""
        if single:
            file = spelled(self.detections.name)
            return [("", posixpath.splitext(spelled(self.root.name))[0], file, self.detections.read_text(), "")]
        names, unread = list_items(self.root, self.follow_links)
        others = not_taken(names, OTHER_VIDEOS, VIDEO_SUFFIXES)
        videos = sorted(name for name in (*names, *unread) if name.lower().endswith(VIDEO_SUFFIXES))
        if not videos:
            raise UserError(f"raw.path {self.root} is no video and holds none ({others or ', '.join(VIDEO_SUFFIXES)})")
        if others:
            say(f"note: {others}")
        # Listed, not opened by name, so that links lead out of neither folder.
        texts, untaken = list_items(self.detections, self.follow_links)
        there = set(texts)
        times = Counter(posixpath.splitext(name)[0] for name in videos)  # a.avi and a.mp4 would give equal keys
        found, missing = [], []
        for name in videos:
            stem = posixpath.splitext(name)[0]
            file, text, reason = f"{stem}.txt", "", unread.get(name, "")
            if file not in there:
                why = next((f" ({part}: {untaken[part]})" for part in (file, *folders_of(file)) if part in untaken), "")
                missing.append(f"{self.detections}/{file}{why}")
                reason = reason or f"no detections: {file} is not in raw.detections{why}"
            else:
                try:
                    with open_item(self.detections, file) as opened:
                        text = opened.read().decode()
                except Exception as error:
                    reason = reason or f"detections not understood: {file}: {fault_of(self.detections, error)}"
            found.append((name, stem if times[stem] == 1 else name, file, text, reason))
        found += [("", name, "", "", why) for name, why in unreached(unread).items() if name not in videos]
        if len(missing) == len(videos):
            raise UserError(
                f"{len(missing)} of {len(videos)} videos have no detections, the first missing file is "
                f"{missing[0]}. raw.detections is the folder with one <video's name>.txt each"
            )
        return found

    def _refuse_nothing(self, units: list[VideoUnit]) -> None:
        if any(len(unit.detections.frames) for unit in units):
            return
        kinds = Counter(reason.partition(":")[0] for unit in units for _, reason in unit.aside)
        if kinds:
            first = next((key, reason) for unit in units for key, reason in unit.aside)
            raise UserError(
                f"raw.detections {self.detections}: nothing is left to cut out: "
                f"{', '.join(f'{count:,} {kind}' for kind, count in kinds.most_common())}; the first is {first[0]}: "
                f"{first[1]}. raw.crops.form, classes and min_visibility say how lines are read"
            )

    def read(self, unit: VideoUnit) -> Iterator[Candidate]:
        def described(row: int) -> Candidate:
            _, tracks, _, scores = unit.detections
            extras = (int(unit.detections.frames[row]), int(tracks[row]), float(scores[row]))
            return Candidate(self._key(unit.detections, row, unit.stem), extras=extras)

        yield from (Candidate(key, error=reason) for key, reason in unit.aside)
        encode = partial(encode_image, image_format=self.image_format, quality=self.jpeg_quality)
        yield from cut_out(self.root, unit.name, unit.detections, self.crops, described, encode)

    def _key(self, detections: Detections, row: int, stem: str) -> str:
        track = int(detections.tracks[row])
        box = "_".join(f"{value:.0f}" for value in detections.boxes[row])
        who = f"track{track:05d}" if track >= 0 else f"box{box}"
        return f"{stem}/{int(detections.frames[row]):07d}_{who}.{'jpg' if self.image_format == 'jpeg' else 'png'}"


def cut_out(
    root: Location,
    name: str,
    detections: Detections,
    config: CropConfig,
    described: Callable[[int], Candidate],
    encode: Callable[[np.ndarray], bytes],
) -> Iterator[Candidate]:
    """The crops of a video, which is decoded once up to the last frame with a detection.

    From a damaged video the frames before the damage are kept; the rest are candidates with an error.

    Args:
        name: path of the video below `root`.
        described: the candidate of a row of `detections` without its image: key and extras.
        encode: pixels uint8 (H, W, 3) -> file.

    Raises UserError if the fault is not of this video.
    """
    left = {int(frame) for frame in detections.frames}
    if not left:
        return
    try:
        with open_item(root, name) as file:
            for number, image in frames(file, wanted=set(left)):
                rows = detections.in_frame(number)
                cut = dict(crops_of(image, detections.boxes[rows], config))
                for place, row in enumerate(rows):
                    found = described(int(row))
                    if place in cut:
                        yield found._replace(image=encode(cut[place]))
                    else:
                        yield Candidate(found.key, error=NOT_TAKEN)
                left.discard(number)
    except Exception as error:  # of the video or of one frame: the numbers of later frames are not certain
        reason = fault_of(root, error)
        if isinstance(error, VideoError):
            reason = f"video damaged: {error}"
        for row in np.flatnonzero(np.isin(detections.frames, list(left))):
            yield Candidate(described(int(row)).key, error=reason)


def _say_forms(forms: Counter[str], units: list[VideoUnit]) -> None:
    """Print the format in which the detection files were read: without `raw.crops.form` it is a guess."""
    texts = {GROUND_TRUTH: "ground truth (flag, class, visibility)"}
    read = " and ".join(
        f"{count:,} file{'s' * (count != 1)} as {texts.get(form, f'{form} (scores)')}" for form, count in forms.most_common()
    )
    kinds = Counter(reason.partition(":")[0] for unit in units for _, reason in unit.aside)
    said = f"; set aside: {', '.join(f'{count:,} {kind}' for kind, count in kinds.most_common())}" if kinds else ""
    say(f"raw.detections: {read} (raw.crops.form){said}")
