"""Placement groups of trials that were stopped early, on a local Ray.

The controller of a stopped trial dies with it and cannot release its placement group. On a cluster, an actor of Ray Train does
that. It asks Ray's dashboard whether the controller lives, and a local Ray has none. So the CPUs would stay reserved, and a sweep
that stops many trials would wait forever.
"""

import time
from collections.abc import Callable

from platform.engine.runtime.ray_internals import idle_groups, placement_groups, remove_group
from platform.engine.runtime.ray_session import is_own

IDLE_S = 20.0
"""A new placement group gets its workers within a few seconds; one that is idle for so long has lost them."""


class Leftovers:
    """Removes placement groups in which nothing runs for IDLE_S seconds. Call `remove` again and again.

    The workers of a trial run inside its group. Prepared workers, which do not, are only those of launches of this process.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._since: dict[str, float] = {}

    def remove(self) -> None:
        """Look once, and remove what has been idle for long enough. Does nothing on a joined cluster."""
        if not is_own():
            return
        now, idle = self.clock(), idle_groups()
        self._since = {group: self._since.get(group, now) for group in idle}
        for group, since in list(self._since.items()):
            if now - since >= IDLE_S:
                remove_group(group)
                del self._since[group]

    def finish(self) -> None:
        """Once all trials have ended: wait until their workers are gone, and remove the placement groups that are left."""
        until = self.clock() + 2 * IDLE_S
        while is_own() and placement_groups() and self.clock() < until:
            for group in idle_groups():
                remove_group(group)
            time.sleep(0.5)
