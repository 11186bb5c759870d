"""Export of a model as a folder of torch.hub: it loads with torch, timm and safetensors, without this library.

The folder holds the weights, the sizes (config.json), the entry points (hubconf.py) and, for a convolution stem, the source of
reidssl/models/ics.py, so that the stem exists once.
"""

import inspect
import json
from collections.abc import Sequence
from typing import Any

import safetensors.torch

from reidssl.models import ics
from reidssl.models.exported import neck_folded, refuse
from reidssl.models.reid import ReidModel
from reidssl.models.vit import Vit
from reidssl.precision import widened

ENTRY_POINTS = '''"""Entry points of torch.hub for this model. It needs torch, timm and safetensors.

model = torch.hub.load("<this folder>", "reid", source="local")   # pixels to normalized features, as in evaluation
vit = torch.hub.load("<this folder>", "vit", source="local")      # the vision transformer alone, to train it further
"""

import json
from pathlib import Path

import safetensors.torch
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

dependencies = ["torch", "timm", "safetensors"]
FOLDER = Path(__file__).resolve().parent
CONFIG = json.loads((FOLDER / "config.json").read_text())


class Projection(nn.Module):
    """The plain stem: one linear projection of each patch."""

    def __init__(self, width, patch_size, stride):
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=stride)

    def forward(self, images):
        return self.proj(images)


class Stem(nn.Module):
    """Images (B, 3, H, W) to tokens (B, N, D), as timm's PatchEmbed, around one of the stems."""

    def __init__(self, **_):
        super().__init__()
        width, patch, stride = CONFIG["width"], CONFIG["patch_size"], CONFIG["stride"]
        if CONFIG["stem"] == "ics":
            from ics import IcsStem

            self.stem = IcsStem(width, patch, stride, CONFIG["stem_width"])
        else:
            self.stem = Projection(width, patch, stride)
        height, wide = CONFIG["image_size"]
        self.num_patches = ((height - patch) // stride + 1) * ((wide - patch) // stride + 1)

    def forward(self, images):
        return self.stem(images).flatten(2).transpose(1, 2)


class Embedder(nn.Module):
    """Pixels, uint8 or float (B, 3, H, W) of 0 to 255, RGB, of the size in config.json -> features (B, D) of length 1."""

    def __init__(self, vit):
        super().__init__()
        self.vit = vit
        for name in ("mean", "std"):
            self.register_buffer(name, 255 * torch.tensor(CONFIG[name]).view(3, 1, 1), persistent=False)

    def forward(self, pixels):
        return nn.functional.normalize(self.vit((pixels.float() - self.mean) / self.std), dim=-1)


def vit(pretrained=True):
    """timm's VisionTransformer with this model's stem: normalized images (B, 3, H, W) -> features (B, D)."""
    model = VisionTransformer(
        img_size=tuple(CONFIG["image_size"]),
        patch_size=CONFIG["patch_size"],
        num_classes=0,
        embed_dim=CONFIG["width"],
        depth=CONFIG["depth"],
        num_heads=CONFIG["heads"],
        mlp_ratio=CONFIG["mlp_ratio"],
        init_values=CONFIG["layer_scale"] or None,
        norm_layer=lambda width, **options: nn.LayerNorm(width, eps=CONFIG["norm_eps"], **options),
        embed_layer=Stem,
    )
    if pretrained:
        tensors = safetensors.torch.load_file(FOLDER / "model.safetensors")
        model.load_state_dict({name.replace("patch_embed.", "patch_embed.stem."): value for name, value in tensors.items()})
    return model


def reid(pretrained=True):
    """The whole model in evaluation mode."""
    return Embedder(vit(pretrained)).eval()
'''


def hub_files(model: Vit | ReidModel, mean: Sequence[float], std: Sequence[float], neck: str = "before") -> dict[str, bytes]:
    """Names and contents of the files of the folder. With neck="after" the neck is folded into the last layer norm.

    Raises ValueError for a model with camera embeddings, GeM pooling or a jigsaw branch.
    """
    vit = model if isinstance(model, Vit) else model.backbone
    refuse(model, ("cameras", "gem", "jigsaw"), "the folder for torch.hub", "export it as safetensors (for reidssl) or onnx")
    files = {
        "model.safetensors": safetensors.torch.save(neck_folded(model, neck), {"format": "pt"}),
        "config.json": json.dumps(hub_config(vit, mean, std), indent=1).encode(),
        "hubconf.py": ENTRY_POINTS.encode(),
    }
    if vit.config.stem == "ics":
        files["ics.py"] = stem_source().encode()
    return files


def hub_config(vit: Vit, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """The sizes that the entry points read."""
    config = vit.config
    names = ("patch_size", "stem", "stem_width", "width", "depth", "heads", "mlp_ratio", "layer_scale", "norm_eps")
    return {
        "image_size": list(config.image_size),
        "stride": config.stride or config.patch_size,
        "mean": list(mean),
        "std": list(std),
        **{name: getattr(config, name) for name in names},
    }


def stem_source() -> str:
    """Source of ics.py with the one function that it imports from this library in the place of the import."""
    text = inspect.getsource(ics)
    imported = "from reidssl.precision import widened\n"
    assert text.count("reidssl.precision") == text.count("import widened") == 1 and imported in text
    return text.replace(imported, f"\n{inspect.getsource(widened)}")
