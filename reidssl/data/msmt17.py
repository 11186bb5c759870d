"""MSMT17 (Wei et al., CVPR 2018), versions 1 and 2: lists of `<path> <identity>` beside the image folders.

Version 2 has the same images with masked faces. Its mAP is about 2 to 4 points lower, so results of the two versions must not
be compared. Training uses the lists `train` and `val` together. The camera (1..15) is the third `_` field of the name, as in
`0000/0000_000_01_0303morning_0015_0.jpg`. Training and test identities are both numbered from 0: identity 5 of the training
split and identity 5 of the test split are different people. The counts are those of the paper's protocol and the same in both
versions: 32,621 training images (30,248 + 2,373) of 1,041 people, 11,659 queries and 82,161 gallery images of 3,060 others.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

from reidssl.data.labels import whole_number
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

    Raises `LayoutError` if there is no MSMT17 or more than one.
    """
    roots = sorted(path[: -len("list_train.txt")] for path in files if PurePosixPath(path).name == "list_train.txt")
    if not roots:
        raise LayoutError(
            f"not an MSMT17 layout: no list_train.txt. Found {describe(files)}. Give the folder MSMT17_V1 or MSMT17_V2."
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
        raise LayoutError(f"MSMT17 lists without images: expected {folders} beside {roots[0] or './'}list_train.txt")
    return candidates[0]


def index(
    files: Sequence[str],
    read_text: Callable[[str], str],
    expect_published: bool = True,
    aside: Aside | None = None,
) -> list[Record]:
    """The images in the four lists of an MSMT17 layout, sorted by path.

    A line that cannot be read, or whose image does not exist or is already listed, is rejected.

    Args:
        files: paths relative to the root.
        read_text: function from the path of a list to its text.
        expect_published: give a `LayoutWarning` if the counts differ from the published ones.
        aside: filled with "<list>, line <n>" -> reason for each rejected line. None: a `LayoutWarning` is given instead.

    Raises `LayoutError` if a list is missing or empty, and if more than half of the lines of a list are rejected.
    """
    root, version = find(files)
    train, test = IMAGE_FOLDERS[version]
    present = set(files)
    absent = [root + name for name in LISTS if root + name not in present]
    if absent:
        raise LayoutError(f"MSMT17 {version}: {absent[0]} is missing; all of {', '.join(LISTS)} are needed")
    left_out: Aside = {} if aside is None else aside
    records: dict[str, Record] = {}
    lines: dict[str, str] = {}
    for name, split in LISTS.items():
        folder = train if split == "train" else test
        unfit, total = [], 0
        for where, line in _lines(read_text(root + name), root + name):
            total += 1
            try:
                record = _record(line, f"{root}{folder}/", split)
                if record.key in records:
                    raise ValueError(
                        f"listed twice: {record.key} is in {lines[record.key]} already, as identity "
                        f"{records[record.key].pid}; here it is {record.pid}"
                    )
                if record.key not in present:
                    raise ValueError(f"not there: {record.key} is listed, but the file does not exist")
            except ValueError as error:
                unfit.append(where)
                left_out[where] = str(error)
                continue
            records[record.key], lines[record.key] = record, where
        if not total:
            raise LayoutError(f"MSMT17 {version}: {root + name} is empty: unpack the set again")
        if unfit:
            refuse_if_most(len(unfit), total, f"MSMT17 {version}: {unfit[0]}: {left_out[unfit[0]]}")
    if expect_published:
        warn_unless_published(f"MSMT17 {version}", records.values(), PUBLISHED)
    if aside is None:
        warn_of(left_out, f"MSMT17 {version}")
    return sorted(records.values())


def _lines(text: str, name: str) -> Iterator[tuple[str, str]]:
    """("<list>, line <n>", the line) for every line that is not blank."""
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if line.strip():
            yield f"{name}, line {number}", line.strip()


def _record(line: str, folder: str, split: str) -> Record:
    """The record of a line. Raises ValueError if the line is invalid."""
    path, *rest = line.rsplit(maxsplit=1)
    try:
        pid = whole_number(rest[0]) if rest else -1
    except ValueError:
        pid = -1
    if pid < 0 or not is_image(path):
        raise ValueError(f"line not understood: expected '<path> <identity>', got {line[:80]!r}")
    fields = PurePosixPath(path).name.split("_")
    try:
        camid = whole_number(fields[2]) if len(fields) > 3 else -1
    except ValueError:
        camid = -1
    if camid < 0:
        raise ValueError(f"line not understood: {path} has no camera number in the third '_' field of its name")
    return Record(folder + path, pid, camid, split)
