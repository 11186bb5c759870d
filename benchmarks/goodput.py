"""Goodput of a long pre-training run under spot interruptions, by checkpoint interval.

  python -m benchmarks.goodput                                   table, and docs/goodput.svg
  python -m benchmarks.goodput --rates 0.05 --restart-s 120 --notice-share 0
  python -m benchmarks.goodput --measure                         what a checkpoint costs on this machine (ViT-S + ICS, DINO)

Compares a Monte-Carlo simulation with the closed form of Young (1974) and Daly (2006). Goodput is the number of images trained
on, without repeated work, divided by the number that all GPUs could have computed in the same time. The assumptions:

- Each node of `--gpus-per-node` GPUs is interrupted independently, `--rates` times per hour with exponential times. A replacement
  comes after `--replacement-s`. Until then the run continues with the largest allowed number of the remaining workers.
- A share `--notice-share` of the interruptions is announced in time and costs no step (just-in-time checkpoint). The others cost
  all work since the newest published checkpoint. Every change of the group costs `--restart-s` in which nothing is computed.
- A checkpoint stops training for `--stall-s` and is published `--write-s` later. Speed is proportional to the number of workers.
- Nothing else fails, and nothing fails during a restart.
"""

import argparse
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from platform.engine.report.plots.curves import Series, line_chart
from platform.engine.train.scaling import allowed_sizes

IMAGES = 100 * 4_180_243  # 100 epochs of LUPerson


@dataclass(frozen=True)
class Costs:
    """Costs of a run, in seconds unless the name says otherwise."""

    images_per_second: float = 250.0
    """Speed of one GPU. Assumption."""
    stall: float = 0.7
    """Time for which a checkpoint stops training. Measured by --measure (691 MiB, one of 2 busy CPU cores)."""
    write: float = 11.0
    """Time until a checkpoint is published: 4 s to a local disk by --measure, 7 s to object storage at 100 MB/s (assumption)."""
    restart: float = 60.0
    """Time from an interruption to the next step. 19-63 s measured on 2 busy CPU cores (docs/reliability.md)."""
    replacement: float = 300.0
    """Time from the loss of a node to its replacement. Assumption: EC2 start and image pull."""
    notice_share: float = 0.8
    """Share of the interruptions that are announced in time. Assumption."""
    gpus_per_node: int = 4
    """GPUs of a node, which are lost together; 4 as in cluster/aws.yaml."""
    smallest_share: float = 0.25
    """scaling.min_workers as a share of scaling.workers."""
    micro_batches: int = 1
    """Micro-batches per GPU and step. With more of them more numbers of workers share a step evenly."""


def sizes_of(costs: Costs, gpus: int) -> list[int]:
    """The numbers of workers that a run on `gpus` GPUs may have, ascending."""
    fewest = math.ceil(gpus * costs.smallest_share)
    return [size for size in allowed_sizes(gpus * costs.micro_batches) if fewest <= size <= gpus]


def young(costs: Costs, failures_per_s: float) -> float:
    """Young's checkpoint interval in seconds, which balances stalls with repeated work; infinite without unannounced failures."""
    unannounced = failures_per_s * (1 - costs.notice_share)
    return math.sqrt(2 * costs.stall / unannounced) if unannounced else math.inf


def closed_form(costs: Costs, gpus: int, rate_per_node_h: float, interval: float) -> float:
    """Expected goodput to first order (Daly), for small costs of stalls, repeated work, restarts and missing nodes."""
    nodes = gpus / costs.gpus_per_node
    failures = nodes * rate_per_node_h / 3600
    repeated = failures * (1 - costs.notice_share) * (interval / 2 + costs.write)
    restarts = 2 * failures * costs.restart  # one restart without the node, one with its replacement
    left = max((size for size in sizes_of(costs, gpus) if size <= gpus - costs.gpus_per_node), default=0)
    missing = -math.expm1(-failures * costs.replacement)  # share of the time that at least one node is missing
    working = 1 - missing * (1 - left / gpus)
    return max(0.0, working * (1 - repeated - restarts) / (1 + costs.stall / interval))


