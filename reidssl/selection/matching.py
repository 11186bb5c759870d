"""Matching of the paths in a list with the keys of a data set, if the two are written differently."""

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from reidssl.selection.published import PUBLISHED_FOLDER

DRIVE = re.compile(r"^[A-Za-z]:")


@dataclass(frozen=True)
class Matched:
    """The result of matching a list with a data set."""

    places: np.ndarray
    """int64 (B,), for every key its position in the list, from 0; -1 if it is not in the list."""
    absent: list[str]
    """Entries that match no image of the data set, unchanged and in the order of the list."""
    entry_prefix: str = ""
    """Leading folders of the entries that the keys do not have; "" if none."""
    key_prefix: str = ""
    """Leading folders of the keys that the entries do not have; "" if none."""


def match_entries(entries: Sequence[str], keys: Sequence[str]) -> Matched:
    """Match the entries of a list with the keys of a data set, for any form of the paths.

    Paths are compared after normalization: with forward slashes, and without `./`, drive, double or leading slashes and a leading
    "images/". Entries that do not match are compared again without a common prefix: either the leading folders of more than half
    of these entries (absolute paths), or the leading folders of all keys. The same prefix is used for all, so that an image is
    never matched by its file name in a different folder.

    Args:
        entries: paths, best first.
        keys: unique keys of the data set (B,).

    Raises:
        ValueError: two entries match the same image (the message shows examples), or two keys are equal after normalization.
    """
    plain, names = [_plain(entry) for entry in entries], [_plain(key) for key in keys]
    places = {name: place for place, name in enumerate(names)}
    if len(places) != len(names):
        raise ValueError(f"{len(names) - len(places)} keys of the data set differ from others in spelling only")
    found = [places.get(name, -1) for name in plain]
    missing = [place for place, image in enumerate(found) if image < 0]
    entry_prefix = key_prefix = ""
    if missing:
        entry_prefix = _shared((_prefix_before(plain[place], places) for place in missing), len(missing) // 2 + 1)
        if entry_prefix:
            for place in missing:
                if plain[place].startswith(entry_prefix):
                    found[place] = places.get(_plain(plain[place][len(entry_prefix) :]), -1)
        else:
            wanted = {plain[place]: place for place in missing}
            key_prefix = _shared((_prefix_before(name, wanted) for name in names), 1)
            if all(name.startswith(key_prefix) for name in names):
                for image, name in enumerate(names if key_prefix else []):
                    if name[len(key_prefix) :] in wanted:
                        found[wanted[name[len(key_prefix) :]]] = image
            else:
                key_prefix = ""
    _refuse_repeated(entries, plain, found)
    order = np.full(len(keys), -1, np.int64)
    for place, image in enumerate(found):
        if image >= 0:
            order[image] = place
    return Matched(order, [entries[place] for place, image in enumerate(found) if image < 0], entry_prefix, key_prefix)


def _plain(path: str) -> str:
    """Normalize a path: `.\\images\\a\\.\\b.jpg`, `/images/a//b.jpg`, `C:\\images\\a\\b.jpg` -> `a/b.jpg`."""
    normal = posixpath.normpath(DRIVE.sub("", path.strip().replace("\\", "/"))).lstrip("/")
    return normal.removeprefix(PUBLISHED_FOLDER)


def _prefix_before(path: str, known: dict[str, int]) -> str:
    """The shortest prefix of leading folders of `path`, with its slash, that is followed by a known path; "" if none."""
    start = path.find("/") + 1
    while start:
        rest = path[start:]
        if rest in known:
            return path[:start]
        if rest.startswith(PUBLISHED_FOLDER) and rest.removeprefix(PUBLISHED_FOLDER) in known:
            return path[: start + len(PUBLISHED_FOLDER)]
        start = path.find("/", start) + 1
    return ""


def _shared(prefixes: Iterable[str], fewest: int) -> str:
    """The most frequent prefix that is not empty, if it occurs at least `fewest` times, else ""."""
    counts = Counter(filter(None, prefixes)).most_common(1)
    return counts[0][0] if counts and counts[0][1] >= fewest else ""


def _refuse_repeated(entries: Sequence[str], plain: Sequence[str], found: Sequence[int]) -> None:
    names = [f"#{image}" if image >= 0 else name for image, name in zip(found, plain, strict=True)]
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        shown = ", ".join(f"'{entries[names.index(name)]}'" for name in repeated[:3])
        raise ValueError(
            f"{len(repeated):,} images are named more than once, e.g. {shown}: which place counts is not clear; "
            "leave the others out"
        )
