"""Ray Train's trainer with our elastic policy, prepared processes, and no unused ones.

A local Ray has one node and ends with the program; there, Train's controller runs in the program itself and unused actors are not
started, which halves the start time. The classes depend on internal interfaces of Ray Train;
tests/platform/engine/train/test_launch.py and test_prepared.py detect changes of these interfaces.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup

from platform.engine.runtime.ray_session import is_own
from platform.engine.train.elastic import AllowedSizesPolicy, UserErrorsEndTheRun
from platform.engine.train.prepared import give_back, take_workers


class KeepingTorchBackend(_TorchBackend):
    """Ray Train's setup of torch, except that a worker that is alone again keeps the process group of its last launch."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        if len(worker_group) > 1 or not worker_group.execute_single(0, dist.is_initialized):
            super().on_start(worker_group, backend_config)


class KeepingTorchConfig(TorchConfig):
    """TorchConfig whose workers may have run a loop before."""

    @property
    def backend_cls(self) -> type:
        return KeepingTorchBackend


class OwnWorkerGroup(WorkerGroup):
    """Worker group of prepared processes, without a controller actor.

    Workers need a controller actor only for `ray.train.report`, which we do not use.
    """

    _taken: Sequence[Any] = ()

    def _create_workers(  # type: ignore[override]
        self, num_workers: int, placement_group: Any, resources_per_worker: dict[str, float], **options: Any
    ) -> list[Worker]:
        """The prepared workers if there are enough, e.g. not after a crash. The placement group reserves their CPUs."""
        actors = [] if resources_per_worker.get("GPU") else take_workers(num_workers)
        try:
            found = ray.get([actor.get_metadata.remote() for actor in actors])
        except RayActorError:  # killed while it waited
            found = []
        if not found:
            return super()._create_workers(num_workers, placement_group, resources_per_worker, **options)
        self._taken = actors
        workers = [
            Worker(actor, about, resources_per_worker, placement_group_bundle_index=index)
            for index, (actor, about) in enumerate(zip(actors, found, strict=True))
        ]
        return WorkerGroup._assign_worker_ranks(workers)

    def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: dict[str, list[Any]]) -> None:
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[index] for name, values in train_context_args.items()},
                )
                for index, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)

    def shutdown(self) -> None:
        """End the workers. A prepared one that was alone and whose loop has returned is kept: it has imported everything."""
        status = self.get_latest_poll_status()
        if len(self._taken) == 1 and status is not None and status.finished and not status.errors:
            self._worker_group_state = replace(self._worker_group_state, workers=[])  # type: ignore[type-var]
            give_back(*self._taken)
        super().shutdown()


class OwnController(TrainController):
    """Train controller that runs in the program itself, for a local Ray.

    An actor would outlive a program that dies, but a local Ray ends with it. An actor would also need several seconds for imports
    that the program has already done.
    """

    worker_group_cls = OwnWorkerGroup

    def _start(self) -> None:
        """Start without the actor that watches for draining nodes (there is one node), and check the workers more often."""
        self._health_check_interval_s = min(self._health_check_interval_s, 0.5)
        self._worker_group_callbacks_to_propagate = [
            one for one in self._worker_group_callbacks_to_propagate if not isinstance(one, PreemptionCallback)
        ]
        super()._start()


class ElasticTrainer(TorchTrainer):
    """TorchTrainer with only allowed numbers of workers, which starts no unused processes.

    Args:
        allowed: the allowed numbers of workers.
        board: handle of a LineBoard actor, on which workers store errors that no restart can fix.
        heeds_notices: whether the workers are asked for a checkpoint, over the board, before a resize restarts them.
        reading_cpus: CPUs that the workers leave to the tasks that read.
    """

    def __init__(
        self,
        *arguments: Any,
        allowed: Sequence[int],
        board: Any = None,
        heeds_notices: bool = False,
        reading_cpus: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.allowed = tuple(allowed)
        self.board = board
        self.heeds_notices = heeds_notices
        self.reading_cpus = reading_cpus

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        if isinstance(options["scaling_policy"], ElasticScalingPolicy):
            # The types are ignored because Ray annotates version 1 of Train and runs version 2.
            asked = self.board if self.heeds_notices else None
            options["scaling_policy"] = AllowedSizesPolicy(
                self.scaling_config,  # type: ignore[arg-type]
                self.allowed,
                asked,
                reading_cpus=self.reading_cpus,
            )
        if self.board is not None:
            options["failure_policy"] = UserErrorsEndTheRun(self.run_config.failure_config, self.board)  # type: ignore[arg-type]
        if not self.controlled_here():
            return super()._initialize_and_run_controller(**options)  # type: ignore[misc]
        controller = OwnController(**options)
        asyncio.run(controller.run())
        return controller.get_result()

    def controlled_here(self) -> bool:
        """Whether the controller runs in this process: on a local Ray, unless the dashboard shows it, which needs an actor."""
        return is_own() and os.environ.get("RAY_TRAIN_ENABLE_STATE_TRACKING") != "1"

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C to the program: Train would abort the run without a checkpoint and end with status 0."""

    def _create_default_callbacks(self) -> list[Any]:
        """Train's callbacks without those that start unused processes.

        These are the callback for Train's own data sets (ours come from the stream) and, on a local Ray, the one with the actor
        that frees the resources of a dead controller.
        """
        unused = (DatasetsCallback, PlacementGroupCleanerCallback) if self.controlled_here() else (DatasetsCallback,)
        return [one for one in super()._create_default_callbacks() if not isinstance(one, unused)]  # type: ignore[misc]
