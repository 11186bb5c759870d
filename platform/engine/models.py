"""Models in storage: find one by the run that made it, load it with what it needs to be used."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from platform.engine.device import device, upload
from platform.engine.errors import UserError
from platform.engine.storage import Location, StorageConfig, open_storage
from reidssl.augment.reid import normalise
from reidssl.models.checkpoints import LoadReport, load_reid, load_vit, read_checkpoint
from reidssl.models.reid import ReidModel
from reidssl.models.vit import Vit

BACKBONE, REID = "backbone.safetensors", "model.safetensors"
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# How the published code feeds and reads its models, for files that do not say it: mean, std, side of the neck.
RELEASED = {"dino": (IMAGENET_MEAN, IMAGENET_STD, "before"), "reid": ([0.5] * 3, [0.5] * 3, "before"),
            "cluster_contrast": (IMAGENET_MEAN, IMAGENET_STD, "after")}


@dataclass(kw_only=True)
class ChangesConfig:
    """What may differ from the configuration that a checkpoint's backbone was trained with, its weights staying the same."""

    stride: int = 0
    """Distance between patches in pixels, smaller makes them overlap (TransReID trains with 12); 0: as it was."""
    gem_pooling: bool = False
    """Add the generalised mean of the patch tokens to the class token."""

    def as_dict(self) -> dict[str, Any]:
        """The changes, without what stays as it was."""
        return {name: value for name, value in (("stride", self.stride), ("gem_pooling", self.gem_pooling)) if value}


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on the device, and how images go into it."""

    backbone: Vit
    reid: ReidModel | None
    mean: list[float]
    std: list[float]
    neck: str
    """Which side of the neck retrieval uses: before or after."""
    metadata: dict[str, str]
    report: LoadReport
    """What was loaded, skipped and resized."""

    @property
    def image_size(self) -> tuple[int, int]:
        return self.backbone.config.image_size

    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> L2-normalised float32 (B, D), the feature used for retrieval."""
        inputs = normalise(upload(images), self.mean, self.std)
        if self.reid is None:
            return F.normalize(self.backbone(inputs), dim=-1)
        return self.reid(inputs).embedding(self.neck)


def model_file(uri: str, storage: StorageConfig) -> Location:
    """The model in a run folder, or the file itself. Raises UserError saying what was looked for."""
    location = open_storage(uri, storage)
    if location.is_file():
        return location
    for name in (REID, BACKBONE):
        if (location / name).exists():
            return location / name
    raise UserError(f"there is no model at {location.uri}: neither {REID} nor {BACKBONE}. Name a finished run of "
                    "platform.pretrain or platform.finetune, or a checkpoint file")


def load_model(uri: str, storage: StorageConfig, **changes: Any) -> LoadedModel:
    """Load our own or a released checkpoint; `changes` to the backbone's configuration (e.g. drop_path)."""
    file = model_file(uri, storage)
    reports: list[LoadReport] = []
    try:
        checkpoint = read_checkpoint(file.read_bytes())
        metadata = checkpoint.metadata
        is_reid = metadata.get("kind", "reid") == "reid" and checkpoint.is_reid
        reid = load_reid(checkpoint, on_load=reports.append, **changes).to(device()).eval() if is_reid else None
        backbone = reid.backbone if reid else load_vit(checkpoint, on_load=reports.append, **changes).to(device()).eval()
    except ValueError as error:
        raise UserError(f"{file.uri}: {error}") from None
    mean, std, neck = RELEASED[checkpoint.layout if is_reid and "kind" not in metadata else "dino"]
    return LoadedModel(
        backbone=backbone, reid=reid, metadata=metadata, neck=metadata.get("neck", neck), report=reports[0],
        mean=json.loads(metadata["mean"]) if "mean" in metadata else mean,
        std=json.loads(metadata["std"]) if "std" in metadata else std)


@torch.inference_mode()
def embed_all(model: LoadedModel, images: Any, batch: int = 256) -> Tensor:
    """Features of an ImageSet in order: float32 (N, D) on the CPU."""
    return torch.cat([model.embed(part).float().cpu() for part in images.batches(batch)])
