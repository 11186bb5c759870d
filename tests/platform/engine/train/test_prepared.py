"""Prepared processes: a launch uses them, does without dead ones, and the next launch runs in the same one."""

import os
import signal

import pytest
import torch

from platform.engine.config.compose import load_config
from platform.engine.errors import UserError
from platform.engine.runs.metrics import read_metrics
from platform.engine.storage.location import open_storage
from platform.engine.train import prepared
from platform.engine.train.launch import launch
from platform.engine.train.scaling import ScalingConfig
from platform.pretrain import PretrainConfig
from platform.pretrain import main as pretrain
from reidssl.models.weights import load_vit
from tests.tiny import RESUMED


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


def test_a_used_process_trains_as_a_new_one(tmp_path, prepared_worker, tiny_shards):
    """Nothing of a loop is left for the next one: two runs of one configuration, to the bit."""
    for name in ("new", "used"):
        pretrain(load_config(PretrainConfig, "pretrain", [f"data.uri={tiny_shards.uri}", f"output={tmp_path / name}", *RESUMED]))
        assert pids_of(prepared._kept) == [prepared_worker]
    new, used = ([row["loss"] for row in read_metrics(open_storage(str(tmp_path / name)))] for name in ("new", "used"))
    assert new == used and len(set(new)) > 20
    new, used = (load_vit(tmp_path / name / "backbone.safetensors").state_dict() for name in ("new", "used"))
    assert new.keys() == used.keys() and all(torch.equal(value, used[name]) for name, value in new.items())


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
