"""Plain folders of images: unlabeled at any depth, or one folder per identity.

Labeled: `<identity>/<image>` (all training) or `<split>/<identity>/<image>` with the splits train,
query and gallery. A camera is read from the image's name where it has a part like `c3` or `cam3` between
`_`, `-` or `.`. A pattern says where identity, camera and split are in paths of any other kind.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from reidssl.data.labels import numbered, split_name
from reidssl.data.records import SPLITS, Aside, LayoutError, Record, describe, is_image, refuse_if_most, warn_of

GROUPS = ("pid", "camid", "split")
_CAMERA = re.compile(r"(?:^|[_\-.])(?:c|cam)([0-9]{1,4})(?=s[0-9]|[_\-.])", re.IGNORECASE)
_NEGATIVE = re.compile(r"-[0-9]+")


class _Found(NamedTuple):
    """What a path says, by name; "" for a camera that it does not tell."""

    path: str
    split: str
    identity: str
    camera: str


def check_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of labels. Raises ValueError unless it has one of the named groups pid, camid, split, and no other."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern must be a regular expression: got {pattern!r} ({error})") from None
    if not compiled.groupindex or set(compiled.groupindex) - set(GROUPS):
        raise ValueError(
            f"pattern must have named groups out of {', '.join(GROUPS)}, such as '_c(?P<camid>[0-9]+)_': got {pattern!r}"
        )
    return compiled


def index(
    files: Sequence[str],
    read_text: Callable[[str], str] | None = None,
    labeled: bool = False,
    pattern: str = "",
    splits: Mapping[str, str] | None = None,
    aside: Aside | None = None,
) -> list[Record]:
    """All images below the root, sorted by path.

    Args:
        files: paths relative to the root.
        read_text: not needed here; all layouts take it.
        labeled: take identities and cameras from the paths; otherwise both are -1 and the split is train.
        pattern: regular expression, searched in each path, with named groups: `pid` instead of the folder (images may
            then lie at any depth), `camid` instead of the usual forms in the name, `split` instead of the first folder.
        splits: other names of splits and which of train, query, gallery they are.
        aside: filled with the images that are not used and why; None warns (`LayoutWarning`) of them.

    An identity's number is its name where that is a whole number up to 2147483647; other names get the lowest free
    numbers in alphabetical order, and a `LayoutWarning` says so; the same for cameras that a pattern finds. One name is
    one identity in all splits. Identity -1 is junk and is set aside, as is an image that lies too high or too deep, or
    that the pattern does not match. Raises `LayoutError` when there is no image, when more than half do not fit, or when
    two identities have one number, as 7 and 007.
    """
    images = sorted(path for path in files if is_image(path))
    if not images:
        raise LayoutError(f"no images below this folder. Found {describe(files)}.")
    if not labeled:
        return [Record(path, -1, -1, "train") for path in images]
    left_out: Aside = {} if aside is None else aside
    compiled = check_pattern(pattern) if pattern else None
    found, unfit = [], []
    for path in images:
        try:
            told = _told(path, compiled, splits or {})
        except ValueError as error:
            left_out[path] = f"not labeled: {error}"
            unfit.append(path)
            continue
        if _NEGATIVE.fullmatch(told.identity):
            left_out[path] = f"junk: identity {told.identity} is nobody"
        else:
            found.append(told)
    if unfit:
        refuse_if_most(len(unfit), len(images), left_out[unfit[0]])
    pids = numbered((each.identity for each in found), "identities")
    cameras = {"": -1, "-1": -1}
    cameras |= numbered((each.camera for each in found if each.camera not in cameras), "cameras")
    if aside is None:
        warn_of(left_out, "folder")
    return [Record(each.path, pids[each.identity], cameras[each.camera], each.split) for each in found]


def _told(path: str, pattern: re.Pattern[str] | None, splits: Mapping[str, str]) -> _Found:
    """What a path says. Raises ValueError where it says no identity."""
    groups: dict[str, str | None] = {}
    if pattern is not None:
        match = pattern.search(path)
        if match is None:
            raise ValueError(f"{path!r} does not match the pattern {pattern.pattern!r}")
        groups = match.groupdict()
    parts = path.split("/")
    in_split = parts[0] in SPLITS or parts[0] in splits
    if "pid" not in groups and len(parts) != 2 + in_split:
        known = ", ".join([*SPLITS, *splits])
        raise ValueError(
            f"{path!r} is not at <identity>/<image> or <split>/<identity>/<image>, where a split is one of {known}: move it, "
            "say where identities are with a pattern, or take the folder as unlabeled"
        )
    identity = groups["pid"] if "pid" in groups else parts[-2]
    if not identity:
        raise ValueError(f"{path!r} has no identity where the pattern looks for it")
    split = split_name(groups["split"], splits) if "split" in groups else split_name(parts[0], splits) if in_split else "train"
    return _Found(path, split, identity, (groups["camid"] or "") if "camid" in groups else _camera(parts[-1]))


def _camera(name: str) -> str:
    match = _CAMERA.search(name)
    return str(int(match[1])) if match else ""
