"""Progress of a distributed job on one terminal line."""

import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from tqdm import tqdm

from platform.engine.runtime.rate import Rate
from platform.engine.runtime.terminal import ANSWER_S, say


class Counter:
    """Actor that sums the counts that tasks report. For display only: a task that is retried is counted twice."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, **counts: int) -> None:
        for name, value in counts.items():
            self._counts[name] = self._counts.get(name, 0) + value

    def read(self) -> dict[str, int]:
        return dict(self._counts)


@contextmanager
def progress(label: str, unit: str, total: int | None, every_s: float = 5.0, silent_s: float = 60.0) -> Iterator[Any]:
    """Context manager that shows the progress of a job. Yields the handle of a Counter.

    Tasks call `counter.add.remote(<unit>=rows, rejected=bad)` on it. On a terminal it shows a bar, otherwise one line every
    `every_s` seconds. If the counts stay the same for `silent_s` seconds, one line gives the likely reasons. total: expected
    number of units; None: unknown.
    """
    counter: Any = ray.remote(num_cpus=0)(Counter).remote()
    bar = tqdm(desc=label, unit=f" {unit}", total=total, disable=not sys.stderr.isatty(), leave=False)
    stop, rate = threading.Event(), Rate(total, unit)

    def show() -> None:
        before, since = dict[str, int](), time.monotonic()
        while not stop.wait(0.5 if not bar.disable else every_s):
            try:
                counts = ray.get(counter.read.remote(), timeout=ANSWER_S)
            except ray.exceptions.GetTimeoutError:  # its node is busy
                continue
            except Exception:  # the counter died with the cluster; the job reports the error
                return
            if counts != before:
                before, since = dict(counts), time.monotonic()
            elif time.monotonic() - since > silent_s:
                say(
                    f"{label}: nothing new for {silent_s:.0f} s. Either storage does not answer, which is tried again for "
                    "storage.retry_timeout_s, or the tasks wait for free CPUs"
                )
                since = math.inf
            done, others = counts.pop(unit, 0), {name: value for name, value in counts.items() if value}
            if done:
                rate.update(done)
            if bar.disable:
                of = f" of {total:,}" if total else ""
                rest = "".join(f", {value:,} {name}" for name, value in others.items())
                say(f"{label}: {done:,}{of} {unit}{f', {rate}' * bool(str(rate))}{rest}")
            else:
                bar.set_postfix(others, refresh=False)
                bar.update(done - bar.n)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield counter
    finally:
        stop.set()
        thread.join(timeout=35)
        bar.close()
        ray.kill(counter)
