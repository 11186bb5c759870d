"""The elastic policy inside Ray Train: only allowed sizes, counted on nodes that are not being drained."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ScalingConfig as RayScalingConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import WorkerGroupError

from platform.engine.runtime.terminal import LineBoard
from platform.engine.storage.location import open_storage
from platform.engine.train import elastic
from platform.engine.train.elastic import AllowedSizesPolicy, UserErrorsEndTheRun, largest_allowed
from platform.engine.train.launch import launch
from platform.engine.train.scaling import ScalingConfig


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 0), (2, 2), (3, 2), (7, 4), (8, 8), (99, 8)])
def test_the_largest_allowed_number(count, expected):
    assert largest_allowed(count, [2, 4, 8]) == expected


def policy(monkeypatch, reserved: dict[str, dict[str, float]], staying: set[str]) -> AllowedSizesPolicy:
    """A policy for 2, 4 or 8 one-CPU workers that sees these nodes."""
    made = AllowedSizesPolicy(RayScalingConfig(num_workers=(2, 8), resources_per_worker={"CPU": 1}), [2, 4, 8])
    monkeypatch.setattr(made, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(made, "_get_reserved_resources", lambda: reserved)
    monkeypatch.setattr(elastic, "staying_nodes", lambda: staying)
    return made


def test_a_group_starts_with_an_allowed_number_on_nodes_that_stay(monkeypatch):
    nodes: dict[str, Any] = {name: {"CPU": 3.0} for name in "abc"}
    for staying, expected in (({"a", "b", "c"}, 8), ({"a", "b"}, 4), ({"b"}, 2)):
        decision = policy(monkeypatch, nodes, staying).make_decision_for_non_running_worker_group()
        assert isinstance(decision, ResizeDecision) and decision.num_workers == expected
    # Too few resources for the smallest group: wait, do not start with fewer workers.
    assert isinstance(policy(monkeypatch, nodes, set()).make_decision_for_non_running_worker_group(), NoopDecision)


def test_a_group_leaves_a_cpu_for_reading(monkeypatch):
    """Also when it grows: workers that took the last CPU would wait for their images forever."""
    made = policy(monkeypatch, {name: {"CPU": 4.0} for name in "ab"}, {"a", "b"})
    made.reading_cpus = 1.0
    for cpus, expected in ((8.0, 4), (9.0, 8)):
        monkeypatch.setattr(elastic, "cpus_of", lambda nodes, cpus=cpus: cpus)
        decision = made.make_decision_for_non_running_worker_group()
        assert isinstance(decision, ResizeDecision) and decision.num_workers == expected


def test_a_resize_waits_for_a_checkpoint(monkeypatch, ray_session):
    board = ray_session.remote(num_cpus=0)(LineBoard).remote()
    ray_session.get(board.order.remote())  # it has started
    made = policy(monkeypatch, {name: {"CPU": 4.0} for name in "ab"}, {"a", "b"})
    made.board = board
    state = SimpleNamespace(start_time=-1e9, num_workers=4)

    def decide():
        return made.make_decision_for_running_worker_group(state, None)

    assert isinstance(decide(), NoopDecision) and ray_session.get(board.order.remote()) == "resize"
    assert isinstance(decide(), NoopDecision)  # the checkpoint is requested, not yet written
    ray_session.get(board.carried_out.remote("resize"))  # sent by the workers after the checkpoint
    decision = decide()
    assert isinstance(decision, ResizeDecision) and decision.num_workers == 8
    made._latest_monitor_time, made.patience_s = float("-inf"), 0.0
    assert isinstance(decide(), NoopDecision)
    monkeypatch.setattr(elastic, "staying_nodes", lambda: {"b"})  # a node has gone meanwhile
    decision = decide()  # the wait for workers that do not answer is limited
    assert isinstance(decision, ResizeDecision) and decision.num_workers == 4
    made.make_decision_for_non_running_worker_group()
    assert made._pending is None


@pytest.mark.parametrize(("order", "left"), [("resize", ""), ("stop", "stop")])
def test_an_order_to_resize_ends_with_the_workers_that_had_it(monkeypatch, ray_session, order, left):
    """They crashed before their checkpoint. The next ones would wait for a restart that nobody plans."""
    board = ray_session.remote(num_cpus=0)(LineBoard).remote()
    made = policy(monkeypatch, {name: {"CPU": 4.0} for name in "ab"}, {"a", "b"})
    made.board = board
    state = SimpleNamespace(start_time=-1e9, num_workers=4)
    ray_session.get(board.order.remote())  # it has started
    made.make_decision_for_running_worker_group(state, None)
    assert ray_session.get(board.order.remote()) == "resize"
    board.give.remote(order)
    made.make_decision_for_non_running_worker_group()
    assert ray_session.get(board.order.remote()) == left and made._pending is None


def test_a_board_that_does_not_answer_in_time_is_asked_again(monkeypatch, ray_session):
    class Busy(LineBoard):
        def work(self, seconds):
            time.sleep(seconds)

    board = ray_session.remote(num_cpus=0)(Busy).remote()
    made = policy(monkeypatch, {name: {"CPU": 4.0} for name in "ab"}, {"a", "b"})
    made.board = board
    ends = UserErrorsEndTheRun(FailureConfig(max_failures=1), board)
    state = SimpleNamespace(start_time=-1e9, num_workers=4)
    with monkeypatch.context() as patch:
        patch.setattr(elastic, "AUTOSCALING_REQUESTS_GET_TIMEOUT_S", 0.1)
        working = board.work.remote(3.0)
        assert isinstance(made.make_decision_for_running_worker_group(state, None), NoopDecision) and made._pending is None
        assert ends.make_decision(WorkerGroupError("crashed", {0: RuntimeError("crashed")})) == FailureDecision.RETRY
    ray_session.get(working)
    made._latest_monitor_time = float("-inf")
    assert isinstance(made.make_decision_for_running_worker_group(state, None), NoopDecision)
    assert ray_session.get(board.order.remote()) == "resize"


def test_a_group_grows_only_after_its_first_step(monkeypatch, ray_session):
    """A start may compile for minutes. It shrinks at once: the nodes of its workers go."""
    board = ray_session.remote(num_cpus=0)(LineBoard).remote()
    ray_session.get(board.order.remote())  # it has started
    made = policy(monkeypatch, {name: {"CPU": 4.0} for name in "ab"}, {"a", "b"})
    made.board = board

    def order(workers: int) -> str:
        made._latest_monitor_time = float("-inf")
        state = SimpleNamespace(start_time=-1e9, num_workers=workers)
        assert isinstance(made.make_decision_for_running_worker_group(state, None), NoopDecision)
        return ray_session.get(board.order.remote())

    board.started.remote(0)
    assert order(4) == ""
    board.reached.remote(16)
    assert order(4) == "resize"
    ray_session.get(board.clear.remote())
    made._pending = None
    monkeypatch.setattr(elastic, "staying_nodes", lambda: {"a"})
    board.started.remote(16)
    assert order(8) == "resize"


def test_train_runs_an_elastic_group_with_an_allowed_number(tmp_path, ray_session):
    """4 logical CPUs have room for at most 3 workers, and 2 is the largest number of them that shares 4 micro-batches evenly."""

    def loop(arguments):
        import ray.train

        with open(arguments["seen"], "a") as file:
            file.write(f"{ray.train.get_context().get_world_size()} ")

    seen = tmp_path / "seen"
    launch(
        loop,
        {"seen": str(seen)},
        storage=open_storage(str(tmp_path)),
        micro_batches_per_step=4,
        scaling=ScalingConfig(workers=4, min_workers=1, cpus_per_worker=1.2, threads=1, max_failures=0),
    )
    assert seen.read_text() == "2 2 "
