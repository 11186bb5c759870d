"""Models in storage: find one by the run that made it, load it with what it needs to be used."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from platform.engine.errors import UserError
from platform.engine.inference.camera_rows import Table, require_cameras, rows_of
from platform.engine.runtime.device import device, upload
from platform.engine.schemas.phases_settings import BackboneOverrides as BackboneOverrides
from platform.engine.storage.location import Location, StorageConfig, open_storage
from reidssl.augment.reid_augment import normalize
from reidssl.models.knowledge import About
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

BACKBONE, REID = "backbone.safetensors", "model.safetensors"
ORIGIN = ("setting", "checkpoint", "source_set", "target_set", "data", "selection", "samples_seen")


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on the device, and how images go into it."""

    uri: str
    """As it was asked for."""
    backbone: Vit
    reid: ReidModel | None
    mean: list[float]
    std: list[float]
    neck: str
    """Which side of the neck retrieval uses: before or after."""
    metadata: dict[str, str]
    report: LoadReport
    """What was loaded, skipped and resized, and what is known of the file."""

    @property
    def image_size(self) -> tuple[int, int]:
        return self.backbone.config.image_size

    @property
    def weights(self) -> str:
        """Hash of the weights, as results name it."""
        return weights_hash(self.reid or self.backbone)[:12]

    @property
    def origin(self) -> dict[str, str]:
        """What the file says of how the model was made: setting, checkpoint, source_set, target_set, data, selection."""
        return {name: self.metadata[name] for name in ORIGIN if self.metadata.get(name)}

    @property
    def about(self) -> About:
        """What the file says, what was given and what is assumed."""
        assert self.report.about is not None  # load_vit and load_reid always give it
        return self.report.about

    @property
    def cameras(self) -> Table | None:
        """The camera that each row of the camera embeddings stands for; None: there are none, or the file does not say."""
        answer = self.about.answers.get("cameras")
        return answer.value if answer and self.backbone.config.num_cameras else None

    def require_cameras(self, location: Location, splits: Any, section: str = "load") -> None:
        """Before any work: UserError where the model needs the images' cameras and they are not among its own."""
        require_cameras(self.cameras, self.backbone.config.num_cameras, self.uri, location, splits, section)

    def features(self, images: Tensor, camids: np.ndarray | None = None) -> Tensor:
        """The backbone's features (B, D) of uint8 (B, 3, H, W); camids: int (B,), the data's, for a model with cameras."""
        return self.backbone(normalize(upload(images), self.mean, self.std), self.camera_rows(camids))

    def embed(self, images: Tensor, camids: np.ndarray | None = None) -> Tensor:
        """uint8 (B, 3, H, W), camids as for `features` -> L2-normalized float32 (B, D), the feature used for retrieval."""
        if self.reid is None:
            return F.normalize(self.features(images, camids), dim=-1)
        inputs = normalize(upload(images), self.mean, self.std)
        return self.reid(inputs, self.camera_rows(camids)).embedding(self.neck)

    def camera_rows(self, camids: np.ndarray | None) -> Tensor | None:
        """int64 (B,), what the backbone wants beside images of these cameras; None for a model without."""
        if self.cameras is None or camids is None:
            return None
        return torch.from_numpy(rows_of(camids, self.cameras, "the images")).to(device())


def model_file(uri: str, storage: StorageConfig) -> Location:
    """The model in a run's or any folder (the index, where it is in shards), or the file itself.

    Raises UserError saying what was looked for.
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
    uri: str, storage: StorageConfig, given: LoadConfig | None = None, section: str = "load", **changes: Any
) -> LoadedModel:
    """Load our own or a released checkpoint.

    given: what the file does not say, from the command line's `section`. changes: to the backbone's configuration, e.g.
    drop_path. Raises UserError.
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
    )
