"""The sides of `python -m benchmarks.input_stream`: this project's sample stream, and a torch DataLoader."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

BATCH, GLOBAL = 64, (256, 128)


def rate_of(batches: Iterator[int], num_batches: int) -> dict[str, Any]:
    """Consumes batches (their sizes) and measures those after the first third.

    Reports images per second, processor time per image by kind of process, and the seconds until the first batch.
    """
    started, arrivals, before, after = time.perf_counter(), [], {}, {}
    for count in batches:
        arrivals.append((time.perf_counter(), count))
        if len(arrivals) == num_batches // 3:
            before = processor_seconds()
        if len(arrivals) == num_batches:  # while the workers still run
            after = processor_seconds()
    warm = num_batches // 3
    assert len(arrivals) == num_batches
    count = sum(count for _, count in arrivals[warm:])
    spent: dict[str, float] = {}
    for process, (kind, seconds) in after.items():
        spent[kind] = spent.get(kind, 0.0) + 1000 * (seconds - before.get(process, ("", 0.0))[1]) / count
    return {"rate": count / (arrivals[-1][0] - arrivals[warm - 1][0]), "first_batch": arrivals[0][0] - started, "spent": spent}


def processor_seconds() -> dict[int, tuple[str, float]]:
    """Process id -> (kind, processor seconds) of this process and all processes that it started."""
    import psutil

    kinds = {"ray::SplitCoordinator": "Ray Data's executor", "pt_data_worker": "workers", "raylet": "Ray", "gcs_server": "Ray"}
    found, own = {}, psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            name = (process.cmdline() or [""])[0] if process.name().startswith("ray::") else process.name()
            kind = "this process" if process == own else kinds.get(name, "tasks" if name.startswith("ray::") else "Ray")
            if name.startswith("ray::_") or "Agent" in name:
                kind = "Ray"
            times = process.cpu_times()
            found[process.pid] = (kind, times.user + times.system)
    return found


def crops_of(images: np.ndarray, keys: list[str]) -> int:
    """All crops of a batch, in as many threads as torch uses."""
    import torch

    from reidssl.augment.multicrop import MultiCrop, MultiCropConfig
    from reidssl.seeding import sample_seeds

    crops = MultiCrop(MultiCropConfig(global_size=GLOBAL, local_size=(128, 64), num_local=8))(
        torch.from_numpy(images), sample_seeds(0, 0, keys)
    )
    assert len(crops) == 10
    return len(images)


def stream(arguments: dict[str, Any]) -> Any:
    """This project's side."""
    import torch
    import torch.distributed as dist

    from platform.engine.runtime.ray_session import RuntimeConfig, connect
    from platform.engine.storage.location import StorageConfig, open_storage
    from platform.engine.stream.order import StreamConfig, StreamPlan
    from platform.engine.stream.stream import stream as sample_stream
    from platform.engine.stream.units import read_units

    torch.set_num_threads(os.cpu_count() or 1)
    crops_of(np.zeros((2, 3, *GLOBAL), np.uint8), ["a", "b"])  # compiled before the timing, on either side
    root = open_storage(arguments["shards"], StorageConfig(endpoint_url=arguments["endpoint"]))
    config = StreamConfig(micro_batch=BATCH, micro_batches_per_step=1)
    plan = StreamPlan(tuple(read_units(root)), 0, 4, arguments["epochs"])
    connect(RuntimeConfig())
    rendezvous = tempfile.mkdtemp()
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}/file", rank=0, world_size=1)
    num = plan.samples_per_epoch * plan.num_epochs // BATCH

    def work() -> dict[str, Any]:
        return rate_of(
            (crops_of(batch["image"], list(batch["key"])) for batch in sample_stream(plan, config, root, GLOBAL, 0, num * BATCH)),
            num,
        )

    return work, lambda found: found


class Files:
    """A data set as users write it, with one file or one object per image."""

    def __init__(self, uris: list[str], endpoint: str) -> None:
        self.uris, self.endpoint, self.client = uris, endpoint, None

    def __len__(self) -> int:
        return len(self.uris)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        from reidssl.data.decode import decode_image

        return decode_image(self.read(self.uris[index]), GLOBAL), self.uris[index]

    def read(self, uri: str) -> bytes:
        if not uri.startswith("s3://"):
            return Path(uri).read_bytes()
        if self.client is None:  # one connection for each worker
            import boto3

            self.client = boto3.client("s3", endpoint_url=self.endpoint)
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return self.client.get_object(Bucket=bucket, Key=key)["Body"].read()


class Collate:
    """Stacks the images of a batch, and makes the crops if the workers make them."""

    def __init__(self, crop: bool) -> None:
        self.crop = crop

    def __call__(self, rows: list[tuple[np.ndarray, str]]) -> Any:
        images, keys = np.stack([image for image, _ in rows]), [key for _, key in rows]
        if not self.crop:
            return images, keys
        import torch

        from reidssl.augment.multicrop import MultiCrop, MultiCropConfig
        from reidssl.seeding import sample_seeds

        return MultiCrop(MultiCropConfig(global_size=GLOBAL, local_size=(128, 64), num_local=8))(
            torch.from_numpy(images), sample_seeds(0, 0, keys)
        )


def loader(arguments: dict[str, Any]) -> Any:
    """The other side: the DataLoader with one of the settings."""
    import warnings

    import torch

    warnings.filterwarnings("ignore")  # torch warns of more workers than cores, which are tried here
    torch.set_num_threads(os.cpu_count() or 1)
    crops_of(np.zeros((2, 3, *GLOBAL), np.uint8), ["a", "b"])
    in_workers = arguments["where"] == "workers"
    random, files = np.random.default_rng(0), arguments["files"]
    order = np.concatenate([random.permutation(len(files)) for _ in range(arguments["epochs"])])  # no pause between epochs
    batches = torch.utils.data.DataLoader(
        Files(files, arguments["endpoint"]),
        BATCH,
        sampler=order.tolist(),
        drop_last=True,
        num_workers=arguments["workers"],
        collate_fn=Collate(in_workers),
        prefetch_factor=4,
    )

    def work() -> dict[str, Any]:
        return rate_of((len(batch[0]) if in_workers else crops_of(*batch) for batch in batches), len(order) // BATCH)

    return work, lambda found: found
