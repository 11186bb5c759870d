"""Failures while images are scored: the final scores equal those of an undisturbed run, bit for bit."""

import contextlib
import shutil
import threading
import time
from pathlib import Path

import psutil
import pytest

from platform.engine.data.shards import read_manifest, read_rows
from platform.engine.errors import UserError
from platform.engine.selection.scores import read_scores
from platform.engine.storage.location import Location, StorageConfig, open_storage
from platform.score import main
from tests.fixtures_shards import with_images, write_copies
from tests.platform.survival import FaultyProxy, Nodes, Process
from tests.platform.test_score import config_of

SHARDS, ROWS = 12, 40
SLOWLY = ("pool.batch=2",)  # so that a run lasts a few seconds after its first shard


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_shards) -> Location:
    """480 images in 12 shards, copies of those of the tiny set under other keys."""
    return write_copies(open_storage(str(tmp_path_factory.mktemp("data") / "many")), tiny_shards, SHARDS, ROWS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_session, shards, tiny_backbone, other_backbone) -> dict[str, float]:
    output = tmp_path_factory.mktemp("score") / "undisturbed"
    main(config_of(shards, tiny_backbone, other_backbone, output, *SLOWLY))
    return scores_in(output, shards)


def scores_in(output, data: Location, storage: StorageConfig | None = None) -> dict[str, float | None]:
    table = read_scores(open_storage(str(output), storage), read_manifest(data))
    return dict(zip(table["key"].to_pylist(), table["score"].to_pylist(), strict=True))


def wait_for_parts(output: Path, count: int = 2) -> int:
    """Wait until this many shards are scored. Returns their number, which must not be all."""
    deadline = time.monotonic() + 120
    while True:
        done = len(list((output / "parts").glob("*.parquet"))) if (output / "parts").exists() else 0
        if done >= count:
            assert done < SHARDS, "the run was over before the failure"
            return done
        assert time.monotonic() < deadline, f"{done} shards after two minutes"
        time.sleep(0.005)


def scorers() -> list[psutil.Process]:
    """The processes of the scoring actors on this machine that this process, or Ray for it, started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "MapWorker(MapBatches(InPieces))" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.slow  # waits for Ray to notice and to start another actor
def test_a_killed_actor(ray_session, shards, tiny_backbone, other_backbone, undisturbed, tmp_path):
    """One of two actors dies: Ray starts it again and it computes what it had not returned."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            main(config_of(shards, tiny_backbone, other_backbone, tmp_path / "scores", *SLOWLY, "pool.actors=2"))
        except BaseException as error:
            failed.append(error)

    before = {process.pid for process in scorers()}
    thread = threading.Thread(target=run)
    thread.start()
    wait_for_parts(tmp_path / "scores")
    own = [process for process in scorers() if process.pid not in before]
    assert own
    own[0].kill()
    thread.join(120)
    assert not failed and scores_in(tmp_path / "scores", shards) == undisturbed


@pytest.mark.slow  # two Rays of its own
def test_a_killed_driver_that_is_started_again(ray_session, shards, tiny_backbone, other_backbone, undisturbed, tmp_path, capsys):
    output = tmp_path / "scores"
    given = [f"data={shards.uri}", f"source_proxy={tiny_backbone}", f"target_proxy={other_backbone}", f"output={output}"]
    driver = Process("platform.score", *given, "pool.actors=1", *SLOWLY, "runtime.num_cpus=3", "runtime.object_store_gib=0.2")
    try:
        driver.wait_for(r"0 scored before")
        done = wait_for_parts(output)
    finally:
        driver.kill()  # SIGKILL, to it and the Ray that it started
    assert not (output / "summary.json").exists()
    summary = main(config_of(shards, tiny_backbone, other_backbone, output, *SLOWLY, "pool.actors=3"))
    (before,) = [int(line.split(", ")[-1].split()[0]) for line in capsys.readouterr().out.splitlines() if "scored before" in line]
    assert done * ROWS <= before < SHARDS * ROWS and summary["total"] == SHARDS * ROWS
    assert scores_in(output, shards) == undisturbed


