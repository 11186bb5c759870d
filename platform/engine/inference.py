"""A data set streamed through a pool of model actors: Ray Data reads and decodes, actors compute, rows come back in order.

Features and scores are small, images are not: images go from the reading tasks to the actors through the object store
once, and only keys and results travel to the driver.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from platform.engine.errors import UserError
from platform.engine.shards import FileEntry
from platform.engine.storage import Location, StorageConfig
from platform.engine.windows import decode_image

Batch = dict[str, np.ndarray]


@dataclass(kw_only=True)
class PoolConfig:
    """The actors that hold the models."""

    actors: int = 2
    """Most actors; the pool grows to it while there is work."""
    batch: int = 256
    """Images in one forward pass."""
    cpus_per_actor: float = 1.0
    """CPUs reserved for an actor."""
    gpus_per_actor: float = 0.0
    """GPUs reserved for an actor; fractions share one."""

    def __post_init__(self) -> None:
        for name in ("actors", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if self.cpus_per_actor < 0 or self.gpus_per_actor < 0:
            raise ValueError("cpus_per_actor and gpus_per_actor must not be negative: "
                             f"got {self.cpus_per_actor}, {self.gpus_per_actor}")


class Embedder:
    """Actor: one model, L2-normalised features. given: what its file does not say; changes: to its backbone's configuration."""

    def __init__(self, model: str, storage: StorageConfig, threads: int, given: Any = None,
                 changes: dict[str, Any] | None = None) -> None:
        # Not above: the tasks that read and decode import this file, and torch takes long.
        from platform.engine.device import use_threads
        from platform.engine.imports import import_models

        import_models()
        from platform.engine.models import load_model

        use_threads(threads)
        self.model = load_model(model, storage, given, **(changes or {}))

    def __call__(self, batch: Batch) -> Batch:
        import torch

        with torch.inference_mode():
            features = self.model.embed(torch.from_numpy(np.ascontiguousarray(batch["image"])), batch["camid"])
        return {name: batch[name] for name in ("key", "split", "file")} | {"feature": features.float().cpu().numpy()}


def stream_through_actors(root: Location, files: Sequence[FileEntry], actor: type, arguments: dict[str, Any],
                          image_size: tuple[int, int], pool: PoolConfig, splits: Sequence[str] = ()) -> Iterator[Batch]:
    """Rows of `files` through `actor(**arguments)` called with {"image": uint8 (B, 3, H, W), "key", "split", ...}.

    splits: only rows of these; empty: all.

    Yields the actor's batches in the order of the shards. The actor must return "key" and "file" unchanged.
    Raises UserError if the pool would take every CPU of the cluster, which would leave none for reading.
    """
    import ray

    units = [(entry.name, group) for entry in files for group in range(len(entry.row_groups))]
    actors = _pool_size(pool, len(units))

    def read(batch: Batch) -> Iterator[Batch]:
        for index in batch["id"]:
            name, group = units[index]
            yield _read_and_decode(root, name, group, image_size, splits)

    dataset = ray.data.range(len(units), override_num_blocks=len(units))
    dataset = dataset.map_batches(read, batch_size=1, num_cpus=0.5)
    dataset = dataset.map_batches(
        actor, fn_constructor_kwargs=arguments, batch_size=pool.batch, zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=pool.cpus_per_actor, num_gpus=pool.gpus_per_actor or None)
    dataset.context.execution_options.preserve_order = True
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy")


def _read_and_decode(root: Location, name: str, group: int, image_size: tuple[int, int], splits: Sequence[str]) -> Batch:
    columns = ["key", "image", "pid", "camid"]
    with root.joinpath(name).open_input() as opened:
        file = pq.ParquetFile(opened)
        has_split = "split" in file.schema_arrow.names
        table = file.read_row_group(group, columns=columns + (["split"] if has_split else []))
    if splits:
        table = table.filter(pa.compute.is_in(table["split"], value_set=pa.array(list(splits))))
    images = np.empty((table.num_rows, 3, *image_size), np.uint8)
    for index, (key, data) in enumerate(zip(table["key"].to_pylist(), table["image"].to_pylist(), strict=True)):
        try:
            images[index] = decode_image(data, image_size)
        except Exception as error:
            raise UserError(f"image '{key}' in {name} cannot be decoded ({error}): ingest the data set again") from None
    return {"image": images, "key": np.asarray(table["key"].to_pylist(), dtype=object),
            "pid": table["pid"].to_numpy(), "camid": table["camid"].to_numpy(),
            "split": np.asarray(table["split"].to_pylist() if has_split else [""] * table.num_rows, dtype=object),
            "file": np.full(table.num_rows, name, dtype=object)}


def _pool_size(pool: PoolConfig, num_units: int) -> int:
    import ray

    cpus = ray.cluster_resources().get("CPU", 0)
    if pool.cpus_per_actor > cpus - 1:
        raise UserError(f"one actor of {pool.cpus_per_actor:g} CPUs leaves no CPU of {cpus:g} for reading: lower "
                        "pool.cpus_per_actor or start Ray with more CPUs (runtime.num_cpus)")
    # A pool that takes every CPU starves the reading tasks and hangs without a word: always leave one.
    affordable = int((cpus - 1) // pool.cpus_per_actor) if pool.cpus_per_actor else pool.actors
    return max(1, min(pool.actors, affordable, num_units))
