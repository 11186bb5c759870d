"""Notices to a running training loop: a node is being drained, the worker group will be resized, or the run must stop.

    drain          a checkpoint at once; another one just before the deadline, after which the workers wait for the restart
    resize         a checkpoint, then the workers wait for the restart
    stop           a checkpoint, then the loop ends (SIGTERM or Ctrl-C to the driver)

Each worker sees only its own notices, at its own time. They are summed over the workers after every step, so that all act on them
after the same one. Pre-training adds them to the sums that a step exchanges anyway.
"""

import threading
import time
from typing import Any

import torch
from torch import Tensor

from platform.engine.runtime.ray_internals import preemption
from platform.engine.runtime.terminal import ANSWER_S

SAVE, WAIT, STOP = "save", "wait", "stop"
POLL_S = 0.5
LONGEST_WAIT_S = 60.0


class Notices:
    """The notices of one worker, for one start of its loop.

    Args:
        board: handle of the LineBoard actor, read by rank 0 only; None: no orders.
        margin_s: seconds between the start of the last checkpoint and the deadline of a drain. It grows with the measured
            duration of checkpoints.
    """

    def __init__(self, board: Any = None, margin_s: float = 5.0) -> None:
        self.board = board
        self.margin_s = margin_s
        self._order = ""
        self._seen_deadlines: set[int] = set()
        self._ahead: set[int] = set()
        """Deadlines of drains (Unix time in ms) for which the workers have not waited yet."""
        self._ended = threading.Event()
        if board is not None:
            threading.Thread(target=self._poll, daemon=True, name="notices").start()

    def _poll(self) -> None:
        import ray

        while not self._ended.wait(POLL_S):
            try:
                self._order = ray.get(self.board.order.remote(), timeout=ANSWER_S)
            except ray.exceptions.GetTimeoutError:  # the node of the driver is busy
                continue
            except Exception:  # the board ended with the driver, so the workers end soon
                return

    def seen(self) -> dict[str, Tensor]:
        """Scalar tensor 0 or 1 for each kind of notice, to be summed over the workers."""
        now, info = time.time(), preemption()
        save = wait = False
        if info is not None:
            deadline = info.deadline_ms or 0
            save = deadline not in self._seen_deadlines
            if save and deadline:
                self._ahead.add(deadline)
            self._seen_deadlines.add(deadline)
            wait = bool(self._ahead) and now > min(self._ahead) / 1000 - self.margin_s
        found = {SAVE: save, WAIT: wait or self._order == "resize", STOP: self._order == "stop"}
        return {name: torch.tensor(float(value)) for name, value in found.items()}

    def decide(self, sums: dict[str, Tensor]) -> str:
        """The common action of all workers, from the sums (or means) of `seen`: "stop", "wait", "save" or ""."""
        for name in (STOP, WAIT, SAVE):
            if float(sums.get(name, 0.0)) > 0:
                return name
        return ""

    def checkpoint_took(self, seconds: float) -> None:
        """Adapt the margin before a deadline to the duration of a checkpoint."""
        self.margin_s = max(self.margin_s, 2.0 * seconds + 3.0)

    def carried_out(self) -> None:
        """Report to the board that the checkpoint of its order is published."""
        if self.board is not None and self._order:
            self.board.carried_out.remote(self._order)

    def wait(self) -> None:
        """Wait for the restart of the workers. Returns if they are not restarted within LONGEST_WAIT_S after the deadline."""
        until = max(time.time(), min(self._ahead, default=0) / 1000) + LONGEST_WAIT_S
        while time.time() < until:
            time.sleep(POLL_S)
        self._ahead = {deadline for deadline in self._ahead if deadline / 1000 > time.time()}
        self._order = ""

    def close(self) -> None:
        """End the thread that polls the board."""
        self._ended.set()
