"""Notice within seconds, at the first request to an object store, that it does not answer.

The clients' own timeouts and retries add up to minutes without a word. So before the first request of a process to a store, one
HeadBucket with short timeouts is sent. A program waits for a silent store and says so; tasks and workers raise at once, and
whoever started them retries. A store that refuses the connection is an error at once.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

from platform.engine.storage.s3 import StorageConfig
from platform.engine.storage.s3_errors import SILENT, UNREACHABLE, head_bucket, unreachable

FIRST_WORD_S, PAUSE_S = 13.0, 2.0
_answered: set[tuple[Any, ...]] = set()
_tell: Callable[[str], None] | None = None


def wait_for_silent_stores(tell: Callable[[str], None]) -> None:
    """Make this process, a program, wait for stores that do not answer, and print that with `tell`."""
    global _tell
    _tell = tell


def await_answer(failed: str, config: StorageConfig, bucket: str) -> None:
    """Return when the store has answered once in this process, be it with an error: the request itself will explain that.

    failed: "cannot <action> <uri>". Raises StorageError if nothing listens there, or if it is silent for
    `config.retry_timeout_s` seconds (without `wait_for_silent_stores`: for one request).
    """
    store = (*astuple(config), config.endpoint)
    started, told = time.monotonic(), False
    while store not in _answered:
        error = _ask(config, bucket)
        if not isinstance(error, UNREACHABLE):
            _answered.add(store)
            return
        waited = time.monotonic() - started
        if not isinstance(error, SILENT) or _tell is None or waited + PAUSE_S > config.retry_timeout_s:
            raise unreachable(failed, config, f"{type(error).__name__}, {waited:.0f} s" if waited > 1 else type(error).__name__)
        if not told:
            where, told = config.endpoint or "AWS", True
            _tell(f"{where} does not answer; waiting for it for {config.retry_timeout_s:.0f} s (storage.retry_timeout_s)")
        time.sleep(PAUSE_S)


def _ask(config: StorageConfig, bucket: str) -> Exception | None:
    """The error of one request, None if it succeeded. It runs in a thread, so that a slow name server cannot delay the word."""
    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            head_bucket(config, bucket)
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(FIRST_WORD_S)
    return outcome[0] if outcome else SILENT[0](endpoint_url=config.endpoint or "AWS")
