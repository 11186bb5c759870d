"""The order of a run's samples: pure functions of (seed, epoch), whoever asks. engine/stream/stream.py has the words."""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reidssl.checks import at_least, within
from reidssl.seeding import sample_seeds


class Unit(NamedTuple):
    """One row group, or the rows of it that a selection keeps."""

    file: str
    row_group: int
    num_rows: int
    rows: np.ndarray | None = None
    """Indices of the selected rows within the row group, ascending; None = all."""


class Task(NamedTuple):
    """Rows [low, high) of one shuffled window of one epoch."""

    epoch: int
    window: int
    low: int
    high: int


@dataclass(kw_only=True)
class StreamConfig:
    """How samples are grouped; only `micro_batch` and `micro_batches_per_step` change the mathematics."""

    micro_batch: int = 64
    """Samples computed together (batch-norm statistics are per micro-batch)."""
    micro_batches_per_step: int = 8
    """Micro-batches in one optimizer step; the global batch is their product. The number of workers must divide it."""
    window_row_groups: int = 16
    """Row groups read and shuffled together; more mixes better and needs more memory."""
    segment_windows: int = 2000
    """Windows that one Ray Data execution reads before the next takes over; bounds its bookkeeping in long runs."""
    max_corrupt_share: float = 0.01
    """Largest share of an epoch's samples that may be unreadable; above it, and above one sample, the run stops."""

    def __post_init__(self) -> None:
        within("[0, 1]", max_corrupt_share=self.max_corrupt_share)
        at_least(
            1,
            micro_batch=self.micro_batch,
            micro_batches_per_step=self.micro_batches_per_step,
            window_row_groups=self.window_row_groups,
            segment_windows=self.segment_windows,
        )

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.micro_batches_per_step


@dataclass(frozen=True)
class StreamPlan:
    """The whole order of a run as pure functions; a few bytes per row group, sent to the reading tasks."""

    units: tuple[Unit, ...]
    seed: int
    window_row_groups: int
    num_epochs: int

    @cached_property
    def samples_per_epoch(self) -> int:
        return sum(unit.num_rows for unit in self.units)

    @property
    def checksum(self) -> str:
        """SHA-256 of what is trained on: shards are named after their content, so it follows data and selection."""
        digest = hashlib.sha256()
        for unit in self.units:
            digest.update(f"{unit.file} {unit.row_group} {unit.num_rows}\n".encode())
            digest.update(b"" if unit.rows is None else unit.rows.tobytes())
        return digest.hexdigest()

    @property
    def windows_per_epoch(self) -> int:
        return -(-len(self.units) // self.window_row_groups)

    def window_units(self, epoch: int, window: int) -> list[Unit]:
        order = _permutation(self.seed, epoch, len(self.units))
        chosen = order[window * self.window_row_groups : (window + 1) * self.window_row_groups]
        return [self.units[index] for index in chosen]

    def window_order(self, epoch: int, window: int, num_rows: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, window, 1]).permutation(num_rows)

    def tasks(self, position: int, end: int) -> list[Task]:
        """The windows, cut at both ends, that make up the samples [position, end) of the stream."""
        tasks = []
        for epoch in range(position // self.samples_per_epoch, self.num_epochs):
            start = epoch * self.samples_per_epoch
            for window in range(self.windows_per_epoch):
                num_rows = sum(unit.num_rows for unit in self.window_units(epoch, window))
                low, high = max(0, position - start), min(num_rows, end - start)
                if low < high:
                    tasks.append(Task(epoch, window, low, high))
                start += num_rows
                if start >= end:
                    return tasks
        return tasks


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def stream_seeds(seed: int, epochs: np.ndarray, keys: np.ndarray) -> NDArray[np.uint64]:
    """Augmentation seeds (seed, epoch, key) of a micro-batch, which may straddle two epochs."""
    seeds = np.empty(len(keys), np.uint64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        seeds[chosen] = sample_seeds(seed, int(epoch), list(keys[chosen]))
    return seeds
