"""Records of the images of a data set, and functions that all layouts share."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".gif",
    ".ppm",
    ".pgm",
    ".pbm",
    ".heic",
    ".heif",
    ".avif",
)  # The decoder rejects the last three with a message that they must be converted.
SPLITS = ("train", "query", "gallery")


class Record(NamedTuple):
    """One image: key (path relative to the root), identity (-1: unlabeled), camera (-1: unknown) and split."""

    key: str
    pid: int
    camid: int
    split: str  # one of SPLITS; unlabeled images are "train"


class LayoutError(ValueError):
    """The files do not have the layout of the data set."""


class LayoutWarning(UserWarning):
    """The layout can be read, but differs from the published data set."""


Aside = dict[str, str]
"""Rejected images or list entries: path of the image, or name of the list with the line number, -> reason.

A reason begins with its kind and a colon, so that reasons can be counted by kind.
"""


def warn_of(aside: Aside, name: str) -> None:
    """Warn (`LayoutWarning`) about rejected images, counted by kind, for callers that do not request the list.

    name: the data set, for the message. Junk is part of published data sets and gives no warning.
    """
    aside = {path: reason for path, reason in aside.items() if not reason.startswith("junk:")}
    if aside:
        kinds = Counter(reason.partition(":")[0] for reason in aside.values())
        path, reason = next(iter(aside.items()))
        warnings.warn(
            f"{name}: {len(aside):,} set aside ("
            + ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
            + f"), the first is {path}: {reason}",
            LayoutWarning,
            stacklevel=3,
        )


def refuse_if_most(bad: int, total: int, message: str) -> None:
    """Raise LayoutError if more than half of `total` items are bad, because then the layout as a whole must be wrong."""
    if 2 * bad > total:
        raise LayoutError(f"{message} ({bad:,} of {total:,} like this)")


def list_files(root: str | os.PathLike[str]) -> list[str]:
    """Paths of all files below a local folder, for the `index` functions of the layouts: sorted, relative, with forward slashes.

    Symbolic links to folders are followed. Raises NotADirectoryError if `root` is not a folder.
    """
    if not Path(root).is_dir():
        raise NotADirectoryError(f"{os.fspath(root)} is no folder: name the one that the data set was unpacked into")
    return sorted(
        Path(parent, name).relative_to(root).as_posix() for parent, _, names in os.walk(root, followlinks=True) for name in names
    )


def is_image(path: str) -> bool:
    """Whether `path` has the suffix of an image. Hidden files and files in `__MACOSX` folders do not count."""
    if not path.lower().endswith(IMAGE_SUFFIXES):
        return False
    if "/." not in path and path[0] != "." and "__MACOSX" not in path:  # nearly all
        return True
    return not any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in path.split("/"))


def warn_unless_published(name: str, records: Iterable[Record], published: Mapping[str, int]) -> None:
    """Warn (`LayoutWarning`) if the number of images of a split is not the published one (`published`: split -> number)."""
    counts = dict.fromkeys(published, 0)
    for record in records:
        counts[record.split] += 1
    for split, expected in published.items():
        if counts[split] != expected:
            warnings.warn(
                f"{name}: {counts[split]:,} {split} images found, {expected:,} were published: "
                "results will not be comparable. Was a download or unpacking interrupted?",
                LayoutWarning,
                stacklevel=3,
            )


def describe(files: Iterable[str], limit: int = 6) -> str:
    """The first `limit` top-level folders and files of a listing, for error messages."""
    tops = sorted({path.split("/", 1)[0] + ("/" if "/" in path else "") for path in files})
    if not tops:
        return "no files at all"
    return ", ".join(tops[:limit]) + (f" and {len(tops) - limit} more" if len(tops) > limit else "")
