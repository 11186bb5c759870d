"""CUHK03 (Li et al., CVPR 2014) in the new protocol (Zhong et al., CVPR 2017): 767 people to train, 700 to test.

Two sets of boxes, drawn by hand ("labeled") or by a detector ("detected"), which are never mixed. Two layouts are read:
    labeled/bounding_box_train/0001_c1_1.png ...     as the protocol's authors distribute it, one folder for each set
    images_labeled/1_001_1_01.png ... with splits_new_labeled.json, a list of {"train", "query", "gallery"}, each of
                                                     [path, identity, camera]: as torchreid unpacks the original
The counts are those of the protocol's paper and of its authors' download page (arXiv 1701.08398).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from reidssl.data import three_folders
from reidssl.data.records import SPLITS, LayoutError, Record, describe, warn_unless_published

BOXES = ("labeled", "detected")
PUBLISHED = {
    "labeled": {"train": 7_368, "query": 1_400, "gallery": 5_328},
    "detected": {"train": 7_365, "query": 1_400, "gallery": 5_332},
}
_NAMES = re.compile(r"(\d{1,6})_c(\d{1,3})_\d+")


def index(
    files: Sequence[str], read_text: Callable[[str], str], expect_published: bool = True, boxes: str = ""
) -> list[Record]:
    """The images of one set of boxes, sorted by path.

    `files` are paths relative to the root; `read_text(path)` gives a list's text. `boxes` is "labeled" or "detected";
    "" takes the one that is there. `expect_published` warns (`LayoutWarning`) when counts differ from the published
    ones. Raises `LayoutError` when neither or both are there, or a list or name is not understood.
    """
    if boxes not in ("", *BOXES):
        raise ValueError(f"boxes must be one of {', '.join(BOXES)}, or empty where only one is there: got {boxes!r}")
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
        records = _listed(files, lists[chosen][0], read_text(lists[chosen][0]), chosen)
    else:
        # Without a folder that says so, the root is the folder of one of the two itself: its numbers tell which.
        records = three_folders.read(
            folders[chosen] if chosen else files, "CUHK03", _NAMES, "<identity>_c<camera>_<number>.png", None
        )
        chosen = chosen or _by_counts(records)
    if expect_published:
        warn_unless_published(f"CUHK03 ({chosen})", records, PUBLISHED[chosen])
    return sorted(records)


def _by_counts(records: list[Record]) -> str:
    num_train = sum(record.split == "train" for record in records)
    return min(BOXES, key=lambda kind: abs(PUBLISHED[kind]["train"] - num_train))


def _listed(files: Sequence[str], name: str, text: str, kind: str) -> list[Record]:
    """The records that a splits_new_*.json names; its paths are another machine's, so only their last part counts."""
    root = str(PurePosixPath(name).parent).removeprefix(".")
    folder = f"{root}/images_{kind}/" if root else f"images_{kind}/"
    present = {path for path in files if path.startswith(folder)}
    try:
        (split,) = json.loads(text)
        rows = [(part, PurePosixPath(path.replace("\\", "/")).name, int(pid), int(camid))
                for part in SPLITS for path, pid, camid in split[part]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LayoutError(
            f"{name} is not understood ({type(error).__name__}: {error}): expected a list of one object with train, query "
            "and gallery, each of [path, identity, camera]"
        ) from None
    missing = [file for _, file, _, _ in rows if folder + file not in present]
    if missing:
        raise LayoutError(
            f"CUHK03: {len(missing):,} of {len(rows):,} images that {name} lists are not there, first {folder}{missing[0]}. "
            "Unpack the set again."
        )
    # Cameras are counted from 0 there; people are numbered from 0 in the training split and by themselves in the test.
    return [Record(folder + file, pid, camid + 1, part) for part, file, pid, camid in rows]
