"""CUHK03 (Li et al., CVPR 2014) with the new protocol (Zhong et al., CVPR 2017): 767 people to train, 700 to test.

There are two sets of boxes, drawn by hand ("labeled") or by a detector ("detected"). They must not be mixed. Two layouts are
supported:
    labeled/bounding_box_train/0001_c1_1.png ...     as distributed by the authors of the protocol, one folder for each set
    images_labeled/1_001_1_01.png ... with splits_new_labeled.json, a list of {"train", "query", "gallery"}, each of
                                                     [path, identity, camera]: as torchreid unpacks the original
The counts are those of the protocol's paper (arXiv 1701.08398) and of its authors' download page.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

from reidssl.data import three_folders
from reidssl.data.labels import LARGEST, shown, whole_number
from reidssl.data.records import (
    SPLITS,
    Aside,
    LayoutError,
    Record,
    describe,
    refuse_if_most,
    warn_of,
    warn_unless_published,
)

BOXES = ("labeled", "detected")
PUBLISHED = {
    "labeled": {"train": 7_368, "query": 1_400, "gallery": 5_328},
    "detected": {"train": 7_365, "query": 1_400, "gallery": 5_332},
}
_NAMES = re.compile(r"(\d{1,6})_c(\d{1,3})_\d+", re.ASCII)


def index(
    files: Sequence[str],
    read_text: Callable[[str], str],
    expect_published: bool = True,
    boxes: str = "",
    aside: Aside | None = None,
) -> list[Record]:
    """The images of one set of boxes, sorted by path.

    Args:
        files: paths relative to the root.
        read_text: function from the path of a list to its text.
        expect_published: give a `LayoutWarning` if the counts differ from the published ones.
        boxes: "labeled" or "detected"; "" selects the set that exists.
        aside: filled with the images or list entries that are not used, and why. None: a `LayoutWarning` is given instead.

    Raises ValueError for an unknown `boxes`. Raises `LayoutError` if the set does not exist, if both sets exist and `boxes` is
    empty, and if a list, or more than half of its entries or of the file names, cannot be read.
    """
    if boxes not in ("", *BOXES):
        raise ValueError(f"boxes must be one of {', '.join(BOXES)}, or empty where only one is there: got {boxes!r}")
    left_out: Aside = {} if aside is None else aside
    lists = {kind: [p for p in files if PurePosixPath(p).name == f"splits_new_{kind}.json"] for kind in BOXES}
    folders = {kind: [p for p in files if kind in PurePosixPath(p).parts[:-2]] for kind in BOXES}
    there = [kind for kind in BOXES if lists[kind] or folders[kind]]
    if not boxes and len(there) > 1:
        raise LayoutError("CUHK03 with labeled and with detected boxes: say which, boxes=labeled or boxes=detected")
    chosen = boxes or (there[0] if there else "")
    if boxes and boxes not in there:
        raise LayoutError(f"not CUHK03 with {boxes} boxes: no {boxes}/ and no splits_new_{boxes}.json. Found {describe(files)}.")
    if chosen and lists[chosen]:
        if len(lists[chosen]) > 1:
            raise LayoutError(f"more than one CUHK03 below this root: {', '.join(lists[chosen])}. Give the folder of one.")
        records = _listed(files, lists[chosen][0], read_text(lists[chosen][0]), chosen, left_out)
    else:
        # No folder is named after a set, so the root itself is the folder of one set. The image counts show which.
        records = three_folders.read(
            folders[chosen] if chosen else files, "CUHK03", _NAMES, "<identity>_c<camera>_<number>.png", None, left_out
        )
        chosen = chosen or _by_counts(records)
    if expect_published:
        warn_unless_published(f"CUHK03 ({chosen})", records, PUBLISHED[chosen])
    if aside is None:
        warn_of(left_out, f"CUHK03 ({chosen})")
    return sorted(records)


def _by_counts(records: list[Record]) -> str:
    num_train = sum(record.split == "train" for record in records)
    return min(BOXES, key=lambda kind: abs(PUBLISHED[kind]["train"] - num_train))


def _listed(files: Sequence[str], name: str, text: str, kind: str, aside: Aside) -> list[Record]:
    """The records listed in a splits_new_*.json. Its paths are of another machine, so only their last part is used."""
    root = str(PurePosixPath(name).parent).removeprefix(".")
    folder = f"{root}/images_{kind}/" if root else f"images_{kind}/"
    present = {path for path in files if path.startswith(folder)}
    records: dict[str, Record] = {}
    unfit: list[str] = []
    for part, number, entry in _entries(name, text):
        where = f"{name}, {part} {number}"
        try:
            record = _record(entry, folder, part)
            if record.key in records:
                raise ValueError(f"listed twice: {record.key} is listed for {records[record.key].split} already")
            if record.key not in present:
                raise ValueError(f"not there: {record.key} is listed, but the file does not exist")
            records[record.key] = record
        except ValueError as error:
            unfit.append(where)
            aside[where] = str(error)
    if unfit:
        refuse_if_most(len(unfit), len(unfit) + len(records), f"CUHK03: {unfit[0]}: {aside[unfit[0]]}. Unpack the set again")
    return list(records.values())


def _entries(name: str, text: str) -> list[tuple[str, int, Any]]:
    """(split, number from 1, entry) for the entries of a splits_new_*.json. Raises `LayoutError` for any other content."""
    try:
        (split,) = json.loads(text)
        return [(part, number, entry) for part in SPLITS for number, entry in enumerate(split[part], 1)]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LayoutError(
            f"{name} is not understood ({type(error).__name__}: {error}): expected a list of one object with train, query "
            "and gallery, each of [path, identity, camera]"
        ) from None


def _record(entry: Any, folder: str, part: str) -> Record:
    """The record of an entry [path, identity, camera]. Raises ValueError if the entry is invalid.

    Cameras are counted from 0 in the list and from 1 in the record. Training and test identities are numbered separately.
    """
    if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str)):
        raise ValueError(f"entry not understood: expected [path, identity, camera], got {shown(entry)}")
    labels = []
    for what, value in zip(("identity", "camera"), entry[1:], strict=True):
        try:
            number = whole_number(value)
        except ValueError as error:
            raise ValueError(f"entry not understood: {what} {error}") from None
        if not 0 <= number < LARGEST:
            raise ValueError(f"entry not understood: {what} {number} is not in 0..{LARGEST - 1}")
        labels.append(number)
    return Record(folder + PurePosixPath(entry[0].replace("\\", "/")).name, labels[0], labels[1] + 1, part)
