"""Models for users of other libraries: a folder that timm loads, and ONNX."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidssl.choices import NECKS
from reidssl.models.reid import ReidModel
from reidssl.models.vit import Vit

ONNX_TOLERANCE = 1e-4


class Embedder(nn.Module):
    """Pixels to the retrieval feature, normalization included: what a service calls.

    Input: float32 (B, 3, H, W), RGB, 0 to 255, H and W as `image_size`. Output: float32 (B, D), L2-normalized.
    """

    def __init__(self, model: Vit | ReidModel, mean: Sequence[float], std: Sequence[float], neck: str = "before") -> None:
        super().__init__()
        vit = model if isinstance(model, Vit) else model.backbone
        if neck not in NECKS:
            raise ValueError(f"neck must be one of {', '.join(NECKS)}: got {neck!r}")
        if vit.config.num_cameras:
            raise ValueError(
                f"the backbone has embeddings of {vit.config.num_cameras} cameras and wants a camera for every image, which "
                "the exported model has no input for; train with num_cameras=0"
            )
        self.model = model
        self.neck = neck
        self.image_size = vit.config.image_size
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        inputs = (images - self.get_buffer("mean")) / self.get_buffer("std")
        if isinstance(self.model, ReidModel):
            embedding: Tensor = self.model(inputs).embedding(self.neck)
            return embedding
        return F.normalize(self.model(inputs), dim=-1)


def onnx_bytes(embedder: Embedder, batches: Sequence[int] = (1, 3)) -> bytes:
    """An ONNX file of `embedder` (input "images", output "embedding", any batch size), checked in onnxruntime.

    Random images in each of `batches` must give the same features within ONNX_TOLERANCE, else RuntimeError. Raises
    ImportError, saying what to install, without the packages of the `onnx` extra.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    embedder = embedder.eval()
    generator = torch.Generator().manual_seed(0)
    # Not 1 and not 0: the exporter takes those for constants.
    example = torch.randint(0, 256, (2, 3, *embedder.image_size), generator=generator).float()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about its own future
        program = torch.onnx.export(
            embedder,
            (example,),
            input_names=["images"],
            output_names=["embedding"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # for the type checker: dynamo=True returns the program
    data: bytes = program.model_proto.SerializeToString()
    for batch in batches:
        images = torch.randint(0, 256, (batch, 3, *embedder.image_size), generator=generator).float()
        with torch.no_grad():
            expected = embedder(images).numpy()
        difference = float(np.abs(run_onnx(data, images.numpy()) - expected).max())
        if not difference <= ONNX_TOLERANCE:
            raise RuntimeError(
                f"the ONNX model's features of {batch} images differ from the original's by {difference:.1e}, more than "
                f"{ONNX_TOLERANCE:.0e}: not exported. Try other versions of onnxruntime and torch"
            )
    return data


def run_onnx(data: bytes, images: np.ndarray) -> np.ndarray:
    """Features of an exported model for float32 (B, 3, H, W) images, computed by onnxruntime on the CPU."""
    _require("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    features: np.ndarray = session.run(["embedding"], {"images": images})[0]
    return features


def _require(*packages: str) -> None:
    for package in packages:
        try:
            __import__(package)
        except ImportError:
            raise ImportError(f"{package} is not installed: ONNX needs the extra packages, pip install '.[onnx]'") from None


def timm_state_dict(model: Vit | ReidModel, neck: str = "before") -> dict[str, Tensor]:
    """The weights under timm's names. With neck="after" the neck is folded into the last layer norm.

    Both are affine per channel in eval mode, so timm's feature is then the neck's output exactly. ValueError for what
    timm's ViT does not have: the ics stem, overlapping patches, cameras, GeM pooling, another epsilon of the norms.
    """
    vit = model if isinstance(model, Vit) else model.backbone
    config = vit.config
    own = [
        (config.stem != "patch", f"the {config.stem} stem"),
        (config.stride not in (0, config.patch_size), f"overlapping patches (stride {config.stride})"),
        (bool(config.num_cameras), "camera embeddings"),
        (config.gem_pooling, "GeM pooling"),
        (config.norm_eps != 1e-6, f"layer norms of epsilon {config.norm_eps:g}"),
    ]
    found = [words for there, words in own if there]
    if found:
        raise ValueError(
            f"timm's vision transformer does not have {' and '.join(found)}, so timm cannot build this model; export it as "
            "safetensors (for reidssl), onnx or released"
        )
    tensors = {name: value.detach().cpu().clone() for name, value in vit.state_dict().items()}
    if neck == "after" and isinstance(model, ReidModel):
        bn = model.bottleneck
        assert bn.running_mean is not None and bn.running_var is not None  # ReidModel always tracks them
        scale = (bn.weight / (bn.running_var + bn.eps).sqrt()).detach().cpu()
        shift = (bn.bias - bn.running_mean * scale.to(bn.bias.device)).detach().cpu()
        tensors["norm.weight"] *= scale
        tensors["norm.bias"] = tensors["norm.bias"] * scale + shift
    return tensors


def timm_config(vit: Vit, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """`config.json` beside timm_state_dict's weights: `timm.create_model("local-dir:<folder>", pretrained=True)` reads it.

    timm's data pipeline then resizes and normalizes as the model was trained (bicubic, no crop).
    """
    config = vit.config
    return {
        "architecture": "vit_base_patch16_224",  # the class; model_args give all of its sizes
        "num_classes": 0,
        "num_features": config.width,
        "global_pool": "token",
        "model_args": {
            "img_size": list(config.image_size),
            "patch_size": config.patch_size,
            "embed_dim": config.width,
            "depth": config.depth,
            "num_heads": config.heads,
            "mlp_ratio": config.mlp_ratio,
            "init_values": config.layer_scale or None,
        },
        "pretrained_cfg": {
            "tag": "reidssl",
            "custom_load": False,
            "input_size": [3, *config.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": list(mean),
            "std": list(std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def torch_bytes(content: Any) -> bytes:
    """What torch.save writes."""
    sink = io.BytesIO()
    torch.save(content, sink)
    return sink.getvalue()
