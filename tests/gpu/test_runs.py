"""Whole runs on a GPU: the curve of the CPU, checkpoints moved between devices, a killed run, every program once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from platform.engine.runs.metrics import read_metrics
from platform.engine.storage.location import open_storage
from tests.platform.curve_worker import BATCH
from tests.platform.test_curve import spawn
from tests.tiny import ON_CPU, PIPELINE, RESUMED

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1500)]
ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
SAME = ["model.drop_path=0", "compile=off"]  # drop path draws different numbers on another device
GPU = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}  # the GPU of this machine, if any


def gpus(*keys: str) -> list[str]:
    """Overrides that set each key to one GPU if there is one."""
    return [f"{key}=1" for key in keys] if torch.cuda.is_available() else []


def train(folder: Path, data: str, where: dict[str, str], name: str, stop: int = 0, *overrides: str) -> dict[int, float]:
    """Run the loop of pre-training in its own process up to step `stop` (0: the end); returns the logged losses."""
    folder.mkdir(exist_ok=True)
    order = {"world": 1, "data": data, "steps": STEPS, "runs": [[name, 0, stop]], "overrides": [*SAME, *overrides]}
    spawn("tests.platform.curve_worker", folder, 1, order, **where)
    return {row["position"]: row["loss"] for row in read_metrics(open_storage(str(folder / name)))}


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory, tiny_shards) -> dict[int, float]:
    found = train(tmp_path_factory.mktemp("cpu"), tiny_shards.uri, ON_CPU, "cpu", 0, "precision=fp32")
    assert list(found) == [BATCH * step for step in range(1, STEPS + 1)]
    return found


def test_the_curve_is_the_cpus(tmp_path, tiny_shards, on_cpu):
    """In fp32 without TF32 every loss is within 0.2 %."""
    assert train(tmp_path, tiny_shards.uri, GPU, "gpu", 0, "precision=fp32") == pytest.approx(on_cpu, rel=2e-3)


def test_the_bf16_curve_follows(tmp_path, tiny_shards):
    """In bf16 every loss is within 5 %, at a rate at which rounding does not grow from step to step."""
    slowly = "optimizer.learning_rate=0.002"
    exact, found = (
        train(tmp_path / precision, tiny_shards.uri, where, precision, 0, f"precision={precision}", slowly)
        for precision, where in (("fp32", ON_CPU), ("bf16", GPU))
    )
    assert found == pytest.approx(exact, rel=5e-2) and found != exact


def test_checkpoints_change_the_device_and_back(tmp_path, tiny_shards, on_cpu):
    """The run starts on the GPU, continues on the CPU from step 5 and on the GPU from step 9. Checkpoints every four steps."""
    for where, stop in ((GPU, 5), (ON_CPU, 9), (GPU, 0)):
        found = train(tmp_path, tiny_shards.uri, where, "changed", stop, "precision=fp32")
    assert found == pytest.approx(on_cpu, rel=2e-3)


def run(program: str, *overrides: str) -> str:
    """Run a program to its end; returns its output."""
    ended = subprocess.run(
        [sys.executable, "-m", f"platform.{program}", *overrides], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-3000:]
    return ended.stdout


def test_deepspeed_takes_the_gpu_of_the_worker(tmp_path):
    """Not the one that LOCAL_RANK numbers, which need not exist."""
    program = (
        "import os, sys, torch, torch.distributed as dist\n"
        "from platform.engine.runtime.device import device\n"
        "from platform.engine.zero import engine as zero\n"
        "os.environ |= {'LOCAL_RANK': '7', 'RANK': '0', 'WORLD_SIZE': '1'}\n"
        "dist.init_process_group('gloo', init_method=f'file://{sys.argv[1]}/rendezvous', rank=0, world_size=1)\n"
        "model = torch.nn.Linear(3, 2).to(device())\n"
        "optimizer = torch.optim.AdamW(model.parameters())\n"
        "engine = zero.build_engine(model, optimizer, zero.EngineSettings(zero_stage=0), micro_batch=1, accumulation=1)\n"
        "assert engine(torch.ones(1, 3, device=device())).device == device(), device()\n"
        "assert device().type == 'cpu' or engine.device == device(), engine.device\n"
    )
    environment = os.environ | (GPU if torch.cuda.is_available() else ON_CPU)
    ended = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_a_killed_run_goes_on(tmp_path, tiny_shards):
    """SIGTERM after a few steps; the same command then continues the run."""
    long = "length.epochs=40"  # not over before the signal is heard
    command = [f"data.uri={tiny_shards.uri}", f"output={tmp_path}/run", *RESUMED, long, *gpus("scaling.gpus_per_worker")]
    with subprocess.Popen(
        [sys.executable, "-m", "platform.pretrain", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "step 4/" in line:
                process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)
    assert process.returncode != 0 and not (tmp_path / "run" / "summary.json").exists(), "".join(lines[-20:])
    assert "continuing from" in run("pretrain", *command)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    positions = [row["position"] for row in read_metrics(open_storage(str(tmp_path / "run")))]
    assert positions == [16 * step for step in range(1, summary["steps"] + 1)]


def test_every_program_once(tmp_path):
    """The pipeline runs ingest, pretrain, score, select, finetune and report; the other programs run on its results."""
    folder = tmp_path / "run"
    run(
        "pipeline",
        f"output={folder}",
        *PIPELINE,
        "concurrent=1",  # the stages take a GPU each, and here is one
        *gpus("pretrain.scaling.gpus_per_worker", "finetune.scaling.gpus_per_worker"),
        *(["pool.gpus_per_actor=0.5"] if torch.cuda.is_available() else []),
    )
    model = folder / "finetune" / "usl-full"
    run(
        "finetune",
        f"checkpoint={folder}/pretrain/full",
        f"target_set={folder}/data/target",
        f"output={tmp_path}/supervised",
        "setting=supervised",
        "augment.image_size=[64,32]",
        "supervised.epochs=1",
        "supervised.batch.identities=4",
        "scaling.threads=1",
        *gpus("scaling.gpus_per_worker"),
    )
    run(
        "evaluate",
        f"checkpoints=[{model},{tmp_path}/supervised]",
        f"test_sets=[{folder}/data/target]",
        f"output={tmp_path}/table",
        *gpus("pool.gpus_per_actor"),
    )
    clusters = [f"checkpoint={model}", f"data={folder}/data/pretrain", f"output={tmp_path}/clusters", "cluster.k1=8"]
    run("cluster", *clusters, *gpus("pool.gpus_per_actor"))
    run("export", f"checkpoint={model}", f"output={tmp_path}/exported")
    assert all((tmp_path / name).exists() for name in ("run/report.html", "table", "clusters", "exported"))
