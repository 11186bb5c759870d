"""Self-supervised pre-training of a vision transformer: shards -> Ray Data -> Ray Train -> DeepSpeed -> backbone.

  python -m platform.pretrain data.uri=runs/demo/data/pretrain output=runs/first
  python -m platform.pretrain data.uri=s3://bucket/luperson output=s3://bucket/runs/vit-s experiment=luperson_vit_small_ics
  python -m platform.pretrain data.uri=... data.selection=runs/demo/selection output=runs/half   (a selected subset)
  ray job submit --working-dir . -- python -m platform.pretrain output=s3://bucket/runs/vit-s ...

Running the same command again continues an interrupted run from its newest checkpoint and says from where. SIGTERM
(`ray job stop`, `kill`) writes a checkpoint first. docs/reliability.md lists what a run survives and what it costs.
Results in the output folder: backbone.safetensors (the EMA teacher), metrics.jsonl, summary.json, checkpoints/.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from platform.engine import zero
from platform.engine.checkpoints import BackgroundWriter, CheckpointConfig, CheckpointStore
from platform.engine.config import run_program, to_dataclass
from platform.engine.corrupt import CorruptSamples
from platform.engine.device import ahead, device, keep_compiled_code, precision, upload
from platform.engine.errors import UserError
from platform.engine.finite import Finite
from platform.engine.launch import launch, notices, report_line
from platform.engine.notices import STOP, WAIT
from platform.engine.optimizers import OptimizerConfig, Schedules, pretraining_optimizer
from platform.engine.partitions import full_parameters
from platform.engine.patience import patiently
from platform.engine.plan import Plan, StreamConfig, stream_seeds
from platform.engine.probe import Probe, ProbeConfig
from platform.engine.runs import SUMMARY, Run, open_run
from platform.engine.runtime import RuntimeConfig, connect, say
from platform.engine.scaling import ScalingConfig, allowed_sizes, check_size
from platform.engine.selection import read_units
from platform.engine.shards import read_manifest
from platform.engine.steps import StepBatchNorm, StepMeans, StepRows
from platform.engine.storage import StorageConfig, open_storage
from platform.engine.stream import stream
from platform.engine.tracking import Tracker, TrackingConfig, format_row, record_keys
from platform.engine.training_state import find_newest, restore, save
from reidssl.accelerator import COMPILE_CHOICES, wants_compiling
from reidssl.augment.multicrop import MultiCrop, MultiCropConfig
from reidssl.models.checkpoints import model_bytes
from reidssl.models.vit import VitConfig
from reidssl.objectives import ObjectiveConfig, build_objective
from reidssl.objectives.base import Objective, Progress
from reidssl.objectives.collapse import CollapseMonitor
from reidssl.seeding import mix

ADVICE = ("The newest checkpoint is from before: run with another output and checkpoint.resume_from=<this output> to go on from "
          "it (or from an earlier one, checkpoint.resume_position=<samples>) with a lower optimizer.learning_rate or "
          "deepspeed.clip, or with deepspeed.precision=fp32")


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
    compile: str = "auto"
    """Compile the backbones (torch.compile), one graph for each crop size: on, off, or auto: on GPUs that can, not on CPUs."""

    def __post_init__(self) -> None:
        if self.compile not in COMPILE_CHOICES:
            raise ValueError(f"compile must be one of {', '.join(COMPILE_CHOICES)}: got '{self.compile}'")
        if self.compile == "on" and self.deepspeed.zero_stage == 3:
            raise ValueError("compile=on needs whole parameters: use deepspeed.zero_stage=0, 1 or 2, or compile=auto")
        if tuple(self.augment.global_size) != tuple(self.model.image_size):
            raise ValueError(f"augment.global_size must equal model.image_size {tuple(self.model.image_size)}: "
                             f"got {tuple(self.augment.global_size)}")
        if self.optimizer.name == "lars" and self.deepspeed.zero_stage != 0:
            raise ValueError("optimizer.name=lars needs deepspeed.zero_stage=0, where every tensor is whole: "
                             f"got zero_stage={self.deepspeed.zero_stage}")


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
    plan, total = patiently(lambda: plan_of(config), config.storage.patience_s, report_line)
    batch, accumulation = config.stream.global_batch, config.stream.micro_batches_per_step // world

    store = CheckpointStore(run.location / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_every_steps * batch)
    newest = find_newest(store, plan, config.checkpoint, batch)
    seen = newest.position
    if seen < total:
        micro_batches = (arguments.get("stream") or stream)(
            plan, config.stream, open_storage(config.data.uri, config.storage), config.model.image_size, seen, total,
            config.scaling.decode_resource)

    objective = build_objective(config.model, config.objective, config.stream.seed).to(device())
    objective.bf16_teacher = precision(config.deepspeed.precision) == "bf16"
    objective.train()
    norms = StepBatchNorm(objective)
    if config.deepspeed.zero_stage < 3 and wants_compiling(config.compile, device()):
        keep_compiled_code()
        objective.compile_backbones()
    optimizer = pretraining_optimizer(config.optimizer, objective.student.named_parameters(), objective.may_rest)
    engine = zero.build_engine(objective.student, optimizer, config.deepspeed,
                               micro_batch=config.stream.micro_batch, accumulation=accumulation)
    finite = Finite(engine, config.deepspeed, rank, ADVICE)
    crop = MultiCrop(config.augment)

    def crops_of(images: dict[str, Any]) -> list[torch.Tensor]:
        return crop(upload(images["image"]), stream_seeds(config.stream.seed, images["epoch"], images["key"]))

    prepared = ahead(micro_batches, crops_of) if seen < total else iter(())
    schedules = Schedules(config.optimizer, config.objective.teacher_momentum, batch, plan.samples_per_epoch, total)
    writer = BackgroundWriter(store, config.storage.patience_s, report_line)
    restore(newest, engine, objective, norms)
    corrupt = CorruptSamples(config.stream.max_corrupt_share, plan.samples_per_epoch, newest.metadata.get("corrupt"))
    del newest  # rank 0's holds the whole state
    tracker = patiently(lambda: Tracker(run.location, config.tracking, seen, labels=run.location.uri), config.storage.patience_s,
                        report_line) if rank == 0 else None
    probe = Probe(config.probe, config.model, config.augment, config.storage) if rank == 0 and config.probe.uri else None
    choices = config.objective.entropy_choices(config.stream.micro_batch)
    collapse = CollapseMonitor(config.objective.name, choices, config.model.width)

    notice = notices()
    means, rows, started, interval_start = StepMeans(), StepRows(), time.perf_counter(), seen
    while seen < total:
        zero.set_schedules(engine, schedules.learning_rate(seen), schedules.weight_decay(seen),
                           objective.rests(Progress(seen, plan.samples_per_epoch, total)))
        for index in range(accumulation):
            images, crops = next(prepared)
            progress = Progress(seen, plan.samples_per_epoch, total, index * world + rank)
            # drop path: a function of the micro-batch, not of the worker that computes it
            torch.manual_seed(mix(config.stream.seed, seen, progress.micro_batch))
            output = objective(engine, list(crops), progress)
            engine.backward(finite.loss(output.loss, output.terms, seen // batch + 1))
            finite.step(seen // batch + 1)
            means.add({f"statistic/{k}": v for k, v in output.statistics.items()} | output.terms | norms.micro_batch_done())
            rows.add(output.rows)
            means.add_uncounted(corrupt.add(images))
            record_keys(config.tracking.audit, seen // config.stream.micro_batch + index * world + rank, images)
        means.add_uncounted(notice.seen())
        step_means = means.reduce()
        norms.commit(step_means)
        objective.update({k[10:]: v for k, v in step_means.items() if k.startswith("statistic/")}, rows.gather())
        objective.update_teacher(full_parameters(engine.module), schedules.teacher_momentum(seen))
        for reason in corrupt.step(step_means["corrupt"], config.stream.micro_batches_per_step, progress.epoch):
            report_line(f"set aside: {reason}")
        seen += batch

        step, last, told = seen // batch, seen == total, notice.decide(step_means)
        saves = step % config.checkpoint.every_steps == 0 or last or told
        if saves or step % config.tracking.every_steps == 0:
            finite.check()
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
        if saves:
            stall = save(writer, seen, engine, objective, arguments["config"], plan, corrupt, tracker)
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
