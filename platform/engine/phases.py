"""What fine-tuning does in an epoch, and the phase without labels: clustering and contrast with the clusters.

A phase decides which images form the batches, what the loss of a batch is and what happens after a step; the loop around
it (epochs.py) owns the engine, the workers and the checkpoints. The phase with labels is in supervised.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from platform.engine.cluster_warnings import cluster_warnings
from platform.engine.collectives import broadcast_object
from platform.engine.device import device
from platform.engine.errors import UserError
from platform.engine.features import array_parts
from platform.engine.images import ImageSet
from platform.engine.jaccard import check_shared, sharded_labels
from platform.engine.neighbours import NeighbourActorsConfig
from reidssl.clustering.cameras import camera_proxies
from reidssl.clustering.memory import ClusterMemory
from reidssl.clustering.pseudo_labels import ClusterConfig, PseudoLabels, cluster_centroids, pseudo_labels
from reidssl.data.samplers import identity_batches
from reidssl.models.reid import ReidModel, ReidOutput
from reidssl.schedules import Steps

Features = Callable[[ImageSet], Tensor]


@dataclass(kw_only=True)
class BatchConfig:
    """The batch of one optimiser step, P identities with K images each, however many workers share it."""

    identities: int = 16
    """P."""
    instances: int = 4
    """K."""
    micro_batches: int = 0
    """Pieces of equal size in which the step's images go through the backbone; the number of workers must divide it. 0: one for
    each of scaling.workers, kept for the whole run. Losses, mining, the neck's batch norm and the cluster memory see the whole
    batch however it is cut; the batch norm of an ics stem sees a piece. More pieces than workers need less memory and about a
    third more time: their images go through the backbone once more, without gradients."""

    def __post_init__(self) -> None:
        for name in ("identities", "instances"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if not 0 <= self.micro_batches <= self.images:
            raise ValueError(f"micro_batches must be between 0 (as many as workers) and the {self.images} images of a batch: "
                             f"got {self.micro_batches}")

    @property
    def images(self) -> int:
        """P x K."""
        return self.identities * self.instances


@dataclass(kw_only=True)
class UnsupervisedConfig:
    """Fine-tuning without labels: Cluster Contrast (arXiv 2103.11568)."""

    epochs: int = 50
    """Rounds of clustering and training."""
    iterations: int = 200
    """Optimiser steps in an epoch."""
    optimizer: str = "sgd"
    """sgd or adamw."""
    learning_rate: float = 3.5e-4
    """Learning rate at the start."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer to the one before it; 1: all alike; 0.65 to 0.9 are usual."""
    weight_decay: float = 5e-4
    """Weight decay."""
    decay_epochs: int = 20
    """The learning rate falls to a tenth every so many epochs."""
    temperature: float = 0.05
    """Of the cluster memory's softmax."""
    momentum: float = 0.1
    """Weight of the old vector in the memory's update."""
    hard: bool = True
    """Update a cluster with its least similar feature only."""
    drop_path: float = 0.3
    """Stochastic depth rate of the backbone."""
    neck: str = "after"
    """Side of the neck whose feature is clustered and used for retrieval."""
    camera_proxies: bool = False
    """One memory vector for each camera of a cluster; an image is drawn to all those of its cluster."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    neighbours: NeighbourActorsConfig = field(default_factory=NeighbourActorsConfig)
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(identities=32, instances=8))

    def __post_init__(self) -> None:
        check_common(self)
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0: got {self.temperature}")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1]: got {self.momentum}")
        if self.iterations < 1 or self.decay_epochs < 1:
            raise ValueError(f"iterations and decay_epochs must be at least 1: got {self.iterations}, {self.decay_epochs}")
        check_shared(self.cluster, self.neighbours)


def check_common(config: Any) -> None:
    """ValueError for what no phase can do."""
    if config.epochs < 0:
        raise ValueError(f"epochs must be 0 or more: got {config.epochs}")
    if config.optimizer not in ("sgd", "adamw"):
        raise ValueError(f"optimizer must be sgd or adamw: got '{config.optimizer}'")
    if config.learning_rate <= 0:
        raise ValueError(f"learning_rate must be positive: got {config.learning_rate}")
    if not 0 < config.layer_decay <= 1:
        raise ValueError(f"layer_decay must be in (0, 1]: got {config.layer_decay}")
    if config.weight_decay < 0:
        raise ValueError(f"weight_decay must be 0 or more: got {config.weight_decay}")
    if not 0 <= config.drop_path < 1:
        raise ValueError(f"drop_path must be in [0, 1): got {config.drop_path}")
    if config.neck not in ("before", "after"):
        raise ValueError(f"neck must be before or after: got '{config.neck}'")


@dataclass(frozen=True)
class Epoch:
    """One epoch's work."""

    batches: list[np.ndarray]
    """Positions in the image set, one array an optimiser step; none: there is nothing to learn from in this epoch."""
    labels: np.ndarray
    """int64 (N,), -1 where an image is not used."""
    log: dict[str, float]
    """What is worth a line."""
    warnings: list[str] = field(default_factory=list)
    """What makes the epoch doubtful, a clause each."""


