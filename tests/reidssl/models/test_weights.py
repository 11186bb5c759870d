"""Model files: round trips, released files, resizing, and models that do not fit."""

import argparse
import dataclasses
import io
import json

import numpy as np
import pytest
import safetensors.torch
import torch

from reidssl.models.model_config import VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.released import LAYOUTS, released_checkpoint, resize_pos_embed, to_released
from reidssl.models.vit import build_vit
from reidssl.models.weights import (
    CheckpointMismatch,
    load_reid,
    load_vit,
    model_bytes,
    read_checkpoint,
    read_metadata,
    save_model,
    weights_hash,
)
from tests.reference.fill_weights import arrays, images, released_state_dict

SMALL = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=(32, 16), stem_width=8)


def torch_bytes(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def trained(config: VitConfig = SMALL, num_classes: int | None = None):
    """A model whose batch norms have statistics other than the initial ones."""
    model = build_vit(config, seed=3)
    if num_classes is not None:
        model = ReidModel(model, num_classes, seed=4)
    model.train()
    model(images(32, 16))
    return model.eval()


def test_backbone_round_trip(tmp_path):
    vit = trained()
    save_model(vit, {"note": "hello", "curve": [1, 2]}, tmp_path / "backbone.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["backbone.safetensors"]
    again = load_vit(tmp_path / "backbone.safetensors")
    assert again.config == SMALL and not again.training
    assert weights_hash(again) == weights_hash(vit)
    assert torch.equal(again(images(32, 16)), vit(images(32, 16)))
    metadata = read_metadata(tmp_path / "backbone.safetensors")
    assert metadata["kind"] == "backbone" and metadata["note"] == "hello" and json.loads(metadata["curve"]) == [1, 2]
    assert VitConfig(**json.loads(metadata["vit"])) == SMALL


@pytest.mark.parametrize("num_classes", [0, 5])
def test_reid_round_trip(num_classes):
    model = trained(num_classes=num_classes)
    data = model_bytes(model)
    again = load_reid(data)
    assert again.num_classes == num_classes and not again.training
    assert weights_hash(again) == weights_hash(model)
    assert read_metadata(data)["num_classes"] == str(num_classes)
    assert weights_hash(load_vit(data)) == weights_hash(model.backbone)


def test_hash_sees_values_and_names():
    vit = trained()
    before = weights_hash(vit)
    with torch.no_grad():
        vit.norm.bias[0] += 1e-6
    assert weights_hash(vit) != before


def test_changes_at_loading_resize_and_reconfigure():
    vit = trained()
    larger = load_vit(model_bytes(vit), image_size=(48, 16), drop_path=0.3, num_cameras=2)
    assert larger.config == dataclasses.replace(SMALL, image_size=(48, 16), drop_path=0.3, num_cameras=2)
    assert larger.pos_embed.shape == (1, 1 + 12, 24)
    assert torch.equal(larger.pos_embed[:, :1], vit.pos_embed[:, :1])


@pytest.mark.parametrize("load", [load_vit, lambda data, **changes: load_reid(data, **changes).backbone])
def test_own_files_know_their_grid(load):
    """By their number alone, 8 x 2 patches look like 4 x 4."""
    model = ReidModel(build_vit(dataclasses.replace(SMALL, image_size=(64, 16))))
    rows = torch.arange(8.0).repeat_interleave(2)[:, None].expand(16, 24)
    with torch.no_grad():
        model.backbone.pos_embed[:, 1:] = rows
    taller = load(model_bytes(model), image_size=(128, 16))
    grid = taller.pos_embed[0, 1:].unflatten(0, (16, 2))
    assert (grid.diff(dim=0) >= 0).all()
    torch.testing.assert_close(grid[:, 0], grid[:, 1])


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"teacher": s, "epoch": 3, "args": argparse.Namespace(lr=0.1)}])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_released_pretraining_files_load_by_themselves(wrap, prefix, tmp_path):
    """The configuration comes from the shapes, with any wrappers around the names; DINO's head is skipped."""
    vit = trained(dataclasses.replace(SMALL, width=64, heads=1))
    state = {prefix + name: value for name, value in to_released(vit.state_dict(), "dino").items()}
    state["head.last_layer.weight_v"] = torch.zeros(2, 2)
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(torch_bytes(wrap(state)))
    assert weights_hash(load_vit(path)) == weights_hash(vit)


@torch.no_grad()
def test_released_supervised_file_gives_the_released_features():
    model = load_reid(torch_bytes(released_state_dict("build_transformer_vit_small_ics")))
    expected = arrays("models.npz")["build_transformer_vit_small_ics_eval_after"]
    assert model.num_classes == 751
    torch.testing.assert_close(model(images()).after, expected, atol=1e-5, rtol=0)


