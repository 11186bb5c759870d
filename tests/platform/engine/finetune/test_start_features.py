"""What tells the features of initial weights apart: everything that they depend on, also what leaves no tensor."""

from dataclasses import replace

import pytest

from platform.engine.data.image_set import ImageSet
from platform.engine.finetune.start_features import key_of
from platform.engine.schemas.training_settings import EngineSettings
from reidssl.augment.augment_config import ReidAugmentConfig
from reidssl.models.model_config import VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.vit import build_vit

SIZE = (64, 32)
VIT = VitConfig(width=32, depth=1, heads=2, patch_size=16, stem="patch", image_size=SIZE)


def key(images: ImageSet, vit: VitConfig, **changes) -> str:
    arguments = {"neck": "after", "augment": ReidAugmentConfig(), "engine": EngineSettings(zero_stage=0), "flip": False}
    return key_of(ReidModel(build_vit(vit, seed=0)), images, **{**arguments, **changes})


@pytest.fixture(scope="module")
def images(tiny_labeled):
    return ImageSet(tiny_labeled, ["query"], SIZE)


@pytest.mark.parametrize("changes", [{"heads": 4}, {"gem_pooling": True}, {"camera_weight": 1.0}])
def test_settings_without_a_tensor_count(images, changes):
    assert key(images, replace(VIT, **changes)) != key(images, VIT)


def test_drop_path_does_not_count_since_features_are_without_it(images):
    assert key(images, replace(VIT, drop_path=0.3)) == key(images, VIT)


def test_images_and_the_way_to_extract_count(images, tiny_labeled):
    bilinear, gallery = ImageSet(tiny_labeled, ["query"], SIZE, resize="bilinear"), ImageSet(tiny_labeled, ["gallery"], SIZE)
    found = [key(one, VIT) for one in (images, bilinear, gallery)]
    found += [key(images, VIT, flip=True), key(images, VIT, neck="before")]
    images.camera_rows = images.camids % 3
    found += [key(images, VIT)]
    images.camera_rows = images.camids % 2
    found += [key(images, VIT)]
    images.camera_rows = None
    assert len(set(found)) == len(found) and key(images, VIT) == found[0]
