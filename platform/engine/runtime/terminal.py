"""The terminal of a program: finished lines, its own and those that come from workers."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class LineBoard:
    """Actor between the driver, Train's controller and the workers.

    It carries finished terminal lines and an error that trying again cannot mend to the driver, and orders to the workers:
    "stop" (write a checkpoint and end) and "resize" (write a checkpoint and wait to be restarted).
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._fatal = ""
        self._order = ""

    def give(self, order: str) -> None:
        """Stop outranks resize, and is never taken back."""
        if self._order != "stop":
            self._order = order

    def order(self) -> str:
        return self._order

    def carried_out(self, order: str) -> None:
        """The checkpoint of this order is published."""
        if order == self._order and order != "stop":
            self._order = ""

    def clear(self) -> None:
        """For the next run."""
        self._lines, self._fatal, self._order = [], "", ""

    def fail(self, text: str) -> None:
        self._fatal = self._fatal or text

    def fatal(self) -> str:
        return self._fatal

    def push(self, line: str) -> None:
        self._lines.append(line)

    def drain(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


_idle_boards: list[Any] = []


@contextmanager
def relayed_lines() -> Iterator[Any]:
    """Yields the handle of a LineBoard; what workers push to it is printed here within half a second.

    The board of a run that went well serves the next run of this process, which saves starting one. It lives on the driver's own
    node: any other may be taken away.
    """
    import ray  # not above: whoever only speaks need not wait for it
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0, scheduling_strategy=here)  # type: ignore[call-overload]
    board = _idle_boards.pop() if _idle_boards else remote(LineBoard).remote()
    board.clear.remote()
    stop = threading.Event()

    def relay() -> None:
        while True:
            last = stop.is_set()
            try:
                for line in ray.get(board.drain.remote(), timeout=300):
                    say(line)
            except Exception:  # the board dies with the cluster; the driver's own error tells the story
                return
            if last:
                return
            stop.wait(0.5)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    failed = True
    try:
        yield board
        failed = False
    finally:
        stop.set()
        thread.join(timeout=60)
        if failed:  # a worker that is still dying may speak on it
            ray.kill(board)
        else:
            _idle_boards.append(board)


_forward_to: Any = None


def forward_lines(board: Any) -> None:
    """Make `say` in this process (a Tune trial) push to a LineBoard instead of printing where nobody looks."""
    global _forward_to
    _forward_to = board


def say(line: str) -> None:
    """One line on the terminal, with the time of day, at once."""
    if _forward_to is not None:
        _forward_to.push.remote(line)
    else:
        print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)
