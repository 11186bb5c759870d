"""The input of pre-training, from images in storage to crops: the sample stream against a torch DataLoader.

  python -m benchmarks.input_stream            1,024 images, 8 epochs from local files and 2 from S3
  python -m benchmarks.input_stream --full     8,192 images, 4 epochs and 1

Input: JPEGs of 256 x 128. Output: batches of 64 with 2 crops of 256 x 128 and 8 of 128 x 64. This project reads shards with Ray
Data, which shuffles and decodes, and then makes the crops with MultiCrop. The other side reads the same JPEGs as one file each,
shuffled by a DataLoader, with the same decoding and MultiCrop. It is tuned: the setting that is fastest over one epoch counts,
of several that differ in the number of workers and make the crops in the workers or in the main process. Images come from local
files, and from an S3 server on this machine (moto in its own process, which shares the cores). From S3 the DataLoader fetches
one object per image, this project whole row groups. Epochs follow each other without a pause on either side. Rates are those of
the batches after the first third, in which processes start and queues fill. Processor time per image is reported by kind of
process.
"""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import input_stream_sides
from benchmarks.measure import arguments_of, measure, print_machine
from benchmarks.people import write_shards
from benchmarks.s3 import BUCKET, client_of, s3_server, upload
from benchmarks.table import Row

SIZES = {
    "tiny": {"num": 192, "local": 2, "s3": 2},
    "quick": {"num": 1024, "local": 8, "s3": 2},
    "full": {"num": 8192, "local": 4, "s3": 1},
}
TUNING = [(workers, where) for where in ("workers", "main") for workers in (1, 2, 3)]
TUNING_EPOCHS = 1


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
    """The results of `rate_of`; the settings of the DataLoader are (workers, where the crops are made)."""

    ours: dict[str, Any]
    best: tuple[int, str]
    """The setting of the DataLoader that was fastest in short runs."""
    loader: dict[str, Any]
    """Of that setting."""
    tried: dict[tuple[int, str], dict[str, Any]]
    """Of the short runs."""

    @property
    def ratio(self) -> float:
        """Rate of this project / that of the fastest DataLoader."""
        return float(self.ours["rate"] / self.loader["rate"])


def compare(place: Place, tuning: list[tuple[int, str]]) -> Compared:
    """Run this project, short runs of the DataLoader in each setting, and the fastest one at length; each in its own process."""

    def loader(setting: tuple[int, str], epochs: int) -> dict[str, Any]:
        given = {"files": place.files, "endpoint": place.endpoint, "workers": setting[0], "where": setting[1], "epochs": epochs}
        return measure(input_stream_sides.__name__, "loader", given).numbers

    given = {"shards": place.shards, "endpoint": place.endpoint, "epochs": place.epochs}
    ours = measure(input_stream_sides.__name__, "stream", given).numbers
    tried = {setting: loader(setting, min(TUNING_EPOCHS, place.epochs)) for setting in tuning}
    best = max(tried, key=lambda setting: tried[setting]["rate"])
    return Compared(ours, best, tried[best] if place.epochs <= TUNING_EPOCHS else loader(best, place.epochs), tried)


def print_compared(title: str, found: Compared) -> None:
    """Print all rates and the processor time."""
    ours = found.ours
    print(f"\n{title}")
    print(f"  {'sample stream':<37} {ours['rate']:8.1f} images/s   first batch after {ours['first_batch']:5.1f} s")
    for (workers, where), numbers in [*found.tried.items(), (found.best, found.loader)]:
        print(
            f"  DataLoader, {workers} workers, crops in {where:<8} {numbers['rate']:8.1f} images/s   first batch after "
            f"{numbers['first_batch']:5.1f} s"
        )
    print(f"  ratio to the fastest DataLoader, at length {found.ratio:3.2f}")
    for name, numbers in (("sample stream", ours), ("fastest DataLoader", found.loader)):
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
            ours, best, (workers, where) = compared.ours, compared.loader, compared.best
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
