"""Labeled images in memory."""

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from platform.engine.data.image_set import ImageSet
from platform.engine.data.shards import COLUMNS, read_rows
from platform.engine.errors import StorageError, UserError
from platform.engine.storage.location import open_storage
from tests.fixtures_shards import with_images


def test_labels_and_pixels(tiny_labeled):
    images = ImageSet(tiny_labeled, ["query", "gallery"], (64, 32))
    table = pa.concat_tables([read_rows(tiny_labeled, [*COLUMNS, "split"], split=split) for split in ("query", "gallery")])
    assert len(images) == table.num_rows == 36
    assert images.keys == table["key"].to_pylist() and images.pids.tolist() == table["pid"].to_pylist()
    assert images.camids.tolist() == table["camid"].to_pylist() and images.pids.dtype == np.int64
    assert images.split.tolist() == ["query"] * 18 + ["gallery"] * 18
    assert images.encoded(5) == table["image"][5].as_py()
    pixels = np.asarray(Image.open(io.BytesIO(images.encoded(5))).convert("RGB"))
    batch = images.batch(np.array([5, 0]))
    assert batch.shape == (2, 3, 64, 32) and batch.dtype == torch.uint8
    assert torch.equal(batch[0], torch.from_numpy(pixels.transpose(2, 0, 1).copy()))


def test_decoded_now_or_later_is_the_same(tiny_labeled):
    kept = ImageSet(tiny_labeled, ["train"], (32, 16))
    later = ImageSet(tiny_labeled, ["train"], (32, 16), cache_gib=0.0)
    together = torch.cat(list(kept.batches(7)))
    assert together.shape == (36, 3, 32, 16)
    assert torch.equal(together, torch.cat(list(later.batches(36))))
    assert torch.equal(kept.batch(np.array([3, 3])), later.batch(np.array([3, 3])))


def test_unknown_split(tiny_labeled):
    with pytest.raises(StorageError, match="no split 'test'; its splits are gallery, query, train"):
        ImageSet(tiny_labeled, ["test"], (64, 32))


@pytest.mark.parametrize("cache_gib", [2.0, 0.0])
def test_images_that_cannot_be_decoded_are_left_out(tmp_path, tiny_labeled, cache_gib):
    whole = ImageSet(tiny_labeled, ["train"], (64, 32))
    bad = [whole.keys[3], whole.keys[20]]
    location = with_images(tiny_labeled, open_storage(str(tmp_path)), {bad[0]: b"no image", bad[1]: whole.encoded(20)[:-300]})
    images = ImageSet(location, ["train"], (64, 32), cache_gib=cache_gib, max_corrupt_share=0.1)
    kept = np.delete(np.arange(36), [3, 20])
    assert images.keys == [whole.keys[place] for place in kept] and len(images) == 34
    assert (images.pids == whole.pids[kept]).all() and (images.camids == whole.camids[kept]).all() and len(images.split) == 34
    assert torch.equal(torch.cat(list(images.batches(10))), whole.batch(kept))
    assert [images.encoded(place) for place in (2, 3, 33)] == [whole.encoded(place) for place in (2, 4, 35)]
    assert [problem.split("'")[1] for problem in images.problems] == bad and "truncated" in images.problems[1]
    with pytest.raises(
        UserError,
        match=r"2 of the 36 images of .*, split train cannot be decoded, more than max_corrupt_share "
        rf"allows \(1\): image '{bad[0]}' cannot be decoded .*raise max_corrupt_share",
    ):
        ImageSet(location, ["train"], (64, 32))
    with pytest.raises(UserError, match=r"none of the 18 images of .*, split query can be decoded: image '"):
        all_junk = {key: b"x" for key in ImageSet(tiny_labeled, ["query"], (64, 32)).keys}
        ImageSet(
            with_images(tiny_labeled, open_storage(str(tmp_path / "junk")), all_junk), ["query"], (64, 32), max_corrupt_share=1.0
        )


def test_one_bad_image_is_never_too_many_unless_none_may_be(tmp_path, tiny_labeled):
    key = ImageSet(tiny_labeled, ["query"], (64, 32)).keys[0]
    location = with_images(tiny_labeled, open_storage(str(tmp_path)), {key: b""})
    assert len(ImageSet(location, ["query"], (64, 32))) == 17
    with pytest.raises(UserError, match=r"1 of the 18 images .* more than max_corrupt_share allows \(0\)"):
        ImageSet(location, ["query"], (64, 32), max_corrupt_share=0.0)
