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
from platform.engine.runtime import ray_session
from platform.engine.runtime.idle_gpus import tell_idle_gpus
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

folder = sys.argv[1]
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
file = f"{folder}/worker.json"
launch(seen, {"file": file}, storage=open_storage(folder), scaling=ScalingConfig(threads=1))
found["worker"] = json.load(open(file))
for _ in range(2):
    tell_idle_gpus({"pretrain.scaling.gpus_per_worker": 0, "pool.gpus_per_actor": 0, "neighbors.gpus_per_actor": 0.5})
json.dump(found, open(f"{folder}/found.json", "w"))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[dict, list[str]]:
    """(what processes see, the lines of the terminal)"""
    folder = tmp_path_factory.mktemp("idle")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder],
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
    assert found == {"task": "", "task with a GPU": "0", "actor": "", "driver": "0,1", "worker": ""}


def test_idle_gpus_are_told_once_by_the_program(ended):
    """Not by the processes that it starts, and only for settings that were not named before."""
    text = "this Ray has idle GPUs, but {0} is 0: set it to 1 to use a GPU"
    assert ended[1] == [text.format("scaling.gpus_per_worker"), text.format("pool.gpus_per_actor")]
