"""The sharded search: the same table for any number of actors, from arrays and Parquet, also when an actor dies."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import platform.engine.clustering.sharded_neighbors as engine
from platform.engine.clustering.shard_actor import Shard
from platform.engine.clustering.sharded_neighbors import NeighborActorsConfig, check_room, sharded_neighbors
from platform.engine.data.parts import as_column
from platform.engine.errors import UserError
from platform.engine.inference.features import ParquetPart, array_parts
from platform.engine.storage.location import open_storage
from platform.engine.train.scaling import ScalingConfig
from reidssl.clustering.index import recall
from reidssl.clustering.neighbors import knn


def features(num: int = 230) -> np.ndarray:
    random = np.random.default_rng(4)
    return (random.normal(size=(20, 12))[random.integers(20, size=num)] + 0.5 * random.normal(size=(num, 12))).astype(np.float32)


def actors(count: int, block: int = 64) -> NeighborActorsConfig:
    return NeighborActorsConfig(actors=count, cpus_per_actor=1, block=block)


def test_the_table_is_that_of_one_process(ray_session):
    expected = knn(features(), 9)
    found = sharded_neighbors(array_parts(features(), 7), 9, actors(2, 50))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


def test_equal_similarities_by_index_across_shards(ray_session):
    twins = np.tile(np.eye(4, dtype=np.float32), (6, 1))  # image i equals i + 4, i + 8, ...
    found = sharded_neighbors(array_parts(twins, 5), 4, actors(2, 7))
    np.testing.assert_array_equal(found[0], knn(twins, 4)[0])
    assert sharded_neighbors(array_parts(twins[:3], 5), 30, actors(1))[0].shape == (3, 3)  # fewer images than neighbors


def write_parts(folder, values: np.ndarray, rows: list[int]) -> list[ParquetPart]:
    parts, start = [], 0
    for number, count in enumerate(rows):
        path = folder / f"{number}.parquet"
        pq.write_table(pa.table({"feature": as_column(values[start : start + count])}), path)
        parts.append(ParquetPart(open_storage(str(path)), count))
        start += count
    assert start == len(values)
    return parts


def test_from_parquet_with_an_approximate_search(ray_session, tmp_path):
    parts = write_parts(tmp_path, features(), [90, 10, 100, 30])
    np.testing.assert_array_equal(np.concatenate([part.read() for part in parts]), features())
    found = sharded_neighbors(parts, 9, actors(1), "ivf", 4)
    assert found[0].shape == (230, 9) and (found[0][:, 0] == np.arange(230)).all()
    assert recall(features(), found) > 0.9


class Dying(Shard):
    """A shard whose process is killed once, in the middle of its work."""

    def nearest(self, queries, k, own):
        import os
        from pathlib import Path

        mark = Path(self.parts[-1].file.path).parent / "died"
        if self.parts[-1].file.path.endswith("2.parquet") and own[0] < 0 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), 9)
        return super().nearest(queries, k, own)


def test_a_lost_actor_is_survived(ray_session, tmp_path, monkeypatch):
    parts = write_parts(tmp_path, features(), [110, 20, 100])
    monkeypatch.setattr(engine, "Shard", Dying)
    found = sharded_neighbors(parts, 9, actors(2, 40))
    assert (tmp_path / "died").exists()
    np.testing.assert_array_equal(found[0], knn(features(), 9)[0])


class Oversized(Shard):
    """A shard whose process is killed every time it has loaded."""

    def nearest(self, queries, k, own):
        import os

        os.kill(os.getpid(), 9)


@pytest.mark.slow  # four processes
def test_an_actor_that_dies_every_time_ends_the_search(ray_session, monkeypatch):
    monkeypatch.setattr(engine, "Shard", Oversized)
    monkeypatch.setattr(engine, "RESTARTS", 1)
    with pytest.raises(
        UserError,
        match=r"one of 2 neighbor actors died again and again \(1 restarts\): its share of the "
        r"features probably does not fit into the memory of its machine; use more actors",
    ):
        sharded_neighbors(array_parts(features(), 2), 9, actors(2))


def test_a_row_that_is_no_number_is_named_as_the_user_counts(ray_session, tmp_path):
    broken = features()
    broken[[200, 222], 1] = np.nan, np.inf  # in the last share of two, which begins at 115, and of three, at 150
    with pytest.raises(UserError, match=r"^features must be finite: row 200 holds NaN or infinity \(2 such rows of 115 there\)"):
        sharded_neighbors(array_parts(broken, 2), 9, actors(2))
    parts = write_parts(tmp_path, broken, [80, 70, 40, 40])
    last = Shard(engine._shares(parts, 3)[-1], "exact", 0, threads=0)
    with pytest.raises(UserError, match=r"^features must be finite: row 10 of \S*3\.parquet holds NaN or infinity \(2 such rows"):
        last.nearest(features(), 9, np.arange(230))


def test_a_share_is_copied_to_the_cpu_once(tmp_path):
    """For all later calls of `cosines`, one for each block of images."""
    shard = Shard(write_parts(tmp_path, features(), [80, 70, 80]), "exact", 0, threads=0)
    pairs = (np.asarray([0, 1]), np.asarray([3, 229]))
    found, host = shard.cosines(shard.rows(np.arange(2)), pairs), shard.host()
    np.testing.assert_array_equal(shard.cosines(host[:2], pairs), found)
    np.testing.assert_allclose(found, (host[pairs[0]] * host[pairs[1]]).sum(1), atol=1e-6)
    assert shard.host() is host


def test_a_cluster_that_grows_is_waited_for(ray_session, monkeypatch):
    monkeypatch.setenv("RAY_CLUSTER_AUTOSCALES", "1")
    engine._check_resources(NeighborActorsConfig(actors=9, cpus_per_actor=10), 9)


def test_shares_are_about_equal_and_in_order():
    from types import SimpleNamespace

    parts = [SimpleNamespace(rows=rows) for rows in (5, 1, 4, 10, 3, 7)]
    shares = engine._shares(parts, 3)
    assert [part for share in shares for part in share] == parts
    assert [sum(part.rows for part in share) for share in shares] == [10, 10, 10]
    assert len(engine._shares(parts[:2], 8)) == 2  # no empty shares


def test_the_actors_of_a_run_must_fit_beside_its_workers(ray_session, monkeypatch):
    """Their CPUs are taken while it clusters, and the run would wait for its actors forever. This Ray has 4."""
    actors, workers = NeighborActorsConfig(actors=2), ScalingConfig(workers=2)
    check_room(actors, workers)
    with pytest.raises(UserError, match=r"2 neighbor actors beside 4 workers need 6 CPU, this Ray has 4: lower neighbors.actors"):
        check_room(actors, workers, runs=2)
    with pytest.raises(UserError, match="3 neighbor actors beside 2 workers need 5 CPU"):
        check_room(NeighborActorsConfig(actors=3), workers)
    with pytest.raises(UserError, match="1 neighbor actors beside 2 workers need 1 GPU, this Ray has 0"):
        check_room(NeighborActorsConfig(actors=1, cpus_per_actor=0.5, gpus_per_actor=1), workers)
    check_room(NeighborActorsConfig(actors=0), ScalingConfig(workers=100))
    monkeypatch.setenv("RAY_CLUSTER_AUTOSCALES", "1")
    check_room(NeighborActorsConfig(actors=300), workers)


def test_refusals(ray_session, tmp_path):
    with pytest.raises(UserError, match="9 neighbor actors need 90 CPU, this Ray has 4"):
        sharded_neighbors(array_parts(features(), 9), 9, NeighborActorsConfig(actors=9, cpus_per_actor=10))
    (part,) = write_parts(tmp_path, features(), [230])
    with pytest.raises(UserError, match="has 230 rows instead of 200: it was changed meanwhile"):
        sharded_neighbors([ParquetPart(part.file, 200)], 9, actors(1))
    with pytest.raises(UserError, match="there are no features to search"):
        sharded_neighbors([], 9, actors(1))
    with pytest.raises(ValueError, match="actors must be 0 or more: got -1"):
        NeighborActorsConfig(actors=-1)
