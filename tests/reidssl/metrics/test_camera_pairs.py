"""Camera-to-camera mAP against a separate ranking of each pair of cameras."""

import numpy as np
import pytest

from reidssl.metrics.camera_pairs import camera_pairs
from reidssl.metrics.ranking import rank
from tests.reidssl.metrics.test_ranking import copies, labeled


def test_equal_to_ranking_each_pair_by_itself():
    queries, gallery = labeled(80, 3), labeled(250, 4)
    gallery[2][gallery[2] == 2] = 7  # a camera that no query has
    queries[2][:5] = -1  # unknown: equals no camera
    found = camera_pairs(*queries, *gallery, block=16)
    assert found.query_cameras.tolist() == [-1, 0, 1, 2] and found.gallery_cameras.tolist() == [0, 1, 7]
    for a, own in enumerate(found.query_cameras):
        for b, other in enumerate(found.gallery_cameras):
            if own == other:
                assert np.isnan(found.mAP[a, b]) and found.num_queries[a, b] == 0
                continue
            of_query = [each[queries[2] == own] for each in queries]
            expected = rank(*of_query, *[each[gallery[2] == other] for each in gallery])
            assert found.mAP[a, b] == pytest.approx(expected.mAP, abs=1e-6)
            assert found.num_queries[a, b] == expected.num_valid_queries


@pytest.mark.parametrize(("block", "gallery_block"), [(1, 10**6), (7, 64), (64, 7), (2048, 10)])
def test_blocks_do_not_matter(block, gallery_block):
    arrays = copies()
    expected, found = camera_pairs(*arrays), camera_pairs(*arrays, block=block, gallery_block=gallery_block)
    np.testing.assert_array_equal(found.mAP, expected.mAP)
    np.testing.assert_array_equal(found.num_queries, expected.num_queries)


def test_a_camera_without_known_people_is_left_empty():
    features, pids, cameras = np.eye(4, dtype=np.float32), np.asarray([0, 0, 1, -1]), np.asarray([0, 1, 2, 3])
    found = camera_pairs(features, pids, cameras, features, pids, cameras)
    assert found.mAP[0, 1] == 1.0 and np.isnan(found.mAP[:, 3]).all() and np.isnan(found.mAP[0, [0, 2]]).all()
    with pytest.raises(ValueError, match="got 3 gallery features and 4 labels"):
        camera_pairs(features, pids, cameras, features[:3], pids, cameras)
