"""Center loss: pulls each feature to the center of its identity (Wen et al., ECCV 2016)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reidssl.losses.loss_checks import check_labels


class CenterLoss(nn.Module):
    """Half the mean squared distance between features and the centers of their identities; the centers follow the features.

    `centers`, float (C, D), is a buffer without gradient that starts at 0. `forward` reads it. `update` changes it once per
    optimizer step, with all features of the step, so that it does not depend on micro-batches or workers.

    Args:
        num_classes: C, at least 1.
        width: D, at least 1.
        rate: update rate of the centers, in [0, 1]; 0.5 in the paper.

    Raises ValueError for arguments out of range.
    """

    centers: Tensor

    def __init__(self, num_classes: int, width: int, rate: float = 0.5) -> None:
        super().__init__()
        if num_classes < 1 or width < 1:
            raise ValueError(f"num_classes and width must be at least 1: got {num_classes} and {width}")
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rate must be in [0, 1]: got {rate}")
        self.rate = rate
        self.register_buffer("centers", torch.zeros(num_classes, width))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """mean over images of || x - c[label] ||^2 / 2, a scalar float32.

        Args:
            features: float (B, D); not normalized in the paper.
            labels: int64 (B,) in [0, C).
        """
        self._check(features, labels)
        return 0.5 * (features.float() - self.centers[labels]).square().sum(dim=1).mean()

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Update the centers with the features of a whole step (paper, equation 4). Arguments as in `forward`.

        c_j <- c_j - rate * (sum over images i of identity j of (c_j - x_i)) / (1 + number of images of identity j)
        """
        self._check(features, labels)
        counts = torch.zeros(len(self.centers), 1, device=self.centers.device)
        counts.index_add_(0, labels, torch.ones(len(labels), 1, device=counts.device))
        sums = torch.zeros_like(self.centers).index_add_(0, labels, features.to(self.centers))
        self.centers -= self.rate * (counts * self.centers - sums) / (1.0 + counts)

    def _check(self, features: Tensor, labels: Tensor) -> None:
        classes, width = self.centers.shape
        if labels.ndim != 1 or features.shape != (len(labels), width):
            raise ValueError(
                f"expected features (B, {width}) and labels (B,): got {tuple(features.shape)} and {tuple(labels.shape)}"
            )
        check_labels(labels, classes)

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of `state_dict()`. Raises ValueError if the number of identities or the width differs."""
        centers = tensors.get("centers")
        if centers is None or centers.shape != self.centers.shape:
            seen = "none" if centers is None else f"shape {tuple(centers.shape)}"
            raise ValueError(
                f"expected saved centers of shape {tuple(self.centers.shape)}: got {seen}; resume with the "
                "configuration and data of the run"
            )
        self.centers.copy_(centers)
