"""How a launch is asked to stop: by SIGTERM or Ctrl-C, or by the process that runs several of them."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from platform.engine.runtime.terminal import say

WAITING_CHECKS = 10  # half seconds without workers after which a stop waits for them no longer


class Stopping:
    """Whether a launch is asked to stop, and by which signal: `number` is 0 or that of the signal."""

    number = 0
    ordered = False
    """Whether it is asked by `order_stop`; the process that calls it tells the user."""


_current: list[Stopping] = []
"""That of the launch that runs in this process, if its workers heed orders."""


def order_stop() -> bool:
    """Ask the current launch to stop, as SIGTERM does. False if there is none, or if it does not heed orders."""
    for stopping in _current:
        stopping.number, stopping.ordered = signal.SIGTERM, True
    return bool(_current)


@contextmanager
def caught_signals() -> Iterator[Stopping]:
    """Context manager: notes SIGTERM or Ctrl-C; a second signal ends the program at once.

    Does nothing outside the main thread (a Tune trial, a stage of a pipeline), where signals cannot be handled.
    """
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def on_signal(number: int, frame: Any) -> None:
        if stopping.number:
            sys.exit(128 + number)
        stopping.number = number

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    except SystemExit:  # of the second signal; inside a call of Ray its status is lost
        if not stopping.number:
            raise
        sys.exit(128 + stopping.number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_on_signals(board: Any) -> Iterator[Stopping]:
    """Context manager: SIGTERM, Ctrl-C and `order_stop` become the order "stop" on the board.

    A second signal ends the program at once. So does the first one if no workers run, who could carry the order out: the newest
    checkpoint is all there is to keep. Does nothing without a board.
    """
    if board is None:
        yield Stopping()
        return
    ended = threading.Event()
    with caught_signals() as stopping:
        thread = threading.Thread(target=_pass_on, args=(stopping, board, ended), daemon=True)
        thread.start()
        _current.append(stopping)
        try:
            yield stopping
        finally:
            _current.clear()
            ended.set()
            thread.join(timeout=10)


def _pass_on(stopping: Stopping, board: Any, ended: threading.Event) -> None:
    """Give the order once a signal has come: not in its handler, which may interrupt Ray in the middle of a call."""
    while not ended.wait(0.1):
        if stopping.number:
            if not stopping.ordered:
                name = "Ctrl-C" if stopping.number == signal.SIGINT else "SIGTERM"
                say(f"{name}: the workers write a checkpoint and stop; once more: stop at once")
            board.give.remote("stop")
            _end_without_workers(stopping, board, ended)
            return


def _end_without_workers(stopping: Stopping, board: Any, ended: threading.Event) -> None:
    import ray

    waiting = 0
    while waiting < WAITING_CHECKS and not ended.wait(0.5):
        waiting = waiting + 1 if ray.get(board.waits_for_workers.remote()) else 0
    if waiting == WAITING_CHECKS:
        say("no workers are running, so there is nothing to write; run the same command again to continue")
        os.kill(os.getpid(), stopping.number)
