"""The jigsaw branch against a plain implementation, through its model file, and where it has no place."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from reidssl.models.exported import Embedder, onnx_bytes, timm_state_dict
from reidssl.models.jigsaw import shuffle_patches
from reidssl.models.model_config import JigsawConfig, VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.released import LAYOUTS, to_released
from reidssl.models.vit import build_vit
from reidssl.models.weights import load_reid, load_vit, model_bytes
from reidssl.optim import layer_of
from tests.reference.fill_weights import images

SMALL = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=(40, 24), stem="patch")  # 5 x 3 patches
STATISTICS = {"mean": [0.5] * 3, "std": [0.5] * 3}


def trained(jigsaw: JigsawConfig, num_classes: int = 3, cosine: bool = False, **changes) -> ReidModel:
    """A model whose branches differ and whose necks change the features."""
    model = ReidModel(build_vit(dataclasses.replace(SMALL, **changes), seed=1), num_classes, cosine=cosine, jigsaw=jigsaw)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.jigsaw.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        for neck in (model.bottleneck, *model.jigsaw.bottlenecks):
            neck.running_mean.copy_(torch.rand(24, generator=generator))
            neck.running_var.copy_(0.5 + torch.rand(24, generator=generator))
    return model.eval()


def plain_order(number: int, shift: int, groups: int) -> list[int]:
    """Patch numbers after shift and shuffle, as lists.

    Positions in the released code count the class token, so the first patch is position 1 and those from position `shift` on
    come first.
    """
    positions = list(range(number + 1))
    moved = [position - 1 for position in positions[shift:] + positions[1:shift]]
    if number % groups:
        moved.append(moved[-2])
    rows = np.array(moved).reshape(groups, -1)
    return [int(patch) for column in rows.T for patch in column]


@pytest.mark.parametrize(("number", "shift", "groups"), [(8, 5, 2), (15, 5, 2), (15, 1, 3), (14, 4, 5), (210, 5, 2)])
def test_shift_and_shuffle(number, shift, groups):
    patches = torch.randn(2, number, 3)
    assert torch.equal(shuffle_patches(patches, shift, groups), patches[:, plain_order(number, shift, groups)])


@torch.no_grad()
@pytest.mark.parametrize(
    ("jigsaw", "changes"),
    [
        (JigsawConfig(parts=4), {}),
        (JigsawConfig(parts=3, shift=3, groups=4), {"stride": 4, "num_cameras": 2, "image_size": (40, 32)}),
        (JigsawConfig(parts=2), {"stem": "ics", "gem_pooling": True, "image_size": (32, 16), "stem_width": 8}),
    ],
)
def test_features_and_scores_of_whole_and_parts(jigsaw, changes):
    model = trained(jigsaw, **changes)
    vit, branch = model.backbone, model.jigsaw
    batch = images(*vit.config.image_size)
    cameras = torch.arange(len(batch)) % 2 if vit.config.num_cameras else None
    tokens = vit._embed(batch, cameras)
    for block in list(vit.blocks)[:-1]:
        tokens = block(tokens)
    rows, columns = vit.config.grid(*vit.config.image_size)
    order, size = plain_order(rows * columns, jigsaw.shift, jigsaw.groups), rows * columns // jigsaw.parts
    output, local = model(batch, cameras), []
    for part, found in enumerate(output.parts):
        chosen = [0] + [1 + patch for patch in order[part * size : (part + 1) * size]]
        local.append(branch.norm(branch.block(tokens[:, chosen]))[:, 0])
        neck = branch.bottlenecks[part]
        after = (local[-1] - neck.running_mean) / (neck.running_var + neck.eps).sqrt() * neck.weight + neck.bias
        torch.testing.assert_close(found.before, local[-1])
        torch.testing.assert_close(found.after, after)
        torch.testing.assert_close(found.logits, after @ branch.classifiers[part].weight.T)
    assert len(local) == jigsaw.parts
    torch.testing.assert_close(output.before, vit(batch, cameras))  # the global branch is the backbone itself
    parts = [value / jigsaw.parts for value in local]
    torch.testing.assert_close(output.feature("before"), torch.cat([output.before, *parts], dim=1))
    after = torch.cat([output.after, *(found.after / jigsaw.parts for found in output.parts)], dim=1)
    torch.testing.assert_close(output.embedding("after"), F.normalize(after, dim=1))


def test_the_branch_begins_as_a_copy_of_the_last_block():
    model = ReidModel(build_vit(SMALL, seed=1))
    model.add_jigsaw(JigsawConfig(parts=4))
    last, own = model.backbone.blocks[-1].state_dict(), model.jigsaw.block.state_dict()
    assert all(torch.equal(own[name], last[name]) and own[name] is not last[name] for name in last)
    model.reset_classifier(5, seed=2)
    weights = [layer.weight for layer in (model.classifier, *model.jigsaw.classifiers)]
    assert len(weights) == 5 and len({float(weight[0, 0]) for weight in weights}) == 5
    assert not any(neck.bias.requires_grad for neck in model.jigsaw.bottlenecks)
    assert {layer_of(name, 2) for name, _ in model.named_parameters() if name.startswith("jigsaw.block.")} == {2}
    assert layer_of("jigsaw.classifiers.0.weight", 2) == 3


@torch.no_grad()
def test_through_the_model_file():
    model = trained(JigsawConfig(parts=3, shift=4), cosine=True)
    data, batch = model_bytes(model), images(40, 24)
    again = load_reid(data)
    assert again.jigsaw.config == model.jigsaw.config and again.cosine
    assert torch.equal(again(batch).feature("after"), model(batch).feature("after"))
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(again(batch).parts, model(batch).parts, strict=True))
    reports = []
    alone = load_vit(data, on_load=reports.append)
    assert torch.equal(alone(batch), model(batch).before) and "skipped (bottleneck, classifier, jigsaw)" in str(reports[0])
    without = trained(JigsawConfig(parts=3), num_classes=0)
    assert load_reid(model_bytes(without)).jigsaw.config.parts == 3


@pytest.mark.parametrize("entry", ["[", '{"partitions": 4}', '{"parts": -1}'])
def test_a_header_that_describes_no_branch(entry):
    import safetensors.torch

    from reidssl.models.weights import read_metadata

    data = model_bytes(trained(JigsawConfig(parts=3)))
    broken = safetensors.torch.save(safetensors.torch.load(data), read_metadata(data) | {"jigsaw": entry})
    with pytest.raises(ValueError, match='has a "jigsaw" entry in its header that describes no jigsaw branch'):
        load_reid(broken)


def test_layouts_without_a_place_for_it_refuse():
    model = trained(JigsawConfig(parts=4))
    for layout in LAYOUTS:
        with pytest.raises(ValueError, match=f"layout '{layout}' has no place for the local features"):
            to_released(model.state_dict(), layout)
    with pytest.raises(ValueError, match="does not have the local features of a jigsaw branch"):
        timm_state_dict(model)
    embedder = Embedder(model, neck="after", **STATISTICS)
    assert onnx_bytes(embedder)  # checks the features


@pytest.mark.parametrize(
    ("jigsaw", "message"),
    [
        ({"parts": 16}, "parts must be at most 15, the number of patches: got 16"),
        ({"parts": 4, "shift": 16}, "shift must be at most 15, the number of patches: got 16"),
        ({"parts": 4, "groups": 6}, r"groups must divide the number of patches, 15, or 16 \(one is repeated\): got 6"),
    ],
)
def test_what_the_patches_do_not_allow(jigsaw, message):
    with pytest.raises(ValueError, match=message):
        ReidModel(build_vit(SMALL), jigsaw=JigsawConfig(**jigsaw))
    JigsawConfig(**(jigsaw | {"parts": 0})).check(15)  # a branch that is off is not checked
    with pytest.raises(ValueError, match=r"parts must be 0 \(no local features\) or more: got -1"):
        JigsawConfig(parts=-1)
