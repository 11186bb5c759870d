"""Labeled images of a data set in memory: encoded, and also decoded if they fit."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from platform.engine.data.set_aside import SetAside, problems_of
from platform.engine.data.shards import read_manifest, read_rows
from platform.engine.errors import UserError
from platform.engine.runtime.device import device
from platform.engine.storage.location import Location
from reidssl.data.decode import DecodedBatch, decode_batch

CHUNK = 1024


class ImageSet:
    """Images with keys, identities and cameras. Undecodable images are left out.

    keys: list of str; pids, camids: int64 (N,); problems: a line with the reason for each image left out. Encoded images stay in
    Arrow memory (about 4 kB per image at 128x64). Decoded images are kept if all of them fit into `cache_gib`. Otherwise the
    constructor decodes every image once to find the undecodable ones, and `batch` decodes them again. resize: how the images are
    scaled, one of RESIZES. Raises UserError if the splits have no images, or if more than `max_corrupt_share` of the images (and
    more than one) are undecodable.
    """

    def __init__(
        self,
        location: Location,
        splits: Sequence[str],
        image_size: tuple[int, int],
        *,
        cache_gib: float = 2.0,
        threads: int = 2,
        max_corrupt_share: float = 0.01,
        resize: str = "bicubic",
    ) -> None:
        import pyarrow as pa

        columns = ["key", "image", "pid", "camid", "split"]
        table = pa.concat_tables([read_rows(location, columns, split=split) for split in splits])
        wanted = f"split {' or '.join(splits)}"
        if table.num_rows == 0:
            raise UserError(f"{location.uri} has no images of {wanted}; its manifest.json lists the splits it has")
        self.location, self.splits, self.image_size, self.resize = location, tuple(splits), image_size, resize
        self._encoded, self._threads = table["image"], threads
        self._max_pixels = read_manifest(location).max_pixels
        kept = table.num_rows * 3 * image_size[0] * image_size[1] <= cache_gib * 2**30
        reasons = self._decode_all(kept)
        good = np.asarray([not reason for reason in reasons])
        set_aside = SetAside(f"{location.uri}, {wanted}", len(good), max_corrupt_share, "max_corrupt_share")
        self.problems = set_aside.add(problems_of(table["key"].to_pylist(), reasons))
        self._rows = np.flatnonzero(good)
        self.keys: list[str] = table["key"].filter(good).to_pylist()
        self.pids: np.ndarray = table["pid"].to_numpy().astype(np.int64)[good]
        self.camids: np.ndarray = table["camid"].to_numpy().astype(np.int64)[good]
        self.split: np.ndarray = np.asarray(table["split"].to_pylist())[good]
        self.camera_rows: np.ndarray | None = None
        """Row int64 (N,) of the model's camera embeddings for each image; None: the model has no camera embeddings."""

    def __len__(self) -> int:
        return len(self.keys)

    def keep(self, chosen: np.ndarray) -> None:
        """Leave out the images that `chosen`, bool (N,), does not select."""
        self.keys = [key for key, kept in zip(self.keys, chosen, strict=True) if kept]
        self._rows, self.pids, self.camids = self._rows[chosen], self.pids[chosen], self.camids[chosen]
        self.split = self.split[chosen]
        self.camera_rows = None if self.camera_rows is None else self.camera_rows[chosen]

    def encoded(self, index: int) -> bytes:
        """The original bytes of an image."""
        return self._encoded[int(self._rows[index])].as_py()

    def batch(self, indices: np.ndarray) -> Tensor:
        """Decoded images uint8 (B, 3, H, W), on the CPU. indices: int (B,)."""
        if self._decoded is not None:
            return torch.from_numpy(self._decoded[self._rows[indices]])
        return torch.from_numpy(self._decode([self.encoded(index) for index in indices]).images)

    def cameras(self, indices: np.ndarray) -> Tensor | None:
        """Rows int64 (B,) of the camera embeddings, on the device; None for a model without camera embeddings."""
        return None if self.camera_rows is None else torch.from_numpy(self.camera_rows[indices]).to(device())

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yields all images in order, uint8 (at most `size`, 3, H, W)."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))

    def _decode(self, encoded: Sequence[bytes]) -> DecodedBatch:
        return decode_batch(encoded, self.image_size, self._max_pixels, self._threads, self.resize)

    def _decode_all(self, kept: bool) -> list[str]:
        """The reason why each image cannot be decoded, "" if it can. With `kept`, the decoded pixels are stored."""
        count, reasons = len(self._encoded), list[str]()
        self._decoded = np.empty((count, 3, *self.image_size), np.uint8) if kept else None
        for start in range(0, count, CHUNK):
            found = self._decode(self._encoded.slice(start, CHUNK).to_pylist())
            reasons += found.reasons
            if self._decoded is not None:
                self._decoded[start : start + len(found.images)] = found.images
        return reasons
