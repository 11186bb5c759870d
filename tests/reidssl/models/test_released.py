"""Names, shapes and position embeddings of released checkpoints."""

import pytest
import torch

from reidssl.models.model_config import VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.released import infer_vit_config, pos_grid, resize_pos_embed, to_flat, to_released
from reidssl.models.vit import build_vit
from reidssl.models.weights import load_into
from tests.reference.fill_weights import arrays, released_state_dict

LAYOUTS = {
    "dino_ours_vit_small": ("dino", "ics", None),
    "dino_vit_small": ("dino", "patch", None),
    "build_transformer_vit_small_ics": ("reid", "ics", 751),
    "clustercontrast_vit_small": ("cluster_contrast", "patch", 0),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_released_names_map_both_ways(name):
    """Every tensor of a released file is loaded into the model and written back under its own name with the same values."""
    layout, stem, num_classes = LAYOUTS[name]
    released = released_state_dict(name)
    released = {key: value for key, value in released.items() if not key.removeprefix("base.").startswith("fc.")}
    backbone = build_vit(VitConfig(stem=stem))
    model = backbone if num_classes is None else ReidModel(backbone, num_classes)
    report = load_into(model, {to_flat(key): value for key, value in released.items()}, name)
    assert report.missing == [] and report.skipped == [] and report.resized == []
    back = to_released(model.state_dict(), layout)
    assert back.keys() == released.keys()
    assert all(torch.equal(back[key], released[key]) for key in released)


def test_layouts_leave_out_what_they_have_no_place_for():
    config = VitConfig(width=24, depth=1, heads=3, patch_size=8, image_size=(32, 16), num_cameras=2)
    model = ReidModel(build_vit(config), num_classes=3)
    dino = to_released(model.state_dict(), "dino")
    assert "sie_embed" in dino and "patch_embed.conv.1.IN.weight" in dino
    assert not any(name.startswith(("bottleneck", "classifier", "base")) for name in dino)
    contrast = to_released(model.state_dict(), "cluster_contrast")
    assert "bottleneck.weight" in contrast and "classifier.weight" not in contrast
    assert to_flat("module.backbone.sie_embed") == "camera_embed"
    with pytest.raises(ValueError, match="without neck"):
        to_released(model.backbone.state_dict(), "reid")
    with pytest.raises(ValueError, match="layout must be one of"):
        to_released(model.state_dict(), "onnx")


@pytest.mark.parametrize("case", ["sq14_to_16x8_r1", "h16w8_to_24x8_r2"])
def test_resized_position_embeddings_equal_released(case):
    reference = arrays("pos_embed.npz")
    rows, columns, _ = reference[f"{case}_hw"].tolist()
    resized = resize_pos_embed(reference[f"{case}_in"], (rows, columns))
    torch.testing.assert_close(resized, reference[f"{case}_out"], atol=1e-6, rtol=0)


def test_pos_grid():
    assert [pos_grid(n) for n in (196, 128, 192, 32)] == [(14, 14), (16, 8), (24, 8), (8, 4)]
    assert [pos_grid(n, ratio) for n, ratio in ((196, 1), (128, 2), (16, 4))] == [(14, 14), (16, 8), (8, 2)]
    with pytest.raises(ValueError, match="13 patches"):
        pos_grid(13)
    assert pos_grid(128, 2.0) == (16, 8)
    for ratio in (0, 0.5, 1.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"hw_ratio must be 1 .*whole number.*got {ratio}"):
            pos_grid(16, ratio)


def test_published_ratio_rule_equals_released():
    """The rule with hw_ratio gives the reference outputs."""
    reference = arrays("pos_embed.npz")
    for case in ("sq14_to_16x8_r1", "h16w8_to_24x8_r2"):
        rows, columns, ratio = reference[f"{case}_hw"].tolist()
        resized = resize_pos_embed(reference[f"{case}_in"], (rows, columns), hw_ratio=ratio)
        torch.testing.assert_close(resized, reference[f"{case}_out"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        VitConfig(width=128, depth=2, heads=2, image_size=(128, 64)),
        VitConfig(width=64, depth=1, heads=1, patch_size=8, stem="patch", image_size=(96, 32), mlp_ratio=2.0),
        VitConfig(width=64, depth=1, heads=1, patch_size=8, stem_width=8, image_size=(32, 32), num_cameras=4),
    ],
)
def test_config_is_inferred_from_shapes(config):
    assert infer_vit_config(build_vit(config).state_dict(), "file", heads=config.heads) == config


def test_strange_file_is_explained():
    with pytest.raises(ValueError, match=r"resnet\.pth is no vision transformer"):
        infer_vit_config({"conv1.weight": torch.zeros(1)}, "resnet.pth", heads=6)
