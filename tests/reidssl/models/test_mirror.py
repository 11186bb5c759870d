"""The feature of an image and its mirror image."""

import torch
from torch.nn import functional as F

from reidssl.models.mirror import mirrored_mean
from reidssl.models.reid import ReidModel
from reidssl.models.vit import build_vit
from tests.tiny import TINY_VIT


def test_it_is_the_mean_of_both_features_and_the_same_for_the_mirror_image():
    model = ReidModel(build_vit(TINY_VIT, seed=1)).eval()
    images = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    mirrored = torch.stack([torch.stack([channel[:, list(range(31, -1, -1))] for channel in image]) for image in images])
    with torch.no_grad():
        expected = (model(images).after + model(mirrored).after) / 2
        found = mirrored_mean(lambda given: model(given).feature("after"), images)
        assert torch.allclose(found, expected, atol=1e-6)
        assert torch.allclose(found, mirrored_mean(lambda given: model(given).feature("after"), mirrored), atol=1e-6)
        assert not torch.allclose(F.normalize(found, dim=1), model(images).embedding("after"), atol=1e-3)
