"""Identity losses with a margin on the cosine to an identity's weight vector: ArcFace, CosFace, circle loss.

The input of each loss is the cosines of B features and C class vectors (the logits of `ReidModel` with cosine=True). The loss
penalizes the cosine of the own identity by `margin`, multiplies by `scale`, and applies the cross-entropy of `identity_loss`.
Half-precision inputs are first converted to float32, since bf16 logits at a scale of 64 would have steps of 0.25.

Shapes: B images, C identities.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from reidssl.losses.identity import identity_loss
from reidssl.losses.loss_checks import check_labels
from reidssl.precision import widened


def arcface_loss(cosines: Tensor, labels: Tensor, scale: float, margin: float, label_smoothing: float = 0.0) -> Tensor:
    """Additive angular margin (arXiv 1801.07698): the own identity's cosine cos(a) becomes cos(a + margin).

    For a > pi - margin, where cos(a + margin) would increase again, it becomes cos(a) - margin * sin(margin), as in the authors'
    code.

    Args:
        cosines: float (B, C) in [-1, 1].
        labels: int64 (B,) in [0, C).
        scale: positive; 30 to 64 is usual.
        margin: radians in [0, pi); 0.3 to 0.5 is usual.
        label_smoothing: as in `identity_loss`.

    Returns:
        Scalar float32 (float64 for float64 cosines), 0 or more.

    Raises ValueError for shapes that do not fit or arguments out of range.
    """
    cosines = _checked(cosines, labels, scale, margin, math.pi)
    own = cosines.gather(1, labels[:, None])
    sines = (1.0 - own.square()).clamp(min=1e-9).sqrt()  # the clamp keeps the gradient of sqrt finite at 0
    moved = own * math.cos(margin) - sines * math.sin(margin)
    moved = torch.where(own > -math.cos(margin), moved, own - margin * math.sin(margin))
    return identity_loss(scale * cosines.scatter(1, labels[:, None], moved), labels, label_smoothing)


def cosface_loss(cosines: Tensor, labels: Tensor, scale: float, margin: float, label_smoothing: float = 0.0) -> Tensor:
    """Additive cosine margin (arXiv 1801.09414): the own identity's cosine c becomes c - margin.

    Arguments as for `arcface_loss`; margin in [0, 2), 0.2 to 0.4 is usual.
    """
    cosines = _checked(cosines, labels, scale, margin, 2.0)
    own = F.one_hot(labels, cosines.shape[1]).to(cosines.dtype)
    return identity_loss(scale * (cosines - margin * own), labels, label_smoothing)


def circle_loss(cosines: Tensor, labels: Tensor, scale: float, margin: float, label_smoothing: float = 0.0) -> Tensor:
    """Circle loss with class labels (arXiv 2002.10857, equation 6 for one positive).

    The own cosine p and the others n enter the cross-entropy as

        scale * relu(1 + margin - p) * (p - (1 - margin))   and   scale * relu(n + margin) * (n - margin)

    where the relu factors are weights without gradient, which give more weight to cosines far from their target. Arguments as
    for `arcface_loss`; margin in [0, 1). A margin of 0.25 to 0.35 and a scale of 64 to 256 are usual.
    """
    cosines = _checked(cosines, labels, scale, margin, 1.0)
    own = F.one_hot(labels, cosines.shape[1]).bool()
    constant = cosines.detach()
    reached = (1.0 + margin - constant).clamp(min=0.0) * (cosines - (1.0 - margin))
    avoided = (constant + margin).clamp(min=0.0) * (cosines - margin)
    return identity_loss(scale * torch.where(own, reached, avoided), labels, label_smoothing)


MarginLoss = Callable[[Tensor, Tensor, float, float, float], Tensor]
MARGIN_LOSSES: dict[str, MarginLoss] = {"arcface": arcface_loss, "cosface": cosface_loss, "circle": circle_loss}


def _checked(cosines: Tensor, labels: Tensor, scale: float, margin: float, too_much: float) -> Tensor:
    """The cosines, half precision converted to float32. Raises ValueError for invalid shapes, labels, scale or margin."""
    if cosines.ndim != 2 or labels.shape != cosines.shape[:1]:
        raise ValueError(f"expected cosines (B, C) and labels (B,): got {tuple(cosines.shape)} and {tuple(labels.shape)}")
    if scale <= 0:
        raise ValueError(f"scale must be positive: got {scale}")
    if not 0.0 <= margin < too_much:
        raise ValueError(f"margin must be in [0, {too_much:.4g}): got {margin}")
    check_labels(labels, cosines.shape[1])
    return widened(cosines)
