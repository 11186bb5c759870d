"""The layout that Market-1501 began and others took over: bounding_box_train/, query/, bounding_box_test/.

Identity and camera are in the file's name, `<identity>_c<camera>...`, with identity -1 for junk boxes.
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
    """The images in the three folders, sorted by path; those of identity -1 are set aside.

    Args:
        files: paths relative to the root, which may be the data set's own folder or the one above it.
        data_set: its name, for messages.
        names: matches the beginning of a file's name; groups 1 and 2 are identity and camera.
        example: how a name looks, for messages.
        published: images by split, to warn (`LayoutWarning`) where other numbers are found; None does not.
        aside: filled with the images that are not used and why; None warns (`LayoutWarning`) of them.
        distractor: an identity that is many people and belongs in the gallery alone; None: there is none.

    A name that is not understood is set aside. Raises `LayoutError` when a folder is missing, there twice, or when more
    than half of its names are not understood: then it is another data set.
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