@pytest.mark.slow  # scores twice through a server that answers slowly, and waits for retries
def test_errors_of_the_storage(ray_session, shards, tiny_backbone, other_backbone, undisturbed, tmp_path, s3, capsys):
    """Images and scores on S3. The server fails for a moment, and then until the run gives up and is started again."""
    direct = StorageConfig(endpoint_url=s3.endpoint_url)
    data = open_storage(f"{s3.uri}/data", direct)
    for item in shards.list():
        (data / item.name).write_bytes((shards / item.name).read_bytes())
    server = FaultyProxy(s3.endpoint_url)
    output, fault = f"{s3.uri}/scores", threading.Event()

    def disturb(seconds: float) -> None:
        parts = open_storage(output, direct) / "parts"
        while not fault.is_set() and len(parts.list()) < 2:
            time.sleep(0.02)
        server.mode = "error"
        fault.wait(seconds)
        server.mode = ""

    def run(retry_timeout_s: int, seconds: float):
        storage = (f"storage.endpoint_url={server.url}", "storage.max_attempts=1", f"storage.retry_timeout_s={retry_timeout_s}")
        thread = threading.Thread(target=disturb, args=(seconds,))
        thread.start()
        try:
            return main(config_of(data, tiny_backbone, other_backbone, output, *SLOWLY, *storage))
        finally:
            fault.set()
            thread.join(30)
            fault.clear()

    try:
        with pytest.raises(UserError, match=r"^cannot (read|write|look at) s3://"):
            run(1, 60)
        kept = len((open_storage(output, direct) / "parts").list())
        assert 0 < kept < SHARDS
        for item in (open_storage(output, direct) / "parts").list()[1:]:
            open_storage(output, direct).joinpath("parts", item.name).delete()  # so that the fault comes in the middle again
        before = server.faults
        run(60, 1.5)
        assert server.faults > before, "the server did not fail while the run needed it"
    finally:
        server.close()
    assert scores_in(output, data, direct) == undisturbed


@pytest.mark.slow  # tests/platform/test_junk_rows.py is an ordinary test of the same
def test_a_corrupt_image_changes_no_other_score(ray_session, shards, tiny_backbone, other_backbone, undisturbed, tmp_path):
    keys = read_rows(shards, ["key"])["key"].to_pylist()
    bad = [keys[5], keys[100]]
    data = with_images(shards, open_storage(str(tmp_path / "junk")), dict.fromkeys(bad, b"no image"))
    summary = main(config_of(data, tiny_backbone, other_backbone, tmp_path / "scores", *SLOWLY))
    assert scores_in(tmp_path / "scores", data) == undisturbed | dict.fromkeys(bad)
    assert summary["corrupt_images"] == 2 and all(key in " ".join(summary["corrupt"]) for key in bad)


@pytest.mark.slow
def test_a_missing_shard_can_be_brought_back(ray_session, shards, tiny_backbone, other_backbone, undisturbed, tmp_path):
    shutil.copytree(shards.path, tmp_path / "data")
    data, lost = open_storage(str(tmp_path / "data")), read_manifest(shards).files[7].name
    (tmp_path / "data" / lost).rename(tmp_path / lost)
    with pytest.raises(UserError, match=missing(lost)):
        main(config_of(data, tiny_backbone, other_backbone, tmp_path / "scores", *SLOWLY))
    (tmp_path / lost).rename(tmp_path / "data" / lost)
    main(config_of(data, tiny_backbone, other_backbone, tmp_path / "scores", *SLOWLY))
    assert scores_in(tmp_path / "scores", data) == undisturbed


def missing(shard: str) -> str:
    return rf"{shard}: it does not exist\. The data set names this shard: bring it back, or ingest the data set again"


def test_a_missing_shard_is_named(ray_session, tiny_shards, tiny_backbone, other_backbone, tmp_path):
    shutil.copytree(tiny_shards.path, tmp_path / "data")
    lost = read_manifest(tiny_shards).files[1].name
    (tmp_path / "data" / lost).unlink()
    with pytest.raises(UserError, match=missing(lost)):
        main(config_of(open_storage(str(tmp_path / "data")), tiny_backbone, other_backbone, tmp_path / "scores"))


@pytest.mark.slow  # starts a cluster of several nodes
@pytest.mark.timeout(400)
def test_a_removed_node(shards, tiny_backbone, other_backbone, undisturbed, tmp_path):
    """Three actors on two nodes; one node is removed like a machine that loses power."""
    nodes = Nodes()
    try:
        nodes.have(2)
        output = tmp_path / "scores"
        given = [f"data={shards.uri}", f"source_proxy={tiny_backbone}", f"target_proxy={other_backbone}", f"output={output}"]
        address = f"runtime.address={nodes.cluster.address}"
        driver = Process("platform.score", *given, "pool.actors=3", "pool.cpus_per_actor=2", "pool.batch=1", address)
        try:
            driver.wait_for(r"0 scored before")
            wait_for_parts(output, 1)
            nodes.remove(nodes.workers[0])
            assert driver.wait(240) == 0, driver.text[-4000:]
        finally:
            driver.kill()
    finally:
        nodes.close()
    main(config_of(shards, tiny_backbone, other_backbone, tmp_path / "alone", "pool.batch=1", "pool.cpus_per_actor=2"))
    assert scores_in(output, shards) == scores_in(tmp_path / "alone", shards)
