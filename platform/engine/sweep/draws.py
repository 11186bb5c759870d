"""Distributions in the space of a sweep, from which the values of a setting are drawn."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from platform.engine.errors import UserError
from platform.engine.schemas.tune_settings import DRAWS

DIGITS = 4  # significant digits of a drawn number, so that names of trials and tables stay readable


@dataclass(frozen=True)
class Draw:
    """A distribution of a setting.

    kind: choice (one of `values`, all equally likely), uniform, log_uniform or integer (between the two `values`, both
    included).
    """

    kind: str
    values: tuple[Any, ...]

    def sample(self, generator: np.random.Generator) -> Any:
        """One value."""
        if self.kind == "choice":
            return self.values[int(generator.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "integer":
            return int(generator.integers(low, high, endpoint=True))
        if self.kind == "uniform":
            return self._rounded(generator.uniform(low, high))
        return self._rounded(math.exp(generator.uniform(math.log(low), math.log(high))))

    def beside(self, value: Any, factors: tuple[float, float], generator: np.random.Generator) -> Any:
        """A value next to `value`: a number times one of the factors, within the range; the choice before or after it."""
        up = bool(generator.integers(2))
        if self.kind == "choice":
            place = self.values.index(value) + (1 if up else -1)
            return self.values[min(max(place, 0), len(self.values) - 1)]
        moved = value * factors[up]
        if self.kind == "integer":
            moved = round(moved) if round(moved) != value else value + (1 if up else -1)
            return int(min(max(moved, self.values[0]), self.values[1]))
        return self._rounded(moved)

    def distribution(self) -> Any:
        """The same as a distribution of Optuna. Choices are JSON texts there, because Optuna has no lists."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "choice":
            return CategoricalDistribution([json.dumps(each) for each in self.values])
        low, high = self.values
        return IntDistribution(low, high) if self.kind == "integer" else FloatDistribution(low, high, log=self.kind != "uniform")

    def from_optuna(self, value: Any) -> Any:
        """The value of the setting that a value of Optuna stands for."""
        if self.kind == "choice":
            return json.loads(value)
        return int(value) if self.kind == "integer" else self._rounded(value)

    def to_optuna(self, value: Any) -> Any:
        """The inverse of `from_optuna`."""
        return json.dumps(value) if self.kind == "choice" else value

    @property
    def corners(self) -> tuple[Any, ...]:
        """All choices, or the two ends."""
        return self.values

    def _rounded(self, value: float) -> float:
        low, high = self.values
        return min(max(float(f"{value:.{DIGITS}g}"), float(low)), float(high))


def read_draw(name: str, value: Mapping[str, Any]) -> Draw | None:
    """The distribution that `value`, e.g. {"uniform": [0.4, 0.6]}, describes; None if it describes none.

    name: key of the setting, for messages. Raises UserError for values that the distribution cannot have.
    """
    if len(value) != 1 or next(iter(value)) not in DRAWS:
        return None
    kind, values = next(iter(value.items()))
    if not isinstance(values, list) or not values:
        raise UserError(f"space.{name}.{kind} must be a list of values: got {values!r}")
    if kind == "choice":
        refuse_repeated(f"{name}.choice", values)
        return Draw(kind, tuple(values))
    numbers = len(values) == 2 and all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
    if not numbers or not values[0] < values[1]:
        raise UserError(f"space.{name}.{kind} must be [lowest,highest], two numbers in ascending order: got {values!r}")
    if kind == "integer" and not all(isinstance(each, int) for each in values):
        raise UserError(f"space.{name}.integer must be two whole numbers: got {values!r}; uniform draws other numbers")
    if kind == "log_uniform" and values[0] <= 0:
        raise UserError(f"space.{name}.log_uniform must be two positive numbers: got {values!r}")
    return Draw(kind, tuple(values))


def refuse_repeated(name: str, values: list[Any]) -> None:
    """Raise UserError if a value occurs twice."""
    written = [json.dumps(each, sort_keys=True) for each in values]
    if len(set(written)) < len(written):
        twice = next(each for each in written if written.count(each) > 1)
        raise UserError(f"space.{name} has {twice} more than once: {values}")