class Phase(Protocol):
    """A part of a fine-tuning run."""

    name: str
    images: ImageSet
    config: Any

    def prepare(self, model: ReidModel) -> None:
        """Shape the model for this phase (its classifier)."""

    def learning_rate(self, epoch: int) -> float:
        """Of weights, for a whole epoch."""

    def begin(self, epoch: int, features: Features) -> Epoch:
        """Collective: the batches of an epoch; `features` extracts those of all images."""

    def loss(self, output: ReidOutput, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss of a step's batch and its terms."""

    def remembered(self, output: ReidOutput) -> Tensor | None:
        """The features (B, D) of a step that `after_step` wants; None: none, and it is not called."""

    def after_step(self, features: Tensor, labels: Tensor) -> None:
        """Once per optimiser step, with all its features (B, D) in the order of the batch."""

    def state_tensors(self) -> dict[str, Tensor]:
        """What a later epoch needs besides the model."""

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` gave, after `prepare`; ValueError where it does not fit."""


class Unsupervised:
    """Cluster, contrast with the clusters' memory, cluster again."""

    name = "unsupervised"
    memory: ClusterMemory

    def __init__(self, config: UnsupervisedConfig, images: ImageSet, seed: int) -> None:
        self.config, self.images, self.seed = config, images, seed
        self.schedule = Steps(config.learning_rate, config.decay_epochs)

    def prepare(self, model: ReidModel) -> None:
        model.reset_classifier(0)

    def learning_rate(self, epoch: int) -> float:
        return self.schedule(epoch)

    def begin(self, epoch: int, features: Features) -> Epoch:
        everything = features(self.images)
        # one worker clusters, all use its labels
        found = broadcast_object(self._cluster(epoch, everything) if _is_first() else None)
        log = {"clusters": found.num_clusters, "outliers": found.num_outliers,
               "cluster_seconds": sum(found.seconds.values())}
        if found.num_clusters:
            log["largest_cluster"] = int(np.bincount(found.labels[found.labels >= 0]).max())
        if found.recall is not None:
            log["search_recall"] = found.recall
        if found.num_clusters < 2:  # nothing to contrast with: the features do not tell images apart (yet)
            return Epoch([], found.labels, log, cluster_warnings(log, len(self.images)))
        labels, groups = found.labels, None
        if self.config.camera_proxies:
            labels, clusters = camera_proxies(found.labels, self.images.camids)
            groups = torch.from_numpy(clusters)
            log["proxies"] = len(clusters)
        centroids = cluster_centroids(everything, labels)
        self.memory = ClusterMemory(centroids, self.config.temperature, self.config.momentum, self.config.hard,
                                    groups).to(device())
        batch = self.config.batch
        batches = identity_batches(found.labels, self.images.camids, batch.identities, batch.instances, self.seed, epoch,
                                   self.config.iterations, cross_camera=True, allow_fewer=True)
        if self.images.pids.min() >= 0:  # labels are known: judge the clusters, never train on them
            from sklearn.metrics import adjusted_rand_score

            log["adjusted_rand_index"] = float(adjusted_rand_score(self.images.pids, found.labels))
        return Epoch(batches, labels, log, cluster_warnings(log, len(self.images)))

    def _cluster(self, epoch: int, features: Tensor) -> PseudoLabels:
        cluster, actors = self.config.cluster, self.config.neighbours
        progress = epoch / max(self.config.epochs - 1, 1)
        try:
            if actors.actors:
                return sharded_labels(array_parts(features.numpy(), actors.actors), cluster, actors, progress)
            return pseudo_labels(features, cluster, progress=progress)
        except ValueError as error:  # features that are no numbers, more clusters than images
            raise UserError(f"{self.images.location.uri} cannot be clustered: {error}") from None

    def loss(self, output: ReidOutput, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.memory(output.embedding(self.config.neck), labels)
        return loss, {"contrast": loss}

    def remembered(self, output: ReidOutput) -> Tensor | None:
        return output.embedding(self.config.neck)

    def after_step(self, features: Tensor, labels: Tensor) -> None:
        self.memory.update(features, labels)

    def state_tensors(self) -> dict[str, Tensor]:
        return {}  # every epoch begins with clustering and a memory of its own

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to restore."""


def _is_first() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
