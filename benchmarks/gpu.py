"""Speed on one GPU: pre-training end to end against a bare loop, crops, extraction, clustering, start-up.

  python -m benchmarks.gpu                            on a machine with a GPU: about 20 minutes
  python -m benchmarks.gpu --parts ics start          some parts only: ics, patch, crops, loader, extraction, labels, start
  python -m benchmarks.gpu --tiny                     every part at toy sizes, on any machine; its figures mean nothing

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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks import first_step
from benchmarks.goodput import IMAGES
from benchmarks.measure import measure
from benchmarks.people import write_shards
from benchmarks.table import environment, head, show

TINY_MODEL = [*first_step.TINY[:-2], "stream.micro_batch=8"]
SIDES = "benchmarks.gpu_sides"


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


def pretraining(folder: str, sizes: Sizes, stem: str) -> None:
    """Print end to end, the bare loop, and the share of the GPU's arithmetic that either uses."""
    overrides = [*sizes.overrides, f"model.stem={stem}"]
    counted = measure(SIDES, "arithmetic", {"overrides": overrides, "product": sizes.product})
    matrix_rate, operations = counted.numbers["product"] / counted.seconds, counted.numbers["operations"]
    for batch in sizes.batches:
        arguments = {"overrides": [*overrides, f"stream.micro_batch={batch}"], "steps": sizes.steps}
        loop = batch * sizes.steps / measure(SIDES, "bare", arguments).seconds
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
    show(
        f"{stem}: 100 epochs of LUPerson at the last rate",
        IMAGES / platform / 3600,
        "hours",
        "of one GPU; half for half the data",
    )
    show(f"{stem}: operations of one image", operations / 1e9, "GFLOP", f"products reach {matrix_rate / 1e12:.2f} TFLOP/s here")


def crops(folder: str, sizes: Sizes) -> None:
    """Print the multi-crop, fused by the compiler and operator by operator."""
    for label, compiled in (("joined by the compiler", True), ("operator by operator", False)):
        arguments = {"overrides": sizes.overrides, "batch": sizes.crop_batch, "compiled": compiled, "steps": sizes.steps}
        seconds = measure(SIDES, "crops", arguments).seconds
        show(f"multi-crop of {sizes.crop_batch} images, {label}", sizes.crop_batch * sizes.steps / seconds, "images/s")


def loader(folder: str, sizes: Sizes) -> None:
    """Print a DataLoader with PIL crops."""
    run = measure(SIDES, "loader", {"overrides": sizes.overrides, "num": sizes.loader_images})
    show("DataLoader with PIL crops", run.numbers["images"] / run.seconds, "images/s", f"{os.cpu_count()} worker processes")


def extraction(folder: str, sizes: Sizes) -> None:
    """Print the extraction of features against a bare forward loop."""
    arguments = {"overrides": sizes.overrides, "extraction": sizes.extraction}
    taken = [measure(SIDES, side, arguments).seconds for side in ("extraction", "forward")]
    ours, other = (sizes.extraction[0] / seconds for seconds in taken)
    show("extraction of features", ours, "images/s", f"{ours / other:.2f} of a bare compiled forward loop ({other:,.0f})")


def labels(folder: str, sizes: Sizes) -> None:
    """Print the pseudo-labels of a large set, whose neighbors are searched exactly."""
    run = measure("benchmarks.million", "labels", {"num": sizes.features, "actors": 0, "search": "exact"})
    note = ", ".join(f"{name} {seconds} s" for name, seconds in run.numbers["seconds of each step"].items())
    show(f"{sizes.features:,} features of 384 to labels, exact search", run.seconds, "s", note)


def start(folder: str, sizes: Sizes) -> None:
    """Print the time from the command to the first step, twice: the second start finds the code that the first one compiled.

    Both keep it in a new folder, so that the first start is a cold one on every run of this benchmark.
    """
    where = [one for one in sizes.overrides if one.startswith("scaling.")]
    compiled = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled", "TRITON_CACHE_DIR": f"{folder}/compiled/triton"}
    for number, label in enumerate(("", ", again")):
        connected, first = first_step.start(f"{folder}/data", f"{folder}/first{number}", *where, variables=compiled)
        show(f"command to first step, a tiny model{label}", first, "s", f"of it until Ray is there {connected:.1f} s")


PARTS: dict[str, Callable[[str, Sizes], None]] = {
    "ics": partial(pretraining, stem="ics"),
    "patch": partial(pretraining, stem="patch"),
    "crops": crops,
    "loader": loader,
    "extraction": extraction,
    "labels": labels,
    "start": start,
}


def run(names: list[str], sizes: Sizes) -> None:
    """Run parts, keys of PARTS, and print their rows."""
    with tempfile.TemporaryDirectory() as folder:
        write_shards(f"{folder}/data", "[64,32]" if sizes is TINY else "[256,128]", sizes.images)
        for name in names:
            PARTS[name](folder, sizes)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on a CPU too")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    arguments = parser.parse_args()
    tiny = arguments.tiny
    if not tiny and not torch.cuda.is_available():
        print(
            "error: there is no GPU here that torch can use: run this on a machine with one; --tiny tries the code without",
            file=sys.stderr,
        )
        sys.exit(2)
    print("\n".join(f"- {line}" for line in environment()))
    if tiny:
        print("- toy sizes: these figures mean nothing")
    print(f"\n{head()}")
    run(arguments.parts, TINY if tiny else FULL)


if __name__ == "__main__":
    main()
