"""What a training loop is told while it runs: a node is being taken away, the group is about to change, stop.

    drain notice   a checkpoint at once; another just before the deadline, after which the workers wait for the restart
    resize         a checkpoint, then the workers wait for the restart
    stop           a checkpoint, then the loop ends (SIGTERM to the driver)

Each worker sees only its own part, at its own time. What they see travels with the sums that every step exchanges anyway,
so all act on it after the same step and nobody waits for anybody.
"""

import threading
import time
from typing import Any

import torch
from torch import Tensor

from platform.engine.runtime.ray_internals import preemption

SAVE, WAIT, STOP = "save", "wait", "stop"
POLL_S = 0.5
LONGEST_WAIT_S = 60.0


class Notices:
    """One per worker and start.

    board: handle of the LineBoard, None outside Ray; only rank 0 looks at it. margin_s: how long before a drain's deadline
    the last checkpoint begins; it grows with what checkpoints turn out to take.
    """

    def __init__(self, board: Any = None, margin_s: float = 5.0) -> None:
        self.board = board
        self.margin_s = margin_s
        self._order = ""
        self._seen_deadlines: set[int] = set()
        self._ahead: set[int] = set()
        """Deadlines, in ms, before which nobody has waited yet."""
        self._ended = threading.Event()
        if board is not None:
            threading.Thread(target=self._poll, daemon=True, name="notices").start()

    def _poll(self) -> None:
        import ray

        while not self._ended.wait(POLL_S):
            try:
                self._order = ray.get(self.board.order.remote(), timeout=30)
            except Exception:  # the board is gone with the driver: the workers are about to go too
                return

    def seen(self) -> dict[str, Tensor]:
        """0 or 1 for each kind of notice, to be summed over the workers."""
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
        """What all workers do now, from the sums (or means) of what they saw: "stop", "wait", "save" or ""."""
        for name in (STOP, WAIT, SAVE):
            if float(sums.get(name, 0.0)) > 0:
                return name
        return ""

    def checkpoint_took(self, seconds: float) -> None:
        self.margin_s = max(self.margin_s, 2.0 * seconds + 3.0)

    def carried_out(self) -> None:
        """Tell who ordered a resize that the checkpoint is there."""
        if self.board is not None and self._order:
            self.board.carried_out.remote(self._order)

    def wait(self) -> None:
        """Until the workers are restarted; training goes on if nobody does that within a minute after the deadline."""
        until = max(time.time(), min(self._ahead, default=0) / 1000) + LONGEST_WAIT_S
        while time.time() < until:
            time.sleep(POLL_S)
        self._ahead = {deadline for deadline in self._ahead if deadline / 1000 > time.time()}
        self._order = ""

    def close(self) -> None:
        self._ended.set()
