"""Market-1501 (Zheng et al., ICCV 2015): `0002_c1s1_000451_03.jpg` in three folders.

The name gives identity 2, camera 1. Identity -1 marks junk, which the protocol ignores: it is left out
here. Identity 0 marks distractors, which stay in the gallery. Cameras keep their published numbers 1..6.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from reidssl.data.records import LayoutError, Record, describe, is_image, warn_unless_published

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
PUBLISHED = {"train": 12_936, "query": 3_368, "gallery": 15_913}  # 13,115 + 2,798 distractors, junk left out
_NAME = re.compile(r"(-1|\d{1,6})_c(\d{1,3})(?=s\d|_|\.)")


def index(
    files: Sequence[str], read_text: Callable[[str], str] | None = None, expect_published: bool = True
) -> list[Record]:
    """The images of a Market-1501 layout, sorted by path.

    `files` are paths relative to the root, which may be the data set's own folder or the one above it.
    `read_text` is not needed here; all layouts take it. `expect_published` warns (`LayoutWarning`) when
    counts differ from the published ones. Raises `LayoutError` when a folder is missing, there twice, or
    holds a name that is not understood.
    """
    records: list[Record] = []
    roots: dict[str, set[str]] = {folder: set() for folder in FOLDERS}
    for path in files:
        parent = PurePosixPath(path).parent
        if parent.name not in FOLDERS or not is_image(path):
            continue
        roots[parent.name].add(str(parent.parent))
        pid, camid = _parse(path)
        if pid != -1:
            records.append(Record(path, pid, camid, FOLDERS[parent.name]))
    missing = [folder for folder, found in roots.items() if not found]
    if missing:
        raise LayoutError(
            f"not a Market-1501 layout: no images in {', '.join(f'{m}/' for m in missing)}. "
            f"Found {describe(files)}. "
            f"Give the folder that holds {', '.join(f'{f}/' for f in FOLDERS)}."
        )
    all_roots = sorted(set().union(*roots.values()))
    if len(all_roots) > 1:
        raise LayoutError(
            f"more than one Market-1501 layout below this root: {', '.join(all_roots)}. Give one of them."
        )
    if expect_published:
        warn_unless_published("Market-1501", records, PUBLISHED)
    return sorted(records)


def _parse(path: str) -> tuple[int, int]:
    match = _NAME.match(PurePosixPath(path).name)
    if match is None:
        raise LayoutError(
            f"{path!r} is not a Market-1501 name: expected <identity>_c<camera>s<sequence>_<frame>_<box>.jpg"
        )
    return int(match[1]), int(match[2])
