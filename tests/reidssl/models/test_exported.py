"""Exported models give the same features as the original, in the library that they are exported for."""

import dataclasses
import json

import pytest
import safetensors.torch
import timm
import torch
from torch.nn import functional as F

from reidssl.models.exported import Embedder, onnx_bytes, run_onnx, timm_config, timm_state_dict
from reidssl.models.model_config import VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.vit import build_vit
from tests.reference.fill_weights import images

SMALL = VitConfig(width=24, depth=2, heads=3, patch_size=8, image_size=(32, 16), stem_width=8)
STATISTICS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


def trained(config: VitConfig) -> ReidModel:
    """A model whose neck changes the features."""
    model = ReidModel(build_vit(config, seed=1), num_classes=3)
    with torch.no_grad():
        for norm in (model.bottleneck, *(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
        model.bottleneck.weight.uniform_(0.5, 2)
    return model.eval()


def pixels(batch: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, 32, 16), generator=torch.Generator().manual_seed(batch), dtype=torch.uint8)


@torch.no_grad()
@pytest.mark.parametrize("layer_scale", [0.0, 0.5])
@pytest.mark.parametrize("neck", ["before", "after"])
def test_timm_builds_it_from_the_folder(tmp_path, neck, layer_scale):
    model = trained(dataclasses.replace(SMALL, stem="patch", layer_scale=layer_scale))
    safetensors.torch.save_file(timm_state_dict(model, neck), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(timm_config(model.backbone, **STATISTICS)))
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    expected = getattr(model(images(32, 16)), neck)
    torch.testing.assert_close(loaded(images(32, 16)), expected, atol=1e-5, rtol=1e-5)
    data = timm.data.resolve_model_data_config(loaded)
    assert data["input_size"] == (3, 32, 16) and data["crop_pct"] == 1.0
    assert (list(data["mean"]), list(data["std"])) == (STATISTICS["mean"], STATISTICS["std"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stem": "ics"}, "does not have the ics stem"),
        ({"stride": 4}, "stride 4"),
        ({"num_cameras": 2}, "camera"),
        ({"gem_pooling": True}, "GeM"),
    ],
)
def test_what_timm_does_not_have(changes, words):
    model = build_vit(dataclasses.replace(SMALL, **{"stem": "patch", **changes}))
    with pytest.raises(ValueError, match=words):
        timm_state_dict(model)


@torch.no_grad()
@pytest.mark.parametrize(("changes", "neck"), [({}, "after"), ({"stem": "patch", "stride": 4, "gem_pooling": True}, "before")])
def test_onnx_for_any_batch(changes, neck):
    model = trained(dataclasses.replace(SMALL, **changes))
    embedder = Embedder(model, neck=neck, **STATISTICS)
    data = onnx_bytes(embedder)
    for batch in (1, 2, 7):
        mean, std = (torch.tensor(STATISTICS[name]).view(3, 1, 1) for name in ("mean", "std"))
        feature = getattr(model((pixels(batch) / 255 - mean) / std), neck)
        torch.testing.assert_close(
            torch.from_numpy(run_onnx(data, pixels(batch).numpy())), F.normalize(feature), atol=1e-4, rtol=0
        )


def test_onnx_that_computes_something_else_is_not_exported(monkeypatch):
    monkeypatch.setattr("reidssl.models.exported.run_onnx", lambda data, images: run_onnx(data, images) + 2e-4)
    with pytest.raises(RuntimeError, match=r"features of 1 images differ from the original's by 2.*e-04, more than 1e-04"):
        onnx_bytes(Embedder(build_vit(SMALL), **STATISTICS))


def test_cameras_are_refused():
    with pytest.raises(ValueError, match="embeddings of 2 cameras"):
        Embedder(build_vit(dataclasses.replace(SMALL, num_cameras=2)), **STATISTICS)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime is not installed.*pip install '\.\[onnx\]'"):
        onnx_bytes(Embedder(build_vit(SMALL), **STATISTICS))
