"""Processes of a local Ray that start and import before they are needed, and that run one loop after the other.

Starting a process and importing torch, timm and DeepSpeed takes seconds. On a local Ray, whose workers run on this machine and
inherit its environment, that can be done while this program still imports Ray Train itself. A worker that has run a loop alone
runs that of the next launch, too.
"""

import gc
import importlib
from typing import Any

from platform.engine.runtime.ray_internals import train_worker
from platform.engine.runtime.ray_session import is_own

_workers: list[Any] = []
_kept: list[Any] = []
"""A worker that has run a loop alone. Its process group has one member, so it can only be alone again."""
_readers: list[Any] = []
_session = ""


def prepare_workers(count: int, module: str = "") -> None:
    """Start workers until `count` are prepared; they import the engine and `module`. Does nothing on a joined cluster."""
    if not is_own():
        return
    import ray

    _forget_other_sessions()
    if count == 1 and _kept:
        return
    remote: Any = ray.remote(num_cpus=0)  # its CPUs are those of Train's placement group
    while len(_workers) < count:
        actor = remote(train_worker()).remote()
        actor.execute.remote(_import_engine, module)
        _workers.append(actor)


def prepare_reader() -> None:
    """Start a process that reads and decodes. Ray keeps the process of a finished task for later ones."""
    if is_own():
        import ray

        task: Any = ray.remote(num_cpus=0)(_import_reading)
        _readers[:] = [task.remote()]  # keeps the reference: without it, Ray may drop the task


def take_workers(count: int) -> list[Any]:
    """`count` prepared workers, or [] if there are fewer. They belong to the caller."""
    _forget_other_sessions()
    if count == 1 and _kept:
        return [_kept.pop()]
    if len(_workers) < count:
        return []
    taken = _workers[:count]
    del _workers[:count]
    return taken


def give_back(worker: Any) -> None:
    """Keep a worker whose loop has returned, and that was alone, for the next launch of this program."""
    worker.execute.remote(gc.collect)  # engines refer to themselves
    _kept.append(worker)


def _forget_other_sessions() -> None:
    """Drop the workers of a Ray that this process has left."""
    import ray

    global _session
    current = ray.get_runtime_context().get_worker_id()
    if current != _session:
        _workers.clear()
        _kept.clear()
        _session = current


def _import_engine(module: str) -> None:
    from platform.engine.runtime.imports import import_engine, without_collection

    import_engine()
    if module:
        with without_collection():
            importlib.import_module(module)


def _import_reading() -> None:
    for name in ("ray.data", "platform.engine.stream.windows"):
        importlib.import_module(name)
