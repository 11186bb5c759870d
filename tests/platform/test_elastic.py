"""Failures of a pre-training run on a cluster of several nodes on this machine (docs/reliability.md has the results).

    .venv/bin/python -m pytest -m slow -s tests/platform/test_elastic.py     # prints what each failure cost

Every run with a failure must end with the losses of an undisturbed run and must see each sample once.
"""

import itertools
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from platform.engine.storage.location import StorageConfig, open_storage
from platform.engine.stream.units import read_units
from platform.engine.train.checkpoints import STATE, CheckpointStore
from tests.platform import survival
from tests.platform.curve_worker import BATCH
from tests.platform.survival import Driver, FaultyProxy, Nodes
from tests.platform.test_curve import check_audit, work

STEPS, FEW = 160, 40
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_shards) -> dict[int, dict[int, float]]:
    """Losses of an undisturbed run with one worker, without Ray, for both lengths of a run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for steps in (STEPS, FEW):
        work(folder, 1, tiny_shards.uri, steps, [[str(steps), 1, 0]])
    return {steps: survival.losses(folder / str(steps)) for steps in (STEPS, FEW)}


@pytest.fixture(scope="module")
def nodes():
    running = Nodes()
    yield running
    running.close()


@pytest.fixture
def start(tiny_shards, tmp_path, nodes):
    """A function that starts drivers, which are killed at the end of the test."""
    drivers = []

    def started(
        *overrides: str, steps: int = STEPS, data: str = tiny_shards.uri, output: Path | str = tmp_path / "run"
    ) -> Driver:
        drivers.append(Driver(data, output, steps, tmp_path / "audit", *nodes.overrides, *overrides))
        return drivers[-1]

    yield started
    for driver in drivers:
        driver.kill()


def finish(driver: Driver, undisturbed: dict[int, dict[int, float]], storage: StorageConfig | None = None) -> None:
    """Assert that the driver ends with status 0, with the undisturbed losses and every sample seen once."""
    assert driver.wait() == 0, driver.text[-6000:]
    found, expected = survival.losses(driver.output, storage), undisturbed[driver.steps]
    assert found == pytest.approx(expected, rel=1e-3)
    first = dict(itertools.islice(expected.items(), 40))  # rounding errors grow from step to step
    assert {position: found[position] for position in first} == pytest.approx(first, rel=1e-4)
    check_audit(driver.audit, driver.steps)


def report(what: str, lost: int, seconds: float) -> None:
    print(f"\n{what}: {lost} steps lost, {seconds:.0f} s until the next step")


# ---- nodes and workers


def test_a_killed_worker(nodes, start, undisturbed):
    nodes.have(2)
    driver = start("scaling.workers=2")
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
    driver = start("scaling.workers=2", "scaling.min_workers=1", "scaling.resize_check_s=10")
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
    last_before = max(
        int(line.split("step ")[1].split("/")[0])
        for when, line in driver.lines
        if " step " in line and "/" in line and when < first - 0.01 and "checkpoint" not in line
    )
    report(f"node added ({ready - added:.0f} s to start it)", last_before - step, first - added)
    assert workers == 2 and first - ready < 60 and last_before - step <= 1
    finish(driver, undisturbed)


def test_a_drained_node(nodes, start, undisturbed):
    """A notice of 25 s, shorter than any cloud's; the node is removed at the deadline."""
    nodes.have(2)
    driver = start("scaling.workers=2", "scaling.min_workers=1", "scaling.max_failures=0")
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
    first_driver = start("scaling.workers=1", steps=FEW)
    first_driver.wait_for(r"step 20/")
    done, now = first_driver.newest_step(), time.monotonic()
    first_driver.kill()
    driver = start("scaling.workers=1", steps=FEW)
    step, _, first = driver.continued(now)
    report("driver killed, started again", done - step, first - now)
    assert step > 0 and done - step <= 12
    finish(driver, undisturbed)


