"""The sample stream: deterministic, exactly once, independent of the number of workers.

    stream       epochs back to back; epoch e is an order of all samples, a function of (seed, e) alone
    unit         one row group of one shard (or its selected rows): what one ranged read fetches
    window       several units, drawn by the epoch's permutation, read together and shuffled by f(seed, e, window)
    micro-batch  a fixed number of consecutive samples: the unit of computation. Micro-batch j goes to worker
                 j mod world_size, so who computes what never changes what is computed
    position     samples seen; a run resumes at any multiple of the global batch, with any allowed world size

Ray Data reads, decodes and resizes on any CPU of the cluster and delivers compact uint8 images; random augmentation
happens on the training device, seeded per sample by (seed, epoch, key). A row group or image that cannot be read is set
aside: readable samples beside it take its places, drawn by (seed, epoch, window), and the rows say so.
"""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from platform.engine.errors import UserError
from platform.engine.storage import Location, NotFoundError, StorageError, patiently


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
    """Micro-batches in one optimiser step; the global batch is their product. The number of workers must divide it."""
    window_row_groups: int = 16
    """Row groups read and shuffled together; more mixes better and needs more memory."""
    seed: int = 0
    """Seed of the order of the samples and of their augmentation."""
    segment_windows: int = 2000
    """Windows that one Ray Data execution reads before the next takes over; bounds its bookkeeping in long runs."""
    max_corrupt_share: float = 0.01
    """Largest share of an epoch's samples that may be unreadable; above it the run stops."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_corrupt_share <= 1:
            raise ValueError(f"max_corrupt_share must be between 0 and 1: got {self.max_corrupt_share}")
        for name in ("micro_batch", "micro_batches_per_step", "window_row_groups", "segment_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.micro_batches_per_step


@dataclass(frozen=True)
class Plan:
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


def read_window(plan: Plan, task: Task, root: Location, threads: int = 4) -> pa.Table:
    """The rows of `task` in stream order: key, image, epoch, problem (why another sample stands here; "" = it does not).

    Rows outside [low, high) are dropped after the shuffle, so a resumed stream is the tail of the uninterrupted one. Raises
    UserError if no row group of the window can be read, StorageError if storage goes on not answering.
    """
    units = plan.window_units(task.epoch, task.window)

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda unit: _read_unit(root, unit), units))
    whole = [table for table in found if isinstance(table, pa.Table)]
    if not whole:
        raise UserError(f"none of the {len(units)} row groups that are read together can be read: {found[0]}")
    table = pa.concat_tables(whole)
    random = np.random.default_rng([plan.seed, task.epoch, task.window, 2])
    sources, problems, start = [], [], 0
    for unit, part in zip(units, found, strict=True):
        if isinstance(part, str):
            sources.append(random.integers(0, table.num_rows, unit.num_rows))
        else:
            sources.append(np.arange(start, start + unit.num_rows))
            start += unit.num_rows
        problems += [part if isinstance(part, str) else ""] * unit.num_rows
    source = np.concatenate(sources)
    order = plan.window_order(task.epoch, task.window, len(source))[task.low : task.high]
    table = table.take(pa.array(source[order]))
    table = table.append_column("epoch", pa.array(np.full(len(order), task.epoch, np.int32)))
    return table.append_column("problem", pa.array([problems[index] for index in order], pa.string()))


def _read_unit(root: Location, unit: Unit) -> pa.Table | str:
    """The unit's rows (key, image), or why they are not there. Raises StorageError after waiting for storage."""
    def read() -> pa.Table:
        location = root.joinpath(unit.file)
        with location.open_input() as file:
            try:
                return pq.ParquetFile(file).read_row_group(unit.row_group, columns=["key", "image"])
            except OSError as error:
                # A torn file and a torn connection are both OSError: only what is whole in storage can be corrupt.
                if "AWS Error" in str(error) or "curl" in str(error):
                    text = f"cannot read {location.uri}: {str(error).splitlines()[0][:200]}"
                    raise StorageError(text, transient=True) from None
                raise

    where = f"{unit.file} row group {unit.row_group}"
    try:
        table = patiently(read, root.config.patience_s)
        table = table if unit.rows is None else table.take(pa.array(unit.rows))
    except NotFoundError:
        return f"{where}: the file does not exist"
    except StorageError:
        raise
    except (pa.ArrowException, OSError, IndexError, KeyError) as error:
        return f"{where}: {(str(error).splitlines() or [type(error).__name__])[0][:160]}"
    if table.num_rows != unit.num_rows:
        return f"{where}: {table.num_rows} rows instead of {unit.num_rows}"
    return table


