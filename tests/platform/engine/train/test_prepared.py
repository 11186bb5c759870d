"""Prepared processes: a launch uses them, does without dead ones, and a second launch finds one ready."""

import os
import signal

import pytest

from platform.engine.errors import UserError
from platform.engine.storage.location import open_storage
from platform.engine.train import prepared
from platform.engine.train.launch import launch
from platform.engine.train.scaling import ScalingConfig


def pids_of(actors):
    import ray

    return [ray.get(actor.get_metadata.remote()).pid for actor in actors]


def launch_and_tell_pid(folder):
    """The process in which a launch ran its loop."""

    def loop(arguments):
        import os

        with open(arguments["file"], "w") as file:
            file.write(str(os.getpid()))

    launch(loop, {"file": str(folder / "pid")}, storage=open_storage(str(folder)), scaling=ScalingConfig(threads=1))
    return int((folder / "pid").read_text())


@pytest.fixture
def prepared_worker(ray_session):
    """The process of a prepared worker, the only one."""
    import ray

    for actor in prepared._workers + prepared._kept:
        ray.kill(actor)
    prepared._workers.clear()
    prepared._kept.clear()
    prepared.prepare_workers(1)
    return pids_of(prepared._workers)[0]


def test_launches_run_in_the_prepared_process_one_after_the_other(tmp_path, prepared_worker):
    prepared.prepare_workers(1)  # there is one already
    assert pids_of(prepared._workers) == [prepared_worker]
    assert launch_and_tell_pid(tmp_path) == prepared_worker
    assert launch_and_tell_pid(tmp_path) == prepared_worker
    assert pids_of(prepared._kept) == [prepared_worker] and not prepared._workers


def test_a_process_whose_loop_failed_is_not_used_again(tmp_path, prepared_worker):
    def loop(arguments):
        from platform.engine.errors import UserError

        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        launch(loop, {}, storage=open_storage(str(tmp_path)), scaling=ScalingConfig(threads=1))
    assert not prepared._kept


@pytest.mark.slow
def test_a_launch_does_without_a_prepared_process_that_died(tmp_path, prepared_worker):
    os.kill(prepared_worker, signal.SIGKILL)
    assert launch_and_tell_pid(tmp_path) != prepared_worker


def test_fewer_prepared_workers_than_wanted_are_not_taken(ray_session, monkeypatch):
    prepared.take_workers(0)  # of this Ray from here on
    monkeypatch.setattr(prepared, "_workers", ["worker"])
    monkeypatch.setattr(prepared, "_kept", ["kept"])
    assert prepared.take_workers(2) == []
    assert prepared.take_workers(1) == ["kept"]
    assert prepared.take_workers(1) == ["worker"]


def test_workers_of_another_ray_are_forgotten(ray_session, monkeypatch):
    for kind in ("_workers", "_kept"):
        monkeypatch.setattr(prepared, kind, ["worker"])
    monkeypatch.setattr(prepared, "_session", "another")
    assert prepared.take_workers(1) == []
