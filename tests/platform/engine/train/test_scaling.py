"""Numbers of workers: those that share a step evenly, and refusals before anything starts."""

import pytest

from platform.engine.errors import UserError
from platform.engine.train.scaling import ScalingConfig, allowed_sizes, check_size


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": 0}, "workers must be at least 1: got 0"),
        ({"workers": 2, "min_workers": 3}, r"min_workers must be between 0 and workers \(2\): got 3"),
        ({"max_failures": -2}, r"max_failures must be -1 \(no limit\) or more: got -2"),
        ({"resize_check_s": 0.0}, r"resize_check_s must be positive: got 0\.0"),
    ],
)
def test_impossible_scaling(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ScalingConfig(**values)


def test_number_of_workers():
    assert ScalingConfig(workers=4).num_workers == 4
    assert ScalingConfig(workers=4, min_workers=2).num_workers == (2, 4)
    assert ScalingConfig(workers=4, min_workers=4).num_workers == 4


def test_sizes_that_share_a_step_evenly():
    assert allowed_sizes(6) == [1, 2, 3, 6]
    assert ScalingConfig(workers=8, min_workers=2).sizes(8) == [2, 4, 8]
    assert ScalingConfig(workers=6, min_workers=1).sizes(12) == [1, 2, 3, 4, 6]
    assert ScalingConfig(workers=4).sizes(8) == [4]


def test_bounds_that_do_not_are_refused_with_the_list():
    for scaling in (ScalingConfig(workers=5), ScalingConfig(workers=6, min_workers=5)):
        with pytest.raises(UserError, match=r"5 workers cannot share 6 micro-batches .*\[1, 2, 3, 6\]"):
            scaling.sizes(6)
    check_size(3, 6)
    with pytest.raises(UserError, match=r"12 workers cannot share 6 "):
        check_size(12, 6)
