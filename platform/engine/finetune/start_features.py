"""Features of the initial weights, which the trials of a sweep share: most trials start from the same backbone."""

import hashlib
import io
import json
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from platform.engine.data.joined import Images
from platform.engine.data.shards import MANIFEST
from platform.engine.finetune.extraction import extract
from platform.engine.runtime.collectives import broadcast_object
from platform.engine.runtime.device import device
from platform.engine.storage.location import Location
from platform.engine.zero import engine as zero
from reidssl.augment.augment_config import ReidAugmentConfig
from reidssl.models.reid import ReidModel
from reidssl.models.weights import weights_hash


@dataclass(frozen=True)
class StartFeatures:
    """Features in files of a folder, one for each model, image set and way to extract. The first run that needs one makes it."""

    folder: Location

    def extract(
        self,
        model: ReidModel,
        images: Images,
        neck: str,
        augment: ReidAugmentConfig,
        engine: zero.EngineSettings,
        flip: bool = False,
    ) -> Tensor:
        """As `extraction.extract`, from the file if there is one. Collective.

        Runs that need the same features at the same time each compute them, and write equal files.
        """
        first = dist.get_rank() == 0
        file = self.folder / f"{key_of(model, images, neck, augment, engine, flip)}.npy" if first else None
        found = broadcast_object(_read(file) if file else None)
        if found is not None:
            return torch.from_numpy(found)
        features = extract(model, images, neck, augment, engine, flip)
        if file:
            sink = io.BytesIO()
            np.save(sink, features.numpy(), allow_pickle=False)
            file.write_bytes(sink.getvalue())
        return features


def key_of(
    model: ReidModel, images: Images, neck: str, augment: ReidAugmentConfig, engine: zero.EngineSettings, flip: bool
) -> str:
    """Digest of everything that the features depend on."""
    # The weights do not say everything: heads, pooling and the weight of the camera embeddings leave no tensor.
    backbone = {name: value for name, value in asdict(model.backbone.config).items() if name != "drop_path"}
    cameras = images.cameras(np.arange(len(images)))
    content = [
        weights_hash(model),
        backbone,
        "" if cameras is None else hashlib.sha256(cameras.cpu().numpy().tobytes()).hexdigest(),
        hashlib.sha256((images.location / MANIFEST).read_bytes()).hexdigest(),
        hashlib.sha256("\n".join(images.keys).encode()).hexdigest(),
        images.resize,
        neck,
        list(augment.mean),
        list(augment.std),
        engine.precision,
        device().type,
        flip,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _read(file: Location) -> np.ndarray | None:
    if not file.exists():
        return None
    found: np.ndarray = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
    return found
