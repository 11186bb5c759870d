"""Overhead of fine-tuning: steps and extraction of platform.finetune against bare PyTorch loops, on one worker.

  python -m benchmarks.finetune_overhead            a small model, where the overhead is largest
  python -m benchmarks.finetune_overhead --full     ViT-S with ICS on 256 x 128

Both sides train the same model on the same images with the same augmentation, losses and SGD. They take turns,
step by step, in one process. This project adds DeepSpeed, drop path and batch norm that do not depend on the number of workers,
means of the log, and the check for losses that are not finite. The labels are identities (supervised), then clusters (USL).
Extraction computes the features of all training images, as each clustering and evaluation does, also in turns.
"""

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor

from benchmarks.measure import arguments_of, print_machine
from benchmarks.people import write_shards
from benchmarks.table import Row, show

WARM_UP = 3
SMALL = ["model.image_size=[64,32]", "model.width=128", "model.depth=3", "model.heads=4", "model.patch_size=8"]
FULL = ["model.image_size=[256,128]"]
STEPS = {"tiny": 5, "quick": 10, "full": 10}


class Bare:
    """The other side: the same training in ordinary PyTorch."""

    def __init__(self, trained: Any, augment: Any) -> None:
        from platform.engine.train.optimizers import finetuning_optimizer
        from reidssl.augment.reid_augment import ReidAugment

        self.model, self.phase = copy.deepcopy(trained.model), trained.phase
        self.model.train()
        self.augment = ReidAugment(augment)
        self.optimizer = finetuning_optimizer(trained.phase.config, self.model)

    def step(self, epoch: int, positions: np.ndarray, labels: Tensor, seeds: Any) -> float:
        """One training step on the images at `positions` (B,); returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.phase.learning_rate(epoch)
        images = self.augment(self.phase.images.batch(positions), seeds)
        output = self.model(images)
        loss, _ = self.phase.loss(output, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def extract_in_turns(trainer: Any, trained: Any, times: int = 4) -> tuple[list[float], list[float]]:
    """(seconds of each extraction of this project, of the bare loop); the first of each warms up and is not counted."""
    import torch
    from torch.nn import functional as F

    from platform.engine.finetune.extraction import EXTRACTION_BATCH, extract
    from reidssl.augment.reid_augment import normalize

    images, model, augment = trained.phase.images, trained.model, trainer.augment
    neck = trained.phase.config.neck

    @torch.no_grad()
    def bare() -> Tensor:
        model.eval()
        found = []
        for start in range(0, len(images), EXTRACTION_BATCH):
            batch = images.batch(np.arange(start, min(start + EXTRACTION_BATCH, len(images))))
            found.append(F.normalize(model(normalize(batch, augment.mean, augment.std)).feature(neck), dim=-1))
        return torch.cat(found)

    ours: list[float] = []
    others: list[float] = []
    for _ in range(times):
        started = time.perf_counter()
        expected = bare()
        middle = time.perf_counter()
        found = extract(model, images, neck, augment, trainer.engine)
        ours.append(time.perf_counter() - middle)
        others.append(middle - started)
        assert torch.allclose(found, expected, atol=1e-5)
    trained.train()
    return ours[1:], others[1:]


def take_turns(
    folder: str, setting: str, overrides: list[str], steps: int
) -> tuple[list[float], list[float], tuple[list[float], list[float]]]:
    """(seconds of each step of this project, of the bare loop, the result of `extract_in_turns` in the supervised setting)."""
    from platform.engine.config.compose import load_config
    from platform.engine.finetune.loop import PhaseTrainer
    from platform.engine.finetune.trained import batch_seeds
    from platform.engine.runs.run_folder import open_run
    from platform.engine.storage.location import open_storage
    from platform.finetune import FinetuneConfig, finetune, with_micro_batches

    section = {"supervised": "supervised", "usl": "unsupervised"}[setting]
    given = [f"setting={setting}", f"target_set={folder}/data", f"output={folder}/{setting}", f"{section}.epochs=2", *overrides]
    given += [f"unsupervised.iterations={steps}", f"{section}.drop_path=0"]
    config = load_config(FinetuneConfig, "finetune", given)
    config = with_micro_batches(config, open_storage(config.output))
    open_run("finetune", config.output, config, config.storage)
    ours: list[float] = []
    others: list[float] = []
    bare: list[Bare] = []
    extractions: list[list[float]] = [[], []]
    own_step = PhaseTrainer._step

    def turns(
        trainer: Any, trained: Any, epoch: int, step: int, positions: np.ndarray, labels: Tensor, teacher: None, means: Any
    ) -> Any:
        if not bare:
            bare.append(Bare(trained, trainer.augment))
            if setting == "supervised":
                extractions[:] = extract_in_turns(trainer, trained)
        started = time.perf_counter()
        bare[0].step(epoch, positions, labels, batch_seeds(config.seed, trained.phase.images, epoch, step, positions))
        middle = time.perf_counter()
        found = own_step(trainer, trained, epoch, step, positions, labels, teacher, means)
        if epoch or step >= WARM_UP:
            ours.append(time.perf_counter() - middle)
            others.append(middle - started)
        return found

    PhaseTrainer._step = turns  # type: ignore[method-assign, assignment]
    try:
        finetune(config)
    finally:
        PhaseTrainer._step = own_step  # type: ignore[method-assign]
    return ours, others, (extractions[0], extractions[1])


def measured(size: str) -> Iterator[tuple[str, list[float], list[float]]]:
    """Yields (what, seconds of each run of this project, of the bare loop) at a size, a key of STEPS."""
    full = size == "full"
    os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        people = f"raw.synthetic.target_identities={64 if full else 200}"
        write_shards(f"{folder}/data", "[256,128]" if full else "[64,32]", 1, "raw.part=target", people)
        dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'rendezvous'}", rank=0, world_size=1)
        for setting in ("supervised", "usl"):
            ours, bare, extracted = take_turns(folder, setting, FULL if full else SMALL, STEPS[size])
            yield f"{setting} step", ours, bare
            if setting == "supervised":
                yield "extraction", *extracted
        dist.destroy_process_group()


def rows(size: str) -> Iterator[Row]:
    """Rows of the table of `make bench`. size: a key of STEPS."""
    what = "ViT-S + ICS" if size == "full" else "a small ViT + ICS"
    for kind, ours, bare in measured(size):
        own, other = (1000 * statistics.median(times) for times in (ours, bare))
        mean, other_mean = (1000 * statistics.mean(times) for times in (ours, bare))
        yield Row(f"{kind} of {what}, platform.finetune", own, "ms", f"median of {len(ours)} in turns; mean {mean:.1f}")
        note = f"mean {other_mean:.1f}; platform.finetune takes {own / other:.2f} of it"
        yield Row(f"{kind} of {what}, bare PyTorch", other, "ms", note)


def main() -> None:
    print_machine()
    for row in rows("full" if arguments_of(__doc__).full else "quick"):
        show(*row)


if __name__ == "__main__":
    main()
