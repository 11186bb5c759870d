"""Ranking shared among Ray tasks: the same numbers as one process, however the queries are cut."""

import numpy as np
import pytest
import torch

from platform.engine.errors import UserError
from platform.engine.ranking import rank_shared
from reidssl.metrics.ranking import rank


def people(num: int = 60, seed: int = 0) -> tuple:
    """(features, pids, camids) of query and gallery; some queries have no match, some images are distractors."""
    random = np.random.default_rng(seed)
    pids, camids = random.integers(-1, 14, 4 * num), random.integers(0, 3, 4 * num)
    features = torch.from_numpy((random.normal(size=(15, 8))[pids] + 0.8 * random.normal(size=(4 * num, 8))).astype(np.float32))
    pids[:5] = 99
    return features[:num], pids[:num], camids[:num], features[num:], pids[num:], camids[num:]


@pytest.mark.parametrize("tasks", [1, 3, 100])
def test_any_number_of_tasks_gives_what_one_process_gives(tasks, ray_session):
    expected = rank(*people())
    found = rank_shared(*people(), tasks=tasks, cpus=0.5, block=7)
    assert found.as_dict() == pytest.approx(expected.as_dict(), abs=1e-12)
    np.testing.assert_array_equal(found.cmc, expected.cmc)
    np.testing.assert_allclose(found.average_precision, expected.average_precision)
    assert np.isnan(expected.average_precision[:5]).all()  # a task of such queries alone is no error


def test_refusals(ray_session):
    with pytest.raises(UserError, match=r"a ranking task needs 99 CPU, this Ray has 4"):
        rank_shared(*people(), tasks=2, cpus=99)
    query, pids, camids, *gallery = people()
    with pytest.raises(ValueError, match="no query has a true match in another camera"):
        rank_shared(query, np.full_like(pids, 77), camids, *gallery, tasks=2, cpus=0.5)
