"""Self-supervised pre-training of a vision transformer: shards -> Ray Data -> Ray Train -> DeepSpeed -> backbone.

  python -m platform.pretrain data.uri=runs/demo/data/pretrain output=runs/first
  python -m platform.pretrain data.uri=s3://bucket/luperson output=s3://bucket/runs/vit-s experiment=luperson_vit_small_ics
  python -m platform.pretrain data.uri=... data.selection=runs/demo/selection output=runs/half   (a selected subset)
  ray job submit --working-dir . -- python -m platform.pretrain output=s3://bucket/runs/vit-s ...

Running the same command again continues an interrupted run from its newest checkpoint and says from where. SIGTERM
(`ray job stop`, `kill`) writes a checkpoint first. docs/reliability.md lists what a run survives and what it costs.
Results in the output folder: backbone.safetensors (the EMA teacher), metrics.jsonl, summary.json, checkpoints/.
"""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from platform.engine import zero
from platform.engine.checkpoints import BackgroundWriter, CheckpointConfig, CheckpointStore, Found
from platform.engine.config import run_program, to_dataclass, to_plain
from platform.engine.corrupt import CorruptSamples
from platform.engine.device import device
from platform.engine.errors import UserError
from platform.engine.notices import STOP, WAIT
from platform.engine.probe import Probe, ProbeConfig
from platform.engine.runs import SUMMARY, Run, environment, open_run
from platform.engine.runtime import RuntimeConfig, connect, say
from platform.engine.scaling import ScalingConfig, allowed_sizes, check_size
from platform.engine.selection import read_units
from platform.engine.shards import read_manifest
from platform.engine.storage import StorageConfig, open_storage, patiently
from platform.engine.stream import Plan, StreamConfig, stream
from platform.engine.tracking import Tracker, TrackingConfig, format_row
from platform.engine.training import (
    StepBatchNorm,
    StepMeans,
    StepRows,
    broadcast_object,
    broadcast_tensors,
    launch,
    notices,
    report_line,
)
from reidssl.augment.multicrop import MultiCrop, MultiCropConfig
from reidssl.models.checkpoints import model_bytes
from reidssl.models.vit import VitConfig
from reidssl.objectives import ObjectiveConfig, build_objective
from reidssl.objectives.base import Objective, Progress
from reidssl.objectives.collapse import CollapseMonitor
from reidssl.optim import parameter_groups
from reidssl.schedules import Cosine
from reidssl.seeding import mix, sample_seeds


@dataclass(kw_only=True)
class DataConfig:
    """What is trained on."""

    uri: str = "runs/demo/data/pretrain"
    """Shards with a manifest, as platform.ingest writes them."""
    selection: str = ""
    """Folder written by platform.select: train on its images only; empty: on all."""


@dataclass(kw_only=True)
class LengthConfig:
    """How long; schedules are stretched over it."""

    epochs: float = 100.0
    """Passes over the data."""
    samples: int = 0
    """Images seen, instead of epochs; 0: use epochs. Compares subsets at equal cost."""

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.samples < 0:
            raise ValueError(f"epochs must be positive and samples 0 or more: got {self.epochs}, {self.samples}")


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW and its schedules (METHOD: TransReID-SSL, section 4.1; DINO)."""

    learning_rate: float = 5e-4
    """Peak learning rate per 256 images of global batch (linear scaling)."""
    learning_rate_final: float = 1e-6
    """Learning rate at the end."""
    warmup_epochs: float = 10.0
    """Epochs of linear warm-up."""
    weight_decay: float = 0.04
    """Weight decay at the start."""
    weight_decay_final: float = 0.4
    """Weight decay at the end."""
    beta2: float = 0.999
    """AdamW's second momentum."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "learning_rate_final", "warmup_epochs", "weight_decay", "weight_decay_final"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative: got {getattr(self, name)}")


