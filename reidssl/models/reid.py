"""The re-ID model: backbone, batch-norm neck (BNNeck, arXiv 1903.07071) and identity classifier, with or without JPM's parts.

Shapes: B images, D the backbone's width, P local parts (0 without a jigsaw branch), W = D * (1 + P), C identities.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidssl.choices import NECKS
from reidssl.models.jigsaw import JigsawBranch
from reidssl.models.model_config import JigsawConfig
from reidssl.models.neck import batch_norm_neck, identity_classifier
from reidssl.models.vit import Vit


class ReidOutput(NamedTuple):
    """The output of `ReidModel` for B images."""

    before: Tensor
    """(B, D) feature of the backbone, before the neck. Used for the triplet loss and for supervised retrieval."""
    after: Tensor
    """(B, D) feature after the neck's batch norm. Used for the identity loss and, L2-normalized, for Cluster Contrast."""
    logits: Tensor | None
    """(B, C) identity scores of `after` (cosines with a cosine classifier); None for a model without classes."""
    parts: tuple["ReidOutput", ...] = ()
    """The same for each of the P local features of a jigsaw branch."""

    def feature(self, neck: str = "before") -> Tensor:
        """The feature (B, W) on the chosen side of the neck, "before" or "after".

        With parts, it is the concatenation of the feature of the whole image and of the local ones, divided by P, as in the
        released code of TransReID (which divides by 4).
        """
        if neck not in NECKS:
            raise ValueError(f"neck must be one of {', '.join(NECKS)}: got {neck!r}")
        whole = self.before if neck == "before" else self.after
        if not self.parts:
            return whole
        return torch.cat([whole, *(part.feature(neck) / len(self.parts) for part in self.parts)], dim=1)

    def embedding(self, neck: str = "before") -> Tensor:
        """The L2-normalized feature (B, W) on the chosen side of the neck, "before" or "after"."""
        return F.normalize(self.feature(neck), dim=-1)


class ReidModel(nn.Module):
    """Backbone with a batch-norm neck and, for num_classes > 0, a classifier without bias (linear or cosine).

    Args:
        backbone: the vision transformer.
        num_classes: number of identities C; 0: no classifier.
        seed: seed of the classifiers' initial weights.
        cosine: the classifier computes cosines, for the margin losses.
        jigsaw: local parts of the jigsaw patch module; None or 0 parts: no local branch.
    """

    def __init__(
        self, backbone: Vit, num_classes: int = 0, seed: int = 0, cosine: bool = False, jigsaw: JigsawConfig | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cosine = cosine
        self.backbone = backbone
        self.bottleneck = batch_norm_neck(backbone.config.width)
        self.classifier: nn.Linear | None = None
        self.jigsaw: JigsawBranch | None = JigsawBranch(backbone, jigsaw) if jigsaw and jigsaw.parts else None
        self.reset_classifier(num_classes, seed, cosine)

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
        features = self.features(images, camids)
        return self.output(features if among_all is None else among_all(features))

    def features(self, images: Tensor, camids: Tensor | None = None) -> Tensor:
        """Features before the necks, (B, W): that of the whole image, then the local ones. Arguments as in `forward`."""
        if self.jigsaw is None:
            features: Tensor = self.backbone(images, camids)
            return features
        tokens = self.backbone.tokens_before_last_block(images, camids)
        return torch.cat((self.backbone.pooled(self.backbone.last_block(tokens)), self.jigsaw(tokens)), dim=1)

    def output(self, features: Tensor) -> ReidOutput:
        """Necks and classifiers on the result (B, W) of `features`."""
        before, *local = features.split(self.backbone.config.width, dim=1)
        parts = []
        if self.jigsaw is not None:
            classifiers = self.jigsaw.classifiers or [None] * len(local)
            parts = [_through(*each) for each in zip(local, self.jigsaw.bottlenecks, classifiers, strict=True)]
        return _through(before, self.bottleneck, self.classifier)._replace(parts=tuple(parts))

    @torch.no_grad()
    def reset_classifier(self, num_classes: int, seed: int = 0, cosine: bool = False) -> None:
        """Replace the classifiers by new ones for num_classes identities; 0 removes them."""
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 (no classifier) or more: got {num_classes}")
        self.classifier = None
        if num_classes:
            fresh = identity_classifier(self.backbone.config.width, num_classes, seed, cosine)
            self.classifier = fresh.to(self.bottleneck.weight.device)
        if self.jigsaw is not None:
            self.jigsaw.reset_classifiers(num_classes, seed, cosine)
        self.num_classes = num_classes
        self.cosine = cosine

    def add_jigsaw(self, config: JigsawConfig) -> None:
        """Add a new local branch without classifiers, whose block is a copy of the backbone's last one."""
        self.jigsaw = JigsawBranch(self.backbone, config).to(self.bottleneck.weight.device)


def _through(before: Tensor, neck: nn.Module, classifier: nn.Module | None) -> ReidOutput:
    after = neck(before)
    return ReidOutput(before, after, None if classifier is None else classifier(after))
