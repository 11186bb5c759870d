"""Models in storage: find the model file of a run, and load it with the settings needed to use it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from platform.engine.errors import UserError
from platform.engine.inference.camera_rows import Table, require_cameras, rows_of
from platform.engine.inference.forward import Forward
from platform.engine.runtime.device import device, upload
from platform.engine.schemas.phases_settings import BackboneOverrides as BackboneOverrides
from platform.engine.storage.location import Location, StorageConfig, open_storage
from reidssl.augment.reid_augment import normalize
from reidssl.models.knowledge import About
from reidssl.models.mirror import mirrored_mean
from reidssl.models.reid import ReidModel
from reidssl.models.vit import Vit
from reidssl.models.weight_files import MODEL_FILES, SHARD_INDEX, refuse_part
from reidssl.models.weights import (
    LoadConfig,
    LoadReport,
    ModelFile,
    Unsaid,
    load_reid,
    load_vit,
    read_checkpoint,
    weights_hash,
)

BACKBONE, REID, BEST = "backbone.safetensors", "model.safetensors", "best.safetensors"
ORIGIN = (
    "setting",
    "checkpoint",
    "source_set",
    "target_set",
    "target_manifest",
    "data",
    "manifest",
    "selection",
    "samples_seen",
)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on the device, with its input normalization and its origin."""

    uri: str
    """URI that was passed to `load_model`."""
    backbone: Vit
    reid: ReidModel | None
    mean: list[float]
    std: list[float]
    neck: str
    """Side of the neck whose feature is used for retrieval: before or after."""
    metadata: dict[str, str]
    report: LoadReport
    """The tensors that were loaded, skipped and resized, and the known facts about the file."""
    forward: Forward
    """Forward pass up to the necks: of `backbone`, or of all features of a re-ID model with local parts."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the input images."""
        return self.backbone.config.image_size

    @property
    def weights(self) -> str:
        """First 12 characters of the hash of the weights, as stored in results."""
        return weights_hash(self.reid or self.backbone)[:12]

    @property
    def origin(self) -> dict[str, str]:
        """How the model was trained, from the metadata of the file: those of the keys in ORIGIN that it has."""
        return {name: self.metadata[name] for name in ORIGIN if self.metadata.get(name)}

    @property
    def about(self) -> About:
        """Facts about the file: read from it, given by the user or assumed."""
        assert self.report.about is not None  # load_vit and load_reid always give it
        return self.report.about

    @property
    def cameras(self) -> Table | None:
        """Camera number of each row of the camera embeddings; None: no embeddings, or the file does not say."""
        answer = self.about.answers.get("cameras")
        return answer.value if answer and self.backbone.config.num_cameras else None

    def require_cameras(self, location: Location, splits: Any, section: str = "load") -> None:
        """Check that a model with camera embeddings knows the cameras of the images. Raises UserError if not."""
        require_cameras(self.cameras, self.backbone.config.num_cameras, self.uri, location, splits, section)

    def features(self, images: Tensor, camids: np.ndarray | None = None) -> Tensor:
        """Features of the backbone, float32 (B, D).

        images: uint8 (B, 3, H, W); camids: int (B,), camera numbers of the data, used by a model with camera embeddings.
        """
        features = self.forward(normalize(upload(images), self.mean, self.std), self.camera_rows(camids))
        return features[:, : self.backbone.config.width]  # that of the whole image, without local parts

    def embed(self, images: Tensor, camids: np.ndarray | None = None, flip: bool = False) -> Tensor:
        """L2-normalized features used for retrieval, float32 (B, D). Arguments as in `features`.

        flip: average the features of image and mirror image before the normalization.
        """
        rows = self.camera_rows(camids)

        def features(inputs: Tensor) -> Tensor:
            before = self.forward(inputs, rows)
            return before if self.reid is None else self.reid.output(before).feature(self.neck)

        inputs = normalize(upload(images), self.mean, self.std)
        return F.normalize(mirrored_mean(features, inputs) if flip else features(inputs), dim=-1)

    def camera_rows(self, camids: np.ndarray | None) -> Tensor | None:
        """Rows int64 (B,) of the camera embeddings, on the device; None for a model without cameras or without `camids`."""
        if self.cameras is None or camids is None:
            return None
        return torch.from_numpy(rows_of(camids, self.cameras, "the images")).to(device())


def model_file(uri: str, storage: StorageConfig) -> Location:
    """Location of the model file: `uri` itself if it is a file, else the model in the folder `uri`.

    A model in several files is found by its index file. Raises UserError if there is no model.
    """
    location = open_storage(uri, storage)
    if location.is_file():
        try:
            refuse_part(location.name, location.uri)
        except ValueError as error:
            raise UserError(str(error)) from None
        return location
    for name in (*MODEL_FILES, SHARD_INDEX):
        if (location / name).exists():
            return location / name
    there = [item.name for item in location.list(recursive=False) if item.name.endswith((".pth", ".pt", ".safetensors", ".tar"))]
    shown = f"; in it are {', '.join(there[:4])}" if there else ""
    raise UserError(
        f"there is no model at {location.uri}: neither {REID} nor {BACKBONE}. Name a finished run of "
        f"platform.pretrain or platform.finetune, or a checkpoint file{shown}"
    )


def load_model(
    uri: str,
    storage: StorageConfig,
    given: LoadConfig | None = None,
    section: str = "load",
    *,
    precision: str = "fp32",
    compiling: str = "off",
    **changes: Any,
) -> LoadedModel:
    """Load a checkpoint, written by this platform or released by others.

    Args:
        given: what the file does not say, from the options `section` of the command line.
        precision, compiling: how the model computes, as in `Forward`.
        changes: overrides of the configuration of the backbone, e.g. drop_path.

    Raises UserError if there is no model, or it cannot be loaded.
    """
    file = model_file(uri, storage)
    folder = open_storage(file.uri.rpartition("/")[0] or "/", storage)
    given = given or LoadConfig()

    def beside(name: str) -> bytes | None:
        found = folder / name
        return found.read_bytes() if found.is_file() else None

    reports: list[LoadReport] = []
    try:
        name = folder.uri if file.name == SHARD_INDEX else file.uri
        checkpoint = read_checkpoint(ModelFile(file.read_bytes(), name, beside), given.weights)
        metadata = checkpoint.metadata
        options: dict[str, Any] = {"given": given, "on_load": reports.append, **changes}
        is_reid = metadata.get("kind", "reid") == "reid" and checkpoint.is_reid
        reid = load_reid(checkpoint, **options).to(device()).eval() if is_reid else None
        backbone = reid.backbone if reid else load_vit(checkpoint, **options).to(device()).eval()
    except Unsaid as error:
        raise UserError(error.text(section)) from None
    except ValueError as error:
        raise UserError(str(error)) from None
    assert reports[0].about is not None
    known = reports[0].about.answers
    return LoadedModel(
        uri=uri,
        backbone=backbone,
        reid=reid,
        metadata=metadata,
        report=reports[0],
        mean=known["mean"].value,
        std=known["std"].value,
        neck=known["neck"].value if reid else "before",
        forward=Forward(reid.features if reid and reid.jigsaw else backbone, precision, compiling),
    )
