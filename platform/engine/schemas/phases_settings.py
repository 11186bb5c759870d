"""Settings of the phases of fine-tuning."""

from dataclasses import dataclass, field
from typing import Any

from platform.engine.schemas.retrieval_settings import NeighbourActorsConfig, check_shared
from reidssl.choices import LARGEST_MARGIN
from reidssl.clustering.cluster_config import ClusterConfig

IDENTITY_LOSSES = ("cross_entropy", *LARGEST_MARGIN)


@dataclass(kw_only=True)
class ChangesConfig:
    """What may differ from the configuration that a checkpoint's backbone was trained with, its weights staying the same."""

    stride: int = 0
    """Distance between patches in pixels, smaller makes them overlap (TransReID trains with 12); 0: as it was."""
    gem_pooling: bool = False
    """Add the generalised mean of the patch tokens to the class token."""

    def as_dict(self) -> dict[str, Any]:
        """The changes, without what stays as it was."""
        return {name: value for name, value in (("stride", self.stride), ("gem_pooling", self.gem_pooling)) if value}


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


@dataclass(kw_only=True)
class SupervisedConfig:
    """Fine-tuning with identity labels (TransReID-SSL, section 4): identity + soft-margin batch-hard triplet loss.

    The other losses are options; the defaults are the published recipe.
    """

    epochs: int = 120
    """Passes over the identities."""
    optimizer: str = "sgd"
    """sgd (momentum 0.9, biases twice the rate) or adamw."""
    learning_rate: float = 4e-4
    """Peak learning rate."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer to the one before it; 1: all alike; 0.65 to 0.9 are usual."""
    weight_decay: float = 1e-4
    """Weight decay."""
    warmup_epochs: float = 20.0
    """Epochs of linear warm-up."""
    identity: str = "cross_entropy"
    """Identity loss: cross_entropy of a linear classifier, or of cosines with a margin: arcface, cosface, circle."""
    identity_scale: float = 30.0
    """Scale of the cosines (margin losses only); 30 to 64, for circle 64 to 256."""
    identity_margin: float = 0.3
    """Margin (margin losses only): radians for arcface, a cosine for cosface and circle (for circle less is stricter)."""
    label_smoothing: float = 0.0
    """Of the identity loss."""
    triplet_weight: float = 1.0
    """Of the triplet loss; 0 leaves it out, for models too small to satisfy it (it stays at ln 2 and only disturbs)."""
    triplet_margin: float = 0.0
    """Margin of the triplet loss; 0: the soft margin."""
    center_weight: float = 0.0
    """Of the center loss on the feature before the neck; 5e-4 is usual, 0 leaves it out."""
    center_rate: float = 0.5
    """How far a centre moves towards its features in a step."""
    drop_path: float = 0.1
    """Stochastic depth rate of the backbone."""
    neck: str = "before"
    """Side of the neck whose feature is used for retrieval."""
    batch: BatchConfig = field(default_factory=BatchConfig)

    def __post_init__(self) -> None:
        check_common(self)
        if self.identity not in IDENTITY_LOSSES:
            raise ValueError(f"identity must be one of {', '.join(IDENTITY_LOSSES)}: got '{self.identity}'")
        if self.identity_scale <= 0:
            raise ValueError(f"identity_scale must be positive: got {self.identity_scale}")
        limit = LARGEST_MARGIN.get(self.identity, float("inf"))
        if not 0.0 <= self.identity_margin < limit:
            raise ValueError(f"identity_margin must be in [0, {limit:.4g}) for {self.identity}: got {self.identity_margin}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1): got {self.label_smoothing}")
        for name in ("warmup_epochs", "triplet_weight", "triplet_margin", "center_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more: got {getattr(self, name)}")
        if not 0.0 <= self.center_rate <= 1.0:
            raise ValueError(f"center_rate must be in [0, 1]: got {self.center_rate}")
