"""The sample stream: order, exactly-once, resuming, sharing between workers, and the required behavior of Ray Data."""

import errno
import io
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from platform.engine.data.shards import read_manifest, write_manifest
from platform.engine.errors import UserError
from platform.engine.runtime.run_name import set_run_name
from platform.engine.storage.location import open_storage
from platform.engine.stream.order import StreamConfig, StreamPlan, Task, Unit, stream_seeds
from platform.engine.stream.stream import build_dataset, local_stream, micro_batches, segments
from platform.engine.stream.units import read_units
from platform.engine.stream.windows import Decoder, read_window
from reidssl.seeding import sample_seeds

SIZE = (16, 8)
CONFIG = StreamConfig(micro_batch=4, micro_batches_per_step=2, window_row_groups=3)


def plan_of(location, seed=5, epochs=3, window=3) -> StreamPlan:
    return StreamPlan(tuple(read_units(location)), seed, window, epochs)


def order(plan: StreamPlan, location, position: int, end: int) -> list[tuple[int, str]]:
    """(epoch, key) of the samples [position, end), read without Ray."""
    rows = []
    for task in plan.tasks(position, end):
        table = read_window(plan, task, location)
        rows += list(zip(table["epoch"].to_pylist(), table["key"].to_pylist(), strict=True))
    return rows


# ---- the order


def test_every_sample_exactly_once_per_epoch(tiny_shards):
    plan = plan_of(tiny_shards)
    assert plan.samples_per_epoch == 90
    assert [unit.num_rows for unit in plan.units] == [12, 12, 12, 12, 7, 12, 12, 11]
    rows = order(plan, tiny_shards, 0, 270)
    assert len(rows) == 270 and set(Counter(rows).values()) == {1}
    assert [epoch for epoch, _ in rows] == [0] * 90 + [1] * 90 + [2] * 90


def test_order_is_a_function_of_seed_and_epoch_alone(tiny_shards):
    rows = order(plan_of(tiny_shards), tiny_shards, 0, 180)
    assert order(plan_of(tiny_shards, epochs=9), tiny_shards, 0, 180) == rows  # the length of the run does not matter
    first, second = [key for _, key in rows[:90]], [key for _, key in rows[90:]]
    assert first != second and sorted(first) == sorted(second)
    assert [key for _, key in order(plan_of(tiny_shards, seed=6), tiny_shards, 0, 90)] != first


