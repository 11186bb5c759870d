"""Find and restore the checkpoint from which a pre-training run continues, on any number of workers."""

from typing import Any, NamedTuple

import torch

from platform.engine.config.compose import to_plain
from platform.engine.errors import UserError
from platform.engine.runs.run_folder import differences
from platform.engine.runtime.collectives import broadcast_object, broadcast_tensors
from platform.engine.storage.location import Location
from platform.engine.storage.retry import patiently
from platform.engine.stream.order import StreamPlan
from platform.engine.train.checkpoints import CheckpointConfig, CheckpointStore, LoadedCheckpoint
from platform.engine.train.start import check_checkpoint, nothing_there, other_run
from platform.engine.train.step import StepBatchNorm
from platform.engine.train.worker import report_line
from platform.engine.zero.consolidation import restore as restore_engine
from reidssl.objectives.base import Objective
from reidssl.objectives.objective_config import ObjectiveConfig


class ResumePoint(NamedTuple):
    """The newest readable checkpoint. Without one: position 0, metadata {} and payload None."""

    position: int
    """Samples seen."""
    metadata: dict[str, Any]
    payload: dict[str, Any] | None
    """The state; None on all ranks but 0."""


def find_resume_point(
    store: CheckpointStore, plan: StreamPlan, total: int, config: CheckpointConfig, global_batch: int
) -> ResumePoint:
    """The checkpoint from which the run continues, or starts (`config.resume_from`). Collective; rank 0 reads it.

    total: samples that the run sees. Raises UserError if the run cannot go on from the checkpoint (`check_checkpoint`).
    """
    found, root = None, store.root
    if torch.distributed.get_rank() == 0:
        found, root = patiently(lambda: _newest_of(store, config), store.root.config.retry_timeout_s, report_line)
    position, metadata, root = broadcast_object((found.position, found.metadata, root) if found else (0, {}, root))
    if position:
        check_checkpoint(position, metadata, root, root == store.root, plan, total, global_batch)
    return ResumePoint(position, metadata, found.payload if found else None)


def _newest_of(store: CheckpointStore, config: CheckpointConfig) -> tuple[LoadedCheckpoint | None, Location]:
    """(newest checkpoint of this run, else of `config.resume_from`; its folder). Prints the choice and the torn checkpoints."""
    found, origin = store.newest(), store
    if found is None and config.resume_from:
        origin = other_run(store.root, config)
        found = origin.newest(config.resume_position)
        if found is None:
            raise nothing_there(origin, config)
    for name in found.torn if found else [f"position-{position:012d}" for position in store.unfinished()]:
        report_line(f"checkpoint {name} is torn (an upload that did not finish) and was passed over")
    if found:
        workers = torch.distributed.get_world_size()
        report_line(
            f"continuing from {found.position:,} samples seen with {workers} worker{'s' * (workers > 1)} ({origin.root.uri})"
        )
    return found, origin.root


def restore(
    resume_point: ResumePoint, engine: Any, objective: Objective, norms: StepBatchNorm, objective_config: ObjectiveConfig
) -> None:
    """Load the state of the checkpoint, if there is one, on all workers, tensor by tensor. Collective.

    objective_config: of this run, to name what differs.

    Raises UserError on all workers if the state does not fit the model or the objective.
    """
    if not resume_point.position:
        return
    foreign = restore_engine(engine, resume_point.payload and resume_point.payload["student"])
    if foreign and torch.distributed.get_rank() == 0:
        report_line(
            f"note: the checkpoint after {resume_point.position:,} samples holds the moments of another optimizer "
            f"({', '.join(foreign)}): they start anew"
        )
    try:
        objective.load_state_tensors(broadcast_tensors(resume_point.payload and resume_point.payload["objective"]))
    except ValueError as error:
        stored = resume_point.metadata.get("config", {}).get("objective", {})
        changed = [
            f"\n  objective.{key}: {old!r} -> {new!r}" for key, old, new in differences(stored, to_plain(objective_config))
        ]
        raise UserError(
            f"the checkpoint does not fit the objective: {error}{''.join(changed) if stored else ''}\n"
            "Give this run another output, with the objective of the checkpoint's run"
        ) from None
    norms.reload()
