"""The terminal output of a program: its own lines, and lines that workers send."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from platform.engine.secrets import hide


class LineBoard:
    """Actor that passes messages between the driver, Train's controller and the workers.

    To the driver: complete terminal lines, and a fatal error that a retry cannot fix. To the workers: the orders "stop" (write a
    checkpoint and end) and "resize" (write a checkpoint and wait for the restart).
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._fatal = ""
        self._order = ""
        self._starts, self._furthest, self._lost = 0, 0, 0
        self._waiting = False
        self._stepping = True
        self._kept = b""

    def wait_for_workers(self) -> None:
        """Note that no workers run: Train's controller waits for nodes, or starts them."""
        self._waiting = True

    def waits_for_workers(self) -> bool:
        """Whether no workers run. False if the controller does not tell, as for groups of a fixed size."""
        return self._waiting

    def started(self, position: int) -> tuple[int, int]:
        """Note that the workers start at `position`. Returns (restarts so far, positions lost by them)."""
        self._waiting, self._stepping = False, False
        if self._starts:
            self._lost += max(0, self._furthest - position)
        self._starts, self._furthest = self._starts + 1, position
        return self._starts - 1, self._lost

    def reached(self, position: int) -> None:
        """Note the position of the run."""
        self._furthest, self._stepping = max(self._furthest, position), True

    def steps(self) -> bool:
        """Whether the workers take steps. False from their start to their first step; True if they do not tell."""
        return self._stepping

    def give(self, order: str) -> None:
        """Give an order to the workers. "stop" has priority over "resize" and is never revoked."""
        if self._order != "stop":
            self._order = order

    def order(self) -> str:
        """The current order; "" if there is none."""
        return self._order

    def carried_out(self, order: str) -> None:
        """Report that the checkpoint for this order is published, or no longer awaited. Clears it, unless it is "stop"."""
        if order == self._order and order != "stop":
            self._order = ""

    def keep(self, value: bytes) -> None:
        """Keep a value for processes that know this board, where no file may hold it."""
        self._kept = value

    def kept(self) -> bytes:
        """The value of `keep`."""
        return self._kept

    def clear(self) -> None:
        """Reset the board for the next run."""
        self._kept = b""
        self._lines, self._fatal, self._order, self._waiting, self._stepping = [], "", "", False, True
        self._starts, self._furthest, self._lost = 0, 0, 0

    def fail(self, text: str) -> None:
        """Store a fatal error; only the first one is kept."""
        self._fatal = self._fatal or text

    def fatal(self) -> str:
        """The text of the fatal error; "" if there is none."""
        return self._fatal

    def push(self, line: str) -> None:
        """Add a line for the terminal of the driver."""
        self._lines.append(line)

    def drain(self) -> list[str]:
        """Return the lines since the last call and remove them."""
        lines, self._lines = self._lines, []
        return lines


ANSWER_S = 30.0
"""Longest wait for the answer of an actor on a busy node. After it, the actor is asked again."""
_idle_boards: list[Any] = []


@contextmanager
def relayed_lines() -> Iterator[Any]:
    """Context manager: yields the handle of a LineBoard and prints the lines that workers push to it within half a second.

    The board of a successful run is reused by the next run of this process, which saves starting one. It runs on the node of the
    driver, because any other node may be removed.
    """
    import ray  # imported here: programs that only use `say` need not wait for it
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0, scheduling_strategy=here)  # type: ignore[call-overload]
    board = _idle_boards.pop() if _idle_boards else remote(LineBoard).remote()
    board.clear.remote()
    stop = threading.Event()

    def relay() -> None:
        asked: Any = None
        while True:
            last = stop.is_set()
            asked = asked or board.drain.remote()
            try:
                lines, asked = ray.get(asked, timeout=ANSWER_S), None
            except ray.exceptions.GetTimeoutError:  # this node is busy; the lines are in the answer to come
                lines = []
            except Exception:  # the board died with the cluster; the driver reports the error
                return
            for line in lines:
                say(line)
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
        if failed:  # a worker that is still ending may push lines to it
            ray.kill(board)
        else:
            _idle_boards.append(board)


_forward_to: Any = None
_prefix = ""


def forward_lines(board: Any, prefix: str = "") -> None:
    """Make `say` push to a LineBoard in this process, whose own output is not shown, such as that of a Tune trial.

    prefix: put before each line, to tell the lines of several processes apart.
    """
    global _forward_to, _prefix
    _forward_to, _prefix = board, prefix


def say(line: str) -> None:
    """Print one line on the terminal at once, with the time of day and without secrets."""
    if _forward_to is not None:
        _forward_to.push.remote(_prefix + hide(line))
    else:
        print(f"{time.strftime('%H:%M:%S')}  {hide(line)}", flush=True)
