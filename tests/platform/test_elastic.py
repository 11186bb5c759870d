"""What a pre-training run survives, on a cluster of several nodes on this machine (docs/reliability.md has the results).

    .venv/bin/python -m pytest -m slow -s tests/platform/test_elastic.py     # prints what each failure cost

Every run that went through a failure must end with the losses of an undisturbed one and with each sample seen once.
"""

import os
import shutil
import signal
import threading
import time

import pytest

from platform.engine.checkpoints import STATE, CheckpointStore
from platform.engine.config import load_config
from platform.engine.errors import UserError
from platform.engine.selection import read_units
from platform.engine.storage import StorageConfig, open_storage
from platform.pretrain import PretrainConfig, main
from tests.platform import survival
from tests.platform.curve_worker import BATCH, TINY
from tests.platform.survival import Driver, FaultyProxy, Nodes
from tests.platform.test_curve import check_audit, work

STEPS = 120
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_shards) -> dict[int, float]:
    """Losses of one worker that nothing happens to, without Ray."""
    folder = tmp_path_factory.mktemp("undisturbed")
    work(folder, 1, tiny_shards.uri, STEPS, [["run", 1, 0]])
    return survival.losses(folder / "run")


@pytest.fixture(scope="module")
def nodes():
    running = Nodes()
    yield running
    running.close()


@pytest.fixture
def start(tiny_shards, tmp_path):
    """Starts drivers that are ended with the test."""
    drivers = []

    def started(*overrides: str) -> Driver:
        drivers.append(Driver(tiny_shards.uri, tmp_path / "run", STEPS, *overrides))
        return drivers[-1]

    yield started
    for driver in drivers:
        driver.kill()


def finish(driver: Driver, undisturbed: dict[int, float]) -> None:
    """It ends well, with the undisturbed losses and every sample once."""
    assert driver.wait() == 0, driver.text[-6000:]
    assert survival.losses(driver.output) == pytest.approx(undisturbed, rel=1e-3)
    check_audit(driver.output, STEPS)


def report(what: str, lost: int, seconds: float) -> None:
    print(f"\n{what}: {lost} steps lost, {seconds:.0f} s until the next step")


# ---- nodes and workers


def test_a_killed_worker(nodes, start, undisturbed):
    nodes.have(2)
    driver = start(*nodes.overrides, "scaling.workers=2")
    driver.wait_for(r"step 20/")
    victim = nodes.training_process(nodes.workers[0]) or nodes.training_process(nodes.workers[1])
    assert victim is not None
    done, now = driver.newest_step(), time.monotonic()
    victim.send_signal(signal.SIGKILL)
    step, workers, first = driver.continued(now)
    report("worker killed", done - step, first - now)
    assert workers == 2 and done - step <= 12
    finish(driver, undisturbed)


def test_a_node_that_goes_and_one_that_comes(nodes, start, undisturbed):
    nodes.have(2)
    driver = start(*nodes.overrides, "scaling.workers=2", "scaling.min_workers=1", "scaling.resize_check_s=10")
    driver.wait_for(r"step 20/")
    done, now = driver.newest_step(), time.monotonic()
    nodes.remove(nodes.workers[0])
    step, workers, first = driver.continued(now)
    report("node lost", done - step, first - now)
    assert workers == 1
    added = time.monotonic()
    nodes.have(2)
    ready = time.monotonic()
    step, workers, first = driver.continued(added)
    last_before = max(int(line.split("step ")[1].split("/")[0]) for when, line in driver.lines
                      if " step " in line and "/" in line and when < first - 0.01 and "checkpoint" not in line)
    report(f"node added ({ready - added:.0f} s to start it)", last_before - step, first - added)
    assert workers == 2 and first - ready < 60 and last_before - step <= 1
    finish(driver, undisturbed)


def test_a_drained_node(nodes, start, undisturbed):
    """25 s notice, as short as any cloud gives; the node is taken away at the deadline."""
    nodes.have(2)
    driver = start(*nodes.overrides, "scaling.workers=2", "scaling.min_workers=1", "scaling.max_failures=0")
    driver.wait_for(r"step 10/")
    now = time.monotonic()
    node = nodes.workers[0]
    nodes.drain(node, 25)
    told, _ = driver.wait_for(r"checkpoint at step (\d+) on notice", after=now)
    print(f"\ndrain notice: checkpoint after {told - now:.1f} s")
    _, last = driver.wait_for(r"checkpoint at step (\d+) on notice", after=told)
    while time.monotonic() < now + 25:
        time.sleep(0.1)
    gone, done = time.monotonic(), driver.newest_step()
    nodes.remove(node)
    step, workers, first = driver.continued(gone - 2)
    report("node drained", done - step, first - gone)
    assert workers == 1 and step == int(last.group(1)) and done - step <= 1
    finish(driver, undisturbed)


# ---- the driver


def test_a_killed_driver_and_the_same_command(nodes, start, undisturbed):
    nodes.have(1)
    overrides = [*nodes.overrides, "scaling.workers=1"]
    first_driver = start(*overrides)
    first_driver.wait_for(r"step 20/")
    done, now = first_driver.newest_step(), time.monotonic()
    first_driver.kill()
    driver = start(*overrides)
    step, _, first = driver.continued(now)
    report("driver killed, started again", done - step, first - now)
    assert step > 0 and done - step <= 12
    finish(driver, undisturbed)


