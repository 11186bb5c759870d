"""Ranking in Ray tasks gives the same numbers as one process, for any split of the queries."""

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayError

from platform.engine.errors import UserError
from platform.engine.inference.ranking_tasks import _check_resources, _explained, _tensor, rank_shared
from reidssl.metrics.ranking import rank


def people(num: int = 60, seed: int = 0) -> tuple:
    """(features, pids, camids) of query and gallery; some queries have no match, some images are distractors."""
    random = np.random.default_rng(seed)
    pids, camids = random.integers(-1, 14, 4 * num), random.integers(0, 3, 4 * num)
    features = torch.from_numpy((random.normal(size=(15, 8))[pids] + 0.8 * random.normal(size=(4 * num, 8))).astype(np.float32))
    pids[:5] = 99
    return features[:num], pids[:num], camids[:num], features[num:], pids[num:], camids[num:]


@pytest.mark.parametrize(("tasks", "gallery_block"), [(100, 10**6), (3, 179)])
def test_any_number_of_tasks_and_pieces_gives_what_one_process_gives(tasks, gallery_block, ray_session):
    expected = rank(*people())
    found = rank_shared(*people(), tasks=tasks, cpus=2, block=7, gallery_block=gallery_block)
    assert found.as_dict() == expected.as_dict()
    np.testing.assert_array_equal(found.cmc, expected.cmc)
    np.testing.assert_array_equal(found.average_precision, expected.average_precision)
    assert np.isnan(expected.average_precision[:5]).all()  # a task with only such queries is not an error


def test_ties_and_order(ray_session):
    query, pids, camids, gallery, *labels = people()
    copied = query[torch.arange(60) // 3], pids, camids, gallery[torch.arange(180) // 3 * 3], *labels
    found = rank_shared(*copied, tasks=7, cpus=2, gallery_block=64)
    np.testing.assert_array_equal(found.average_precision, rank(*copied).average_precision)
    order = np.random.default_rng(1).permutation(60)
    moved = rank_shared(copied[0][order], pids[order], camids[order], *copied[3:], tasks=2, cpus=2)
    np.testing.assert_array_equal(moved.average_precision, found.average_precision[order])


def test_features_that_are_all_equal(ray_session):
    for vector in np.random.default_rng(2).normal(size=(3, 9)):
        same = torch.from_numpy(np.tile(vector, (40, 1)))
        pids, camids = np.arange(40) % 4, np.arange(40) % 3
        expected = rank(same, pids, camids, same, pids, camids)
        found = rank_shared(same, pids, camids, same, pids, camids, tasks=3, cpus=2, gallery_block=16)
        np.testing.assert_array_equal(found.average_precision, expected.average_precision)


def test_what_a_task_reads_is_not_copied(ray_session):
    array = ray.get(ray.put(np.ones((100, 64), np.float32)))  # read-only, in the object store
    assert not array.flags.writeable and _tensor(array).data_ptr() == array.ctypes.data


def test_an_error_is_said_in_one_line(ray_session):
    @ray.remote
    def broken():
        raise RuntimeError("no room left")

    with pytest.raises(RayError) as raised:
        ray.get(broken.remote())
    said = _explained(raised.value)
    assert isinstance(said, UserError) and str(said) == "a ranking task failed: RuntimeError: no room left"


def test_a_cluster_that_grows_is_waited_for(ray_session, monkeypatch):
    monkeypatch.setenv("RAY_CLUSTER_AUTOSCALES", "1")
    _check_resources(99)


def test_refusals(ray_session):
    with pytest.raises(UserError, match=r"a ranking task needs 99 CPU, this Ray has 4"):
        rank_shared(*people(), tasks=2, cpus=99)
    query, pids, camids, *gallery = people()
    broken = query.clone()
    broken[47, 2] = torch.nan
    with pytest.raises(ValueError, match=r"^query_features must be finite: row 47 holds NaN.*$") as said:
        rank_shared(broken, pids, camids, *gallery, tasks=5, cpus=2)
    assert "\n" not in str(said.value)
    with pytest.raises(ValueError, match="got 59 query features and 60 labels"):
        rank_shared(query[1:], pids, camids, *gallery, tasks=2, cpus=2)
    with pytest.raises(ValueError, match="no query has a true match in another camera"):
        rank_shared(query, np.full_like(pids, 77), camids, *gallery, tasks=2, cpus=2)
