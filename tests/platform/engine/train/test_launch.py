"""Launches that fail: an error on a worker is reported once, as one line."""

import pytest

from platform.engine.errors import UserError
from platform.engine.runtime.collectives import broadcast_object
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
            name="train",
            storage=open_storage(str(tmp_path)),
            scaling=ScalingConfig(threads=1, max_failures=3),
        )
    assert attempts.read_text() == "x"  # a user's error is not retried


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
            name="train",
            storage=open_storage(str(tmp_path)),
            scaling=ScalingConfig(threads=1, max_failures=1),
        )
    assert attempts.read_text() == "xx"
