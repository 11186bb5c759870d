"""Processes that reserve no GPU see none, and a program says so. Its Ray has two GPUs by name only."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
# In a process of its own, because Ray starts with this process's environment and the session's Ray has no GPU.
PROGRAM = """
import json, os, sys
import ray
import numpy as np
from platform.engine.data.shards import read_manifest
from platform.engine.inference.actors import stream_through_actors
from platform.engine.runtime import ray_session
from platform.engine.runtime.idle_gpus import tell_idle_gpus
from platform.engine.schemas.retrieval_settings import PoolConfig
from platform.engine.schemas.runtime_settings import RuntimeConfig
from platform.engine.storage.location import open_storage
from platform.engine.train.launch import launch
from platform.engine.train.scaling import ScalingConfig

def seen(file=""):
    import json, os
    found = os.environ.get("CUDA_VISIBLE_DEVICES")
    if isinstance(file, dict):
        json.dump(found, open(file["file"], "w"))
    return found

def tell():
    from platform.engine.runtime.idle_gpus import tell_idle_gpus
    tell_idle_gpus({"pool.gpus_per_actor": 0})

class Actor:
    def seen(self):
        return seen()
    def tell(self):
        from platform.engine.runtime import idle_gpus
        idle_gpus.say = None  # a line would raise
        tell()

class Seeing:
    def __call__(self, batch):
        return {name: batch[name] for name in ("key", "file", "problem")} | {"seen": np.full(len(batch["key"]), seen())}

folder, shards = sys.argv[1], open_storage(sys.argv[2])
ray_session.connect(RuntimeConfig(num_cpus=2, num_gpus=2, object_store_gib=0.2))
task = ray.remote(num_cpus=0)(seen)
actor = ray.remote(num_cpus=0)(Actor)
idle = actor.remote()
ray.get(idle.tell.remote())
found = {
    "task": ray.get(task.remote()),
    "task with a GPU": ray.get(task.options(num_gpus=1).remote()),
    "actor": ray.get(idle.seen.remote()),
    "driver": seen(),
}
pool = PoolConfig(gpus_per_actor=0.5, cpus_per_actor=0.5, batch=8)
batches = stream_through_actors([(shards, read_manifest(shards).files)], Seeing, {}, (32, 16), pool)
found["pool"] = sorted({(len(batch["key"]), str(name)) for batch in batches for name in batch["seen"]})
try:
    list(stream_through_actors([(shards, read_manifest(shards).files)], Seeing, {}, (32, 16), PoolConfig(gpus_per_actor=3)))
except Exception as error:
    found["refused"] = str(error)
file = f"{folder}/worker.json"
launch(seen, {"file": file}, storage=open_storage(folder), scaling=ScalingConfig(threads=1))
found["worker"] = json.load(open(file))
for _ in range(2):
    tell_idle_gpus({"pretrain.scaling.gpus_per_worker": 0, "pool.gpus_per_actor": 0, "neighbors.gpus_per_actor": 0.5})
json.dump(found, open(f"{folder}/found.json", "w"))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory, tiny_shards) -> tuple[dict, list[str]]:
    """(what processes see, the lines of the terminal)"""
    folder = tmp_path_factory.mktemp("idle")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder, tiny_shards.uri],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "0,1", "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads((folder / "found.json").read_text()), [line[10:] for line in done.stdout.splitlines()]


def test_only_who_reserves_a_gpu_sees_it(ended):
    found, _ = ended
    found = {name: value for name, value in found.items() if name not in ("pool", "refused")}
    assert found == {"task": "", "task with a GPU": "0", "actor": "", "driver": "0,1", "worker": ""}


def test_the_actors_of_a_pool_see_the_gpu_they_reserve(ended):
    """Ray Data's public call refuses GPUs for functions that get whole blocks."""
    found = ended[0]["pool"]
    assert found and {name for _, name in found} <= {"0", "1"}
    assert max(rows for rows, _ in found) > 8  # a block is a row group, whatever the batch


def test_an_actor_that_no_node_could_hold_is_refused(ended):
    assert ended[0]["refused"].startswith("one actor of 3 GPUs is more than the 2 of this Ray: lower pool.gpus_per_actor")


def test_idle_gpus_are_told_once_by_the_program(ended):
    """Not by the processes that it starts, and only for settings that were not named before."""
    text = "this Ray has idle GPUs, but {0} is 0: set it to 1 to use a GPU"
    assert ended[1] == [text.format("scaling.gpus_per_worker"), text.format("pool.gpus_per_actor")]
