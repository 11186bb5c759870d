"""Elastic worker groups for Ray Train: only sizes that share a step evenly, only on nodes that are alive and stay.

Ray Train allows any number of workers between two bounds, and its view of the nodes may be 20 s old. But 3 workers cannot
share 8 micro-batches, and a group sized for a node that has just left waits for it until the start timeout. The policy here
avoids both. The classes depend on internal interfaces of Ray Train; tests/platform/engine/train/test_elastic.py detects changes
of these interfaces.
"""

import time
from collections.abc import Sequence, Set
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import AUTOSCALING_REQUESTS_GET_TIMEOUT_S
from ray.train.v2.api.config import FailureConfig, ScalingConfig

from platform.engine.runtime.ray_internals import draining_nodes


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