def test_one_of_several_models_in_a_training_checkpoint(tmp_path):
    teacher, student = trained(), build_vit(SMALL, seed=9)
    content = {
        "student": {"module.backbone." + n: v for n, v in student.state_dict().items()},
        "teacher": {"backbone." + n: v for n, v in teacher.state_dict().items()},
    }
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(torch_bytes(content))
    for weights, expected in (("", teacher), ("teacher", teacher), ("student", student)):
        tensors = read_checkpoint(path, weights).tensors
        assert all(torch.equal(tensors[name], value) for name, value in expected.state_dict().items())
    with pytest.raises(ValueError, match=r"no weights under 'ema'; it holds 2 entries \('student', 'teacher'\)"):
        read_checkpoint(path, "ema")


def test_cluster_contrast_checkpoint_with_its_score(tmp_path):
    """The published training stores a NumPy number beside the weights; the file is accepted."""
    model = trained(dataclasses.replace(SMALL, width=64, heads=1), num_classes=0)
    content = released_checkpoint(model.state_dict(), "cluster_contrast") | {"epoch": 50, "best_mAP": np.float64(0.5)}
    checkpoint = read_checkpoint(torch_bytes(content))
    assert checkpoint.layout == "cluster_contrast" and checkpoint.is_reid
    assert weights_hash(load_reid(checkpoint)) == weights_hash(model)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stem", ["ics", "patch"])
def test_every_layout_comes_back_from_a_file(layout, stem, tmp_path):
    model = trained(dataclasses.replace(SMALL, width=64, heads=1, stem=stem), num_classes=4)
    torch.save(released_checkpoint(model.state_dict(), layout), tmp_path / "released.pth")
    checkpoint = read_checkpoint(tmp_path / "released.pth")
    if layout.startswith("dino"):
        assert weights_hash(load_vit(checkpoint)) == weights_hash(model.backbone) and checkpoint.layout == "dino"
        return
    again = load_reid(checkpoint)
    assert checkpoint.layout == layout and again.num_classes == (4 if layout == "reid" else 0)
    torch.testing.assert_close(again(images(32, 16)).after, model(images(32, 16)).after)


def test_hw_ratio_says_which_grid(tmp_path):
    """16 patches are read as 4 x 4 by their number alone, and as 8 x 2 with hw_ratio."""
    vit = build_vit(dataclasses.replace(SMALL, width=64, heads=1, image_size=(64, 16)))
    torch.save(vit.state_dict(), tmp_path / "backbone.pth")
    assert load_vit(tmp_path / "backbone.pth").config.image_size == (32, 32)
    assert load_vit(tmp_path / "backbone.pth", hw_ratio=4).config.image_size == (64, 16)
    told, reports = load_vit(tmp_path / "backbone.pth", image_size=(64, 16), on_load=print), []
    assert weights_hash(told) == weights_hash(vit)
    larger = load_vit(tmp_path / "backbone.pth", hw_ratio=4, image_size=(96, 32), on_load=reports.append)
    assert reports[0].grids == ((8, 2), (12, 4))
    expected = resize_pos_embed(vit.pos_embed, (12, 4), (8, 2))
    assert torch.equal(larger.pos_embed, expected) and torch.equal(expected, resize_pos_embed(vit.pos_embed, (12, 4), hw_ratio=4))


def test_overlapping_patches_are_told_by_the_caller(tmp_path):
    vit = build_vit(dataclasses.replace(SMALL, width=64, heads=1, stride=6, image_size=(64, 32)))
    torch.save(vit.state_dict(), tmp_path / "backbone.pth")
    assert weights_hash(load_vit(tmp_path / "backbone.pth", stride=6, image_size=(64, 32))) == weights_hash(vit)


def test_a_ratio_counts_only_where_the_numbers_of_patches_differ():
    """The published rule does not resize otherwise; 24 x 8 patches do not fit a ratio of 2."""
    vit = build_vit(dataclasses.replace(SMALL, width=64, heads=1, image_size=(192, 64)))
    data, reports = torch_bytes(vit.state_dict()), []
    same = load_vit(data, hw_ratio=2, image_size=(192, 64), on_load=reports.append)
    assert torch.equal(same.pos_embed, vit.pos_embed) and reports[0].grids is None
    with pytest.raises(ValueError, match="192 patches fit no grid of height:width 2"):
        load_vit(data, hw_ratio=2, image_size=(192, 32))
    assert load_vit(data, hw_ratio=3.0, image_size=(192, 32)).config.image_size == (192, 32)


