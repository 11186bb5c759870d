"""What every worker of a launch does around its loop, and the lines that a loop prints on the driver's terminal."""

import os
import pkgutil
from typing import Any

import torch.distributed as dist

from platform.engine.errors import user_error_of
from platform.engine.runtime import device as devices
from platform.engine.runtime.imports import import_engine
from platform.engine.runtime.ray_session import quiet
from platform.engine.secrets import hide, take_over
from platform.engine.train.notices import Notices


def run_loop(config: dict[str, Any]) -> None:
    """Entry point of every worker: silences libraries, sets the threads, connects the board and runs the loop.

    Ray Train restarts the workers after any exception. A user error would recur at every restart, so it is stored on the board.
    A single worker then just returns. With several workers, others may be waiting in a collective, so the error is raised, and
    the restarted workers return at once.
    """
    quiet()
    import ray
    import ray.train
    from ray import cloudpickle

    context = ray.train.get_context()
    threads = config["threads"] or max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    devices.use_threads(threads)
    devices.claim()
    global _board
    _board = config["board"]
    if ray.get(_board.fatal.remote()):
        return
    try:
        import_engine()
        loop, settings, secrets = cloudpickle.loads(config["work"])  # made by `launch` in this job, never read from a file
        take_over(secrets)
        (pkgutil.resolve_name(loop) if isinstance(loop, str) else loop)(settings)
        ray.get(_board.fatal.remote())  # calls arrive in order: this waits until all pushed lines are on the board
    except Exception as error:
        found = user_error_of(error)
        if found is None:
            raise
        ray.get(_board.fail.remote(hide(str(found))))
        if context.get_world_size() > 1:
            raise


_board: Any = None


def notices() -> Notices:
    """The notices of this worker. Rank 0 also receives the orders of the driver and of Train's controller."""
    first = not dist.is_initialized() or dist.get_rank() == 0
    return Notices(_board if first else None)


def report_line(line: str) -> None:
    """Print one line on the driver's terminal; called by rank 0 of a loop."""
    if _board is not None:
        _board.push.remote(hide(line))
    else:
        print(hide(line), flush=True)
