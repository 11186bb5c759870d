"""The grid of a sweep: nested settings with lists of values, expanded into every combination."""

import itertools
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from platform.engine.errors import UserError

Point = dict[str, Any]
"""One combination: {"a.b.c": value}."""
MOST_TRIALS = 10_000
NAME_LENGTH = 120


def points(space: Mapping[str, Any], settings: Mapping[str, Any], reserved: Mapping[str, str]) -> list[Point]:
    """Every combination of the values in `space`.

    Args:
        settings: the nested settings with their current values.
        reserved: settings that must not be varied -> the reason.

    Raises UserError that names the key if `space` is not a grid over these settings, or has more than MOST_TRIALS combinations.
    """
    values = flat(space)
    for key in values:
        _check_key(key, settings)
        for name, reason in reserved.items():
            if key == name or key.startswith(f"{name}."):
                raise UserError(f"space.{key} cannot be swept: {reason}")
    number = math.prod(len(each) for each in values.values())
    if number > MOST_TRIALS:
        sizes = " x ".join(str(len(each)) for each in values.values())
        raise UserError(f"space has {number:,} combinations ({sizes}), at most {MOST_TRIALS:,} can be tried: give shorter lists")
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def flat(space: Any, prefix: str = "") -> dict[str, list[Any]]:
    """Flatten a nested space to {"a.b.c": values}. Raises UserError if a leaf is not a non-empty list of different values."""
    if not isinstance(space, Mapping):
        raise UserError(
            f"space must have settings as keys and lists of values, e.g. "
            f"{{unsupervised:{{cluster:{{eps:[0.5,0.6]}}}}}}: got {space!r}"
        )
    found: dict[str, list[Any]] = {}
    for key, value in space.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            below = flat(value, f"{name}.")
        elif isinstance(value, list) and value:
            below = {name: value}
            written = [json.dumps(each, sort_keys=True) for each in value]
            if len(set(written)) < len(written):
                twice = next(each for each in written if written.count(each) > 1)
                raise UserError(f"space.{name} has {twice} more than once: {value}")
        else:
            raise UserError(f"space.{name} must be a list of values to try, e.g. [0.5,0.6]: got {value!r}")
        repeated = found.keys() & below.keys()
        if repeated:
            raise UserError(f"space has {', '.join(sorted(repeated))} in two places: give its values in one list")
        found |= below
    return found


def _check_key(key: str, settings: Mapping[str, Any]) -> None:
    place: Any = settings
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(place, Mapping):
            raise UserError(
                f"space.{'.'.join(parts[:depth])} must be a list of values to try, e.g. [0.5,0.6]: got "
                f"'{part}' below it. A sweep is a grid: distributions such as uniform or choice are not known"
            )
        if part not in place:
            raise UserError(f"space: '{key}' is no setting of platform.finetune; its --help lists them")
        place = place[part]
    if isinstance(place, Mapping):
        raise UserError(f"space.{key} is a group of settings ({', '.join(place)}): give values for these")


def with_point(settings: dict[str, Any], point: Point) -> dict[str, Any]:
    """Set the values of a point in `settings`, in place, and return it. All keys of the point must exist."""
    for key, value in point.items():
        *path, last = key.split(".")
        place = settings
        for part in path:
            place = place[part]
        place[last] = value
    return settings


def name_of(point: Point) -> str:
    """Folder name of a point, e.g. eps=0.4-k1=20, cut to NAME_LENGTH characters."""
    text = "-".join(f"{key.split('.')[-1]}={value}" for key, value in point.items())
    return re.sub(r"[^\w.=,+\[\] -]+", "_", text)[:NAME_LENGTH]


def text_of(point: Point) -> str:
    """Name of a point in messages, e.g. unsupervised.cluster.eps=0.4, unsupervised.cluster.k1=20."""
    return ", ".join(f"{key}={value}" for key, value in point.items())
