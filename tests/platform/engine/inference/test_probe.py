"""The probe of a pre-training on sets whose labels do not allow all of its figures."""

import numpy as np
import pytest

from platform.engine.data.shards import read_rows
from platform.engine.inference.probe import Probe, has_matches
from platform.engine.schemas.training_settings import ProbeConfig
from platform.engine.storage.location import StorageConfig
from reidssl.augment.augment_config import MultiCropConfig
from reidssl.metrics.ranking import leave_one_out
from reidssl.models.vit import build_vit
from tests.tiny import TINY_VIT


@pytest.mark.parametrize(
    ("camera_of", "found"),
    [
        (lambda pids, camids: camids, {"probe_mAP", "probe_same_camera"}),
        (lambda pids, camids: np.full_like(camids, -1), {"probe_mAP"}),
        (lambda pids, camids: pids, {"probe_same_camera"}),  # everybody is in one camera
    ],
)
def test_a_figure_that_the_labels_do_not_allow_is_left_out(tiny_labeled, camera_of, found):
    probe = Probe(ProbeConfig(uri=tiny_labeled.uri), TINY_VIT, MultiCropConfig(global_size=(64, 32)), StorageConfig(), 0.0)
    probe.images.camids = camera_of(np.asarray(probe.images.pids), np.asarray(probe.images.camids))
    figures = probe(build_vit(TINY_VIT, seed=0).eval())
    assert figures.keys() == found and all(0 <= value <= 1 for value in figures.values())
    assert len(read_rows(tiny_labeled, ["key"], split="gallery")) == len(probe.images)


@pytest.mark.parametrize(
    ("pids", "camids"),
    [
        ([1, 1, 2], [0, 1, 0]),
        ([1, 1, 2], [0, 0, 1]),
        ([1, 2, 3], [-1, -1, -1]),
        ([1, 1, 2], [-1, -1, 0]),
        ([-1, -1, 2], [0, 1, 0]),
        ([1, 1, 2], [-1, 0, 0]),
    ],
)
def test_the_labels_say_what_the_ranking_says(pids, camids):
    pids, camids = np.asarray(pids), np.asarray(camids)
    features = np.eye(3, dtype=np.float32) + 0.1
    try:
        expected = leave_one_out(features, pids, camids).mAP > 0
    except ValueError:
        expected = False
    assert has_matches(pids, camids) == expected
