"""Batch-norm neck (BNNeck, arXiv 1903.07071) and identity classifiers of the re-ID model and of its local branches."""

from torch import Tensor, nn
from torch.nn import functional as F

from reidssl.models.initialization import seeded


class CosineClassifier(nn.Linear):
    """Classifier without bias whose scores (B, C) are cosines in [-1, 1] of features (B, D) and one vector per identity.

    The margin losses need this form.
    """

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


def batch_norm_neck(width: int) -> nn.BatchNorm1d:
    """The neck for features (B, width). Its bias stays 0, so that identities spread around the origin, as cosines need."""
    neck = nn.BatchNorm1d(width)
    neck.bias.requires_grad_(False)
    return neck


def identity_classifier(width: int, num_classes: int, seed: int, cosine: bool = False) -> nn.Linear:
    """A new classifier without bias, linear or cosine, whose weights depend on `seed` alone."""
    with seeded(seed):
        classifier = (CosineClassifier if cosine else nn.Linear)(width, num_classes, bias=False)
        nn.init.normal_(classifier.weight, std=0.001)
    return classifier
