"""One process of zero/test_engine.py: trains a small model with DeepSpeed in many settings and writes the results.

  python -m tests.platform.engine.zero_worker RANK WORLD FOLDER

Two runs go at the same time, with one and with two processes. Each writes its payloads to FOLDER, waits for those of the
other and continues from them. Rank 0 writes seen-WORLD.json. The samples of a step are shared as in a real run: micro-batch j
goes to process j mod WORLD.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn

from platform.engine.errors import UserError
from platform.engine.schemas.training_settings import ClipConfig
from platform.engine.train.optimizers import OptimizerConfig, pretraining_optimizer
from platform.engine.zero import engine as zero
from platform.engine.zero.consolidation import consolidate, restore

STEPS, CUT, MICRO_BATCHES, MICRO = 6, 3, 4, 3
RESTS_UNTIL = 2


def settings(stage: int, clip: float, precision: str = "auto", per_tensor: bool = False) -> zero.EngineSettings:
    return zero.EngineSettings(zero_stage=stage, precision=precision, clip=ClipConfig(norm=clip, per_tensor=per_tensor))


SETTINGS = {
    **{f"zero{stage}-adamw": (settings(stage, 0.5), "adamw") for stage in range(4)},
    **{f"zero{stage}-sgd": (settings(stage, 0.5), "sgd") for stage in (0, 3)},
    "zero0-lars": (settings(0, 0.5), "lars"),
    "zero0-adamw-per-tensor": (settings(0, 0.2, per_tensor=True), "adamw"),
    **{f"zero{stage}-adamw-bf16": (settings(stage, 0.5, "bf16"), "adamw") for stage in (1, 3)},
}
SWITCHES = [
    *(("zero0-sgd", "adamw", stage) for stage in range(4)),
    *(("zero1-adamw", "sgd", stage) for stage in range(4)),
    ("zero0-sgd", "lars", 0),
    ("zero0-lars", "sgd", 0),
]
"""(payload, optimizer that goes on from it, its ZeRO stage)"""


class Model(nn.Module):
    """A model with odd sizes (no partition is even), a norm, a frozen parameter, and a layer that is frozen at first.

    share: a buffer that belongs to the configuration, as the rate of drop path in compiled blocks.
    """

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Linear(5, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.frozen = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.late = nn.Linear(width, 3, bias=False)
        self.register_buffer("share", torch.tensor(0.75), persistent=False)
        self.large = nn.Linear(width, 301)  # larger than the parameters that ZeRO-3 keeps whole
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, inputs: Tensor, late: bool) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.norm(self.first(inputs)) + self.frozen)
        weight = self.late.weight + (0.0 if late else self.late.weight.detach() - self.late.weight)
        return nn.functional.linear(hidden, weight), self.large(hidden)


def loss_of(call, step: int, index: int) -> Tensor:
    """The loss of one micro-batch."""
    generator = torch.Generator().manual_seed(step * 100 + index)
    inputs, targets = torch.randn(MICRO, 5, generator=generator), torch.randn(MICRO, 3, generator=generator)
    small, large = call(inputs, late=step >= RESTS_UNTIL)
    return (small.float() - targets).square().mean() + large.float().square().mean()


def schedule(step: int) -> tuple[float, float]:
    """(learning rate, weight decay)"""
    return 0.02 + 0.005 * step, 0.1 + 0.2 * step


def optimizer_for(model: nn.Module, name: str) -> torch.optim.Optimizer:
    return pretraining_optimizer(OptimizerConfig(name=name), model.named_parameters(), freezable=("late.weight",))


def engine_for(config: zero.EngineSettings, optimizer: str, width: int = 7):
    model = Model(width)
    return zero.build_engine(
        model, optimizer_for(model, optimizer), config, micro_batch=MICRO, accumulation=MICRO_BATCHES // dist.get_world_size()
    )


def steps(engine, config: zero.EngineSettings, first: int, last: int) -> list[float]:
    """Train; returns the mean loss over the micro-batches of each step."""
    world, losses = dist.get_world_size(), []
    for step in range(first, last):
        zero.set_schedules(engine, *schedule(step), frozen=step < RESTS_UNTIL)
        total = torch.zeros(())
        for index in range(dist.get_rank(), MICRO_BATCHES, world):
            loss = loss_of(engine, step, index)
            total += loss.detach()
            engine.backward(loss)
            zero.step(engine, config, f"at step {step}", "Stop")
        dist.all_reduce(total)
        losses.append(float(total) / MICRO_BATCHES)
    return losses


def broken_step(engine, config: zero.EngineSettings) -> str:
    """A step in which the last process has a finite loss and gradients that are not finite; returns the error message."""
    last = dist.get_rank() == dist.get_world_size() - 1
    try:
        for index in range(dist.get_rank(), MICRO_BATCHES, dist.get_world_size()):
            loss = loss_of(engine, 1, index)
            if last:
                loss = loss + (loss - loss.detach()).abs().sqrt()  # 0, with a slope of 0 * infinity
            assert torch.isfinite(loss)
            engine.backward(loss)
            zero.step(engine, config, "at step 2", "Stop")
    except UserError as error:
        return str(error)
    return ""


def largest_difference(one: dict, other: dict) -> float:
    """Largest absolute difference over all tensors of two payloads."""
    assert one["moments"].keys() == other["moments"].keys() and one["optimizer_steps"] == other["optimizer_steps"]
    pairs = [(one["parameters"], other["parameters"]), (one["buffers"], other["buffers"])]
    pairs += [(one["moments"][name], other["moments"][name]) for name in one["moments"]]
    for left, right in pairs:
        assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for left, right in pairs for name in left)


def load_of_other(folder: Path, name: str, world: int) -> dict:
    """The payload of the run with the other number of processes; waits for it."""
    deadline = time.monotonic() + 120
    while not (folder / f"done-{3 - world}").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the run with {3 - world} processes left no payloads within two minutes")
        time.sleep(0.1)
    return torch.load(folder / f"{name}-{3 - world}.pt", weights_only=True)


def count_waits() -> list[None]:
    """A list that grows with every wait of DeepSpeed for the whole device."""
    waits: list[None] = []
    wait = get_accelerator().synchronize

    def counted(*given: object) -> None:
        waits.append(None)
        wait(*given)

    get_accelerator().synchronize = counted
    return waits


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{world}", rank=rank, world_size=world)
    seen: dict[str, object] = {}
    waits = count_waits()
    for name, (config, optimizer) in SETTINGS.items():
        engine = engine_for(config, optimizer)
        waits.clear()
        seen[f"{name} start"] = steps(engine, config, 0, CUT)
        seen[f"{name} waits"] = len(waits)
        payload = consolidate(engine)
        assert bool(payload) == (rank == 0)
        if rank == 0:
            torch.save(payload, folder / f"{name}-{world}.pt")
        seen[f"{name} end"] = steps(engine, config, CUT, STEPS)
    if rank == 0:
        (folder / f"done-{world}").touch()
    for name, (config, optimizer) in SETTINGS.items():
        stored = load_of_other(folder, name, world)
        engine = engine_for(config, optimizer)
        restore(engine, stored)
        again = consolidate(engine)
        if rank == 0:
            seen[f"{name} difference after restore"] = largest_difference(stored, again)
        seen[f"{name} continued"] = steps(engine, config, CUT, STEPS)
    for source, target in ((1, 3), (3, 2), (2, 0), (0, 1)):
        config = settings(target, 0.5)
        engine = engine_for(config, "adamw")
        restore(engine, load_of_other(folder, f"zero{source}-adamw", world))
        seen[f"zero{source} to zero{target}"] = steps(engine, config, CUT, STEPS)
    for source, target, stage in SWITCHES:
        config = settings(stage, 0.5)
        engine = engine_for(config, target)
        seen[f"{source} to zero{stage}-{target} foreign"] = restore(engine, load_of_other(folder, source, world))
        seen[f"{source} to zero{stage}-{target}"] = steps(engine, config, CUT, STEPS)
        seen[f"{source} to zero{stage}-{target} moments"] = list(consolidate(engine).get("moments", ()))
    unnamed = load_of_other(folder, "zero0-sgd", world)
    del unnamed["optimizer"]
    seen["unnamed foreign"] = [restore(engine_for(settings(0, 0.5), name), unnamed) for name in ("adamw", "sgd")]
    for stage in range(4):
        config = settings(stage, 0.5)
        engine = engine_for(config, "adamw")
        steps(engine, config, 0, 1)
        before = consolidate(engine)
        seen[f"zero{stage} refusal of gradients"] = broken_step(engine, config)
        after = consolidate(engine)
        if rank == 0:
            statistics = {"buffers": before["buffers"]}  # each forward pass changes them
            seen[f"zero{stage} moved by them"] = largest_difference(before, after | statistics)
    try:
        restore(engine_for(settings(1, 3.0), "adamw", width=9), load_of_other(folder, "zero1-adamw", world))
    except UserError as error:
        seen["refusal"] = str(error)
    try:
        old = {key: value for key, value in load_of_other(folder, "zero1-adamw", world).items() if key != "optimizer_steps"}
        restore(engine_for(settings(1, 3.0), "adamw"), old)
    except UserError as error:
        seen["old"] = str(error)
    older = load_of_other(folder, "zero1-adamw", world)
    seen["buffers"] = sorted(older["buffers"])
    older["buffers"]["share"] = torch.tensor(0.25)
    engine = engine_for(settings(1, 0.5), "adamw")
    restore(engine, older)
    seen["share"] = float(engine.module.share)
    del older["buffers"]["norm.running_mean"]
    try:
        restore(engine_for(settings(1, 0.5), "adamw"), older)
    except UserError as error:
        seen["no buffer"] = str(error)
    if rank == 0:
        (folder / f"seen-{world}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
