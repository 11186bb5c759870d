"""The number of workers of a run, their resources, and the restarts after failures.

A step has a fixed number of micro-batches, so the number of workers must divide it. This also holds while a run grows and
shrinks with its cluster.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from platform.engine.errors import UserError
from platform.engine.runtime.growth import autoscales
from reidssl.checks import at_least, positive

READING_CPUS = 1.0
"""CPUs that must be left beside the workers of a pre-training: its images are read and decoded there. Without any, the workers
would wait for their first images forever."""


@dataclass(kw_only=True)
class ScalingConfig:
    """Workers of a run, their resources, and the restarts after failures."""

    workers: int = 1
    """Largest number of workers. Fewer run while the cluster has no room for all, down to min_workers."""
    min_workers: int = 0
    """Smallest number of workers to run with; 0: the same as workers, i.e. not elastic."""
    cpus_per_worker: float = 1.0
    """CPUs reserved for each worker; pre-training needs at least one more for reading."""
    gpus_per_worker: float = 0.0
    """GPUs reserved for each worker: 0, or 1; a single worker may take a share, and leave the rest of its GPU to others."""
    threads: int = 0
    """Torch threads of a worker; 0: the cores of its machine divided by the number of workers on it."""
    max_failures: int = 3
    """Restarts after crashes before the run is given up; -1: no limit."""
    max_preemptions: int = -1
    """Restarts after announced preemptions; -1: no limit."""
    resize_check_s: float = 20.0
    """Seconds between checks for free resources while fewer than `workers` run."""
    decode_resource: str = ""
    """Custom Ray resource of CPU-only decode nodes (`ray start --resources='{"decode": 1}'`). Images are read and decoded only on
    nodes that offer it; empty: on any CPU that the workers leave free."""

    def __post_init__(self) -> None:
        at_least(1, workers=self.workers)
        at_least(0, "(its machine's cores)", threads=self.threads)
        at_least(-1, "(no limit)", max_failures=self.max_failures, max_preemptions=self.max_preemptions)
        positive(cpus_per_worker=self.cpus_per_worker, resize_check_s=self.resize_check_s)
        if not 0 <= self.gpus_per_worker <= 1:  # a worker computes on one GPU and would never use a second one
            raise ValueError(f"gpus_per_worker must be 0, 1, or a share between them: got {self.gpus_per_worker}")
        if self.gpus_per_worker % 1 and self.workers > 1:  # Ray would put two on one GPU, which NCCL refuses
            raise ValueError(f"gpus_per_worker must be 0 or 1 with more than one worker: got {self.gpus_per_worker}")
        if not 0 <= self.min_workers <= self.workers:
            raise ValueError(f"min_workers must be between 0 and workers ({self.workers}): got {self.min_workers}")

    @property
    def fewest(self) -> int:
        """Smallest number of workers that the run continues with."""
        return self.min_workers or self.workers

    @property
    def reading_cpus(self) -> float:
        """CPUs that the workers of a pre-training must leave: none if images are read on nodes of their own."""
        return 0.0 if self.decode_resource else READING_CPUS

    @property
    def num_workers(self) -> int | tuple[int, int]:
        """Argument of Ray Train's ScalingConfig: a fixed number, or (fewest, most)."""
        return self.workers if self.fewest == self.workers else (self.fewest, self.workers)

    def sizes(self, micro_batches_per_step: int) -> list[int]:
        """The allowed numbers of workers, ascending. Raises UserError if a bound does not divide `micro_batches_per_step`."""
        for bound in (self.workers, self.fewest):
            check_size(bound, micro_batches_per_step)
        return [size for size in allowed_sizes(micro_batches_per_step) if self.fewest <= size <= self.workers]


def allowed_sizes(micro_batches_per_step: int) -> list[int]:
    """Numbers of workers that divide `micro_batches_per_step`, ascending."""
    return [size for size in range(1, micro_batches_per_step + 1) if micro_batches_per_step % size == 0]


def check_size(workers: int, micro_batches_per_step: int) -> None:
    """Check that `workers` divides `micro_batches_per_step`. Raises UserError that names the allowed numbers."""
    if micro_batches_per_step % workers:
        raise UserError(
            f"{workers} workers cannot share {micro_batches_per_step} micro-batches per step evenly; allowed numbers "
            f"of workers: {allowed_sizes(micro_batches_per_step)} (or change the micro-batches of a step)"
        )


def require_room(
    what: str,
    groups: Sequence[ScalingConfig],
    together: int,
    settings: Sequence[str],
    once: bool = False,
    reading: float = 0.0,
) -> None:
    """Check that the workers of several runs fit the cluster at once, unless an autoscaler adds nodes.

    Runs whose workers cannot all start would wait for each other forever.

    Args:
        what: the runs, for the message, such as "4 trials".
        groups: the workers of the runs. Any `together` of them may run at once; each several times, unless `once`.
        settings: names of these ScalingConfigs in the configuration, for the advice.
        reading: CPUs that the workers must leave.

    Raises UserError if they do not fit.
    """
    import ray

    if autoscales():
        return
    for kind, each in (("CPU", "cpus_per_worker"), ("GPU", "gpus_per_worker")):
        needs = sorted((group.fewest * getattr(group, each) for group in groups), reverse=True)
        needed = sum(needs[:together] if once else needs[:1] * together)
        available, left = ray.cluster_resources().get(kind, 0), reading if kind == "CPU" else 0
        if needed + left > available:
            advice = f"lower concurrent, or {' and '.join(f'{name}.workers' for name in settings)}"
            if kind == "GPU" and all(group.workers == 1 for group in groups):
                advice = _advice_on_gpus(int(available), together, " and ".join(f"{name}.gpus_per_worker" for name in settings))
            raise UserError(
                f"{what} at a time need {needed:g} {kind}{reading_text(left)}, this Ray has {available:g}: {advice}, "
                "or connect to a larger cluster"
            )


def reading_text(cpus: float) -> str:
    """What a message adds to the CPUs of workers."""
    return f" and {cpus:g} to read" if cpus else ""


def _advice_on_gpus(available: int, together: int, settings: str) -> str:
    """What to set so that `together` runs of one worker each can run on the available GPUs."""
    if not available:
        return f"set {settings} to 0"
    share = 100 // math.ceil(together / available) / 100
    return f"set concurrent={available}, or {settings} to {share:g}, which lets them share a GPU"
