"""benchmarks.gpu at toy sizes: every part that needs no cluster, and the message without a GPU."""

import io
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg

from benchmarks import gpu, gpu_profile, gpu_sides

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "overrides": gpu.TINY.overrides,
    "steps": 1,
    "extraction": gpu.TINY.extraction,
    "product": gpu.TINY.product,
    "batch": gpu.TINY.crop_batch,
    "num": 8,
}


@pytest.mark.parametrize("side", ["bare", "crops", "loader", "extraction", "forward", "arithmetic"])
def test_every_side_works(side):
    work, check = getattr(gpu_sides, side)(TINY | {"compiled": False})
    numbers = check(work())
    if side == "loader":
        assert numbers == {"images": 8}
    if side == "extraction":
        assert numbers["shape"] == (32, 32)
    if side == "arithmetic":
        # Lower bound: the head's last layer, forward on 3 crops of the student and 2 of the teacher, and twice backward on the 3.
        assert numbers["operations"] > (3 * 3 + 2) * 2 * 16 * 64 and numbers["product"] == 40 * 256**3


def test_the_profile_lists_the_operators_of_a_step():
    step, _, _ = gpu_sides.training_step(gpu_sides.config_of(gpu.TINY.overrides))
    found = gpu_profile.kernels(step)
    assert found == sorted(found, key=lambda each: -each[1]) and found[0][1] > 0
    launches = {name: count for name, _, count in found}
    assert torch.cuda.is_available() or launches["aten::mm"] > 1
    assert min(launches.values()) >= 1 / gpu_profile.STEPS


def averages(key: str, kind: DeviceType, **values) -> FunctionEventAvg:
    """A row of the profiler: 6 calls and 3 ms on the GPU."""
    found = FunctionEventAvg()
    vars(found).update(key=key, device_type=kind, count=6, self_device_time_total=3000, is_user_annotation=False, **values)
    return found


def test_the_profile_of_a_gpu_counts_what_ran_on_it():
    events = [
        averages("cudaLaunchKernel", DeviceType.CPU),
        averages("gemm", DeviceType.CUDA),
        averages("Optimizer.step#AdamW.step", DeviceType.CUDA),
    ]
    events[2].is_user_annotation = True
    assert gpu_profile.of_a_step(events, True) == [("gemm", 1.0, 2.0)]


def test_both_starts_share_a_new_folder_for_compiled_code(tmp_path, monkeypatch):
    """Whatever an earlier run has left in the user's folder. The programs themselves are not started."""
    seen = []

    def started(command, env, **_):
        seen.append(env)
        return nullcontext(SimpleNamespace(stdout=io.StringIO("  pretrain: x\n  step 1/4\n"), communicate=lambda: None))

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    gpu.start(str(tmp_path), gpu.TINY)
    assert [env["TORCHINDUCTOR_CACHE_DIR"] for env in seen] == [f"{tmp_path}/compiled"] * 2
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere" and seen[0]["PATH"] == os.environ["PATH"]


def test_the_pil_crops_have_the_shapes_of_ours():
    from PIL import Image

    made = gpu_sides.PilCrops(gpu_sides.config_of(gpu.TINY.overrides).augment)(Image.new("RGB", (32, 64), (200, 30, 60)))
    assert [tuple(crop.shape) for crop in made] == [(3, 64, 32), (3, 64, 32), (3, 32, 16)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so():
    ended = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2 and ended.stderr.startswith("error: there is no GPU here that torch can use"), ended.stderr
