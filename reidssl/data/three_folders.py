"""The layout of Market-1501, also used by other data sets: bounding_box_train/, query/, bounding_box_test/.

A file name gives identity and camera, `<identity>_c<camera>...`. Identity -1 marks junk boxes.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from reidssl.data.records import (
    Aside,
    LayoutError,
    Record,
    describe,
    is_image,
    refuse_if_most,
    warn_of,
    warn_unless_published,
)

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}


def read(
    files: Sequence[str],
    data_set: str,
    names: re.Pattern[str],
    example: str,
    published: Mapping[str, int] | None,
    aside: Aside | None = None,
    distractor: int | None = None,
) -> list[Record]:
    """The images in the three folders, sorted by path.

    Images of identity -1 are skipped as junk, and file names that do not match are rejected.

    Args:
        files: paths relative to the root, which may be the data set's own folder or the one above it.
        data_set: name of the data set, for messages.
        names: pattern that matches the beginning of a file name; groups 1 and 2 are identity and camera.
        example: form of a file name, for messages.
        published: published number of images by split. A `LayoutWarning` is given if the numbers differ. None: no check.
        aside: filled with the images that are not used, and why. None: a `LayoutWarning` is given instead.
        distractor: identity that stands for many people and is allowed in the gallery only. None: there is none.

    Raises `LayoutError` if a folder is missing or exists twice, and if more than half of the names in a folder do not match,
    because then it is another data set.
    """
    records: list[Record] = []
    left_out: Aside = {} if aside is None else aside
    roots: dict[str, set[str]] = {folder: set() for folder in FOLDERS}
    totals: Counter[str] = Counter()
    unfit: dict[str, list[str]] = {folder: [] for folder in FOLDERS}
    for path in files:
        place = PurePosixPath(path)
        folder, split = place.parent.name, FOLDERS.get(place.parent.name)
        if split is None or not is_image(path):
            continue
        roots[folder].add(str(place.parent.parent))
        totals[folder] += 1
        match = names.match(place.name)
        if match is None:
            left_out[path] = f"name not understood: {path!r} is not a {data_set} name: expected {example}"
            unfit[folder].append(path)
            continue
        pid = int(match[1])
        if pid == -1:
            left_out[path] = "junk: identity -1, which the protocol ignores"
        elif pid == distractor and split != "gallery":
            left_out[path] = f"distractor: identity {pid} is many people and belongs in the gallery alone, not in {folder}/"
        else:
            records.append(Record(path, pid, int(match[2]), split))
    _refuse_other_roots(files, data_set, roots)
    for folder, paths in unfit.items():
        if paths:
            refuse_if_most(len(paths), totals[folder], left_out[paths[0]].partition(": ")[2])
    if published is not None:
        warn_unless_published(data_set, records, published)
    if aside is None:
        warn_of(left_out, data_set)
    return sorted(records)


def _refuse_other_roots(files: Sequence[str], data_set: str, roots: Mapping[str, set[str]]) -> None:
    missing = [folder for folder, found in roots.items() if not found]
    if missing:
        raise LayoutError(
            f"not a {data_set} layout: no images in {', '.join(f'{m}/' for m in missing)}. "
            f"Found {describe(files)}. "
            f"Give the folder that holds {', '.join(f'{f}/' for f in FOLDERS)}."
        )
    all_roots = sorted(set().union(*roots.values()))
    if len(all_roots) > 1:
        raise LayoutError(f"more than one {data_set} layout below this root: {', '.join(all_roots)}. Give one of them.")
