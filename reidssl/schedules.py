"""Schedules: pure functions of the position in a run, in samples (or in any other unit, used consistently)."""

import math
from dataclasses import dataclass

from reidssl.checks import at_least, positive


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up from `start` to `base` over `warmup`, then half a cosine from `base` to `final` at `total`.

    With warmup 0 the schedule begins at `base`. After `total` it stays at `final`. It is used for learning rate, weight decay and
    teacher momentum, and may rise or fall.

    `step` is the distance between two calls (samples per optimizer step). With it, the values equal the released schedule at
    every step: the last step of the warm-up is already at `base`, and the first step of the cosine repeats it, as in

        np.concatenate([np.linspace(start, base, W), final + (base - final) * (1 + np.cos(np.pi * np.arange(R) / R)) / 2])

    for W warm-up steps and R other steps. With step 0 the warm-up is continuous and reaches `base` at its end.
    """

    base: float
    final: float
    total: float
    warmup: float = 0.0
    start: float = 0.0
    step: float = 0.0

    def __post_init__(self) -> None:
        at_least(0, "(continuous)", step=self.step)
        positive(total=self.total)
        if not 0 <= self.warmup <= self.total:
            raise ValueError(f"warmup must be in [0, total = {self.total}]: got {self.warmup}")

    def __call__(self, seen: float) -> float:
        if seen < self.warmup:
            rising = self.warmup - self.step
            share = min(seen / rising, 1.0) if rising > 0 else 0.0  # a warm-up of one step stays at its start
            return self.start + (self.base - self.start) * share
        if seen >= self.total:
            return self.final
        share = (seen - self.warmup) / (self.total - self.warmup)
        return self.final + 0.5 * (self.base - self.final) * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True)
class ReidCosine:
    """The released schedule of supervised fine-tuning (TransReID-SSL, section 4).

    `rate` is the rate of the weights, B. A parameter group has the base rate factor * B: factor 1 for weights, 2 for biases.
    Its rate rises linearly from 0.01 B to factor * B over `warmup`, then it is
    0.002 B + (factor * B - 0.002 B) * (1 + cos(pi * seen / total)) / 2: all groups begin and end at the same rate.

    The cosine counts from the start of the run and not from the end of the warm-up. The rate therefore drops a little (7 % for
    20 of 120) where the two meet, an accident of the recipe that is kept. The recipe holds the rate for an epoch: call it with
    the start of the current epoch to follow it to the letter.
    """

    rate: float
    total: float
    warmup: float = 0.0

    def __post_init__(self) -> None:
        positive(total=self.total)
        if not 0 <= self.warmup <= self.total:
            raise ValueError(f"warmup must be in [0, total = {self.total}]: got {self.warmup}")

    def __call__(self, seen: float, factor: float = 1.0) -> float:
        if seen < self.warmup:
            return 0.01 * self.rate + (factor - 0.01) * self.rate * seen / self.warmup
        share, floor = min(seen / self.total, 1.0), 0.002 * self.rate
        return floor + 0.5 * (factor * self.rate - floor) * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Steps:
    """Step decay: `base`, multiplied by `factor` after every full `interval` (Cluster Contrast: 0.1 every 20 epochs)."""

    base: float
    interval: float
    factor: float = 0.1

    def __post_init__(self) -> None:
        positive(interval=self.interval)

    def __call__(self, seen: float) -> float:
        return self.base * self.factor ** int(seen // self.interval)
