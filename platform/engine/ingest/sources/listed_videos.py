"""Source of person crops from LUPerson's released lists: a list of videos, their detections, and the sizes of the frames."""

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from platform.engine.errors import UserError
from platform.engine.ingest.sources.items import fault_of, list_items, open_item
from platform.engine.ingest.sources.source import Candidate, ReadingPlan, encode_image
from platform.engine.ingest.sources.video_crops import VIDEO_SUFFIXES, cut_out
from platform.engine.runtime.terminal import say
from platform.engine.storage.location import Location
from reidssl.data import luperson_videos as luperson
from reidssl.data.luperson_videos import ListedVideo
from reidssl.data.mot import CropConfig, Detections, select
from reidssl.data.records import Aside, LayoutError
from reidssl.data.video import VideoError, VideoFacts, facts


class ListedUnit(NamedTuple):
    """A listed video, the unit of reading; or, with an empty `path`, all that is rejected already."""

    video: ListedVideo
    path: str = ""
    """Path of the video below the root."""
    detections: str | Detections = ""
    """Path of its pickle below the folder of the detections, or the detections themselves."""
    most: int = 0
    """Largest number of detections to use; 0: all."""
    aside: tuple[tuple[str, str], ...] = ()
    """(key, reason) of what is rejected."""


@dataclass
class ListedVideoSource:
    """Person crops of LUPerson's videos. root: folder with <name>.mp4 in any subfolders; one video is one unit.

    A video that was lost, replaced or damaged is rejected with its reason, and so is one whose size or length contradicts its
    detections: its crops would show something else. The size is stored with each crop. Keys are
    country/city/<name>/<frame>_<number in the frame>.jpg, with the numbers of the published extraction.
    """

    root: Location
    detections: Location
    names: Location
    sizes: Location | None
    without_size: str
    crops: CropConfig
    image_format: str
    jpeg_quality: int
    follow_links: bool = False
    recorded: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Sizes of the file `sizes`; `plan` reads it."""
    extra_columns: dict[str, pa.DataType] = field(
        default_factory=lambda: (
            {"split": pa.string(), "frame": pa.int32(), "number": pa.int32(), "score": pa.float32()}
            | {f"{which}_{side}": pa.int32() for which in ("recorded", "video") for side in ("height", "width")}
        )
    )

    def plan(self, limit: int) -> ReadingPlan:
        aside: Aside = {}
        try:
            listed = luperson.read_names(self.names.read_text(), aside)
        except LayoutError as error:
            raise UserError(f"raw.listed.names {self.names}: {error}") from None
        self.recorded = self._recorded()
        units: list[ListedUnit] = []
        rejected, left = list(aside.items()), limit
        videos, tables = self._videos(), self._tables(listed, rejected)
        for video in listed:
            table = tables.get(video.name)
            if video.name not in videos:
                rejected.append((video.key, "not there: the video is listed, but it is not in raw.path"))
            elif table is None:
                rejected.append((video.key, "no detections: raw.detections has none of this video"))
            elif isinstance(table, LayoutError):
                rejected.append((video.key, f"detections not understood: {table}"))
            elif not limit or left > 0:
                units.append(ListedUnit(video, videos[video.name], table))
                if limit:
                    units[-1] = units[-1]._replace(most=left)
                    left -= self._count(units[-1])
        self._refuse_nothing(listed, units, rejected)
        if rejected and not limit:
            units.append(ListedUnit(ListedVideo("", "", ""), aside=tuple(rejected)))
        return ReadingPlan(units, None)

    def _recorded(self) -> dict[str, tuple[int, int]]:
        """Sizes from the file. Raises UserError if it is bad, or if nothing says which size the detections refer to."""
        if self.sizes is None:
            if self.without_size == "reject" and self.crops.recorded_size == (0, 0):
                raise UserError(
                    "the published detections do not say how large the frames were in which the boxes lie. Say it: "
                    "raw.listed.sizes=FILE with lines name,height,width; raw.crops.recorded_size=[720,1280], one size for all; "
                    "raw.listed.without_size=boxes, an estimate for each video; or raw.listed.without_size=video, its size now"
                )
            return {}
        try:
            return luperson.read_sizes(self.sizes.read_text())
        except ValueError as error:
            raise UserError(f"raw.listed.sizes {self.sizes}: {error}") from None

    def _videos(self) -> dict[str, str]:
        """Name of a video -> its path below the root. Of several files of one name, the first suffix of VIDEO_SUFFIXES."""
        names, _ = list_items(self.root, self.follow_links)
        found: dict[str, str] = {}
        order = {suffix: place for place, suffix in enumerate((".mp4", *VIDEO_SUFFIXES))}
        for path in sorted(names, key=lambda path: (order.get(posixpath.splitext(path)[1].lower(), -1), path)):
            stem, suffix = posixpath.splitext(posixpath.basename(path))
            if suffix.lower() in VIDEO_SUFFIXES:
                found.setdefault(stem, path)
        return found

    def _tables(self, listed: list[ListedVideo], rejected: list[tuple[str, str]]) -> dict[str, str | Detections | LayoutError]:
        """Name of a video -> path of its pickle, or its detections if one file holds those of all videos."""
        if not self.detections.is_file():
            paths, _ = list_items(self.detections, self.follow_links)
            return {posixpath.basename(path)[:-4]: path for path in paths if path.endswith(".pkl")}
        try:
            whole = luperson.unpickled(self.detections.read_bytes())
            if not isinstance(whole, dict) or not all(isinstance(name, str) for name in whole):
                raise LayoutError("one file must hold {name of the video: {frame: ...}}; otherwise give the folder of the files")
        except LayoutError as error:
            raise UserError(f"raw.detections {self.detections}: {error}") from None
        found: dict[str, str | Detections | LayoutError] = {}
        keys = {video.name: video.key for video in listed}
        for name in list(whole):
            stem, table = posixpath.splitext(name)[0] if name.endswith(VIDEO_SUFFIXES) else name, whole.pop(name)
            aside: Aside = {}
            if stem in keys:
                try:
                    found[stem] = luperson.detections_of(table, aside)
                except LayoutError as error:
                    found[stem] = error
                else:
                    rejected += [(f"{keys[stem]}, {place}", reason) for place, reason in aside.items()]
        return found

    def _refuse_nothing(self, listed: list[ListedVideo], units: list[ListedUnit], rejected: list[tuple[str, str]]) -> None:
        if not listed:
            raise UserError(f"raw.listed.names {self.names} lists no videos")
        if not units:
            kinds = Counter(reason.partition(":")[0] for _, reason in rejected)
            counted = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
            raise UserError(f"none of the {len(listed):,} listed videos can be used: {counted}; the first is {rejected[0][0]}")
        if rejected:
            say(f"raw.listed.names: {len(units):,} of {len(listed):,} videos have a file and detections")

    def read(self, unit: ListedUnit) -> Iterator[Candidate]:
        yield from (Candidate(key, error=reason) for key, reason in unit.aside)
        if not unit.path:
            return
        aside: Aside = {}
        try:
            found = self._detections(unit, aside)
            with open_item(self.root, unit.path) as file:
                about = facts(file)
        except VideoError as error:
            yield Candidate(unit.video.key, error=f"video damaged: {error}")
            return
        except LayoutError as error:
            yield Candidate(unit.video.key, error=f"detections not understood: {error}")
            return
        except Exception as error:
            yield Candidate(unit.video.key, error=fault_of(self.root, error))
            return
        yield from (Candidate(f"{unit.video.key}, {place}", error=reason) for place, reason in aside.items())
        size, reason = self._size(unit.video.name, found, about)
        if reason:
            yield Candidate(unit.video.key, error=reason)
            return

        def described(row: int) -> Candidate:
            frame, number = int(found.frames[row]), int(found.tracks[row])
            extras = (frame, number, float(found.scores[row]), *size, about.height, about.width)
            suffix = "jpg" if self.image_format == "jpeg" else "png"
            return Candidate(f"{unit.video.key}/{frame:08d}_{number:04d}.{suffix}", extras=extras)

        encode = partial(encode_image, image_format=self.image_format, quality=self.jpeg_quality)
        yield from cut_out(self.root, unit.path, found, replace(self.crops, recorded_size=size), described, encode)

    def _count(self, unit: ListedUnit) -> int:
        """Number of detections of a unit; 0 if they cannot be read, which `read` reports."""
        try:
            return len(self._detections(unit, {}).frames)
        except Exception as error:
            if not isinstance(error, LayoutError):
                fault_of(self.detections, error)  # raises if it is not a fault of this file
            return 0

    def _detections(self, unit: ListedUnit, aside: Aside) -> Detections:
        """The detections of a unit that the settings select. Raises LayoutError, OSError or StorageError."""
        found = unit.detections
        if isinstance(found, str):
            with open_item(self.detections, found) as file:
                found = luperson.read_detections(file.read(), aside)
        found = select(found, self.crops)
        return found.take(np.arange(min(unit.most, len(found.frames)))) if unit.most else found

    def _size(self, name: str, found: Detections, about: VideoFacts) -> tuple[tuple[int, int], str]:
        """(height, width) of the frames of the detections, or the reason why they cannot be those of this video."""
        now = (about.height, about.width)
        size = self.recorded.get(name, self.crops.recorded_size)
        if size == (0, 0) and self.without_size == "reject":
            return size, "no size: raw.listed.sizes has none of this video (raw.listed.without_size)"
        if size == (0, 0):
            size = now if self.without_size == "video" else luperson.estimated_size(found, now) or now
        if abs(size[1] * now[0] / (size[0] * now[1]) - 1) > luperson.TOLERANCE:
            return (
                size,
                f"changed: the video has {now[0]} x {now[1]} pixels, another shape than the recorded {size[0]} x {size[1]}",
            )
        if luperson.outside(found, size):
            return size, f"changed: boxes lie outside of a frame of {size[0]} x {size[1]}: they were made at another size"
        last = int(found.frames.max(initial=0))
        if 0 < about.frames < last:
            return size, f"changed: the video has {about.frames:,} frames, its detections reach to frame {last:,}"
        return size, ""
