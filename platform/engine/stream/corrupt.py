"""What the stream set aside because it cannot be read: counted, reported once, and too much of it stops the run."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from platform.engine.data.set_aside import LISTED, most_corrupt
from platform.engine.errors import UserError


class CorruptSamples:
    """One per worker. Counts are of samples; every worker has the same counts, rank 0 also has the reasons.

    state: what an earlier start of the run left in its checkpoint.
    """

    def __init__(self, max_share: float, samples_per_epoch: int, state: dict[str, Any] | None = None) -> None:
        self.limit = most_corrupt(max_share, samples_per_epoch)
        self.samples_per_epoch = samples_per_epoch
        state = state or {"total": 0, "epoch": -1, "in_epoch": 0, "reasons": []}
        self.total, self.epoch, self.in_epoch = state["total"], state["epoch"], state["in_epoch"]
        self.reasons: list[str] = list(state["reasons"])
        self._new: set[str] = set()

    def add(self, micro_batch: dict[str, Any]) -> Tensor:
        """How many samples of a micro-batch of the stream are unreadable; its mean over a step is what `step` wants."""
        found = [reason for reason in micro_batch["problem"] if reason]
        self._new.update(found)
        return torch.tensor(float(len(found)))

    def step(self, mean: Tensor, micro_batches: int, epoch: int) -> list[str]:
        """Collective if anything was found: count it. Returns the reasons not seen before, on rank 0.

        mean: over the `micro_batches` of the step. Raises UserError, on every worker, above the limit.
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
        """For the checkpoint and the summary."""
        return {"total": self.total, "epoch": self.epoch, "in_epoch": self.in_epoch, "reasons": self.reasons}
