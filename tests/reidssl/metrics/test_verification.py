"""True positive rates against a sort of all pairs."""

import numpy as np
import pytest

from reidssl.metrics.verification import true_positive_rates
from tests.reidssl.metrics.test_ranking import copies, labeled


def plain_rates(queries, q_pids, q_camids, gallery, g_pids, g_camids, rates):
    """Sort all pairs; the threshold is the lowest score at which the false positive rate is not above the limit."""
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (queries, gallery)]
    scores = unit[0] @ unit[1].T
    same = q_pids[:, None] == g_pids
    known = (q_pids[:, None] != -1) & (g_pids != -1) & ~(same & (q_camids[:, None] == g_camids))
    others, own = np.sort(scores[known & ~same])[::-1], scores[known & same]
    found = {}
    for rate in rates:
        allowed = int(rate * len(others) + 1e-9)
        limit = others[allowed] if allowed < len(others) else -2.0
        found[rate] = (own > limit).mean()
    return found


@pytest.mark.parametrize(("block", "num_threads", "gallery_block"), [(128, 1, 10**6), (7, 3, 64)])
def test_equal_to_trying_every_pair(block, num_threads, gallery_block):
    queries, gallery = labeled(60, 1, num_ids=9), labeled(300, 2, num_ids=9)
    arrays = queries[0], queries[1], queries[2], gallery[0], gallery[1], gallery[2]
    rates = (1e-3, 1e-2, 0.1, 0.5, 1.0)
    found = true_positive_rates(*arrays, rates=rates, block=block, num_threads=num_threads, gallery_block=gallery_block)
    assert found == pytest.approx(plain_rates(*arrays, rates), abs=2e-3)  # a bin may hold two pairs
    values = list(found.values())
    assert values == sorted(values) and 0 < values[0] < 0.6 and values[-1] == 1.0


@pytest.mark.parametrize(("block", "gallery_block"), [(1, 64), (7, 7), (2048, 1)])
def test_blocks_do_not_matter(block, gallery_block):
    arrays = copies()
    assert true_positive_rates(*arrays, block=block, gallery_block=gallery_block) == true_positive_rates(*arrays)


def test_perfect_and_useless_features():
    pids, cameras = np.repeat(np.arange(4), 2), np.tile([0, 1], 4)
    perfect = np.eye(4, dtype=np.float32)[pids]
    found = true_positive_rates(perfect, pids, cameras, perfect, pids, cameras)
    assert set(found) == {1e-4, 1e-3, 1e-2} and set(found.values()) == {1.0}
    equal = np.ones((8, 3), np.float32)  # no threshold separates any pairs
    assert set(true_positive_rates(equal, pids, cameras, equal, pids, cameras).values()) == {0.0}


def test_refusals():
    pids, cameras, features = np.arange(4), np.zeros(4, int), np.eye(4)
    with pytest.raises(ValueError, match=r"pairs of one person in two cameras and of two people: got 0 and 12 pairs"):
        true_positive_rates(features, pids, cameras, features, pids, cameras)
    with pytest.raises(ValueError, match=r"rates must be in \(0, 1\]"):
        true_positive_rates(features, pids, cameras, features, pids, cameras, rates=[0.0])
    with pytest.raises(ValueError, match="of the same images: got 3 query features and 4 labels"):
        true_positive_rates(features[:3], pids, cameras, features, pids, cameras)
