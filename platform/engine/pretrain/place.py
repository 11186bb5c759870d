"""The position of a pre-training run in its sample stream. It is the same on every worker."""

from dataclasses import dataclass

import torch.distributed as dist

from platform.engine.pretrain.plan import plan_of
from platform.engine.schemas.pretrain_settings import PretrainConfig
from platform.engine.storage.retry import patiently
from platform.engine.stream.order import StreamPlan
from platform.engine.train.checkpoints import CheckpointStore
from platform.engine.train.resume import ResumePoint, find_resume_point
from platform.engine.train.scaling import check_size
from platform.engine.train.worker import report_line
from reidssl.objectives.base import Progress


@dataclass(kw_only=True)
class Place:
    """Samples seen, and the quantities that follow from them. `seen` advances by `batch` with each optimizer step."""

    plan: StreamPlan
    total: int
    """Samples that the whole run sees."""
    batch: int
    """Samples in an optimizer step, the global batch."""
    seen: int
    rank: int
    world: int
    micro_batches: int
    """Micro-batches in an optimizer step, over all workers."""

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
        """Passes over the data so far."""
        return self.seen / self.plan.samples_per_epoch

    @property
    def own_micro_batches(self) -> int:
        """Micro-batches in an optimizer step on this worker."""
        return self.micro_batches // self.world

    def is_time_for(self, every_steps: int) -> bool:
        """Whether an action that runs every `every_steps` steps and at the end is due now."""
        return self.step % every_steps == 0 or self.is_complete

    def progress(self, index: int = 0) -> Progress:
        """Progress of the run for micro-batch `index` (from 0) of this worker in the coming step."""
        return Progress(self.seen, self.plan.samples_per_epoch, self.total, index * self.world + self.rank)


def find_place(config: PretrainConfig, store: CheckpointStore) -> tuple[Place, ResumePoint]:
    """(place, checkpoint) at which the run continues; without a checkpoint, the start. Collective.

    Raises UserError if this number of workers cannot share a step, or if the run cannot go on from the checkpoint.
    """
    check_size(dist.get_world_size(), config.stream.micro_batches_per_step)
    plan, total = patiently(lambda: plan_of(config), config.storage.retry_timeout_s, report_line)
    resume_point = find_resume_point(store, plan, total, config.checkpoint, config.stream.global_batch)
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
