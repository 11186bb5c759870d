"""Checkpoints of other models and other kinds of files: the error names the kind and the remedy, and no code runs."""

import io
import json
import zipfile

import numpy as np
import pytest
import timm
import torch

from reidssl.models.exported import torch_bytes
from reidssl.models.weights import load_vit


def meta_state(name: str, prefix: str = "") -> dict:
    """Names and (tiny) tensors of a timm model."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    shapes = {prefix + key: [min(n, 2) if n > 8 else n for n in value.shape] for key, value in model.state_dict().items()}
    return {key: torch.zeros(shape) for key, shape in shapes.items()}


def one(*names: str, shape=(2,)) -> dict:
    return {name: torch.zeros(shape) for name in names}


VIT = one(
    "cls_token",
    "pos_embed",
    "patch_embed.proj.weight",
    "norm.weight",
    "blocks.0.norm1.weight",
    "blocks.0.attn.qkv.weight",
    "blocks.0.mlp.fc1.weight",
    shape=(1, 5, 4, 4),
)
MODELS = {
    "moco resnet": ({"state_dict": meta_state("resnet50", "module.encoder_q.")}, r"is a MoCo ResNet-50 \(convolutional\)"),
    "moco v3 resnet": ({"state_dict": meta_state("resnet50", "module.base_encoder.")}, r"is a MoCo ResNet-50"),
    "resnet": (meta_state("resnet18"), r"is a ResNet-18 \(convolutional\)"),
    "resnet 34": (meta_state("resnet34"), r"is a ResNet-34"),
    "lightning": (
        {"state_dict": meta_state("resnet18", "model."), "pytorch-lightning_version": "2"},
        r"is a ResNet-18 \(convolutional\).*Lightning checkpoint",
    ),
    "swin": (meta_state("swin_tiny_patch4_window7_224"), "is a Swin transformer"),
    "convnext": (meta_state("convnext_tiny"), "is a ConvNeXt"),
    "efficientnet": (meta_state("efficientnet_b0"), "is a convolutional network|is a ConvNeXt"),
    "distilled": (meta_state("deit_small_distilled_patch16_224"), "is a distilled DeiT.*take the published model without"),
    "timm dinov3": (meta_state("vit_small_patch16_dinov3.lvd1689m"), "DINOv3"),
    "dinov3": (VIT | one("rope_embed.periods", "storage_tokens"), "is a DINOv3 model"),
    "hugging face dinov3": (
        one("embeddings.cls_token", "embeddings.register_tokens", "layer.0.attention.q_proj.weight"),
        "DINOv3",
    ),
    "registers": (meta_state("vit_small_patch14_reg4_dinov2"), "register tokens.*without registers"),
    "registers of the hub": (VIT | one("register_tokens"), "register tokens"),
    "swiglu": (VIT | one("blocks.0.mlp.w12.weight"), "SwiGLU"),
    "clip": (one("visual.class_embedding", "visual.transformer.resblocks.0.attn.in_proj_weight"), "is a CLIP model"),
    "hugging face clip": (one("vision_model.encoder.layers.0.layer_norm1.weight"), "is a CLIP model"),
    "timm clip": (meta_state("vit_base_patch32_clip_224"), r"is a CLIP vision transformer"),
    "siglip": (meta_state("vit_base_patch16_siglip_224"), "is a SigLIP model"),
    "beit": (meta_state("beit_base_patch16_224"), "BEiT"),
    "language model": (
        one("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"),
        "is a language model",
    ),
    "bert": (one("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.attention.self.query.weight"), "language model"),
    "lora": (one("base_model.model.blocks.0.attn.qkv.lora_A.weight"), "is an adapter"),
    "jpm": (
        {f"base.{name}": value for name, value in VIT.items()} | one("b1.0.norm1.weight", "b2.0.norm1.weight"),
        "jigsaw branch",
    ),
    "mean pooled": (meta_state("vit_base_patch16_rpn_224"), "no vision transformer that we know|BEiT|does not fit"),
    "optimizer": ({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}, "is the state of an optimizer"),
    "optimizers": ({"optimizer": {"state": {}}, "epoch": 3}, "is the state of an optimizer"),
    "a tensor": (torch.ones(3, 2), r"is one tensor of shape \(3, 2\)"),
    "something": (one("a.weight", "b.weight"), "holds no state dict of a vision transformer that we know; found 2 entries"),
    "nothing": ({"epoch": 1}, "holds no state dict"),
}


@pytest.mark.parametrize("model", MODELS)
def test_other_models_are_named(model, tmp_path):
    content, words = MODELS[model]
    torch.save(content, tmp_path / "theirs.pth")
    with pytest.raises(ValueError, match=rf"theirs.pth.*({words})"):
        load_vit(tmp_path / "theirs.pth", heads=6)


def script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


def numpy_file(save, *arrays, **named) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


BYTES = {
    "torchscript": (script(), "a TorchScript archive, which holds code"),
    "onnx": (b"\x08\x09\x12\x07pytorch\x1a\x052.9.0:\x10", "an ONNX graph"),
    "npy": (numpy_file(np.save, np.ones(3)), "a NumPy array"),
    "npz": (numpy_file(np.savez, a=np.ones(3)), "an archive of NumPy arrays"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    "empty": (b"", "it is empty"),
    "truncated": (torch_bytes({"cls_token": torch.ones(900)})[:700], "damaged|neither"),
    "zip": (zipped("checkpoint.pth"), "a zip archive of 1 files: unpack it"),
    "json": (json.dumps({"a": 1}).encode(), "JSON text"),
    "deep json": (b'{"weight_map": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON text"),
    "old pickle": (b"cos\nsystem\n(S'touch owned'\ntR.", "an old pickle, which can run code and is refused as dangerous"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(32), "an HDF5 file"),
    "gguf": (b"GGUF\x03" + bytes(32), "a GGUF file"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(32), "a picture"),
    "xz": (b"\xfd7zXZ\0" + bytes(32), "xz data: unpack"),
}


@pytest.mark.parametrize("kind", BYTES)
def test_other_files_are_named(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, words = BYTES[kind]
    (tmp_path / "theirs.pth").write_bytes(data)
    with pytest.raises(ValueError, match=rf"theirs.pth is .*({words})"):
        load_vit(tmp_path / "theirs.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pth"]


class Harmful:
    def __reduce__(self):
        return (open, ("owned", "w"))


def test_code_in_a_pickle_is_dangerous_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": VIT, "hook": Harmful()}, "theirs.pth")
    with pytest.raises(ValueError, match=r"theirs.pth holds an object of \S*open and is refused as dangerous"):
        load_vit("theirs.pth")
    assert not (tmp_path / "owned").exists()
