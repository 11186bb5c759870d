"""Batch-hard triplet loss (arXiv 1703.07737), with a fixed margin or a soft margin."""

import torch
from torch import Tensor
from torch.nn import functional as F

from reidssl.precision import no_autocast, widened


def batch_hard(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each anchor to its farthest positive and to its nearest negative.

    An anchor counts as its own positive (distance 1e-6), so an identity may have a single image. Half-precision features are
    converted to float32 and autocast is disabled, since a distance is the difference of large squares.

    Args:
        features: float (B, D); not normalized in the recipe.
        labels: integer (B,), at least two different values.

    Returns:
        Euclidean distances (B,) of the hardest positive and of the hardest negative; float64 for float64 features, else float32.

    Raises ValueError for shapes that do not fit, and for a batch with a single identity.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            "expected features (B, D) and labels (B,) of at least one image: got "
            f"{tuple(features.shape)} and {tuple(labels.shape)}"
        )
    same = labels[:, None] == labels[None, :]
    if bool(same.all(dim=1).any()):
        raise ValueError(
            f"a triplet needs images of another identity: the batch of {len(labels)} has only one; "
            "sample several identities per batch"
        )
    with no_autocast(features):
        features = widened(features)
        squares = features.square().sum(dim=1)
        squared = squares[:, None] + squares[None, :] - 2 * features @ features.T
    distances = squared.clamp(min=1e-12).sqrt()  # the clamp keeps the gradient of sqrt finite at 0
    farthest_positive = distances.masked_fill(~same, -torch.inf).amax(dim=1)
    nearest_negative = distances.masked_fill(same, torch.inf).amin(dim=1)
    return farthest_positive, nearest_negative


def triplet_loss(features: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """Batch-hard triplet loss: mean over anchors of max(0, positive - negative + margin).

    With the soft margin, the term of an anchor is log(1 + exp(positive - negative)).

    Args:
        features: float (B, D); in the recipe, the feature before the batch-norm neck.
        labels: integer (B,), at least two different values.
        margin: 0 or more; None for the soft margin, as in the recipe.

    Returns:
        Scalar, 0 or more, with the dtype of the distances of `batch_hard`.

    Raises ValueError for a negative margin; other errors as in `batch_hard`.
    """
    if margin is not None and not margin >= 0:
        raise ValueError(f"margin must be 0 or more, or None for the soft one: got {margin}")
    positive, negative = batch_hard(features, labels)
    if margin is None:
        return F.softplus(positive - negative).mean()
    return (positive - negative + margin).clamp(min=0.0).mean()
