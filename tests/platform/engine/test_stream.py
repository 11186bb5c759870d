"""The sample stream: order, exactly-once, resuming, sharing between workers, and what Ray Data must keep doing."""

import io
from collections import Counter

import numpy as np
import pytest
import ray
from PIL import Image

from platform.engine.errors import UserError, user_error_of
from platform.engine.selection import read_units
from platform.engine.stream import (
    Decoder,
    Plan,
    StreamConfig,
    Task,
    Unit,
    build_dataset,
    decode_image,
    micro_batches,
    read_window,
)
from reidssl.seeding import sample_seeds

SIZE = (16, 8)
CONFIG = StreamConfig(micro_batch=4, micro_batches_per_step=2, window_row_groups=3, seed=5)


def plan_of(location, seed=5, epochs=3, window=3) -> Plan:
    return Plan(tuple(read_units(location)), seed, window, epochs)


def order(plan: Plan, location, position: int, end: int) -> list[tuple[int, str]]:
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
    assert order(plan_of(tiny_shards, epochs=9), tiny_shards, 0, 180) == rows  # how long the run is does not matter
    first, second = [key for _, key in rows[:90]], [key for _, key in rows[90:]]
    assert first != second and sorted(first) == sorted(second)
    assert [key for _, key in order(plan_of(tiny_shards, seed=6), tiny_shards, 0, 90)] != first


def test_windows_mix_row_groups(tiny_shards):
    plan = plan_of(tiny_shards)
    stored = {key: number // 12 for number, key in enumerate(read_keys(tiny_shards))}
    first_rows = [stored[key] for _, key in order(plan, tiny_shards, 0, 24)]
    assert len(set(first_rows)) >= 3


def read_keys(location) -> list[str]:
    from platform.engine.shards import read_rows

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
    plan = Plan((Unit(unit.file, unit.row_group, 3, chosen),), 0, 4, 2)
    rows = order(plan, tiny_shards, 0, 6)
    assert Counter(rows) == Counter((epoch, keys[index]) for epoch in (0, 1) for index in chosen)


# ---- settings


@pytest.mark.parametrize("name", ["micro_batch", "micro_batches_per_step", "window_row_groups"])
def test_impossible_settings(name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1: got 0"):
        StreamConfig(**{name: 0})


# ---- pixels and augmentation seeds


def test_decode_resizes_and_converts():
    sink = io.BytesIO()
    Image.fromarray(np.full((20, 10), 7, np.uint8), "L").save(sink, "PNG")
    pixels = decode_image(sink.getvalue(), SIZE)
    assert pixels.shape == (3, *SIZE) and pixels.dtype == np.uint8 and (pixels == 7).all()


def test_an_image_that_broke_later_is_named():
    batch = {"key": np.array(["a/b.jpg"]), "image": np.array([b"no image"], object), "epoch": np.zeros(1, np.int32)}
    with pytest.raises(UserError, match=r"'a/b\.jpg'.*ingest it again"):
        Decoder(SIZE)(batch)


def test_augmentation_seeds_follow_key_and_epoch_not_place_in_the_batch():
    from platform.pretrain import seeds_of  # not above: Ray's workers import this file, and torch takes long

    keys = np.array(["a", "b", "c", "a"], object)
    seeds = seeds_of(3, {"key": keys, "epoch": np.array([0, 0, 0, 1], np.int32)})
    assert seeds.dtype == np.uint64 and len(set(seeds.tolist())) == 4
    assert seeds.tolist() == [*sample_seeds(3, 0, ["a", "b", "c"]).tolist(), *sample_seeds(3, 1, ["a"]).tolist()]
    turned = seeds_of(3, {"key": keys[::-1], "epoch": np.array([1, 0, 0, 0], np.int32)})
    assert turned.tolist() == seeds.tolist()[::-1]


# ---- through Ray Data


@ray.remote(num_cpus=0)
class Worker:
    """Stands for a training worker: reads its share to the end."""

    def read(self, iterator, config):
        return [list(zip(batch["epoch"].tolist(), batch["key"].tolist(), batch["image"].sum((1, 2, 3)).tolist(), strict=True))
                for batch in micro_batches(iterator, config)]


def shares(location, world: int, position: int, end: int, config=CONFIG) -> list[list]:
    """Micro-batches of each worker, as Ray Train hands them out."""
    dataset = build_dataset(plan_of(location), config, location, SIZE, position, end)
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


def test_no_stream_beyond_the_end(tiny_shards):
    with pytest.raises(UserError, match="at its end already: position 176, end 176"):
        build_dataset(plan_of(tiny_shards), CONFIG, tiny_shards, SIZE, 176, 176)


def test_other_block_sizes_are_noticed(tiny_shards, ray_session):
    dataset = build_dataset(plan_of(tiny_shards), CONFIG, tiny_shards, SIZE, 0, 8)
    with pytest.raises(RuntimeError, match="block of 4 samples instead of 8"):
        list(micro_batches(dataset, StreamConfig(micro_batch=8)))


def test_a_shard_that_changed_stops_the_stream_with_its_key(tmp_path, tiny_shards, ray_session):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from platform.engine.shards import FileEntry, Manifest, write_manifest, write_rejected
    from platform.engine.storage import open_storage

    unit = read_units(tiny_shards)[0]
    table = pq.read_table((tiny_shards / unit.file).path).slice(0, 8)
    images = table["image"].to_pylist()
    images[3] = images[3][:50]
    broken = open_storage(str(tmp_path))
    pq.write_table(table.set_column(1, table.schema.field("image"), pa.array(images)), (broken / "s.parquet").path)
    write_rejected(broken, [])
    write_manifest(broken, Manifest(files=[FileEntry("s.parquet", 8, 0, "0", [8])]))
    dataset = build_dataset(plan_of(broken), CONFIG, broken, SIZE, 0, 8)
    with pytest.raises(Exception) as caught:
        list(micro_batches(dataset, CONFIG))
    found = user_error_of(caught.value)
    assert found is not None and table["key"][3].as_py() in str(found)
