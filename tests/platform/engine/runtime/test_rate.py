"""The rate counts from the first finished batch, and tells the time left."""

import pytest

from platform.engine.runtime.rate import Rate, duration


def test_the_start_is_not_counted():
    now = [100.0]  # Ray and the models took 100 s
    rate = Rate(5000, clock=lambda: now[0])
    assert str(rate) == ""
    rate.update(1100)  # 1,000 of them by an earlier start
    assert str(rate) == ""
    for done in (1200, 1300, 1300):
        now[0] += 1
        rate.update(done)
    assert str(rate) == "100 images/s, 37 s left"  # and not slower while no batch comes
    now[0] = 100.0 + 39
    rate.update(5000)
    assert str(rate) == "100 images/s"
    slow = Rate(None, "units", clock=lambda: now[0])
    slow.update(1)
    now[0] += 4
    slow.update(3)
    assert str(slow) == "0.5 units/s"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (9.97, "10 s"), (59.7, "1 min 0 s"), (252, "4 min 12 s"), (3599.6, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
