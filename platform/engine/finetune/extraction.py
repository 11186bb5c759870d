"""Features of whole image sets, computed by all workers of a fine-tuning run."""

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from platform.engine.data.joined import Images
from platform.engine.runtime.device import upload
from platform.engine.zero import engine as zero
from reidssl.augment.augment_config import ReidAugmentConfig
from reidssl.augment.reid_augment import normalize
from reidssl.models.mirror import mirrored_mean
from reidssl.models.reid import ReidModel

EXTRACTION_BATCH = 128


@torch.no_grad()
def extract(
    model: ReidModel, images: Images, neck: str, augment: ReidAugmentConfig, engine: zero.EngineSettings, flip: bool = False
) -> Tensor:
    """L2-normalized features float32 (N, D) of all images, on the CPU of every worker. Collective; each computes its share.

    Args:
        neck: "before" or "after", the side of the neck to read.
        engine: the pass has the precision of training.
        flip: average image and mirror image.

    The model keeps its train or eval mode.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    training = model.training
    model.eval()
    starts = list(range(0, len(images), EXTRACTION_BATCH))
    own = []
    for start in starts[rank::world]:
        positions = np.arange(start, min(start + EXTRACTION_BATCH, len(images)))
        inputs = normalize(upload(images.batch(positions)), augment.mean, augment.std).to(next(model.parameters()).dtype)
        features = partial(_features, model, neck, images.cameras(positions))
        with zero.autocast(engine):
            found = mirrored_mean(features, inputs) if flip else features(inputs)
        own.append(F.normalize(found.float(), dim=-1).cpu())
    model.train(training)
    parts: list[Any] = [own]
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, own)
    return torch.cat([parts[number % world][number // world] for number in range(len(starts))])


def _features(model: ReidModel, neck: str, cameras: Tensor | None, inputs: Tensor) -> Tensor:
    found: Tensor = model(inputs, cameras).feature(neck)
    return found
