"""Behavior that only a GPU shows: compiled crops, copies and streams, precision, compiled backbones.

GPU_TESTS_ANYWHERE=1 also runs these files on a CPU, which tests little more than their code.
"""

import os

import pytest
import torch

from platform.engine.inference.forward import Forward
from platform.engine.runtime import device as devices
from platform.engine.train.step import StepBatchNorm
from reidssl.accelerator import wants_compiling
from reidssl.augment.multicrop import MultiCrop, MultiCropConfig
from reidssl.models.model_config import VitConfig
from reidssl.models.vit import build_vit
from reidssl.objectives.base import Progress
from reidssl.objectives.dino import Dino, DinoConfig
from reidssl.optim import build_optimizer, can_mask, clip_global_, masked
from reidssl.seeding import sample_seeds

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
CONFIG = VitConfig(width=48, depth=2, heads=3, patch_size=8, image_size=(32, 16), stem_width=16)
DINO = DinoConfig(out_dim=64, hidden=32, bottleneck=16, freeze_last_layer_epochs=0)


@pytest.fixture
def fast_products():
    """TF32 allowed, as in a bf16 run."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("may_compile", [True, False])
def test_crops_are_those_of_the_cpu(fast_products, may_compile):
    """Within 5e-4 everywhere, under bf16 autocast and with TF32 allowed for everything else."""
    images = torch.randint(0, 256, (16, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seeds = sample_seeds(0, 0, [str(i) for i in range(16)])
    config = MultiCropConfig(global_size=(64, 32), local_size=(32, 16), num_local=4, blur_global2=0.5)
    with torch.autocast(devices.device().type, torch.bfloat16):
        found = MultiCrop(config, may_compile)(devices.upload(images), seeds)
    for crop, expected in zip(found, MultiCrop(config)(images, seeds), strict=True):
        assert crop.device == devices.device()
        torch.testing.assert_close(crop.cpu(), expected, rtol=0, atol=5e-4)


def test_crops_made_ahead_are_the_same(fast_products):
    """The GPU is busy with other work meanwhile, and no unfinished crops may be seen."""
    images = torch.randint(0, 256, (6, 16, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    crop, seeds = MultiCrop(MultiCropConfig(global_size=(64, 32), num_local=0)), sample_seeds(0, 0, [str(i) for i in range(16)])
    expected = [crop(devices.upload(batch), seeds) for batch in images]
    busy, seen = torch.randn(2000, 2000, device=devices.device()), []
    batches = devices.Ahead(iter(range(6)), lambda number: crop(devices.upload(images[number]), seeds))
    for number, made in batches:
        for _ in range(5):
            busy = (busy @ busy).clamp(-1, 1)
        seen.append([one + 0 for one in made])
        batches.prepare()
        assert number == len(seen) - 1
        del made  # from now on its memory may be reused
    for one, other in zip(seen, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_auto_is_bf16_with_a_fused_optimizer_and_compiled():
    on_gpu = devices.device().type == "cuda"
    assert devices.precision("auto") == ("bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32")
    weight = torch.nn.Parameter(torch.ones(3, device=devices.device()))
    assert can_mask(build_optimizer("adamw", [{"params": [weight]}], lr=0.1)) == on_gpu
    assert wants_compiling("auto", devices.device()) == (on_gpu and torch.cuda.get_device_capability() >= (7, 0))


def test_a_broken_step_is_passed_over_on_the_device():
    weight = torch.nn.Parameter(torch.ones(3, device=devices.device()))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for gradient in (1.0, float("nan"), 1.0):
        weight.grad = torch.full_like(weight, gradient)
        before = weight.detach().clone()
        with masked(optimizer, clip_global_([weight], 1.0)):
            optimizer.step()
        assert torch.equal(weight.detach(), before) == (gradient != gradient)
    assert float(optimizer.state[weight]["step"]) == 2


def crops_of(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(8, 3, *size, generator=generator).to(devices.device()) for size in ((32, 16), (32, 16), (16, 8))]


def losses(compiled: bool, bf16: bool) -> list[float]:
    objective = Dino(CONFIG, DINO).to(devices.device()).train()
    objective.bf16_teacher = bf16
    norms = StepBatchNorm(objective)
    if compiled:
        objective.compile_backbones()
    optimizer = build_optimizer("adamw", [{"params": list(objective.student.parameters())}], lr=1e-3)

    def student(crops, **options):
        with torch.autocast(devices.device().type, torch.bfloat16, enabled=bf16):
            return objective.student(crops, **options)

    found = []
    for step in range(20):
        output = objective(student, crops_of(step % 4), Progress(step, 100, 1000))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        assert len(norms.micro_batch_done()) == 6
        objective.update(output.statistics, output.rows)
        objective.update_teacher(list(objective.student.named_parameters()), 0.99)
        found.append(output.loss.item())
    return found


def test_compiled_backbones_train_as_plain_ones():
    if devices.device().type != "cuda" and not os.environ.get("COMPILE_ON_CPU"):
        pytest.skip("on a CPU this waits minutes for a C++ compiler; tests/reidssl/objectives/test_compiled.py traces the same")
    assert losses(compiled=True, bf16=False) == pytest.approx(losses(compiled=False, bf16=False), rel=2e-3)


def test_bf16_follows_fp32():
    """Every loss of 20 steps is within 5 %."""
    assert losses(compiled=False, bf16=True) == pytest.approx(losses(compiled=False, bf16=False), rel=5e-2)


def test_extraction_compiled_and_in_bf16_gives_the_features_of_fp32():
    """Full and smaller batches, whose padding does not show."""
    images = torch.randn(24, 3, 32, 16, generator=torch.Generator().manual_seed(3)).to(devices.device())
    exact = Forward(build_vit(CONFIG).to(devices.device()).eval())
    fast = Forward(build_vit(CONFIG).to(devices.device()).eval(), "bf16", "auto")
    with torch.inference_mode():
        expected = exact(images)
        found = torch.cat([fast(images[:16]), fast(images[16:])])
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99
