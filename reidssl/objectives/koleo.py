"""KoLeo regularizer: spreads the features of a batch over the sphere (arXiv 1806.03198, as used in DINOv2)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from reidssl.precision import no_autocast

EPSILON = 1e-8


def koleo_loss(features: Tensor) -> Tensor:
    """Negative mean logarithm of the distance of each unit feature to its nearest neighbor in the batch.

        loss = - mean_i  log( min_{j != i} || x_i - x_j + 1e-8 || + 1e-8 ),   x = features / || features ||

    The nearest neighbor is selected without gradient, as in DINOv2. Different views of an image must not be in the same batch,
    because their features are meant to be close.

    Args:
        features: float (B, D), B >= 2; normalized here.

    Returns:
        Scalar float32, at least -ln 2 (opposite features) and at most 18.4 (equal features).

    Raises ValueError for fewer than 2 features.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"KoLeo needs the features (B, D) of at least 2 images: got shape {tuple(features.shape)}; "
            "raise stream.micro_batch, or set koleo_weight=0"
        )
    with no_autocast(features):
        unit = F.normalize(features.float(), dim=-1)
        with torch.no_grad():
            cosines = unit @ unit.T
            nearest = cosines.fill_diagonal_(-2.0).argmax(dim=1)
        # The small constant inside the norm keeps the gradient finite if two features are equal.
        distances = (unit - unit[nearest] + EPSILON).norm(dim=-1)
        loss: Tensor = -(distances + EPSILON).log().mean()
        return loss
