"""The interface of a fine-tuning phase, and the unsupervised phase (Cluster Contrast).

A phase determines the batches of images, the loss of a batch and the action after a step. The loop around it (loop.py) owns
the engine, the workers and the checkpoints. The supervised phase is in supervised.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from platform.engine.clustering.sharded_labels import sharded_labels
from platform.engine.data.joined import Images
from platform.engine.errors import UserError
from platform.engine.finetune.cluster_warnings import cluster_warnings
from platform.engine.inference.features import array_parts
from platform.engine.runtime.collectives import broadcast_object
from platform.engine.runtime.device import device
from platform.engine.schemas.phases_settings import BatchConfig as BatchConfig
from platform.engine.schemas.phases_settings import PhaseConfig, UnsupervisedConfig
from reidssl.clustering.agreement import agreement, purity, stability
from reidssl.clustering.camera_proxies import camera_proxies
from reidssl.clustering.memory import ClusterMemory
from reidssl.clustering.pseudo_labels import PseudoLabels, cluster_centroids, pseudo_labels
from reidssl.data.samplers import identity_batches
from reidssl.models.reid import ReidModel, ReidOutput
from reidssl.schedules import Steps

Features = Callable[[Images], Tensor]


@dataclass(frozen=True)
class Epoch:
    """The batches and labels of one epoch."""

    batches: list[np.ndarray]
    """Positions in the image set, one array per optimizer step; empty: no training in this epoch."""
    labels: np.ndarray
    """Class of each image, int64 (N,); -1 for an unused image."""
    log: dict[str, float]
    """Metrics to log."""
    warnings: list[str] = field(default_factory=list)
    """Warnings about the epoch, each a clause of text."""


class Phase(Protocol):
    """Interface of a part of a fine-tuning run with its own batches, loss and optimizer."""

    name: str
    images: Images

    @property
    def teacher_clusters(self) -> bool:
        """Whether `begin` gets the features of the averaged weights, if there are any."""

    @property
    def teacher_weight(self) -> float:
        """Weight of the teacher's output in `loss`; 0: `loss` does not get it."""

    @property
    def config(self) -> PhaseConfig:
        """The settings of the phase."""

    def prepare(self, model: ReidModel) -> None:
        """Prepare the model for this phase: replace its classifier."""

    def learning_rate(self, epoch: int, factor: float = 1.0) -> float:
        """Learning rate of an epoch (from 0) for parameters with `factor` times the base rate of the weights."""

    def begin(self, epoch: int, features: Features) -> Epoch:
        """The batches of an epoch (from 0). Collective. `features` extracts the features of an image set."""

    def loss(self, output: ReidOutput, labels: Tensor, teacher: ReidOutput | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """(scalar loss, its named terms) of the batch of a step.

        labels: int64 (B,). teacher: output of the averaged weights for another augmentation of the images.
        """

    def remembered(self, output: ReidOutput) -> Tensor | None:
        """The features (B, D) of a step to pass to `after_step`; None: `after_step` is not called."""

    def after_step(self, features: Tensor, labels: Tensor) -> None:
        """Update the state of the phase after an optimizer step, from its features (B, D) and labels (B,)."""

    def state_tensors(self) -> dict[str, Tensor]:
        """State that a later epoch needs besides the model."""

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore the result of `state_tensors`; call it after `prepare`. Raises ValueError if a tensor does not fit."""


class Unsupervised:
    """The unsupervised phase: each epoch clusters the images anew and trains with the contrastive loss on a cluster memory."""

    name = "unsupervised"
    memory: ClusterMemory | None = None
    """The memory of the current epoch; None before the first clusters."""

    def __init__(self, config: UnsupervisedConfig, images: Images, seed: int) -> None:
        self.config, self.images, self.seed = config, images, seed
        self.schedule = Steps(config.learning_rate, config.decay_epochs)
        self.before: np.ndarray | None = None
        """Labels of the epoch before, int64 (N,); None in the first epoch."""

    @property
    def teacher_clusters(self) -> bool:
        return self.config.teacher_clusters

    @property
    def teacher_weight(self) -> float:
        return self.config.teacher_weight

    def prepare(self, model: ReidModel) -> None:
        model.reset_classifier(0)

    def learning_rate(self, epoch: int, factor: float = 1.0) -> float:
        return factor * self.schedule(epoch)

    def begin(self, epoch: int, features: Features) -> Epoch:
        everything = features(self.images)
        # Rank 0 clusters; all workers use its labels.
        found = broadcast_object(self._cluster(epoch, everything) if _is_first() else None)
        log = {"clusters": found.num_clusters, "outliers": found.num_outliers, "cluster_seconds": sum(found.seconds.values())}
        if found.num_clusters:
            log["largest_cluster"] = int(np.bincount(found.labels[found.labels >= 0]).max())
        if found.recall is not None:
            log["search_recall"] = found.recall
        known = self.images.pids.min() >= 0  # evaluate the clusters with the identities, never train on them
        if known and found.num_clusters:
            log["adjusted_rand_index"] = agreement(found.labels, self.images.pids)
            log["purity"] = purity(found.labels, self.images.pids)
        if self.before is not None and not np.isnan(same := stability(found.labels, self.before)):
            log["label_stability"] = same
        self.before = found.labels
        if found.num_clusters < 2:  # the contrastive loss needs two clusters; the features do not separate images (yet)
            return Epoch([], found.labels, log, cluster_warnings(log, len(self.images)))
        labels, groups = found.labels, None
        if self.config.camera_proxies:
            labels, clusters = camera_proxies(found.labels, self.images.camids)
            groups = torch.from_numpy(clusters)
            log["proxies"] = len(clusters)
        centroids = cluster_centroids(everything, labels)
        self.memory = self._memory_of(centroids, groups)
        batch = self.config.batch
        batches = identity_batches(
            found.labels,
            self.images.camids,
            batch.identities,
            batch.instances,
            self.seed,
            epoch,
            self.config.iterations,
            cross_camera=True,
            allow_fewer=True,
        )
        return Epoch(batches, labels, log, cluster_warnings(log, len(self.images)))

    def _cluster(self, epoch: int, features: Tensor) -> PseudoLabels:
        cluster, actors = self.config.cluster, self.config.neighbors
        progress = epoch / max(self.config.epochs - 1, 1)
        try:
            if actors.actors:
                return sharded_labels(array_parts(features.numpy(), actors.actors), cluster, actors, progress)
            return pseudo_labels(features, cluster, progress=progress)
        except ValueError as error:  # e.g. non-finite features, or more clusters than images
            raise UserError(f"{self.images.location.uri} cannot be clustered: {error}") from None

    def loss(self, output: ReidOutput, labels: Tensor, teacher: ReidOutput | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.memory is not None
        features, weight = output.embedding(self.config.neck), self.teacher_weight
        terms = {"contrast": self.memory(features, labels)}
        if teacher is None:
            return terms["contrast"], terms
        terms["soft"] = self.memory.soft_loss(features, teacher.embedding(self.config.neck))
        return (1 - weight) * terms["contrast"] + weight * terms["soft"], terms

    def remembered(self, output: ReidOutput) -> Tensor | None:
        return output.embedding(self.config.neck)

    def after_step(self, features: Tensor, labels: Tensor) -> None:
        assert self.memory is not None
        self.memory.update(features, labels)

    def state_tensors(self) -> dict[str, Tensor]:
        """The labels of the newest clustering, to compare the next ones with, and its memory, to continue inside its epoch."""
        found = {} if self.before is None else {"labels": torch.from_numpy(self.before)}
        memory = {} if self.memory is None else {name: value for name, value in self.memory.named_buffers()}
        return found | memory

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        labels = tensors.get("labels")
        self.before = None if labels is None or len(labels) != len(self.images) else labels.cpu().numpy()
        if "centroids" in tensors:
            self.memory = self._memory_of(tensors["centroids"], tensors.get("groups"))
            self.memory.centroids.copy_(tensors["centroids"])  # exactly: normalizing again would round

    def _memory_of(self, centroids: Tensor, groups: Tensor | None) -> ClusterMemory:
        config = self.config
        return ClusterMemory(centroids, config.temperature, config.momentum, config.hard, groups).to(device())


def _is_first() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
