"""Launches that fail: an error on a worker is reported once, as one line."""

from dataclasses import dataclass

import pytest
from ray.train.v2._internal.state.schema import RunStatus
from ray.train.v2._internal.state.state_actor import get_state_actor

from platform.engine.errors import UserError
from platform.engine.runs.metrics import TrackingConfig
from platform.engine.runtime.collectives import broadcast_object
from platform.engine.runtime.run_name import name_of_run, set_run_name
from platform.engine.storage.location import open_storage
from platform.engine.train.launch import launch
from platform.engine.train.scaling import ScalingConfig


def test_broadcast_alone_is_the_value():
    value = {"a": 1}
    assert broadcast_object(value) is value


def test_a_user_error_of_a_worker_is_raised_once_in_its_own_words(tmp_path, ray_session):
    attempts = tmp_path / "attempts"

    def loop(arguments):
        from platform.engine.errors import UserError

        with open(arguments["attempts"], "a") as file:
            file.write("x")
        raise UserError("the cable is not plugged in")

    with pytest.raises(UserError, match=r"^the cable is not plugged in$"):
        launch(
            loop,
            {"attempts": str(attempts)},
            storage=open_storage(str(tmp_path)),
            scaling=ScalingConfig(threads=1, max_failures=3),
        )
    assert attempts.read_text() == "x"  # a user's error is not retried


@dataclass
class Settings:
    """Settings of a run, with a secret and with settings of their own."""

    tracking: TrackingConfig
    seed: int = 7


@pytest.mark.slow  # a controller and its state in processes of their own
def test_the_dashboard_shows_name_settings_and_failure(tmp_path, ray_session, monkeypatch):
    """Over the actor from which the Train page takes its rows."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    set_run_name(name_of_run("pretrain", "s3://bucket/runs/vit s"))

    def loop(settings):
        if settings.seed < 0:
            from platform.engine.errors import UserError

            raise UserError("no such seed")

    def run(seed: int):
        settings = Settings(TrackingConfig(mlflow="http://joe:planted@host"), seed)
        launch(loop, settings, storage=open_storage(str(tmp_path)), scaling=ScalingConfig(threads=1))

    run(7)
    with pytest.raises(UserError, match="no such seed"):
        run(-1)
    runs = ray_session.get(get_state_actor().get_train_runs.remote()).values()
    assert [run.name for run in runs] == ["pretrain-vit_s"] * 2
    by_seed = {run.run_settings.train_loop_config["seed"]: run for run in runs}
    assert by_seed[7].status == RunStatus.FINISHED and by_seed[-1].status == RunStatus.ERRORED
    shown = by_seed[7].run_settings.train_loop_config
    assert shown["tracking.mlflow"] == "http://***@host" and shown["tracking.every_steps"] == 20
    assert not any("planted" in run.model_dump_json() for run in runs)


def test_a_crash_is_tried_again_and_then_reported(tmp_path, ray_session, capsys):
    attempts = tmp_path / "attempts"

    def loop(arguments):
        with open(arguments["attempts"], "a") as file:
            file.write("x")
        raise RuntimeError("the lights went out")

    with pytest.raises(UserError, match=r"training failed on a worker: .*the lights went out"):
        launch(
            loop,
            {"attempts": str(attempts)},
            storage=open_storage(str(tmp_path)),
            scaling=ScalingConfig(threads=1, max_failures=1),
        )
    assert attempts.read_text() == "xx"
