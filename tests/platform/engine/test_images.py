"""Labelled images in memory."""

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from platform.engine.errors import UserError
from platform.engine.images import ImageSet
from platform.engine.shards import COLUMNS, SCHEMA, Manifest, read_rows, write_manifest, write_shard
from platform.engine.storage import StorageError, open_storage


def test_labels_and_pixels(tiny_labelled):
    images = ImageSet(tiny_labelled, ["query", "gallery"], (64, 32))
    table = pa.concat_tables([read_rows(tiny_labelled, [*COLUMNS, "split"], split=split) for split in ("query", "gallery")])
    assert len(images) == table.num_rows == 36
    assert images.keys == table["key"].to_pylist() and images.pids.tolist() == table["pid"].to_pylist()
    assert images.camids.tolist() == table["camid"].to_pylist() and images.pids.dtype == np.int64
    assert images.split.tolist() == ["query"] * 18 + ["gallery"] * 18
    assert images.encoded(5) == table["image"][5].as_py()
    pixels = np.asarray(Image.open(io.BytesIO(images.encoded(5))).convert("RGB"))
    batch = images.batch(np.array([5, 0]))
    assert batch.shape == (2, 3, 64, 32) and batch.dtype == torch.uint8
    assert torch.equal(batch[0], torch.from_numpy(pixels.transpose(2, 0, 1).copy()))


def test_decoded_now_or_later_is_the_same(tiny_labelled):
    kept = ImageSet(tiny_labelled, ["train"], (32, 16))
    later = ImageSet(tiny_labelled, ["train"], (32, 16), cache_gib=0.0)
    together = torch.cat(list(kept.batches(7)))
    assert together.shape == (36, 3, 32, 16)
    assert torch.equal(together, torch.cat(list(later.batches(36))))
    assert torch.equal(kept.batch(np.array([3, 3])), later.batch(np.array([3, 3])))


def test_unknown_split(tiny_labelled):
    with pytest.raises(StorageError, match="no split 'test'; its splits are gallery, query, train"):
        ImageSet(tiny_labelled, ["test"], (64, 32))


def test_an_image_that_broke_is_named(tmp_path):
    location = open_storage(str(tmp_path))
    schema = pa.schema([*SCHEMA, pa.field("split", pa.string())])
    table = pa.Table.from_pylist([{"key": "a/1.jpg", "image": b"no image", "height": 4, "width": 2, "pid": 1, "camid": 1,
                                   "split": "train"}], schema=schema)
    entry = write_shard(location, table)
    write_manifest(location, Manifest(files=[entry], splits={"train": 1}, extra_columns={"split": "string"}))
    with pytest.raises(UserError, match=r"'a/1\.jpg' .* cannot be decoded"):
        ImageSet(location, ["train"], (4, 2))
