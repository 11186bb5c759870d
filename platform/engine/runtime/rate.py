"""The rate of a job and the time that it has left."""

import time
from collections.abc import Callable


class Rate:
    """Images per second from the first finished batch on: the start of Ray and of the models before it is not counted.

    total: number of images at the end; None: unknown. clock: seconds.
    """

    def __init__(self, total: int | None, unit: str = "images", clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.unit, self.clock = total, unit, clock
        self.first: tuple[float, int] | None = None
        self.last = (0.0, 0)

    def update(self, done: int) -> None:
        """Note that `done` images are finished by now, including those of earlier starts."""
        if self.first is None or done > self.last[1]:
            self.last = (self.clock(), done)
        self.first = self.first or self.last

    @property
    def per_second(self) -> float:
        """Images per second; 0 before the second batch."""
        if self.first is None or self.last[1] == self.first[1] or self.last[0] <= self.first[0]:
            return 0.0
        return (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])

    def __str__(self) -> str:
        """Such as "1,234 images/s, 2 h 5 min left"; "" before the second batch."""
        rate = self.per_second
        if not rate:
            return ""
        shown = f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.2g} {self.unit}/s"
        left = (self.total or 0) - self.last[1]
        return f"{shown}, {duration(left / rate)} left" if left > 0 else shown


def duration(seconds: float) -> str:
    """A duration as text: '3.2 s', '12 s', '4 min 12 s', '2 h 5 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
