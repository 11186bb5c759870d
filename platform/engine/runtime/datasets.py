"""How Ray Data executes our datasets: under the name of the run, and without a core of its own."""

import time
from typing import Any

from platform.engine.runtime.run_name import run_name

STEP_S = 0.03
"""Shortest time from one step of the scheduler to the next. A step starts all tasks that may start and takes over everything
that is finished, and the consumer has prefetched what it needs next, so that few steps suffice."""


class PacedSteps:
    """Callback of Ray Data's executor (its `ExecutionCallback`) that limits how often its scheduler runs.

    When the consumer is slower than reading, there is no task to wait for, and the scheduler of Ray 2.60 runs without a pause:
    beside two trainings on 2 cores, it took 65 % of one.
    """

    def __init__(self) -> None:
        self._began = 0.0

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing: part of the interface."""

    def on_execution_step(self, executor: Any) -> None:
        """Sleep for the rest of the step's time."""
        left = self._began + STEP_S - time.monotonic()
        if left > 0:
            time.sleep(left)
        self._began = time.monotonic()

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing: part of the interface."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing: part of the interface."""


def prepare(dataset: Any) -> Any:
    """Give a dataset the name of this process's run, in the dashboard, and the pace. Call it last. Returns it."""
    dataset.set_name(run_name())
    dataset.context.custom_execution_callback_classes = [PacedSteps]
    return dataset
