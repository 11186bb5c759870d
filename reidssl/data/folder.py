"""Plain folders of images: unlabelled at any depth, or one folder per identity.

Labelled: `<identity>/<image>` (all training) or `<split>/<identity>/<image>` with the splits train,
query and gallery. A camera is read from the image's name where it has a part like `c3` or `cam3` between
`_`, `-` or `.`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from reidssl.data.records import SPLITS, LayoutError, Record, describe, is_image

_CAMERA = re.compile(r"(?:^|[_\-.])(?:c|cam)(\d{1,4})(?=s\d|[_\-.])", re.IGNORECASE)


def index(
    files: Sequence[str], read_text: Callable[[str], str] | None = None, labelled: bool = False
) -> list[Record]:
    """All images below the root, sorted by path.

    `files` are paths relative to the root. `read_text` is not needed here; all layouts take it.
    Unlabelled images get identity and camera -1. With `labelled`, an identity's number is its folder's
    name where all names are numbers, else the name's place in alphabetical order; one name is one
    identity in all splits. Raises `LayoutError` when there is no image, or when a labelled image lies
    too high or too deep.
    """
    images = sorted(path for path in files if is_image(path))
    if not images:
        raise LayoutError(f"no images below this folder. Found {describe(files)}.")
    if not labelled:
        return [Record(path, -1, -1, "train") for path in images]
    placed = [(path, *_place(path)) for path in images]
    names = sorted({identity for _, _, identity in placed})
    numeric = all(name.isascii() and name.isdecimal() for name in names)
    if numeric and len({int(name) for name in names}) < len(names):
        raise LayoutError(
            "two identity folders have the same number, such as 7/ and 007/: rename one of them"
        )
    pids = {name: int(name) if numeric else place for place, name in enumerate(names)}
    return [Record(path, pids[identity], _camera(path), split) for path, split, identity in placed]


def _place(path: str) -> tuple[str, str]:
    parts = path.split("/")
    if len(parts) == 3 and parts[0] in SPLITS:
        return parts[0], parts[1]
    if len(parts) == 2 and parts[0] not in SPLITS:
        return "train", parts[0]
    raise LayoutError(
        f"{path!r} is not at <identity>/<image> or <split>/<identity>/<image>, where a split is one of "
        f"{', '.join(SPLITS)}: move it, or take the folder as unlabelled"
    )


def _camera(path: str) -> int:
    match = _CAMERA.search(path.rsplit("/", 1)[-1])
    return int(match[1]) if match else -1
