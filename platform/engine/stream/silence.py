"""A line for the user when the images of a run do not come."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
SILENT_S = 60.0


def telling_silence(items: Iterable[Item], tell: Callable[[float], None], silent_s: float = SILENT_S) -> Iterator[Item]:
    """Yields the items. Calls `tell` with `silent_s`, from another thread, if one of them has not come for so many seconds."""
    iterator = iter(items)
    while True:
        timer = threading.Timer(silent_s, tell, [silent_s])
        timer.daemon = True
        timer.start()
        try:
            item = next(iterator)
        except StopIteration:
            return
        finally:
            timer.cancel()
            timer.join()
        yield item
