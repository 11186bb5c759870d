"""The layout that Market-1501 began and others took over: bounding_box_train/, query/, bounding_box_test/.

Identity and camera are in the file's name, `<identity>_c<camera>...`, with identity -1 for junk boxes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from reidssl.data.records import LayoutError, Record, describe, is_image, warn_unless_published

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}


def read(
    files: Sequence[str],
    data_set: str,
    names: re.Pattern[str],
    example: str,
    published: Mapping[str, int] | None,
) -> list[Record]:
    """The images in the three folders, sorted by path; those of identity -1 are left out.

    Args:
        files: paths relative to the root, which may be the data set's own folder or the one above it.
        data_set: its name, for messages.
        names: matches the beginning of a file's name; groups 1 and 2 are identity and camera.
        example: how a name looks, for messages.
        published: images by split, to warn (`LayoutWarning`) where other numbers are found; None does not.

    Raises `LayoutError` when a folder is missing, there twice, or holds a name that is not understood.
    """
    records: list[Record] = []
    roots: dict[str, set[str]] = {folder: set() for folder in FOLDERS}
    for path in files:
        parent = PurePosixPath(path).parent
        if parent.name not in FOLDERS or not is_image(path):
            continue
        roots[parent.name].add(str(parent.parent))
        match = names.match(PurePosixPath(path).name)
        if match is None:
            raise LayoutError(f"{path!r} is not a {data_set} name: expected {example}")
        if int(match[1]) != -1:
            records.append(Record(path, int(match[1]), int(match[2]), FOLDERS[parent.name]))
    missing = [folder for folder, found in roots.items() if not found]
    if missing:
        raise LayoutError(
            f"not a {data_set} layout: no images in {', '.join(f'{m}/' for m in missing)}. "
            f"Found {describe(files)}. "
            f"Give the folder that holds {', '.join(f'{f}/' for f in FOLDERS)}."
        )
    all_roots = sorted(set().union(*roots.values()))
    if len(all_roots) > 1:
        raise LayoutError(
            f"more than one {data_set} layout below this root: {', '.join(all_roots)}. Give one of them."
        )
    if published is not None:
        warn_unless_published(data_set, records, published)
    return sorted(records)
