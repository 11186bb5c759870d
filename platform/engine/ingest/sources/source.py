"""The interface of a source of images, and functions that the sources share."""

import io
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

from platform.engine.ingest.sources.tar_stream import TAR_SUFFIXES

Item = TypeVar("Item")
LARGEST_IMAGE = 64 << 20  # bytes; a larger file is not a person crop and must not fill the memory of a worker

# Files that no source reads, or not this one; the user is told of them, since they may be what was meant.
OTHER_IMAGES = (".jfif", ".jpe", ".jp2", ".j2k", ".jxl", ".tga", ".svg", ".psd", ".pnm", ".dib", ".exr", ".dng", ".cr2", ".nef")
OTHER_VIDEOS = (".wmv", ".flv", ".3gp", ".mts", ".m2ts", ".asf", ".ogv", ".vob", ".divx", ".mxf", ".y4m", ".h264", ".h265")
OTHER_ARCHIVES = (".tar.zst", ".tzst", ".tar.lz4", ".tar.lz", ".tar.lzma", ".tar.lzo", ".tar.z", ".zip", ".rar", ".7z")
ARCHIVES = (*TAR_SUFFIXES, *OTHER_ARCHIVES)


class Candidate(NamedTuple):
    """An image of a source, before it is checked."""

    key: str
    image: bytes = b""
    pid: int = -1
    camid: int = -1
    split: str = "train"
    extras: tuple[Any, ...] = ()
    """Values of the extra columns of the source after `split`."""
    error: str = ""
    """Reason why there is no image, as "<kind>: <detail>"; "" for a good image."""
    note: str = ""
    """Note about a good image for the user. Equal notes are counted."""


class ReadingPlan(NamedTuple):
    """The units of a source, and the number of images if it is known without reading them."""

    units: list[Any]
    num_images: int | None


class Source(Protocol):
    """Interface of a reader of one kind of source. It is pickled to the reading tasks."""

    extra_columns: dict[str, pa.DataType]
    """Columns beyond key, pid and camid, with their types; `split` is the first."""

    def plan(self, limit: int) -> ReadingPlan:
        """The units of work, small and picklable. Called on the driver; it should read names, not images.

        limit: largest number of images; 0: all. Keys must be unique across units; a repeated key within a unit is rejected when
        the unit is read. Raises UserError if the source cannot be used.
        """

    def read(self, unit: Any) -> Iterator[Candidate]:
        """Yields the images of a unit in order. Called in a task. An unreadable image is a Candidate with an error."""


def limited(items: list[Item], limit: int) -> list[Item]:
    """The first `limit` items; 0: all items."""
    return items[:limit] if limit else items


def in_units(items: list[Item], size: int) -> list[list[Item]]:
    """`items` cut into lists of `size`; the last one may be shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def encode_image(pixels: np.ndarray, image_format: str, quality: int = 95) -> bytes:
    """Encode RGB pixels, uint8 (height, width, 3), that have no original file. image_format: "jpeg" or "png"."""
    sink = io.BytesIO()
    options = {"quality": quality, "subsampling": 0} if image_format == "jpeg" else {}
    Image.fromarray(pixels).save(sink, image_format.upper(), **options)
    return sink.getvalue()
