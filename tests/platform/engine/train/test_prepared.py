"""Prepared processes: a launch uses them, does without dead ones, and a second launch finds one ready."""

import os
import signal

import pytest

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

    for actor in prepared.take_workers(len(prepared._workers)):
        ray.kill(actor)
    prepared.prepare_workers(1)
    return pids_of(prepared._workers)[0]


def test_a_launch_runs_in_the_prepared_process_and_leaves_one_for_the_next(tmp_path, prepared_worker):
    prepared.prepare_workers(1)  # there is one already
    assert pids_of(prepared._workers) == [prepared_worker]
    before = prepared._launches
    assert launch_and_tell_pid(tmp_path) == prepared_worker
    assert prepared._launches == before + 1
    prepared._launches = 1  # a program that has launched before
    assert launch_and_tell_pid(tmp_path) != prepared_worker
    assert len(prepared._workers) == 1


@pytest.mark.slow
def test_a_launch_does_without_a_prepared_process_that_died(tmp_path, prepared_worker):
    os.kill(prepared_worker, signal.SIGKILL)
    assert launch_and_tell_pid(tmp_path) != prepared_worker


def test_fewer_prepared_workers_than_wanted_are_not_taken(ray_session, monkeypatch):
    prepared.take_workers(0)  # of this Ray from here on
    monkeypatch.setattr(prepared, "_workers", ["worker"])
    assert prepared.take_workers(2) == []
    assert prepared.take_workers(1) == ["worker"]


def test_workers_of_another_ray_are_forgotten(ray_session, monkeypatch):
    monkeypatch.setattr(prepared, "_workers", ["worker"])
    monkeypatch.setattr(prepared, "_session", "another")
    assert prepared.take_workers(1) == []
