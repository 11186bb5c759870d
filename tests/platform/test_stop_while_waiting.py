"""A program that waits for nodes which do not come can be stopped."""

import signal
import time

import pytest

from tests.platform.processes import kill, start
from tests.tiny import PRETRAIN


@pytest.mark.timeout(300)
def test_a_pre_training_that_waits_for_nodes_ends_on_sigterm(tmp_path, tiny_shards, monkeypatch):
    monkeypatch.setenv("RAY_CLUSTER_AUTOSCALES", "1")  # more workers than this machine has are not refused, but waited for
    scaling = ["scaling.workers=64", "scaling.min_workers=32", "stream.micro_batches_per_step=64", "scaling.cpus_per_worker=4"]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = start("pretrain", [f"data.uri={tiny_shards.uri}", f"output={tmp_path}/run", *PRETRAIN, *scaling], stream)
        try:
            until = time.monotonic() + 200
            while not (tmp_path / "run" / "ray_train").exists():  # Train's controller has begun
                assert process.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            time.sleep(3)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 128 + signal.SIGTERM, log.read_text()
        finally:
            if process.poll() is None:
                kill(process)
    assert "no workers are running, so there is nothing to write; run the same command again" in log.read_text()
