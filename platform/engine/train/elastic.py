"""Elastic worker groups for Ray Train: only sizes that share a step evenly, only on nodes that are alive and stay.

Ray Train allows any number of workers between two bounds, and its view of the nodes may be 20 s old. But 3 workers cannot
share 8 micro-batches, and a group sized for a node that has just left waits for it until the start timeout. The policy here
avoids both. A local Ray has one node and ends with the program; there, Train's controller runs in the program itself and unused
actors are not started, which halves the start time. The classes depend on internal interfaces of Ray Train;
tests/platform/engine/train/test_elastic.py and test_launch.py detect changes of these interfaces.
"""

import asyncio
import os
import time
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import AUTOSCALING_REQUESTS_GET_TIMEOUT_S
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup
from ray.train.v2.api.config import FailureConfig, ScalingConfig

from platform.engine.runtime.ray_internals import draining_nodes
from platform.engine.runtime.ray_session import is_own
from platform.engine.train.prepared import give_back, take_workers


def largest_allowed(count: int, allowed: Sequence[int]) -> int:
    """The largest allowed number of workers that is at most `count`; 0 if there is none."""
    return max((size for size in allowed if size <= count), default=0)


def staying_nodes() -> set[str]:
    """Ids of the nodes that are alive and not being drained."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]} - draining_nodes()


def cpus_of(nodes: Set[str]) -> float:
    """CPUs of these nodes, free or not."""
    return sum(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["NodeID"] in nodes)


def answer(question: Any, otherwise: Any) -> Any:
    """The answer of an actor, or `otherwise` if it does not answer in time.

    The node of the driver may be busy for longer than that. An error here would end the run; the controller asks again about a
    second later.
    """
    try:
        return ray.get(question, timeout=AUTOSCALING_REQUESTS_GET_TIMEOUT_S)
    except GetTimeoutError:
        return otherwise


class AllowedSizesPolicy(ElasticScalingPolicy):
    """Ray Train's elastic scaling policy, restricted to allowed numbers of workers and to nodes that stay.

    Args:
        allowed: the allowed numbers of workers.
        board: handle of a LineBoard actor. With it, the workers are asked for a checkpoint before a resize restarts them. None:
            they are restarted at once.
        patience_s: longest wait for this checkpoint in seconds.
        reading_cpus: CPUs of the cluster that the workers leave to the tasks that read.
    """

    def __init__(
        self,
        scaling_config: ScalingConfig,
        allowed: Sequence[int],
        board: Any = None,
        patience_s: float = 60.0,
        reading_cpus: float = 0.0,
    ) -> None:
        super().__init__(scaling_config)
        self.allowed = tuple(allowed)
        self.board = board
        self.patience_s = patience_s
        self.reading_cpus = reading_cpus
        self._pending: tuple[ResizeDecision, float] | None = None

    def make_decision_for_non_running_worker_group(self) -> Any:
        self._pending = None
        if self.board is not None:
            self.board.carried_out.remote("resize")  # of workers that are gone: the next ones would wait for nothing
            self.board.wait_for_workers.remote()
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        if self._pending is None:
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if self.board is None or not isinstance(decision, ResizeDecision):
                return decision
            grows = decision.num_workers > worker_group_state.num_workers
            if grows and not answer(self.board.steps.remote(), otherwise=False):
                return NoopDecision()  # a restart would throw away what they have compiled so far
            answer(self.board.give.remote("resize"), otherwise=None)  # a late order is an order, too
            self._pending = decision, time.monotonic()
            return NoopDecision()
        decision, asked = self._pending
        waiting = answer(self.board.order.remote(), otherwise="resize") == "resize"
        if waiting and time.monotonic() - asked < self.patience_s:
            return NoopDecision()
        self._pending = None
        self.board.carried_out.remote("resize")  # the workers that start now must not wait again
        return self._of_now() or decision

    def _of_now(self) -> ResizeDecision | None:
        """The size that the cluster has room for now: nodes may have come or gone during the checkpoint. None: for no group."""
        count = self._count_possible_workers(self._get_reserved_resources() or {})
        return self._get_resize_decision(count) if count >= self.scaling_config.min_workers else None

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        staying = staying_nodes()
        kept = {node: amount for node, amount in reserved_resources.items() if node in staying}
        count = super()._count_possible_workers(kept)
        each = self.scaling_config._resources_per_worker_not_none["CPU"]
        if self.reading_cpus:  # workers that took every CPU would wait for their images forever
            count = min(count, int((cpus_of(staying) - self.reading_cpus) / each + 1e-9))
        return largest_allowed(count, self.allowed)

    def _get_reserved_resources(self) -> Any:
        """The reserved resources, computed now, so that they reflect nodes that came or went in the last 20 s.

        None if the coordinator does not answer.
        """
        from ray.train.v2._internal.util import time_monotonic

        now = time_monotonic()
        if now - self._latest_reserved_resources_query_time < self.GET_RESERVED_RESOURCES_INTERVAL_S:
            return self._latest_reserved_resources
        self._latest_reserved_resources_query_time = now
        try:
            self._latest_reserved_resources = ray.get(
                self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True),
                timeout=AUTOSCALING_REQUESTS_GET_TIMEOUT_S,
            )
        except Exception:  # the cluster is busy; the next call, about a second later, asks again
            self._latest_reserved_resources = None
        return self._latest_reserved_resources


class UserErrorsEndTheRun(DefaultFailurePolicy):
    """Ray Train's failure policy, except that an error of the user, which would recur, ends the run at once as failed.

    board: handle of the LineBoard actor that knows this error.
    """

    def __init__(self, failure_config: FailureConfig, board: Any) -> None:
        super().__init__(failure_config)
        self.board = board

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        if answer(self.board.fatal.remote(), otherwise=""):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


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
