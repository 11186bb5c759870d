"""MSMT17 (Wei et al., CVPR 2018), versions 1 and 2: lists of `<path> <identity>` beside the image folders.

Version 2 has the same pictures with faces masked and gives some 2-4 points of mAP less: never compare
the two. Training uses the lists `train` and `val` together. The camera (1..15) is the third `_` field of
the name, as in `0000/0000_000_01_0303morning_0015_0.jpg`. Training and test identities are numbered from
0 each: identity 5 of the training split and identity 5 of the test split are different people.
The counts are those of the paper's protocol and the same in both versions: 32,621 images (30,248 + 2,373) of 1,041
people to train, 11,659 queries and 82,161 gallery images of 3,060 others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

from reidssl.data.records import LayoutError, Record, describe, warn_unless_published

LISTS = {
    "list_train.txt": "train",
    "list_val.txt": "train",
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}
IMAGE_FOLDERS = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}
PUBLISHED = {"train": 32_621, "query": 11_659, "gallery": 82_161}


def find(files: Sequence[str]) -> tuple[str, str]:
    """The data set's folder relative to the root ("" or ending in "/") and its version, "V1" or "V2".

    Raises `LayoutError` when there is none, or more than one.
    """
    roots = sorted(
        path[: -len("list_train.txt")] for path in files if PurePosixPath(path).name == "list_train.txt"
    )
    if not roots:
        raise LayoutError(
            f"not an MSMT17 layout: no list_train.txt. Found {describe(files)}. "
            "Give the folder MSMT17_V1 or MSMT17_V2."
        )
    candidates = [
        (root, version)
        for root in roots
        for version, (train, test) in IMAGE_FOLDERS.items()
        if all(any(path.startswith(f"{root}{folder}/") for path in files) for folder in (train, test))
    ]
    if len(candidates) > 1:
        found = ", ".join(f"{root or '.'} ({version})" for root, version in candidates)
        raise LayoutError(f"more than one MSMT17 below this root: {found}. Give the folder of one version.")
    if not candidates:
        folders = " or ".join(f"{train}/ and {test}/" for train, test in IMAGE_FOLDERS.values())
        raise LayoutError(
            f"MSMT17 lists without images: expected {folders} beside {roots[0] or './'}list_train.txt"
        )
    return candidates[0]


def index(
    files: Sequence[str], read_text: Callable[[str], str], expect_published: bool = True
) -> list[Record]:
    """The images that the four lists of an MSMT17 layout name, sorted by path.

    `files` are paths relative to the root; `read_text(path)` gives a list's text. `expect_published`
    warns (`LayoutWarning`) when counts differ from the published ones. Raises `LayoutError` for a
    missing list, a line that is not understood, an image that is listed twice or is not there.
    """
    root, version = find(files)
    train, test = IMAGE_FOLDERS[version]
    present, records = set(files), {}
    missing: list[str] = []
    for name, split in LISTS.items():
        if root + name not in present:
            raise LayoutError(
                f"MSMT17 {version}: {root + name} is missing; all of {', '.join(LISTS)} are needed"
            )
        folder = train if split == "train" else test
        for path, pid, where in _lines(read_text(root + name), root + name):
            key = f"{root}{folder}/{path}"
            if key in records:
                raise LayoutError(f"{where}: {path} is listed twice")
            if key not in present:
                missing.append(key)
            records[key] = Record(key, pid, _camera(path, where), split)
    if missing:
        raise LayoutError(
            f"MSMT17 {version}: {len(missing):,} of {len(records):,} listed images are not there, "
            f"first {missing[0]}. Unpack the set again."
        )
    if expect_published:
        warn_unless_published(f"MSMT17 {version}", records.values(), PUBLISHED)
    return sorted(records.values())


def _lines(text: str, name: str) -> Iterator[tuple[str, int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        path, _, pid = line.strip().rpartition(" ")
        if not path or not pid.isdecimal():
            raise LayoutError(f"{name}, line {number}: expected '<path> <identity>', got {line[:80]!r}")
        yield path.strip(), int(pid), f"{name}, line {number}"


def _camera(path: str, where: str) -> int:
    fields = PurePosixPath(path).name.split("_")
    if len(fields) < 4 or not fields[2].isdecimal():
        raise LayoutError(f"{where}: {path} has no camera number in the third '_' field of its name")
    return int(fields[2])
