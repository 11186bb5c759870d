"""The input of pre-training, from images in storage to crops: the sample stream against a torch DataLoader.

  python -m benchmarks.input_stream            1,024 images, 16 epochs from local files and 2 from S3
  python -m benchmarks.input_stream --full     8,192 images, 4 epochs and 1

Input: JPEGs of 256 x 128. Output: batches of 64 with 2 crops of 256 x 128 and 8 of 128 x 64. This project reads shards with Ray
Data, which shuffles and decodes, and then makes the crops with MultiCrop. The other side reads the same JPEGs as one file each,
shuffled by a DataLoader, with the same decoding and MultiCrop. It is tuned: the fastest of several settings counts, which
differ in the number of workers and make the crops in the workers or in the main process. Images come from local files, and from
an S3 server on this machine (moto in its own process, which shares the cores). From S3 the DataLoader fetches one object per
image, this project whole row groups. Epochs follow each other without a pause on either side. Rates are those of the batches
after the first third, in which processes start and queues fill. Processor time per image is reported by kind of process.
"""

import io
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measure import arguments_of, measure, print_machine
from benchmarks.people import write_shards
from benchmarks.s3 import BUCKET, client_of, s3_server, upload
from benchmarks.table import Row

BATCH, GLOBAL = 64, (256, 128)
SIZES = {
    "tiny": {"num": 192, "local": 2, "s3": 2},
    "quick": {"num": 1024, "local": 16, "s3": 2},
    "full": {"num": 8192, "local": 4, "s3": 1},
}
TUNING = [(workers, where) for where in ("workers", "main") for workers in (1, 2, 3)]


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


def make_data(folder: str, num: int, put: Any) -> list[str]:
    """Write shards with platform.ingest, and the same images one by one with `put(name, bytes)`; returns the results of `put`."""
    from platform.engine.data.shards import read_rows
    from platform.engine.storage.location import open_storage

    write_shards(f"{folder}/shards", "[256,128]", num, "row_group_rows=64")
    table = read_rows(open_storage(f"{folder}/shards"), ["key", "image"])
    return [put(f"{number:06d}.jpg", data) for number, data in enumerate(table["image"].to_pylist())]


class Place(NamedTuple):
    """Where the images of a comparison are."""

    title: str
    shards: str
    files: list[str]
    endpoint: str
    """Of the S3 server; "" for local files."""
    epochs: int


class Compared(NamedTuple):
    """The results of `rate_of`: of this project, and of the DataLoader by (workers, where the crops are made)."""

    ours: dict[str, Any]
    loaders: dict[tuple[int, str], dict[str, Any]]

    @property
    def best(self) -> tuple[int, str]:
        """Setting of the fastest DataLoader."""
        return max(self.loaders, key=lambda setting: self.loaders[setting]["rate"])

    @property
    def ratio(self) -> float:
        """Rate of this project / that of the fastest DataLoader."""
        return float(self.ours["rate"] / self.loaders[self.best]["rate"])


def compare(place: Place, tuning: list[tuple[int, str]]) -> Compared:
    """Run both sides, each setting in its own process."""
    common = {"endpoint": place.endpoint, "epochs": place.epochs}
    ours = measure(__spec__.name, "stream", common | {"shards": place.shards}).numbers
    settings = {setting: common | {"files": place.files, "workers": setting[0], "where": setting[1]} for setting in tuning}
    return Compared(ours, {setting: measure(__spec__.name, "loader", given).numbers for setting, given in settings.items()})


def print_compared(title: str, found: Compared) -> None:
    """Print all rates and the processor time."""
    ours, best = found.ours, found.loaders[found.best]
    print(f"\n{title}")
    print(f"  {'sample stream':<37} {ours['rate']:8.1f} images/s   first batch after {ours['first_batch']:5.1f} s")
    for (workers, where), numbers in found.loaders.items():
        print(
            f"  DataLoader, {workers} workers, crops in {where:<8} {numbers['rate']:8.1f} images/s   first batch after "
            f"{numbers['first_batch']:5.1f} s"
        )
    print(f"  ratio to the fastest DataLoader       {found.ratio:8.2f}")
    for name, numbers in (("sample stream", ours), ("fastest DataLoader", best)):
        spent = ", ".join(f"{kind} {value:.2f}" for kind, value in sorted(numbers["spent"].items(), key=lambda item: -item[1]))
        print(f"    processor ms an image, {name}: {spent}")


@contextmanager
def places(size: dict[str, Any]) -> Iterator[list[Place]]:
    """The same images as local files and on an S3 server of this machine."""
    with tempfile.TemporaryDirectory() as folder, s3_server() as endpoint:
        client = client_of(endpoint)
        Path(folder, "files").mkdir()

        def put(name: str, data: bytes) -> str:
            Path(folder, "files", name).write_bytes(data)
            client.upload_fileobj(io.BytesIO(data), BUCKET, f"files/{name}")
            return name

        names = make_data(folder, size["num"], put)
        upload(Path(folder, "shards"), endpoint)
        local, remote = ([f"{root}/files/{name}" for name in names] for root in (folder, f"s3://{BUCKET}"))
        yield [
            Place("from local files", f"{folder}/shards", local, "", size["local"]),
            Place("from an S3 server on this machine", f"s3://{BUCKET}/shards", remote, endpoint, size["s3"]),
        ]


def rows(size: str) -> Iterator[Row]:
    """Rows of the table of `make bench`. size: a key of SIZES."""
    tuning = TUNING[:1] if size == "tiny" else TUNING
    with places(SIZES[size]) as found:
        for place in found:
            compared = compare(place, tuning)
            ours, best, (workers, where) = compared.ours, compared.loaders[compared.best], compared.best
            yield Row(
                f"input {place.title}, sample stream",
                ours["rate"],
                "images/s",
                f"{compared.ratio:.2f} of the fastest DataLoader; first batch after {ours['first_batch']:.1f} s",
            )
            yield Row(
                f"input {place.title}, fastest of {len(tuning)} DataLoaders",
                best["rate"],
                "images/s",
                f"{workers} workers, crops in {where}; first batch after {best['first_batch']:.1f} s",
            )


def main() -> None:
    size = "full" if arguments_of(__doc__).full else "quick"
    print_machine()
    with places(SIZES[size]) as found:
        for place in found:
            print_compared(place.title, compare(place, TUNING))


if __name__ == "__main__":
    main()