def test_sigterm(nodes, start, undisturbed):
    nodes.have(1)
    overrides = ["scaling.workers=1", "checkpoint.every_steps=1000"]
    first_driver = start(*overrides, steps=FEW)
    first_driver.wait_for(r"step 20/")
    now = time.monotonic()
    first_driver.process.send_signal(signal.SIGTERM)
    assert first_driver.wait(60) == 143, first_driver.text[-3000:]
    done = first_driver.newest_step()
    print(f"\nSIGTERM: ended after {time.monotonic() - now:.1f} s")
    assert "stopped after a checkpoint; run the same command again to continue" in first_driver.text
    driver = start(*overrides, steps=FEW)
    step, _, first = driver.continued(now)
    report("SIGTERM, started again", done - step, first - now)
    assert done - step <= 1
    finish(driver, undisturbed)


def test_a_loss_that_diverges(nodes, start):
    """Both workers stop before the update; another run continues from an earlier checkpoint."""
    nodes.have(2)
    driver = start(
        "scaling.workers=2", "optimizer.learning_rate=1e35", "checkpoint.every_steps=1", "checkpoint.keep=99", steps=FEW
    )
    assert driver.wait() == 2
    _, found = driver.wait_for(r"error: the (?:loss is|gradients are) not finite at step (\d+) .*checkpoint\.resume_from")
    done = driver.newest_step()
    assert int(found.group(1)) == done + 1
    now, other = time.monotonic(), Path(driver.output).parent / "milder"
    milder = start(
        "scaling.workers=2",
        f"checkpoint.resume_from={driver.output}",
        f"checkpoint.resume_position={BATCH}",
        steps=FEW,
        output=other,
    )
    step, _, first = milder.continued(now)
    report("loss diverged, another run from before", done - step, first - now)
    assert step == 1 and milder.wait() == 0 and len(survival.losses(other)) == FEW - 1


# ---- storage and data


def test_a_torn_checkpoint_is_passed_over_and_named(nodes, start, undisturbed):
    """The driver was killed during uploads: one checkpoint lacks its manifest, one is truncated."""
    nodes.have(1)
    first_driver = start("scaling.workers=1", steps=FEW)
    first_driver.wait_for(r"step 18/")
    first_driver.kill()
    nodes.wait_until_idle()
    checkpoints = Path(first_driver.output) / "checkpoints"
    older, newest = sorted(checkpoints.iterdir())[-2:]
    (newest / STATE).write_bytes((newest / STATE).read_bytes()[:1000])
    unfinished = checkpoints / "position-000000099999"
    unfinished.mkdir()
    (unfinished / STATE).write_bytes(b"half")
    done, now = first_driver.newest_step(), time.monotonic()
    driver = start("scaling.workers=1", steps=FEW)
    step, _, first = driver.continued(now)
    report("torn checkpoint", done - step, first - now)
    assert step == int(older.name.removeprefix("position-")) // BATCH
    for torn in (newest, unfinished):
        assert f"checkpoint {torn.name} is torn (an upload that did not finish) and was passed over" in driver.text
    finish(driver, undisturbed)
    assert not unfinished.exists()