def simulate(costs: Costs, gpus: int, rate_per_node_h: float, interval: float, images: float = IMAGES, seed: int = 0) -> float:
    """Goodput of one simulated run; 0 if the run is not done after 50 times the undisturbed time."""
    random = np.random.default_rng([seed, gpus, round(interval)])
    nodes, per_node = max(1, gpus // costs.gpus_per_node), min(gpus, costs.gpus_per_node)
    sizes = sizes_of(costs, gpus)
    clock, done, since = 0.0, 0.0, 0.0  # s, images, s of training since the newest checkpoint began
    up, returning = nodes, []  # type: int, list[float]
    size = gpus
    limit = 50 * images / (gpus * costs.images_per_second)
    rate = rate_per_node_h / 3600
    while done < images and clock < limit:
        failure = clock + random.exponential(1 / (rate * up)) if rate and up else math.inf
        event = min(failure, returning[0] if returning else math.inf)
        speed = size * costs.images_per_second * interval / (interval + costs.stall)
        trained = max(0.0, event - clock)  # 0: a node came back while the run was still restarting
        if done + speed * trained >= images:
            clock += (images - done) / speed if speed else math.inf
            done = images
            break
        done += speed * trained
        since, clock = since + trained, max(clock, event)
        if event == failure:
            up -= 1
            heapq.heappush(returning, clock + costs.replacement)
            if random.random() >= costs.notice_share and size:
                period = interval + costs.stall
                lost = min(since, (since - costs.write) % period + costs.write) if since > costs.write else since
                done -= speed * min(lost, since)
        else:
            heapq.heappop(returning)
            up += 1
        fitting = max((one for one in sizes if one <= up * per_node), default=0)
        if event == failure or fitting > size:
            clock += costs.restart
            since = 0.0
        size = fitting
    return images / (gpus * costs.images_per_second * clock) if done >= images else 0.0


def table(costs: Costs, gpu_counts: Sequence[int], rates: Sequence[float], intervals: Sequence[float], runs: int) -> list[dict]:
    """One row for each combination of GPUs, interruption rate and checkpoint interval."""
    return [
        {
            "gpus": gpus,
            "rate": rate,
            "interval": interval,
            "closed": closed_form(costs, gpus, rate, interval),
            "simulated": float(np.mean([simulate(costs, gpus, rate, interval, seed=seed) for seed in range(runs)])),
        }
        for gpus in gpu_counts
        for rate in rates
        for interval in intervals
    ]


def chart(rows: list[dict], rate: float) -> str:
    """SVG chart of the goodput over the checkpoint interval."""
    series = []
    for style, gpus in enumerate(sorted({row["gpus"] for row in rows}), start=1):
        own = [row for row in rows if row["gpus"] == gpus and row["rate"] == rate]
        minutes = [row["interval"] / 60 for row in own]
        series.append(Series(f"{gpus} GPUs", minutes, [row["simulated"] for row in own], style=style))
    return line_chart(
        series,
        title=f"goodput at {rate:g} interruptions per node and hour",
        size=(560, 320),
        x_label="minutes between checkpoints",
    )


def measure_checkpoint() -> None:
    """Time the copy to host memory and the write of a checkpoint of the published model on this machine."""
    import os
    import tempfile
    import time

    import torch
    import torch.distributed as dist

    from platform.engine.config.compose import load_config
    from platform.engine.storage.location import open_storage
    from platform.engine.train.checkpoints import CheckpointStore
    from platform.engine.zero import engine as zero
    from platform.engine.zero.consolidation import consolidate
    from platform.pretrain import PretrainConfig
    from reidssl.objectives import build_objective
    from reidssl.optim import parameter_groups

    config = load_config(PretrainConfig, "pretrain")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        objective = build_objective(config.model, config.objective, 0)
        optimizer = torch.optim.AdamW(parameter_groups(objective.student.named_parameters(), 1.0))
        engine = zero.build_engine(objective.student, optimizer, config.engine, micro_batch=1, accumulation=1)
        loss = sum(parameter.square().sum() for parameter in engine.module.parameters() if parameter.requires_grad)
        engine.backward(loss)
        engine.step()
        started = time.perf_counter()
        payload = {
            "student": consolidate(engine),
            "objective": {name: value.detach().to("cpu", copy=True) for name, value in objective.state_tensors().items()},
        }
        stall = time.perf_counter() - started
        told = CheckpointStore(open_storage(folder)).save(1, payload, {})
        print(
            f"ViT-S + ICS with DINO's head: {told['mebibytes']:,.0f} MiB; copy to host memory {stall:.2f} s, "
            f"write {told['seconds']:.1f} s"
        )
        dist.destroy_process_group()


def main() -> None:
    defaults = Costs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 32, 64, 128, 256])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.05, 0.2], help="interruptions per node and hour")
    parser.add_argument(
        "--minutes", type=float, nargs="+", default=[0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30], help="checkpoint intervals"
    )
    parser.add_argument("--runs", type=int, default=200, help="simulated runs each")
    parser.add_argument("--svg", type=Path, default=Path("docs/goodput.svg"))
    parser.add_argument("--measure", action="store_true", help="time a checkpoint on this machine and stop")
    names = {
        "images_per_second": "images-per-second",
        "notice_share": "notice-share",
        "gpus_per_node": "gpus-per-node",
        "smallest_share": "smallest-share",
        "micro_batches": "micro-batches",
    }
    for name in Costs.__dataclass_fields__:
        flag, value = names.get(name, f"{name}-s"), getattr(defaults, name)
        parser.add_argument(f"--{flag}", dest=name, type=type(value), default=value)
    arguments = parser.parse_args()
    if arguments.measure:
        measure_checkpoint()
        return
    costs = replace(defaults, **{name: getattr(arguments, name) for name in Costs.__dataclass_fields__})
    rows = table(costs, arguments.gpus, arguments.rates, [60 * minutes for minutes in arguments.minutes], arguments.runs)
    print("| GPUs | interruptions /node/h | undisturbed | best interval | goodput: simulated | closed form | Young | at 30 min |")
    print("|---|---|---|---|---|---|---|---|")
    for gpus in arguments.gpus:
        for rate in arguments.rates:
            own = [row for row in rows if row["gpus"] == gpus and row["rate"] == rate]
            best = max(own, key=lambda row: row["simulated"])
            optimum = young(costs, gpus / costs.gpus_per_node * rate / 3600) / 60
            hours = IMAGES / gpus / costs.images_per_second / 3600
            print(
                f"| {gpus} | {rate:g} | {hours:.1f} h | {best['interval'] / 60:g} min | {best['simulated']:.1%} | "
                f"{best['closed']:.1%} | {optimum:.1f} min | {own[-1]['simulated']:.1%} |"
            )
    arguments.svg.write_text(chart(rows, arguments.rates[len(arguments.rates) // 2]))
    print(f"plot: {arguments.svg}")


if __name__ == "__main__":
    main()