@dataclass(kw_only=True)
class PretrainConfig:
    """Everything a pre-training run depends on."""

    output: str = "runs/pretrain"
    """Run folder, local or s3://."""
    data: DataConfig = field(default_factory=DataConfig)
    length: LengthConfig = field(default_factory=LengthConfig)
    model: VitConfig = field(default_factory=VitConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    augment: MultiCropConfig = field(default_factory=MultiCropConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    deepspeed: zero.DeepSpeedConfig = field(default_factory=zero.DeepSpeedConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if tuple(self.augment.global_size) != tuple(self.model.image_size):
            raise ValueError(f"augment.global_size must equal model.image_size {tuple(self.model.image_size)}: "
                             f"got {tuple(self.augment.global_size)}")


def main(config: PretrainConfig) -> dict[str, Any]:
    """Train until the end and return the summary; a complete run is only reported."""
    complete = (open_storage(config.output, config.storage) / SUMMARY).exists()
    if not complete:  # first: a mistyped path or number must not become the configuration of the output folder
        plan, total = plan_of(config)
        sizes = config.scaling.sizes(config.stream.micro_batches_per_step)
    run = open_run("pretrain", config.output, config, config.storage)
    if complete and run.summary:
        say(f"pretrain: {run.location.uri} is complete already")
        return run.summary
    connect(config.runtime)
    say(f"pretrain: {plan.samples_per_epoch:,} images, {total:,} to see in {total // config.stream.global_batch:,} "
        f"steps of {config.stream.global_batch}; {workers_text(sizes, config.stream.micro_batches_per_step)}; "
        f"output {run.location.uri}")
    launch(train, {"config": run.config}, name="ray_train", storage=run.location, scaling=config.scaling,
           micro_batches_per_step=config.stream.micro_batches_per_step, heeds_notices=True)
    summary = run.summary
    if summary is None:
        raise UserError("training ended without a summary; run the same command again to continue")
    return summary


def workers_text(sizes: list[int], micro_batches_per_step: int) -> str:
    """'2, 4 or 8 workers (8 micro-batches a step; 1, 2, 4, 8 share them evenly)'"""
    range_of = " or ".join(filter(None, [", ".join(str(size) for size in sizes[:-1]), str(sizes[-1])]))
    shared = ", ".join(str(size) for size in allowed_sizes(micro_batches_per_step))
    return (f"{range_of} worker{'s' if sizes[-1] > 1 else ''} ({micro_batches_per_step} micro-batches a step: {shared} "
            "workers share them evenly)")


def plan_of(config: PretrainConfig) -> tuple[Plan, int]:
    """The order of all samples, and how many of them the run sees (a multiple of the global batch)."""
    root = open_storage(config.data.uri, config.storage)
    units = read_units(root, open_storage(config.data.selection, config.storage) if config.data.selection else None)
    images = sum(unit.num_rows for unit in units)
    wanted = config.length.samples or round(config.length.epochs * images)
    total = wanted // config.stream.global_batch * config.stream.global_batch
    if total == 0:
        raise UserError(f"{wanted} samples are fewer than one global batch of {config.stream.global_batch}: train longer, "
                        "ingest more images, or lower stream.micro_batch or stream.micro_batches_per_step")
    plan = Plan(tuple(units), config.stream.seed, config.stream.window_row_groups, math.ceil(total / images))
    return plan, total


def train(arguments: dict[str, Any]) -> None:
    """The training loop; every worker runs it."""
    import torch.distributed as dist

    config = to_dataclass(PretrainConfig, arguments["config"])
    rank, world = dist.get_rank(), dist.get_world_size()
    check_size(world, config.stream.micro_batches_per_step)
    run = Run(open_storage(config.output, config.storage), "pretrain", arguments["config"])
    plan, total = plan_of(config)
    batch, accumulation = config.stream.global_batch, config.stream.micro_batches_per_step // world

    objective = build_objective(config.model, config.objective, config.stream.seed).to(device())
    objective.train()
    norms = StepBatchNorm(objective)
    optimizer = torch.optim.AdamW(
        parameter_groups(objective.student.named_parameters(), 1.0),  # 1: this group follows the schedule
        lr=0.0, betas=(0.9, config.optimizer.beta2))
    engine = zero.build_engine(objective.student, optimizer, config.deepspeed,
                               micro_batch=config.stream.micro_batch, accumulation=accumulation)
    crop = MultiCrop(config.augment)
    schedules = Schedules(config, plan.samples_per_epoch, total)
    store = CheckpointStore(run.location / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_every_steps * batch)
    writer = BackgroundWriter(store, config.storage.patience_s, report_line)
    seen, metadata = restore(store, engine, objective, norms, plan)
    corrupt = CorruptSamples(config.stream.max_corrupt_share, plan.samples_per_epoch, metadata.get("corrupt"))
    tracker = Tracker(run.location, config.tracking, seen, labels=run.location.uri) if rank == 0 else None
    probe = Probe(config.probe, config.model, config.augment, config.storage) if rank == 0 and config.probe.uri else None
    choices = config.objective.entropy_choices(config.stream.micro_batch)
    collapse = CollapseMonitor(config.objective.name, choices, config.model.width)

    micro_batches = (arguments.get("stream") or stream)(
        plan, config.stream, open_storage(config.data.uri, config.storage), config.model.image_size, seen, total,
        config.scaling.decode_resource)
    notice = notices()
    means, rows, started, interval_start = StepMeans(), StepRows(), time.perf_counter(), seen
    while seen < total:
        zero.set_schedules(engine, schedules.learning_rate(seen), schedules.weight_decay(seen))
        for index in range(accumulation):
            images = next(micro_batches)
            crops = crop(torch.from_numpy(images["image"]).to(device()), seeds_of(config.stream.seed, images))
            progress = Progress(seen, plan.samples_per_epoch, total, index * world + rank)
            # drop path: a function of the micro-batch, not of the worker that computes it
            torch.manual_seed(mix(config.stream.seed, seen, progress.micro_batch))
            output = objective(engine, crops, progress)
            check_finite(output.loss, output.terms, seen // batch, rank)
            engine.backward(output.loss)
            if index == accumulation - 1:
                zero.clip_gradients_per_tensor(engine, config.deepspeed)
            engine.step()
            norms.micro_batch_done()
            means.add({f"statistic/{k}": v for k, v in output.statistics.items()} | output.terms)
            rows.add(output.rows)
            means.add_uncounted(corrupt.add(images))
            record_keys(config.tracking.audit, seen // config.stream.micro_batch + index * world + rank, images)
        means.add_uncounted(notice.seen())
        step_means = means.reduce()
        norms.commit()
        objective.update({k[10:]: v for k, v in step_means.items() if k.startswith("statistic/")}, rows.gather())
        objective.update_teacher(zero.named_full_parameters(engine.module), schedules.teacher_momentum(seen))
        for reason in corrupt.step(step_means["corrupt"], config.stream.micro_batches_per_step, progress.epoch):
            report_line(f"set aside: {reason}")
        seen += batch

        step, last, told = seen // batch, seen == total, notice.decide(step_means)
        if tracker and (step % config.tracking.every_steps == 0 or last):
            row = {"loss": float(step_means["loss"]), "learning_rate": schedules.learning_rate(seen - batch),
                   "images_per_second": (seen - interval_start) / (time.perf_counter() - started),
                   **{name: float(step_means[name]) for name in output.terms if name != "loss"},
                   "teacher_momentum": schedules.teacher_momentum(seen - batch),
                   "weight_decay": schedules.weight_decay(seen - batch)}
            started, interval_start = time.perf_counter(), seen
            if probe and (step % config.probe.every_steps == 0 or last):
                row |= probe(objective.export_backbone())
                started = time.perf_counter()
            line = f"step {step}/{total // batch}  epoch {seen / plan.samples_per_epoch:.2f}  {format_row(row)}"
            tracker.add(seen, row | {f"checkpoint_{name}": value for name, value in writer.take().items()})
            report_line(line)
            for warning in collapse(row):
                report_line(f"warning: {warning}")
        writer.check()
        if step % config.checkpoint.every_steps == 0 or last or told:
            stall = save(writer, seen, engine, objective, config, plan, corrupt, tracker)
            if told or last:
                writer.flush()  # nothing is under way when the workers end or are ended
            notice.checkpoint_took(writer.seconds + stall)
        if told and not last:
            notice.carried_out()
            if rank == 0:
                report_line(f"checkpoint at step {step} on notice")
            if told == STOP:
                return
            if told == WAIT:
                dist.barrier()  # rank 0 has published
                notice.wait()
    if tracker:
        finish(run, objective, config, tracker, seen, corrupt)
    notice.close()
    dist.barrier()


class Schedules:
    """Learning rate, weight decay and teacher momentum as functions of samples seen."""

    def __init__(self, config: PretrainConfig, samples_per_epoch: int, total: int) -> None:
        optimizer = config.optimizer
        peak = optimizer.learning_rate * config.stream.global_batch / 256
        warmup = min(optimizer.warmup_epochs * samples_per_epoch, total / 2)  # a short run still gets its cosine
        self.learning_rate = Cosine(peak, optimizer.learning_rate_final, total, warmup)
        self.weight_decay = Cosine(optimizer.weight_decay, optimizer.weight_decay_final, total)
        self.teacher_momentum = Cosine(config.objective.teacher_momentum, 1.0, total)


def seeds_of(seed: int, images: dict[str, Any]) -> Any:
    """Augmentation seeds (seed, epoch, key) of a micro-batch, which may straddle two epochs."""
    import numpy as np

    seeds = np.empty(len(images["key"]), np.uint64)
    for epoch in np.unique(images["epoch"]):
        chosen = images["epoch"] == epoch
        seeds[chosen] = sample_seeds(seed, int(epoch), list(images["key"][chosen]))
    return seeds


def check_finite(loss: torch.Tensor, terms: dict[str, torch.Tensor], step: int, rank: int) -> None:
    """Stops before a broken update reaches the weights."""
    if not torch.isfinite(loss):
        values = ", ".join(f"{name}={float(value):.4g}" for name, value in terms.items())
        raise UserError(f"the loss is not finite at step {step} on rank {rank} ({values}). The newest checkpoint is from "
                        "before; lower optimizer.learning_rate or deepspeed.clip, or use deepspeed.precision=fp32, with "
                        "another output")


def save(writer: BackgroundWriter, seen: int, engine: Any, objective: Objective, config: PretrainConfig, plan: Plan,
         corrupt: CorruptSamples, tracker: Tracker | None) -> float:
    """Collective: copy the state to host memory and hand it to the writer. Returns the seconds that training stood still.

    A checkpoint holds no number of workers. The log goes first: it may be ahead of a checkpoint, never behind it.
    """
    started = time.perf_counter()
    writer.flush()  # one at a time; before the copy, so that there are never three states in memory
    student = zero.consolidate(engine)
    if student:
        assert tracker is not None
        objective_state = {name: value.detach().to("cpu", copy=True) for name, value in objective.state_tensors().items()}
        writer.submit(seen, {"student": student, "objective": objective_state},
                      {"config": to_plain(config), "data": plan.checksum, "environment": environment(),
                       "corrupt": corrupt.state()}, before=tracker.publish)
    writer.stall_seconds = time.perf_counter() - started
    return writer.stall_seconds


def restore(store: CheckpointStore, engine: Any, objective: Objective, norms: StepBatchNorm,
            plan: Plan) -> tuple[int, dict[str, Any]]:
    """Collective: continue from the newest readable checkpoint, if any; returns samples seen and its metadata.

    Rank 0 reads it and hands it to the others tensor by tensor.
    """
    found: Found | None = None
    if torch.distributed.get_rank() == 0:
        found = patiently(store.newest, store.root.config.patience_s, report_line)
    position, metadata = broadcast_object((found.position, found.metadata) if found else (0, {}))
    if not position:
        return 0, {}
    payload = found.payload if found else None
    if metadata["data"] != plan.checksum:
        raise UserError(f"the images under data.uri, or their selection, are not those that {store.root.uri} was trained "
                        "on: bring them back, or choose another output")
    zero.restore(engine, payload and payload["student"])
    objective.load_state_tensors(broadcast_tensors(payload and payload["objective"]))
    norms.reload()
    if found:
        for name in found.torn:
            report_line(f"checkpoint {name} is torn (an upload that did not finish) and was passed over")
        workers = torch.distributed.get_world_size()
        report_line(f"continuing from {position:,} samples seen with {workers} worker{'s' * (workers > 1)} ({store.root.uri})")
    return position, metadata


def record_keys(folder: str, number: int, images: dict[str, Any]) -> None:
    """Append the (epoch, key) pairs of micro-batch `number` of the run to the audit, if there is to be one."""
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        rows = [[int(epoch), str(key)] for epoch, key in zip(images["epoch"], images["key"], strict=True)]
        with open(Path(folder) / f"micro-batch-{number:09d}.jsonl", "a") as file:
            file.write(json.dumps(rows) + "\n")


def finish(run: Run, objective: Objective, config: PretrainConfig, tracker: Tracker, seen: int,
           corrupt: CorruptSamples) -> None:
    """Publish the backbone and the summary (which marks the run complete)."""
    metadata = {"kind": "backbone", "mean": config.augment.mean, "std": config.augment.std, "samples_seen": seen,
                "data": config.data.uri, "selection": config.data.selection,
                "manifest": read_manifest(open_storage(config.data.uri, config.storage)).checksum}
    backbone, patience_s = model_bytes(objective.export_backbone(), metadata), config.storage.patience_s
    patiently(lambda: (run.location / "backbone.safetensors").write_bytes(backbone), patience_s, report_line)
    speeds = sorted(row["images_per_second"] for row in tracker.rows)
    last = tracker.rows[-1]
    patiently(tracker.publish, patience_s, report_line)
    tracker.close()
    summary = {"samples_seen": seen, "steps": seen // config.stream.global_batch, "final_loss": last["loss"],
               "images_per_second": speeds[len(speeds) // 2],
               "corrupt_samples": corrupt.total, "corrupt": corrupt.reasons,
               "probe": {k: v for k, v in last.items() if k.startswith("probe")}}
    patiently(lambda: run.finish(summary), patience_s, report_line)


if __name__ == "__main__":
    run_program("pretrain")
