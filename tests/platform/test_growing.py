"""Every program that uses Ray starts on a cluster as the recipes make it: a head without CPUs, and no worker until one is needed.

Nodes are processes of this machine that Ray's own autoscaler starts and ends. Drivers connect as from a shell on the head.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reidssl.models.vit import build_vit
from reidssl.models.weights import save_model
from tests.platform.head_node import Head, free_ports, head_node
from tests.tiny import FINETUNE, IMAGENET, PRETRAIN, TINY_VIT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # nodes start and end for each program, about a minute each
NODE = {"resources": {"CPU": 3, "object_store_memory": 150 << 20}, "node_config": {}, "min_workers": 0, "max_workers": 2}
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
FEW = [*FINETUNE, "supervised.epochs=1", "unsupervised.epochs=1"]
POOL = ["pool.actors=2", "pool.batch=32"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    """A head without CPUs, whose autoscaler may start two nodes and ends them after six idle seconds."""
    folder, (port,) = Path(tempfile.mkdtemp(prefix="rg")), free_ports(1)
    # As ray.cluster_utils.AutoscalingCluster does it. That class itself would end every Ray of this machine.
    config = {
        "cluster_name": "growing",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",  # the wheel of Ray lacks the defaults that "fake_multinode" reads
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
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
    options = ("--num-cpus=0", f"--autoscaling-config={folder}/autoscaler.json")
    with head_node(folder, port, *options, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="120", **growing) as head:
        yield head


def nodes_of(head: Head) -> int:
    """Number of living nodes beside the head."""
    found = head.ray("list", "nodes", "--format=json", "--filter=state=ALIVE")
    assert found.returncode == 0, found.stdout
    return len(json.loads(found.stdout[found.stdout.index("[") :])) - 1


@pytest.fixture(scope="module")
def commands(tmp_path_factory, tiny_backbone, tiny_shards, tiny_labeled) -> dict[str, list[str]]:
    """Program -> its arguments, for runs that need none of the others."""
    other, out = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("out")
    save_model(build_vit(TINY_VIT, seed=4), {"kind": "backbone", **IMAGENET}, other / "backbone.safetensors")
    tuned = [f"finetune.{each}" for each in (*FEW, f"target_set={tiny_labeled.uri}", f"checkpoint={tiny_backbone}")]
    runs = {
        "ingest": ["raw.kind=synthetic", "raw.synthetic.num_pretrain=40", "raw.unit_images=10"],
        "pretrain": [f"data.uri={tiny_shards.uri}", *PRETRAIN, "length.samples=48", "scaling.threads=1", "scaling.workers=2"],
        "score": [f"data={tiny_shards.uri}", f"source_proxy={tiny_backbone}", f"target_proxy={other}", *POOL],
        "cluster": [f"data={tiny_shards.uri}", f"checkpoint={tiny_backbone}", "neighbors.actors=2", "cluster.k1=6", *POOL],
        "finetune": [f"target_set={tiny_labeled.uri}", f"checkpoint={tiny_backbone}", *FEW],
        "evaluate": [f"test_sets=[{tiny_labeled.uri}]", f"checkpoints=[{tiny_backbone}]", "evaluate.tasks=2", *POOL],
        "tune": ["+space.seed=[1,2]", "concurrent=2", *tuned],
    }
    return {program: [*arguments, f"output={out / program}"] for program, arguments in runs.items()}


@pytest.mark.parametrize("program", ["ingest", "pretrain", "score", "cluster", "finetune", "evaluate", "tune"])
def test_from_no_node_and_back(cluster, commands, program):
    assert nodes_of(cluster) == 0
    command = [sys.executable, "-m", f"platform.{program}", *commands[program], f"runtime.address={cluster.address}"]
    started = time.monotonic()
    found = cluster.run(*command, timeout=200)
    assert found.returncode == 0, found.stdout[-6000:]
    print(f"\n{program}: {time.monotonic() - started:.0f} s, {nodes_of(cluster)} nodes at its end")
    deadline = time.monotonic() + 60
    while nodes_of(cluster):
        assert time.monotonic() < deadline, cluster.ray("status", f"--address={cluster.address}").stdout
        time.sleep(1)
