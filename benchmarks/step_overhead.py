"""Overhead of a training step: the loop of platform.pretrain against a bare PyTorch loop, on one worker.

  python -m benchmarks.step_overhead            a small model, where the overhead is largest
  python -m benchmarks.step_overhead --full     ViT-S with ICS, 256 x 128, 2 + 8 crops: seconds per step

Both sides train the same model on the same images, decoded beforehand, with the same crops, objective, gradient clipping, AdamW
and EMA teacher. They take turns, step by step, in one process. This project adds DeepSpeed, batch-norm statistics per step, means
over all micro-batches, the check for loss and corrupt samples, notices, the log and checkpoints. The same functions are timed on
both sides; "the rest" is the time outside of them.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import keep_to_cpu, print_machine
from benchmarks.people import write_shards
from benchmarks.table import Row
from platform.engine.schemas.pretrain_settings import PretrainConfig

WARM_UP = 5
SMALL = [
    "model.image_size=[64,32]",
    "model.width=128",
    "model.depth=3",
    "model.heads=4",
    "model.patch_size=8",
    "model.stem_width=16",
    "augment.global_size=[64,32]",
    "augment.local_size=[32,16]",
    "augment.num_local=2",
    "objective.dino.out_dim=4096",
    "objective.dino.freeze_last_layer_epochs=0",
    "objective.dino.hidden=256",
    "objective.dino.bottleneck=64",
    "stream.micro_batch=32",
]
FULL = ["stream.micro_batch=4", "objective.dino.freeze_last_layer_epochs=0"]
STEPS = {"tiny": 6, "quick": 60, "full": 12}


class Bare:
    """The other side: the same training in ordinary PyTorch."""

    def __init__(self, config: PretrainConfig, samples_per_epoch: int, total: int) -> None:
        from platform.engine.train.optimizers import Schedules, pretraining_optimizer
        from reidssl.augment.multicrop import MultiCrop
        from reidssl.objectives import build_objective

        self.config, self.samples_per_epoch, self.total, self.seen = config, samples_per_epoch, total, 0
        self.objective = build_objective(config.model, config.objective, config.seed)
        self.objective.train()
        self.crop = MultiCrop(config.augment)
        self.optimizer = pretraining_optimizer(config.optimizer, self.objective.student.named_parameters())
        self.schedules = Schedules(
            config.optimizer, config.objective.teacher_momentum, config.stream.global_batch, samples_per_epoch, total
        )

    def step(self, images: np.ndarray, seeds: np.ndarray) -> float:
        """One training step on images uint8 (B, 3, H, W) with their augmentation seeds (B,); returns the loss."""
        from reidssl.objectives.base import Progress

        objective, schedules = self.objective, self.schedules
        decayed, plain = self.optimizer.param_groups
        decayed["lr"] = plain["lr"] = schedules.learning_rate(self.seen)
        decayed["weight_decay"], plain["weight_decay"] = schedules.weight_decay(self.seen), 0.0
        crops = self.crop(torch.from_numpy(images), seeds)
        output = objective(objective.student, crops, Progress(self.seen, self.samples_per_epoch, self.total))
        self.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        self.clip_and_step()
        objective.update(output.statistics, output.rows)
        objective.update_teacher(objective.student.named_parameters(), schedules.teacher_momentum(self.seen))
        self.seen += len(images)
        return float(output.loss.detach())

    def clip_and_step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.objective.student.parameters(), self.config.clip.norm)
        self.optimizer.step()


class Clock:
    """Measures the seconds that functions take, by label, for the side whose turn it is."""

    def __init__(self) -> None:
        self.side, self.on = "", False
        self.seconds: dict[str, dict[str, float]] = {"ours": defaultdict(float), "bare": defaultdict(float)}

    def watch(self, owner: Any, name: str, label: str) -> None:
        function = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                if self.on:
                    self.seconds[self.side][label] += time.perf_counter() - started

        setattr(owner, name, watched)

    def watch_training(self) -> None:
        from platform.engine.train.step import StepMeans
        from platform.engine.zero import engine as zero
        from reidssl.augment.multicrop import MultiCrop
        from reidssl.objectives.base import Objective
        from reidssl.objectives.dino import Dino

        self.watch(MultiCrop, "__call__", "crops")
        self.watch(Dino, "forward", "forward")
        self.watch(torch.Tensor, "backward", "backward")
        self.watch(zero, "step", "clip and step")  # this project's side
        self.watch(Bare, "clip_and_step", "clip and step")
        self.watch(Objective, "update_teacher", "teacher")
        self.watch(StepMeans, "reduce", "means of the step")

    def table(self, ours: list[float], bare: list[float]) -> Iterator[tuple[str, float, float]]:
        """Rows (label, seconds per step of this project, of the bare loop); the last row is the rest."""
        means = {
            side: {label: seconds / len(times) for label, seconds in self.seconds[side].items()}
            | {"the rest": (sum(times) - sum(self.seconds[side].values())) / len(times)}
            for side, times in (("ours", ours), ("bare", bare))
        }
        for label, seconds in means["ours"].items():
            yield label, seconds, means["bare"].get(label, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="ViT-S with ICS on 2 + 8 crops instead of the small model")
    parser.add_argument("--steps", type=int, default=0, help="steps of each side (default 60; 12 with --full)")
    arguments = parser.parse_args()
    keep_to_cpu()
    print_machine()
    clock = Clock()
    ours, bare, losses, log = measured("full" if arguments.full else "quick", arguments.steps, clock)
    own, other = statistics.median(ours), statistics.median(bare)
    print(f"\none step of {'ViT-S + ICS' if arguments.full else 'a small ViT + ICS'}, {len(ours)} steps of each side, in turns")
    print(f"  platform.pretrain  {1000 * own:9.1f} ms (median)  {1000 * statistics.mean(ours):9.1f} ms (mean)")
    print(f"  bare PyTorch       {1000 * other:9.1f} ms (median)  {1000 * statistics.mean(bare):9.1f} ms (mean)")
    print(f"  ratio              {own / other:9.3f}              {statistics.mean(ours) / statistics.mean(bare):9.3f}")
    for label, mine, theirs in clock.table(ours, bare):
        print(f"    {label:<18} {1000 * mine:8.1f} and {1000 * theirs:8.1f} ms (mean)")
    print(f"  losses of the last step: {losses[0]:.6f} and {losses[1]:.6f}")
    stall, write = log["checkpoint_stall_seconds"], log["checkpoint_seconds"]
    print(
        f"  a checkpoint of {log['checkpoint_mebibytes']:,.0f} MiB stops the loop for {stall:.2f} s and is written in "
        f"{write:.2f} s beside it: {stall / (500 * own):.2%} of 500 steps, the default interval"
    )


def rows(size: str) -> Iterator[Row]:
    """Rows of the table of `make bench`. size: a key of STEPS."""
    ours, bare, losses, log = measured(size, 0, Clock())
    what = "ViT-S + ICS" if size == "full" else "a small ViT + ICS"
    own, other = (1000 * statistics.median(times) for times in (ours, bare))
    mean, other_mean = (1000 * statistics.mean(times) for times in (ours, bare))
    equal = f"last losses {losses[0]:.6f} and {losses[1]:.6f}"
    yield Row(f"step of {what}, platform.pretrain", own, "ms", f"median of {len(ours)} in turns; mean {mean:.1f}")
    yield Row(
        f"step of {what}, bare PyTorch",
        other,
        "ms",
        f"mean {other_mean:.1f}; platform.pretrain takes {own / other:.2f} of it; {equal}",
    )
    stall, write = log["checkpoint_stall_seconds"], log["checkpoint_seconds"]
    yield Row(
        f"a checkpoint of {log['checkpoint_mebibytes']:,.0f} MiB stops training for",
        stall,
        "s",
        f"and is written in {write:.2f} s",
    )


def measured(size: str, steps: int, clock: Clock) -> tuple[list[float], list[float], list[float], dict[str, float]]:
    """What `take_turns` returns at a size, a key of STEPS. steps: of each side; 0: those of the size."""
    full = size == "full"
    with tempfile.TemporaryDirectory() as folder:
        write_shards(f"{folder}/data", "[256,128]" if full else "[64,32]", 256)
        return take_turns(folder, FULL if full else SMALL, WARM_UP + (steps or STEPS[size]), clock)


def take_turns(
    folder: str, overrides: list[str], steps: int, clock: Clock
) -> tuple[list[float], list[float], list[float], dict[str, float]]:
    """(seconds of each step of this project, of the bare loop, the last losses of both, the log's row about a checkpoint)."""
    import torch.distributed as dist

    from platform.engine.config.compose import load_config
    from platform.engine.pretrain.loop import train
    from platform.engine.pretrain.plan import plan_of
    from platform.engine.runs.metrics import read_metrics
    from platform.engine.storage.location import open_storage
    from platform.engine.stream.order import stream_seeds
    from platform.engine.stream.stream import local_stream

    config = load_config(
        PretrainConfig,
        "pretrain",
        [f"data.uri={folder}/data", f"output={folder}/run", "stream.micro_batches_per_step=1", *overrides],
    )
    config.length.samples = steps * config.stream.global_batch
    config.checkpoint.every_steps, config.tracking.every_steps = steps - 1, steps // 4
    plan, total = plan_of(config)
    batches = list(local_stream(plan, config.stream, open_storage(config.data.uri), config.decode_size, 0, total))
    bare, ours, others, losses = Bare(config, plan.samples_per_epoch, total), [], [], []

    def turns(*_: Any) -> Iterator[dict[str, np.ndarray]]:
        for number, batch in enumerate(batches):
            # Without the first steps and those that write checkpoints, whose cost is reported separately.
            counts = WARM_UP <= number < steps - 2
            clock.side, clock.on = "bare", counts
            started = time.perf_counter()
            losses.append(bare.step(batch["image"], stream_seeds(config.seed, batch["epoch"], batch["key"])))
            middle = time.perf_counter()
            clock.side = "ours"
            yield batch  # the platform's loop computes a step and asks for the next batch
            if counts:
                ours.append(time.perf_counter() - middle)
                others.append(middle - started)

    clock.watch_training()
    os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'rendezvous'}", rank=0, world_size=1)
    train(config, turns)
    dist.destroy_process_group()
    rows = read_metrics(open_storage(config.output))
    return ours, others, [rows[-1]["loss"], losses[-1]], next(row for row in rows if "checkpoint_seconds" in row)


if __name__ == "__main__":
    main()
