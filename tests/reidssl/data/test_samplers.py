"""Identity batches: composition, reproducibility, cameras, and the refusals."""

import numpy as np
import pytest

from reidssl.data.samplers import identity_batches


def make_labels(num_identities: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels with gaps: 1 to 12 images per identity over 4 cameras, with outliers, shuffled."""
    rng = np.random.default_rng(seed)
    pids = np.concatenate([np.repeat(np.arange(num_identities) * 3, rng.integers(1, 13, num_identities)), [-1] * 15])
    pids = rng.permutation(pids)
    return pids, rng.integers(0, 4, len(pids))


@pytest.mark.parametrize("cross_camera", [False, True])
@pytest.mark.parametrize("num_batches", [None, 1, 57])
@pytest.mark.parametrize(("identities", "instances"), [(4, 4), (16, 2), (1, 1), (20, 5)])
def test_batches_hold_p_identities_with_k_images(cross_camera, num_batches, identities, instances):
    pids, camids = make_labels()
    batches = identity_batches(pids, camids, identities, instances, 0, 0, num_batches, cross_camera)
    assert len(batches) == num_batches if num_batches else len(batches) > 0
    for batch in batches:
        assert batch.dtype == np.int64 and batch.shape == (identities * instances,)
        labels = pids[batch].reshape(identities, instances)
        assert (labels == labels[:, :1]).all()
        assert len(set(labels[:, 0])) == identities
        assert (labels >= 0).all()


@pytest.mark.parametrize("cross_camera", [False, True])
def test_an_epoch_is_a_pure_function_of_seed_and_epoch(cross_camera):
    pids, camids = make_labels()

    def epoch(seed, number, count=30):
        return np.stack(identity_batches(pids, camids, 4, 4, seed, number, count, cross_camera))

    np.random.seed(1)
    first = epoch(0, 0)
    np.random.seed(2)
    np.testing.assert_array_equal(first, epoch(0, 0))
    np.testing.assert_array_equal(first[:11], epoch(0, 0, 11))
    assert not np.array_equal(first, epoch(0, 1))
    assert not np.array_equal(first, epoch(1, 0))
    single_pass = identity_batches(pids, camids, 4, 4, 0, 0, None, cross_camera)
    np.testing.assert_array_equal(first[: len(single_pass)], single_pass)
    # The passes of one epoch differ.
    assert not np.array_equal(first[len(single_pass)], first[0])


def test_a_pass_sees_every_image_at_most_once_and_nearly_all():
    pids = np.repeat(np.arange(10), 8)
    batches = identity_batches(pids, None, 2, 4, 3, 0)
    drawn = np.concatenate(batches)
    assert len(set(drawn)) == len(drawn)
    assert len(drawn) >= 64  # the rest belongs to one identity
    one_at_a_time = np.concatenate(identity_batches(pids, None, 1, 4, 3, 0))
    assert sorted(one_at_a_time) == list(range(80))


def test_small_identities_repeat_images_but_use_all_of_them():
    pids = np.array([0, 0, 0, 1, 2, 2])
    for cross_camera, camids in [(False, None), (True, np.zeros(6, int))]:
        for batch in identity_batches(pids, camids, 3, 4, 0, 0, 20, cross_camera):
            for images in batch.reshape(3, 4):
                if pids[images[0]] == 1:
                    assert images.tolist() == [3] * 4
                elif not cross_camera:
                    assert set(images) == set(np.flatnonzero(pids == pids[images[0]]))


def test_cross_camera_takes_the_others_from_other_cameras():
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(6), 30)
    camids = rng.integers(0, 3, 180)
    camids[pids == 0] = 0  # seen by one camera only
    camids[pids == 1] = 0
    camids[np.flatnonzero(pids == 1)[:2]] = 1  # only two images from the other camera
    seen = {0: 0, 1: 0, "rest": 0}
    for batch in identity_batches(pids, camids, 6, 4, 0, 0, 50, cross_camera=True):
        for first, *others in batch.reshape(6, 4):
            pid = pids[first]
            if pid == 0:
                assert len({first, *others}) == 4
            else:
                assert (camids[others] != camids[first]).all()
            if pid == 1 and camids[first] == 0:
                assert len(set(others)) <= 2  # images are repeated rather than taken from the camera of the first
            elif pid > 1:
                assert len(set(others)) == 3
            seen[pid if pid < 2 else "rest"] += 1
    assert seen == {0: 50, 1: 50, "rest": 200}


def test_cross_camera_sees_each_identity_once_in_a_pass():
    pids, camids = make_labels(20)
    batches = identity_batches(pids, camids, 6, 3, 0, 0, cross_camera=True)
    assert len(batches) == 3
    identities = pids[np.concatenate(batches)].reshape(-1, 3)[:, 0]
    assert len(set(identities)) == 18
    # Over many passes no identity is left out.
    many = identity_batches(pids, camids, 6, 3, 0, 0, 60, cross_camera=True)
    counts = np.unique(pids[np.concatenate(many)].reshape(-1, 3)[:, 0], return_counts=True)[1]
    assert len(counts) == 20 and counts.min() >= 10


def test_every_image_is_drawn_in_the_long_run():
    pids, camids = make_labels()
    for cross_camera in (False, True):
        drawn = np.concatenate(identity_batches(pids, camids, 4, 4, 0, 0, 400, cross_camera))
        assert set(drawn) == set(np.flatnonzero(pids >= 0))


def test_fewer_identities():
    pids, camids = make_labels(5)
    with pytest.raises(ValueError, match=r"num_identities is 8, but there are only 5 identities.*allow_fewer"):
        identity_batches(pids, camids, 8, 4, 0, 0)
    for cross_camera in (False, True):
        batches = identity_batches(pids, camids, 8, 4, 0, 0, 7, cross_camera, allow_fewer=True)
        assert [batch.shape for batch in batches] == [(20,)] * 7
        assert all(set(pids[batch]) == set(pids[pids >= 0]) for batch in batches)
    assert len(identity_batches(pids, camids, 5, 4, 0, 0, 0)) == 0


def test_wrong_inputs():
    pids, camids = make_labels()
    with pytest.raises(ValueError, match="no identity to draw batches from: none of the 4 labels"):
        identity_batches(np.full(4, -1), None, 2, 2, 0, 0, allow_fewer=True)
    with pytest.raises(ValueError, match="array of integers: got float64"):
        identity_batches(pids.astype(float), None, 2, 2, 0, 0)
    with pytest.raises(ValueError, match="cross_camera needs camids"):
        identity_batches(pids, None, 2, 2, 0, 0, cross_camera=True)
    with pytest.raises(ValueError, match="camids must have the shape of pids"):
        identity_batches(pids, camids[:-1], 2, 2, 0, 0, cross_camera=True)
    with pytest.raises(ValueError, match="at least 1: got 0 and 4"):
        identity_batches(pids, camids, 0, 4, 0, 0)
    with pytest.raises(ValueError, match="num_batches must not be negative: got -1"):
        identity_batches(pids, camids, 2, 4, 0, 0, -1)
