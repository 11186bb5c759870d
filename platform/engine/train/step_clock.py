"""Where the time of a training step goes, in seconds of the host, measured without waiting for the device.

On a GPU, kernels run after they were started. The time then shows where the host waits: for input, or in the step that the device
is still busy with. On a CPU it is the time of the work itself.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class StepClock:
    """Adds up times by name until they are taken. Times of inner measurements do not count for the outer ones."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._inner = [0.0]
        self._since = time.perf_counter()

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Context manager: adds the time of the block to `name`."""
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - started
            self._sums[name] = self._sums.get(name, 0.0) + whole - self._inner.pop()
            self._inner[-1] += whole

    def waiting(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items, and adds the time until each of them is there to `name`."""
        iterator = iter(items)
        while True:
            with self.measure(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def take(self, steps: int) -> dict[str, float]:
        """{"<name>_seconds": mean of the last `steps` steps, "step_seconds": of all}; starts anew."""
        now, steps = time.perf_counter(), max(1, steps)
        found = {f"{name}_seconds": seconds / steps for name, seconds in self._sums.items()}
        found["step_seconds"] = (now - self._since) / steps
        self._sums, self._since = {}, now
        return found
