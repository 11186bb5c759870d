"""Where a pre-training run may begin: another run's checkpoint (`checkpoint.resume_from`), or its own when it continues.

A checkpoint is checked twice. The program checks what its manifest says before the settings are bound to the output folder, and
the workers check the one that they read: the newest may be torn.
"""

from typing import Any

from platform.engine.errors import UserError
from platform.engine.storage.location import Location, open_storage
from platform.engine.stream.order import StreamPlan
from platform.engine.train.checkpoints import CheckpointConfig, CheckpointStore


def check_start(output: Location, config: CheckpointConfig, plan: StreamPlan, total: int, global_batch: int) -> None:
    """Check that a new run in `output` can begin from `config.resume_from`. Reads no state. Raises UserError if it cannot."""
    if config.resume_from and CheckpointStore(output / "checkpoints").peek() is None:  # else the run goes on from its own
        origin = other_run(output, config)
        found = origin.peek(config.resume_position)
        if found is None:
            raise nothing_there(origin, config)
        check_checkpoint(*found, origin.root, False, plan, total, global_batch)


def other_run(output: Location, config: CheckpointConfig) -> CheckpointStore:
    """The checkpoints of the run `config.resume_from`."""
    return CheckpointStore(open_storage(config.resume_from, output.config) / "checkpoints")


def nothing_there(origin: CheckpointStore, config: CheckpointConfig) -> UserError:
    """The error for a folder without a checkpoint to begin from."""
    there = f" at or before {config.resume_position:,} samples" * (config.resume_position > 0)
    return UserError(
        f"there is no checkpoint under {origin.root.uri}{there}: checkpoint.resume_from must be the folder of a pre-training run"
    )


def check_checkpoint(
    position: int, metadata: dict[str, Any], root: Location, own: bool, plan: StreamPlan, total: int, global_batch: int
) -> None:
    """Check that a run can go on from a checkpoint.

    Args:
        root: the folder of the checkpoint.
        own: whether it is of this run, which may have been stopped between its last checkpoint and its results.
        total: samples that the run sees.

    Raises UserError if another program wrote the checkpoint, if it was trained on other images, if its position is no multiple of
    `global_batch`, or if another run's checkpoint is at or past the end of this run.
    """
    if "data" not in metadata:
        raise UserError(
            f"no pre-training checkpoint: that under {root.uri} does not say which images it has seen, as those of "
            "platform.finetune. checkpoint.resume_from must be the folder of a pre-training run"
        )
    if metadata["data"] != plan.checksum:
        advice = (
            "bring them back, or choose another output"
            if own
            else "give data.uri and data.selection of that run, or another checkpoint.resume_from"
        )
        raise UserError(f"the images under data.uri, or their selection, are not those that {root.uri} was trained on: {advice}")
    if position % global_batch:
        raise UserError(
            f"the checkpoint has seen {position:,} samples, no multiple of this run's global batch of "
            f"{global_batch}: keep stream.micro_batch * stream.micro_batches_per_step, or resume_position elsewhere"
        )
    if not own and position >= total:
        raise UserError(
            f"nothing is left to train: the checkpoint under {root.uri} has seen {position:,} samples, and this run ends at "
            f"{total:,}. Raise length.epochs or length.samples, or begin from an earlier checkpoint with "
            "checkpoint.resume_position=<fewer samples than that>"
        )