def decode_image(data: bytes, image_size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """Encoded image -> uint8 (3, H, W), resized to `image_size` (height, width)."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (image_size[1], image_size[0]))  # JPEG: decode near the size that is needed
        rgb = image.convert("RGB")
        if rgb.size != (image_size[1], image_size[0]):
            rgb = rgb.resize((image_size[1], image_size[0]), resample)
        return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1))


class Decoder:
    """Encoded micro-batch -> {"image": uint8 (B, 3, H, W), "key", "epoch", "problem"}.

    An image that cannot be decoded is replaced by the next one of the micro-batch that can.
    """

    def __init__(self, image_size: tuple[int, int]) -> None:
        self.image_size = image_size

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        count = len(batch["key"])
        images, problems, broken = np.empty((count, 3, *self.image_size), np.uint8), batch["problem"].astype(object), []
        for index, (key, data) in enumerate(zip(batch["key"], batch["image"], strict=True)):
            try:
                images[index] = decode_image(data, self.image_size)
            except Exception as error:  # Pillow raises almost anything
                broken.append(index)
                problems[index] = f"image '{key}' cannot be decoded ({error})"
        if len(broken) == count:
            raise UserError(f"none of {count} images can be decoded: {problems[0]}; ingest the data again")
        keys = batch["key"].copy()
        for index in broken:
            other = next(place % count for place in range(index + 1, index + count) if place % count not in broken)
            images[index], keys[index] = images[other], keys[other]
        return {"image": images, "key": keys, "epoch": batch["epoch"], "problem": problems}


def build_dataset(plan: Plan, config: StreamConfig, root: Location, image_size: tuple[int, int],
                  position: int, end: int, decode_resource: str = "") -> Any:
    """Ray Data pipeline whose block j is micro-batch j of the stream after `position`.

    decode_resource: custom resource of the only nodes that may read and decode; empty: all may.

    Leans on `repartition(strict=True)` and `preserve_order`; tests/platform/engine/test_stream.py holds both in place.
    """
    import ray

    tasks = plan.tasks(position, end)
    if not tasks:
        raise UserError(f"the stream is at its end already: position {position}, end {end}")

    def read(batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        for index in batch["id"]:
            yield read_window(plan, tasks[index], root)

    # A sliver of the resource: it says where, the CPUs say how many.
    where: dict[str, Any] = {"resources": {decode_resource: 0.001}} if decode_resource else {}
    dataset = ray.data.range(len(tasks), override_num_blocks=len(tasks))
    dataset = dataset.map_batches(read, batch_size=1, num_cpus=0.5, **where)
    dataset = dataset.repartition(target_num_rows_per_block=config.micro_batch, strict=True)
    dataset = dataset.map_batches(Decoder(image_size).__call__, batch_size=config.micro_batch,
                                  zero_copy_batch=True, num_cpus=1, **where)
    dataset.context.execution_options.preserve_order = True
    return dataset


def segments(plan: Plan, config: StreamConfig, position: int, end: int) -> Iterator[tuple[int, int]]:
    """[position, end) in pieces of about `segment_windows` windows, cut at multiples of the global batch."""
    rows_per_window = -(-plan.samples_per_epoch // plan.windows_per_epoch)
    length = max(1, config.segment_windows * rows_per_window // config.global_batch) * config.global_batch
    while position < end:
        yield position, min(position + length, end)
        position += length


def stream(plan: Plan, config: StreamConfig, root: Location, image_size: tuple[int, int], position: int, end: int,
           decode_resource: str = "") -> Iterator[dict[str, np.ndarray]]:
    """Collective: this worker's micro-batches of [position, end), through one Ray Data execution after the other.

    `position` and `end` are multiples of the global batch, so every worker comes to the seams in the same step.
    """
    import torch.distributed as dist

    from platform.engine.training import broadcast_object

    for low, high in segments(plan, config, position, end):
        parts = None
        if dist.get_rank() == 0:
            dataset = build_dataset(plan, config, root, image_size, low, high, decode_resource)
            parts = dataset.streaming_split(dist.get_world_size(), equal=True)
        yield from micro_batches(broadcast_object(parts)[dist.get_rank()], config)


def local_stream(plan: Plan, config: StreamConfig, root: Location, image_size: tuple[int, int], position: int, end: int,
                 rank: int = 0, world: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """The same micro-batches read in this process, without Ray: the definition of what `stream` must deliver."""
    decode, waiting, number = Decoder(image_size), None, 0
    for task in plan.tasks(position, end):
        table = read_window(plan, task, root)
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        while waiting.num_rows >= config.micro_batch:
            if number % world == rank:
                rows = waiting.slice(0, config.micro_batch)
                yield decode({name: rows[name].to_numpy() for name in rows.column_names})
            waiting, number = waiting.slice(config.micro_batch), number + 1


def micro_batches(iterator: Any, config: StreamConfig, prefetch: int = 2) -> Iterator[dict[str, np.ndarray]]:
    """This worker's micro-batches in order. Raises RuntimeError if Ray Data delivered another block size."""
    for batch in iterator.iter_batches(batch_size=None, prefetch_batches=prefetch, batch_format="numpy"):
        if len(batch["key"]) != config.micro_batch:
            raise RuntimeError(f"the stream delivered a block of {len(batch['key'])} samples instead of "
                               f"{config.micro_batch}: Ray Data no longer keeps strict blocks")
        yield batch
