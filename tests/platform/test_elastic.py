"""What a pre-training run survives, on a cluster of several nodes on this machine (docs/reliability.md has the results).

    .venv/bin/python -m pytest -m slow -s tests/platform/test_elastic.py     # prints what each failure cost

Every run that went through a failure must end with the losses of an undisturbed one and with each sample seen once.
"""

import signal
import time

import pytest

from platform.engine.checkpoints import STATE
from platform.engine.config import load_config
from platform.pretrain import PretrainConfig, main
from tests.platform import survival
from tests.platform.curve_worker import BATCH, TINY
from tests.platform.survival import Driver, Nodes
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
