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
from platform.engine.errors import NotFoundError, UserError
from platform.engine.runtime.datasets import prepare
from platform.engine.runtime.growth import autoscales
from platform.engine.runtime.idle_gpus import tell_idle_gpus
from platform.engine.schemas.retrieval_settings import PoolConfig
from platform.engine.storage.location import Location, StorageConfig
from platform.engine.storage.parquet import from_parquet
from reidssl.data.decode import decode_batch

Batch = dict[str, np.ndarray]
LABELS = ("key", "pid", "camid", "split")


class FeatureActor:
    """Actor with one model, which returns the L2-normalized features of images.

    Args:
        model: URI of a run folder or checkpoint file.
        given: LoadConfig, what the file does not say.
        changes: overrides of the configuration of the backbone.
        precision, compiling: how the model computes, as in `Forward`.
        flip: average the features of image and mirror image.
    """

    def __init__(
        self,
        model: str,
        storage: StorageConfig,
        threads: int,
        given: Any = None,
        changes: dict[str, Any] | None = None,
        precision: str = "auto",
        compiling: str = "off",
        flip: bool = False,
    ) -> None:
        # Imported here: the tasks that read and decode import this file too, and importing torch takes long.
        from platform.engine.runtime.device import use_threads
        from platform.engine.runtime.imports import import_models

        import_models()
        from platform.engine.inference.models import load_model

        use_threads(threads)
        self.model = load_model(model, storage, given, precision=precision, compiling=compiling, **(changes or {}))
        self.flip = flip

    def __call__(self, batch: Batch) -> Batch:
        import torch

        with torch.inference_mode():
            images = torch.from_numpy(np.ascontiguousarray(batch["image"]))
            features = self.model.embed(images, batch["camid"], self.flip)
        return {name: batch[name] for name in ("key", "split", "file", "problem")} | {"feature": features.float().cpu().numpy()}


