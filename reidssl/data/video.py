"""Frames of a video, decoded one at a time in bounded memory (PyAV).

Phones store the frames as the sensor lies, and say in the header how players turn them. They are turned here, as by OpenCV and
the ffmpeg program: detections are of turned frames.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import av
import numpy as np
from av.error import FFmpegError


class VideoError(ValueError):
    """A video cannot be read to its end. `frames_read` is the number of frames before the damage."""

    def __init__(self, message: str, frames_read: int):
        super().__init__(message)
        self.frames_read = frames_read


class VideoFacts(NamedTuple):
    """What the header and the first frame of a video say."""

    height: int
    """Of the frames as turned for display, like `width`."""
    width: int
    frames: int
    """0: the container does not say."""


def facts(source: str | Path | IO[bytes]) -> VideoFacts:
    """The size and the number of frames of a video, of which one is decoded. Raises `VideoError` if it is no readable video."""
    try:
        with av.open(str(source) if isinstance(source, Path) else source, mode="r") as container:
            if not container.streams.video or container.format.name == "tty":
                raise VideoError("there is no video stream", 0)
            stream = container.streams.video[0]
            if stream.height < 1 or stream.width < 1:
                raise VideoError("its header has no size", 0)
            found = VideoFacts(stream.height, stream.width, stream.frames)
            first = next(container.decode(stream), None)  # PyAV offers the display matrix of frames alone
            if first is not None and _quarters(first) % 2:
                found = found._replace(height=stream.width, width=stream.height)
    except (FFmpegError, OSError, EOFError) as error:
        raise VideoError(f"it cannot be read as a video: {error}", 0) from error
    return found


def frames(source: str | Path | IO[bytes], wanted: Collection[int] | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number from 1, image uint8 (H, W, 3) RGB) of the wanted frames in order.

    Decoding stops after the last wanted frame. Only one frame is held at a time.

    Args:
        source: path or binary file.
        wanted: numbers of the frames; None: all.

    Raises `VideoError` if the video cannot be opened, is damaged, or ends before the last wanted frame. The frames before the
    damage have been yielded by then, so a caller may keep them and report the error. Decoding does not continue after
    damage, since the numbers of later frames would be uncertain.
    """
    wanted = None if wanted is None else set(wanted)
    last = None if wanted is None else max(wanted, default=0)
    if last == 0:
        return
    name = str(source) if isinstance(source, str | Path) else getattr(source, "name", "")
    if not isinstance(name, str) or not name:  # a file opened by its descriptor is named by a number
        name = "the video"
    number = 0
    try:
        with av.open(str(source) if isinstance(source, Path) else source, mode="r") as container:
            # FFmpeg reads any text file as terminal art (format "tty").
            if not container.streams.video or container.format.name == "tty":
                raise VideoError(f"{name} holds no video stream", 0)
            expected = container.streams.video[0].frames
            for frame in container.decode(video=0):
                if frame.is_corrupt:
                    raise VideoError(f"{name}: frame {number + 1} is damaged; {number} frames were read", number)
                number += 1
                if wanted is None or number in wanted:
                    yield number, _turned(frame)
                if number == last:
                    return
    except (FFmpegError, OSError, EOFError) as error:
        what = f"is damaged after frame {number}" if number else "cannot be read as a video"
        raise VideoError(f"{name} {what}: {error}", number) from error
    if last is not None:
        raise VideoError(f"{name} ends after frame {number}; frame {last} is wanted. Is it the right video?", number)
    if number < expected:
        raise VideoError(f"{name} ends after frame {number} of {expected}: it is cut off", number)


def _turned(frame: av.VideoFrame) -> np.ndarray:
    """The image of a frame as it is displayed."""
    image, quarters = frame.to_ndarray(format="rgb24"), _quarters(frame)
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


def _quarters(frame: av.VideoFrame) -> int:
    """Number of quarter turns counterclockwise, 0 to 3, from a stored frame to the displayed one."""
    return round(frame.rotation / 90) % 4
