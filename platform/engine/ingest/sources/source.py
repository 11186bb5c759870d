"""What every source of images offers, and what they share."""

import io
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

Item = TypeVar("Item")
LARGEST_IMAGE = 64 << 20  # bytes; what is larger is no person crop, and must not fill a worker's memory


class Candidate(NamedTuple):
    """One image as found."""

    key: str
    image: bytes = b""
    pid: int = -1
    camid: int = -1
    split: str = "train"
    extras: tuple[Any, ...] = ()
    """Values of the source's extra columns after `split`."""
    error: str = ""
    """Why there is no image, as "<kind>: <detail>"."""
    note: str = ""
    """What the user should know of a good image; equal notes are counted."""


class ReadingPlan(NamedTuple):
    """The units of a source and, where it is known without reading, the number of images."""

    units: list[Any]
    num_images: int | None


class Source(Protocol):
    """A reader of one kind of source; travels to the reading tasks by pickle."""

    extra_columns: dict[str, pa.DataType]
    """What it knows beyond key, pid and camid; `split` first."""

    def plan(self, limit: int) -> ReadingPlan:
        """On the driver: units of work (small, picklable), looking at names, not images. `limit` 0 = all images.

        Keys are unique across units; repeats within a unit are set aside by whoever reads it. Raises UserError.
        """

    def read(self, unit: Any) -> Iterator[Candidate]:
        """In a task: the unit's images in order. What cannot be had is a Candidate with an error."""


def limited(items: list[Item], limit: int) -> list[Item]:
    """The first `limit` items; all for 0."""
    return items[:limit] if limit else items


def in_units(items: list[Item], size: int) -> list[list[Item]]:
    """`items` in lists of `size`, the last one shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def encode_image(pixels: np.ndarray, image_format: str, quality: int = 95) -> bytes:
    """uint8 (height, width, 3) RGB -> encoded bytes, for images that have no original file."""
    sink = io.BytesIO()
    options = {"quality": quality, "subsampling": 0} if image_format == "jpeg" else {}
    Image.fromarray(pixels).save(sink, image_format.upper(), **options)
    return sink.getvalue()
