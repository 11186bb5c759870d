"""Cluster memory: one vector per pseudo-identity, contrasted with features (Cluster Contrast, 2103.11568).

Shapes: B features of width D, C clusters.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reidssl.losses.loss_checks import check_labels
from reidssl.precision import no_autocast


class ClusterMemory(nn.Module):
    """Contrastive loss between features and cluster vectors, and the momentum update of the vectors.

    The loss does not change the memory. The update is a separate call, so that the result does not depend on gradient
    accumulation or the number of workers: collect the features of the whole step, then update once.

    Args:
        centroids: float (C, D), the mean feature of each cluster; normalized here.
        temperature: temperature of the softmax over clusters.
        momentum: weight of the old vector in an update, in [0, 1].
        hard: update each cluster with its least similar feature only, instead of with every feature in turn.
        groups: int64 (C,), group of each vector. The vectors of a group are the cameras of one cluster (`camera_proxies`). The
            loss attracts a feature to all vectors of its group equally, whatever its camera. None: each vector is a cluster.

    Raises ValueError for arguments out of range or shapes that do not fit.
    """

    centroids: Tensor
    groups: Tensor | None

    def __init__(
        self,
        centroids: Tensor,
        temperature: float = 0.05,
        momentum: float = 0.1,
        hard: bool = False,
        groups: Tensor | None = None,
    ) -> None:
        super().__init__()
        if centroids.ndim != 2 or not len(centroids):
            raise ValueError(f"centroids must be (clusters, width) with at least one cluster: got {tuple(centroids.shape)}")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive: got {temperature}")
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must be in [0, 1]: got {momentum}")
        self.temperature = temperature
        self.momentum = momentum
        self.hard = hard
        if groups is not None and groups.shape != centroids.shape[:1]:
            raise ValueError(f"groups must have one number per vector, {len(centroids)}: got {tuple(groups.shape)}")
        self.register_buffer("centroids", F.normalize(centroids.detach().float(), dim=1))
        self.register_buffer("groups", groups)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean over features of - log softmax(cos(feature, cluster) / temperature)[label].

        With groups, the term of a feature is the mean over all vectors of the label's group (inter-camera loss of CAP, with all
        other vectors as negatives).

        Args:
            features: float (B, D), normalized here.
            labels: int64 (B,) in [0, C).

        Returns:
            Scalar float32, also under autocast. It is not finite if a feature is not finite.
        """
        self._check(features, labels)
        with no_autocast(features):
            similarities = F.normalize(features.float(), dim=1) @ self.centroids.T
        if self.groups is None:
            return F.cross_entropy(similarities / self.temperature, labels)
        together = (self.groups[labels][:, None] == self.groups).float()
        return F.cross_entropy(similarities / self.temperature, together / together.sum(dim=1, keepdim=True))

    def soft_loss(self, features: Tensor, teacher: Tensor) -> Tensor:
        """Mean over features of the cross-entropy with the teacher's softmax over the vectors (soft labels of MMT, 2001.01526).

        Args:
            features: float (B, D), normalized here; the gradient flows through them only.
            teacher: float (B, D), the teacher's features of the same images, normalized here.

        Returns:
            Scalar float32, also under autocast: the entropy of the teacher's softmax at least.
        """
        if teacher.shape != features.shape:
            raise ValueError(f"teacher must have the shape of features, {tuple(features.shape)}: got {tuple(teacher.shape)}")
        with no_autocast(features):
            similarities, targets = (
                F.normalize(each.float(), dim=1) @ self.centroids.T / self.temperature for each in (features, teacher.detach())
            )
        return F.cross_entropy(similarities, targets.softmax(dim=1))

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Update the vectors of the labels that occur: new = normalize(momentum * old + (1 - momentum) * feature).

        By default each cluster is updated with its features one by one in the given order. With `hard`, each cluster is updated
        once, with the feature least similar to the old vector (the first of equal ones). Arguments as in `forward`.

        Raises ValueError without changing any vector if a feature is not finite, because its cluster could not recover in the
        rest of the run.
        """
        self._check(features, labels)
        features = F.normalize(features.detach().float(), dim=1)
        finite = features.isfinite().all(dim=1)
        if not bool(finite.all()):
            broken = (~finite).nonzero()[:, 0].tolist()
            raise ValueError(
                f"features must be finite: {len(broken)} of {len(features)} have NaN or infinite values, the first "
                f"in row {broken[0]}; the model has diverged, lower the learning rate"
            )
        if self.hard:
            similarities = (features * self.centroids[labels]).sum(dim=1)
            order = similarities.argsort(stable=True)
        else:
            order = torch.arange(len(labels), device=labels.device)
        # Clusters are independent of each other, so each round processes the next feature of every cluster at once.
        order = order[labels[order].argsort(stable=True)]
        grouped = labels[order]
        first = torch.searchsorted(grouped, grouped)  # for each feature, the position at which its cluster begins
        turn = torch.arange(len(grouped), device=labels.device) - first
        num_rounds = 1 if self.hard else int(turn.max()) + 1 if len(turn) else 0
        for round_number in range(num_rounds):
            chosen = order[turn == round_number]
            old = self.centroids[labels[chosen]]
            new = self.momentum * old + (1.0 - self.momentum) * features[chosen]
            self.centroids[labels[chosen]] = F.normalize(new, dim=1)

    def _check(self, features: Tensor, labels: Tensor) -> None:
        clusters, width = self.centroids.shape
        if labels.ndim != 1 or features.shape != (len(labels), width):
            raise ValueError(
                f"expected features (B, {width}) and labels (B,): got {tuple(features.shape)} and {tuple(labels.shape)}"
            )
        check_labels(labels, clusters, "; drop outliers (-1) first", wait=True)
