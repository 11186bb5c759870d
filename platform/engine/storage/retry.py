"""Retry storage operations that fail temporarily."""

import time
from collections.abc import Callable
from typing import TypeVar

from platform.engine.errors import StorageError

LONGEST_PAUSE_S = 15.0
Result = TypeVar("Result")


def patiently(action: Callable[[], Result], retry_timeout_s: float, tell: Callable[[str], None] | None = None) -> Result:
    """The result of `action()`, retried with growing pauses while it raises a transient StorageError.

    Args:
        retry_timeout_s: seconds until it gives up; 0: no retry.
        tell: called with one line at the first failure and one when the action succeeds again.

    Raises the last StorageError.
    """
    started, pause, failures = time.monotonic(), 0.5, 0
    while True:
        try:
            result = action()
            if failures and tell:
                tell(f"storage works again after {time.monotonic() - started:.0f} s")
            return result
        except StorageError as error:
            if not error.transient or time.monotonic() - started + pause > retry_timeout_s:
                raise
            failures += 1
            if failures == 1 and tell:
                tell(f"{error}; trying again for {retry_timeout_s:.0f} s (storage.retry_timeout_s)")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
