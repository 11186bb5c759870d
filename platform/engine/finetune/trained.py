"""A model in the training engine of its phase, and its inputs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from platform.engine.data.joined import Images
from platform.engine.finetune.phase import Phase
from platform.engine.finetune.pieces import rows_to_compute
from platform.engine.runtime.device import upload
from platform.engine.train.step import StepBatchNorm
from reidssl.augment.reid_augment import ReidAugment
from reidssl.models.drop_path import StepDropPath
from reidssl.models.reid import ReidModel
from reidssl.seeding import sample_seeds


@dataclass(frozen=True)
class Trained:
    """A model in the training engine of its phase."""

    model: ReidModel
    phase: Phase
    number: int
    drop_paths: list[StepDropPath]
    norms: StepBatchNorm
    augment: ReidAugment
    engine: Any

    def inputs(
        self, seed: int, epoch: int, step: int, positions: np.ndarray, rows: slice, view: str = ""
    ) -> tuple[Tensor, Tensor | None]:
        """(augmented images float (b, 3, H, W), camera rows int64 (b,) or None) of `rows` of a step.

        positions: int (B,), the images of the whole step. Camera rows are None for a model without cameras. view: name of the
        augmentation; another name gives another one of the same images.
        """
        seeds = batch_seeds(seed, self.phase.images, epoch, step, positions, view)[rows]
        images = self.augment(upload(self.phase.images.batch(positions[rows])), seeds)
        return images, self.phase.images.cameras(positions[rows])

    def train(self) -> None:
        """Set the training mode; frozen batch norms normalize with their stored statistics."""
        self.engine.module.train()
        for norm in frozen_norms(self.model):
            norm.eval()

    def seed(self, seed: int, piece: slice, batch: int) -> None:
        """Seed the drop path before a forward pass of a piece, so that each row gets the mask of its place in the whole batch."""
        torch.manual_seed(seed)
        for layer in self.drop_paths:
            layer.place = rows_to_compute(piece).start, batch

    def features(self, seed: int, piece: slice, batch: int, inputs: tuple[Tensor, Tensor | None]) -> Tensor:
        """Features (b, W) of a piece before the necks, equal to those inside its forward pass through the engine."""
        self.seed(seed, piece, batch)
        return self.model.features(*inputs)


def frozen_norms(model: ReidModel) -> list[_BatchNorm]:
    """The batch norms of frozen layers: they normalize with their stored statistics in training, too."""
    norms = [layer for layer in model.backbone.modules() if isinstance(layer, _BatchNorm)]
    return [layer for layer in norms if not any(parameter.requires_grad for parameter in layer.parameters())]


def batch_seeds(seed: int, images: Images, epoch: int, step: int, positions: np.ndarray, view: str = "") -> Any:
    """Augmentation seeds uint64 (B,) of a step. An image that occurs twice in a batch gets two different seeds."""
    keys = [f"{images.keys[position]}#{step}.{place}{view}" for place, position in enumerate(positions)]
    return sample_seeds(seed, epoch, keys)
