"""The sides of `benchmarks.gpu`: each is one function of `benchmarks.measure`, and runs in its own process.

The bare loops are ordinary PyTorch on data that is already on the GPU: autocast in bf16, compiled backbones, fused AdamW.
"""

import os
from typing import Any

import numpy as np

from platform.engine.schemas.pretrain_settings import PretrainConfig

WARM_UP = 3


def config_of(overrides: list[str]) -> PretrainConfig:
    from platform.engine.config.compose import load_config

    return load_config(PretrainConfig, "pretrain", ["data.uri=unused", *overrides])


def wait() -> None:
    """Wait until the GPU has finished all work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def random_images(count: int, size: tuple[int, int]) -> Any:
    import torch

    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def training_step(config: PretrainConfig) -> tuple[Any, Any, Any]:
    """(step, the objective, one step's crops) of the bare loop."""
    import torch

    from platform.engine.runtime.device import allow_fast_products, device, keep_compiled_code, precision, upload
    from platform.engine.train.optimizers import pretraining_optimizer
    from reidssl.accelerator import wants_compiling
    from reidssl.augment.multicrop import MultiCrop
    from reidssl.objectives import build_objective
    from reidssl.objectives.base import Progress
    from reidssl.optim import clip_global_
    from reidssl.seeding import sample_seeds

    batch, half = config.stream.micro_batch, precision("auto") == "bf16"
    allow_fast_products(precision("auto"))
    objective = build_objective(config.model, config.objective).to(device()).train()
    objective.bf16_teacher = half
    if wants_compiling("auto", device()):
        keep_compiled_code()
        objective.compile_backbones()
    optimizer = pretraining_optimizer(config.optimizer, objective.student.named_parameters())
    for group in optimizer.param_groups:
        group["lr"] = 1e-5
    images = upload(random_images(batch, config.model.image_size))
    crops = MultiCrop(config.augment)(images, sample_seeds(0, 0, [str(i) for i in range(batch)]))

    def student(crops: Any, **options: Any) -> Any:
        with torch.autocast(device().type, torch.bfloat16, enabled=half):
            return objective.student(crops, **options)

    def step() -> None:
        output = objective(student, crops, Progress(0, 10**6, 10**8))
        output.loss.backward()
        clip_global_(objective.student.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        objective.update(output.statistics, output.rows)
        objective.update_teacher(list(objective.student.named_parameters()), 0.996)

    return step, objective, crops


def bare(arguments: dict[str, Any]) -> Any:
    """Time the bare loop."""
    step, _, _ = training_step(config_of(arguments["overrides"]))
    return _repeated(step, arguments["steps"])


def _repeated(step: Any, count: int) -> Any:
    for _ in range(WARM_UP):
        step()
    wait()

    def work() -> None:
        for _ in range(count):
            step()
        wait()

    return work, lambda found: {}


def arithmetic(arguments: dict[str, Any]) -> Any:
    """Floating point operations of one image's step (2 for a multiplication and addition), and the GPU's measured rate."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from platform.engine.runtime.device import device

    config = config_of([*arguments["overrides"], "stream.micro_batch=2"])
    step, _, _ = training_step(config)
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:  # it sees operators only
        step()
    side = arguments["product"]
    kind = torch.bfloat16 if device().type == "cuda" else torch.float32
    one, other = (torch.randn(side, side, device=device(), dtype=kind) for _ in range(2))
    work, _ = _repeated(lambda: one @ other, 20)
    return work, lambda found: {"operations": counter.get_total_flops() / 2, "product": 20 * 2 * side**3}


def crops(arguments: dict[str, Any]) -> Any:
    """Time the multi-crop alone, compiled or operator by operator."""
    import torch

    from platform.engine.runtime.device import upload
    from reidssl.augment.multicrop import MultiCrop
    from reidssl.seeding import sample_seeds

    config, count = config_of(arguments["overrides"]), arguments["batch"]
    crop, images = MultiCrop(config.augment, arguments["compiled"]), random_images(count, config.model.image_size)
    names = [str(i) for i in range(count)]
    torch.manual_seed(0)
    return _repeated(lambda: crop(upload(images), sample_seeds(0, 0, names)), arguments["steps"])


class PilCrops:
    """The same recipe with torchvision's transforms on one PIL image, as in released training code."""

    def __init__(self, augment: Any) -> None:
        from PIL import ImageFilter
        from torchvision import transforms

        def view(size: Any, scale: Any, blur: float, solarize: float) -> Any:
            sigma = augment.blur_sigma

            def blurred(image: Any) -> Any:
                return image.filter(ImageFilter.GaussianBlur(np.random.uniform(*sigma)))

            jitter = transforms.ColorJitter(augment.brightness, augment.contrast, augment.saturation, augment.hue)
            return transforms.Compose(
                [
                    transforms.RandomResizedCrop(size, scale, augment.aspect, transforms.InterpolationMode.BICUBIC),
                    transforms.RandomHorizontalFlip(augment.flip),
                    transforms.RandomApply([jitter], augment.jitter),
                    transforms.RandomGrayscale(augment.grayscale),
                    transforms.RandomApply([blurred], blur),
                    transforms.RandomSolarize(128, solarize),
                    transforms.ToTensor(),
                    transforms.Normalize(augment.mean, augment.std),
                ]
            )

        large, small = (augment.global_size, augment.global_scale), (augment.local_size, augment.local_scale)
        self.views = [
            view(*large, augment.blur_global1, 0.0),
            view(*large, augment.blur_global2, augment.solarize),
            *[view(*small, augment.blur_local, 0.0) for _ in range(augment.num_local)],
        ]

    def __call__(self, image: Any) -> list[Any]:
        return [view(image) for view in self.views]


def loader(arguments: dict[str, Any]) -> Any:
    """Time a DataLoader with PIL crops and one worker for each core, without the start of the workers."""
    import torch

    from benchmarks.augmentation import Decoded, encoded
    from platform.engine.runtime.device import device

    config = config_of(arguments["overrides"])
    data = torch.utils.data.DataLoader(
        Decoded(encoded(arguments["num"]), PilCrops(config.augment)),
        config.stream.micro_batch,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        pin_memory=device().type == "cuda",
        multiprocessing_context="fork",
    )
    torch.set_num_threads(1)

    def work() -> int:
        made = 0
        for batch in data:
            made += len([crop.to(device(), non_blocking=True) for crop in batch].pop())
        wait()
        return made

    work()
    return work, lambda found: {"images": found}


def extraction(arguments: dict[str, Any]) -> Any:
    """Time the extraction of features of decoded images, as in all programs."""
    import torch

    from platform.engine.inference.forward import Forward
    from platform.engine.inference.models import LoadedModel
    from platform.engine.runtime.device import device
    from reidssl.models.knowledge import IMAGENET, About
    from reidssl.models.loading import LoadReport
    from reidssl.models.vit import build_vit

    config, (count, batch) = config_of(arguments["overrides"]), arguments["extraction"]
    backbone = build_vit(config.model).to(device()).eval()
    model = LoadedModel(
        uri="",
        backbone=backbone,
        reid=None,
        metadata={},
        neck="before",
        report=LoadReport([], [], [], [], about=About("random weights")),
        mean=IMAGENET[0],
        std=IMAGENET[1],
        forward=Forward(backbone, "auto", "auto"),
    )
    ready = random_images(batch, config.model.image_size).repeat(count // batch, 1, 1, 1).split(batch)

    @torch.inference_mode()
    def embed(parts: Any) -> Any:
        return torch.cat([model.embed(part).float().cpu() for part in parts])

    embed(ready[:2])

    def work() -> Any:
        return embed(ready)

    return work, lambda found: {"shape": tuple(found.shape)}


def forward(arguments: dict[str, Any]) -> Any:
    """Time a bare loop of compiled forward passes in bf16 on images that are already on the GPU."""
    import torch

    from platform.engine.runtime.device import device, keep_compiled_code, precision
    from reidssl.accelerator import wants_compiling
    from reidssl.models.vit import build_vit

    config, (count, batch) = config_of(arguments["overrides"]), arguments["extraction"]
    backbone = build_vit(config.model).to(device()).eval()
    inputs = torch.randn(batch, 3, *config.model.image_size, device=device())
    if wants_compiling("auto", device()):
        keep_compiled_code()
        backbone.compile(dynamic=False)

    def step() -> Any:
        with torch.inference_mode(), torch.autocast(device().type, torch.bfloat16, enabled=precision("auto") == "bf16"):
            return backbone(inputs)

    return _repeated(step, count // batch)
