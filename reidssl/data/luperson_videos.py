"""LUPerson as its authors released it: a list of videos and the detections in them (github.com/DengpanFu/LUPerson, folder LUP).

    vnames.txt        a line `country+city+key` for each video; the key is that of the video platform
    dets/<line>.pkl   for each video a pickle {frame: [[number, {"bbox": [x0, y0, x1, y1], "conf": score, ...}], ...], ...};
                      frames count from 1, numbers from 0 within a frame

The boxes are in pixels of the video as the authors had it. Neither file says how large that was: videos are offered at several
sizes, so the sizes have to be given or estimated.
"""

import io
import pickle
from typing import Any, NamedTuple

import numpy as np

from reidssl.data.labels import LARGEST, shown
from reidssl.data.mot import Detections
from reidssl.data.mot_lines import LARGEST_PIXEL
from reidssl.data.records import Aside, LayoutError, refuse_if_most

USUAL_HEIGHTS = (144, 240, 360, 480, 720)
"""Heights in pixels at which the video platform offered videos, up to the largest that the authors' program asked for."""
TOLERANCE = 0.02
"""Largest relative difference of a position or of a shape that counts as rounding."""
NUMBERS = {f"{kind}{size}" for kind, sizes in (("f", "248"), ("i", "1248"), ("u", "1248")) for size in sizes} | {"b1"}


class ListedVideo(NamedTuple):
    """A line of the list."""

    name: str
    """The whole line; the names of the video's files begin with it."""
    country: str
    city: str

    @property
    def key(self) -> str:
        """First part of the keys of its crops, with the folders of the published layout."""
        return f"{self.country}/{self.city}/{self.name}"


def read_names(text: str, aside: Aside) -> list[ListedVideo]:
    """The videos of a list, in order. Unusable and repeated lines go to `aside`: "vnames, line N" -> reason.

    Raises LayoutError if more than half of the lines are not of the form country+city+key.
    """
    found: dict[str, ListedVideo] = {}
    unfit: list[str] = []
    lines = [(number, line.strip()) for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1) if line.strip()]
    for number, line in lines:
        parts = line.split("+")
        if len(parts) != 3 or not all(parts) or "/" in line or {".", ".."} & set(parts) or not line.isprintable():
            unfit.append(f"line not understood: it must be country+city+key: got {shown(line)}")
            aside[f"vnames, line {number}"] = unfit[-1]
        elif line in found:
            aside[f"vnames, line {number}"] = f"listed twice: {shown(line)}"
        else:
            found[line] = ListedVideo(line, parts[0], parts[1])
    if unfit:
        refuse_if_most(len(unfit), len(lines), unfit[0].partition(": ")[2])
    return list(found.values())


