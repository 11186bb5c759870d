"""Several training sets as one."""

import numpy as np
import torch

from platform.engine.data.image_set import ImageSet
from platform.engine.data.joined import JoinedImages, shifted


def test_images_identities_and_cameras_of_each_set_stay_apart(tiny_labeled, tiny_source):
    one, other = (ImageSet(location, ["train"], (64, 32)) for location in (tiny_labeled, tiny_source))
    joined = JoinedImages([one, other, one])
    assert len(joined) == 36 + 30 + 36 and len(set(joined.keys)) == len(joined)
    people = [len(np.unique(each.pids)) for each in (one, other, one)]
    assert len(np.unique(joined.pids)) == sum(people)
    assert len(np.unique(joined.camids)) == sum(len(np.unique(each.camids)) for each in (one, other, one))
    for part, start in ((one, 0), (other, 36), (one, 66)):  # the same grouping as before, inside each set
        own = joined.pids[start : start + len(part)]
        assert ((own[:, None] == own[None]) == (part.pids[:, None] == part.pids[None])).all()
    asked = np.array([101, 0, 40, 35, 36, 66, 65, 0])
    rows = [one.batch(np.array([35])), one.batch(np.array([0])), other.batch(np.array([4])), one.batch(np.array([35]))]
    rows += [other.batch(np.array([0])), one.batch(np.array([0])), other.batch(np.array([29])), one.batch(np.array([0]))]
    assert torch.equal(joined.batch(asked), torch.cat(rows))


def test_unknown_numbers_stay_unknown():
    found = shifted([np.array([-1, 4, 0]), np.array([-1, -1]), np.array([0, 2])])
    assert found.tolist() == [-1, 4, 0, -1, -1, 5, 7]
