"""The probe of pre-training on label sets that other programs accept: figures that are not defined are left out."""

import math
from functools import partial

import pytest

from platform.engine.inference.probe import Probe
from platform.engine.schemas.training_settings import ProbeConfig
from platform.engine.storage.location import StorageConfig, open_storage
from reidssl.augment.augment_config import MultiCropConfig
from reidssl.models.vit import build_vit
from tests.fixtures_shards import with_labels
from tests.tiny import TINY_VIT

AUGMENT = MultiCropConfig(global_size=TINY_VIT.image_size, local_size=(32, 16))
MAP, CAMERA = "probe_mAP", "probe_same_camera"


def probe_of(location) -> Probe:
    return Probe(ProbeConfig(uri=location.uri, split="gallery"), TINY_VIT, AUGMENT, StorageConfig(), 0.01)


@pytest.fixture(scope="module")
def backbone():
    return build_vit(TINY_VIT, seed=5).eval()


@pytest.mark.parametrize(
    ("label", "figures", "reasons"),
    [
        (lambda row, key, split, pid, camid: (pid, camid), {MAP, CAMERA}, []),
        (lambda row, key, split, pid, camid: (pid, -1), {MAP}, ["none of its images has a camera (camid)"]),
        (lambda row, key, split, pid, camid: (row, camid), {CAMERA}, ["no image has another image of the same person"]),
        (
            lambda row, key, split, pid, camid: (pid, 2),
            set(),
            ["no image has another image of the same person", "all its images with a known camera are from one"],
        ),
        (lambda row, key, split, pid, camid: (row, -1), set(), ["no image has another", "none of its images has a camera"]),
    ],
    ids=["ordinary", "no cameras", "one image a person", "one camera", "neither"],
)
def test_figures_that_labels_do_not_define_are_left_out(tiny_labeled, tmp_path, backbone, label, figures, reasons):
    probe = probe_of(with_labels(tiny_labeled, open_storage(str(tmp_path)), label))
    found = probe(backbone)
    assert found.keys() == figures and all(math.isfinite(value) and 0 <= value <= 1 for value in found.values())
    assert found.keys().isdisjoint(probe.left_out) and len(probe.remarks()) == 2 - len(figures) == len(reasons)
    for line, reason in zip(probe.remarks(), reasons, strict=True):
        assert line.startswith("note: there is no probe_") and f"{tmp_path}, split gallery: {reason}" in line


def test_distractors_of_market1501_are_wrong_matches_only(tiny_labeled, tmp_path, backbone):
    """The figure equals that of a set in which each distractor is a person of its own; in other kinds of sets 0 is a person."""

    def label(alone: bool, row: int, key: str, split: str, pid: int, camid: int) -> tuple[int, int]:
        return ((1000 + row if alone else 0), camid) if row % 4 == 0 and split == "gallery" else (pid + 1, camid)

    def value(name: str, kind: str, alone: bool) -> float:
        location = open_storage(str(tmp_path / name))
        return probe_of(with_labels(tiny_labeled, location, partial(label, alone), source={"kind": kind}))(backbone)[MAP]

    market, apart, folder = value("market", "market1501", False), value("apart", "folder", True), value("folder", "folder", False)
    assert market == apart != folder
