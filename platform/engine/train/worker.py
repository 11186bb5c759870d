"""What every worker of a launch does around its loop, and the lines that a loop prints on the driver's terminal."""

import os
import pkgutil
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch.distributed as dist

from platform.engine.errors import UserError, user_error_of
from platform.engine.runs.gauges import show
from platform.engine.runtime import device as devices
from platform.engine.runtime.imports import import_engine
from platform.engine.runtime.ray_session import quiet
from platform.engine.runtime.run_name import set_run_name
from platform.engine.secrets import hide, take_over
from platform.engine.train.notices import STOP, WAIT, Notices


@dataclass(frozen=True)
class GuardedLoop:
    """Entry point of every worker: runs `run_loop`. The argument of the call, the settings, is only for the Train page."""

    work: bytes = field(repr=False)
    """Pickled (loop or its name, its settings, what `remembered` returns)."""
    board: Any
    threads: int
    name: str
    run: str
    """URI of the run folder."""
    last_report_s: float
    """Seconds to live on after an error of the user, so that Prometheus hears of it."""

    def __call__(self, shown: dict[str, Any]) -> None:
        run_loop(self)


def run_loop(given: GuardedLoop) -> None:
    """Run the loop in a worker, after silencing libraries, setting the threads and connecting the board.

    Ray Train restarts the workers after any exception. A user error would recur at every restart, so it is stored on the board,
    where the failure policy finds it and ends the run as failed.
    """
    quiet()
    set_run_name(given.name)
    import ray
    import ray.train
    from ray import cloudpickle

    context = ray.train.get_context()
    threads = given.threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    devices.use_threads(threads)
    devices.claim()
    global _board
    _board = given.board
    fatal = ray.get(_board.fatal.remote())
    if fatal:  # restarted, because another worker crashed before this error was on the board
        raise UserError(fatal)
    try:
        import_engine()
        loop, settings, secrets = cloudpickle.loads(given.work)  # made by `launch` in this job, never read from a file
        take_over(secrets)
        (pkgutil.resolve_name(loop) if isinstance(loop, str) else loop)(settings)
        ray.get(_board.fatal.remote())  # calls arrive in order: this waits until all pushed lines are on the board
    except Exception as error:
        found = user_error_of(error)
        if found is None:
            raise
        ray.get(_board.fail.remote(hide(str(found))))
        show(given.run, {"failed": 1, "not_finite": "not finite" in str(found)})
        time.sleep(given.last_report_s)
        raise UserError(hide(str(found))) from None


_board: Any = None


def notices() -> Notices:
    """The notices of this worker. Rank 0 also receives the orders of the driver and of Train's controller."""
    first = not dist.is_initialized() or dist.get_rank() == 0
    return Notices(_board if first else None)


def heed(told: str, notice: Notices, where: str) -> bool:
    """Act on a notice after its checkpoint. Collective. Returns whether the loop must end.

    If the workers will be restarted ("wait"), this function waits for the restart. told: "save", "wait" or "stop". where: the
    place of the checkpoint, for the log.
    """
    notice.carried_out()
    if dist.get_rank() == 0:
        report_line(f"checkpoint at {where} on notice")
    if told == WAIT:
        dist.barrier()  # wait until rank 0 has published the checkpoint
        notice.wait()
    return told == STOP


class Restarts(NamedTuple):
    """What restarts of the workers cost a run since its program was started."""

    times: int
    lost: int
    """Positions that were computed again, or will be."""


def restarted_at(position: int) -> Restarts:
    """Note that the workers start at `position`; called by rank 0 of a loop. Returns the restarts so far."""
    import ray

    return Restarts(*ray.get(_board.started.remote(position))) if _board is not None else Restarts(0, 0)


def reached(position: int) -> None:
    """Note the position of the run; called by rank 0 of a loop. What a crash then loses can be told."""
    if _board is not None:
        _board.reached.remote(position)


def report_line(line: str) -> None:
    """Print one line on the driver's terminal; called by rank 0 of a loop."""
    if _board is not None:
        _board.push.remote(hide(line))
    else:
        print(hide(line), flush=True)
