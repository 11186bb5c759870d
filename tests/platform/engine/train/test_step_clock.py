"""Where the time of a step goes, and what restarts cost."""

import time

import pytest

from platform.engine.runs.gauges import OPERATION, STEP_PARTS
from platform.engine.runtime.terminal import LineBoard
from platform.engine.train.step_clock import StepClock


def test_times_are_those_of_the_blocks_without_inner_ones():
    clock = StepClock()

    def slow():
        for number in range(2):
            time.sleep(0.02)
            yield number

    for _ in clock.waiting("input_wait", slow()):
        with clock.measure("compute"):
            time.sleep(0.01)
            with clock.measure("crops"):
                time.sleep(0.03)
    found = clock.take(2)
    least = {"input_wait_seconds": 0.02, "crops_seconds": 0.03, "compute_seconds": 0.01}  # a busy machine takes longer
    assert all(found[name] >= seconds for name, seconds in least.items())
    parts = sum(found[f"{name}_seconds"] for name in ("input_wait", "crops", "compute"))
    assert parts <= found["step_seconds"] + 1e-9 and found.keys() <= {*OPERATION}
    assert clock.take(1).keys() == {"step_seconds"}  # starts anew
    assert {"step_seconds", *STEP_PARTS} <= {*OPERATION}


def test_a_wait_that_ends_with_an_error_is_not_hidden():
    def broken():
        yield 1
        raise ValueError("the input ended in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        list(StepClock().waiting("input_wait", broken()))


def test_restarts_and_what_they_lost():
    board = LineBoard()
    assert board.started(0) == (0, 0)
    for position in (16, 32, 48):
        board.reached(position)
    assert board.started(32) == (1, 16)  # from the checkpoint at 32
    board.reached(64)
    assert board.started(64) == (2, 16)  # a resize loses nothing
    board.clear()
    assert board.started(64) == (0, 0)  # the next run of this program
