"""Identity loss: cross-entropy over the identities of the training set."""

from torch import Tensor
from torch.nn import functional as F

from reidssl.precision import widened


def identity_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of float logits (B, C) and int64 labels (B,) in [0, C).

    With label_smoothing e in [0, 1), the target is 1 - e on the identity plus e / C on every class (arXiv 1512.00567). The recipe
    of TransReID-SSL uses none. The result is a scalar float32, or float64 for float64 logits.

    Example:
        >>> import torch
        >>> round(identity_loss(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
        1.3863
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1): got {label_smoothing}")
    return F.cross_entropy(widened(logits), labels, label_smoothing=label_smoothing)
