"""The re-ID model: backbone, batch-norm neck (BNNeck, arXiv 1903.07071) and identity classifier.

Shapes: B images, D the backbone's width, C identities.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidssl.choices import NECKS
from reidssl.models.initialization import seeded
from reidssl.models.vit import Vit


class ReidOutput(NamedTuple):
    """The output of `ReidModel` for B images."""

    before: Tensor
    """(B, D) feature of the backbone, before the neck. Used for the triplet loss and for supervised retrieval."""
    after: Tensor
    """(B, D) feature after the neck's batch norm. Used for the identity loss and, L2-normalized, for Cluster Contrast."""
    logits: Tensor | None
    """(B, C) identity scores of `after` (cosines with a cosine classifier); None for a model without classes."""

    def feature(self, neck: str = "before") -> Tensor:
        """The feature (B, D) on the chosen side of the neck, "before" or "after"."""
        if neck not in NECKS:
            raise ValueError(f"neck must be one of {', '.join(NECKS)}: got {neck!r}")
        return self.before if neck == "before" else self.after

    def embedding(self, neck: str = "before") -> Tensor:
        """The L2-normalized feature (B, D) on the chosen side of the neck, "before" or "after"."""
        return F.normalize(self.feature(neck), dim=-1)


class CosineClassifier(nn.Linear):
    """Classifier without bias whose scores (B, C) are cosines in [-1, 1] of features (B, D) and one vector per identity.

    The margin losses need this form.
    """

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


class ReidModel(nn.Module):
    """Backbone with a batch-norm neck and, for num_classes > 0, a classifier without bias (linear or cosine).

    The neck's bias stays 0 and is not trained, so that identities spread around the origin, as cosine similarity needs.
    """

    def __init__(self, backbone: Vit, num_classes: int = 0, seed: int = 0, cosine: bool = False) -> None:
        super().__init__()
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 (no classifier) or more: got {num_classes}")
        width = backbone.config.width
        self.num_classes = num_classes
        self.cosine = cosine
        self.backbone = backbone
        self.bottleneck = nn.BatchNorm1d(width)
        self.bottleneck.bias.requires_grad_(False)
        self.classifier: nn.Linear | None = None
        if num_classes:
            with seeded(seed):
                self.classifier = (CosineClassifier if cosine else nn.Linear)(width, num_classes, bias=False)
                nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(
        self, images: Tensor, camids: Tensor | None = None, among_all: Callable[[Tensor], Tensor] | None = None
    ) -> ReidOutput:
        """Features and scores of images.

        Args:
            images: float (B, 3, H, W), normalized.
            camids: camera numbers, as in `Vit.forward`.
            among_all: function from the features of these images to the features of the whole training step, for steps that
                are computed in pieces. Neck, classifier and output then cover the whole step.
        """
        before = self.backbone(images, camids)
        if among_all is not None:
            before = among_all(before)
        after = self.bottleneck(before)
        return ReidOutput(before, after, None if self.classifier is None else self.classifier(after))

    @torch.no_grad()
    def reset_classifier(self, num_classes: int, seed: int = 0, cosine: bool = False) -> None:
        """Replace the classifier by a new one for num_classes identities; 0 removes the classifier."""
        fresh = ReidModel(self.backbone, num_classes, seed, cosine)
        device = self.bottleneck.weight.device
        self.classifier = None if fresh.classifier is None else fresh.classifier.to(device)
        self.num_classes = num_classes
        self.cosine = cosine
