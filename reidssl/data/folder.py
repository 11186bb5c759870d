"""Plain folders of images: unlabeled at any depth, or one folder per identity.

Labeled: `<identity>/<image>` (all training) or `<split>/<identity>/<image>` with the splits train, query and gallery. The camera
is read from the image's name if it has a part like `c3` or `cam3` between `_`, `-` or `.`. For paths of any other form, a
regular expression extracts identity, camera and split.
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
    """A path and the names in it of split, identity and camera ("": unknown camera)."""

    path: str
    split: str
    identity: str
    camera: str


def check_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of labels.

    Raises ValueError unless it has at least one of the named groups pid, camid and split, and no other named group.
    """
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
        read_text: not used here; part of the interface of all layouts.
        labeled: read identities and cameras from the paths. Otherwise both are -1 and the split is train.
        pattern: regular expression, searched in each path, with named groups: `pid` instead of the folder (images may
            then be at any depth), `camid` instead of the usual forms in the name, `split` instead of the first folder.
        splits: further names of splits -> train, query or gallery.
        aside: filled with the images that are not used, and why. None: a `LayoutWarning` is given instead.

    A name that is a whole number up to 2147483647 is used as the number of the identity. Other names get the lowest free
    numbers in alphabetical order, with a `LayoutWarning`. The same applies to cameras found by a pattern. A name is the same
    identity in all splits. Negative identities are skipped as junk. Images at the wrong depth or not matched by the pattern are
    rejected.

    Raises `LayoutError` if there is no image, if more than half are rejected, or if two names are the same number, such as 7 and
    007.
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
    """The labels in a path. Raises ValueError if the path does not fit, or has no identity or an unknown split."""
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
