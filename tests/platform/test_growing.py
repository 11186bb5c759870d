"""Every program that uses Ray starts on a cluster as the recipes make it: a head without CPUs, and no worker until one is needed.

    .venv/bin/python -m pytest -m slow -s tests/platform/test_growing.py                            # prints what each took
    GROWING_SVG=docs/growing.svg .venv/bin/python -m pytest -m slow tests/platform/test_growing.py     # and draws it

Nodes are processes of this machine that Ray's own autoscaler starts and ends. Programs run as from a shell on the head.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from benchmarks.growing import chart, lines_of, note
from platform.engine.runs.metrics import read_metrics
from platform.engine.storage.location import open_storage
from tests.platform.curve_worker import BATCH, TINY
from tests.platform.head_node import ROOT, Head, free_ports, head_node, short_folder
from tests.platform.survival import Process
from tests.tiny import FINETUNE, PIPELINE, PRETRAIN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # nodes start and end for the programs, about half a minute each
MOST = 3
MOST_S = 300  # for a line of a training: every new node compiles the loops of the augmentation
NODE = {"resources": {"CPU": 2, "object_store_memory": 100 << 20}, "node_config": {}, "min_workers": 0, "max_workers": MOST}
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
FEW = [*FINETUNE, "supervised.epochs=1", "unsupervised.epochs=1"]
PACED = "tests.platform.paced_pretrain"
POOL = ["pool.actors=2", "pool.batch=32"]
ELASTIC = [
    "scaling.workers=2",
    "scaling.min_workers=1",
    "scaling.cpus_per_worker=2",
    "scaling.resize_check_s=5",
    "scaling.threads=1",
    "scaling.max_failures=3",
]
STEP, EPOCH = r"\bstep \d+/", r"unsupervised epoch \d+/"


@dataclass(frozen=True)
class Growing:
    """The cluster and the record of what it has."""

    head: Head
    timeline: Path

    def samples(self, since: float = 0.0) -> list[dict]:
        return [one for one in lines_of(self.timeline) if "nodes" in one and one["time"] >= since]

    def nodes(self) -> int:
        """Number of worker nodes, from a sample of the last seconds."""
        deadline, now = time.monotonic() + 30, time.time()
        while not (found := self.samples(now)):
            assert time.monotonic() < deadline, "the record has ended"
            time.sleep(0.5)
        return found[-1]["nodes"]

    def drain(self, node: str, seconds: int) -> None:
        """Drain a node with the notice that cluster/drain_on_notice.py gives."""
        reason = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", f"--deadline-remaining-seconds={seconds}"]
        found = self.head.ray("drain-node", f"--address={self.head.address}", f"--node-id={node}", *reason)
        assert found.returncode == 0, found.stdout

    def wait_until_empty(self, seconds: float = 60) -> float:
        started = time.monotonic()
        while self.nodes():
            assert time.monotonic() < started + seconds, self.head.ray("status", f"--address={self.head.address}").stdout
        return time.monotonic() - started

    def raylets(self, kind: str) -> list[psutil.Process]:
        """The raylets of the worker nodes on which a process of this kind runs."""
        found = []
        for process in psutil.Process(self.head.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "raylet" and any(kind in " ".join(one.cmdline()) for one in process.children()):
                    found.append(process)
        return found

    def run(self, program: str, *arguments: str, seconds: int = 800) -> str:
        """Output of a program that must succeed."""
        command = [sys.executable, "-m", f"platform.{program}", *arguments, f"runtime.address={self.head.address}"]
        note(self.timeline, program=program, running=True)
        try:
            found = self.head.run(*command, timeout=seconds)
        finally:
            note(self.timeline, program=program, running=False)
        assert found.returncode == 0, found.stdout[-6000:]
        return found.stdout


@pytest.fixture(scope="module")
def cluster() -> Iterator[Growing]:
    """A head without CPUs, whose autoscaler may start nodes of two CPUs and ends them after six idle seconds."""
    with short_folder("rg") as folder:
        yield from growing_in(folder)


def growing_in(folder: Path) -> Iterator[Growing]:
    (port,) = free_ports(1)
    # As ray.cluster_utils.AutoscalingCluster does it, which the wheel of Ray cannot start (a file is missing there), and which
    # would end every other Ray of this machine.
    config = {
        "cluster_name": "growing",
        "max_workers": MOST,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",  # "fake_multinode" would read the file that is missing
            "module": "separate_nodes.SeparateNodes",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{f"{name}_commands": [] for name in COMMANDS},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": NODE,
        },
    }
    (folder / "autoscaler.json").write_text(json.dumps(config))
    growing = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_CLUSTER_AUTOSCALES": "1"}
    growing["PYTHONPATH"] = str(Path(__file__).with_name("node_provider"))
    options = ("--num-cpus=0", f"--autoscaling-config={folder}/autoscaler.json")
    with head_node(folder, port, *options, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="120", **growing) as head:
        timeline = folder / "timeline.jsonl"
        recorder = [sys.executable, "-m", "benchmarks.growing", "record", head.address, str(timeline)]
        with (folder / "recorder.log").open("wb") as log:
            record = subprocess.Popen(recorder, cwd=ROOT, env=head.environment, stdout=log, stderr=log)
        try:
            yield Growing(head, timeline)
        finally:
            record.kill()
            record.wait(30)
        if "GROWING_SVG" in os.environ:
            Path(os.environ["GROWING_SVG"]).write_text(chart(lines_of(timeline)))


@pytest.fixture(scope="module")
def commands(tmp_path_factory, tiny_backbone, other_backbone, tiny_shards, tiny_labeled) -> dict[str, list[str]]:
    """Program -> its arguments, for runs that need none of the others."""
    out = tmp_path_factory.mktemp("out")
    tuned = [f"finetune.{each}" for each in (*FEW, f"target_set={tiny_labeled.uri}", f"checkpoint={tiny_backbone}")]
    runs = {
        "ingest": ["raw.kind=synthetic", "raw.synthetic.num_pretrain=40", "raw.unit_images=10"],
        "pretrain": [f"data.uri={tiny_shards.uri}", *PRETRAIN, "length.samples=48", "scaling.threads=1", "scaling.workers=2"],
        "score": [f"data={tiny_shards.uri}", f"source_proxy={tiny_backbone}", f"target_proxy={other_backbone}", *POOL],
        "cluster": [f"data={tiny_shards.uri}", f"checkpoint={tiny_backbone}", "neighbors.actors=2", "cluster.k1=6", *POOL],
        "finetune": [f"target_set={tiny_labeled.uri}", f"checkpoint={tiny_backbone}", *FEW],
        "evaluate": [f"test_sets=[{tiny_labeled.uri}]", f"checkpoints=[{tiny_backbone}]", "evaluate.tasks=2", *POOL],
        "tune": ["+space.seed=[1,2]", "concurrent=2", *tuned],
        "pipeline": PIPELINE,
    }
    return {program: [*arguments, f"output={out / program}"] for program, arguments in runs.items()}


@pytest.mark.parametrize("program", ["ingest", "score", "evaluate", "cluster", "pretrain", "finetune", "tune", "pipeline"])
def test_from_no_node(cluster, commands, program):
    cluster.wait_until_empty()
    since, started = time.time(), time.monotonic()
    cluster.run(program, *commands[program])
    most = max(one["nodes"] for one in cluster.samples(since))
    print(f"\n{program}: {time.monotonic() - started:.0f} s, at most {most} nodes; gone {cluster.wait_until_empty():.0f} s later")
    assert most >= 1


def test_pre_training_grows_shrinks_and_grows_again(cluster, tiny_shards, tmp_path):
    """It begins on the nodes that come first. One is drained and goes, like a spot machine; another takes its place."""
    cluster.wait_until_empty()
    length = ["length.epochs=1000", "checkpoint.every_steps=20"]
    given = [f"data.uri={tiny_shards.uri}", f"output={tmp_path / 'run'}", f"runtime.address={cluster.head.address}"]
    note(cluster.timeline, program="pretrain, elastic", running=True)
    driver = Process(PACED, *given, *TINY, *length, *ELASTIC, environment=cluster.head.environment)
    try:
        driver.wait_for(STEP, MOST_S)
        notice = r"checkpoint at step (\d+) on notice"
        drained = take_away(cluster, driver, steps_with_two_workers(cluster, driver, STEP)[0], notice)
        # With one worker, or with two if the node that was reading has room for one.
        driver.wait_for(r"continuing from [\d,]+ samples seen.* with [12] worker", MOST_S, after=drained)
        steps_with_two_workers(cluster, driver, STEP)
        driver.process.send_signal(signal.SIGTERM)
        assert driver.wait(60) == 143, driver.text[-3000:]
    finally:
        driver.kill()
        note(cluster.timeline, program="pretrain, elastic", running=False)
    positions = [row["position"] for row in read_metrics(open_storage(str(tmp_path / "run")))]
    assert positions == list(range(BATCH, positions[-1] + BATCH, BATCH))  # no step twice, none left out
    cluster.wait_until_empty()


def test_fine_tuning_grows_shrinks_and_grows_again(cluster, tiny_backbone, tiny_labeled, tmp_path):
    """As above. What is lost is less than a step, although an epoch has 200 of them."""
    cluster.wait_until_empty()
    length = ["setting=usl", "unsupervised.epochs=1000", "unsupervised.iterations=200", "unsupervised.batch.micro_batches=2"]
    sets = [f"target_set={tiny_labeled.uri}", f"checkpoint={tiny_backbone}"]
    given = [f"output={tmp_path / 'run'}", f"runtime.address={cluster.head.address}"]
    note(cluster.timeline, program="finetune, elastic", running=True)
    driver = Process("platform.finetune", *sets, *given, *FINETUNE, *length, *ELASTIC, environment=cluster.head.environment)
    try:
        driver.wait_for(EPOCH, MOST_S)
        notice = r"checkpoint at unsupervised epoch \d+ step (\d+) on notice"
        drained = take_away(cluster, driver, steps_with_two_workers(cluster, driver, EPOCH)[0], notice)
        driver.wait_for(r"continuing after phase 1, epoch \d+ and \d+ of 200 steps", MOST_S, after=drained)
        steps_with_two_workers(cluster, driver, EPOCH)
        driver.process.send_signal(signal.SIGTERM)
        assert driver.wait(60) == 143, driver.text[-3000:]
    finally:
        driver.kill()
        note(cluster.timeline, program="finetune, elastic", running=False)
    epochs = [row["epoch"] for row in read_metrics(open_storage(str(tmp_path / "run"))) if "loss" in row]
    assert epochs == list(range(1, epochs[-1] + 1))  # no epoch twice, none left out
    cluster.wait_until_empty()


def take_away(cluster: Growing, driver: Process, node: psutil.Process, notice: str) -> float:
    """Drain a node, wait for the line of the checkpoint, and kill the node at its deadline. Returns when it was drained."""
    drained = time.monotonic()
    cluster.drain(node.environ()["RAY_OVERRIDE_NODE_ID_FOR_TESTING"], 10)
    driver.wait_for(notice, MOST_S, after=drained)
    time.sleep(max(0.0, drained + 10 - time.monotonic()))
    for process in [*node.children(recursive=True), node]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return drained


def steps_with_two_workers(cluster: Growing, driver: Process, line: str) -> list[psutil.Process]:
    """Wait until two workers take steps, which print `line`. Returns the raylets of their nodes."""
    until = time.monotonic() + MOST_S
    while len(raylets := cluster.raylets("RayTrainWorker")) < 2:
        assert time.monotonic() < until, driver.text[-6000:]
        time.sleep(1)
    driver.wait_for(line, MOST_S, after=time.monotonic())
    return raylets
