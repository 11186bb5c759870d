"""A placement group that has lost its workers is removed after a while; one with a worker stays."""

from platform.engine.runtime.ray_internals import idle_groups, placement_groups
from platform.engine.sweep.leftovers import IDLE_S, Leftovers


def test_only_groups_without_workers_are_removed(ray_session):
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    class Worker:
        def here(self) -> None:
            """Answers when the worker is there."""

    used, left = placement_group([{"CPU": 1}]), placement_group([{"CPU": 1}])
    ray_session.get([used.ready(), left.ready()])
    worker = (
        ray_session.remote(num_cpus=1)(Worker)
        .options(scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=used))
        .remote()
    )
    ray_session.get(worker.here.remote())
    clock = [0.0]
    leftovers = Leftovers(lambda: clock[0])
    try:
        wait_for(lambda: idle_groups() == {left.id.hex()})
        leftovers.remove()
        clock[0] = IDLE_S - 1
        leftovers.remove()
        assert idle_groups() == {left.id.hex()}  # it may be new
        clock[0] = IDLE_S + 1
        leftovers.remove()
        wait_for(lambda: not idle_groups())
        ray_session.get(worker.here.remote())
        assert set(placement_groups()) == {used.id.hex()}
        ray_session.kill(worker)
        Leftovers().finish()
        wait_for(lambda: not placement_groups())
    finally:
        ray_session.kill(worker)
        for group in (used, left):
            remove_placement_group(group)


def wait_for(condition) -> None:
    import time

    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)
