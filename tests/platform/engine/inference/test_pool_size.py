"""The size of a pool: on an autoscaling cluster what it may use, although nothing of it exists yet."""

import pytest

from platform.engine.inference.actors import _pool_size
from platform.engine.schemas.retrieval_settings import PoolConfig


def test_on_a_cluster_that_autoscales_the_pool_asks_for_what_it_may_use(monkeypatch):
    """The head of the recipes has no CPU. No Ray is asked here: what exists does not matter."""
    monkeypatch.setenv("RAY_CLUSTER_AUTOSCALES", "1")
    assert _pool_size(PoolConfig(actors=8, cpus_per_actor=4), num_units=100) == 8
    assert _pool_size(PoolConfig(actors=8), num_units=3) == 3  # no more actors than there is work


def test_bounds_of_a_pool():
    with pytest.raises(ValueError, match=r"min_actors must be between 1 and actors \(2\): got 3"):
        PoolConfig(min_actors=3)
