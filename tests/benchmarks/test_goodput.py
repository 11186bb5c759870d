"""The goodput model: limits that can be computed by hand, and the simulation against the closed form."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.goodput import Costs, closed_form, simulate, table, young

COSTS = Costs()


def test_without_failures_only_stalls_cost():
    expected = 600 / (600 + COSTS.stall)
    assert simulate(COSTS, 8, 0.0, 600) == pytest.approx(expected)
    assert closed_form(COSTS, 8, 0.0, 600) == pytest.approx(expected)


def test_young_balances_stalls_and_repeated_work():
    costs = replace(COSTS, notice_share=0.0, restart=0.0, replacement=0.0, write=0.0)
    failures = 16 * 0.2 / 3600
    best = young(costs, failures)
    around = [closed_form(costs, 64, 0.2, best * factor) for factor in (0.7, 1.0, 1.4)]
    assert around[1] == max(around)
    assert young(replace(costs, notice_share=1.0), failures) == float("inf")


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_simulation_and_closed_form_agree_where_losses_are_small(rate):
    found = np.mean([simulate(COSTS, 32, rate, 300, seed=seed) for seed in range(200)])
    assert found == pytest.approx(closed_form(COSTS, 32, rate, 300), abs=0.01)


def test_more_failures_and_longer_intervals_cost_more():
    costs = replace(COSTS, notice_share=0.0)
    rows = table(costs, [64], [0.05, 0.5], [300.0, 3600.0], runs=60)
    values = {(row["rate"], row["interval"]): row["simulated"] for row in rows}
    assert values[0.05, 300.0] > values[0.5, 300.0] > values[0.5, 3600.0]


def test_a_node_that_is_back_before_the_restart_is_over():
    """Each interruption costs two whole restarts, one after the other. Neither time nor progress runs backwards."""
    costs = replace(COSTS, notice_share=1.0, stall=0.0, restart=60.0, replacement=1.0)
    rate = 0.5  # per node and hour, on two nodes: one interruption an hour
    found = np.mean([simulate(costs, 8, rate, 600, seed=seed) for seed in range(60)])
    assert found == pytest.approx(3600 / (3600 + 2 * 60), abs=0.002)


def test_a_run_that_cannot_end_is_zero():
    assert simulate(replace(COSTS, notice_share=0.0, restart=36000.0), 64, 5.0, 3600, seed=1) == 0.0
