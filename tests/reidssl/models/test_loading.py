"""Copying checkpoints into models: everything or nothing, with a report."""

import dataclasses

import pytest
import torch

from reidssl.models.loading import CheckpointMismatch, load_into
from reidssl.models.model_config import VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.released import to_flat
from reidssl.models.vit import build_vit

SMALL = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=(32, 16), stem_width=8)


def tensors_of(config: VitConfig = SMALL, num_classes: int = 5) -> dict[str, torch.Tensor]:
    model = ReidModel(build_vit(config, seed=3), num_classes)
    return {to_flat(name): value for name, value in model.state_dict().items()}


def values(model) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def test_report_names_what_happened():
    model = ReidModel(build_vit(dataclasses.replace(SMALL, image_size=(48, 16))), num_classes=6)
    untouched = model.classifier.weight.clone()
    heads = {"fc.weight": torch.zeros(1), "head.mlp.0.weight": torch.zeros(1), "mask_token": torch.zeros(1)}
    report = load_into(model, tensors_of() | heads, "file")
    assert report.resized == ["pos_embed"] and "pos_embed" in report.loaded and report.grids == ((4, 2), (6, 2))
    assert report.skipped == ["classifier.weight", "fc.weight", "head.mlp.0.weight", "mask_token"]
    assert report.missing == ["classifier.weight"]
    assert torch.equal(model.classifier.weight, untouched)
    assert str(report) == (
        f"{len(report.loaded)} tensors loaded, position embeddings resized from 4 x 2 to 6 x 2 patches, "
        "4 skipped (classifier, fc, head, mask_token), 1 left as they were (classifier)"
    )


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"stem": "patch"}, {"unexpected", "shapes"}),
        ({"depth": 3}, {"missing"}),
        ({"depth": 1}, {"unexpected"}),
        ({"width": 48}, {"shapes"}),
        ({"patch_size": 16}, {"shapes"}),
        ({"layer_scale": 0.1}, {"missing"}),
    ],
)
def test_another_backbone_is_refused_and_left_alone(changes, kinds):
    """A deeper backbone is refused too, because half of its blocks would stay random."""
    model = ReidModel(build_vit(dataclasses.replace(SMALL, **changes)))
    before = values(model)
    with pytest.raises(CheckpointMismatch, match=r"^file does not fit .*stem, depth and width") as caught:
        load_into(model, tensors_of(), "file")
    assert {kind for kind in ("missing", "unexpected", "shapes") if getattr(caught.value, kind)} == kinds
    assert all(torch.equal(old, new) for old, new in zip(before, values(model), strict=True))


def test_the_whole_list_of_differences():
    model = build_vit(dataclasses.replace(SMALL, depth=3))
    with pytest.raises(CheckpointMismatch, match=r"12 missing: .* and 6 more; 1 unexpected: extra.weight; 1 of") as caught:
        load_into(model, tensors_of() | {"extra.weight": torch.zeros(1), "norm.bias": torch.zeros(7)}, "file")
    assert caught.value.missing == sorted(n for n in model.state_dict() if n.startswith("blocks.2."))
    assert caught.value.unexpected == ["extra.weight"]
    assert caught.value.shapes == {"norm.bias": ((7,), (24,))}


def test_counters_of_batches_may_be_absent():
    """Files of old torch versions lack them."""
    tensors = {name: value for name, value in tensors_of().items() if not name.endswith("num_batches_tracked")}
    report = load_into(ReidModel(build_vit(SMALL), 5), tensors, "file")
    assert all(name.endswith("num_batches_tracked") for name in report.missing) and report.missing


@pytest.mark.parametrize("known", [True, False])
def test_as_many_patches_are_the_same_grid_unless_it_is_known(known):
    square = dataclasses.replace(SMALL, image_size=(32, 32))  # 4 x 4
    tall = build_vit(dataclasses.replace(SMALL, image_size=(64, 16)))  # 8 x 2
    tensors = {name: value for name, value in tensors_of(square).items()}
    report = load_into(tall, tensors, "file", source_grid=(4, 4) if known else None)
    assert report.grids == (((4, 4), (8, 2)) if known else None)
    assert torch.equal(tall.pos_embed, tensors["pos_embed"]) is not known


def test_a_wrong_ratio_is_explained():
    tensors = tensors_of(dataclasses.replace(SMALL, image_size=(64, 24)))  # 8 x 3
    with pytest.raises(ValueError, match=r"24 patches fit no grid of height:width 2; give the hw_ratio"):
        load_into(build_vit(SMALL), tensors, "file", hw_ratio=2)


def test_a_ratio_does_not_touch_a_grid_of_as_many_patches():
    """This holds even for a grid that does not fit the ratio: the published rule is for other numbers of patches."""
    config = dataclasses.replace(SMALL, image_size=(64, 24))  # 8 x 3
    tensors, model = tensors_of(config), build_vit(config)
    assert load_into(model, tensors, "file", hw_ratio=2).grids is None
    assert torch.equal(model.pos_embed, tensors["pos_embed"])


def test_what_may_be_replaced_is_the_callers_choice():
    model = ReidModel(build_vit(SMALL), num_classes=6)
    before = values(model)
    with pytest.raises(CheckpointMismatch, match=r"classifier.weight \(5, 24\) in the file, \(6, 24\) in the model"):
        load_into(model, tensors_of(), "file", replaceable=("camera_embed",))
    assert all(torch.equal(old, new) for old, new in zip(before, values(model), strict=True))
    assert load_into(model, tensors_of(), "file").missing == ["classifier.weight"]
