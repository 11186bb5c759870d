"""The same model inside the wrappers of common training code: found, renamed, and with the features of the original."""

import json
from functools import partial

import pytest
import safetensors.torch
import torch
from timm.models.vision_transformer import VisionTransformer

from reidssl.models.hugging_face import describe
from reidssl.models.weights import LoadConfig, Unsaid, load_vit
from tests.reference.fill_weights import images


def timm_vit(heads: int = 4, eps: float = 1e-6, **options) -> VisionTransformer:
    torch.manual_seed(heads)
    settings = {"img_size": 64, "patch_size": 16, "embed_dim": 96, "depth": 2, "num_heads": heads, "num_classes": 0}
    model = VisionTransformer(**{**settings, **options}, norm_layer=partial(torch.nn.LayerNorm, eps=eps)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


MODEL = timm_vit()
STATE = MODEL.state_dict()


def prefixed(prefix: str, state=STATE) -> dict:
    return {prefix + name: value for name, value in state.items()}


@torch.no_grad()
def same_features(source, model=MODEL, size=(64, 64), **options) -> None:
    vit = load_vit(source, **options)
    torch.testing.assert_close(vit(images(*size)), model.forward_features(images(*size))[:, 0], atol=1e-5, rtol=0)


def saved(content, path):
    torch.save(content, path)
    return path


OTHER = {name: value + 1 for name, value in STATE.items()}
WRAPPED = {
    "plain": STATE,
    "data parallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "detectron": {"model": prefixed("backbone.")},
    "fast-reid": {"model": {**prefixed("backbone."), "heads.bottleneck.0.weight": torch.ones(96), "pixel_mean": torch.ones(3)}},
    "transreid": prefixed("base."),
    "lightning": {
        "state_dict": {**prefixed("model."), "criterion.center": torch.ones(3)},
        "pytorch-lightning_version": "2.1",
        "optimizer_states": [{"state": {}}],
        "hyper_parameters": {"lr": 0.1},
    },
    "lightning backbone": {"state_dict": prefixed("model.backbone.vit."), "pytorch-lightning_version": "2.1"},
    "moco": {
        "state_dict": {**prefixed("module.encoder_q."), **prefixed("module.encoder_k.", OTHER), "module.queue": torch.ones(9)}
    },
    "moco v3": {
        "state_dict": {
            **prefixed("module.base_encoder."),
            "module.base_encoder.head.0.weight": torch.ones(9),
            **prefixed("module.momentum_encoder.", OTHER),
            "module.predictor.0.weight": torch.ones(9),
        }
    },
    "moco, a module's backbone": {"state_dict": prefixed("module.backbone.")},
    "dino": {
        "student": prefixed("module.backbone.", OTHER),
        "teacher": prefixed("backbone."),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "epoch": 3,
    },
    "dinov2 in one dict": {
        "teacher": {**prefixed("backbone."), "dino_head.last_layer.weight": torch.ones(9)},
        "student": prefixed("backbone.", OTHER),
    },
    "lightly": {"state_dict": {**prefixed("teacher_backbone."), **prefixed("student_backbone.", OTHER)}},
    "mae": {
        "model": {
            **STATE,
            "mask_token": torch.ones(1, 1, 32),
            "decoder_pos_embed": torch.ones(1, 17, 32),
            "decoder_blocks.0.norm1.weight": torch.ones(32),
            "decoder_pred.weight": torch.ones(9),
        }
    },
    "deeper": {"checkpoint": {"nets": {"encoder": STATE}}, "epoch": 1},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrapped_models_give_their_features(wrapper, tmp_path):
    same_features(saved(WRAPPED[wrapper], tmp_path / "model.pth"), heads=4)


def test_what_was_taken_and_left_out_is_stated(tmp_path):
    reports = []
    load_vit(saved(WRAPPED["dino"], tmp_path / "a.pth"), heads=4, on_load=reports.append)
    load_vit(saved(WRAPPED["lightning"], tmp_path / "b.pth"), heads=4, on_load=reports.append)
    load_vit(saved(WRAPPED["mae"], tmp_path / "c.pth"), heads=4, on_load=reports.append)
    assert "a DINO checkpoint, weights 'teacher' (not student)" in str(reports[0]) and "given: heads 4" in str(reports[0])
    assert "a Lightning checkpoint" in str(reports[1]) and "left out: state_dict" in str(reports[1])
    assert "a MAE checkpoint, of which the encoder is taken" in str(reports[2]) and "decoder_blocks" in str(reports[2])
    assert reports[0].about.as_dict()["weights"] == "teacher" and reports[0].about.as_dict()["given"] == ["heads"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": STATE, "model_ema": OTHER}, "load.weights=model or load.weights=model_ema"),
        ({"state_dict": STATE, "state_dict_ema": OTHER}, "load.weights=state_dict or load.weights=state_dict_ema"),
        ({"state_dict": {**prefixed("model."), **prefixed("ema_model.", OTHER)}}, "load.weights=ema_model or load.weights=model"),
    ],
)
def test_two_models_without_a_usual_one_are_refused_until_one_is_named(content, words, tmp_path):
    path = saved(content, tmp_path / "two.pth")
    with pytest.raises(Unsaid, match=f"two.pth holds several models .* does not say which to take. Give {words}"):
        load_vit(path, heads=4)
    names = [part.split("=")[1] for part in words.split(" or ")]
    kept = [name for name in names if "ema" not in name]
    same_features(path, heads=4, weights=kept[0])
    same_features(path, heads=4, given=LoadConfig(weights=kept[0]))
    with pytest.raises(AssertionError):
        same_features(path, heads=4, weights=next(name for name in names if "ema" in name))


def hugging_face(state, prefix: str = "", dinov2: bool = False) -> dict:
    """A state dict with the names of Hugging Face's ViT (or DINOv2)."""
    renamed = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
        "norm.": "layernorm.",
    }
    inside = {
        "norm1.": "norm1.",
        "norm2.": "norm2.",
        "attn.proj.": "attention.output.dense.",
        "mlp.fc1.": "mlp.fc1.",
        "mlp.fc2.": "mlp.fc2.",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    if not dinov2:
        inside |= {
            "norm1.": "layernorm_before.",
            "norm2.": "layernorm_after.",
            "mlp.fc1.": "intermediate.dense.",
            "mlp.fc2.": "output.dense.",
        }
    found = {}
    for name, value in state.items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            if rest.startswith("attn.qkv."):
                for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    kind = rest.split(".")[-1]
                    found[f"{prefix}encoder.layer.{number}.attention.attention.{part}.{kind}"] = piece.contiguous()
                continue
            old = next(old for old in inside if rest.startswith(old))
            found[f"{prefix}encoder.layer.{number}.{inside[old]}{rest.removeprefix(old)}"] = value
        else:
            old = next(old for old in renamed if name.startswith(old))
            found[f"{prefix}{renamed[old]}{name.removeprefix(old)}"] = value
    return found


CONFIG = {
    "model_type": "vit",
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}


@pytest.mark.parametrize(("prefix", "dinov2"), [("", False), ("vit.", False), ("", True), ("dinov2.", True)])
def test_hugging_face_folder_says_heads_epsilon_and_normalization(prefix, dinov2, tmp_path):
    model = timm_vit(eps=1e-6 if dinov2 else 1e-12, init_values=0.3 if dinov2 else None)
    tensors = hugging_face(model.state_dict(), prefix, dinov2) | {"classifier.weight": torch.ones(7, 96)}
    extra = ("embeddings.mask_token", torch.zeros(1, 96)) if dinov2 else ("pooler.dense.bias", torch.ones(96))
    tensors[prefix + extra[0]] = extra[1]
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(Unsaid, match=r"Hugging Face vision transformer.*heads"):
        load_vit(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | ({"layer_norm_eps": 1e-6} if dinov2 else {})))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}))
    reports = []
    for source in (tmp_path, tmp_path / "model.safetensors"):
        same_features(source, model, on_load=reports.append)
    assert reports[0].about.answers["heads"][:2] == (4, "said") and reports[0].about.answers["mean"].value == [0.1, 0.2, 0.3]
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"hidden_act": "quick_gelu"}))
    with pytest.raises(ValueError, match="activation quick_gelu"):
        load_vit(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            json.dumps(CONFIG | {"layer_norm_eps": None}),
            "layer_norm_eps null in config.json, where a number",
        ),
        (json.dumps(CONFIG | {"layer_norm_eps": [1e-6]}), r"layer_norm_eps \[1e-06\] in config.json"),
        ("[" * 100_000, "has a config.json beside it that is nested too deeply to be read"),
    ],
)
def test_a_damaged_config_json_is_a_value_error(text, words):
    with pytest.raises(ValueError, match=words):
        describe({"config.json": text.encode()}.get, 96, 2)


