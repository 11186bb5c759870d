"""One process of test_zero.py: trains a small model through DeepSpeed in many settings and writes what it saw.

  python -m tests.platform.engine.zero_worker RANK WORLD FOLDER

FOLDER holds init, the rendezvous file, and payloads that runs with another number of processes left; it gets
losses-WORLD.json from rank 0. The samples of a step are shared as in a real run: micro-batch j goes to process j mod WORLD.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from platform.engine import zero
from platform.engine.errors import UserError
from reidssl.optim import parameter_groups

STEPS, CUT, MICRO_BATCHES, MICRO = 6, 3, 4, 3


class Model(nn.Module):
    """Odd sizes (no partition is even), a norm, a frozen parameter, and a layer that gets no gradient at first."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Linear(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.frozen = nn.Parameter(torch.randn(width, generator=generator), requires_grad=False)
        self.late = nn.Linear(width, 3, bias=False)
        self.large = nn.Linear(width, 301)  # above the threshold under which ZeRO-3 keeps parameters whole
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, inputs: Tensor, late: bool) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.norm(self.first(inputs.to(self.first.weight.dtype))) + self.frozen)
        weight = self.late.weight if late else self.late.weight.detach()
        return nn.functional.linear(hidden, weight), self.large(hidden)


def batch(step: int, index: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step * 100 + index)
    return torch.randn(MICRO, 5, generator=generator), torch.randn(MICRO, 3, generator=generator)


def engine_for(config: zero.DeepSpeedConfig, optimizer_name: str, width: int = 7):
    model = Model(width)
    groups = parameter_groups(model.named_parameters(), 0.1)
    optimizer = torch.optim.AdamW(groups, lr=0.0) if optimizer_name == "adamw" else torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    return zero.build_engine(model, optimizer, config, micro_batch=MICRO, accumulation=MICRO_BATCHES // dist.get_world_size())


def steps(engine, config: zero.DeepSpeedConfig, first: int, last: int) -> list[float]:
    """Mean loss over the micro-batches of each step."""
    world, losses = dist.get_world_size(), []
    for step in range(first, last):
        zero.set_schedules(engine, 0.02 + 0.005 * step, 0.1 + 0.02 * step)
        total = torch.zeros(())
        for round_ in range(MICRO_BATCHES // world):
            inputs, targets = batch(step, round_ * world + dist.get_rank())
            small, large = engine(inputs, late=step >= 2)
            loss = (small.float() - targets).square().mean() + large.float().square().mean()
            total += loss.detach()
            engine.backward(loss)
            if round_ == MICRO_BATCHES // world - 1:
                zero.clip_gradients_per_tensor(engine, config)
            engine.step()
        dist.all_reduce(total)
        losses.append(float(total) / MICRO_BATCHES)
    return losses


SETTINGS = {
    **{f"zero{stage}-adamw": (zero.DeepSpeedConfig(zero_stage=stage, clip=0.5), "adamw") for stage in range(4)},
    **{f"zero{stage}-sgd": (zero.DeepSpeedConfig(zero_stage=stage, clip=0.5), "sgd") for stage in (0, 2, 3)},
    "zero0-per-tensor": (zero.DeepSpeedConfig(zero_stage=0, clip=0.2, clip_per_tensor=True), "adamw"),
    **{f"bf16-zero{stage}": (zero.DeepSpeedConfig(zero_stage=stage, precision="bf16", clip=0.5), "adamw")
       for stage in range(4)},
}


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{world}", rank=rank, world_size=world)
    seen: dict[str, object] = {}
    for name, (config, optimizer_name) in SETTINGS.items():
        engine = engine_for(config, optimizer_name)
        seen[f"{name}/start"] = steps(engine, config, 0, CUT)
        payload = zero.consolidate(engine)
        assert bool(payload) == (rank == 0)
        if rank == 0:
            torch.save(payload, folder / f"{name}-{world}.pt")
        seen[f"{name}/uninterrupted"] = steps(engine, config, CUT, STEPS)
        seen[f"{name}/parameters"] = {key: value.double().sum().item() for key, value in zero.named_full_parameters(engine.module)}
        other = folder / f"{name}-{3 - world}.pt"
        if other.exists():  # the payload of the run with the other number of processes
            stored = torch.load(other, weights_only=True)
            again = engine_for(config, optimizer_name)
            zero.restore(again, stored)
            back = zero.consolidate(again)
            if rank == 0:
                seen[f"{name}/largest difference after restore"] = largest_difference(stored, back)
            seen[f"{name}/continued"] = steps(again, config, CUT, STEPS)
    # another stage continues a payload too
    if (folder / "zero0-adamw-1.pt").exists() and world == 2:
        config = zero.DeepSpeedConfig(zero_stage=3, clip=0.5)
        engine = engine_for(config, "adamw")
        zero.restore(engine, torch.load(folder / "zero1-adamw-1.pt", weights_only=True))
        seen["zero1 payload in zero3"] = steps(engine, config, CUT, STEPS)
    try:
        zero.restore(engine_for(SETTINGS["zero1-adamw"][0], "adamw", width=9),
                     torch.load(folder / f"zero1-adamw-{world}.pt", weights_only=True) if world == 1 else
                     torch.load(folder / "zero1-adamw-1.pt", weights_only=True))
    except UserError as error:
        seen["refusal"] = str(error)
    if rank == 0:
        (folder / f"seen-{world}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


def largest_difference(one: dict, other: dict) -> float:
    assert one["moments"].keys() == other["moments"].keys() and one["optimizer_step"] == other["optimizer_step"]
    pairs = [(one["parameters"], other["parameters"]), (one["buffers"], other["buffers"])]
    pairs += [(one["moments"][name], other["moments"][name]) for name in one["moments"]]
    largest = 0.0
    for left, right in pairs:
        for name in left.keys() | right.keys():
            zeros = torch.zeros_like(left.get(name, right.get(name)))
            largest = max(largest, float((left.get(name, zeros) - right.get(name, zeros)).abs().max()))
    return largest


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
