"""Model files: round trips, released files, resizing, damaged and dangerous files."""

import argparse
import dataclasses
import io
import json
import pickle

import pytest
import torch

from reidssl.models.checkpoints import (
    load_into,
    load_reid,
    load_vit,
    model_bytes,
    read_metadata,
    read_state_dict,
    save_model,
    weights_hash,
)
from reidssl.models.reid import ReidModel
from reidssl.models.released import to_released
from reidssl.models.vit import VitConfig, build_vit
from tests.reference.fill_weights import arrays, images, released_state_dict

SMALL = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=(32, 16), stem_width=8)


def torch_bytes(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def trained(config: VitConfig = SMALL, num_classes: int | None = None):
    """A model whose batch norms have statistics of their own."""
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
    """8 x 2 patches look like 4 x 4 to a reader who only counts them."""
    model = ReidModel(build_vit(dataclasses.replace(SMALL, image_size=(64, 16))))
    rows = torch.arange(8.0).repeat_interleave(2)[:, None].expand(16, 24)
    with torch.no_grad():
        model.backbone.pos_embed[:, 1:] = rows
    taller = load(model_bytes(model), image_size=(128, 16))
    grid = taller.pos_embed[0, 1:].unflatten(0, (16, 2))
    assert (grid.diff(dim=0) >= 0).all()
    torch.testing.assert_close(grid[:, 0], grid[:, 1])


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"teacher": s, "epoch": 3, "args": argparse.Namespace(lr=0.1)}]
)
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_released_pretraining_files_load_by_themselves(wrap, prefix, tmp_path):
    """Configuration from the shapes, whatever wrappers are around the names; DINO's head is not wanted."""
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


def test_report_names_what_happened():
    source = read_state_dict(model_bytes(trained(num_classes=5)))
    model = ReidModel(build_vit(dataclasses.replace(SMALL, image_size=(48, 16))), num_classes=6)
    untouched = model.classifier.weight.clone()
    report = load_into(model, source | {"fc.weight": torch.zeros(1)}, "file")
    assert report.resized == ["pos_embed"] and "pos_embed" in report.loaded
    assert report.skipped == ["classifier.weight", "fc.weight"]
    assert report.missing == ["classifier.weight"]
    assert torch.equal(model.classifier.weight, untouched)


@pytest.mark.parametrize("changes", [{"stem": "patch"}, {"depth": 3}, {"width": 48}, {"patch_size": 16}])
def test_another_backbone_is_refused_and_left_alone(changes):
    source = read_state_dict(model_bytes(trained()))
    vit = build_vit(dataclasses.replace(SMALL, **changes))
    before = weights_hash(vit)
    with pytest.raises(ValueError, match=r"^file.*(has no|has shape).*stem, depth and width"):
        load_into(vit, source, "file")
    assert weights_hash(vit) == before


def test_backbone_is_not_a_reid_model():
    with pytest.raises(ValueError, match="without neck"):
        load_reid(model_bytes(trained()))


class Harmful:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    "data",
    [b"", b"not a model", torch_bytes({"a": Harmful()}), pickle.dumps(Harmful()), model_bytes(trained())[:-100]],
    ids=["empty", "text", "torch-code", "pickle-code", "cut"],
)
def test_damaged_and_dangerous_files_are_refused(data, tmp_path, capsys):
    path = tmp_path / "bad.pth"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"bad\.pth"):
        read_state_dict(path)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [{}, [1], {"epoch": 3}, {"a.b": torch.zeros(1), "module.a.b": torch.zeros(1)}])
def test_files_without_one_state_dict_are_refused(content):
    with pytest.raises(ValueError, match=r"no state dict|twice"):
        read_state_dict(torch_bytes(content))