def test_sigterm(nodes, start, undisturbed):
    nodes.have(1)
    overrides = [*nodes.overrides, "scaling.workers=1", "checkpoint.every_steps=1000"]
    first_driver = start(*overrides)
    first_driver.wait_for(r"step 20/")
    now = time.monotonic()
    first_driver.process.send_signal(signal.SIGTERM)
    assert first_driver.wait(60) == 143, first_driver.text[-3000:]
    done = first_driver.newest_step()
    print(f"\nSIGTERM: ended after {time.monotonic() - now:.1f} s")
    assert "stopped after a checkpoint; run the same command again to continue" in first_driver.text
    driver = start(*overrides)
    step, _, first = driver.continued(now)
    report("SIGTERM, started again", done - step, first - now)
    assert done - step <= 1
    finish(driver, undisturbed)


# ---- storage and data, one worker in this process's Ray


def config_of(data, output, *overrides: str) -> PretrainConfig:
    return load_config(PretrainConfig, "pretrain", [
        f"data.uri={data}", f"output={output}", *TINY, "length.samples=640", "scaling.threads=1", "scaling.max_failures=0",
        *overrides])


def test_a_torn_checkpoint_is_passed_over_and_named(tmp_path, tiny_shards, ray_session, capsys):
    output = tmp_path / "run"
    half = config_of(tiny_shards.uri, output, "tracking.every_steps=1")
    main(half)
    expected = survival.losses(output)
    (output / "summary.json").unlink()
    newest = sorted((output / "checkpoints").iterdir())[-1]
    (newest / STATE).write_bytes((newest / STATE).read_bytes()[:1000])
    now = time.monotonic()
    main(half)
    said = capsys.readouterr().out
    assert f"checkpoint {newest.name} is torn" in said and "continuing from 576 samples seen" in said
    report("torn checkpoint", (640 - 576) // BATCH, time.monotonic() - now)
    assert survival.losses(output) == pytest.approx(expected, rel=1e-5)


def test_object_storage_that_fails_hangs_and_is_slow_for_a_while(tmp_path, tiny_shards, s3, ray_session, capsys):
    proxy = FaultyProxy(s3.endpoint_url)
    try:
        direct = StorageConfig(endpoint_url=s3.endpoint_url)
        data, run = f"{s3.uri}/data", f"{s3.uri}/run"
        for item in tiny_shards.list():
            (open_storage(data, direct) / item.name).write_bytes((tiny_shards / item.name).read_bytes())
        options = ["storage=s3", f"storage.endpoint_url={proxy.url}", "storage.max_attempts=2", "storage.request_timeout_s=2",
                   "storage.connect_timeout_s=2", "length.samples=1600", "stream.segment_windows=1"]

        def faults() -> None:
            _until_checkpoint(run, direct)
            for mode in ("error", "hang", "slow"):
                proxy.mode = mode
                time.sleep(6)
                proxy.mode = ""
                time.sleep(1)

        thread = threading.Thread(target=faults, daemon=True)
        thread.start()
        now = time.monotonic()
        summary = main(config_of(data, run, *options, "storage.patience_s=60"))
        print(f"\nstorage failing, hanging and slow for 6 s each: {proxy.faults} of {proxy.requests} requests failed, "
              f"the run of 100 steps took {time.monotonic() - now:.0f} s")
        assert summary["steps"] == 100 and proxy.faults > 0
        # And for good: a clear failure, from which the same command goes on.
        second = f"{s3.uri}/second"

        def outage() -> None:
            _until_checkpoint(second, direct)
            proxy.mode = "error"

        threading.Thread(target=outage, daemon=True).start()
        again = config_of(data, second, *options, "storage.patience_s=3")
        with pytest.raises(UserError, match=r"cannot (read|write|list|look at) s3://"):
            main(again)
        proxy.mode = ""
        assert main(again)["steps"] == 100
        assert "continuing from" in capsys.readouterr().out
    finally:
        proxy.close()


def _until_checkpoint(run: str, direct: StorageConfig) -> None:
    while not any(item.name.endswith("manifest.json") for item in open_storage(f"{run}/checkpoints", direct).list()):
        time.sleep(0.05)


def test_a_full_disk(tmp_path, tiny_shards, ray_session):
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    with survival.small_disk(tmp_path / "disk", 4) as disk:
        output = disk / "run"
        config = config_of(tiny_shards.uri, output, "storage.patience_s=3", "checkpoint.keep=99", "checkpoint.every_steps=1")
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(2 << 20))
        with pytest.raises(UserError, match=r"checkpoint position-\d+ could not be written: .*No space left on device"):
            main(config)
        found = CheckpointStore(open_storage(str(output / "checkpoints"))).newest()
        assert found is not None and found.position > 0
        ballast.unlink()
        for folder in sorted((output / "checkpoints").iterdir())[:-2]:
            shutil.rmtree(folder)
        assert main(load_config(PretrainConfig, "pretrain", [
            f"data.uri={tiny_shards.uri}", f"output={output}", *TINY, "length.samples=640", "scaling.threads=1"]))["steps"] == 40


def test_a_corrupt_shard_is_set_aside_or_stops_the_run(tmp_path, tiny_shards, ray_session, capsys):
    shutil.copytree(tiny_shards.path, tmp_path / "data")
    file = tmp_path / "data" / read_units(open_storage(str(tmp_path / "data")))[-1].file
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    config = config_of(tmp_path / "data", tmp_path / "run", "stream.window_row_groups=8", "length.samples=160")
    with pytest.raises(UserError, match=r"samples of epoch 0 cannot be read, more than stream\.max_corrupt_share allows \(1\).*"
                                        + file.name):
        main(config)
    capsys.readouterr()
    config = config_of(tmp_path / "data", tmp_path / "run", "stream.window_row_groups=8", "length.samples=160",
                       "stream.max_corrupt_share=0.5")
    summary = main(config)
    assert summary["steps"] == 10 and 35 <= summary["corrupt_samples"] <= 70 and file.name in summary["corrupt"][0]
    assert f"set aside: {file.name}" in capsys.readouterr().out