@pytest.mark.parametrize(
    ("changed", "where", "words"),
    [
        (
            {"bottleneck.weight": torch.ones(32), "bottleneck.running_var": torch.ones(32)},
            "shapes",
            r"2 of another shape: bottleneck.weight \(32,\) in the file, \(24,\) in the model",
        ),
        (
            {"bottleneck.running_mean": None, "bottleneck.bias": None},
            "missing",
            "2 missing: bottleneck.bias, bottleneck.running_mean",
        ),
        ({"classifier.weight": torch.ones(5, 32)}, "shapes", r"1 of another shape: classifier.weight \(5, 32\)"),
        ({"classifier.bias": torch.ones(5)}, "unexpected", "1 unexpected: classifier.bias"),
    ],
)
def test_half_a_reid_model_is_refused(changed, where, words):
    tensors = trained(num_classes=5).state_dict() | changed
    checkpoint = read_checkpoint(torch_bytes({name: value for name, value in tensors.items() if value is not None}))
    checkpoint = checkpoint._replace(metadata={"vit": json.dumps(dataclasses.asdict(SMALL))})
    with pytest.raises(CheckpointMismatch, match=f"does not fit this re-ID model.*{words}.*load_vit takes") as caught:
        load_reid(checkpoint)
    assert [kind for kind in ("missing", "unexpected", "shapes") if getattr(caught.value, kind)] == [where]
    assert load_vit(checkpoint).config == SMALL  # the backbone alone is complete


def test_a_reid_model_may_get_other_cameras():
    data = model_bytes(trained(dataclasses.replace(SMALL, num_cameras=0), num_classes=5))
    assert load_reid(data, num_cameras=3).backbone.camera_embed.shape == (3, 1, 24)


def test_a_training_checkpoint_gives_the_student_or_the_teacher():
    config = dataclasses.replace(SMALL, width=64, heads=1)
    content = {
        name: {f"backbone.{key}": value for key, value in build_vit(config, seed=seed).state_dict().items()}
        for name, seed in (("student", 1), ("teacher", 2))
    }
    assert weights_hash(load_vit(torch_bytes(content))) == weights_hash(build_vit(config, seed=2))
    assert weights_hash(load_vit(torch_bytes(content), weights="student")) == weights_hash(build_vit(config, seed=1))
    with pytest.raises(ValueError, match="without neck"):
        load_reid(torch_bytes(content), weights="student")


def test_released_files_do_not_tell_the_kind_of_classifier():
    model = trained(dataclasses.replace(SMALL, width=64, heads=1), num_classes=4)
    data = torch_bytes(released_checkpoint(model.state_dict(), "reid"))
    assert not load_reid(data).cosine and load_reid(data, cosine=True).cosine
    logits = load_reid(data, cosine=True)(images(32, 16)).logits
    assert logits.abs().max() <= 1 + 1e-6 and not torch.allclose(logits, model(images(32, 16)).logits)
    model.reset_classifier(4, cosine=True)
    assert load_reid(model_bytes(model)).cosine and not load_reid(model_bytes(model), cosine=False).cosine


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    vit = trained()
    with torch.no_grad():
        vit.blocks[1].mlp.fc1.bias[0] = value
        vit.norm.weight[3] = value
    with pytest.raises(ValueError, match=r"not finite.* in 2 tensors: blocks.1.mlp.fc1.bias, norm.weight"):
        load_vit(model_bytes(vit))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('{"width": 24, "color": 1}', "color"),
        ('{"width": 2', "delimiter"),
        ("[1]", "must be a mapping"),
        ('{"width": "24"}', "str"),
    ],
)
def test_a_header_that_is_not_ours_is_named(entry, words, tmp_path):
    tensors = {name: value.contiguous() for name, value in trained().state_dict().items()}
    safetensors.torch.save_file(tensors, tmp_path / "odd.safetensors", metadata={"vit": entry})
    with pytest.raises(ValueError, match=rf'odd\.safetensors has a "vit" entry in its header that is no configuration.*{words}'):
        load_vit(tmp_path / "odd.safetensors")


def test_unknown_changes_are_named():
    with pytest.raises(ValueError, match=r"color, size cannot be changed: a backbone's configuration has width, depth"):
        load_vit(model_bytes(trained()), size=3, color=1)


def test_backbone_is_not_a_reid_model():
    with pytest.raises(ValueError, match="without neck"):
        load_reid(model_bytes(trained()))
