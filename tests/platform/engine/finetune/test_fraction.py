"""The part of the training images that train_fraction keeps."""

import numpy as np

from platform.engine.finetune.fraction import chosen_images

PIDS = np.repeat(np.arange(20), 3)


def test_whole_identities_are_kept_and_parts_are_nested():
    kept = {fraction: chosen_images(PIDS, fraction, 7) for fraction in (0.01, 0.25, 0.5, 1.0)}
    assert [len(np.unique(PIDS[mask])) for mask in kept.values()] == [1, 5, 10, 20]
    assert all(mask.sum() == 3 * len(np.unique(PIDS[mask])) for mask in kept.values())
    assert (kept[0.25] <= kept[0.5]).all() and kept[1.0].all()
    assert (chosen_images(PIDS, 0.5, 8) != kept[0.5]).any()


def test_a_product_is_not_rounded_up_by_its_error():
    assert chosen_images(np.arange(100), 0.07, 0).sum() == 7  # 0.07 * 100 is a little more than 7


def test_without_identities_images_are_drawn():
    mask = chosen_images(np.full(40, -1), 0.25, 0)
    assert mask.sum() == 10
