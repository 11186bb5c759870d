"""The space of a sweep: nested settings with lists of values or distributions, and the points in it."""

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from platform.engine.config.compose import composed_values
from platform.engine.config.groups import choices_of_groups, groups_of
from platform.engine.errors import UserError
from platform.engine.schemas.finetune_settings import FinetuneConfig
from platform.engine.sweep.draws import Draw, read_draw, refuse_repeated

Point = dict[str, Any]
"""One trial's values: {"a.b.c": value}. The key of a config group, e.g. "model", has the name of a choice."""
MOST_TRIALS = 10_000
NAME_LENGTH = 120
EXAMPLE = "e.g. [0.5,0.6], or draw them: {uniform:[0.4,0.7]}, log_uniform, integer or choice"


@dataclass(frozen=True)
class Space:
    """The settings that vary."""

    lists: dict[str, list[Any]]
    """Settings with a list of values, of which every combination is tried."""
    draws: dict[str, Draw]
    """Settings whose values are drawn."""

    def points(self, samples: int, seed: int) -> list[Point]:
        """Every combination of the lists with each of `samples` draws. A draw that repeats an earlier one is left out.

        The draws are a pure function of (seed, number of the draw). Raises UserError for more than MOST_TRIALS points.
        """
        drawn = [self._draw(np.random.default_rng((seed, number))) for number in range(samples if self.draws else 1)]
        drawn = list({json.dumps(each, sort_keys=True): each for each in drawn}.values())
        number = math.prod(map(len, self.lists.values())) * len(drawn)
        if number > MOST_TRIALS:
            sizes = " x ".join(str(len(each)) for each in [*self.lists.values(), *([drawn] if self.draws else [])])
            raise UserError(
                f"space has {number:,} combinations ({sizes}), at most {MOST_TRIALS:,} can be tried: give shorter lists"
            )
        return [
            dict(zip(self.lists, chosen, strict=True)) | draw
            for draw in drawn
            for chosen in itertools.product(*self.lists.values())
        ]

    def as_draws(self) -> dict[str, Draw]:
        """All settings as distributions; a list becomes a choice."""
        return {name: Draw("choice", tuple(values)) for name, values in self.lists.items()} | self.draws

    def corners(self) -> list[Point]:
        """Points that together have every choice and both ends of every distribution."""
        values = [(name, draw.corners) for name, draw in self.as_draws().items()]
        longest = max(len(each) for _, each in values)
        return [{name: each[min(number, len(each) - 1)] for name, each in values} for number in range(longest)]

    def _draw(self, generator: np.random.Generator) -> Point:
        return {name: draw.sample(generator) for name, draw in self.draws.items()}


def read_space(space: Mapping[str, Any], settings: Mapping[str, Any], reserved: Mapping[str, str]) -> Space:
    """The space that the setting `space` describes.

    Args:
        settings: the nested settings with their current values.
        reserved: settings that must not be varied -> the reason.

    Raises UserError that names the key if `space` has a key that is no setting, or a value that is neither a list nor a
    distribution.
    """
    values = flat(space)
    for key, value in values.items():
        _check_key(key, value, settings)
        for name, reason in reserved.items():
            if key == name or key.startswith(f"{name}."):
                raise UserError(f"space.{key} cannot be swept: {reason}")
    draws = {key: value for key, value in values.items() if isinstance(value, Draw)}
    return Space({key: value for key, value in values.items() if not isinstance(value, Draw)}, draws)


def flat(space: Any, prefix: str = "") -> dict[str, list[Any] | Draw]:
    """Flatten a nested space to {"a.b.c": list or distribution}. Raises UserError for any other leaf and for repeated values."""
    if not isinstance(space, Mapping):
        raise UserError(
            f"space must have settings as keys and lists of values, e.g. "
            f"{{unsupervised:{{cluster:{{eps:[0.5,0.6]}}}}}}: got {space!r}"
        )
    found: dict[str, list[Any] | Draw] = {}
    for key, value in space.items():
        name = f"{prefix}{key}"
        below: dict[str, list[Any] | Draw]
        if isinstance(value, Mapping) and value:
            draw = read_draw(name, value)
            below = {name: draw} if draw else flat(value, f"{name}.")
        elif isinstance(value, list) and value:
            below = {name: value}
            refuse_repeated(name, value)
        else:
            raise UserError(f"space.{name} must be a list of values to try, {EXAMPLE}: got {value!r}")
        repeated = found.keys() & below.keys()
        if repeated:
            raise UserError(f"space has {', '.join(sorted(repeated))} in two places: give its values in one list")
        found |= below
    return found


def _check_key(key: str, value: list[Any] | Draw, settings: Mapping[str, Any]) -> None:
    place: Any = settings
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(place, Mapping):
            raise UserError(f"space.{'.'.join(parts[:depth])} must be a list of values to try, {EXAMPLE}: got '{part}' below it")
        if part not in place:
            raise UserError(f"space: '{key}' is no setting of platform.finetune; its --help lists them")
        place = place[part]
    if not isinstance(place, Mapping):
        return
    choices = choices_of_groups()[key] if key in groups_of("finetune") else []
    values = value.values if isinstance(value, Draw) else value
    if not choices:
        raise UserError(f"space.{key} is a group of settings ({', '.join(place)}): give values for these")
    for each in values:
        if each not in choices:
            raise UserError(f"space.{key}: there is no configs/{key}/{each}.yaml; choices: {', '.join(choices)}")


def with_point(settings: dict[str, Any], point: Point) -> dict[str, Any]:
    """Set the values of a point in `settings`, in place, and return it. All keys of the point must exist.

    The choice of a config group replaces all settings of the group, before single settings are set.
    """
    for key, value in sorted(point.items(), key=lambda item: not _is_group(*item)):
        *path, last = key.split(".")
        place = settings
        for part in path:
            place = place[part]
        place[last] = _of_group(key, value) if _is_group(key, value) else value
    return settings


def _is_group(key: str, value: Any) -> bool:
    return isinstance(value, str) and "." not in key and key in groups_of("finetune")


@lru_cache
def _composed(group: str, choice: str) -> str:
    return json.dumps(composed_values(FinetuneConfig, "finetune", [f"{group}={choice}"])[group])


def _of_group(group: str, choice: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_composed(group, choice))
    return found


def name_of(point: Point) -> str:
    """Folder name of a point, e.g. eps=0.4-k1=20, cut to NAME_LENGTH characters."""
    text = "-".join(f"{key.split('.')[-1]}={value}" for key, value in point.items())
    return re.sub(r"[^\w.=,+\[\] -]+", "_", text)[:NAME_LENGTH]


def text_of(point: Point) -> str:
    """Name of a point in messages, e.g. unsupervised.cluster.eps=0.4, unsupervised.cluster.k1=20."""
    return ", ".join(f"{key}={value}" for key, value in point.items())
