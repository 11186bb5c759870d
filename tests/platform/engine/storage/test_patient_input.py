"""Files read in large pieces and with patience: few requests, equal bytes, and no image is lost while storage fails."""

import io
import tarfile
from collections.abc import Iterator

import numpy as np
import pytest

from platform.engine.errors import NotFoundError, StorageError
from platform.engine.ingest.sources.image_tree import FileSource
from platform.engine.ingest.sources.source import encode_image
from platform.engine.ingest.sources.tar_archives import TarSource, TarUnit
from platform.engine.ingest.sources.video_crops import VideoSource, VideoUnit
from platform.engine.storage import patient_input
from platform.engine.storage.location import Location, StorageConfig, open_storage
from platform.engine.storage.patient_input import open_patiently
from reidssl.data import folder
from reidssl.data.mot import CropConfig, Detections
from reidssl.data.records import Record
from tests.platform.engine.storage.unsteady import UnsteadyStore, unsteady_store

BYTES = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
PICTURES = [encode_image(np.full((64, 32, 3), 40 * index, np.uint8), "jpeg") for index in range(5)]


def tar_of(pictures: list[bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for index, data in enumerate(pictures):
            info = tarfile.TarInfo(f"{index}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def video_of(count: int) -> bytes:
    import av

    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 64
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * index, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return sink.getvalue()


@pytest.fixture
def store() -> Iterator[UnsteadyStore]:
    objects = {"bytes": BYTES, "in/a.tar": tar_of(PICTURES), "in/0.jpg": PICTURES[0], "in/clip.mp4": video_of(6)}
    with unsteady_store(objects) as running:
        yield running


def location(store: UnsteadyStore, name: str, retry_timeout_s: float = 30.0) -> Location:
    config = StorageConfig(endpoint_url=store.endpoint, max_attempts=1, retry_timeout_s=retry_timeout_s)
    return open_storage(f"s3://bucket/{name}", config)


def test_small_reads_are_few_requests(store, monkeypatch):
    with open_patiently(location(store, "bytes")) as file:
        assert b"".join(iter(lambda: file.read(1000), b"")) == BYTES
    assert store.reads == 1
    monkeypatch.setattr(patient_input, "PIECE_BYTES", 100_000)
    with open_patiently(location(store, "bytes")) as file:
        assert b"".join(iter(lambda: file.read(1000), b"")) == BYTES
    assert store.reads == 1 + 3


def test_positions(store, monkeypatch):
    monkeypatch.setattr(patient_input, "PIECE_BYTES", 1000)
    with open_patiently(location(store, "bytes")) as file, io.BytesIO(BYTES) as same:
        for offset, whence, count in ((250_000, 0, 10), (-7, 2, 100), (5, 0, 2500), (40, 1, 3), (-10, 1, 3), (400_000, 0, 5)):
            assert file.seek(offset, whence) == same.seek(offset, whence)
            assert file.read(count) == same.read(count) and file.tell() == same.tell()
        with pytest.raises(ValueError, match="negative"):
            file.seek(-1)


def test_local_files_too(tmp_path):
    (tmp_path / "x").write_bytes(BYTES)
    with open_patiently(open_storage(str(tmp_path / "x"))) as file:
        assert file.read() == BYTES
    with pytest.raises(StorageError, match="does not exist"):
        open_patiently(open_storage(str(tmp_path / "y")))


BOXES = Detections(np.arange(1, 5), np.arange(4), np.tile([8.0, 8.0, 32.0, 48.0], (4, 1)), np.ones(4))
CROPS = CropConfig(min_height=8)


def read_all(root: Location, kind: str) -> list[tuple[str, bytes, str]]:
    """(key, image, error) of each candidate that a source of this kind reads from its unit in the store."""
    if kind == "tar":
        found = TarSource(root).read(TarUnit("a.tar", "a", 0))
    elif kind == "image":
        found = FileSource(root, folder.index, 8).read([Record("0.jpg", 1, 1, "train")])
    else:
        found = VideoSource(root, root, CROPS, "png", 95).read(VideoUnit("clip.mp4", "clip", BOXES, []))
    return [(each.key, each.image, each.error) for each in found]


@pytest.mark.parametrize(("kind", "count"), [("tar", 5), ("image", 1), ("video", 4)])
def test_storage_that_fails_for_a_while_loses_no_image(store, kind, count):
    calm = read_all(location(store, "in"), kind)
    assert len(calm) == count and all(image and not error for _, image, error in calm)
    store.failures = 2
    assert read_all(location(store, "in"), kind) == calm and store.failures == 0


@pytest.mark.parametrize("kind", ["tar", "image", "video"])
def test_storage_that_fails_for_good_ends_the_job_and_blames_no_image(store, kind):
    store.failures = 1000
    with pytest.raises(StorageError, match="cannot read s3://bucket/in/") as error:
        read_all(location(store, "in", retry_timeout_s=0.6), kind)
    assert error.value.transient and store.failures <= 998


def test_an_object_that_changes_while_it_is_read(store):
    """Asking again would give the same answer: no such object, or a range that it does not have any more (HTTP status 416)."""
    with open_patiently(location(store, "bytes")) as file:
        file.seek(1000)
        store.objects["bytes"] = b"short"
        with pytest.raises(StorageError, match="416") as error:
            file.read(10)
        assert not error.value.transient
        del store.objects["bytes"]
        with pytest.raises(NotFoundError, match="cannot read s3://bucket/bytes: it does not exist"):
            file.read(10)
    assert store.reads == 1