def read_sizes(text: str) -> dict[str, tuple[int, int]]:
    """(height, width) of each video from lines `name,height,width`; a first line of titles and lines with `#` are skipped.

    Raises ValueError with the number and the content of the first bad line, or of a second size for a video.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        fields = [field.strip() for field in line.split(",")]
        if not line.strip() or line.lstrip().startswith("#") or (number == 1 and fields[1:] == ["height", "width"]):
            continue
        if len(fields) != 3 or not fields[0] or not all(_is_size(field) for field in fields[1:]):
            raise ValueError(f"line {number}: it must be name,height,width with sizes in pixels: got {shown(line)}")
        size = (int(fields[1]), int(fields[2]))
        if sizes.setdefault(fields[0], size) != size:
            raise ValueError(f"line {number}: a second size for {shown(fields[0])}")
    return sizes


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit() and 1 <= int(text) <= LARGEST_PIXEL


def estimated_size(detections: Detections, shape: tuple[int, int]) -> tuple[int, int] | None:
    """The smallest usual (height, width) of a video of this shape whose frame holds all boxes; None if none does.

    shape: (height, width) of the video as it is now. People reach the lower edge of most street videos, so the estimate is good
    for videos with many detections and too small for others.
    """
    for height in USUAL_HEIGHTS:
        size = (height, round(height * shape[1] / shape[0]))
        if not outside(detections, size):
            return size
    return None


def outside(detections: Detections, size: tuple[int, int]) -> bool:
    """Whether a box leads out of a frame of (height, width): detectors clip boxes, so they were made at another size."""
    right, bottom = (detections.boxes[:, :2] + detections.boxes[:, 2:]).max(axis=0, initial=0.0)
    return bool(bottom > (1 + TOLERANCE) * size[0] or right > (1 + TOLERANCE) * size[1])


# ---- detections


def read_detections(data: bytes, aside: Aside) -> Detections:
    """The detections of one video, from its pickle. `tracks` holds the number of the detection in its frame.

    Unusable ones go to `aside`: "frame N, number M" -> reason. Code in the file is never executed: only plain containers,
    numbers, texts and numeric arrays are read, arrays by this module's own reader.

    Raises LayoutError if the file is damaged, asks for code, is no such table, or if more than half of it is unusable.
    """
    return detections_of(unpickled(data), aside)


def unpickled(data: bytes) -> Any:
    """The content of a pickle of plain values. Raises LayoutError."""
    try:
        return _NumbersUnpickler(io.BytesIO(data), encoding="utf-8", errors="surrogateescape").load()
    except LayoutError:
        raise
    except Exception as error:  # a damaged pickle fails in many ways
        text = (str(error).splitlines() or [""])[0][:200]
        raise LayoutError(f"not a readable pickle ({len(data):,} bytes): {type(error).__name__}: {text}") from error


def detections_of(table: Any, aside: Aside) -> Detections:
    """As `read_detections`, of an unpickled table."""
    if not isinstance(table, dict):
        raise LayoutError(f"a table {{frame: [[number, {{'bbox': ...}}], ...]}} is needed: got {type(table).__name__}")
    rows: list[tuple[int, int, float, float, float, float, float]] = []
    unfit: list[str] = []
    for frame, found in table.items():
        for place, item in enumerate(found if isinstance(found, list | tuple) else [found]):
            try:
                rows.append(_row(frame, item))
            except ValueError as error:
                unfit.append(f"frame {shown(frame)}, number {place}")
                aside[unfit[-1]] = f"detection not understood: {error}"
    if unfit:
        refuse_if_most(len(unfit), len(rows) + len(unfit), f"{unfit[0]}: {aside[unfit[0]].partition(': ')[2]}")
    rows.sort(key=lambda row: row[:2])
    numbers = np.array([row[:2] for row in rows], np.int64).reshape(-1, 2)
    values = np.array([row[2:] for row in rows], np.float64).reshape(-1, 5)
    return Detections(numbers[:, 0], numbers[:, 1], values[:, :4], values[:, 4])


def _row(frame: Any, item: Any) -> tuple[int, int, float, float, float, float, float]:
    if isinstance(frame, bool) or not isinstance(frame, int) or not 1 <= frame <= LARGEST:
        raise ValueError(f"the frame must be a whole number from 1: got {shown(frame)}")
    if not isinstance(item, list | tuple) or len(item) != 2 or not isinstance(item[1], dict):
        raise ValueError(f"it must be [number, {{'bbox': ...}}]: got {shown(item)}")
    number, facts = item
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= LARGEST:
        raise ValueError(f"the number must be a whole number from 0: got {shown(number)}")
    box, score = _numbers(facts.get("bbox")), _numbers(facts.get("conf", 1.0))
    if box.size != 4 or not np.all(np.abs(box) <= LARGEST_PIXEL):
        raise ValueError(f"bbox must be 4 numbers of pixels: got {shown(facts.get('bbox'))}")
    if score.size != 1 or not np.isfinite(score).all():
        raise ValueError(f"conf must be a finite number: got {shown(facts.get('conf'))}")
    left, top, right, bottom = (float(value) for value in box)
    if right <= left or bottom <= top:
        raise ValueError(f"bbox must be left, top, right, bottom: got {[left, top, right, bottom]}")
    return frame, number, left, top, right - left, bottom - top, float(score[0])


def _numbers(value: Any) -> np.ndarray:
    """float64 (N,) of a number, a list of numbers or an array of the file; empty if it is something else."""
    try:
        return np.asarray(value.values if isinstance(value, _Array) else value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        return np.empty(0)


class _Dtype:
    """Stands for numpy.dtype in a pickle."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in NUMBERS:
            raise LayoutError(f"an array of {shown(code)} is not read: only plain numbers are")
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def read(self, data: Any) -> np.ndarray:
        """The numbers in `data`, (N,)."""
        raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else bytes(data)  # text: written by Python 2
        return np.frombuffer(raw, np.dtype(self.order + self.code))


class _Array:
    """Stands for numpy.ndarray in a pickle: the shape does not matter here."""

    values: np.ndarray = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        self.values = state[2].read(state[4])


def _made_array(*_: Any) -> _Array:
    return _Array()


def _from_buffer(buffer: Any, dtype: _Dtype, *_: Any) -> _Array:
    array = _Array()
    array.values = dtype.read(buffer)
    return array


def _scalar(dtype: _Dtype, data: Any) -> float:
    return float(dtype.read(data)[0])


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise LayoutError(f"text in {shown(encoding)} is not read")
    return text.encode("latin-1")


STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encoded,  # how old protocols write bytes
} | {
    (f"numpy.{core}.{module}", name): made
    for core in ("core", "_core")
    for module, name, made in (
        ("multiarray", "_reconstruct", _made_array),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _from_buffer),
    )
}


class _NumbersUnpickler(pickle.Unpickler):
    """Reads arrays with the stand-ins above, so that a pickle reaches neither numpy's own readers nor any other code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return STAND_INS[module_name, global_name]
        except KeyError:
            raise LayoutError(
                f"holds an object of {module_name}.{global_name} and is refused as dangerous: only numbers, texts and numeric "
                "arrays are read, since anything else could run code"
            ) from None