class InPieces:
    """Actor around another one, which gets the rows of a row group in even pieces of at most `batch` rows.

    A piece never spans two row groups. So the images of a forward pass, and with them the last bits of its results, do not depend
    on the number of actors or on what an interrupted run had finished.
    """

    def __init__(self, actor: type, arguments: dict[str, Any], batch: int) -> None:
        self.actor, self.batch = actor(**arguments), batch

    def __call__(self, rows: Batch) -> Iterator[Batch]:
        for piece in np.array_split(np.arange(len(rows["key"])), max(1, -(-len(rows["key"]) // self.batch))):
            if len(piece):
                yield self.actor({name: values[piece[0] : piece[-1] + 1] for name, values in rows.items()})


def stream_through_actors(
    sets: Sequence[tuple[Location, Sequence[FileEntry]]],
    actor: type,
    arguments: dict[str, Any],
    image_size: tuple[int, int],
    pool: PoolConfig,
    splits: Sequence[str] = (),
    resize: str = "bicubic",
) -> Iterator[Batch]:
    """Yields the batches that the actors compute from the rows of data sets, in the order of the sets and their shards.

    Args:
        sets: (data set, its shards to read). A batch has rows of one set, and one pool of actors serves all of them.
        actor: class that is built with `arguments` and called with batches {"image": uint8 (B, 3, H, W), "key", "pid", "camid",
            "split", "set" (place in `sets`), "file", "problem"}. It must return "key", "file" and "problem" unchanged.
        image_size: (height, width) of the decoded images.
        splits: read only rows of these splits; empty: all rows.
        resize: how the images are scaled, one of RESIZES.

    An undecodable image is passed as a gray image with its "problem", so that the rows match those of the shards. Its result is
    meaningless; SetAside.watch counts it. Raises UserError if an actor would take every CPU of the cluster and leave none for
    reading, or more GPUs than there are.
    """
    import ray

    units = [
        (place, entry.name, group)
        for place, (_, files) in enumerate(sets)
        for entry in files
        for group in range(len(entry.row_groups))
    ]
    actors = _pool_size(pool, len(units))
    tell_idle_gpus({"pool.gpus_per_actor": pool.gpus_per_actor})
    roots = [root for root, _ in sets]
    max_pixels = [read_manifest(root).max_pixels for root in roots]

    def read(batch: Batch) -> Iterator[Batch]:
        for index in batch["id"]:
            place, name, group = units[index]
            rows = _read_and_decode(roots[place], name, group, image_size, splits, max_pixels[place], resize)
            yield rows | {"set": np.full(len(rows["key"]), place)}

    dataset = ray.data.range(len(units), override_num_blocks=len(units))
    dataset = dataset.map_batches(read, batch_size=1, num_cpus=0.5)
    # Ray's `map_batches` takes no GPUs without a batch size, and with one it would join row groups. This is what it calls.
    dataset = dataset.map_batches_internal(
        InPieces,
        fn_constructor_kwargs={"actor": actor, "arguments": arguments, "batch": pool.batch},
        batch_size=None,
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(min_size=min(pool.min_actors, actors), max_size=actors),
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor or None,
    )
    dataset.context.execution_options.preserve_order = True
    yield from prepare(dataset).iter_batches(batch_size=None, batch_format="numpy")


def _read_and_decode(
    root: Location, name: str, group: int, image_size: tuple[int, int], splits: Sequence[str], max_pixels: int, resize: str
) -> Batch:
    table = _read_row_group(root / name, group)
    has_split = "split" in table.schema.names
    if splits:
        table = table.filter(pa.compute.is_in(table["split"], value_set=pa.array(list(splits))))
    keys = table["key"].to_pylist()
    images, reasons, _ = decode_batch(table["image"].to_pylist(), image_size, max_pixels, resize=resize)
    return {
        "image": images,
        "key": np.asarray(keys, dtype=object),
        "problem": problems_of(keys, reasons),
        "pid": table["pid"].to_numpy(),
        "camid": table["camid"].to_numpy(),
        "split": np.asarray(table["split"].to_pylist() if has_split else [""] * table.num_rows, dtype=object),
        "file": np.full(table.num_rows, name, dtype=object),
    }


def _read_row_group(shard: Location, group: int) -> pa.Table:
    def read(file: pq.ParquetFile) -> pa.Table:
        known = file.schema_arrow.names
        return file.read_row_group(group, columns=[name for name in known if name in (*LABELS, "image")])

    try:
        return from_parquet(shard, read)
    except NotFoundError as error:
        raise UserError(f"{error}. The data set names this shard: bring it back, or ingest the data set again") from None


def _pool_size(pool: PoolConfig, num_units: int) -> int:
    """Largest number of actors: what a cluster that cannot grow has room for beside reading, and no more than there is work."""
    import ray

    if autoscales():  # the pool asks for its actors, and the cluster grows with it
        return min(pool.actors, num_units)
    present = ray.cluster_resources()
    cpus, gpus = present.get("CPU", 0), present.get("GPU", 0)
    if pool.gpus_per_actor > gpus:
        raise UserError(
            f"one actor of {pool.gpus_per_actor:g} GPUs is more than the {gpus:g} of this Ray: lower pool.gpus_per_actor or "
            "connect to a cluster with more (runtime.address)"
        )
    if pool.cpus_per_actor > cpus - 1:
        raise UserError(
            f"one actor of {pool.cpus_per_actor:g} CPUs leaves no CPU of {cpus:g} for reading: lower "
            "pool.cpus_per_actor or start Ray with more CPUs (runtime.num_cpus)"
        )
    # Always leave one CPU: a pool that takes all of them starves the reading tasks, and the program hangs silently.
    affordable = int((cpus - 1) // pool.cpus_per_actor) if pool.cpus_per_actor else pool.actors
    placed = int(gpus / pool.gpus_per_actor + 1e-9) if pool.gpus_per_actor else pool.actors
    return max(1, min(pool.actors, affordable, placed, num_units))
