"""Find and restore the checkpoint from which a pre-training run continues, on any number of workers."""

from typing import Any, NamedTuple

import torch

from platform.engine.errors import UserError
from platform.engine.runtime.collectives import broadcast_object, broadcast_tensors
from platform.engine.storage.location import open_storage
from platform.engine.storage.retry import patiently
from platform.engine.stream.order import StreamPlan
from platform.engine.train.checkpoints import CheckpointConfig, CheckpointStore, LoadedCheckpoint
from platform.engine.train.step import StepBatchNorm
from platform.engine.train.worker import report_line
from platform.engine.zero.consolidation import restore as restore_engine
from reidssl.objectives.base import Objective


class ResumePoint(NamedTuple):
    """The newest readable checkpoint. Without one: position 0, metadata {} and payload None."""

    position: int
    """Samples seen."""
    metadata: dict[str, Any]
    payload: dict[str, Any] | None
    """The state; None on all ranks but 0."""


def find_resume_point(store: CheckpointStore, plan: StreamPlan, config: CheckpointConfig, global_batch: int) -> ResumePoint:
    """The checkpoint from which the run continues, or starts (`config.resume_from`). Collective; rank 0 reads it.

    Raises UserError if the checkpoint was trained on other images, or if its position is no multiple of `global_batch`.
    """
    found: LoadedCheckpoint | None = None
    if torch.distributed.get_rank() == 0:
        found = patiently(lambda: _newest_of(store, config), store.root.config.retry_timeout_s, report_line)
    position, metadata = broadcast_object((found.position, found.metadata) if found else (0, {}))
    if position and metadata["data"] != plan.checksum:
        raise UserError(
            f"the images under data.uri, or their selection, are not those that {store.root.uri} was trained "
            "on: bring them back, or choose another output"
        )
    if position % global_batch:
        raise UserError(
            f"the checkpoint has seen {position:,} samples, no multiple of this run's global batch of "
            f"{global_batch}: keep stream.micro_batch * stream.micro_batches_per_step, or resume_position elsewhere"
        )
    return ResumePoint(position, metadata, found.payload if found else None)


def _newest_of(store: CheckpointStore, config: CheckpointConfig) -> LoadedCheckpoint | None:
    """The newest checkpoint of this run, else of `config.resume_from`. Prints the choice and the torn checkpoints."""
    found, origin = store.newest(), store
    if found is None and config.resume_from:
        origin = CheckpointStore(open_storage(config.resume_from, store.root.config) / "checkpoints")
        found = origin.newest(config.resume_position)
        if found is None:
            there = f" at or before {config.resume_position:,} samples" * (config.resume_position > 0)
            raise UserError(
                f"there is no checkpoint under {origin.root.uri}{there}: checkpoint.resume_from must be the folder "
                "of a pre-training run"
            )
    for name in found.torn if found else [f"position-{position:012d}" for position in store.unfinished()]:
        report_line(f"checkpoint {name} is torn (an upload that did not finish) and was passed over")
    if found:
        workers = torch.distributed.get_world_size()
        report_line(
            f"continuing from {found.position:,} samples seen with {workers} worker{'s' * (workers > 1)} ({origin.root.uri})"
        )
    return found


def restore(resume_point: ResumePoint, engine: Any, objective: Objective, norms: StepBatchNorm) -> None:
    """Load the state of the checkpoint, if there is one, on all workers, tensor by tensor. Collective."""
    if not resume_point.position:
        return
    restore_engine(engine, resume_point.payload and resume_point.payload["student"])
    objective.load_state_tensors(broadcast_tensors(resume_point.payload and resume_point.payload["objective"]))
    norms.reload()
