"""The order of the samples of a run, as pure functions of (seed, epoch). engine/stream/stream.py defines the terms."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reidssl.checks import at_least, height_and_width_or_empty, within
from reidssl.seeding import sample_seeds


class Unit(NamedTuple):
    """One row group of a shard, or the selected rows of it."""

    file: str
    row_group: int
    num_rows: int
    rows: np.ndarray | None = None
    """int32 indices of the selected rows within the row group, ascending; None: all rows."""


class Task(NamedTuple):
    """Rows [low, high) of one shuffled window of one epoch."""

    epoch: int
    window: int
    low: int
    high: int


@dataclass(kw_only=True)
class StreamConfig:
    """How samples are grouped into micro-batches, steps and windows."""

    micro_batch: int = 64
    """Samples in a micro-batch, the unit of computation. Batch-norm statistics are per micro-batch."""
    micro_batches_per_step: int = 8
    """Micro-batches in an optimizer step; the number of workers must divide it. The global batch is micro_batch times this
    number."""
    window_row_groups: int = 16
    """Row groups that are read and shuffled together. More row groups mix better and need more memory."""
    decode_size: list[int] = field(default_factory=list)
    """[height, width] in pixels of the images that the crops are cut from; [] is model.image_size. A larger size, up to that of
    the files, keeps small crops sharp: the released code cuts them from the file. Memory and reading grow with its area."""
    segment_windows: int = 2000
    """Windows per Ray Data execution, which bounds Ray Data's bookkeeping in long runs. It does not change the order."""
    max_corrupt_share: float = 0.01
    """Largest share of unreadable samples in an epoch. The run stops if there are more than this share and more than one."""

    def __post_init__(self) -> None:
        within("[0, 1]", max_corrupt_share=self.max_corrupt_share)
        height_and_width_or_empty(decode_size=self.decode_size)
        at_least(
            1,
            micro_batch=self.micro_batch,
            micro_batches_per_step=self.micro_batches_per_step,
            window_row_groups=self.window_row_groups,
            segment_windows=self.segment_windows,
        )

    @property
    def global_batch(self) -> int:
        """Samples in an optimizer step, over all workers."""
        return self.micro_batch * self.micro_batches_per_step


@dataclass(frozen=True)
class StreamPlan:
    """The order of all samples of a run, as pure functions. It has a few bytes per row group and is sent to the reading tasks."""

    units: tuple[Unit, ...]
    seed: int
    window_row_groups: int
    num_epochs: int

    @cached_property
    def samples_per_epoch(self) -> int:
        """Rows of all units."""
        return sum(unit.num_rows for unit in self.units)

    @property
    def checksum(self) -> str:
        """SHA-256 of the training data and the selection. It uses the names of the shards, which depend on their content."""
        digest = hashlib.sha256()
        for unit in self.units:
            digest.update(f"{unit.file} {unit.row_group} {unit.num_rows}\n".encode())
            digest.update(b"" if unit.rows is None else unit.rows.tobytes())
        return digest.hexdigest()

    @property
    def windows_per_epoch(self) -> int:
        """Windows in an epoch; the last one may have fewer units."""
        return -(-len(self.units) // self.window_row_groups)

    def window_units(self, epoch: int, window: int) -> list[Unit]:
        """The units of a window, drawn by the permutation of the epoch."""
        order = _permutation(self.seed, epoch, len(self.units))
        chosen = order[window * self.window_row_groups : (window + 1) * self.window_row_groups]
        return [self.units[index] for index in chosen]

    def window_order(self, epoch: int, window: int, num_rows: int) -> np.ndarray:
        """int64 (num_rows,) permutation of the rows of a window."""
        return np.random.default_rng([self.seed, epoch, window, 1]).permutation(num_rows)

    def tasks(self, position: int, end: int) -> list[Task]:
        """The windows that contain the samples [position, end) of the stream. The first and last one are cut to this range."""
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
    """Augmentation seeds uint64 (B,) of a micro-batch, functions of (seed, epoch, key).

    Args:
        epochs: int (B,); a micro-batch may contain samples of two epochs.
        keys: (B,) of str.
    """
    seeds = np.empty(len(keys), np.uint64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        seeds[chosen] = sample_seeds(seed, int(epoch), list(keys[chosen]))
    return seeds
