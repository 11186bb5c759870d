"""The sample stream: deterministic, exactly once, independent of the number of workers.

    stream       epochs one after the other; the order of all samples in epoch e is a function of (seed, e) alone
    unit         one row group of one shard (or its selected rows), fetched by one ranged read
    window       several units, drawn by the permutation of the epoch, read together and shuffled by f(seed, e, window)
    micro-batch  a fixed number of consecutive samples, the unit of computation. Micro-batch j goes to worker
                 j mod world_size, so the number of workers does not change what is computed
    position     samples seen; a run resumes at any multiple of the global batch, with any allowed world size

Ray Data reads, decodes and resizes on any CPU of the cluster and delivers compact uint8 images. Random augmentation runs
on the training device, seeded per sample by (seed, epoch, key). Samples of an unreadable row group are replaced by readable
samples of the same window, drawn by (seed, epoch, window). An undecodable image is replaced by the next readable one of its
micro-batch. The rows record the reason of each replacement.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from platform.engine.data.shards import read_manifest
from platform.engine.errors import UserError
from platform.engine.runtime.datasets import prepare
from platform.engine.storage.location import Location
from platform.engine.storage.retry import patiently
from platform.engine.stream.order import StreamConfig, StreamPlan
from platform.engine.stream.windows import Decoder, read_window


def build_dataset(
    plan: StreamPlan,
    config: StreamConfig,
    root: Location,
    image_size: tuple[int, int],
    position: int,
    end: int,
    decode_resource: str = "",
) -> Any:
    """Ray Data pipeline for the samples [position, end). Its block j is micro-batch j after `position`.

    Args:
        image_size: (height, width) of the decoded images.
        decode_resource: custom Ray resource of the nodes that read and decode; empty: all nodes.

    It depends on `repartition(strict=True)` and `preserve_order` of Ray Data; tests/platform/engine/stream/test_stream.py
    checks both. Raises UserError if there are no samples in [position, end).
    """
    import ray

    tasks = plan.tasks(position, end)
    if not tasks:
        raise UserError(f"the stream is at its end already: position {position}, end {end}")

    def read(batch: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        for index in batch["id"]:
            yield read_window(plan, tasks[index], root)

    # A tiny amount of the resource: it selects the nodes, while the CPUs limit the number of tasks.
    where: dict[str, Any] = {"resources": {decode_resource: 0.001}} if decode_resource else {}
    # Few operators with small claims: Ray Data gives CPUs to the first ones, and with few CPUs the last ones would wait until
    # everything is read.
    dataset: Any = ray.data.from_items([{"id": index} for index in range(len(tasks))], override_num_blocks=len(tasks))
    dataset = dataset.map_batches(read, batch_size=1, num_cpus=0.5, **where)
    decoder = Decoder(image_size, _max_pixels(root)).__call__
    decode: dict[str, Any] = {"batch_size": config.micro_batch, "zero_copy_batch": True, "num_cpus": 1}
    exact: dict[str, Any] = {"target_num_rows_per_block": config.micro_batch, "strict": True}
    if where:  # not fused, since repartition takes no resources: only encoded images are cut into blocks
        dataset = dataset.repartition(**exact).map_batches(decoder, **decode, **where)
    else:  # fused into one operator, whose tasks take exactly the rows of a micro-batch
        dataset = dataset.map_batches(decoder, **decode).repartition(**exact)
    dataset.context.execution_options.preserve_order = True
    return prepare(dataset)


def _max_pixels(root: Location) -> int:
    return patiently(lambda: read_manifest(root).max_pixels, root.config.retry_timeout_s)


def segments(plan: StreamPlan, config: StreamConfig, position: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields consecutive parts (low, high) of [position, end) with about `segment_windows` windows each.

    Their lengths are multiples of the global batch, except for the last one.
    """
    rows_per_window = -(-plan.samples_per_epoch // plan.windows_per_epoch)
    length = max(1, config.segment_windows * rows_per_window // config.global_batch) * config.global_batch
    while position < end:
        yield position, min(position + length, end)
        position += length


def stream(
    plan: StreamPlan,
    config: StreamConfig,
    root: Location,
    image_size: tuple[int, int],
    position: int,
    end: int,
    decode_resource: str = "",
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the micro-batches of this worker in [position, end), from one Ray Data execution per segment. Collective.

    Reading starts at once, while the caller builds its model. `position` and `end` must be multiples of the global batch, so
    that all workers change to the next segment in the same step. Micro-batches are as `Decoder` returns them.
    """
    import torch.distributed as dist

    from platform.engine.runtime.collectives import broadcast_object

    def open_segment(low: int, high: int) -> Iterator[dict[str, np.ndarray]]:
        parts = None
        if dist.get_rank() == 0:
            dataset = build_dataset(plan, config, root, image_size, low, high, decode_resource)
            parts = dataset.streaming_split(dist.get_world_size(), equal=True)
        return begun(micro_batches(broadcast_object(parts)[dist.get_rank()], config))

    def all_of(first: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        yield from first
        for low, high in pieces:
            yield from open_segment(low, high)

    pieces = segments(plan, config, position, end)
    return all_of(open_segment(*next(pieces)))


def begun(batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """`batches`, with the first one fetched in a background thread from now on. The caller must not use `batches` itself."""
    pool = ThreadPoolExecutor(1)
    first = pool.submit(next, batches)
    pool.shutdown(wait=False)

    def rest() -> Iterator[dict[str, np.ndarray]]:
        yield first.result()
        yield from batches

    return rest()


def local_stream(
    plan: StreamPlan,
    config: StreamConfig,
    root: Location,
    image_size: tuple[int, int],
    position: int,
    end: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the same micro-batches, read in this process without Ray. It is the reference implementation of `stream`."""
    decode, waiting, number = Decoder(image_size, _max_pixels(root)), None, 0
    for task in plan.tasks(position, end):
        table = read_window(plan, task, root)
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        while waiting.num_rows >= config.micro_batch:
            if number % world == rank:
                rows = waiting.slice(0, config.micro_batch)
                yield decode({name: rows[name].to_numpy() for name in rows.column_names})
            waiting, number = waiting.slice(config.micro_batch), number + 1


def micro_batches(iterator: Any, config: StreamConfig, prefetch: int = 2) -> Iterator[dict[str, np.ndarray]]:
    """Yields the micro-batches of this worker in order. Raises RuntimeError if Ray Data delivers another block size."""
    for batch in iterator.iter_batches(batch_size=None, prefetch_batches=prefetch, batch_format="numpy"):
        if len(batch["key"]) != config.micro_batch:
            raise RuntimeError(
                f"the stream delivered a block of {len(batch['key'])} samples instead of "
                f"{config.micro_batch}: Ray Data no longer keeps strict blocks"
            )
        yield batch