def test_a_timm_folder_says_it_too(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architecture": "vit_small_patch16_224",
                "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
                "model_args": {"img_size": 64, "embed_dim": 96, "depth": 2, "num_heads": 4},
            }
        )
    )
    reports = []
    same_features(tmp_path, on_load=reports.append)
    assert reports[0].about.answers["heads"][:2] == (4, "said") and reports[0].about.answers["std"][:2] == ([0.5] * 3, "said")


def sharded(folder, table=None) -> None:
    names = sorted(STATE)
    halves = [names[::2], names[1::2]]
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        safetensors.torch.save_file({name: STATE[name] for name in half}, folder / file)
    table = table or {name: file for file, half in zip(files, halves, strict=True) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def test_a_folder_of_shards(tmp_path):
    sharded(tmp_path)
    same_features(tmp_path, heads=4)
    with pytest.raises(ValueError, match="is a sharded safetensors index, a list of files: name its folder"):
        load_vit(tmp_path / "model.safetensors.index.json")
    with pytest.raises(ValueError, match=r"00001-of-00002.safetensors is one shard .*: name its folder"):
        load_vit(tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lists the shard model-00002-of-00002.safetensors, which is not there"):
        load_vit(tmp_path)


@pytest.mark.parametrize("escape", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", "..\\x", ""])
def test_no_shard_lies_outside_the_folder(escape, tmp_path):
    (tmp_path / "model").mkdir()
    safetensors.torch.save_file(STATE, tmp_path / "other.safetensors")
    sharded(tmp_path / "model", dict.fromkeys(STATE, escape))
    with pytest.raises(ValueError, match="which is no plain file name: it is refused"):
        load_vit(tmp_path / "model", heads=4)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder without a model: none of model.safetensors"):
        load_vit(tmp_path)
