"""What a data set's layout says about each image, and the words all layouts share."""

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
)  # of the last three the decoder says that they must be converted
SPLITS = ("train", "query", "gallery")


class Record(NamedTuple):
    """One image: path relative to the root, identity (-1 unlabeled), camera (-1 unknown) and split."""

    key: str
    pid: int
    camid: int
    split: str  # one of SPLITS; unlabeled images are "train"


class LayoutError(ValueError):
    """The files are not laid out as the data set's description says."""


class LayoutWarning(UserWarning):
    """The layout can be read, but it is not the data set as published."""


Aside = dict[str, str]
"""What a layout does not use, and why: an image's path, or a list's with the number of the line, -> the reason.

A reason begins with its kind and a colon, so that many can be counted by kind.
"""


def warn_of(aside: Aside, name: str) -> None:
    """Warn (`LayoutWarning`) of what was set aside, by kind, for callers who do not ask for the list.

    Junk is part of published sets and gives no warning.
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
    """LayoutError where more than half do not fit: then it is not some items that are wrong, but the layout."""
    if 2 * bad > total:
        raise LayoutError(f"{message} ({bad:,} of {total:,} like this)")


def list_files(root: str | os.PathLike[str]) -> list[str]:
    """All files below a local folder as the layouts' `index` functions take them: sorted, relative, with forward slashes.

    Links to folders are followed. Raises NotADirectoryError where `root` is no folder.
    """
    if not Path(root).is_dir():
        raise NotADirectoryError(f"{os.fspath(root)} is no folder: name the one that the data set was unpacked into")
    return sorted(
        Path(parent, name).relative_to(root).as_posix() for parent, _, names in os.walk(root, followlinks=True) for name in names
    )


def is_image(path: str) -> bool:
    """Whether `path` names an image, judged by its suffix; hidden files and archive litter do not count."""
    if not path.lower().endswith(IMAGE_SUFFIXES):
        return False
    if "/." not in path and path[0] != "." and "__MACOSX" not in path:  # nearly all
        return True
    return not any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in path.split("/"))


def warn_unless_published(name: str, records: Iterable[Record], published: Mapping[str, int]) -> None:
    """Warn (`LayoutWarning`) when a split's number of images is not the published one."""
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
    """The first folders and files of a listing, for error messages."""
    tops = sorted({path.split("/", 1)[0] + ("/" if "/" in path else "") for path in files})
    if not tops:
        return "no files at all"
    return ", ".join(tops[:limit]) + (f" and {len(tops) - limit} more" if len(tops) > limit else "")
