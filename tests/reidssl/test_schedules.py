"""Schedules against the recipes' formulas."""

import math

import numpy as np
import pytest

from reidssl.schedules import Cosine, ReidCosine, Steps


def test_cosine_corners():
    schedule = Cosine(base=5e-4, final=1e-6, total=100, warmup=10, start=1e-5)
    assert schedule(0) == 1e-5
    assert schedule(5) == pytest.approx((1e-5 + 5e-4) / 2)
    assert schedule(10) == 5e-4
    assert schedule(55) == pytest.approx((5e-4 + 1e-6) / 2)
    assert schedule(100) == schedule(1000) == 1e-6
    assert schedule(32.5) == pytest.approx(1e-6 + (5e-4 - 1e-6) * (1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize(("steps", "warmup_steps", "batch"), [(30, 7, 16), (30, 1, 16), (10, 0, 3), (12, 12, 8), (5, 2, 1)])
def test_cosine_of_steps_equals_the_released_array(steps, warmup_steps, batch):
    base, final, start = 5e-4, 1e-6, 1e-5
    rest = steps - warmup_steps
    expected = np.concatenate(
        [
            np.linspace(start, base, warmup_steps),
            final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(rest) / max(rest, 1))),
        ]
    )
    schedule = Cosine(base, final, steps * batch, warmup_steps * batch, start, step=batch)
    np.testing.assert_allclose([schedule(step * batch) for step in range(steps)], expected, rtol=1e-12)
    if warmup_steps > 1 and rest:
        assert schedule((warmup_steps - 1) * batch) == schedule(warmup_steps * batch) == base  # base is reached, and repeated


def test_a_warm_up_that_ends_within_a_step_does_not_pass_the_peak():
    schedule = Cosine(base=1.0, final=0.0, total=100, warmup=25, step=10)
    assert [schedule(seen) for seen in (0, 10, 20)] == pytest.approx([0, 10 / 15, 1]) and schedule(30) < 1
    with pytest.raises(ValueError, match="step must be 0"):
        Cosine(1, 0, total=10, step=-1)


def test_cosine_may_rise():
    momentum = Cosine(base=0.996, final=1.0, total=50)
    values = [momentum(seen) for seen in range(51)]
    assert values[0] == 0.996 and values[-1] == 1.0 and values == sorted(values)


def test_whole_run_may_be_warmup():
    assert Cosine(base=1.0, final=0.0, total=10, warmup=10)(9) == pytest.approx(0.9)


@pytest.mark.parametrize("factor", [1, 2], ids=["weights", "biases"])
def test_supervised_rate_equals_the_released_formula(factor):
    rate = 4e-4
    base = factor * rate
    schedule = ReidCosine(rate, total=120, warmup=20)
    for t in range(120):
        expected = (
            0.01 * rate + t * (base - 0.01 * rate) / 20
            if t < 20
            else 0.002 * rate + 0.5 * (base - 0.002 * rate) * (1 + math.cos(math.pi * t / 120))
        )
        assert schedule(t, factor) == pytest.approx(expected, rel=1e-12)
    assert schedule(20, factor) < 0.94 * base  # the drop after warm-up
    assert schedule(500, factor) == pytest.approx(0.002 * rate)


def test_supervised_rates_are_the_figures_of_the_released_recipe():
    """B = 4e-4, 20 of 120 epochs of warm-up: rates of weights and biases, computed by hand from the published formula."""
    schedule = ReidCosine(4e-4, total=120, warmup=20)
    figures = {  # epoch: (weights, biases)
        0: (4e-6, 4e-6),  # one start for both, not twice as high for biases
        10: (2.02e-4, 4.02e-4),
        19: (3.802e-4, 7.602e-4),
        20: (3.732587e-4, 7.464638e-4),
        60: (2.004e-4, 4.004e-4),
        119: (8.683979e-7, 9.369329e-7),
    }
    for epoch, rates in figures.items():
        assert (schedule(epoch), schedule(epoch, 2.0)) == pytest.approx(rates, rel=1e-6), epoch


def test_steps():
    schedule = Steps(base=3.5e-4, interval=20)
    assert [schedule(t) for t in (0, 19.9, 20, 49)] == pytest.approx([3.5e-4, 3.5e-4, 3.5e-5, 3.5e-6])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cosine(1, 0, total=0),
        lambda: Cosine(1, 0, total=10, warmup=11),
        lambda: ReidCosine(1, total=-1),
        lambda: ReidCosine(1, total=10, warmup=-1),
        lambda: Steps(1, interval=0),
    ],
)
def test_impossible_lengths_are_refused(make):
    with pytest.raises(ValueError, match=r"total|warmup|interval"):
        make()
