"""A program that waits for nodes which do not come can be stopped."""

import signal
import time

import pytest

from tests.platform.survival import Driver, Nodes


@pytest.mark.slow  # a cluster of its own
@pytest.mark.timeout(300)
def test_a_pre_training_that_waits_for_nodes_ends_on_sigterm(tmp_path, tiny_shards, monkeypatch):
    monkeypatch.setenv("RAY_CLUSTER_AUTOSCALES", "1")  # workers that the cluster cannot hold are waited for
    nodes = Nodes()
    scaling = ["scaling.workers=2", "scaling.min_workers=1"]
    driver = Driver(tiny_shards.uri, tmp_path / "run", 8, tmp_path / "audit", *nodes.overrides, *scaling)
    try:
        driver.wait_for("pretrain: ")
        until = time.monotonic() + 100
        while not (tmp_path / "run" / "ray_train").exists():  # Train's controller has begun
            assert driver.process.poll() is None and time.monotonic() < until, driver.text
            time.sleep(0.1)
        time.sleep(5)
        driver.process.send_signal(signal.SIGTERM)
        assert driver.wait(60) == 128 + signal.SIGTERM, driver.text
        assert "no workers are running, so there is nothing to write; run the same command again" in driver.text
    finally:
        driver.kill()
        nodes.cluster.shutdown()