def test_windows_mix_row_groups(tiny_shards):
    plan = plan_of(tiny_shards)
    stored = {key: number // 12 for number, key in enumerate(read_keys(tiny_shards))}
    first_rows = [stored[key] for _, key in order(plan, tiny_shards, 0, 24)]
    assert len(set(first_rows)) >= 3


def read_keys(location) -> list[str]:
    from platform.engine.data.shards import read_rows

    return read_rows(location, ["key"])["key"].to_pylist()


def test_resuming_anywhere_gives_the_uninterrupted_tail(tiny_shards):
    plan = plan_of(tiny_shards)
    whole = order(plan, tiny_shards, 0, 200)
    for position in (0, 1, 11, 35, 36, 89, 90, 91, 127, 199):
        assert order(plan, tiny_shards, position, 200) == whole[position:], position
    assert order(plan, tiny_shards, 17, 120) == whole[17:120]  # cut at both ends
    assert plan.tasks(200, 200) == []


def test_tasks_tile_the_stream(tiny_shards):
    plan = plan_of(tiny_shards)
    for position, end in ((0, 270), (37, 201), (88, 92), (269, 270)):
        assert sum(task.high - task.low for task in plan.tasks(position, end)) == end - position
    assert all(isinstance(task, Task) and task.low < task.high for task in plan.tasks(3, 250))


def test_selected_rows_of_a_row_group(tiny_shards):
    unit = read_units(tiny_shards)[1]
    keys = read_keys(tiny_shards)[12:24]
    chosen = np.array([0, 5, 11], np.int32)
    plan = StreamPlan((Unit(unit.file, unit.row_group, 3, chosen),), 0, 4, 2)
    rows = order(plan, tiny_shards, 0, 6)
    assert Counter(rows) == Counter((epoch, keys[index]) for epoch in (0, 1) for index in chosen)


# ---- settings


@pytest.mark.parametrize("name", ["micro_batch", "micro_batches_per_step", "window_row_groups"])
def test_impossible_settings(name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1: got 0"):
        StreamConfig(**{name: 0})


@pytest.mark.parametrize("size", [[64], [0, 64], [64, 32, 3]])
def test_a_size_to_decode_to_is_height_and_width(size):
    with pytest.raises(ValueError, match=r"^decode_size must be \[height, width\] or \[\]: got"):
        StreamConfig(decode_size=size)


# ---- pixels and augmentation seeds


def png(level: int, height: int = 20) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((height, 10, 3), level, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def test_an_image_that_broke_is_replaced_by_the_next_and_named():
    batch = {
        "key": np.array(["a", "b", "c"], object),
        "image": np.array([png(1), png(2, 30), b"no image"], object),
        "epoch": np.zeros(3, np.int32),
        "problem": np.array(["", "", ""], object),
    }
    found = Decoder(SIZE)(batch)
    assert found["image"].max((1, 2, 3)).tolist() == [1, 2, 1] and found["key"].tolist() == ["a", "b", "a"]
    assert found["shape"].tolist() == [[20, 10], [30, 10], [20, 10]]
    assert found["problem"][0] == found["problem"][1] == "" and "image 'c' cannot be decoded" in found["problem"][2]
    batch["image"] = np.array([b"x", b"y", b"z"], object)
    found = Decoder(SIZE)(batch)  # CorruptSamples checks the limit
    assert (found["image"] == 128).all() and found["key"].tolist() == ["a", "b", "c"] and all(found["problem"])


def test_the_limit_of_the_data_set_holds_in_the_stream(tmp_path, tiny_shards):
    """64 x 32 pixels are above the limit of the manifest."""
    shutil.copytree(tiny_shards.path, tmp_path / "small")
    location = open_storage(str(tmp_path / "small"))
    write_manifest(location, replace(read_manifest(location), arguments={"max_pixels": 64 * 32 - 1}))
    batch = next(local_stream(plan_of(location), CONFIG, location, SIZE, 0, 8))
    assert all("64 x 32 = 2,048 pixels are more than max_pixels allows (2,047)" in problem for problem in batch["problem"])


@pytest.fixture
def damaged(tmp_path, tiny_shards):
    """The tiny data set with its second shard (35 of 90 rows) cut in the middle."""
    shutil.copytree(tiny_shards.path, tmp_path / "damaged")
    location = open_storage(str(tmp_path / "damaged"))
    file = tmp_path / "damaged" / read_units(location)[-1].file
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return location


def test_a_torn_shard_is_set_aside_without_moving_anything_else(damaged, tiny_shards):
    plan, whole = plan_of(damaged, window=8), order(plan_of(tiny_shards, window=8), tiny_shards, 0, 180)
    tables = pa.concat_tables(read_window(plan, task, damaged) for task in plan.tasks(0, 180))
    kept = [not problem for problem in tables["problem"].to_pylist()]
    assert sum(kept) == 2 * 55
    found = list(zip(tables["epoch"].to_pylist(), tables["key"].to_pylist(), strict=True))
    assert all(found[index] == whole[index] for index in range(180) if kept[index])
    assert {key for _, key in found} == set(read_keys(tiny_shards)[:55])  # readable samples replace unreadable ones
    assert plan.units[-1].file in next(filter(None, tables["problem"].to_pylist()))
    assert order(plan, damaged, 37, 180) == found[37:]  # always the same replacements
    (Path(damaged.path) / plan.units[-1].file).unlink()
    problems = pa.concat_tables(read_window(plan, task, damaged) for task in plan.tasks(0, 90))["problem"].to_pylist()
    assert sum("does not exist" in problem for problem in problems) == 35


def test_a_place_of_the_disk_that_cannot_be_read_is_set_aside_at_once(tiny_shards, monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", broken)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"none of the \d+ row groups .* can be read: .*Input/output error"):
        read_window(plan_of(tiny_shards, window=8), plan_of(tiny_shards, window=8).tasks(0, 8)[0], tiny_shards)
    assert time.monotonic() - started < 5


def test_nothing_readable_in_a_window_is_an_error(damaged):
    with pytest.raises(UserError, match="none of the 1 row groups that are read together can be read"):
        order(plan_of(damaged, window=1), damaged, 0, 90)


def test_segments_are_whole_steps_and_tile_the_stream(tiny_shards):
    plan = plan_of(tiny_shards)  # windows of 30 rows, steps of 8
    config = replace(CONFIG, segment_windows=2)
    pieces = list(segments(plan, config, 16, 256))
    assert pieces == [(16, 72), (72, 128), (128, 184), (184, 240), (240, 256)]
    assert list(segments(plan, CONFIG, 16, 256)) == [(16, 256)] and list(segments(plan, CONFIG, 256, 256)) == []


def test_the_stream_without_ray(tiny_shards):
    expected = order(plan_of(tiny_shards), tiny_shards, 8, 176)
    batches = [list(local_stream(plan_of(tiny_shards), CONFIG, tiny_shards, SIZE, 8, 176, rank, 2)) for rank in (0, 1)]
    merged = [batch for pair in zip(*batches, strict=True) for batch in pair]
    assert [(epoch, key) for batch in merged for epoch, key in zip(batch["epoch"], batch["key"], strict=True)] == expected


def test_augmentation_seeds_follow_key_and_epoch_not_place_in_the_batch():
    keys = np.array(["a", "b", "c", "a"], object)
    seeds = stream_seeds(3, np.array([0, 0, 0, 1], np.int32), keys)
    assert seeds.dtype == np.uint64 and len(set(seeds.tolist())) == 4
    assert seeds.tolist() == [*sample_seeds(3, 0, ["a", "b", "c"]).tolist(), *sample_seeds(3, 1, ["a"]).tolist()]
    turned = stream_seeds(3, np.array([1, 0, 0, 0], np.int32), keys[::-1])
    assert turned.tolist() == seeds.tolist()[::-1]


# ---- through Ray Data


@ray.remote(num_cpus=0)
class Worker:
    """A stand-in for a training worker that reads its share to the end."""

    def read(self, iterator, config):
        return [
            list(zip(batch["epoch"].tolist(), batch["key"].tolist(), batch["image"].sum((1, 2, 3)).tolist(), strict=True))
            for batch in micro_batches(iterator, config)
        ]


def shares(location, world: int, position: int, end: int, config=CONFIG, decode_resource: str = "") -> list[list]:
    """Micro-batches of each worker, as Ray Train distributes them."""
    dataset = build_dataset(plan_of(location), config, location, SIZE, position, end, decode_resource)
    workers = [Worker.remote() for _ in range(world)]
    iterators = dataset.streaming_split(world, equal=True, locality_hints=None)
    return ray.get([worker.read.remote(iterator, config) for worker, iterator in zip(workers, iterators, strict=True)])


def test_micro_batch_j_goes_to_worker_j_mod_world(tiny_shards, ray_session):
    expected = order(plan_of(tiny_shards), tiny_shards, 0, 176)
    [alone] = shares(tiny_shards, 1, 0, 176)
    assert [len(batch) for batch in alone] == [4] * 44
    assert [row[:2] for batch in alone for row in batch] == expected  # the plan's own order, across an epoch's end
    first, second = shares(tiny_shards, 2, 0, 176)
    assert first == alone[0::2] and second == alone[1::2]  # keys, epochs and pixels


def test_resumed_stream_through_ray_is_the_tail(tiny_shards, ray_session):
    expected = order(plan_of(tiny_shards), tiny_shards, 72, 176)
    first, second = shares(tiny_shards, 2, 72, 176)
    merged = [batch for pair in zip(first, second, strict=True) for batch in pair]
    assert [row[:2] for batch in merged for row in batch] == expected


@pytest.mark.slow  # two streams more
def test_nodes_for_decoding_give_the_same_stream(tiny_shards, ray_session):
    """Ray Data then cuts blocks of encoded images, in an operator of its own."""
    [alone] = shares(tiny_shards, 1, 72, 176)
    [elsewhere] = shares(tiny_shards, 1, 72, 176, decode_resource="node:__internal_head__")
    assert elsewhere == alone and len(alone) == 26


def test_decoding_and_cutting_into_micro_batches_are_one_operator(tiny_shards, ray_session):
    """Apart, the decoder would get whole windows, and decoded images would be cut."""
    dataset = build_dataset(plan_of(tiny_shards), CONFIG, tiny_shards, SIZE, 0, 16)
    assert len(list(micro_batches(dataset, CONFIG))) == 4
    assert "MapBatches(Decoder.__call__)->StreamingRepartition" in dataset.stats()


def test_no_stream_beyond_the_end(tiny_shards):
    with pytest.raises(UserError, match="at its end already: position 176, end 176"):
        build_dataset(plan_of(tiny_shards), CONFIG, tiny_shards, SIZE, 176, 176)


def test_other_block_sizes_are_noticed(tiny_shards, ray_session):
    set_run_name("pretrain-first")
    dataset = build_dataset(plan_of(tiny_shards), CONFIG, tiny_shards, SIZE, 0, 8)
    assert dataset.name == "pretrain-first"  # on the Data page
    with pytest.raises(RuntimeError, match="block of 4 samples instead of 8"):
        list(micro_batches(dataset, StreamConfig(micro_batch=8)))


def test_broken_images_and_shards_come_through_ray_with_their_reason(damaged, ray_session):
    dataset = build_dataset(plan_of(damaged, window=8), CONFIG, damaged, SIZE, 0, 88)
    problems = [problem for batch in micro_batches(dataset, CONFIG) for problem in batch["problem"]]
    assert len(problems) == 88 and 33 <= sum(bool(problem) for problem in problems) <= 35
