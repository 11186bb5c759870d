"""Self-supervised pre-training of a vision transformer: shards -> Ray Data -> Ray Train -> DeepSpeed -> backbone.

  python -m platform.pretrain data.uri=runs/demo/data/pretrain output=runs/first
  python -m platform.pretrain data.uri=s3://bucket/luperson output=s3://bucket/runs/vit-s experiment=luperson_vit_small_ics
  python -m platform.pretrain data.uri=... data.selection=runs/demo/selection output=runs/half   (a selected subset)
  ray job submit --working-dir . -- python -m platform.pretrain output=s3://bucket/runs/vit-s ...

Running the same command again continues an interrupted run from its newest checkpoint and says from where.
Results in the output folder: backbone.safetensors (the EMA teacher), metrics.jsonl, summary.json, checkpoints/.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from platform.engine import zero
from platform.engine.checkpoints import CheckpointConfig, CheckpointStore
from platform.engine.config import run_program, to_dataclass, to_plain
from platform.engine.device import device
from platform.engine.errors import UserError
from platform.engine.probe import Probe, ProbeConfig
from platform.engine.runs import SUMMARY, Run, environment, open_run
from platform.engine.runtime import RuntimeConfig, connect, say
from platform.engine.scaling import ScalingConfig, allowed_sizes, check_size
from platform.engine.selection import read_units
from platform.engine.shards import read_manifest
from platform.engine.storage import StorageConfig, open_storage
from platform.engine.stream import Plan, StreamConfig, build_dataset, micro_batches
from platform.engine.tracking import Tracker, TrackingConfig, format_row
from platform.engine.training import StepBatchNorm, StepMeans, StepRows, launch, report_line
from reidssl.augment.multicrop import MultiCrop, MultiCropConfig
from reidssl.models.checkpoints import model_bytes
from reidssl.models.vit import VitConfig
from reidssl.objectives import ObjectiveConfig, build_objective
from reidssl.objectives.base import Objective, Progress
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
           micro_batches_per_step=config.stream.micro_batches_per_step,
           datasets={"stream": lambda: stream_from_newest_checkpoint(config, plan, total)})
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


def stream_from_newest_checkpoint(config: PretrainConfig, plan: Plan, total: int) -> Any:
    """Called whenever workers start: the stream goes on where the newest checkpoint stands."""
    store = CheckpointStore(open_storage(config.output, config.storage) / "checkpoints")
    root = open_storage(config.data.uri, config.storage)
    # A run that was stopped between its last checkpoint and its summary still gets a stream; it takes nothing from it.
    position = min(store.newest_position(), total - config.stream.global_batch)
    return build_dataset(plan, config.stream, root, config.model.image_size, position, total,
                         config.scaling.decode_resource)


def train(arguments: dict[str, Any]) -> None:
    """The training loop; every worker runs it."""
    import ray.train
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
    store = CheckpointStore(run.location / "checkpoints", config.checkpoint.keep)
    seen = restore(store, engine, objective, norms, plan)
    tracker = Tracker(run.location, config.tracking, seen, labels=run.location.uri) if rank == 0 else None
    probe = Probe(config.probe, config.model, config.augment, config.storage) if rank == 0 and config.probe.uri else None

    stream = micro_batches(ray.train.get_dataset_shard("stream"), config.stream)
    means, rows, started, interval_start = StepMeans(), StepRows(), time.perf_counter(), seen
    while seen < total:
        zero.set_schedules(engine, schedules.learning_rate(seen), schedules.weight_decay(seen))
        for index in range(accumulation):
            images = next(stream)
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
        step_means = means.reduce()
        norms.commit()
        objective.update({k[10:]: v for k, v in step_means.items() if k.startswith("statistic/")}, rows.gather())
        objective.update_teacher(zero.named_full_parameters(engine.module), schedules.teacher_momentum(seen))
        seen += batch

        step, last = seen // batch, seen == total
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
            tracker.add(seen, row)
            report_line(f"step {step}/{total // batch}  epoch {seen / plan.samples_per_epoch:.2f}  {format_row(row)}")
        if step % config.checkpoint.every_steps == 0 or last:
            if tracker:
                tracker.publish()  # first: a log may be ahead of the checkpoint, never behind it
            save(store, seen, engine, objective, config, plan)
    if tracker:
        finish(run, objective, config, tracker, seen)
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


def save(store: CheckpointStore, seen: int, engine: Any, objective: Objective, config: PretrainConfig,
         plan: Plan) -> None:
    """Collective: publish a checkpoint that any number of workers can continue from."""
    student = zero.consolidate(engine)
    if student:
        objective_state = {name: value.cpu() for name, value in objective.state_tensors().items()}
        store.save(seen, {"student": student, "objective": objective_state},
                   {"config": to_plain(config), "data": plan.checksum, "environment": environment()})


def restore(store: CheckpointStore, engine: Any, objective: Objective, norms: StepBatchNorm,
            plan: Plan) -> int:
    """Continue from the newest readable checkpoint, if any; returns samples seen."""
    found = store.newest()
    if found is None:
        return 0
    if found.metadata["data"] != plan.checksum:
        raise UserError(f"the images under data.uri, or their selection, are not those that {store.root.uri} was trained "
                        "on: bring them back, or choose another output")
    zero.restore(engine, found.payload["student"])
    objective.load_state_tensors(found.payload["objective"])
    norms.reload()
    if torch.distributed.get_rank() == 0:
        for name in found.torn:
            report_line(f"checkpoint {name} is torn (an upload that did not finish) and was passed over")
        report_line(f"continuing from {found.position:,} samples seen ({store.root.uri})")
    return found.position


def finish(run: Run, objective: Objective, config: PretrainConfig, tracker: Tracker, seen: int) -> None:
    """Publish the backbone and the summary (which marks the run complete)."""
    metadata = {"kind": "backbone", "mean": config.augment.mean, "std": config.augment.std, "samples_seen": seen,
                "data": config.data.uri, "selection": config.data.selection,
                "manifest": read_manifest(open_storage(config.data.uri, config.storage)).checksum}
    (run.location / "backbone.safetensors").write_bytes(model_bytes(objective.export_backbone(), metadata))
    speeds = sorted(row["images_per_second"] for row in tracker.rows)
    last = tracker.rows[-1]
    tracker.publish()
    tracker.close()
    run.finish({"samples_seen": seen, "steps": seen // config.stream.global_batch, "final_loss": last["loss"],
                "images_per_second": speeds[len(speeds) // 2],
                "probe": {k: v for k, v in last.items() if k.startswith("probe")}})


if __name__ == "__main__":
    run_program("pretrain")
