"""Stream a data set through a pool of model actors: Ray Data reads and decodes, actors compute, rows come back in order.

Images are large, features and scores are small. Images go from the reading tasks to the actors through the object store
once, and only keys and results travel to the driver.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from platform.engine.data.set_aside import problems_of
from platform.engine.data.shards import FileEntry, read_manifest
from platform.engine.errors import UserError
from platform.engine.schemas.retrieval_settings import PoolConfig
from platform.engine.storage.location import Location, StorageConfig
from reidssl.data.decode import decode_batch

Batch = dict[str, np.ndarray]


class FeatureActor:
    """Actor with one model, which returns the L2-normalized features of images.

    Args:
        model: URI of a run folder or checkpoint file.
        given: LoadConfig, what the file does not say.
        changes: overrides of the configuration of the backbone.
        flip: average the features of image and mirror image.
    """

    def __init__(
        self,
        model: str,
        storage: StorageConfig,
        threads: int,
        given: Any = None,
        changes: dict[str, Any] | None = None,
        flip: bool = False,
    ) -> None:
        # Imported here: the tasks that read and decode import this file too, and importing torch takes long.
        from platform.engine.runtime.device import use_threads
        from platform.engine.runtime.imports import import_models

        import_models()
        from platform.engine.inference.models import load_model

        use_threads(threads)
        self.model = load_model(model, storage, given, **(changes or {}))
        self.flip = flip

    def __call__(self, batch: Batch) -> Batch:
        import torch

        with torch.inference_mode():
            images = torch.from_numpy(np.ascontiguousarray(batch["image"]))
            features = self.model.embed(images, batch["camid"], self.flip)
        return {name: batch[name] for name in ("key", "split", "file", "problem")} | {"feature": features.float().cpu().numpy()}


def stream_through_actors(
    root: Location,
    files: Sequence[FileEntry],
    actor: type,
    arguments: dict[str, Any],
    image_size: tuple[int, int],
    pool: PoolConfig,
    splits: Sequence[str] = (),
) -> Iterator[Batch]:
    """Yields the batches that the actors compute from the rows of `files`, in the order of the shards.

    Args:
        actor: class that is built with `arguments` and called with batches {"image": uint8 (B, 3, H, W), "key", "pid", "camid",
            "split", "file", "problem"}. It must return "key", "file" and "problem" unchanged.
        image_size: (height, width) of the decoded images.
        splits: read only rows of these splits; empty: all rows.

    An undecodable image is passed as a gray image with its "problem", so that the rows match those of the shards. Its result is
    meaningless; SetAside.watch counts it. Raises UserError if an actor would take every CPU of the cluster and leave none for
    reading.
    """
    import ray

    units = [(entry.name, group) for entry in files for group in range(len(entry.row_groups))]
    actors = _pool_size(pool, len(units))
    max_pixels = read_manifest(root).max_pixels

    def read(batch: Batch) -> Iterator[Batch]:
        for index in batch["id"]:
            name, group = units[index]
            yield _read_and_decode(root, name, group, image_size, splits, max_pixels)

    dataset = ray.data.range(len(units), override_num_blocks=len(units))
    dataset = dataset.map_batches(read, batch_size=1, num_cpus=0.5)
    dataset = dataset.map_batches(
        actor,
        fn_constructor_kwargs=arguments,
        batch_size=pool.batch,
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor or None,
    )
    dataset.context.execution_options.preserve_order = True
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy")


def _read_and_decode(
    root: Location, name: str, group: int, image_size: tuple[int, int], splits: Sequence[str], max_pixels: int
) -> Batch:
    columns = ["key", "image", "pid", "camid"]
    shard = root.joinpath(name)
    with shard.open_input() as opened, shard.errors("read"):
        file = pq.ParquetFile(opened)
        has_split = "split" in file.schema_arrow.names
        table = file.read_row_group(group, columns=columns + (["split"] if has_split else []))
    if splits:
        table = table.filter(pa.compute.is_in(table["split"], value_set=pa.array(list(splits))))
    keys = table["key"].to_pylist()
    images, reasons = decode_batch(table["image"].to_pylist(), image_size, max_pixels)
    return {
        "image": images,
        "key": np.asarray(keys, dtype=object),
        "problem": problems_of(keys, reasons),
        "pid": table["pid"].to_numpy(),
        "camid": table["camid"].to_numpy(),
        "split": np.asarray(table["split"].to_pylist() if has_split else [""] * table.num_rows, dtype=object),
        "file": np.full(table.num_rows, name, dtype=object),
    }


def _pool_size(pool: PoolConfig, num_units: int) -> int:
    import ray

    cpus = ray.cluster_resources().get("CPU", 0)
    if pool.cpus_per_actor > cpus - 1:
        raise UserError(
            f"one actor of {pool.cpus_per_actor:g} CPUs leaves no CPU of {cpus:g} for reading: lower "
            "pool.cpus_per_actor or start Ray with more CPUs (runtime.num_cpus)"
        )
    # Always leave one CPU: a pool that takes all of them starves the reading tasks, and the program hangs silently.
    affordable = int((cpus - 1) // pool.cpus_per_actor) if pool.cpus_per_actor else pool.actors
    return max(1, min(pool.actors, affordable, num_units))
