"""Export of models for other libraries: a folder that timm loads, and ONNX."""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidssl.choices import NECKS
from reidssl.models.model_config import VitConfig
from reidssl.models.reid import ReidModel
from reidssl.models.vit import Vit

ONNX_TOLERANCE = 1e-4


class Embedder(nn.Module):
    """Model from pixels to the retrieval feature, with normalization of the pixels included.

    Input: uint8 or float32 (B, 3, H, W), RGB, 0 to 255, with (H, W) = `image_size`. Output: float32 (B, D), L2-normalized. Raises
    ValueError for an unknown neck and for a backbone with camera embeddings.
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
        inputs = (images.float() - self.get_buffer("mean")) / self.get_buffer("std")
        if isinstance(self.model, ReidModel):
            embedding: Tensor = self.model(inputs).embedding(self.neck)
            return embedding
        return F.normalize(self.model(inputs), dim=-1)


def onnx_bytes(embedder: Embedder, batches: Sequence[int] = (1, 3)) -> bytes:
    """Export `embedder` to ONNX (input "images", uint8, output "embedding", any batch size) and check it in onnxruntime.

    The check compares the features of random images for each batch size in `batches`. Raises RuntimeError if they differ by
    more than ONNX_TOLERANCE, and ImportError if the packages of the `onnx` extra are not installed.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    embedder = embedder.eval()
    generator = torch.Generator().manual_seed(0)
    # Batch size 2, because the exporter treats sizes 0 and 1 as constants.
    example = torch.randint(0, 256, (2, 3, *embedder.image_size), generator=generator, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns about its own future changes
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
        images = torch.randint(0, 256, (batch, 3, *embedder.image_size), generator=generator, dtype=torch.uint8)
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
    """Features float32 (B, D) of uint8 (B, 3, H, W) images, computed by onnxruntime on the CPU.

    data: an ONNX file from `onnx_bytes`. Raises ImportError if onnxruntime is not installed.
    """
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

    Raises ValueError for a model with parts that timm's ViT does not have: ics stem, overlapping patches, camera embeddings, GeM
    pooling, a jigsaw branch, or a layer norm epsilon other than 1e-6.
    """
    refuse(model, tuple(PARTS), "timm's vision transformer", "export it as torch, onnx or safetensors (for reidssl)")
    return neck_folded(model, neck)


# Parts of a model that other libraries' ViTs may lack: name -> the words for it if the model has it.
PARTS: dict[str, Callable[[Vit | ReidModel, VitConfig], str]] = {
    "stem": lambda model, config: f"the {config.stem} stem" if config.stem != "patch" else "",
    "stride": lambda model, config: (
        f"overlapping patches (stride {config.stride})" if config.stride not in (0, config.patch_size) else ""
    ),
    "cameras": lambda model, config: "camera embeddings" if config.num_cameras else "",
    "gem": lambda model, config: "GeM pooling" if config.gem_pooling else "",
    "eps": lambda model, config: f"layer norms of epsilon {config.norm_eps:g}" if config.norm_eps != 1e-6 else "",
    "jigsaw": lambda model, config: "the local features of a jigsaw branch" if getattr(model, "jigsaw", None) else "",
}


def refuse(model: Vit | ReidModel, parts: Sequence[str], place: str, advice: str) -> None:
    """Raise ValueError if the model has one of `parts` (keys of PARTS), which `place` has not."""
    config = (model if isinstance(model, Vit) else model.backbone).config
    found = [words for name in parts if (words := PARTS[name](model, config))]
    if found:
        raise ValueError(f"{place} does not have {' and '.join(found)}; {advice}")


def neck_folded(model: Vit | ReidModel, neck: str) -> dict[str, Tensor]:
    """The weights of the backbone on the CPU. With neck="after" the neck is folded into the last layer norm.

    In eval mode both are affine per channel, so the class token after that norm is then exactly the output of the neck.
    """
    vit = model if isinstance(model, Vit) else model.backbone
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
    """Content of the `config.json` that belongs beside the weights of `timm_state_dict`.

    `timm.create_model("local-dir:<folder>", pretrained=True)` reads it. timm's data pipeline then resizes (bicubic, no crop) and
    normalizes images as in training.
    """
    config = vit.config
    return {
        "architecture": "vit_base_patch16_224",  # selects the class; model_args override all sizes
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
    """The bytes that torch.save writes for `content`."""
    sink = io.BytesIO()
    torch.save(content, sink)
    return sink.getvalue()
