"""Speed on one GPU: pre-training end to end against a bare loop, crops, extraction, clustering, start-up.

  python -m benchmarks.gpu            on a machine with a GPU: about 20 minutes
  python -m benchmarks.gpu --tiny     every part at toy sizes, on any machine: tests the code, its figures mean nothing

ViT-S, 2 + 8 crops of 256 x 128 and 128 x 64, 65,536 prototypes, synthetic people. The bare loop is ordinary PyTorch on crops that
are already on the GPU: autocast in bf16, compiled backbones, fused AdamW. Every part runs in its own process, so that memory and
compiled code of one part do not affect another. torch's FLOP counter counts the arithmetic of the model. The result is compared
with the rate of a large bf16 matrix product on the same GPU in the same run.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import first_step
from benchmarks.measure import measure, print_machine
from benchmarks.people import write_shards
from platform.engine.schemas.pretrain_settings import PretrainConfig

TINY_MODEL = [*first_step.TINY[:-2], "stream.micro_batch=8"]
WARM_UP = 3


@dataclass(frozen=True)
class Sizes:
    """Sizes of the parts."""

    overrides: list[str]
    """Overrides of platform.pretrain's configuration, the same in every part."""
    batches: tuple[int, ...]
    """Micro-batches tried end to end; the fastest counts."""
    images: int
    """Number of images in the shards."""
    steps: int
    crop_batch: int
    loader_images: int
    extraction: tuple[int, int]
    """(images, batch)."""
    features: int
    product: int
    """Side of the square matrices whose product gives the GPU's rate."""