def test_object_storage_that_fails_hangs_and_is_slow(nodes, start, undisturbed, s3, tiny_shards, tmp_path):
    """6 s of each fault, and then a permanent one: a clear error, after which the same command continues."""
    nodes.have(1)
    proxy, direct = FaultyProxy(s3.endpoint_url), StorageConfig(endpoint_url=s3.endpoint_url)
    try:
        for item in tiny_shards.list():
            (open_storage(f"{s3.uri}/data", direct) / item.name).write_bytes((tiny_shards / item.name).read_bytes())
        options = [
            "scaling.workers=1",
            "storage=s3",
            f"storage.endpoint_url={proxy.url}",
            "storage.max_attempts=2",
            "storage.request_timeout_s=2",
            "storage.connect_timeout_s=2",
            "stream.segment_windows=1",
        ]
        places = {"data": f"{s3.uri}/data", "output": f"{s3.uri}/run"}
        driver = start(*options, "storage.retry_timeout_s=60", steps=FEW, **places)
        driver.wait_for(r"step 5/")
        lost = {}
        for mode in ("error", "hang", "slow"):
            before, now = driver.newest_step(), time.monotonic()
            proxy.mode = mode
            time.sleep(6)
            proxy.mode = ""
            if driver.newest_step() < FEW:
                moved, _ = driver.wait_for(rf"step (?!{before}/)\d+/", after=now)
                lost[mode] = round(moved - now, 1)
            time.sleep(1)
        print(
            f"\nstorage failing, hanging, slow for 6 s each: {proxy.faults} of {proxy.requests} requests met it, "
            f"seconds until the next step {lost}"
        )
        assert proxy.faults > 0
        finish(driver, undisturbed, direct)

        shutil.rmtree(tmp_path / "audit")
        places["output"] = f"{s3.uri}/second"
        gone = start(*options, "storage.retry_timeout_s=3", "scaling.max_failures=0", steps=FEW, **places)
        gone.wait_for(r"step 10/")
        threading.Timer(0.0, setattr, (proxy, "mode", "error")).start()
        now = time.monotonic()
        assert gone.wait() == 2
        print(f"storage gone: ended {time.monotonic() - now:.0f} s after it failed, with retry_timeout_s=3")
        _, said = gone.wait_for(r"error: .*cannot (?:read|write|list|look at) s3://")
        assert "Traceback" not in said.string
        done, proxy.mode, now = gone.newest_step(), "", time.monotonic()
        again = start(*options, "storage.retry_timeout_s=3", "scaling.max_failures=0", steps=FEW, **places)
        step, _, first = again.continued(now)
        report("storage gone, started again when it was back", done - step, first - now)
        finish(again, undisturbed, direct)
    finally:
        proxy.close()


def test_a_full_disk(nodes, start, undisturbed, tmp_path):
    nodes.have(1)
    options = [
        "scaling.workers=1",
        "scaling.max_failures=0",
        "storage.retry_timeout_s=3",
        "checkpoint.keep=99",
        "checkpoint.every_steps=1",
    ]
    with survival.small_disk(tmp_path / "disk", 4) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(2 << 20))
        full = start(*options, steps=FEW, output=disk / "run")
        assert full.wait() == 2
        full.wait_for(r"error: checkpoint position-\d+ could not be written: .*No space left on device")
        done, now = full.newest_step(), time.monotonic()
        found = CheckpointStore(open_storage(str(disk / "run" / "checkpoints"))).newest()
        assert found is not None and found.position > 0
        ballast.unlink()
        for folder in sorted((disk / "run" / "checkpoints").iterdir())[:-3]:
            shutil.rmtree(folder)
        driver = start(*options[:-2], "checkpoint.keep=2", "checkpoint.every_steps=1", steps=FEW, output=disk / "run")
        step, _, first = driver.continued(now)
        report("disk full, started again with room", done - step, first - now)
        finish(driver, undisturbed)


def test_a_corrupt_shard_is_set_aside_or_stops_the_run(nodes, start, tiny_shards, tmp_path):
    nodes.have(1)
    shutil.copytree(tiny_shards.path, tmp_path / "data")
    file = tmp_path / "data" / read_units(open_storage(str(tmp_path / "data")))[-1].file
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    options = ["scaling.workers=1", "stream.window_row_groups=8"]
    strict = start(*options, data=str(tmp_path / "data"), steps=10)
    assert strict.wait() == 2
    strict.wait_for(r"error: .*samples of epoch 0 cannot be read, more than stream\.max_corrupt_share allows \(1\).*" + file.name)
    lenient = start(*options, "stream.max_corrupt_share=0.5", data=str(tmp_path / "data"), steps=10, output=tmp_path / "lenient")
    assert lenient.wait() == 0, lenient.text[-4000:]
    lenient.wait_for(f"set aside: {file.name}")
    summary = open_storage(str(tmp_path / "lenient" / "summary.json")).read_json()
    assert summary["steps"] == 10 and 35 <= summary["corrupt_samples"] <= 70 and file.name in summary["corrupt"][0]
    print(f"\ncorrupt shard: {summary['corrupt_samples']} of 160 samples replaced by others, no step lost")
