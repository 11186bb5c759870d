"""The released fine-tuning without labels (Cluster Contrast) in plain PyTorch: features, clusters, memory, steps. Patch stem.

With a mean teacher (MMT, arXiv 2001.01526), each step also learns the averaged weights' softmax over the clusters.

The clusters come from the dense N x N reference of the Jaccard distance and scikit-learn's DBSCAN. All parameters have one
learning rate. The backbone is the plain one; the neck is a batch norm whose bias stays 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import DBSCAN
from torch import Tensor
from torch.nn import functional as F

from tests.reidssl.clustering.dense import dense_jaccard

State = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """The released settings."""

    rate: float
    decay_epochs: int
    weight_decay: float
    temperature: float
    momentum: float
    k1: int
    k2: int
    eps: float
    min_samples: int
    ema_momentum: float = 0.0
    teacher_weight: float = 0.0


class PlainRun:
    """The model and its optimizer. features: function (weights of the backbone, images) -> (B, D)."""

    def __init__(self, initial: State, trained: set[str], recipe: Recipe, features: Callable[[State, Tensor], Tensor]) -> None:
        self.state = {name: value.clone().requires_grad_(name in trained) for name, value in initial.items()}
        self.recipe, self.features = recipe, features
        weights = [self.state[name] for name in sorted(trained)]
        self.optimizer = torch.optim.SGD(weights, lr=recipe.rate, momentum=0.9, weight_decay=recipe.weight_decay)
        self.average = {name: value.detach().clone() for name, value in self.state.items()}
        self.labels: list[np.ndarray] = []
        self.losses: list[float] = []

    def embed(self, state: State, images: Tensor, training: bool) -> Tensor:
        """Unit features (B, D) after the neck. training: the neck uses and tracks the statistics of the batch."""
        backbone = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
        before = self.features(backbone, images)
        neck = {name.removeprefix("bottleneck."): value for name, value in state.items() if name.startswith("bottleneck.")}
        mean, variance = neck["running_mean"].clone(), neck["running_var"].clone()
        if training:
            mean, variance = before.mean(0), before.var(0, correction=0)
            with torch.no_grad():
                neck["running_mean"].mul_(0.9).add_(0.1 * mean)
                neck["running_var"].mul_(0.9).add_(0.1 * before.var(0))
        after = (before - mean) / (variance + 1e-5).sqrt() * neck["weight"] + neck["bias"]
        return after / after.norm(dim=1, keepdim=True)

    def final(self) -> State:
        """The weights to evaluate: the average with the running statistics of training, which momentum 0 makes the state."""
        return self.average | {name: value for name, value in self.state.items() if "running" in name}

    @torch.no_grad()
    def teach(self, images: Tensor, memory: Tensor) -> Tensor:
        """The teacher's softmax (B, C) over the clusters."""
        return (self.embed(self.final(), images, training=False) @ memory.T / self.recipe.temperature).softmax(1)

    def epoch(
        self, number: int, everything: Tensor, batches: Sequence[tuple[np.ndarray, Tensor]], seconds: Sequence[Tensor]
    ) -> None:
        """Cluster all images, then train on the batches (positions of the images, the augmented images).

        seconds: the second augmentation of each batch, for the teacher.
        """
        with torch.no_grad():
            found = self.embed(self.state, everything, training=False)
        distances = dense_jaccard(found.numpy(), self.recipe.k1, self.recipe.k2)
        labels = DBSCAN(eps=self.recipe.eps, min_samples=self.recipe.min_samples, metric="precomputed").fit_predict(distances)
        self.labels.append(labels)
        memory = torch.stack([found[torch.from_numpy(labels == cluster)].mean(0) for cluster in range(labels.max() + 1)])
        memory = memory / memory.norm(dim=1, keepdim=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate * 0.1 ** (number // self.recipe.decay_epochs)
        weight = self.recipe.teacher_weight
        for step, (positions, images) in enumerate(batches):
            targets = torch.from_numpy(labels[positions])
            soft = self.teach(seconds[step], memory) if weight else None
            embedded = self.embed(self.state, images, training=True)
            scores = embedded @ memory.T / self.recipe.temperature
            loss = F.cross_entropy(scores, targets)
            if soft is not None:
                loss = (1 - weight) * loss - weight * (soft * scores.log_softmax(1)).sum(1).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            with torch.no_grad():
                for name, value in self.average.items():
                    value.copy_(self.recipe.ema_momentum * value + (1 - self.recipe.ema_momentum) * self.state[name])
            self.losses.append(float(loss.detach()))
            for cluster in targets.unique():
                own = embedded.detach()[targets == cluster]
                hardest = own[(own @ memory[cluster]).argmin()]
                moved = self.recipe.momentum * memory[cluster] + (1 - self.recipe.momentum) * hardest
                memory[cluster] = moved / moved.norm()
