"""The re-ID model against the released code."""

import pytest
import torch
from torch.nn import functional as F

from reidssl.models.model_config import VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.released import to_flat
from reidssl.models.vit import build_vit
from reidssl.models.weights import load_into, load_reid, model_bytes
from tests.reference.fill_weights import arrays, images, released_state_dict

SMALL = VitConfig(width=24, depth=1, heads=3, patch_size=8, image_size=(32, 16), stem="patch")


def filled(layout: str, config: VitConfig, num_classes: int) -> ReidModel:
    model = ReidModel(build_vit(config), num_classes)
    load_into(model, {to_flat(name): value for name, value in released_state_dict(layout).items()}, layout)
    return model.eval()


@torch.no_grad()
def test_supervised_features_equal_released():
    reference = arrays("models.npz")
    model = filled("build_transformer_vit_small_ics", VitConfig(), num_classes=751)
    output = model(images())
    torch.testing.assert_close(output.before, reference["build_transformer_vit_small_ics_eval_before"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.after, reference["build_transformer_vit_small_ics_eval_after"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.logits, output.after @ model.classifier.weight.T)


@torch.no_grad()
def test_cluster_contrast_embedding_equals_released():
    model = filled("clustercontrast_vit_small", VitConfig(stem="patch"), num_classes=0)
    output = model(images())
    assert output.logits is None
    expected = arrays("models.npz")["clustercontrast_vit_small_out"]
    torch.testing.assert_close(output.embedding("after"), expected, atol=1e-5, rtol=0)


def test_embedding_is_normalized_on_the_chosen_side():
    output = ReidModel(build_vit(SMALL)).train()(images(32, 16))
    torch.testing.assert_close(output.embedding(), output.before / output.before.norm(dim=1, keepdim=True))
    torch.testing.assert_close(output.embedding("after"), F.normalize(output.after, dim=1))
    with pytest.raises(ValueError, match="neck must be one of before, after"):
        output.embedding("middle")


def test_neck_bias_is_fixed_and_classifier_has_none():
    model = ReidModel(build_vit(SMALL), num_classes=5)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"bottleneck.weight", "classifier.weight"} <= names
    assert "bottleneck.bias" not in names and "classifier.bias" not in names


def test_reset_classifier():
    model = ReidModel(build_vit(SMALL), num_classes=5, seed=1)
    neck = model.bottleneck
    model.reset_classifier(7, seed=1)
    assert model(images(32, 16)).logits.shape == (2, 7)
    assert model.bottleneck is neck and model.num_classes == 7
    model.reset_classifier(0)
    assert model(images(32, 16)).logits is None
    with pytest.raises(ValueError, match="num_classes"):
        model.reset_classifier(-1)


@torch.no_grad()
def test_cosine_classifier_gives_cosines_and_is_rebuilt_from_its_file():
    model = ReidModel(build_vit(SMALL), num_classes=5, seed=1, cosine=True).eval()
    output = model(images(32, 16))
    expected = F.cosine_similarity(output.after[:, None], model.classifier.weight[None], dim=2)
    torch.testing.assert_close(output.logits, expected)
    again = load_reid(model_bytes(model))
    assert again.cosine and torch.equal(again(images(32, 16)).logits, output.logits)
    model.reset_classifier(5, seed=1)
    assert not model.cosine and not load_reid(model_bytes(model)).cosine
    torch.testing.assert_close(model(images(32, 16)).logits, output.after @ model.classifier.weight.T)
