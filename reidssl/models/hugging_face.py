"""Vision transformers with the parameter names of Hugging Face's transformers, and the config.json of transformers or timm."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from reidssl.models.model_config import VitConfig

_INSIDE = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.", "fc.pooler."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
)
_BLOCK = (
    (r"\.(layernorm_before|norm1)\.", ".norm1."),
    (r"\.(layernorm_after|norm2)\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
_PART = re.compile(r"^(blocks\.\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$")


def is_hugging_face(names: Mapping[str, Tensor]) -> bool:
    """Whether parameter names (below the model's root) are those of transformers' ViT or DINOv2."""
    return "embeddings.cls_token" in names


def to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of transformers' ViT, DeiT, ViT-MAE or DINOv2 under timm's names; other names are kept.

    Query, key and value are concatenated, since timm stores them as one tensor.
    """
    found: dict[str, Tensor] = {}
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, value in tensors.items():
        for pattern, new in _INSIDE:
            name = re.sub(pattern, new, name)
        part = _PART.match(name)
        if part:
            parts.setdefault((part[1], part[3]), {})[part[2]] = value
            continue
        if name.startswith("blocks."):
            for pattern, new in _BLOCK:
                name = re.sub(pattern, new, name)
        found[name] = value
    for (block, kind), three in parts.items():
        if len(three) == 3:
            found[f"{block}.attn.qkv.{kind}"] = torch.cat([three[part] for part in ("query", "key", "value")])
        else:
            found |= {f"{block}.attention.attention.{part}.{kind}": value for part, value in three.items()}
    return found


def describe(beside: Callable[[str], bytes | None], width: int, depth: int) -> dict[str, Any]:
    """Settings of a model from config.json (transformers' or timm's) and preprocessor_config.json.

    Args:
        beside: function from a file name to the content of that file, as `ModelFile.beside`.
        width: embedding width of the model. A config.json with another width or depth is ignored.
        depth: number of transformer blocks of the model.

    Returns:
        The entries of "heads", "norm_eps", "mean", "std" and "neck" that the files state, and "load" with the other fields that
        `describing` wrote; {} if the files describe another model or are missing.

    Raises ValueError for an activation other than GELU, a layer_norm_eps that is none, and a file that is nested too deeply.
    """
    config, found = _json(beside, "config.json"), {}
    sizes = (config.get("hidden_size"), config.get("num_hidden_layers"))
    if isinstance(config.get("num_attention_heads"), int) and sizes == (width, depth):
        if config.get("hidden_act", "gelu") != "gelu":
            raise ValueError(f"is a ViT with the activation {config['hidden_act']} in config.json, and this backbone has gelu")
        found = {"heads": config["num_attention_heads"], "norm_eps": _norm_eps(config.get("layer_norm_eps", 1e-12))}
        picture = _json(beside, "preprocessor_config.json")
        own = config.get("load")
        if isinstance(own, dict):
            found["load"] = {
                name: own[name] for name in ("image_size", "stride", "gem_pooling", "camera_weight", "cameras") if own.get(name)
            }
            found |= {name: own[name] for name in ("mean", "std", "neck") if own.get(name)}
        found |= {new: picture[old] for old, new in (("image_mean", "mean"), ("image_std", "std")) if _three(picture.get(old))}
    elif isinstance(config.get("architecture"), str):
        found = _timm(config, width, depth)
    return found


def describing(config: VitConfig, load: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a config.json, as `describe` reads it, for a model file that cannot store its configuration itself.

    load: fields of LoadConfig to add.
    """
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_eps,
        "load": {
            "image_size": list(config.image_size),
            "stride": config.stride or config.patch_size,
            "gem_pooling": config.gem_pooling,
            **load,
            "camera_weight": config.camera_weight if config.num_cameras else 0.0,
        },
    }


def _timm(config: dict[str, Any], width: int, depth: int) -> dict[str, Any]:
    import timm

    given = config.get("model_args")
    arguments: dict[str, Any] = given if isinstance(given, dict) else {}
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(config["architecture"], pretrained=False, num_classes=0, **arguments)
        sizes = (model.embed_dim, len(model.blocks))
        heads, eps = model.blocks[0].attn.num_heads, model.blocks[0].norm1.eps
    except Exception:  # not an architecture of this timm version, or not a ViT: the file is of no use
        return {}
    if sizes != (width, depth):
        return {}
    found = {"heads": heads, "norm_eps": float(eps)}
    settings = config.get("pretrained_cfg")
    if isinstance(settings, dict):
        found |= {name: settings[name] for name in ("mean", "std") if _three(settings.get(name))}
    return found


def _three(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(isinstance(value, int | float) for value in values)


def _norm_eps(value: Any) -> float:
    try:
        eps = float(value)
    except (TypeError, ValueError, OverflowError):
        eps = 0.0
    if not 0 < eps < 1:
        raise ValueError(
            f"has layer_norm_eps {json.dumps(value)[:40]} in config.json, where a number between 0 and 1 belongs: correct it "
            "(transformers' ViT has 1e-12, DINOv2 1e-6), or fetch the file again"
        )
    return eps


def _json(beside: Callable[[str], bytes | None], name: str) -> dict[str, Any]:
    data = beside(name)
    try:
        found = json.loads(data) if data else {}
    except ValueError:
        return {}
    except RecursionError:
        raise ValueError(f"has a {name} beside it that is nested too deeply to be read: fetch that file again") from None
    return found if isinstance(found, dict) else {}
