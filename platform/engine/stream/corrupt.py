"""Count the unreadable samples of the stream, report each reason once, and stop the run if there are too many."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from platform.engine.data.set_aside import LISTED, most_corrupt
from platform.engine.errors import UserError


class CorruptSamples:
    """Counts of unreadable samples, one object per worker. All workers have the same counts and reasons.

    Args:
        max_share: largest share of unreadable samples in an epoch.
        state: result of `state` from the checkpoint of an earlier start; None: a new run.
    """

    def __init__(self, max_share: float, samples_per_epoch: int, state: dict[str, Any] | None = None) -> None:
        self.limit = most_corrupt(max_share, samples_per_epoch)
        self.samples_per_epoch = samples_per_epoch
        state = state or {"total": 0, "epoch": -1, "in_epoch": 0, "reasons": []}
        self.total, self.epoch, self.in_epoch = state["total"], state["epoch"], state["in_epoch"]
        self.reasons: list[str] = list(state["reasons"])
        self._new: set[str] = set()

    def add(self, micro_batch: dict[str, Any]) -> Tensor:
        """Number of unreadable samples in a micro-batch of the stream, a scalar tensor. `step` needs its mean over a step."""
        found = [reason for reason in micro_batch["problem"] if reason]
        self._new.update(found)
        return torch.tensor(float(len(found)))

    def step(self, mean: Tensor, micro_batches: int, epoch: int) -> list[str]:
        """Add the counts of a step. Collective if `mean` is not 0. Returns the new reasons on rank 0, [] elsewhere.

        mean: scalar, mean of `add` over the `micro_batches` of the step. Raises UserError on every worker if the epoch has more
        unreadable samples than allowed.
        """
        count = round(float(mean) * micro_batches)
        if count == 0:
            return []
        if epoch != self.epoch:
            self.epoch, self.in_epoch = epoch, 0
        self.total += count
        self.in_epoch += count
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, sorted(self._new))
        known, self._new = set(self.reasons), set()
        fresh = sorted({reason for part in gathered for reason in part} - known)
        self.reasons = (self.reasons + fresh)[:LISTED]
        if self.in_epoch > self.limit:
            raise UserError(
                f"{self.in_epoch:,} of the {self.samples_per_epoch:,} samples of epoch {epoch} cannot be read, more "
                f"than stream.max_corrupt_share allows ({self.limit:,.0f}): {'; '.join(self.reasons[:3])}. Restore "
                "or ingest the data again; the run continues from its newest checkpoint"
            )
        return fresh if dist.get_rank() == 0 else []

    def state(self) -> dict[str, Any]:
        """JSON-compatible counts and reasons, for the checkpoint and the summary."""
        return {"total": self.total, "epoch": self.epoch, "in_epoch": self.in_epoch, "reasons": self.reasons}
