"""Labelled images of a data set in memory: encoded bytes, decoded on demand and kept while they are few."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from platform.engine.device import device
from platform.engine.errors import UserError
from platform.engine.shards import read_rows
from platform.engine.storage import Location
from platform.engine.windows import decode_image


class ImageSet:
    """Images with keys, identities and cameras.

    keys: list of str; pids, camids: int64 (N,); encoded images stay in Arrow memory (about 4 kB an image at 128x64), and
    decoded ones are kept if all of them fit into `cache_gib`.
    """

    def __init__(self, location: Location, splits: Sequence[str], image_size: tuple[int, int], *,
                 cache_gib: float = 2.0, threads: int = 2) -> None:
        import pyarrow as pa

        columns = ["key", "image", "pid", "camid", "split"]
        table = pa.concat_tables([read_rows(location, columns, split=split) for split in splits])
        if table.num_rows == 0:
            raise UserError(f"{location.uri} has no images of split {' or '.join(splits)}; "
                            "its manifest.json lists the splits it has")
        self.location, self.splits, self.image_size = location, tuple(splits), image_size
        self.keys: list[str] = table["key"].to_pylist()
        self.pids: np.ndarray = table["pid"].to_numpy().astype(np.int64)
        self.camids: np.ndarray = table["camid"].to_numpy().astype(np.int64)
        self.split: np.ndarray = np.asarray(table["split"].to_pylist())
        self.camera_rows: np.ndarray | None = None
        """int64 (N,), rows of the model's camera embeddings; None: the model has none."""
        self._encoded = table["image"]
        self._threads = threads
        size = len(self.keys) * 3 * image_size[0] * image_size[1]
        self._decoded: np.ndarray | None = None
        if size <= cache_gib * 2**30:
            self._decoded = self._decode(np.arange(len(self.keys)))

    def __len__(self) -> int:
        return len(self.keys)

    def encoded(self, index: int) -> bytes:
        """Original JPEG or PNG bytes."""
        return self._encoded[int(index)].as_py()

    def batch(self, indices: np.ndarray) -> Tensor:
        """uint8 (B, 3, H, W)."""
        if self._decoded is not None:
            return torch.from_numpy(self._decoded[indices])
        return torch.from_numpy(self._decode(indices))

    def cameras(self, indices: np.ndarray) -> Tensor | None:
        """int64 (B,), what a model with camera embeddings wants beside `batch`; None: it has none."""
        return None if self.camera_rows is None else torch.from_numpy(self.camera_rows[indices]).to(device())

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))

    def _decode(self, indices: np.ndarray) -> np.ndarray:
        def one(index: int) -> np.ndarray:
            try:
                return decode_image(self.encoded(index), self.image_size, Image.Resampling.BICUBIC)
            except Exception as error:
                raise UserError(f"image '{self.keys[index]}' of {self.location.uri} cannot be decoded ({error}); "
                                "ingest the data set again") from None

        with ThreadPoolExecutor(self._threads) as pool:
            return np.stack(list(pool.map(one, indices)))
