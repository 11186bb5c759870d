"""Where a pre-training run stands in its sample stream; the same on every worker."""

import math
from dataclasses import dataclass

import torch.distributed as dist

from platform.engine.errors import UserError
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.storage.location import open_storage
from platform.engine.storage.retry import patiently
from platform.engine.stream.order import StreamPlan
from platform.engine.stream.units import read_units
from platform.engine.train.checkpoints import CheckpointStore
from platform.engine.train.launch import report_line
from platform.engine.train.resume import ResumePoint, find_resume_point
from platform.engine.train.scaling import check_size
from reidssl.objectives.base import Progress


def plan_of(config: PretrainConfig) -> tuple[StreamPlan, int]:
    """The order of all samples, and how many of them the run sees (a multiple of the global batch)."""
    root = open_storage(config.data.uri, config.storage)
    units = read_units(root, open_storage(config.data.selection, config.storage) if config.data.selection else None)
    images = sum(unit.num_rows for unit in units)
    wanted = config.length.samples or round(config.length.epochs * images)
    total = wanted // config.stream.global_batch * config.stream.global_batch
    if total == 0:
        raise UserError(
            f"{wanted} samples are fewer than one global batch of {config.stream.global_batch}: train longer, "
            "ingest more images, or lower stream.micro_batch or stream.micro_batches_per_step"
        )
    plan = StreamPlan(tuple(units), config.seed, config.stream.window_row_groups, math.ceil(total / images))
    return plan, total


@dataclass(kw_only=True)
class Place:
    """Samples seen, and what follows from them. `seen` advances by `batch` with each optimizer step."""

    plan: StreamPlan
    total: int
    """Samples that the run sees."""
    batch: int
    """Samples of an optimizer step."""
    seen: int
    rank: int
    world: int
    micro_batches: int
    """Of an optimizer step, over all workers."""

    @property
    def is_complete(self) -> bool:
        return self.seen >= self.total

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.seen // self.batch

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.total // self.batch

    @property
    def epoch(self) -> float:
        """Passes over the data that are behind us."""
        return self.seen / self.plan.samples_per_epoch

    @property
    def own_micro_batches(self) -> int:
        """Of an optimizer step, on this worker."""
        return self.micro_batches // self.world

    def is_time_for(self, every_steps: int) -> bool:
        """Whether something that is done every so many steps, and at the end, is due."""
        return self.step % every_steps == 0 or self.is_complete

    def progress(self, index: int = 0) -> Progress:
        """For the `index`-th micro-batch of this worker in the coming step."""
        return Progress(self.seen, self.plan.samples_per_epoch, self.total, index * self.world + self.rank)


def find_place(config: PretrainConfig, store: CheckpointStore) -> tuple[Place, ResumePoint]:
    """Collective: the place at which the newest checkpoint stands, and that checkpoint.

    Raises UserError if this number of workers cannot share a step, or the checkpoint belongs to other data.
    """
    check_size(dist.get_world_size(), config.stream.micro_batches_per_step)
    plan, total = patiently(lambda: plan_of(config), config.storage.retry_timeout_s, report_line)
    resume_point = find_resume_point(store, plan, config.checkpoint, config.stream.global_batch)
    place = Place(
        plan=plan,
        total=total,
        batch=config.stream.global_batch,
        seen=resume_point.position,
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        micro_batches=config.stream.micro_batches_per_step,
    )
    return place, resume_point
