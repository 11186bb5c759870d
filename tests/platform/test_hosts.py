"""Failures of the network between hosts with addresses of their own (docs/reliability.md has the results).

    .venv/bin/python -m pytest -m slow -s tests/platform/test_hosts.py     # as root; prints what each failure cost

Every run must end with the losses, or the scores, of an undisturbed one.
"""

import time
from pathlib import Path

import pytest

from platform.engine.data.shards import read_manifest
from platform.engine.selection.scores import read_scores
from platform.engine.storage.location import open_storage
from tests.fixtures_shards import write_copies
from tests.platform import survival
from tests.platform.hosts import Hosts, running_hosts
from tests.platform.survival import Driver, Process
from tests.platform.test_curve import check_audit, work

STEPS, SHARDS = 120, 40
ELASTIC = ["scaling.workers=2", "scaling.min_workers=1", f"scaling.cpus_per_worker={Hosts.WORKER_CPUS}"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_shards) -> dict[int, float]:
    """Losses of an undisturbed run with one worker, without Ray."""
    folder = tmp_path_factory.mktemp("undisturbed")
    work(folder, 1, tiny_shards.uri, STEPS, [["run", 1, 0]])
    return survival.losses(folder / "run")


@pytest.fixture(scope="module")
def hosts():
    with running_hosts(3) as running:
        yield running


@pytest.fixture
def start(hosts, tiny_shards, tmp_path):
    """A function that starts a pre-training on the head, with one worker on each of the other hosts."""
    drivers = []
    hosts.repair_all()

    def started() -> Driver:
        place = {"environment": hosts.environment, "on": hosts.on(0)}
        drivers.append(Driver(tiny_shards.uri, tmp_path / "run", STEPS, tmp_path / "audit", *hosts.overrides, *ELASTIC, **place))
        return drivers[-1]

    yield started
    for driver in drivers:
        driver.kill()


def finish(driver: Driver, undisturbed: dict[int, float]) -> None:
    assert driver.wait(400) == 0, driver.text[-6000:]
    assert survival.losses(driver.output) == pytest.approx(undisturbed, rel=1e-3)
    check_audit(driver.audit, driver.steps)


def test_a_link_that_is_cut_for_half_a_minute(hosts, start, undisturbed):
    """The workers wait for each other, or start again from the newest checkpoint."""
    driver = start()
    driver.wait_for(r"step 20/")
    hosts.link(2, up=False)
    time.sleep(30)
    done = driver.newest_step()
    hosts.link(2)
    back = time.monotonic()
    _, found = driver.wait_for(r"continuing from|step \d+/", after=back)
    first, _ = driver.wait_for(r"step \d+/", after=back)
    restarted = found.group().startswith("continuing")
    print(f"\nlink cut for 30 s at step {done}: next step {first - back:.0f} s after it was back, restarted: {restarted}")
    finish(driver, undisturbed)


def test_a_host_that_is_gone_for_good(hosts, start, undisturbed):
    """Its process runs on, but no packet comes from it: training goes on with the other worker."""
    driver = start()
    driver.wait_for(r"step 20/")
    assert hosts.runs(2, "RayTrainWorker")
    done, cut = driver.newest_step(), time.monotonic()
    hosts.link(2, up=False)
    driver.wait_for(r"continuing from", timeout_s=300, after=cut)
    step, workers, first = driver.continued(cut)
    print(
        f"\nhost partitioned at step {done}: {done - step} steps lost, {first - cut:.0f} s until the next step, {workers} worker"
    )
    assert workers == 1 and done - step <= 12
    finish(driver, undisturbed)


def test_a_slow_and_lossy_network(hosts, start, undisturbed):
    """All links: 5 ms one way, so 20 ms between two hosts and back, and 0.5 % of the packets are lost at each end."""
    for host in range(hosts.count):
        hosts.link(host, delay_s=0.005, loss=0.005)
    driver = start()
    begun, _ = driver.wait_for(r"step 20/", timeout_s=300)
    ended, _ = driver.wait_for(rf"step {STEPS}/", timeout_s=300)
    print(f"\nslow and lossy network: {(ended - begun) / (STEPS - 20):.2f} s a step")
    finish(driver, undisturbed)
    assert driver.text.count("continuing from") == 0


def test_scoring_goes_on_without_a_host(hosts, tiny_shards, tiny_backbone, other_backbone, tmp_path):
    hosts.repair_all()
    data = write_copies(open_storage(str(tmp_path / "many")), tiny_shards, SHARDS, 40)

    def score(name: str) -> Process:
        given = [f"data={data.uri}", f"source_proxy={tiny_backbone}", f"target_proxy={other_backbone}"]
        pool = ["pool.actors=2", "pool.batch=2", f"pool.cpus_per_actor={Hosts.WORKER_CPUS}"]
        place = {"environment": hosts.environment, "on": hosts.on(0)}
        return Process("platform.score", *given, *pool, f"output={tmp_path / name}", *hosts.overrides, **place)

    def scores(name: str) -> dict[str, float]:
        table = read_scores(open_storage(str(tmp_path / name)), read_manifest(data))
        return dict(zip(table["key"].to_pylist(), table["score"].to_pylist(), strict=True))

    process = score("undisturbed")
    assert process.wait() == 0, process.text
    process, parts = score("disturbed"), tmp_path / "disturbed" / "parts"
    try:
        wait_for_a_part(parts, process)
        assert hosts.runs(2, "MapWorker")
        hosts.link(2, up=False)
        cut, done = time.monotonic(), len(list(parts.glob("*.parquet")))
        assert process.wait(400) == 0, process.text
        print(f"\nscoring, host partitioned after {done} of {SHARDS} shards: ended {time.monotonic() - cut:.0f} s later")
    finally:
        process.kill()
        hosts.repair_all()
    assert done < SHARDS and scores("disturbed") == scores("undisturbed")


def wait_for_a_part(parts: Path, process: Process) -> None:
    until = time.monotonic() + 200
    while not (parts.exists() and list(parts.glob("*.parquet"))):
        assert process.process.poll() is None and time.monotonic() < until, process.text
        time.sleep(0.01)