FULL = Sizes(
    ["stream.micro_batches_per_step=1", "objective.dino.freeze_last_layer_epochs=0", "scaling.gpus_per_worker=1"],
    (128, 256),
    4096,
    60,
    64,
    4096,
    (32768, 256),
    1_000_000,
    8192,
)
TINY = Sizes([*TINY_MODEL, "objective.dino.freeze_last_layer_epochs=0"], (8,), 64, 6, 4, 16, (32, 16), 1500, 256)


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

    from platform.engine.runtime.device import device, keep_compiled_code, precision, upload
    from platform.engine.train.optimizers import pretraining_optimizer
    from reidssl.accelerator import wants_compiling
    from reidssl.augment.multicrop import MultiCrop
    from reidssl.objectives import build_objective
    from reidssl.objectives.base import Progress
    from reidssl.optim import clip_global_
    from reidssl.seeding import sample_seeds

    batch, half = config.stream.micro_batch, precision("auto") == "bf16"
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
    step, objective, _ = training_step(config)
    for model in (objective.student, objective.teacher):
        model.backbone._compiled_call_impl = None  # the counter sees operators, not compiled code
    with FlopCounterMode(display=False) as counter:
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

    from platform.engine.inference.models import LoadedModel
    from platform.engine.runtime.device import device
    from reidssl.models.knowledge import IMAGENET, About
    from reidssl.models.loading import LoadReport
    from reidssl.models.vit import build_vit

    config, (count, batch) = config_of(arguments["overrides"]), arguments["extraction"]
    model = LoadedModel(
        uri="",
        backbone=build_vit(config.model).to(device()).eval(),
        reid=None,
        metadata={},
        neck="before",
        report=LoadReport([], [], [], [], about=About("random weights")),
        mean=IMAGENET[0],
        std=IMAGENET[1],
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


def end_to_end(folder: str, overrides: list[str], batch: int, steps: int, name: str) -> float:
    """Images per second of platform.pretrain: median of the log's intervals without the first, which has the compilation."""
    from platform.engine.runs.metrics import read_metrics
    from platform.engine.storage.location import open_storage

    every = max(1, steps // 6)
    command = [
        sys.executable,
        "-m",
        "platform.pretrain",
        f"data.uri={folder}/data",
        f"output={folder}/{name}",
        *overrides,
        f"stream.micro_batch={batch}",
        f"length.samples={batch * steps}",
        f"tracking.every_steps={every}",
    ]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"error: platform.pretrain failed:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    rows = [row["images_per_second"] for row in read_metrics(open_storage(f"{folder}/{name}")) if "images_per_second" in row]
    return statistics.median(rows[1:] or rows)


def show(label: str, value: float, unit: str, note: str = "") -> None:
    print(f"  {label:<58}{value:>11,.1f} {unit:<10} {note}", flush=True)


def pretraining(folder: str, sizes: Sizes, stem: str) -> None:
    """Print end to end, the bare loop, and the share of the GPU's arithmetic that either uses."""
    overrides = [*sizes.overrides, f"model.stem={stem}"]
    counted = measure(__spec__.name, "arithmetic", {"overrides": overrides, "product": sizes.product})
    matrix_rate, operations = counted.numbers["product"] / counted.seconds, counted.numbers["operations"]
    for batch in sizes.batches:
        arguments = {"overrides": [*overrides, f"stream.micro_batch={batch}"], "steps": sizes.steps}
        loop = batch * sizes.steps / measure(__spec__.name, "bare", arguments).seconds
        platform = end_to_end(folder, overrides, batch, sizes.steps, f"{stem}-{batch}")
        show(
            f"bare loop on ready crops, {stem}, micro-batch {batch}",
            loop,
            "images/s",
            f"{loop * operations / matrix_rate:.1%} of the card's product rate",
        )
        show(
            f"platform.pretrain, {stem}, micro-batch {batch}",
            platform,
            "images/s",
            f"{platform / loop:.2f} of the bare loop, {platform * operations / matrix_rate:.1%} of the card's product rate",
        )
    show(f"{stem}: operations of one image", operations / 1e9, "GFLOP", f"products reach {matrix_rate / 1e12:.2f} TFLOP/s here")


def parts(sizes: Sizes) -> None:
    """Run all parts and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        tiny = sizes is TINY
        write_shards(f"{folder}/data", "[64,32]" if tiny else "[256,128]", sizes.images)
        for stem in ("ics", "patch"):
            pretraining(folder, sizes, stem)
        count = sizes.crop_batch
        for label, compiled in (("joined by the compiler", True), ("operator by operator", False)):
            arguments = {"overrides": sizes.overrides, "batch": count, "compiled": compiled, "steps": sizes.steps}
            seconds = measure(__spec__.name, "crops", arguments).seconds
            show(f"multi-crop of {count} images, {label}", count * sizes.steps / seconds, "images/s")
        run = measure(__spec__.name, "loader", {"overrides": sizes.overrides, "num": sizes.loader_images})
        show("DataLoader with PIL crops", run.numbers["images"] / run.seconds, "images/s", f"{os.cpu_count()} worker processes")
        arguments = {"overrides": sizes.overrides, "extraction": sizes.extraction}
        taken = [measure(__spec__.name, side, arguments).seconds for side in ("extraction", "forward")]
        ours, other = (sizes.extraction[0] / seconds for seconds in taken)
        show("extraction of features", ours, "images/s", f"{ours / other:.2f} of a bare compiled forward loop ({other:,.0f})")
        seconds = measure("benchmarks.million", "labels", {"num": sizes.features, "actors": 0}).seconds
        show(f"{sizes.features:,} features of 384 to labels", seconds, "s")
        where = [one for one in sizes.overrides if one.startswith("scaling.")]
        connected, first = first_step.start(f"{folder}/data", f"{folder}/first", *where)
        show("command to first step, a tiny model", first, "s", f"of it until Ray is there {connected:.1f} s")


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on a CPU too")
    tiny = parser.parse_args().tiny
    if not tiny and not torch.cuda.is_available():
        print(
            "error: there is no GPU here that torch can use: run this on a machine with one; --tiny tries the code without",
            file=sys.stderr,
        )
        sys.exit(2)
    print_machine()
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: these figures mean nothing"
    print(f"{card}, torch {torch.__version__}\n")
    parts(TINY if tiny else FULL)


if __name__ == "__main__":
    main()
